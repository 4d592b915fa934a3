//! The lanes: jobs that wait for a batch, which lane goes first, and whose turn it is inside a lane.
//!
//! ```text
//!  in_order:   probe     interactive                 bulk
//!              canary    A1 B1 C1  A2 C2  A3 A4 …    D1 A5  D2 …        (callers by turn, each first in, first out)
//!  drawn(interactive, A): A goes behind C; who was passed over for want of a place keeps its turn
//! ```

use super::event::CallerId;
use crate::job::{JobKey, Lane};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque, btree_map, btree_set};

/// While both lanes wait, one batch in so many is led by the bulk lane, so that it always moves.
pub const BULK_SHARE: u32 = 8;

/// Jobs with inputs that are in no batch yet.
#[derive(Clone, Debug, Default)]
pub struct Lanes {
    lines: [Line; Lane::COUNT],
    since_bulk: u32,
    /// The lane of resumed jobs has led a batch since bulk did.
    resumed_led: bool,
    changes: u64,
}

/// One lane: callers take turns, so that a thousand jobs of one do not bury the one of another.
#[derive(Clone, Debug, Default)]
struct Line {
    /// Callers with waiting jobs, the one whose turn it is first.
    turns: BTreeMap<u64, CallerId>,
    callers: HashMap<CallerId, Waiting>,
    next_turn: u64,
}

/// What waits of one caller. Keys are given in the order of delivery, so the least is the oldest.
#[derive(Clone, Debug, Default)]
struct Waiting {
    turn: u64,
    jobs: BTreeSet<JobKey>,
}

impl Line {
    fn push(&mut self, caller: CallerId, job: JobKey) {
        let waiting = self.callers.entry(caller).or_default();
        if waiting.jobs.is_empty() {
            waiting.turn = self.next_turn;
            self.turns.insert(self.next_turn, caller);
            self.next_turn += 1;
        }
        waiting.jobs.insert(job);
    }

    fn remove(&mut self, caller: CallerId, job: JobKey) {
        let Some(waiting) = self.callers.get_mut(&caller) else {
            return;
        };
        waiting.jobs.remove(&job);
        if waiting.jobs.is_empty() {
            self.turns.remove(&waiting.turn);
            self.callers.remove(&caller);
        }
    }

    /// The caller has had its turn.
    fn rotate(&mut self, caller: CallerId) {
        if let Some(waiting) = self.callers.get_mut(&caller) {
            self.turns.remove(&waiting.turn);
            waiting.turn = self.next_turn;
            self.turns.insert(self.next_turn, caller);
            self.next_turn += 1;
        }
    }

    fn in_order(&self) -> RoundRobin<'_> {
        RoundRobin {
            line: self,
            first: self.turns.values(),
            again: VecDeque::new(),
        }
    }
}

/// The first job of each caller by turn, then the second of each, and so on; a step costs the same however many
/// wait.
struct RoundRobin<'a> {
    line: &'a Line,
    first: btree_map::Values<'a, u64, CallerId>,
    again: VecDeque<btree_set::Iter<'a, JobKey>>,
}

impl Iterator for RoundRobin<'_> {
    type Item = JobKey;

    fn next(&mut self) -> Option<JobKey> {
        let mut jobs = match self.first.next() {
            Some(caller) => self.line.callers[caller].jobs.iter(),
            None => self.again.pop_front()?,
        };
        let job = jobs.next().copied();
        if jobs.len() > 0 {
            self.again.push_back(jobs);
        }
        job
    }
}

impl Lanes {
    /// The job waits at the end of its caller's line.
    pub fn push(&mut self, lane: Lane, caller: CallerId, job: JobKey) {
        self.changes += 1;
        self.lines[lane as usize].push(caller, job);
    }

    /// The job no longer waits.
    pub fn remove(&mut self, lane: Lane, caller: CallerId, job: JobKey) {
        self.changes += 1;
        self.lines[lane as usize].remove(caller, job);
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.lines.iter().all(|line| line.turns.is_empty())
    }

