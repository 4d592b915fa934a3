//! The window through which the service is seen: what the status socket answers.
//!
//! From its first turn on, every answer is the loop's own: a thread passes the question on
//! through a channel that holds one, and a loop that hangs does not answer. Before that it is told that the service
//! starts; after it, that the doors are being closed. What needs files (memory,
//! records of deaths) is read by that thread, never by the loop.

use super::LOAD_STEP_MAX;
use crate::clock::{Clock, Moment, millis};
use crate::config::{Config, Limits};
use crate::control;
use crate::http::{Board, Posted};
use crate::job::Lane;
use crate::logic::Logic;
use crate::logic::event::Outcome;
use crate::logic::pressure::Cause;
use crate::report::{Backpressure, Broker, Report, Stage, State};
use crate::telemetry::{self, history};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc as threads};
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::warn;

/// A loop that does not answer for this long hangs. Below the patience of `embeddings status` (3 s), which
/// so can tell a process whose loop hangs from one in which nothing runs.
pub const ANSWER_MAX: Duration = Duration::from_millis(2500);
/// An answer serves everyone who asks within this span: a flood of callers asks the loop 50 times a second.
const FRESH: Duration = Duration::from_millis(20);

/// One who asks, waiting for a report.
#[derive(Debug)]
pub struct Question(threads::SyncSender<Report>);

impl Question {
    /// Answers. Never waits: there is room for the one answer, and whoever has gone needs none.
    pub fn answer(self, report: Report) {
        let _ = self.0.try_send(report);
    }
}

/// How far the process is.
#[derive(Debug)]
enum Phase {
    /// There is no loop yet.
    Starting,
    /// The loop answers.
    Turning(mpsc::Sender<Question>),
}

/// Whom the status socket asks; who it is that answers goes by the phase.
#[derive(Clone, Debug)]
pub struct Window {
    clock: Clock,
    phase: Arc<Mutex<Phase>>,
    host: Arc<str>,
    unit: Arc<str>,
    address: Arc<str>,
    model: Arc<str>,
    state_dir: PathBuf,
    board: Arc<Board>,
}

impl Window {
    /// Opens it. A window that cannot be opened is no reason to end.
    pub fn open(clock: Clock, host: String, config: &Config) -> Window {
        let window = Window {
            clock,
            phase: Arc::new(Mutex::new(Phase::Starting)),
            host: host.into(),
            unit: config.dirs.unit.as_str().into(),
            address: address(&config.broker.shown()).into(),
            model: config.default_model.as_str().into(),
            state_dir: config.dirs.state.clone(),
            board: Arc::new(Board::new(clock)),
        };
        window.board.post(Posted {
            at: clock.now(),
            report: window.starts(),
            tally: None,
            late_after: LOAD_STEP_MAX,
            dead_after: LOAD_STEP_MAX,
        });
        if let Err(error) = window.serve(&config.dirs.runtime) {
            warn!(%error, "embeddings status cannot be answered");
        }
        window
    }

    fn serve(&self, runtime: &Path) -> std::io::Result<()> {
        let window = self.clone();
        let mut last: Option<(Moment, String)> = None;
        control::serve(control::bind(runtime)?, move || {
            let now = window.clock.now();
            if let Some((at, answer)) = &last
                && now.since(*at) < FRESH
            {
                return Some(answer.clone());
            }
            last = None;
            let answer = serde_json::to_string(&window.look()?).ok()?;
            last = Some((window.clock.now(), answer.clone()));
            Some(answer)
        })
    }

    /// What is said by HTTP.
    pub fn board(&self) -> Arc<Board> {
        self.board.clone()
    }

    /// From now on the loop answers what comes out of this channel.
    pub fn turning(&self) -> mpsc::Receiver<Question> {
        let (ask, questions) = mpsc::channel(1);
        *self.phase() = Phase::Turning(ask);
        questions
    }

    fn phase(&self) -> std::sync::MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The whole report; `None` if the loop does not answer.
    fn look(&self) -> Option<Report> {
        let mut report = self.ask()?;
        let now = self.clock.now();
        report.pid = Some(std::process::id());
        report.name = self.unit.to_string();
        report.host = self.host.to_string();
        report.version = env!("CARGO_PKG_VERSION").into();
        report.uptime_ms = Some(now.as_millis());
        report.at_unix_ms = Clock::unix_ms();
        report.rss_bytes = telemetry::rss_bytes();
        report.http = self.board.http();
        match history::kills(&self.state_dir, history::SHOWN_MAX) {
            Ok(kills) => report.kills = kills,
            Err(why) => report.kills_unknown = Some(why),
        }
        Some(report)
    }

