//! What is made of single measurements.

/// The value below which this part of all lies, by the nearest rank; `None` of nothing.
pub fn percentile(values: &[f64], part: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// The middle one, or the mean of the two in the middle; `None` of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    Some((sorted[sorted.len() / 2 - 1] + upper) / 2.0)
}

/// One answer through the broker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arrival {
    /// When it came, in seconds from any beginning.
    pub at: f64,
    /// How much it brought.
    pub inputs: u64,
    /// The tokens of that.
    pub tokens: u64,
}

/// Inputs and tokens a second while answers came one behind the other: from the first, which only marks the
/// beginning, to the last. Neither the filling of the pipe nor its emptying is in it. `None` where nothing lies
/// between.
pub fn steady(arrivals: &[Arrival]) -> Option<(f64, f64)> {
    let (first, rest) = arrivals.split_first()?;
    let seconds = rest.last()?.at - first.at;
    let inputs: u64 = rest.iter().map(|arrival| arrival.inputs).sum();
    let tokens: u64 = rest.iter().map(|arrival| arrival.tokens).sum();
    (seconds > 0.0).then(|| (inputs as f64 / seconds, tokens as f64 / seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_middle_and_the_tail() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), Some(50.0));
        assert_eq!(percentile(&values, 0.99), Some(99.0));
        assert_eq!(percentile(&values, 1.0), Some(100.0));
        assert_eq!(median(&values), Some(50.5));
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!((percentile(&[], 0.5), median(&[])), (None, None));
    }

    #[test]
    fn the_first_answer_only_starts_the_clock() {
        let arrival = |at, inputs| Arrival {
            at,
            inputs,
            tokens: 10 * inputs,
        };
        let arrivals = [arrival(3.0, 1000), arrival(3.5, 32), arrival(5.0, 32)];
        assert_eq!(steady(&arrivals), Some((32.0, 320.0)));
        assert_eq!(steady(&arrivals[..1]), None);
        assert_eq!(steady(&[arrival(3.0, 1), arrival(3.0, 1)]), None);
    }

    proptest! {
        /// Goal: whatever is measured, the numbers told lie within it and in order.
        #[test]
        fn statistics_lie_within_the_values(values in prop::collection::vec(1e-6f64..1e9, 1..50)) {
            let least = values.iter().copied().fold(f64::INFINITY, f64::min);
            let most = values.iter().copied().fold(0.0, f64::max);
            let (p50, p99) = (percentile(&values, 0.5).unwrap(), percentile(&values, 0.99).unwrap());
            let middle = median(&values).unwrap();
            prop_assert!(least <= p50 && p50 <= p99 && p99 <= most);
            prop_assert!(least <= middle && middle <= most && p50 <= middle);
        }
    }
}
