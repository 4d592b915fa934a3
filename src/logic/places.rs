//! Places in flight: which waiting job may be begun. Jobs that need several batches never take the last place, so
//! that one of a single text waits for batches and not for jobs of a thousand texts.

use super::Logic;
use super::event::{CallerId, ModelId};
use super::settle::Job;
use crate::job::Lane;
use std::collections::HashSet;

/// What is begun, and what may be.
pub(super) struct Places<'a> {
    logic: &'a Logic,
    taken: Taken,
    /// Whose next job has found no place: those behind it do not overtake it.
    passed_over: HashSet<(Lane, CallerId)>,
}

/// What is begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    begun: usize,
    bulk: usize,
    /// Begun jobs of which some inputs are in no batch yet, and those of them on the bulk lane.
    long: usize,
    bulk_long: usize,
    /// Begun jobs that wait for batches and have not been met in line, by the lane in which they wait.
    unfinished: [usize; Lane::COUNT],
    models: Vec<usize>,
}

impl Logic {
    pub(super) fn places(&self) -> Places<'_> {
        Places {
            logic: self,
            taken: self.taken(),
            passed_over: HashSet::new(),
        }
    }

    pub(super) fn taken(&self) -> Taken {
        let mut taken = Taken {
            begun: 0,
            bulk: 0,
            long: 0,
            bulk_long: 0,
            unfinished: [0; Lane::COUNT],
            models: vec![0; self.setup.models.len()],
        };
        for job in self.jobs.being_computed() {
            taken.count(job, job.undrawn > 0);
            taken.unfinished[job.line() as usize] += usize::from(job.undrawn > 0);
        }
        taken
    }
}

impl Places<'_> {
    /// Whether this job may be begun. A canary always may, and so may a job that was resumed.
    pub fn have_room_for(&mut self, job: &Job, budget: usize) -> bool {
        let (lane, most) = (job.lane, self.logic.setup.limits.max_inflight);
        if job.is_urgent() {
            return true;
        }
        if self.taken.begun >= most || self.are_taken_of(job.ticket.model) {
            return false;
        }
        if is_bulk(lane) && self.taken.bulk > 0 && self.logic.admission.bulk_pauses().is_some() {
            return false;
        }
        let whose = (lane, job.ticket.caller);
        let fits = !self.passed_over.contains(&whose)
            && (most < 2 || self.is_room_for_long(lane, most) || !is_long(job, budget));
        if !fits {
            self.passed_over.insert(whose);
        }
        fits
    }

    /// A job was met in its line that has been begun before.
    pub fn met(&mut self, line: Lane) {
        let unfinished = &mut self.taken.unfinished[line as usize];
        *unfinished = unfinished.saturating_sub(1);
    }

    /// Whether nothing further in the line can be drawn: all that is begun has been met, and no place is left for a job
    /// that is not. Those that always find one have a line of their own.
    pub fn are_taken(&self, line: Lane) -> bool {
        let all_met = self.taken.unfinished[line as usize] == 0;
        let of_all = || (0..self.taken.models.len()).all(|model| self.are_taken_of(ModelId(model)));
        let none_left = || self.taken.begun >= self.logic.setup.limits.max_inflight || of_all();
        all_met && line != Lane::Probe && none_left()
    }

    /// Whether a model's jobs wait for others of the same model.
    pub fn are_taken_of(&self, model: ModelId) -> bool {
        let most = self.logic.setup.models[model.0].max_inflight;
        most.is_some_and(|most| self.taken.models[model.0] >= most)
    }

    /// It is going to be begun.
    pub fn take(&mut self, job: &Job, budget: usize) {
        self.taken.count(job, is_long(job, budget));
    }

    /// All places but one, and of those on the bulk lane no more than half, so that long interactive jobs find
    /// some as well.
    fn is_room_for_long(&self, lane: Lane, most: usize) -> bool {
        self.taken.long < most - 1 && (!is_bulk(lane) || self.taken.bulk_long < (most / 2).max(1))
    }
}

impl Taken {
    fn count(&mut self, job: &Job, long: bool) {
        let bulk = is_bulk(job.lane);
        self.begun += 1;
        self.bulk += usize::from(bulk);
        self.long += usize::from(long);
        self.bulk_long += usize::from(bulk && long);
        self.models[job.ticket.model.0] += 1;
    }
}

/// What goes on is not waited for like the first of it.
pub(super) fn is_bulk(lane: Lane) -> bool {
    matches!(lane, Lane::Bulk | Lane::Resumed)
}

/// Whether a waiting job needs more than one batch.
fn is_long(job: &Job, budget: usize) -> bool {
    let mut tokens = 0;
    job.undrawn > 1
        && job.tokens.iter().any(|more| {
            tokens += more;
            tokens > budget
        })
}