    fn ask(&self) -> Option<Report> {
        let ask = match &*self.phase() {
            Phase::Starting => return Some(self.starts()),
            Phase::Turning(ask) => ask.clone(),
        };
        let (reply, answer) = threads::sync_channel(1);
        match ask.try_send(Question(reply)) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => return None,
            Err(mpsc::error::TrySendError::Closed(_)) => return Some(self.closes()),
        }
        match answer.recv_timeout(ANSWER_MAX) {
            Ok(report) => Some(report),
            Err(threads::RecvTimeoutError::Timeout) => None,
            Err(threads::RecvTimeoutError::Disconnected) => Some(self.closes()),
        }
    }

    /// The report of a process that has no loop yet.
    fn starts(&self) -> Report {
        Report {
            line: "starting · looking at the models' folders".into(),
            ..self.without_loop("starting", "starting")
        }
    }

    /// The report of a process whose loop has done its work.
    fn closes(&self) -> Report {
        Report {
            line: "draining · all is settled, closing".into(),
            ..self.without_loop("draining", "draining")
        }
    }

    fn without_loop(&self, activity: &str, not_ready: &str) -> Report {
        Report {
            state: State::Degraded,
            activity: activity.into(),
            not_ready: Some(not_ready.into()),
            live: true,
            model: self.model.to_string(),
            broker: Broker {
                address: self.address.to_string(),
                ..Broker::default()
            },
            ..Report::default()
        }
    }
}

/// What the loop says.
pub fn report(logic: &Logic, line: String, now: Moment) -> Report {
    let seen = logic.snapshot(now);
    let (ready, live) = (seen.readiness.is_ok(), seen.stalled.is_none());
    let mut jobs = BTreeMap::<String, BTreeMap<String, u64>>::new();
    for lane in Lane::ALL {
        for outcome in Outcome::ALL {
            let count = logic.tally().jobs[lane as usize][outcome as usize];
            if count > 0 {
                let of_lane = jobs.entry(lane.name().into()).or_default();
                of_lane.insert(outcome.name().into(), count);
            }
        }
    }
    Report {
        state: if ready && live {
            State::Running
        } else {
            State::Degraded
        },
        activity: seen.state.name().into(),
        line,
        ready,
        not_ready: seen.readiness.err().map(|cause| cause.name().into()),
        live,
        conditions: logic.conditions(now),
        inputs_per_second: seen.figures.inputs_per_second,
        queue: seen.figures.queue as u64,
        queue_max: seen.figures.queue_max as u64,
        queues: [Lane::Interactive, Lane::Bulk]
            .map(|lane| (lane.name().to_owned(), logic.waiting(lane) as u64))
            .into(),
        inflight: seen.figures.inflight as u64,
        stages: seen
            .stages
            .iter()
            .map(|view| Stage {
                name: view.stage.name().into(),
                inside: view.inside as u64,
                waiting_ms: millis(view.waiting),
                progress_age_ms: view.left_age.map(millis),
            })
            .collect(),
        stalled_stage: seen.stalled.map(|stage| stage.name().into()),
        progress_age_ms: Some(millis(seen.progress_age)),
        round_age_ms: seen.round_age.map(millis),
        last_job_latency_ms: seen.last_latency.map(millis),
        avg_job_ms: seen.service_time.map(millis),
        broker: Broker {
            connected: seen.connected,
            proof_age_ms: seen.proof_age.map(millis),
            blocked_ms: seen.blocked_for.map(millis),
            ..Broker::default()
        },
        jobs,
        backpressure: [Lane::Interactive, Lane::Bulk]
            .map(|lane| (lane.name().to_owned(), backpressure(logic, lane, now)))
            .into(),
        limits: limits(logic.limits()),
        ..Report::default()
    }
}

fn backpressure(logic: &Logic, lane: Lane, now: Moment) -> Backpressure {
    let told = logic.told(lane);
    let refused = Cause::ALL.into_iter().zip(told.refused);
    Backpressure {
        on: told.on.is_some(),
        cause: told.on.map(|(cause, _)| cause.name().to_owned()),
        since_ms: told.on.map(|(_, since)| millis(now.since(since))),
        changes: told.changes,
        retry_after_ms: Some(logic.retry_after_ms(lane, now)),
        refused: refused
            .filter(|&(_, count)| count > 0)
            .map(|(cause, count)| (cause.name().to_owned(), count))
            .collect(),
    }
}

/// The limits by their keys in the configuration.
fn limits(limits: &Limits) -> BTreeMap<String, u64> {
    let all = [
        ("max_inflight", limits.max_inflight as u64),
        ("max_queue", limits.max_queue as u64),
        ("max_queue_bytes", limits.max_queue_bytes as u64),
        ("max_inputs", limits.max_inputs as u64),
        ("max_attempts", u64::from(limits.max_attempts)),
        ("liveness_max_stall_ms", millis(limits.liveness_max_stall)),
        ("disconnect_kill_ms", millis(limits.disconnect_kill)),
        ("watchdog_interval_ms", millis(limits.watchdog_interval)),
        ("canary_interval_ms", millis(limits.canary_interval)),
        ("heartbeat_interval_ms", millis(limits.heartbeat_interval)),
        ("heartbeat_timeout_ms", millis(limits.heartbeat_timeout)),
        ("slam_limit_ms", millis(limits.slam_limit)),
        ("drain_ms", millis(limits.drain)),
    ];
    all.map(|(key, value)| (key.to_owned(), value)).into()
}

/// Host and port of a URL: every user of the machine may ask, and none needs to know the broker's user.
pub fn address(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_no_user() {
        assert_eq!(address("amqp://guest:***@127.0.0.1:5672/%2f"), "127.0.0.1:5672");
        assert_eq!(address("amqp://guest:***@a:5672,b:5672/%2f"), "a:5672,b:5672");
        assert_eq!(address("amqps://broker.example"), "broker.example");
        assert!(telemetry::rss_bytes().is_some_and(|bytes| bytes > 1 << 20));
    }
}
