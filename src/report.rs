//! What the service says of itself when it is asked, as plain data: the answer of the status socket, the
//! output of `embeddings status --json`, and the source of every other view of the same truth.
//!
//! Names are part of the contract with scripts: fields are added, not renamed. Ages and spans are in
//! milliseconds, `null` where there is none yet. A field that is missing reads as its default, so that a
//! command and a service of different versions understand each other.

pub mod advice;

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What the three symbols stand for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// ● It answers, and new work is welcome.
    Running,
    /// ◐ A process is there, and new work is not welcome; [`Report::line`] says why.
    Degraded,
    /// ○ There is no process.
    #[default]
    Stopped,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// The judgement.
    pub state: State,
    /// More exactly: `starting`, `idle`, `working`, `degraded`, `stalled`, `draining`, `hung`, `stopped`.
    pub activity: String,
    /// The line that `systemctl status` shows.
    pub line: String,
    /// Whether new work is welcome.
    pub ready: bool,
    /// Why it is not, in a word: `starting`, `broker_lost`, `blocked`, `saturated`, `model_failed`,
    /// `draining`, `hung`.
    pub not_ready: Option<String>,
    /// Whether no stage is stalled.
    pub live: bool,
    /// Every condition of readiness and of liveness, with its value and its limit.
    pub conditions: Vec<Condition>,
    /// Process id.
    pub pid: Option<u32>,
    /// Name of the unit without its ending: `embeddings`, of an instance `embeddings@NAME`.
    pub name: String,
    /// Host's name.
    pub host: String,
    /// Version of the service that answers.
    pub version: String,
    /// Since its start.
    pub uptime_ms: Option<u64>,
    /// When this was said, in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// Memory in use.
    pub rss_bytes: Option<u64>,
    /// The default model.
    pub model: String,
    /// Where it runs.
    pub device: String,
    /// The state of every model: `unloaded`, `loading`, `ready`, `working`, `unloading`, `failed`.
    pub models: BTreeMap<String, String>,
    /// Inputs computed a second, lately.
    pub inputs_per_second: f64,
    /// Admitted interactive jobs that no engine has begun.
    pub queue: u64,
    /// Their bound.
    pub queue_max: u64,
    /// The same for each lane.
    pub queues: BTreeMap<String, u64>,
    /// Jobs whose computation has begun and is not finished.
    pub inflight: u64,
    /// The stages in the order of a job's life.
    pub stages: Vec<Stage>,
    /// The stage that is stalled.
    pub stalled_stage: Option<String>,
    /// Since something last left a stage.
    pub progress_age_ms: Option<u64>,
    /// Since a job or canary last went all the way round.
    pub round_age_ms: Option<u64>,
    /// From delivery to acknowledgement, the last job that was answered with vectors.
    pub last_job_latency_ms: Option<u64>,
    /// From a job's first batch to its acknowledgement, the mean over the last ones.
    pub avg_job_ms: Option<u64>,
    /// The broker.
    pub broker: Broker,
    /// The HTTP listener.
    pub http: Http,
    /// Jobs settled since the start, by lane and outcome.
    pub jobs: BTreeMap<String, BTreeMap<String, u64>>,
    /// Backpressure by lane.
    pub backpressure: BTreeMap<String, Backpressure>,
    /// Jobs that wait for their next attempt.
    pub retrying: Vec<Retrying>,
    /// Bounds and time limits in force, named as in the configuration.
    pub limits: BTreeMap<String, u64>,
    /// The last deaths, the newest first.
    pub kills: Vec<Kill>,
    /// Why [`Report::kills`] cannot be told.
    pub kills_unknown: Option<String>,
    /// What systemd knows, where the service does not answer for itself.
    pub systemd: Option<Unit>,
    /// What this means, and what to do next.
    pub hints: Vec<String>,
}

/// What a condition is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Whether new work is welcome.
    Readiness,
    /// Whether anything is stalled.
    Liveness,
}

