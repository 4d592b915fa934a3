//! How far streamed jobs have come that went on from here. A process that dies between the confirm of a job's next slice and the
//! acknowledgement of the one before leaves both in the broker, and each would be worked off to the job's end.

use std::collections::{HashMap, VecDeque};

/// Streamed jobs that are remembered: some thousand times as many as are at work at once.
const KEPT_MAX: usize = 4096;

/// The furthest slice of each lineage that is known to be safe in the broker.
#[derive(Debug, Default)]
pub struct Lineages {
    reached: HashMap<u64, usize>,
    order: VecDeque<u64>,
}

impl Lineages {
    /// The slice that begins at this input of the job is confirmed; behind the last input, that the job is done.
    pub fn reached(&mut self, lineage: u64, input: usize) {
        if self.order.len() >= KEPT_MAX
            && !self.reached.contains_key(&lineage)
            && let Some(oldest) = self.order.pop_front()
        {
            self.reached.remove(&oldest);
        }
        let known = self.reached.entry(lineage).or_insert_with(|| {
            self.order.push_back(lineage);
            0
        });
        *known = input.max(*known);
    }

    /// Whether a slice that begins at this input is a copy whose work goes on elsewhere. One that no slice is known to
    /// have followed never is, however often it comes.
    pub fn is_behind(&self, lineage: u64, input: usize) -> bool {
        self.reached.get(&lineage).is_some_and(|reached| input < *reached)
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
        assert_eq!(
            (lineages.reached.len(), lineages.order.len()),
            (KEPT_MAX, KEPT_MAX)
        );
    }
}
