//! Builds [`Config`] from checked values, reads the secret, and judges combinations.

use super::error::{ConfigError, Origin};
use super::keys::{self, Key, Preset};
use super::layers::Inputs;
use super::load::Values;
use super::rules::{Parsed, Set};
use super::url::BrokerUrl;
use super::{
    BrokerConfig, Config, Directories, EngineConfig, HttpConfig, Limits, LogConfig, ModelConfig, TracesConfig,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Builds the whole; what is wrong goes to `errors`, and defaults stand in for it.
pub(super) fn build(
    values: &Values,
    inputs: &Inputs,
    dirs: Directories,
    errors: &mut Vec<ConfigError>,
    warnings: &mut Vec<String>,
) -> Config {
    let models = models(values);
    let url = broker_url(values, inputs, errors, warnings);
    let mut config = Config {
        default_model: values.text("default_model"),
        models,
        limits: values.limits(),
        broker: BrokerConfig {
            url: url.secret(),
            prefix: values.text("broker.prefix"),
            declare: values.flag("broker.declare"),
            ca_file: values.path("broker.ca_file"),
            password_file: values.path("broker.password_file"),
            max_message_bytes: values.size("broker.max_message_bytes"),
        },
        engine: EngineConfig {
            threads: values.size("engine.threads"),
            batch_tokens: values.size("engine.batch_tokens"),
        },
        http: HttpConfig {
            listen: values.text("http.listen").parse().ok(),
            token_file: values.path("http.token_file"),
        },
        traces: TracesConfig {
            otlp_endpoint: Some(values.text("traces.otlp_endpoint")).filter(|url| !url.is_empty()),
            sample_percent: u8::try_from(values.number("traces.sample_percent")).unwrap_or(100),
        },
        log: LogConfig {
            level: values.text("log.level"),
        },
        dirs,
    };
    match config.model_name(&config.default_model).map(str::to_owned) {
        Some(name) => config.default_model = name,
        None => drop(
            config
                .models
                .insert(config.default_model.clone(), ModelConfig::default()),
        ),
    }
    super::combine::judge(values, inputs, &config, &url, errors, warnings);
    config
}

fn models(values: &Values) -> BTreeMap<String, ModelConfig> {
    let model = |section: &BTreeMap<&'static str, Set>| {
        let text = |name: &str| match section.get(name) {
            Some(Set {
                value: Parsed::Text(text),
                ..
            }) => Some(text.clone()),
            _ => None,
        };
        let size = |name: &str| match section.get(name) {
            Some(Set {
                value: Parsed::Int(number),
                ..
            }) => Some(to_usize(*number)),
            _ => None,
        };
        let aliases = match section.get("aliases") {
            Some(Set {
                value: Parsed::List(list),
                ..
            }) => list.clone(),
            _ => Vec::new(),
        };
        ModelConfig {
            path: section.get("path").and_then(located),
            aliases,
            // Both were checked to parse; absent is `auto`.
            device: text("device")
                .and_then(|text| text.parse().ok())
                .unwrap_or_default(),
            precision: text("precision")
                .and_then(|text| text.parse().ok())
                .unwrap_or_default(),
            max_inflight: size("max_inflight"),
            max_queue: size("max_queue"),
            max_inputs: size("max_inputs"),
            max_stream_inputs: size("max_stream_inputs"),
            batch_inputs: size("batch_inputs"),
            idle_unload: size("idle_unload_ms").map(|ms| Duration::from_millis(ms as u64)),
        }
    };
    values
        .models
        .iter()
        .map(|(name, section)| (name.clone(), model(section)))
        .collect()
}

