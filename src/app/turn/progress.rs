//! What the sender of a streamed job, and whoever listens to our events, is told of how far it is.

use super::Loop;
use crate::app::desk::{Held, pause};
use crate::broker::{Command, Published};
use crate::clock::{Clock, Moment};
use crate::job::JobKey;
use crate::job::reply::{Progress, TYPE_PROGRESS};
use crate::report::Retrying;
use crate::telemetry::rss_bytes;
use std::collections::VecDeque;
use std::time::Duration;
use tracing::warn;

/// Why an attempt failed of which nobody is left to tell.
const DIED: &str = "the process or the session that had the job at work ended";
/// A job's progress is told at most this often.
const EVERY: Duration = Duration::from_secs(1);

impl Held {
    /// A chunk is confirmed: what is to be told of the job, if it is time to tell.
    fn advance(&mut self, unix_ms: u64, now: Moment) -> Option<Vec<u8>> {
        // Confirms may come in another order: that is even again with the last of them.
        self.pace.confirmed += self.pace.unconfirmed.pop_front()?;
        // Of a job that goes on from an earlier slice its sender is told at once: a slice may take less than that.
        let first = self.pace.told.is_none() && self.checkpoint.done > 0;
        let since = self.pace.told.unwrap_or(self.arrived);
        if !first && now.since(since) < EVERY {
            return None;
        }
        self.pace.told = Some(now);
        Some(self.told(unix_ms, self.checkpoint.last_error.as_deref()))
    }

    /// How far the job is, in JSON.
    fn told(&self, unix_ms: u64, last_error: Option<&str>) -> Vec<u8> {
        let of = &self.checkpoint;
        let done = of.done.saturating_add(self.pace.confirmed);
        let seconds = unix_ms.saturating_sub(of.begun_ms).max(1) as f64 / 1000.0;
        let rate = done as f64 / seconds;
        let left = of.total.saturating_sub(done) as f64;
        let progress = Progress {
            done,
            total: of.total,
            rate,
            eta_ms: (rate > 0.0).then(|| (left / rate * 1000.0) as u64),
            attempt: self.attempts(),
            last_error,
            rss_bytes: rss_bytes().unwrap_or(0),
            job: &self.id,
        };
        serde_json::to_vec(&progress).expect("plain data is always written")
    }
}

/// Jobs that failed here and are to be tried again, as far as this worker knows.
#[derive(Debug, Default)]
pub struct Retries(VecDeque<Retry>);

#[derive(Debug)]
struct Retry {
    id: String,
    attempt: u32,
    error: String,
    due: Moment,
}

impl Retries {
    /// Another worker may end a job, and nobody tells: so much later than its next attempt it is no longer shown.
    const SHOWN_FOR: Duration = Duration::from_secs(60);
    /// Jobs that are shown.
    const SHOWN_MAX: usize = 32;

    fn failed(&mut self, id: &str, attempt: u32, error: &str, due: Moment) {
        self.ended(id);
        if self.0.len() >= Retries::SHOWN_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Retry {
            id: id.to_owned(),
            attempt,
            error: error.to_owned(),
            due,
        });
    }

    /// The job has come to its end here.
    pub fn ended(&mut self, id: &str) {
        self.0.retain(|retry| retry.id != id);
    }

    /// Those that are shown now.
    pub fn shown(&self, now: Moment) -> Vec<Retrying> {
        let known = |retry: &&Retry| now.since(retry.due) < Retries::SHOWN_FOR;
        let shown = self.0.iter().filter(known).map(|retry| Retrying {
            job: retry.id.clone(),
            attempt: u64::from(retry.attempt),
            retry_in_ms: u64::try_from(retry.due.since(now).as_millis())
                .ok()
                .filter(|ms| *ms > 0),
            last_error: retry.error.clone(),
        });
        shown.collect()
    }
}

impl Loop {
    /// The broker answered for something of a job. If it was a chunk, and it is time to, its sender is told.
    pub(super) fn chunk_answered(&mut self, job: JobKey, outcome: Published) {
        if outcome != Published::Routed || !self.parts.logic.is_computing(job) {
            return;
        }
        let (unix_ms, now) = (Clock::unix_ms(), self.parts.clock.now());
        let Some(json) = self
            .desk
            .get_mut(&job)
            .and_then(|held| held.advance(unix_ms, now))
        else {
            return;
        };
        self.tell_progress(job, json);
    }

    /// A job is to be tried again: whoever watches sees which attempt failed.
    pub(super) fn retry_told(&mut self, job: JobKey, error: &str) {
        let (unix_ms, now) = (Clock::unix_ms(), self.parts.clock.now());
        let Some(held) = self.desk.get(&job) else { return };
        let next = held.attempts().max(held.attempt.saturating_add(1));
        self.retries
            .failed(&held.id, next, error, now + pause(held.attempt));
        let json = held.told(unix_ms, Some(error));
        self.tell_progress(job, json);
    }

    /// An attempt that ended with its process, and could tell nobody: it is told where the job comes to next, which tries again at once.
    pub(super) fn death_told(&mut self, job: JobKey) {
        let (unix_ms, now) = (Clock::unix_ms(), self.parts.clock.now());
        let Some(held) = self.desk.get_mut(&job) else {
            return;
        };
        held.checkpoint.last_error = Some(DIED.to_owned());
        let attempt = held.attempts().saturating_sub(1);
        warn!(job = %held.id, trace_id = held.trace_id(), attempt, error = DIED, "failed, tried again");
        self.retries.failed(&held.id, held.attempts(), DIED, now);
        let json = held.told(unix_ms, Some(DIED));
        self.tell_progress(job, json);
    }

    fn tell_progress(&mut self, job: JobKey, json: Vec<u8>) {
        let Some(held) = self.desk.get(&job) else { return };
        let routing_key = format!("progress.{}", held.lane.name());
        let streamed = held.plan.as_ref().is_some_and(|plan| plan.chunk.is_some());
        let told = streamed.then(|| held.progress(job, json.clone())).flatten();
        self.command(Command::Event {
            kind: TYPE_PROGRESS,
            routing_key,
            body: json,
        });
        if let Some(publication) = told {
            self.command(Command::Publish(publication));
        }
    }
}