/// One condition, and how it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Condition {
    /// Its name.
    pub name: String,
    /// What it is a part of.
    pub of: Part,
    /// Whether it holds.
    pub ok: bool,
    /// The value that is judged, where it is a number.
    pub value: Option<u64>,
    /// The condition holds below this.
    pub limit: Option<u64>,
    /// `ms` or `jobs`.
    pub unit: Option<String>,
}

/// One stage of a job's life.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// What is inside: jobs, or inputs between tokenizing and computing.
    pub inside: u64,
    /// How long something has been inside without anything leaving.
    pub waiting_ms: u64,
    /// Since something last left it; `null` before the first.
    pub progress_age_ms: Option<u64>,
}

/// The broker, as the service sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Broker {
    /// Host and port, without user and password.
    pub address: String,
    /// Whether a session stands.
    pub connected: bool,
    /// Since the broker last answered.
    pub proof_age_ms: Option<u64>,
    /// How long it has been blocking us.
    pub blocked_ms: Option<u64>,
    /// What the last attempt to connect came to, while there is no session.
    pub waiting: Option<String>,
}

/// The HTTP listener, as the service sees it. Both are absent where it is switched off.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Http {
    /// Where it listens.
    pub listen: Option<String>,
    /// Why it does not, though it should.
    pub problem: Option<String>,
    /// What it turned away before the loop saw it, since the start: `http_requests` and `http_bodies` (429, as many as may
    /// be here), `http_connections` (503).
    pub refused: BTreeMap<String, u64>,
}

/// What the world was told of a lane's backpressure.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Backpressure {
    /// Whether it is on.
    pub on: bool,
    /// Why: `queue_full`, `bytes`, `memory`, `slam`.
    pub cause: Option<String>,
    /// For how long it has been on.
    pub since_ms: Option<u64>,
    /// How often it has gone on or off since the start.
    pub changes: u64,
    /// Jobs refused as overloaded since the start, by cause.
    pub refused: BTreeMap<String, u64>,
    /// When a job that found no room now may find some: by what is inside, and how fast it goes.
    pub retry_after_ms: Option<u64>,
}

/// A job that waits for its next attempt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Retrying {
    /// Its id.
    pub job: String,
    /// The attempt that comes next, counted from one.
    pub attempt: u64,
    /// Until then.
    pub retry_in_ms: Option<u64>,
    /// What the last attempt came to.
    pub last_error: String,
}

/// Why and how a process ended. Fields that the record does not have are absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kill {
    /// `KILL_REASON=`
    pub reason: String,
    /// The stage to blame, if one is.
    pub stage: Option<String>,
    /// When, in milliseconds since 1970.
    pub at_unix_ms: Option<u64>,
    /// How long the process had lived.
    pub uptime_ms: Option<u64>,
    /// More, for people.
    pub detail: Option<String>,
    /// What helps against this kind of death.
    pub hint: Option<String>,
    /// Everything else that the record holds.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

impl Kill {
    /// Every `KILL_REASON=` (contract, section 5.1), and `failed` for a start that came to nothing.
    pub const REASONS: [&str; 12] = [
        "broker_disconnected",
        "no_progress",
        "engine_corrupt",
        "drain_timeout",
        "config_error",
        "watchdog_timeout",
        "heartbeat_timeout",
        "oom_killed",
        "signal",
        "panic",
        "start_timeout",
        "failed",
    ];
}

/// What systemd knows of the unit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Unit {
    /// `active`, `activating`, `inactive`, `failed`…
    pub active_state: String,
    /// `running`, `dead`, `auto-restart`…
    pub sub_state: String,
    /// `success`, `exit-code`, `signal`, `watchdog`, `start-limit-hit`…
    pub result: String,
    /// Exit code or signal of the last process.
    pub exit_status: Option<u64>,
    /// Since when it is in this state, as systemd writes it.
    pub since: String,
    /// The last `Status:` line.
    pub status_text: String,
    /// Restarts by systemd since the unit was last started by hand.
    pub restarts: Option<u64>,
    /// `enabled` or not.
    pub unit_file_state: String,
    /// The main process, if there is one.
    pub main_pid: Option<u32>,
    /// `WatchdogSec=`
    pub watchdog_ms: Option<u64>,
}
