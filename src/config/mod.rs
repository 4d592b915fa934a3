//! Settings: TOML, environment and flags as written in, one validated [`Config`] out.
//!
//! Each part of the service gets only its own section. Nothing here knows any other module of ours.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// All settings, validated.
#[derive(Debug, Clone)]
pub struct Config {
    /// The model of a job that names none.
    pub default_model: String,
    /// Configured models by name; the default model is always among them.
    pub models: BTreeMap<String, ModelConfig>,
    /// Bounds and time limits.
    pub limits: Limits,
    /// Where and how to reach RabbitMQ.
    pub broker: BrokerConfig,
    /// How the engine computes.
    pub engine: EngineConfig,
    /// The HTTP listener.
    pub http: HttpConfig,
    /// Logging.
    pub log: LogConfig,
    /// Directories for state, cache and run-time files.
    pub dirs: Directories,
}

/// Bounds and time limits, reloadable by SIGHUP. Spelled in the file as in the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Jobs whose computation has begun and is not finished.
    pub max_inflight: usize,
    /// Admitted jobs of the interactive lane, waiting or in flight.
    pub max_queue: usize,
    /// Bytes of bodies that may wait in this process.
    pub max_queue_bytes: usize,
    /// Longest time without progress in a stage that has something inside.
    pub liveness_max_stall: Duration,
    /// Longest time without a proof of the broker after having been connected.
    pub disconnect_kill: Duration,
    /// How often the watchdog thread asks for a verdict.
    pub watchdog_interval: Duration,
    /// Grace period after SIGTERM.
    pub drain: Duration,
    /// How often a heartbeat is sent.
    pub heartbeat_interval: Duration,
    /// Silence after which the monitor kills.
    pub heartbeat_timeout: Duration,
    /// Bound on average job time times jobs in flight; intake pauses above it.
    pub slam_limit: Duration,
    /// Longest time without a completed round before a canary is sent.
    pub canary_interval: Duration,
    /// Attempts before a job is given up.
    pub max_attempts: u32,
    /// Inputs of a job that is not streamed.
    pub max_inputs: usize,
    /// Inputs of a streamed job.
    pub max_stream_inputs: usize,
    /// Inputs of one chunk of a streamed job.
    pub batch_inputs: usize,
    /// Idle time after which a model is unloaded; zero is never.
    pub idle_unload: Duration,
}

/// One configured model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelConfig {
    /// Folder; without it the model directories are searched for the name.
    pub path: Option<PathBuf>,
    /// Other names for it.
    pub aliases: Vec<String>,
    /// `auto`, `cpu`, `cuda[:N]` or `metal`.
    pub device: String,
    /// `auto`, `f32`, `bf16`, `f16` or `int8`.
    pub precision: String,
    /// Overrides of [`Limits::max_queue`] and [`Limits::max_inputs`] for this model.
    pub max_queue: Option<usize>,
    #[allow(missing_docs, reason = "see max_queue")]
    pub max_inputs: Option<usize>,
}

/// Where and how to reach RabbitMQ.
#[derive(Clone, PartialEq, Eq)]
pub struct BrokerConfig {
    /// `amqp://` or `amqps://`, with the password already put in. A secret: never printed.
    pub url: String,
    /// First part of every name in the topology.
    pub prefix: String,
    /// Declare the topology; if false only check that it is there.
    pub declare: bool,
    /// Roots for `amqps://` instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Largest message the broker takes; a larger reply is refused at admission.
    pub max_message_bytes: usize,
}

/// How the engine computes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// Engine threads; zero is as many as affinity and cgroup quota allow.
    pub threads: usize,
    /// Token budget of one batch.
    pub batch_tokens: usize,
}

/// The HTTP listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpConfig {
    /// Address to listen on; `None` is off.
    pub listen: Option<std::net::SocketAddr>,
    /// File with the token that callers must present.
    pub token_file: Option<PathBuf>,
}

/// Logging.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// A level (`info`) or a filter in tracing's `EnvFilter` syntax.
    pub level: String,
}

/// Directories, from systemd's environment or else from XDG's places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directories {
    /// `$RUNTIME_DIRECTORY`
    pub runtime: PathBuf,
    /// `$STATE_DIRECTORY`; models added by hand live in `models` below it.
    pub state: PathBuf,
    /// `$CACHE_DIRECTORY`
    pub cache: PathBuf,
}

impl std::fmt::Debug for BrokerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BrokerConfig")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}
