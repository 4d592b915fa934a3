//! Settings: TOML, environment and flags as written in, one validated [`Config`] out.
//!
//! Each part of the service gets only its own section. Nothing here knows any other module of ours, and
//! nothing reads the process's environment behind the caller's back: [`Inputs`] is all that [`load()`] sees.
//!
//! ```text
//!   defaults < embeddings.toml < conf.d/*.toml < environment < --set        keys: the one table
//!        \____________________ layers ____________________/                       |
//!                                 | merged, each value knows its layer             |
//!                                 v                                                v
//!                     load: every value against its key  <------------------  rules
//!                                 v
//!                     build: Config, secret put in, combinations judged
//! ```

mod build;
mod collector;
mod combine;
mod dirs;
mod error;
mod keys;
mod layers;
mod load;
mod locate;
mod paper;
mod rules;
mod types;
mod url;

pub use dirs::{ModelDirError, directories, instance_of, monitor_beside, plain_name};
pub use error::{ConfigError, ConfigErrors, Origin};
pub use keys::{KEYS, Key, Kind, MODEL_KEYS, Preset, Rule, similar};
pub use layers::{Inputs, Reading, reading};
pub use load::{Examined, Loaded, Setting, examine, load, table_near};
pub use locate::{Line, keys_of, locate};
pub use paper::{default_file, manual};
pub use types::{Device, Precision, missing};
pub use url::{BrokerUrl, Host};

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Exit status for a bad configuration (`EX_CONFIG` of sysexits.h); the unit does not restart on it.
pub const EXIT_CONFIG: u8 = 78;

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
    /// Spans for a collector.
    pub traces: TracesConfig,
    /// Logging.
    pub log: LogConfig,
    /// Directories for state, cache and run-time files.
    pub dirs: Directories,
}

/// Largest `max_queue` that can be kept: RabbitMQ hands out 2000 deliveries to one consumer, and a worker has five at most.
pub const MAX_QUEUE_MAX: usize = 9744;

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

/// One configured model. Its limits, where set, override the ones in [`Limits`]: see [`Config::limits_of`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelConfig {
    /// Folder; without it the model directories are searched for the name.
    pub path: Option<PathBuf>,
    /// Other names for it.
    pub aliases: Vec<String>,
    /// What computes it.
    pub device: Device,
    /// Number format of its weights.
    pub precision: Precision,
    /// For jobs of this model; [`Limits::max_inflight`] holds as well.
    pub max_inflight: Option<usize>,
    /// For jobs of this model; [`Limits::max_queue`] holds as well.
    pub max_queue: Option<usize>,
    /// Overrides [`Limits::max_inputs`].
    pub max_inputs: Option<usize>,
    /// Overrides [`Limits::max_stream_inputs`].
    pub max_stream_inputs: Option<usize>,
    /// Overrides [`Limits::batch_inputs`].
    pub batch_inputs: Option<usize>,
    /// Overrides [`Limits::idle_unload`].
    pub idle_unload: Option<Duration>,
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
    /// File that the password was read from; it stands in `url` already.
    pub password_file: Option<PathBuf>,
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

/// Spans for a collector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TracesConfig {
    /// `http://` or `https://`, without the path of the signal; `None` is off.
    pub otlp_endpoint: Option<String>,
    /// Of a hundred jobs whose callers say nothing of a trace, how many begin one.
    pub sample_percent: u8,
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
    /// What packages install; models live in `models` below it.
    pub share: PathBuf,
    /// The name of the unit without its ending, and of its folders: `embeddings`, of an instance `embeddings@NAME`.
    pub unit: String,
}

impl Default for Limits {
    /// The table's defaults.
    fn default() -> Limits {
        load::Values::none().limits()
    }
}

impl Config {
    /// Names and aliases of all models.
    pub fn model_names(&self) -> Vec<String> {
        let aliases = self.models.values().flat_map(|model| &model.aliases);
        self.models.keys().chain(aliases).cloned().collect()
    }

    /// Largest number of inputs that any model allows.
    /// The limits that hold for one model, given its configured name: its own where it has them.
    pub fn limits_of(&self, model: &str) -> Limits {
        let mut limits = self.limits;
        let Some(own) = self.models.get(model) else {
            return limits;
        };
        limits.max_inflight = own.max_inflight.unwrap_or(limits.max_inflight);
        limits.max_queue = own.max_queue.unwrap_or(limits.max_queue);
        limits.max_inputs = own.max_inputs.unwrap_or(limits.max_inputs);
        limits.max_stream_inputs = own.max_stream_inputs.unwrap_or(limits.max_stream_inputs);
        limits.batch_inputs = own.batch_inputs.unwrap_or(limits.batch_inputs);
        limits.idle_unload = own.idle_unload.unwrap_or(limits.idle_unload);
        limits
    }
}

impl HttpConfig {
    /// The token that callers must present, from the first line of its file; `None` where none is asked for. Only the service
    /// reads it: nobody else need be able to.
    ///
    /// # Errors
    /// In words, with the file: it cannot be read, or has no token.
    pub fn read_token(&self) -> Result<Option<String>, String> {
        let Some(path) = self.token_file.as_ref().filter(|_| self.listen.is_some()) else {
            return Ok(None);
        };
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|error| {
            format!("\"{shown}\": failed to read: {error}; must be a file whose first line is the token")
        })?;
        match text
            .lines()
            .next()
            .map(str::trim)
            .filter(|token| !token.is_empty())
        {
            Some(token) => Ok(Some(token.to_owned())),
            None => Err(format!(
                "\"{shown}\": the first line is empty; must be a file whose first line is the token"
            )),
        }
    }
}

impl BrokerConfig {
    /// The URL with `***` for the password, fit for logs and people.
    pub fn shown(&self) -> String {
        url::mask(&self.url)
    }
}

impl std::fmt::Debug for BrokerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BrokerConfig")
            .field("url", &self.shown())
            .field("prefix", &self.prefix)
            .field("declare", &self.declare)
            .field("ca_file", &self.ca_file)
            .field("max_message_bytes", &self.max_message_bytes)
            .finish()
    }
}

#[cfg(test)]
impl Limits {
    /// The limits of a service that nobody has configured, for the tests of the floors above.
    pub fn shipped() -> Limits {
        let inputs = Inputs {
            file: None,
            set: Vec::new(),
            environment: Default::default(),
            etc: PathBuf::from("/nonexistent"),
            share: PathBuf::from("/nonexistent"),
            uid: 1,
            system_state: PathBuf::from("/nonexistent"),
            instance: None,
        };
        load(&inputs).expect("the defaults are valid").config.limits
    }
}