    /// How often anything of this has changed.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Waiting jobs in the order in which the next batch shall look at them.
    pub fn in_order(&self) -> impl Iterator<Item = JobKey> + '_ {
        self.order().into_iter().flat_map(|lane| self.line(lane))
    }

    /// Those of one lane, in that order.
    pub fn line(&self, lane: Lane) -> impl Iterator<Item = JobKey> + '_ {
        self.lines[lane as usize].in_order()
    }

    /// The lanes in that order.
    pub fn order(&self) -> [Lane; Lane::COUNT] {
        let (first, second) = if self.resumed_led {
            (Lane::Bulk, Lane::Resumed)
        } else {
            (Lane::Resumed, Lane::Bulk)
        };
        if self.bulk_leads() {
            [Lane::Probe, first, second, Lane::Interactive]
        } else {
            [Lane::Probe, Lane::Interactive, first, second]
        }
    }

    /// Whether the next batch is led by what somebody waits for.
    pub fn urgent_lead(&self) -> bool {
        let waits = |lane: Lane| !self.lines[lane as usize].turns.is_empty();
        waits(Lane::Probe) || waits(Lane::Interactive) && !self.bulk_leads()
    }

    /// A batch was drawn in the order of [`Lanes::in_order`], led by a job of `caller` in the lane `lead`.
    /// Bulk's turn stands until bulk has led: `max_inflight` or a canary may hold it up.
    pub fn drawn(&mut self, lead: Lane, caller: CallerId) {
        self.changes += 1;
        let waits = |lane: Lane| !self.lines[lane as usize].turns.is_empty();
        let bulk_waits = waits(Lane::Bulk) || waits(Lane::Resumed);
        self.since_bulk = match lead {
            Lane::Probe => self.since_bulk,
            Lane::Interactive if bulk_waits => self.since_bulk.saturating_add(1),
            Lane::Interactive | Lane::Bulk | Lane::Resumed => 0,
        };
        self.resumed_led = match lead {
            Lane::Resumed => true,
            Lane::Bulk => false,
            Lane::Probe | Lane::Interactive => self.resumed_led,
        };
        self.lines[lead as usize].rotate(caller);
    }

    fn bulk_leads(&self) -> bool {
        self.since_bulk.saturating_add(1) >= BULK_SHARE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: CallerId = CallerId(1);
    const B: CallerId = CallerId(2);
    const C: CallerId = CallerId(3);

    fn order(lanes: &Lanes) -> Vec<u64> {
        lanes.in_order().map(|job| job.0).collect()
    }

    /// Interactive work goes first, and yet one batch in eight is led by bulk.
    #[test]
    fn bulk_keeps_its_share() {
        let mut lanes = Lanes::default();
        lanes.push(Lane::Bulk, A, JobKey(1));
        lanes.push(Lane::Interactive, A, JobKey(2));
        let leads: Vec<u64> = (0..16)
            .map(|_| {
                let lead = lanes.in_order().next().unwrap().0;
                lanes.drawn(if lead == 1 { Lane::Bulk } else { Lane::Interactive }, A);
                lead
            })
            .collect();
        assert_eq!(leads, [2, 2, 2, 2, 2, 2, 2, 1, 2, 2, 2, 2, 2, 2, 2, 1]);
        lanes.push(Lane::Probe, A, JobKey(3));
        assert_eq!(lanes.in_order().next(), Some(JobKey(3)));
    }

    /// Callers take turns; each one's own jobs stay in the order in which they came.
    #[test]
    fn callers_take_turns() {
        let mut lanes = Lanes::default();
        for (caller, job) in [(A, 1), (A, 2), (A, 3), (A, 4), (B, 5), (C, 6), (C, 7)] {
            lanes.push(Lane::Interactive, caller, JobKey(job));
        }
        assert_eq!(order(&lanes), [1, 5, 6, 2, 7, 3, 4]);
        lanes.drawn(Lane::Interactive, A);
        assert_eq!(order(&lanes), [5, 6, 1, 7, 2, 3, 4]);
        // Passed over for want of a place: B keeps its turn.
        lanes.drawn(Lane::Interactive, C);
        assert_eq!(order(&lanes), [5, 1, 6, 2, 7, 3, 4]);
        lanes.remove(Lane::Interactive, B, JobKey(5));
        lanes.remove(Lane::Interactive, A, JobKey(2));
        assert_eq!(order(&lanes), [1, 6, 3, 7, 4]);
        // Who comes back takes the last turn.
        lanes.push(Lane::Interactive, B, JobKey(8));
        assert_eq!(order(&lanes), [1, 6, 8, 3, 7, 4]);
        for (caller, job) in [(A, 1), (C, 6), (B, 8), (A, 3), (C, 7), (A, 4)] {
            lanes.remove(Lane::Interactive, caller, JobKey(job));
        }
        assert!(lanes.is_empty() && order(&lanes).is_empty());
    }
}
