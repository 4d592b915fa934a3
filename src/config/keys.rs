//! The one table of every key: name, kind with its range, default, and what it does.
//!
//! Defaults, validation, `embeddings config` and embeddings.toml(5) all read this table, and a test holds the
//! shipped file to it; a key that does not stand here does not exist.

/// One key of the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Full name, dots descend; for a model's key the part behind `models."NAME".`.
    pub name: &'static str,
    /// What its value may be.
    pub kind: Kind,
    /// Its value when nothing sets it.
    pub default: Preset,
    /// What it does, in whole sentences.
    pub doc: &'static str,
}

/// What a value may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A whole number within bounds, in a unit (empty for a plain count).
    Int {
        /// Smallest value allowed.
        min: u64,
        /// Largest value allowed.
        max: u64,
        /// `ms`, `bytes`, `jobs`, …
        unit: &'static str,
    },
    /// `true` or `false`.
    Bool,
    /// A string that follows a rule.
    Text(Rule),
    /// Strings that follow a rule, none of them twice.
    List(Rule),
}

/// The rule a string follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Name of a model.
    ModelName,
    /// First part of the names of queues and exchanges.
    Prefix,
    /// URL of the broker; may hold a password, so it is shown masked.
    BrokerUrl,
    /// Path of a file or a folder; empty is unset.
    Path,
    /// Address and port to listen on; empty is off.
    Listen,
    /// URL of a collector of OpenTelemetry's; empty is off.
    CollectorUrl,
    /// Level or filter of the log.
    LogLevel,
    /// What computes.
    Device,
    /// Number format of the weights.
    Precision,
}

/// The value of a key that nothing sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// A number.
    Int(u64),
    /// A truth value.
    Bool(bool),
    /// A string.
    Text(&'static str),
    /// The empty list.
    Empty,
    /// No value; for a model's limit, the service's own limit.
    Unset,
}

impl Kind {
    /// The allowed range, as errors and papers say it.
    pub fn range(self) -> String {
        match self {
            Kind::Int { min, max, unit: "" } => format!("a whole number from {min} to {max}"),
            Kind::Int { min, max, unit } => format!("a whole number from {min} to {max} ({unit})"),
            Kind::Bool => "true or false".to_owned(),
            Kind::Text(rule) => rule.range().to_owned(),
            Kind::List(rule) => format!("a list, each {}", rule.range()),
        }
    }
}

impl Rule {
    /// The allowed values, as errors and papers say them.
    pub fn range(self) -> &'static str {
        match self {
            Rule::ModelName => "1 to 200 characters, none of them blank or a control character",
            Rule::Prefix => "1 to 100 of the characters a-z A-Z 0-9 . _ -",
            Rule::BrokerUrl => {
                "amqp://USER[:PASSWORD]@HOST[:PORT]/VHOST, or amqps://; of several HOST[:PORT], commas between them"
            }
            Rule::Path => "a path",
            Rule::Listen => "ADDRESS:PORT in numbers, such as 127.0.0.1:8970, or empty for off",
            Rule::CollectorUrl => "http://HOST[:PORT][/PATH], or https://; empty for off",
            Rule::LogLevel => {
                "off, error, warn, info, debug, trace, or a filter such as warn,embeddings=debug"
            }
            Rule::Device => "auto, cpu, cuda, cuda:N or metal",
            Rule::Precision => "auto, f32, bf16, f16 or int8",
        }
    }
}

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

const fn count(
    name: &'static str,
    unit: &'static str,
    min: u64,
    max: u64,
    preset: u64,
    doc: &'static str,
) -> Key {
    Key {
        name,
        kind: Kind::Int { min, max, unit },
        default: Preset::Int(preset),
        doc,
    }
}

const fn text(name: &'static str, rule: Rule, preset: Preset, doc: &'static str) -> Key {
    Key {
        name,
        kind: Kind::Text(rule),
        default: preset,
        doc,
    }
}

const fn limit(name: &'static str, unit: &'static str, min: u64, max: u64, doc: &'static str) -> Key {
    Key {
        name,
        kind: Kind::Int { min, max, unit },
        default: Preset::Unset,
        doc,
    }
}

