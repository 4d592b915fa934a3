//! What the sender of a streamed job, and whoever listens to our events, is told of how far it is.

use super::Loop;
use crate::app::desk::Held;
use crate::broker::{Command, Published};
use crate::clock::Moment;
use crate::job::JobKey;
use crate::job::reply::{Progress, TYPE_PROGRESS};
use crate::telemetry::rss_bytes;
use std::time::Duration;

/// A job's progress is told at most this often.
const EVERY: Duration = Duration::from_secs(1);

impl Held {
    /// A chunk is confirmed: what is to be told of the job, if it is time to tell.
    fn advance(&mut self, unix_ms: u64, now: Moment) -> Option<Vec<u8>> {
        let chunk = self.plan.as_ref()?.chunk?;
        self.pace.confirmed = (self.pace.confirmed + chunk).min(self.sequences.len());
        let since = self.pace.told.unwrap_or(self.arrived);
        if now.since(since) < EVERY {
            return None;
        }
        self.pace.told = Some(now);
        Some(self.told(unix_ms))
    }

    /// How far the job is, in JSON.
    fn told(&self, unix_ms: u64) -> Vec<u8> {
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
            attempt: self.attempt,
            last_error: of.last_error.as_deref(),
            rss_bytes: rss_bytes().unwrap_or(0),
            job: &self.id,
        };
        serde_json::to_vec(&progress).expect("plain data is always written")
    }
}

impl Loop {
    /// The broker answered for something of a job. If it was a chunk, and it is time to, its sender is told.
    pub(super) fn chunk_answered(&mut self, job: JobKey, outcome: Published) {
        if outcome != Published::Routed || !self.parts.logic.is_computing(job) {
            return;
        }
        let (unix_ms, now) = (self.parts.clock.unix_ms(), self.parts.clock.now());
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
    pub(super) fn retry_told(&mut self, job: JobKey) {
        let unix_ms = self.parts.clock.unix_ms();
        let Some(held) = self.desk.get(&job) else { return };
        let json = held.told(unix_ms);
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
