//! The lanes: jobs that wait for a batch, in the order they came, and which lane goes first.

use crate::job::{JobKey, Lane};
use std::collections::VecDeque;

/// While both lanes wait, one batch in so many is led by the bulk lane, so that it always moves.
pub const BULK_SHARE: u32 = 8;

/// Jobs with inputs that are in no batch yet.
#[derive(Clone, Debug, Default)]
pub struct Lanes {
    queues: [VecDeque<JobKey>; Lane::COUNT],
    since_bulk: u32,
}

impl Lanes {
    /// The job waits at the end of its lane.
    pub fn push(&mut self, lane: Lane, job: JobKey) {
        self.queues[lane as usize].push_back(job);
    }

    /// The job no longer waits.
    pub fn remove(&mut self, lane: Lane, job: JobKey) {
        self.queues[lane as usize].retain(|&waiting| waiting != job);
    }

    /// Everything is forgotten.
    pub fn clear(&mut self) {
        self.queues.iter_mut().for_each(VecDeque::clear);
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queues.iter().all(VecDeque::is_empty)
    }

    /// Waiting jobs in the order in which the next batch shall look at them.
    pub fn in_order(&self) -> impl Iterator<Item = JobKey> + '_ {
        let order = if self.bulk_leads() {
            [Lane::Probe, Lane::Resumed, Lane::Bulk, Lane::Interactive]
        } else {
            [Lane::Probe, Lane::Interactive, Lane::Resumed, Lane::Bulk]
        };
        order
            .into_iter()
            .flat_map(|lane| self.queues[lane as usize].iter().copied())
    }

    /// A batch was drawn in the order of [`Lanes::in_order`], led by a job of the lane `lead`. Bulk's turn
    /// stands until bulk has led: `max_inflight` or a canary may hold it up.
    pub fn drawn(&mut self, lead: Lane) {
        let waits = |lane: Lane| !self.queues[lane as usize].is_empty();
        let bulk_waits = waits(Lane::Bulk) || waits(Lane::Resumed);
        self.since_bulk = match lead {
            Lane::Probe => self.since_bulk,
            Lane::Interactive if bulk_waits => self.since_bulk.saturating_add(1),
            Lane::Interactive | Lane::Bulk | Lane::Resumed => 0,
        };
    }

    fn bulk_leads(&self) -> bool {
        self.since_bulk.saturating_add(1) >= BULK_SHARE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Interactive work goes first, and yet one batch in eight is led by bulk.
    #[test]
    fn bulk_keeps_its_share() {
        let mut lanes = Lanes::default();
        lanes.push(Lane::Bulk, JobKey(1));
        lanes.push(Lane::Interactive, JobKey(2));
        let leads: Vec<u64> = (0..16)
            .map(|_| {
                let lead = lanes.in_order().next().unwrap().0;
                lanes.drawn(if lead == 1 { Lane::Bulk } else { Lane::Interactive });
                lead
            })
            .collect();
        assert_eq!(leads, [2, 2, 2, 2, 2, 2, 2, 1, 2, 2, 2, 2, 2, 2, 2, 1]);
        lanes.push(Lane::Probe, JobKey(3));
        assert_eq!(lanes.in_order().next(), Some(JobKey(3)));
    }
}