/// Every key outside `[models."NAME"]`, in the order in which they are shown.
pub const KEYS: &[Key] = &[
    text(
        "default_model",
        Rule::ModelName,
        Preset::Text("all-MiniLM-L6-v2"),
        "Model of a job that names none, by name or alias. It is always configured, with or without a section of its own.",
    ),
    count(
        "max_inflight",
        "jobs",
        1,
        4096,
        8,
        "Jobs that may be computed at the same time.",
    ),
    count(
        "max_queue",
        "jobs",
        1,
        1_000_000,
        256,
        "Jobs of the interactive lane that may wait or be computed; one more is refused as overloaded at once.",
    ),
    count(
        "max_queue_bytes",
        "bytes",
        1 << 16,
        1 << 40,
        256 << 20,
        "Bytes of job bodies that may wait in this process; a job above it is refused as overloaded.",
    ),
    count(
        "max_inputs",
        "inputs",
        1,
        1_000_000,
        2048,
        "Inputs of one job that is not streamed.",
    ),
    count(
        "max_stream_inputs",
        "inputs",
        1,
        100_000_000,
        100_000,
        "Inputs of one streamed job.",
    ),
    count(
        "batch_inputs",
        "inputs",
        1,
        65_536,
        32,
        "Inputs of one chunk of a streamed job.",
    ),
    count(
        "max_attempts",
        "attempts",
        1,
        1000,
        5,
        "Attempts at a job before it is answered with an error and copied to the dead letters.",
    ),
    count(
        "slam_limit_ms",
        "ms",
        1,
        DAY_MS,
        20_000,
        "Latency guard: a lane's intake pauses when the average time of its jobs times its jobs in flight is above this, until it is under 80 % of it.",
    ),
    count(
        "idle_unload_ms",
        "ms",
        0,
        30 * DAY_MS,
        0,
        "Idle time after which a model is unloaded; 0 is never.",
    ),
    count(
        "liveness_max_stall_ms",
        "ms",
        100,
        DAY_MS,
        30_000,
        "Longest time without progress in a stage that has a job inside; above it the process ends with 71.",
    ),
    count(
        "disconnect_kill_ms",
        "ms",
        100,
        DAY_MS,
        10_000,
        "Longest time without a sign of life from the broker once connected; above it the process ends with 70.",
    ),
    count(
        "canary_interval_ms",
        "ms",
        100,
        DAY_MS,
        5000,
        "Idle time after which the service sends a job of its own the whole way round, to prove that it works.",
    ),
    count(
        "watchdog_interval_ms",
        "ms",
        10,
        60_000,
        1000,
        "How often the watchdog thread asks for a verdict.",
    ),
    count(
        "drain_ms",
        "ms",
        0,
        DAY_MS,
        5000,
        "After SIGTERM, the time to finish what is in flight; the rest goes back to the queue.",
    ),
    count(
        "heartbeat_interval_ms",
        "ms",
        100,
        DAY_MS,
        5000,
        "How often a heartbeat is sent.",
    ),
    count(
        "heartbeat_timeout_ms",
        "ms",
        100,
        DAY_MS,
        45_000,
        "Silence after which the heartbeat monitor ends the process. Also set by the environment variable HEARTBEAT_TIMEOUT.",
    ),
    text(
        "broker.url",
        Rule::BrokerUrl,
        Preset::Text("amqp://guest:guest@127.0.0.1:5672/%2f"),
        "Where RabbitMQ is; of a cluster several nodes, separated by commas, of which any that answers is taken. Prefer a systemd credential named broker-password, or broker.password_file, to a password in here.",
    ),
    text(
        "broker.password_file",
        Rule::Path,
        Preset::Unset,
        "File whose first line is the broker's password. The systemd credential broker-password wins over it.",
    ),
    text(
        "broker.ca_file",
        Rule::Path,
        Preset::Unset,
        "PEM file of roots for amqps:// to use instead of the system's.",
    ),
    text(
        "broker.prefix",
        Rule::Prefix,
        Preset::Text("embeddings"),
        "First part of the name of every queue and exchange.",
    ),
    Key {
        name: "broker.declare",
        kind: Kind::Bool,
        default: Preset::Bool(true),
        doc: "Declare queues and exchange; if false, only check that they are there.",
    },
    count(
        "broker.max_message_bytes",
        "bytes",
        1 << 16,
        512 << 20,
        16 << 20,
        "Largest message the broker takes (max_message_size of RabbitMQ, whose default since 4.0 this is); a job with a larger reply is refused.",
    ),
    count(
        "engine.threads",
        "threads",
        0,
        1024,
        0,
        "Threads that compute; 0 is as many as CPU affinity and the cgroup's quota allow.",
    ),
    count(
        "engine.batch_tokens",
        "tokens",
        16,
        1 << 20,
        512,
        "Tokens that run through the model together.",
    ),
    text(
        "http.listen",
        Rule::Listen,
        Preset::Text("127.0.0.1:8970"),
        "Address of health, metrics, status and the OpenAI route. Beyond loopback only with http.token_file.",
    ),
    text(
        "http.token_file",
        Rule::Path,
        Preset::Unset,
        "File whose first line is the token that callers present as Authorization: Bearer TOKEN.",
    ),
    text(
        "traces.otlp_endpoint",
        Rule::CollectorUrl,
        Preset::Text(""),
        "Collector that is told a span of each finished job that belongs to a trace, by OTLP over HTTP, such as http://127.0.0.1:4318; /v1/traces is added.",
    ),
    count(
        "traces.sample_percent",
        "percent",
        0,
        100,
        0,
        "Of the jobs whose callers say nothing of a trace, how many begin one of their own. A job with a traceparent goes by its sampled flag.",
    ),
    text(
        "log.level",
        Rule::LogLevel,
        Preset::Text("info"),
        "What is logged.",
    ),
];

