//! What is done when a batch does not fit into the device's memory: half as many tokens at once, from then on.

use super::fault::Fault;
use crate::engine::VectorFault;

/// Tokens that one engine puts on its device at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    tokens: usize,
}

impl Default for Budget {
    /// Whatever comes.
    fn default() -> Budget {
        Budget { tokens: usize::MAX }
    }
}

impl Budget {
    /// How many of the sequences of these lengths run together, from the first on: at least one.
    fn take(&self, lengths: &[usize]) -> usize {
        let mut total = 0usize;
        let fits = |length: &&usize| {
            total = total.saturating_add(**length);
            total <= self.tokens
        };
        lengths.iter().take_while(fits).count().max(1)
    }

    /// Sequences of these lengths did not fit together. False if less cannot be tried: it was one alone.
    fn halve(&mut self, lengths: &[usize]) -> bool {
        if lengths.len() < 2 {
            return false;
        }
        self.tokens = lengths.iter().sum::<usize>() / 2;
        true
    }

    /// Computes all sequences, together or in parts. `compute` gets the first and the number of those that run together.
    /// A sequence that does not fit even alone gets a fault; the others have their vectors all the same.
    ///
    /// # Errors
    /// The device failed in another way: what it said.
    pub fn spend<T>(
        &mut self,
        lengths: &[usize],
        mut compute: impl FnMut(usize, usize) -> Result<Vec<T>, Fault>,
    ) -> Result<Vec<Result<T, VectorFault>>, String> {
        let mut results = Vec::with_capacity(lengths.len());
        while results.len() < lengths.len() {
            let (first, rest) = (results.len(), &lengths[results.len()..]);
            let count = self.take(rest);
            match compute(first, count) {
                Ok(vectors) => {
                    assert_eq!(vectors.len(), count, "a vector for each sequence");
                    results.extend(vectors.into_iter().map(Ok));
                }
                Err(Fault::NoRoom) if self.halve(&rest[..count]) => {}
                Err(Fault::NoRoom) => results.push(Err(VectorFault::NoRoom)),
                Err(Fault::Broken(why)) => return Err(why),
            }
        }
        Ok(results)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that holds so many tokens at once. Gives back the results and the parts that were tried.
    fn on(
        room: usize,
        budget: &mut Budget,
        lengths: &[usize],
    ) -> (Vec<Result<usize, VectorFault>>, Vec<usize>) {
        let mut tried = Vec::new();
        let results = budget.spend(lengths, |first, count| {
            let tokens: usize = lengths[first..][..count].iter().sum();
            tried.push(tokens);
            if tokens > room {
                return Err(Fault::NoRoom);
            }
            Ok((first..first + count).collect())
        });
        (results.unwrap(), tried)
    }

    #[test]
    fn what_fits_runs_together() {
        let mut budget = Budget::default();
        let (results, tried) = on(100, &mut budget, &[10, 20, 30]);
        assert_eq!((results, tried), (vec![Ok(0), Ok(1), Ok(2)], vec![60]));
        assert_eq!(budget, Budget::default());
    }

    // Goal: a full memory costs no vector, and the next batch does not run into it again.
    #[test]
    fn a_full_memory_halves_the_budget_for_good() {
        let mut budget = Budget::default();
        let (results, tried) = on(40, &mut budget, &[10, 20, 30]);
        assert_eq!(results, [Ok(0), Ok(1), Ok(2)]);
        assert_eq!(tried, [60, 30, 30]);
        let (results, tried) = on(40, &mut budget, &[10, 20, 30]);
        assert_eq!((results.len(), tried), (3, vec![30, 30]));
    }

    #[test]
    fn what_does_not_fit_alone_harms_no_other() {
        let (results, _) = on(25, &mut Budget::default(), &[10, 20, 30, 25]);
        assert_eq!(results, [Ok(0), Ok(1), Err(VectorFault::NoRoom), Ok(3)]);
    }

    #[test]
    fn another_failure_is_the_end() {
        let broken = |_, _| Err::<Vec<()>, _>(Fault::Broken("gone".into()));
        assert_eq!(Budget::default().spend(&[1, 2], broken), Err("gone".into()));
    }
}
