//! What people and monitors are told: one snapshot of the truth, and the one line that `systemctl status`
//! shows, the state in a word and then what makes it so.

use super::Logic;
use super::health::{NotReady, Verdict};
use super::ledger::Stage;
use super::pressure::Cause;
use crate::clock::{Moment, millis};
use crate::config::Limits;
use crate::job::Lane;
use crate::report::{Condition, Part};
use std::fmt::Write as _;
use std::time::Duration;

/// The state of the service in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not ready yet: models load, no broker so far, or the first canary is under way.
    Starting,
    /// Ready, with nothing in flight.
    Idle,
    /// Ready, with jobs in flight.
    Working,
    /// Alive, and new work is not welcome.
    Degraded,
    /// A stage is stalled.
    Stalled,
    /// Stopping.
    Draining,
}

impl State {
    /// The name used in heartbeats and by `embeddings status`.
    pub fn name(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Idle => "idle",
            State::Working => "working",
            State::Degraded => "degraded",
            State::Stalled => "stalled",
            State::Draining => "draining",
        }
    }
}

impl NotReady {
    /// The name used in the status and by health checks.
    pub fn name(self) -> &'static str {
        match self {
            NotReady::Starting => "starting",
            NotReady::BrokerLost => "broker_lost",
            NotReady::Unconsumed => "unconsumed",
            NotReady::Blocked => "blocked",
            NotReady::Saturated => "saturated",
            NotReady::ModelFailed => "model_failed",
            NotReady::Draining => "draining",
        }
    }
}

/// One stage of a job's life at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageView {
    /// Which.
    pub stage: Stage,
    /// What is inside: jobs, or inputs between tokenizing and computing.
    pub inside: usize,
    /// How long something has been inside without anything leaving.
    pub waiting: Duration,
    /// Since something last left it.
    pub left_age: Option<Duration>,
}

/// All that anyone is told about the service at one moment. Numbers and keys only.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// In a word.
    pub state: State,
    /// Whether new work is welcome, or why not.
    pub readiness: Result<(), NotReady>,
    /// Whether a session with the broker stands.
    pub connected: bool,
    /// Rate, queue, bound, inflight.
    pub figures: Figures,
    /// Every stage in the order of a job's life.
    pub stages: [StageView; 6],
    /// The stage that is stalled.
    pub stalled: Option<Stage>,
    /// Since something last left a stage.
    pub progress_age: Duration,
    /// Since the broker last answered.
    pub proof_age: Option<Duration>,
    /// Since a job or canary last went all the way round.
    pub round_age: Option<Duration>,
    /// How long the broker has been blocking us.
    pub blocked_for: Option<Duration>,
    /// From delivery to acknowledgement, the last job that was answered with vectors.
    pub last_latency: Option<Duration>,
    /// From its first batch to its acknowledgement, the mean over the last jobs.
    pub service_time: Option<Duration>,
}

/// What the line needs from outside the logic.
#[derive(Clone, Debug)]
pub struct Subject<'a> {
    /// The default model's name.
    pub model: &'a str,
    /// Where it runs.
    pub device: &'a str,
}

/// The figures of the line, for other views of the same truth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// Inputs computed a second, lately.
    pub inputs_per_second: f64,
    /// Admitted interactive jobs that no engine has begun.
    pub queue: usize,
    /// Their bound.
    pub queue_max: usize,
    /// Jobs whose computation has begun and is not finished.
    pub inflight: usize,
}

impl Logic {
    /// The present figures.
    pub fn figures(&self, now: Moment) -> Figures {
        let inflight = self.inflight();
        Figures {
            inputs_per_second: self.inputs.per_second(now).unwrap_or(0.0),
            queue: self.waiting(Lane::Interactive),
            queue_max: self.setup.limits.max_queue,
            inflight,
        }
    }

    /// Admitted jobs of a lane that no engine has begun.
    pub fn waiting(&self, lane: Lane) -> usize {
        self.admission.held(lane).saturating_sub(self.in_flight(lane))
    }

    /// When a job of the lane that found no room now may find some, by what is inside and how fast it goes.
    pub fn retry_after_ms(&self, lane: Lane, now: Moment) -> u64 {
        let cause = self.told(lane).on.map_or(Cause::QueueFull, |(cause, _)| cause);
        self.admission.retry_after_ms(lane, cause, now)
    }

    /// The whole truth at this moment.
    pub fn snapshot(&self, now: Moment) -> Snapshot {
        let health = &self.health;
        let (readiness, figures) = (self.readiness(now), self.figures(now));
        let stalled = health.stalled(now);
        let state = match readiness {
            Err(NotReady::Draining) => State::Draining,
            _ if stalled.is_some() => State::Stalled,
            Err(NotReady::Starting) => State::Starting,
            Err(_) => State::Degraded,
            Ok(()) if figures.inflight > 0 => State::Working,
            Ok(()) => State::Idle,
        };
        Snapshot {
            state,
            readiness,
            connected: health.is_connected(),
            figures,
            stages: Stage::ALL.map(|stage| StageView {
                stage,
                inside: health.ledger.inside(stage),
                waiting: health.ledger.waiting_for(stage, now),
                left_age: health.ledger.left(stage).map(|left| now.since(left)),
            }),
            stalled,
            progress_age: health.progress_age(now),
            proof_age: health.proof_age(now),
            round_age: health.round_age(now),
            blocked_for: health.blocked_since().map(|since| now.since(since)),
            last_latency: self.pace.last_latency(),
            service_time: self.pace.service_time(),
        }
    }