/// Every key of a section `[models."NAME"]`.
pub const MODEL_KEYS: &[Key] = &[
    text(
        "path",
        Rule::Path,
        Preset::Unset,
        "Folder of the model; without it the name is searched below the state directory's models, then in /usr/share/embeddings/models.",
    ),
    Key {
        name: "aliases",
        kind: Kind::List(Rule::ModelName),
        default: Preset::Empty,
        doc: "Other names that jobs may use for it.",
    },
    text("device", Rule::Device, Preset::Text("auto"), "What computes it."),
    text(
        "precision",
        Rule::Precision,
        Preset::Text("auto"),
        "Number format of its weights; auto is the fastest that keeps a cosine of 0.9999 to f32 on this machine.",
    ),
    limit(
        "max_inflight",
        "jobs",
        1,
        4096,
        "Jobs for this model that may be computed at the same time; max_inflight holds as well.",
    ),
    limit(
        "max_queue",
        "jobs",
        1,
        1_000_000,
        "Interactive jobs for this model that may wait or be computed; max_queue holds as well.",
    ),
    limit(
        "max_inputs",
        "inputs",
        1,
        1_000_000,
        "Overrides max_inputs for this model.",
    ),
    limit(
        "max_stream_inputs",
        "inputs",
        1,
        100_000_000,
        "Overrides max_stream_inputs for this model.",
    ),
    limit(
        "batch_inputs",
        "inputs",
        1,
        65_536,
        "Overrides batch_inputs for this model.",
    ),
    limit(
        "idle_unload_ms",
        "ms",
        0,
        30 * DAY_MS,
        "Overrides idle_unload_ms for this model.",
    ),
];

/// The key of that name outside `[models]`.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The key of that name inside `[models."NAME"]`.
pub fn find_model(name: &str) -> Option<&'static Key> {
    MODEL_KEYS.iter().find(|key| key.name == name)
}

/// The key nearest to a misspelt one, if any is near enough to be meant.
pub fn nearest(wrong: &str, keys: &'static [Key]) -> Option<&'static str> {
    let best = keys
        .iter()
        .map(|key| (distance(wrong, key.name), key.name))
        .min()?;
    (best.0 <= 1 + wrong.len() / 4).then_some(best.1)
}

/// The name nearest to one that leads nowhere, if any is near enough to be meant; case counts for nothing.
pub fn similar(wrong: &str, names: Vec<String>) -> Option<String> {
    let far = |name: &String| distance(&wrong.to_lowercase(), &name.to_lowercase());
    let best = names.into_iter().map(|name| (far(&name), name)).min()?;
    (best.0 <= 1 + wrong.len() / 4).then_some(best.1)
}

/// Edits (insert, delete, replace) between two strings.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = corner + usize::from(x != y);
            corner = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_lies_in_its_own_range() {
        for key in KEYS.iter().chain(MODEL_KEYS) {
            match (key.kind, key.default) {
                (Kind::Int { min, max, .. }, Preset::Int(n)) => {
                    assert!((min..=max).contains(&n), "{}", key.name)
                }
                (Kind::Int { .. } | Kind::Text(_), Preset::Unset) => {}
                (Kind::Bool, Preset::Bool(_)) | (Kind::Text(_), Preset::Text(_)) => {}
                (Kind::List(_), Preset::Empty) => {}
                other => panic!("{}: {other:?}", key.name),
            }
        }
    }

    #[test]
    fn a_misspelt_key_finds_its_neighbour_and_nonsense_finds_none() {
        assert_eq!(nearest("max_inflihgt", KEYS), Some("max_inflight"));
        assert_eq!(nearest("brokr.url", KEYS), Some("broker.url"));
        assert_eq!(nearest("colour_of_the_sky", KEYS), None);
    }
}
