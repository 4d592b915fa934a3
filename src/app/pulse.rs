//! Heartbeats: sent by the loop itself after its turns, never by a timer or thread of their own, so that a
//! loop that hangs falls silent.

use super::catalogue::Catalogue;
use crate::broker::Command;
use crate::clock::{Clock, Moment, millis};
use crate::config::{Directories, Limits};
use crate::job::heartbeat::{self, Heartbeat, LastKill};
use crate::logic::Logic;
use crate::logic::ledger::Stage;
use crate::logic::status::{Snapshot, State};
use crate::telemetry::{self, history};
use crate::watchdog::heartbeat::Sender;
use std::time::Duration;
use tracing::debug;

/// How often the truth is looked at for a change, which is told at once.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// What a heartbeat may need from when it is due until somebody has heard it, on a busy machine and on its way.
const SLACK: Duration = Duration::from_millis(1250);
/// Nobody who listens can judge a shorter silence: it takes two of their proofs that they hear at all (250 ms each).
const PROMISE_MIN: Duration = Duration::from_millis(500);
/// Longest name that a heartbeat repeats from a record.
const NAME_CHARS_MAX: usize = 64;

/// What is worth a heartbeat out of turn.
type Told = (State, bool, bool, Option<Stage>);

/// The worker's pulse.
pub struct Pulse {
    interval: Duration,
    monitor: Sender,
    name: String,
    host: String,
    model: String,
    device: String,
    instance: String,
    last_kill: Option<LastKill>,
    looked: Option<Moment>,
    sent: Option<(Moment, Told)>,
}

impl Pulse {
    /// No beat yet.
    pub fn new(limits: &Limits, dirs: &Directories, host: String, catalogue: &Catalogue) -> Pulse {
        let entry = catalogue.default_entry();
        Pulse {
            interval: interval(limits),
            monitor: Sender::new(dirs.heartbeat_socket()),
            name: dirs.unit.clone(),
            host,
            model: entry.name.clone(),
            device: entry.outline.device.name(),
            instance: dirs.runtime.display().to_string(),
            last_kill: history::last(&dirs.state, 1).first().map(|death| LastKill {
                reason: death.kill_reason.chars().take(NAME_CHARS_MAX).collect(),
                stage: death.stage.chars().take(NAME_CHARS_MAX).collect(),
                at_ts: death.unix_ms,
                pid: death.pid,
            }),
            looked: None,
            sent: None,
        }
    }

    /// New limits hold from now on.
    pub fn reload(&mut self, limits: &Limits) {
        self.interval = interval(limits);
    }

    /// The next turn looks, however long ago the last look was: there may be no other before the end.
    pub fn hurry(&mut self) {
        self.looked = None;
    }

    /// How long the loop may wait before its next turn: until the next heartbeat is due.
    pub fn rest(&self, now: Moment) -> Duration {
        self.sent.map_or(Duration::ZERO, |(last, _)| {
            due(self.interval).saturating_sub(now.since(last))
        })
    }

    /// The loop has turned: sends a heartbeat to the monitor if it is time, and returns the one for the broker.
    pub fn turned(&mut self, logic: &Logic, now: Moment) -> Option<Command> {
        let due = due(self.interval);
        let is_due = self.sent.is_none_or(|(last, _)| now.since(last) >= due);
        let look = LOOK_INTERVAL.min(due);
        if !is_due && self.looked.is_some_and(|last| now.since(last) < look) {
            return None;
        }
        self.looked = Some(now);
        let truth = logic.snapshot(now);
        let told = (
            truth.state,
            truth.connected,
            truth.readiness.is_ok(),
            truth.stalled,
        );
        if !is_due && self.sent.is_some_and(|(_, before)| before == told) {
            return None;
        }
        self.sent = Some((now, told));
        let body = serde_json::to_vec(&self.beat(&truth, now)).expect("plain data is always JSON");
        if let Err(error) = self.monitor.send(&body) {
            debug!(%error, "no monitor takes the heartbeat");
        }
        truth.connected.then(|| Command::Event {
            kind: heartbeat::TYPE_HEARTBEAT,
            routing_key: heartbeat::routing_key(&self.host),
            body,
        })
    }

    fn beat(&self, truth: &Snapshot, now: Moment) -> Heartbeat {
        let unix_ms = Clock::unix_ms();
        Heartbeat {
            pid: std::process::id(),
            name: self.name.clone(),
            host: self.host.clone(),
            connected: truth.connected,
            ready: truth.readiness.is_ok(),
            queue: truth.figures.queue,
            inflight: truth.figures.inflight,
            last_progress_ts: unix_ms.saturating_sub(millis(truth.progress_age)),
            last_job_latency_ms: truth.last_latency.map(millis),
            avg_job_ms: truth.service_time.map(millis),
            state: truth.state.name().to_owned(),
            stalled_stage: truth.stalled.map(|stage| stage.name().to_owned()),
            model: self.model.clone(),
            device: self.device.clone(),
            rss_bytes: telemetry::rss_bytes().unwrap_or(0),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            interval_ms: millis(promised(self.interval)),
            sent_ts: unix_ms,
            uptime_ms: Some(now.as_millis()),
            instance: self.instance.clone(),
            inputs_per_second: (truth.figures.inputs_per_second * 10.0).round() / 10.0,
            queue_max: truth.figures.queue_max,
            not_ready: truth.readiness.err().map(|why| why.name().to_owned()),
            last_kill: self.last_kill.clone(),
        }
    }
}

/// The configured interval, and never so long that a late beat could be taken for silence.
fn interval(limits: &Limits) -> Duration {
    limits.heartbeat_interval.min(limits.heartbeat_timeout / 3)
}

/// When the next heartbeat is due: so much before the interval is over that, with what may hold it up, it comes
/// within the interval. So one that does not come tells of itself when the interval is over, and no later. A short interval
/// is not made longer for that; heartbeats come more often instead, up to four times in one.
fn due(interval: Duration) -> Duration {
    let promised = promised(interval);
    let early = promised.saturating_sub(SLACK).max(promised / 4);
    (interval * 3 / 4).min(early)
}

/// Within which time the next heartbeat comes, whatever holds it up on a machine in health.
fn promised(interval: Duration) -> Duration {
    interval.max(PROMISE_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what is promised is the configured interval, down to what can be judged; it is kept with time to spare, and at
    /// no great cost.
    #[test]
    fn promises_can_be_kept() {
        let seconds = Duration::from_secs;
        assert_eq!(promised(seconds(5)), seconds(5));
        assert_eq!(promised(seconds(60)), seconds(60));
        assert_eq!(
            (promised(seconds(1)), due(seconds(1))),
            (seconds(1), seconds(1) / 4)
        );
        assert_eq!(due(seconds(2)), Duration::from_millis(750));
        assert_eq!(
            (due(seconds(5)), due(seconds(60))),
            (seconds(5) * 3 / 4, seconds(45))
        );
        for ms in 100..20_000 {
            let interval = Duration::from_millis(ms);
            let (due, promised) = (due(interval), promised(interval));
            assert_eq!(promised, Duration::from_millis(ms.max(500)));
            assert!(due < interval && 4 * due >= interval, "{interval:?}: {due:?}");
            assert!(
                promised - due >= SLACK.min(promised * 3 / 4),
                "{interval:?}: {due:?}"
            );
        }
    }
}
