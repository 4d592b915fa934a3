//! How a job goes on when it cannot be finished where it is: the next slice of a streamed one, another attempt of
//! one that failed, one that may have ended a process; and what becomes of it after its last attempt.
//!
//! It goes on as a message of its own, which the broker keeps, so that any worker can take it up.

use super::Logic;
use super::event::{Action, Confirmation, Onward};
use super::ledger::Stage;
use super::settle::{Cut, End, Phase, Source};
use crate::clock::Moment;
use crate::job::{ErrorType, JobKey, Lane, Refusal};
use std::time::Duration;

/// Longest wait of a job here before it is begun: a third of RabbitMQ's default for an acknowledgement.
pub(super) const HELD_MAX: Duration = Duration::from_secs(600);
/// The broker's limit is so many times the longest wait.
const LIMIT_SHARE: u32 = 3;
/// The longest wait is so many times the time that a slice is given.
const SLICE_SHARE: u32 = 10;
/// The longest wait is so many times the time that a chunk is given: with that wait before it, a delivery is held for less than half of
/// the broker's limit, and a sixth of the wait is left for what is begun.
const CHUNK_SHARE: u32 = 4;
/// The time to drain is so many times the time that a chunk is given then.
const STOP_SHARE: u32 = 4;
/// A plain job that is at work is held for longer than the longest wait by one of so many parts of that, which is the time that
/// one has at least which waited for long. Four ninths of the broker's limit are less than the half that a delivery may be held.
const WORK_SHARE: u32 = 3;

impl Logic {
    /// What is left of the job goes to another queue of ours.
    pub(super) fn move_on(&mut self, key: JobKey, onward: Onward, now: Moment, actions: &mut Vec<Action>) {
        let Some(job) = self.jobs.get_mut(key) else { return };
        job.phase = Phase::Moving {
            slice: onward == Onward::NextSlice,
        };
        job.entered = now;
        self.health.ledger.enter(Stage::Published, 1, now);
        actions.push(Action::Move { job: key, onward });
    }

    /// Jobs that have waited here for long go on from the broker: RabbitMQ lets no delivery be held for half an hour.
    pub(super) fn let_go(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if !self.resumable {
            return;
        }
        for key in self.jobs.keys() {
            let waits = self.jobs.get(key).is_some_and(|job| {
                let lane = matches!(job.lane, Lane::Interactive | Lane::Bulk);
                let waits = matches!(job.phase, Phase::Waiting | Phase::Awaiting | Phase::Twin);
                let held = job.source == Source::Queue;
                held && lane && waits && now.since(job.delivered) >= self.held_max
            });
            if waits {
                self.leave_lane(key);
                self.move_on(key, Onward::Suspect, now, actions);
            }
        }
    }

    /// The broker's patience is shorter than was thought.
    pub(super) fn held_too_long(&mut self, limit: Duration) {
        self.held_max = self.held_max.min(limit / LIMIT_SHARE);
    }

    /// Slices that are at work for long end with the chunks that are begun: a slow model must neither hold a delivery for
    /// half of the broker's patience, nor lose much by a death. A chunk that takes long by itself ends with the inputs that are
    /// begun. Whoever stops waits for neither: what is left is the next worker's.
    pub(super) fn cut_slices(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if !self.resumable {
            return;
        }
        let (behind_chunk, within_chunk) = if !self.health.is_draining() {
            (self.held_max / SLICE_SHARE, self.held_max / CHUNK_SHARE)
        } else if self.health.is_connected() && self.health.blocked_since().is_none() {
            (Duration::ZERO, self.setup.limits.drain / STOP_SHARE)
        } else {
            return;
        };
        self.cut_those(Cut::BehindChunk, behind_chunk, now, actions);
        self.cut_those(Cut::WithinChunk, within_chunk, now, actions);
    }

    fn cut_those(&mut self, cut: Cut, at_work: Duration, now: Moment, actions: &mut Vec<Action>) {
        for key in self.jobs.long_slices(cut, at_work, now) {
            let Some(job) = self.jobs.get_mut(key) else {
                continue;
            };
            let (line, caller) = (job.line(), job.ticket.caller);
            let Some(left_out) = job.cut(cut) else { continue };
            let (inputs, undrawn) = (job.tokens.len(), job.undrawn);
            self.health.ledger.withdraw(Stage::Batched, left_out.inputs);
            if undrawn == 0 {
                self.lanes.remove(line, caller, key);
            }
            actions.push(Action::Cut { job: key, inputs });
            if let Some(chunk) = left_out.completed {
                self.send_chunk(key, chunk, now, actions);
            }
            self.settle_computed(key, now, actions);
        }
    }

    /// A plain job has no chunks to go on behind: one that is still at work when its delivery has been held for as long as may be
    /// ends. Nor would another attempt come further. What of it is in an engine comes out of there and is dropped.
    pub(super) fn end_long_jobs(&mut self, now: Moment, actions: &mut Vec<Action>) {
        let worked = self.held_max / WORK_SHARE;
        let most = self.held_max + worked;
        for key in self.jobs.long_plain(most, worked, now) {
            self.leave_lane(key);
            self.leave_parts(key);
            self.refuse(key, self.too_long(most), now, actions);
            self.count_in_flight();
        }
    }

