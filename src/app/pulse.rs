//! Heartbeats: sent by the loop itself after its turns, never by a timer or thread of their own, so that a
//! loop that hangs falls silent.

use super::catalogue::Catalogue;
use crate::broker::Command;
use crate::clock::{Clock, Moment};
use crate::config::{Directories, Limits};
use crate::job::heartbeat::{self, Heartbeat};
use crate::logic::Logic;
use crate::logic::ledger::Stage;
use crate::logic::status::{Snapshot, State};
use crate::telemetry;
use crate::watchdog::heartbeat::Sender;
use std::time::Duration;
use tracing::debug;

/// How often the truth is looked at for a change, which is told at once.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// What is worth a heartbeat out of turn.
type Told = (State, bool, bool, Option<Stage>);

/// The worker's pulse.
pub struct Pulse {
    clock: Clock,
    interval: Duration,
    monitor: Sender,
    name: String,
    host: String,
    model: String,
    device: String,
    looked: Option<Moment>,
    sent: Option<(Moment, Told)>,
}

impl Pulse {
    /// No beat yet.
    pub fn new(
        clock: Clock,
        limits: &Limits,
        dirs: &Directories,
        host: String,
        catalogue: &Catalogue,
    ) -> Pulse {
        let entry = catalogue.default_entry();
        Pulse {
            clock,
            interval: interval(limits),
            monitor: Sender::new(dirs.heartbeat_socket()),
            name: dirs.unit.clone(),
            host,
            model: entry.name.clone(),
            device: entry.recipe.info.device.name(),
            looked: None,
            sent: None,
        }
    }

    /// New limits hold from now on.
    pub fn reload(&mut self, limits: &Limits) {
        self.interval = interval(limits);
    }

    /// The loop has turned: sends a heartbeat to the monitor if it is time, and returns the one for the broker.
    pub fn turned(&mut self, logic: &Logic, now: Moment) -> Option<Command> {
        let look = LOOK_INTERVAL.min(self.interval);
        if self.looked.is_some_and(|last| now.since(last) < look) {
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
        let is_news = |&(last, before): &(Moment, Told)| before != told || now.since(last) >= self.interval;
        if !self.sent.as_ref().is_none_or(is_news) {
            return None;
        }
        self.sent = Some((now, told));
        let body = serde_json::to_vec(&self.beat(&truth)).expect("plain data is always JSON");
        if let Err(error) = self.monitor.send(&body) {
            debug!(%error, "no monitor takes the heartbeat");
        }
        truth.connected.then(|| Command::Event {
            kind: heartbeat::TYPE_HEARTBEAT,
            routing_key: heartbeat::routing_key(&self.host),
            body,
        })
    }

    fn beat(&self, truth: &Snapshot) -> Heartbeat {
        Heartbeat {
            pid: std::process::id(),
            name: self.name.clone(),
            host: self.host.clone(),
            connected: truth.connected,
            ready: truth.readiness.is_ok(),
            queue: truth.figures.queue,
            inflight: truth.figures.inflight,
            last_progress_ts: self.clock.unix_ms().saturating_sub(millis(truth.progress_age)),
            last_job_latency_ms: truth.last_latency.map(millis),
            avg_job_ms: truth.service_time.map(millis),
            state: truth.state.name().to_owned(),
            stalled_stage: truth.stalled.map(|stage| stage.name().to_owned()),
            model: self.model.clone(),
            device: self.device.clone(),
            rss_bytes: telemetry::rss_bytes().unwrap_or(0),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// The configured interval, and never so long that a late beat could be taken for silence: the loop turns
/// at least twice a second, and so beats up to half a second late.
fn interval(limits: &Limits) -> Duration {
    limits.heartbeat_interval.min(limits.heartbeat_timeout / 3)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
