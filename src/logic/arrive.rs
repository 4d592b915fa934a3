//! A job's way in: what is delivered is moved on, refused or taken in; then its tokens are known, or it needs none.

use super::Logic;
use super::event::{Action, CallerId, ModelId, Onward, Outcome, Ticket};
use super::leave::late;
use super::ledger::Stage;
use super::settle::{End, Job, Phase, Source};
use crate::clock::Moment;
use crate::job::{ErrorType, JobKey, Lane, Refusal};

/// A delivery.
pub(super) struct Arrived {
    pub(super) lane: Lane,
    pub(super) arrival: Result<Ticket, Refusal>,
    pub(super) answerable: bool,
    pub(super) attempt: u32,
    pub(super) suspect: bool,
    pub(super) fetched: bool,
}

/// Stands in where a request is too broken to have a ticket.
pub(super) const NO_TICKET: Ticket = Ticket {
    model: ModelId(0),
    caller: CallerId(0),
    inputs: 0,
    bytes: 0,
    deadline: None,
    stream: None,
};

/// In how many deliveries after its last attempt a job's sender is told: that word itself may be what ends them.
const LAST_WORDS_MAX: u32 = 3;

impl Logic {
    pub(super) fn delivered(
        &mut self,
        key: JobKey,
        arrived: Arrived,
        now: Moment,
        actions: &mut Vec<Action>,
    ) {
        let Arrived {
            lane,
            arrival,
            answerable,
            attempt,
            suspect,
            fetched,
        } = arrived;
        let local = key.0 > JobKey::WITHIN;
        let source = if local { Source::Within } else { Source::Queue };
        if !local {
            if fetched {
                self.health.ledger.fetched(now);
            } else {
                self.health.ledger.received(lane, now);
                self.health.consumer_seen(lane);
            }
            self.health.broker_proof(now);
        }
        if self.health.is_draining() && local {
            // Nobody delivered it, so there is nothing to give back.
            self.health.canary_ended(false);
            self.forgotten(key, lane, Outcome::Probe, actions);
            return;
        }
        if self.health.is_draining() {
            // What is wrong with it is said by whoever gets it next.
            let mut job = Job::new(lane, arrival.unwrap_or(NO_TICKET), answerable, source, now);
            (job.attempt, job.alone, job.fetched) = (attempt, suspect, fetched);
            self.jobs.insert(key, job);
            self.hand_back(key, now, actions);
            return;
        }
        // One that comes back from a lane may have ended the process that had it, as may all that were delivered
        // with it. Apart from the others each runs alone and at once, so that only what is at work is charged.
        let apart = suspect && self.resumable && matches!(lane, Lane::Interactive | Lane::Bulk);
        let lacks_memory = arrival
            .as_ref()
            .ok()
            .and_then(|ticket| self.lacks_memory(lane, ticket.model));
        let (ticket, refusal) = match arrival {
            Ok(ticket) if ticket.deadline.is_some_and(|deadline| deadline <= now) => (ticket, Some(late())),
            Ok(ticket) if apart || attempt > self.setup.limits.max_attempts => {
                let told = attempt <= self.setup.limits.max_attempts.saturating_add(LAST_WORDS_MAX);
                let mut job = Job::new(lane, ticket, answerable && told, source, now);
                (job.attempt, job.fetched) = (attempt, fetched);
                self.jobs.insert(key, job);
                if apart {
                    self.move_on(key, Onward::Suspect, now, actions);
                } else {
                    self.fail(
                        key,
                        exhausted(attempt - 1, self.setup.limits.max_attempts),
                        now,
                        actions,
                    );
                }
                return;
            }
            Ok(ticket) if lacks_memory.is_some() => {
                let mut job = Job::new(lane, ticket, answerable, source, now);
                (job.attempt, job.alone, job.fetched) = (attempt, suspect, fetched);
                self.jobs.insert(key, job);
                self.fail(
                    key,
                    lacks_memory.expect("this arm is for those that do"),
                    now,
                    actions,
                );
                return;
            }
            Ok(ticket) => {
                let refusal = self.admit(lane, &ticket, now, actions).err();
                (ticket, refusal)
            }
            Err(refusal) => (NO_TICKET, Some(refusal)),
        };
        let mut job = Job::new(lane, ticket, answerable, source, now);
        job.admitted = refusal.is_none();
        (job.attempt, job.alone, job.fetched) = (attempt, suspect, fetched);
        self.jobs.insert(key, job);
        match refusal {
            Some(refusal) => self.refuse(key, refusal, now, actions),
            None => self.take_up(key, now, actions),
        }
    }

    /// It is done with as soon as the broker knows; and so it proves nothing.
    pub(super) fn superseded(&mut self, key: JobKey, lane: Lane, now: Moment, actions: &mut Vec<Action>) {
        self.health.ledger.received(lane, now);
        self.health.consumer_seen(lane);
        self.health.broker_proof(now);
        self.jobs
            .insert(key, Job::new(lane, NO_TICKET, false, Source::Queue, now));
        self.ack(key, End::MovedOn { slice: false }, now, actions);
    }

    pub(super) fn tokenized(
        &mut self,
        key: JobKey,
        result: Result<Vec<usize>, Refusal>,
        now: Moment,
        actions: &mut Vec<Action>,
    ) {
        let Some(job) = self
            .jobs
            .get_mut(key)
            .filter(|job| job.phase == Phase::Tokenizing)
        else {
            return;
        };
        self.health.ledger.leave(Stage::Admitted, 1, now);
        match result {
            Ok(tokens) => {
                assert!(!tokens.is_empty(), "a job without inputs would wait for ever");
                self.tally.passed(Stage::Admitted, job.passes(now));
                self.health.ledger.enter(Stage::Batched, tokens.len(), now);
                job.tokenized(tokens);
                self.lanes.push(job.line(), job.ticket.caller, key);
            }
            Err(refusal) => self.refuse(key, refusal, now, actions),
        }
    }

    /// Nothing is to be computed; and so it proves nothing.
    pub(super) fn recalled(&mut self, key: JobKey, now: Moment, actions: &mut Vec<Action>) {
        let Some(job) = self.jobs.get_mut(key) else { return };
        match job.phase {
            Phase::Tokenizing => self.health.ledger.leave(Stage::Admitted, 1, now),
            Phase::Twin => {}
            _ => return,
        }
        job.tokenized(Vec::new());
        self.answer(key, now, actions);
    }

    /// It is on no tokenizer's list any more. That is no progress: nothing has been done for it.
    pub(super) fn twin(&mut self, key: JobKey) {
        if let Some(job) = self.jobs.get_mut(key)
            && job.phase == Phase::Tokenizing
        {
            job.phase = Phase::Twin;
            self.health.ledger.withdraw(Stage::Admitted, 1);
        }
    }

    /// It has to be computed after all.
    pub(super) fn parted(&mut self, key: JobKey, now: Moment, actions: &mut Vec<Action>) {
        if let Some(job) = self.jobs.get_mut(key)
            && job.phase == Phase::Twin
        {
            job.phase = Phase::Tokenizing;
            self.health.ledger.enter(Stage::Admitted, 1, now);
            actions.push(Action::Tokenize { job: key });
        }
    }
}

/// The last attempt ended with the process or the session that had the job; or it failed otherwise, and `max_attempts` was lowered since.
fn exhausted(attempts: u32, max_attempts: u32) -> Refusal {
    let message = format!(
        "{attempts} attempts were begun, of {max_attempts} at most, and each failed or ended with the process or the session that had the job"
    );
    Refusal::new(ErrorType::Internal, message)
}
