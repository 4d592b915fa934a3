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
