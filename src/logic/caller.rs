//! Jobs whose callers wait on connections of their own (HTTP): the same admission, lanes, batches and answers as those of the
//! interactive queue, and no broker on the way.
//!
//! They prove nothing of the broker, and so they complete no round: a service that only such jobs pass goes on sending canaries,
//! and is petted for those alone. Their answers are handed over in the turn in which they are made, and never stand in the
//! stage `published`: there a broker that confirms nothing could hide behind them.

use super::Logic;
use super::arrive::NO_TICKET;
use super::event::{Action, Outcome, Ticket};
use super::leave::late;
use super::settle::{Job, Phase, Source};
use crate::clock::{Moment, millis};
use crate::job::{ErrorType, JobKey, Lane, Refusal};

impl Logic {
    /// A caller asks.
    pub(super) fn called(
        &mut self,
        key: JobKey,
        arrival: Result<Ticket, Refusal>,
        now: Moment,
        actions: &mut Vec<Action>,
    ) {
        let lane = Lane::Interactive;
        let (ticket, refusal) = match arrival {
            Ok(ticket) if self.health.is_draining() => (ticket, Some(self.stopping(now))),
            Ok(ticket) if ticket.deadline.is_some_and(|deadline| deadline <= now) => (ticket, Some(late())),
            Ok(ticket) => {
                let refusal = self.admit(lane, &ticket, now, actions).err();
                (ticket, refusal)
            }
            Err(refusal) => (NO_TICKET, Some(refusal)),
        };
        let mut job = Job::new(lane, ticket, true, Source::Connection, now);
        job.admitted = refusal.is_none();
        self.jobs.insert(key, job);
        match refusal {
            Some(refusal) => self.refuse(key, refusal, now, actions),
            None => self.take_up(key, now, actions),
        }
    }

    /// Nobody waits for the job any more. What of it is in an engine comes out of there, and the rest is not begun.
    pub(super) fn caller_gone(&mut self, key: JobKey, now: Moment, actions: &mut Vec<Action>) {
        let Some(job) = self.jobs.get_mut(key) else { return };
        job.gone = true;
        self.leave_lane(key);
        self.end_of_the_gone(key, now, actions);
    }

    /// The job ends if its caller is gone and nothing of it is in an engine, nor on its way to one. True if it has ended.
    pub(super) fn end_of_the_gone(&mut self, key: JobKey, now: Moment, actions: &mut Vec<Action>) -> bool {
        let over = |job: &Job| job.gone && (job.phase != Phase::Computing || job.is_at_rest());
        let ended = self.jobs.get(key).is_some_and(over);
        if ended {
            self.forget(key, Outcome::Returned, now, actions);
        }
        ended
    }

    /// The answer or the refusal was given to the connection, or found none.
    pub(super) fn handed_over(&mut self, key: JobKey, taken: bool, now: Moment, actions: &mut Vec<Action>) {
        let Some(Phase::Replying { vectors }) = self.jobs.get(key).map(|job| job.phase) else {
            return;
        };
        let outcome = match (taken, vectors) {
            (false, _) => Outcome::Returned,
            (true, true) => Outcome::Answered,
            (true, false) => Outcome::Refused,
        };
        self.forget(key, outcome, now, actions);
    }

    /// The refusal of a service that is being stopped: it is gone when its time to drain is over, at the latest.
    pub(super) fn stopping(&self, now: Moment) -> Refusal {
        let left_ms = millis(self.health.drain_left(now));
        Refusal::new(ErrorType::Draining, "the service is stopping").retry_after(left_ms.max(1000))
    }
}