/// The URL with the password in it: systemd's credential, else the file, else the URL's own.
fn broker_url(
    values: &Values,
    inputs: &Inputs,
    errors: &mut Vec<ConfigError>,
    warnings: &mut Vec<String>,
) -> BrokerUrl {
    let text = values.text("broker.url");
    // The value was checked before. Only where it was refused does the default stand in for it.
    let mut url = BrokerUrl::parse(&text).unwrap_or_default();
    let credential = inputs
        .var("CREDENTIALS_DIRECTORY")
        .map(|dir| Path::new(dir).join("broker-password"));
    let credential = credential.filter(|path| path.exists());
    let (path, origin) = match (credential, values.path("broker.password_file")) {
        (Some(path), _) => (path, Origin::Env("CREDENTIALS_DIRECTORY".to_owned())),
        (None, Some(path)) => (path, values.origin("broker.password_file")),
        (None, None) => return url,
    };
    let mut refuse = |problem: String| {
        errors.push(ConfigError::Value {
            origin: origin.clone(),
            key: "broker.password_file".to_owned(),
            value: format!("{:?}", path.display().to_string()),
            problem,
        });
    };
    let password = match std::fs::read_to_string(&path) {
        Ok(text) => text.lines().next().unwrap_or_default().to_owned(),
        Err(error) => {
            refuse(format!(
                "failed to read: {error}; must be a file whose first line is the password"
            ));
            return url;
        }
    };
    if password.is_empty() {
        refuse("the first line is empty; must be a file whose first line is the password".to_owned());
    }
    if url.user().is_none() {
        refuse("there is a password and broker.url names no user; must be amqp://USER@HOST…".to_owned());
    }
    if url.has_password() && values.flat.contains_key("broker.url") {
        warnings.push(format!(
            "the password in broker.url is not used: {} wins over it",
            path.display()
        ));
    }
    url.set_password(&password);
    url
}

/// The path as written; in a file, relative to the folder of that file.
fn located(set: &Set) -> Option<PathBuf> {
    let Parsed::Text(text) = &set.value else {
        return None;
    };
    match &set.origin {
        _ if text.is_empty() => None,
        Origin::File(file) => Some(file.parent().unwrap_or(Path::new("")).join(text)),
        _ => Some(PathBuf::from(text)),
    }
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl Values {
    /// No value set: every key has its default.
    pub(super) fn none() -> Values {
        Values {
            flat: BTreeMap::new(),
            models: BTreeMap::new(),
            refused: Vec::new(),
        }
    }

    pub(super) fn limits(&self) -> Limits {
        let time = |name| Duration::from_millis(self.number(name));
        Limits {
            max_inflight: self.size("max_inflight"),
            max_queue: self.size("max_queue"),
            max_queue_bytes: self.size("max_queue_bytes"),
            liveness_max_stall: time("liveness_max_stall_ms"),
            disconnect_kill: time("disconnect_kill_ms"),
            watchdog_interval: time("watchdog_interval_ms"),
            drain: time("drain_ms"),
            heartbeat_interval: time("heartbeat_interval_ms"),
            heartbeat_timeout: time("heartbeat_timeout_ms"),
            slam_limit: time("slam_limit_ms"),
            canary_interval: time("canary_interval_ms"),
            max_attempts: u32::try_from(self.number("max_attempts")).unwrap_or(u32::MAX),
            max_inputs: self.size("max_inputs"),
            max_stream_inputs: self.size("max_stream_inputs"),
            batch_inputs: self.size("batch_inputs"),
            idle_unload: time("idle_unload_ms"),
        }
    }

    pub(super) fn number(&self, name: &str) -> u64 {
        match (self.flat.get(name).map(|set| &set.value), key(name).default) {
            (Some(Parsed::Int(number)), _) => *number,
            (None, Preset::Int(number)) => number,
            other => unreachable!("{name} is no number: {other:?}"),
        }
    }

    fn size(&self, name: &str) -> usize {
        to_usize(self.number(name))
    }

    fn flag(&self, name: &str) -> bool {
        match (self.flat.get(name).map(|set| &set.value), key(name).default) {
            (Some(Parsed::Bool(flag)), _) => *flag,
            (None, Preset::Bool(flag)) => flag,
            other => unreachable!("{name} is no truth value: {other:?}"),
        }
    }

    pub(super) fn text(&self, name: &str) -> String {
        match (self.flat.get(name).map(|set| &set.value), key(name).default) {
            (Some(Parsed::Text(text)), _) => text.clone(),
            (None, Preset::Text(text)) => text.to_owned(),
            (None, Preset::Unset) => String::new(),
            other => unreachable!("{name} is no text: {other:?}"),
        }
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.flat.get(name).and_then(located)
    }

    pub(super) fn origin(&self, name: &str) -> Origin {
        self.flat
            .get(name)
            .map_or(Origin::Default, |set| set.origin.clone())
    }
}

/// A key of the table; asking for another is a slip of the pen that the first test finds.
fn key(name: &str) -> &'static Key {
    keys::find(name).unwrap_or_else(|| unreachable!("{name} stands in no table"))
}