    /// The state of each model: `unloaded`, `loading`, `ready`, `working`, `unloading`, or `failed` if it could not be
    /// loaded.
    pub fn model_states(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.residence.names()
    }

    /// Every condition of readiness, in the order in which [`Logic::readiness`] asks for them, and of liveness.
    pub fn conditions(&self, now: Moment) -> Vec<Condition> {
        let health = &self.health;
        let limits = &self.setup.limits;
        let condition = |name: &str, of, ok| Condition {
            name: name.to_owned(),
            of,
            ok,
            value: None,
            limit: None,
            unit: None,
        };
        let span = |condition, value: Option<Duration>, limit: Option<Duration>| Condition {
            value: value.map(millis),
            limit: limit.map(millis),
            unit: Some("ms".into()),
            ..condition
        };
        let proof = health.unproven_age(now);
        let proven = health.is_connected()
            && health.unconsumed(now).is_none()
            && proof.is_some_and(|age| age < limits.disconnect_kill);
        let blocked = health.blocked_since().map(|since| now.since(since));
        let held = self.admission.held(Lane::Interactive);
        let ready = Part::Readiness;
        let mut all = vec![
            condition("not_draining", ready, !health.is_draining()),
            condition("first_round_completed", ready, health.has_been_ready()),
            span(
                condition("broker_proven", ready, proven),
                proof,
                Some(limits.disconnect_kill),
            ),
            span(
                condition("broker_not_blocking", ready, blocked.is_none()),
                blocked,
                None,
            ),
            Condition {
                value: Some(held as u64),
                limit: Some(limits.max_queue as u64),
                unit: Some("jobs".into()),
                ..condition("queue_below_max", ready, !self.admission.is_saturated())
            },
            condition("models_loaded_once", ready, !self.residence.starts()),
            condition(
                "default_model_loads",
                ready,
                !self.residence.has_failed(self.setup.default),
            ),
        ];
        all.extend(Stage::ALL.map(|stage| {
            let waiting = health.ledger.waiting_for(stage, now);
            let ok = health.excuses(stage) || waiting < limits.liveness_max_stall;
            let name = format!("{stage}_moves");
            span(
                condition(&name, Part::Liveness, ok),
                Some(waiting),
                Some(limits.liveness_max_stall),
            )
        }));
        all
    }

    /// The limits in force, after any reload.
    pub fn limits(&self) -> &Limits {
        &self.setup.limits
    }

    /// Whether new work is welcome, or why not.
    pub fn readiness(&self, now: Moment) -> Result<(), NotReady> {
        self.health.readiness(self.admission.is_saturated(), now)?;
        if self.residence.has_failed(self.setup.default) {
            Err(NotReady::ModelFailed)
        } else {
            Ok(())
        }
    }

    /// The `Status:` line.
    pub fn status_line(&self, subject: &Subject<'_>, now: Moment) -> String {
        let mut line = match self.readiness(now) {
            Ok(()) => "ready".to_owned(),
            Err(NotReady::Starting) if self.residence.starts() => "starting · loading models".to_owned(),
            Err(NotReady::Starting) => format!("starting · {}", NotReady::Starting),
            Err(NotReady::Draining) => "draining".to_owned(),
            Err(cause @ NotReady::Blocked) => {
                let since = self
                    .health
                    .blocked_since()
                    .map_or(Duration::ZERO, |since| now.since(since));
                format!("degraded · {cause} since {} s", since.as_secs())
            }
            Err(NotReady::Unconsumed) => {
                let missing = self.health.unconsumed(now);
                let (lane, since) = missing.map_or(("", 0), |(lane, since)| (lane.name(), since.as_secs()));
                format!("degraded · no consumer on lane {lane} since {since} s")
            }
            Err(cause) => format!("degraded · {cause}"),
        };
        if let (Some(stage), Verdict::Unproven | Verdict::Kill(_)) =
            (self.health.stalled(now), self.health.verdict(now))
        {
            let _ = write!(line, " · stage {stage} stalled");
        }
        let figures = self.figures(now);
        let _ = write!(
            line,
            " · {} on {} · {:.0} inputs/s · queue {}/{} · inflight {}",
            subject.model,
            subject.device,
            figures.inputs_per_second,
            figures.queue,
            figures.queue_max,
            figures.inflight
        );
        if let Some((cause, _)) = self.told(Lane::Interactive).on
            && !self.admission.is_saturated()
        {
            let _ = write!(line, " · backpressure ({})", cause.name());
        }
        match self.health.round_age(now) {
            Some(age) => {
                let _ = write!(line, " · last proof {:.1} s ago", age.as_secs_f64());
            }
            None => line.push_str(" · no proof yet"),
        }
        line
    }
}