    fn too_long(&self, most: Duration) -> Refusal {
        let limit = self.held_max * LIMIT_SHARE;
        // Without queues for what goes on a streamed job is held just as long.
        let how = if self.resumable {
            "send it with stream: true, or in smaller jobs"
        } else {
            "send it in smaller jobs"
        };
        let message = format!(
            "not computed within {:.1} s, and the broker lets a delivery be held for {:.1} s: {how}",
            most.as_secs_f64(),
            limit.as_secs_f64()
        );
        Refusal::new(ErrorType::TooManyInputs, message).on("input")
    }

    /// It failed by no fault of its sender: again, later and alone; or, after the last attempt, to the
    /// dead-letter queue, and then its sender is told.
    pub(super) fn fail(&mut self, key: JobKey, refusal: Refusal, now: Moment, actions: &mut Vec<Action>) {
        let Some(job) = self.jobs.get_mut(key) else { return };
        // A caller on a connection of its own is told at once, and tries again by itself.
        if job.lane == Lane::Probe || job.source == Source::Connection {
            self.refuse(key, refusal, now, actions);
        } else if self.resumable && job.attempt < self.setup.limits.max_attempts {
            self.tally.retries += 1;
            self.move_on(key, Onward::Retry(refusal), now, actions);
        } else {
            job.last_word = job.answerable.then(|| refusal.clone());
            self.dead_letter(key, refusal, now, actions);
        }
    }

    /// An input has been computed, which may complete a chunk.
    pub(super) fn chunk(&mut self, key: JobKey, input: usize, now: Moment, actions: &mut Vec<Action>) {
        let Some(job) = self.jobs.get_mut(key) else { return };
        let Some(stream) = &mut job.stream else { return };
        if let Some(chunk) = stream.computed(input, job.tokens.len()) {
            self.send_chunk(key, chunk, now, actions);
        }
    }

    /// A chunk is computed, which is so many inputs from the first.
    fn send_chunk(
        &mut self,
        key: JobKey,
        (first, inputs): (usize, usize),
        now: Moment,
        actions: &mut Vec<Action>,
    ) {
        let Some(job) = self.jobs.get_mut(key) else { return };
        let Some(stream) = &mut job.stream else { return };
        if job.failure.is_some() || stream.returned {
            return;
        }
        stream.unconfirmed += 1;
        self.health.ledger.enter(Stage::Published, 1, now);
        actions.push(Action::Chunk {
            job: key,
            first,
            inputs,
        });
    }

    /// The broker answered for a chunk.
    pub(super) fn chunk_confirmed(
        &mut self,
        key: JobKey,
        outcome: Confirmation,
        now: Moment,
        actions: &mut Vec<Action>,
    ) {
        let Some(job) = self.jobs.get_mut(key) else { return };
        let Some(stream) = &mut job.stream else { return };
        stream.unconfirmed = stream.unconfirmed.saturating_sub(1);
        match outcome {
            Confirmation::Routed => {}
            Confirmation::Returned => stream.returned = true,
            Confirmation::Rejected | Confirmation::Unconfirmed => {
                job.failure.get_or_insert_with(|| not_taken(outcome));
            }
        }
        if outcome == Confirmation::Unconfirmed {
            // Nothing was heard: it is taken out, and that is no progress.
            self.health.ledger.withdraw(Stage::Published, 1);
        } else {
            self.health.broker_proof(now);
            self.health.ledger.leave(Stage::Published, 1, now);
        }
        self.settle_computed(key, now, actions);
    }

    /// Where a job goes that has left the engines, once all its chunks are confirmed.
    pub(super) fn settle_computed(&mut self, key: JobKey, now: Moment, actions: &mut Vec<Action>) {
        let Some(job) = self.jobs.get(key) else { return };
        let given_up = job.failure.is_some() || job.stream.as_ref().is_some_and(|stream| stream.returned);
        if given_up && job.undrawn > 0 {
            self.leave_lane(key);
        }
        let Some(job) = self.jobs.get_mut(key) else { return };
        if job.phase != Phase::Computing || !job.is_at_rest() {
            return;
        }
        if self.end_of_the_gone(key, now, actions) {
            return;
        }
        let Some(job) = self.jobs.get_mut(key) else { return };
        if let Some(refusal) = job.failure.take() {
            self.fail(key, refusal, now, actions);
            return;
        }
        self.tally.passed(Stage::Computed, job.passes(now));
        match &job.stream {
            None => self.answer(key, now, actions),
            Some(stream) if stream.returned => self.ack(key, End::Returned, now, actions),
            Some(stream) if stream.last => {
                job.phase = Phase::Replying { vectors: true };
                self.health.ledger.enter(Stage::Published, 1, now);
                actions.push(Action::Finish { job: key });
            }
            Some(_) => self.move_on(key, Onward::NextSlice, now, actions),
        }
    }
}

/// Why an answer did not reach its sender.
pub(super) fn not_taken(outcome: Confirmation) -> Refusal {
    let message = match outcome {
        Confirmation::Unconfirmed => "the reply queue does not confirm the answer",
        _ => "the reply queue rejected the answer",
    };
    Refusal::new(ErrorType::Internal, message)
}

/// A refusal that its sender has not heard: the letter says both.
pub(super) fn untold(refusal: Option<Refusal>, outcome: Confirmation) -> Refusal {
    let why = not_taken(outcome);
    match refusal {
        Some(refusal) => Refusal {
            param: refusal.param,
            ..Refusal::new(refusal.error, format!("{}; and {}", refusal.message, why.message))
        },
        None => why,
    }
}
