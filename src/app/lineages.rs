//! How far streamed jobs have come that went on from here. A process that dies between the confirm of a job's next slice and the
//! acknowledgement of the one before leaves both in the broker, and each would be worked off to the job's end.

use std::collections::{HashMap, VecDeque};

/// Streamed jobs that are remembered: some thousand times as many as are at work at once.
const KEPT_MAX: usize = 4096;

/// What is known here of each lineage.
#[derive(Debug, Default)]
pub struct Lineages {
    known: HashMap<u64, Known>,
    order: VecDeque<u64>,
}

#[derive(Debug, Default)]
struct Known {
    /// Where the furthest slice begins that is known to be safe in the broker.
    reached: usize,
    /// The most attempts that its sender may have been told of.
    attempts: u32,
}

impl Lineages {
    /// The slice that begins at this input of the job is confirmed; behind the last input, that the job is done.
    pub fn reached(&mut self, lineage: u64, input: usize) {
        let known = self.known(lineage);
        known.reached = input.max(known.reached);
    }

    /// Whether a slice that begins at this input is a copy whose work goes on elsewhere. One that no slice is known to
    /// have followed never is, however often it comes.
    pub fn is_behind(&self, lineage: u64, input: usize) -> bool {
        self.known
            .get(&lineage)
            .is_some_and(|known| input < known.reached)
    }

    /// A slice is taken up of which so many attempts would be told: how many are to be, since of another copy more may have
    /// been told, and the counter never falls.
    pub fn attempts(&mut self, lineage: u64, attempts: u32) -> u32 {
        let known = self.known(lineage);
        known.attempts = attempts.max(known.attempts);
        known.attempts
    }

    fn known(&mut self, lineage: u64) -> &mut Known {
        if self.order.len() >= KEPT_MAX
            && !self.known.contains_key(&lineage)
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        self.known.entry(lineage).or_insert_with(|| {
            self.order.push_back(lineage);
            Known::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_to_go_on_elsewhere_is_behind() {
        let mut lineages = Lineages::default();
        assert!(!lineages.is_behind(7, 0));
        lineages.reached(7, 512);
        assert!(lineages.is_behind(7, 0) && !lineages.is_behind(7, 512));
        lineages.reached(7, 100);
        assert!(lineages.is_behind(7, 511) && !lineages.is_behind(8, 0));
        for other in 100..100 + KEPT_MAX as u64 {
            lineages.reached(other, 1);
        }
        assert!(!lineages.is_behind(7, 0));
        assert_eq!((lineages.known.len(), lineages.order.len()), (KEPT_MAX, KEPT_MAX));
    }

    #[test]
    fn the_counter_of_a_job_never_falls() {
        let mut lineages = Lineages::default();
        assert_eq!(lineages.attempts(7, 2), 2);
        assert_eq!((lineages.attempts(7, 1), lineages.attempts(8, 1)), (2, 1));
        lineages.reached(7, 512);
        assert_eq!(lineages.attempts(7, 3), 3);
    }
}
