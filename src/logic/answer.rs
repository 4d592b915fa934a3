//! Answers, refusals and dead letters on their way, and what follows from the broker's word on them, to the
//! acknowledgement. What follows once a last word is in a queue is decided when that is sent.

use super::Logic;
use super::event::{Action, Confirmation, Outcome};
use super::ledger::Stage;
use super::onward;
use super::settle::{End, Phase, Source};
use crate::clock::Moment;
use crate::job::{ErrorType, JobKey, Lane, Refusal};

impl Logic {
    pub(super) fn answer(&mut self, key: JobKey, now: Moment, actions: &mut Vec<Action>) {
        let Some(job) = self.jobs.get_mut(key) else { return };
        if job.source == Source::Within {
            self.forget(key, Outcome::Probe, now, actions);
            // The short way is a whole round only while the broker says that it blocks the other.
            if self.health.blocked_since().is_some() {
                self.tally.canary_came(now);
                self.round(now, actions);
            }
            return;
        }
        job.phase = Phase::Replying { vectors: true };
        if job.source == Source::Queue {
            self.health.ledger.enter(Stage::Published, 1, now);
        }
        actions.push(Action::Answer { job: key });
    }

    /// Answers with a refusal, or dead-letters where no answer can be sent.
    pub(super) fn refuse(&mut self, key: JobKey, refusal: Refusal, now: Moment, actions: &mut Vec<Action>) {
        let Some(job) = self.jobs.get_mut(key) else { return };
        if job.lane == Lane::Probe && refusal.error == ErrorType::Internal {
            self.health.canary_wrong();
        }
        if refusal.error != ErrorType::Overloaded {
            self.tally.refused[refusal.error as usize] += 1;
        }
        if job.source == Source::Within {
            self.forget(key, Outcome::Probe, now, actions);
            return;
        }
        if !job.answerable {
            self.dead_letter(key, refusal, now, actions);
            return;
        }
        if job.source == Source::Queue {
            self.health.ledger.enter(Stage::Published, 1, now);
        }
        job.entered = now;
        job.phase = Phase::Replying { vectors: false };
        job.failure = (job.source == Source::Queue).then(|| refusal.clone());
        actions.push(Action::Refuse { job: key, refusal });
    }

    /// Its copy goes to the dead-letter queue.
    pub(super) fn dead_letter(
        &mut self,
        key: JobKey,
        refusal: Refusal,
        now: Moment,
        actions: &mut Vec<Action>,
    ) {
        let Some(job) = self.jobs.get_mut(key) else { return };
        job.phase = Phase::DeadLettering;
        job.entered = now;
        self.health.ledger.enter(Stage::Published, 1, now);
        actions.push(Action::DeadLetter { job: key, refusal });
    }

    pub(super) fn confirmed(
        &mut self,
        key: JobKey,
        outcome: Confirmation,
        now: Moment,
        actions: &mut Vec<Action>,
    ) {
        let Some(job) = self.jobs.get_mut(key) else { return };
        let (vectors, moving) = match job.phase {
            Phase::Replying { vectors } => (vectors, None),
            Phase::Moving { slice } => (false, Some(slice)),
            Phase::Waiting | Phase::Computing => return self.chunk_confirmed(key, outcome, now, actions),
            _ => return,
        };
        let told = job.last_word.is_some();
        if outcome == Confirmation::Unconfirmed {
            // Nothing was heard, so nothing has moved. But one reply queue that takes nothing must not hold its
            // job, and with enough of them the lane, for ever.
            self.health.ledger.withdraw(Stage::Published, 1);
        } else {
            self.health.broker_proof(now);
            self.health.ledger.leave(Stage::Published, 1, now);
            self.tally.passed(Stage::Published, job.passes(now));
        }
        if let Some(slice) = moving {
            return self.ack(key, End::MovedOn { slice }, now, actions);
        }
        let end = match (outcome, vectors) {
            // Its copy lies in the dead-letter queue; whether its sender has heard of it changes nothing.
            _ if told => End::DeadLettered,
            (Confirmation::Unconfirmed | Confirmation::Rejected, true) if job.lane != Lane::Probe => {
                return self.fail(key, onward::not_taken(outcome), now, actions);
            }
            (Confirmation::Unconfirmed | Confirmation::Rejected, _) => {
                let refusal = onward::untold(job.failure.take(), outcome);
                return self.dead_letter(key, refusal, now, actions);
            }
            (Confirmation::Returned, false) => End::RefusalReturned,
            (Confirmation::Routed, false) => End::Refused,
            (Confirmation::Routed, true) => End::Answered,
            (Confirmation::Returned, true) => End::Returned,
        };
        self.acks(key, end, now);
        if outcome != Confirmation::Routed {
            actions.push(Action::Ack { job: key });
        }
    }

    pub(super) fn dead_lettered(&mut self, key: JobKey, now: Moment, actions: &mut Vec<Action>) {
        if self
            .jobs
            .get(key)
            .is_some_and(|job| job.phase == Phase::DeadLettering)
        {
            self.health.broker_proof(now);
            self.health.ledger.leave(Stage::Published, 1, now);
            match self.jobs.get(key).and_then(|job| job.last_word.clone()) {
                Some(refusal) => self.refuse(key, refusal, now, actions),
                None => self.ack(key, End::DeadLettered, now, actions),
            }
        }
    }

    pub(super) fn ack(&mut self, key: JobKey, end: End, now: Moment, actions: &mut Vec<Action>) {
        self.acks(key, end, now);
        actions.push(Action::Ack { job: key });
    }

    /// Its acknowledgement is being written.
    fn acks(&mut self, key: JobKey, end: End, now: Moment) {
        let Some(job) = self.jobs.get_mut(key) else { return };
        job.phase = Phase::Acking { end };
        job.entered = now;
        self.health.ledger.enter(Stage::Acked, 1, now);
    }

    pub(super) fn acked(&mut self, key: JobKey, now: Moment, actions: &mut Vec<Action>) {
        let Some(job) = self.jobs.get(key) else { return };
        let Phase::Acking { end } = job.phase else { return };
        let (computed, acking, lane) = (job.begun.is_some(), now.since(job.entered), job.lane);
        self.tally.passed(Stage::Acked, acking);
        self.health.ledger.leave(Stage::Acked, 1, now);
        let (outcome, round) = match end {
            End::Answered => (Outcome::Answered, true),
            End::Returned => (Outcome::Returned, true),
            End::Refused => (Outcome::Refused, false),
            End::RefusalReturned => (Outcome::Returned, false),
            End::DeadLettered => (Outcome::DeadLettered, false),
            End::MovedOn { slice } => (Outcome::MovedOn, slice),
        };
        self.forget(key, outcome, now, actions);
        if round && computed {
            if lane == Lane::Probe {
                self.tally.canary_came(now);
            }
            self.round(now, actions);
        }
    }

    /// The proving event: real work, all the way round.
    pub(super) fn round(&mut self, now: Moment, actions: &mut Vec<Action>) {
        self.health.round_completed(now);
        if !self.residence.starts() && self.health.becomes_ready(now) {
            actions.push(Action::Ready);
        }
        if self.health.may_pet(self.setup.pet_spacing, now) {
            self.tally.petted(now);
            actions.push(Action::Pet);
        }
    }
}
