//! A job's way out: its deadline passes while it waits, it leaves the stages before the engine, it is forgotten.

use super::Logic;
use super::event::{Action, Outcome};
use super::ledger::Stage;
use super::settle::{Job, Phase, Source};
use crate::clock::Moment;
use crate::job::{ErrorType, JobKey, Lane, Refusal};

impl Logic {
    /// Refuses jobs whose callers have stopped waiting before their work began.
    pub(super) fn expire(&mut self, now: Moment, actions: &mut Vec<Action>) {
        while let Some(key) = self.jobs.expired(now) {
            self.jobs.deadline_met(key);
            if self.jobs.get(key).is_some_and(Job::waits) {
                self.leave_lane(key);
                self.refuse(key, late(), now, actions);
            }
        }
    }

    /// Takes what of a job no engine holds out of the stages before the engine.
    pub(super) fn leave_lane(&mut self, key: JobKey) {
        let Some(job) = self.jobs.get_mut(key) else { return };
        match job.phase {
            Phase::Tokenizing => self.health.ledger.withdraw(Stage::Admitted, 1),
            Phase::Awaiting => {
                self.health.ledger.withdraw(Stage::Admitted, 1);
                self.awaiting.remove(&(job.ticket.model, key));
            }
            Phase::Waiting | Phase::Computing if job.undrawn > 0 => {
                self.health.ledger.withdraw(Stage::Batched, job.undrawn);
                job.undrawn = 0;
                self.lanes.remove(job.line(), job.ticket.caller, key);
            }
            _ => {}
        }
    }

    pub(super) fn forget(&mut self, key: JobKey, outcome: Outcome, now: Moment, actions: &mut Vec<Action>) {
        let Some(job) = self.jobs.remove(key) else { return };
        if job.lane == Lane::Probe {
            self.health.canary_ended(job.source != Source::Within);
        }
        if job.holds_model {
            let model = job.ticket.model;
            self.awaiting.remove(&(model, key));
            self.residence.release(model, job.lane != Lane::Probe, now);
        }
        if job.admitted {
            let settled = matches!(outcome, Outcome::Answered | Outcome::Returned) && !job.gone;
            let latency = now.since(job.delivered);
            if settled && job.lane == Lane::Interactive {
                self.rest.done(now);
            }
            if settled && job.begun.is_some() {
                self.tally.job_seconds[job.lane as usize].observe(latency.as_secs_f64());
            }
            if let (true, Some(begun)) = (settled && job.lane != Lane::Probe, job.begun) {
                let service = now.since(begun);
                self.pace.settled(latency, service);
                self.admission.answered(job.lane, latency, service);
                self.count_in_flight();
            }
            if let (true, Lane::Probe, Source::Queue, Some(begun)) =
                (settled, job.lane, job.source, job.begun)
            {
                self.admission.guess(&job.ticket, now.since(begun));
            }
            let sliced = outcome == Outcome::MovedOn && job.begun.is_some();
            if let (true, Lane::Bulk, Some(begun)) = (settled || sliced, job.lane, job.begun) {
                self.ahead.worked(job.ticket.model, now.since(begun));
            }
            if sliced {
                self.admission.sliced(job.lane);
            }
            self.admission
                .release(job.lane, &job.ticket, settled || sliced, now);
        }
        self.forgotten(key, job.lane, outcome, actions);
    }

    pub(super) fn forgotten(&mut self, job: JobKey, lane: Lane, outcome: Outcome, actions: &mut Vec<Action>) {
        self.tally.jobs[lane as usize][outcome as usize] += 1;
        actions.push(Action::Forget { job, outcome });
    }
}

pub(super) fn late() -> Refusal {
    Refusal::new(
        ErrorType::DeadlineExceeded,
        "the budget ran out before the work began",
    )
}
