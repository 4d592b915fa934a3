//! Combinations of values: impossible ones are errors, risky ones are warnings.

use super::dirs::plain_name;
use super::error::{ConfigError, Origin};
use super::layers::Inputs;
use super::load::Values;
use super::url::BrokerUrl;
use super::{Config, Device, MAX_QUEUE_MAX, Precision};
use std::time::Duration;

/// Judges all combinations. Those with a refused value are left alone: its default stands in for it.
pub(super) fn judge(
    values: &Values,
    inputs: &Inputs,
    config: &Config,
    url: &BrokerUrl,
    errors: &mut Vec<ConfigError>,
    warnings: &mut Vec<String>,
) {
    let sound = |keys: &[&str]| {
        !keys
            .iter()
            .any(|key| values.refused.iter().any(|refused| refused == key))
    };
    // The error names the key that somebody set, and of several the last.
    let blame = |keys: &[&str]| {
        let set = keys
            .iter()
            .find(|key| values.origin(key) != Origin::Default)
            .or(keys.first());
        let key = set.copied().unwrap_or_default().to_owned();
        (values.origin(&key), key)
    };
    let mut refuse = |keys: &[&str], value: String, problem: String| {
        if sound(keys) {
            let (origin, key) = blame(keys);
            errors.push(ConfigError::Combination {
                origin,
                key,
                value,
                problem,
            });
        }
    };

    let http = &config.http;
    if let Some(listen) = http.listen.filter(|listen| !listen.ip().is_loopback())
        && http.token_file.is_none()
    {
        refuse(
            &["http.listen", "http.token_file"],
            format!("{:?}", listen.to_string()),
            "reaches beyond loopback and needs http.token_file; must be 127.0.0.1:PORT or [::1]:PORT without it".to_owned(),
        );
    }
    if let Some(ca_file) = config.broker.ca_file.as_ref().filter(|_| !url.tls) {
        let value = format!("{:?}", ca_file.display().to_string());
        refuse(
            &["broker.ca_file", "broker.url"],
            value,
            "broker.url is amqp:// without TLS; must be amqps://".to_owned(),
        );
    }
    let (timeout, interval) = (
        values.number("heartbeat_timeout_ms"),
        values.number("heartbeat_interval_ms"),
    );
    if timeout <= interval {
        let keys = ["heartbeat_timeout_ms", "heartbeat_interval_ms"];
        let (_, blamed) = blame(&keys);
        let (value, other) = if blamed == keys[0] {
            (timeout, keys[1])
        } else {
            (interval, keys[0])
        };
        refuse(
            &keys,
            value.to_string(),
            format!(
                "heartbeat_timeout_ms ({timeout}) must be above heartbeat_interval_ms ({interval}), or every process is killed; change this or {other}"
            ),
        );
    }
    models(values, config, errors);
    risks(values, inputs, config, warnings);
}

fn models(values: &Values, config: &Config, errors: &mut Vec<ConfigError>) {
    let mut taken: Vec<(&str, &str)> = config
        .models
        .keys()
        .map(|name| (name.as_str(), name.as_str()))
        .collect();
    for (name, model) in &config.models {
        let origin = |key: &str| {
            let set = values.models.get(name).and_then(|section| section.get(key));
            set.map_or(Origin::Default, |set| set.origin.clone())
        };
        let mut refuse = |key: &str, value: String, problem: String| {
            let (origin, key) = (origin(key), format!("models.{name:?}.{key}"));
            errors.push(ConfigError::Combination {
                origin,
                key,
                value,
                problem,
            });
        };
        for alias in &model.aliases {
            match taken.iter().find(|(taken, _)| taken == alias) {
                Some((_, owner)) if *owner == alias => {
                    refuse(
                        "aliases",
                        format!("{alias:?}"),
                        "is the name of a model; must be unique".to_owned(),
                    );
                }
                Some((_, owner)) => {
                    refuse(
                        "aliases",
                        format!("{alias:?}"),
                        format!("is an alias of {owner} too; must be unique"),
                    );
                }
                None => taken.push((alias, name)),
            }
        }
        if let Some(why) = super::missing(model.device) {
            let problem = format!("{why}; must be auto or cpu");
            refuse("device", format!("{:?}", model.device.to_string()), problem);
        } else if matches!(model.device, Device::Cuda(_) | Device::Metal)
            && model.precision == Precision::Int8
        {
            let problem = format!("{} has no int8; must be auto, f32, bf16 or f16", model.device);
            refuse("precision", format!("{:?}", model.precision.to_string()), problem);
        }
        if model.device == Device::Cpu && model.precision == Precision::F16 {
            let problem = "f16 needs a GPU and device is cpu; must be auto, f32, bf16 or int8".to_owned();
            refuse("precision", format!("{:?}", model.precision.to_string()), problem);
        }
        if model.path.is_none() && !plain_name(name) {
            let problem = "a model whose name cannot be a folder's name must have a path".to_owned();
            refuse("path", "unset".to_owned(), problem);
        }
    }
}

fn risks(values: &Values, inputs: &Inputs, config: &Config, warnings: &mut Vec<String>) {
    let limits = &config.limits;
    let ms = |time: Duration| time.as_millis();
    let mut warn = |risky: bool, text: String| {
        if risky {
            warnings.push(text);
        }
    };
    let (stall, canary) = (limits.liveness_max_stall, limits.canary_interval);
    warn(
        limits.heartbeat_timeout < stall,
        format!(
            "heartbeat_timeout_ms = {} is below liveness_max_stall_ms = {}: the monitor kills before the service can say why",
            ms(limits.heartbeat_timeout),
            ms(stall)
        ),
    );
    warn(
        canary > stall,
        format!(
            "canary_interval_ms = {} is above liveness_max_stall_ms = {}: an idle service is proven more rarely than it may stall",
            ms(canary),
            ms(stall)
        ),
    );
    warn(
        limits.watchdog_interval > stall.min(limits.disconnect_kill),
        format!(
            "watchdog_interval_ms = {} is above liveness_max_stall_ms or disconnect_kill_ms: a kill comes that much later",
            ms(limits.watchdog_interval)
        ),
    );
    warn(
        limits.max_queue > MAX_QUEUE_MAX,
        format!(
            "max_queue = {} is taken as {MAX_QUEUE_MAX}, which is as many as RabbitMQ hands out to one worker",
            limits.max_queue
        ),
    );
    warn(
        limits.max_inflight > limits.max_queue,
        format!(
            "max_inflight = {} is above max_queue = {}: that many jobs are never admitted",
            limits.max_inflight, limits.max_queue
        ),
    );
    for (name, model) in &config.models {
        for (key, own, whole) in [
            ("max_queue", model.max_queue, limits.max_queue),
            ("max_inflight", model.max_inflight, limits.max_inflight),
        ] {
            let own = own.unwrap_or(0);
            warn(
                own > whole,
                format!(
                    "models.{name:?}.{key} = {own} is above {key} = {whole} of all models together: it is never reached"
                ),
            );
        }
    }
    warn(
        limits.max_queue_bytes < config.broker.max_message_bytes,
        format!(
            "max_queue_bytes = {} is below broker.max_message_bytes = {}: a job as large as the broker allows is always refused",
            limits.max_queue_bytes, config.broker.max_message_bytes
        ),
    );
    let idle = limits.idle_unload;
    warn(
        !idle.is_zero() && idle < Duration::from_secs(10),
        format!(
            "idle_unload_ms = {} is short: a model is loaded again for almost every job",
            ms(idle)
        ),
    );
    warn(
        config.http.listen.is_none() && config.http.token_file.is_some(),
        "http.token_file is set and http.listen is off: nothing reads it".to_owned(),
    );
    warn(
        config.traces.otlp_endpoint.is_none() && config.traces.sample_percent > 0,
        "traces.sample_percent is set and traces.otlp_endpoint is off: no span is told".to_owned(),
    );
    if values.flat.contains_key("broker.password_file")
        && inputs
            .var("CREDENTIALS_DIRECTORY")
            .is_some_and(|dir| std::path::Path::new(dir).join("broker-password").exists())
    {
        warn(
            true,
            "broker.password_file is not used: the systemd credential broker-password wins over it"
                .to_owned(),
        );
    }
    // Each ring must have the time to act and to say why before the next one does: the service itself, then systemd, then
    // the monitor. systemd's is known only when it started us.
    let Some(ring) = inputs
        .var("WATCHDOG_USEC")
        .and_then(|text| text.parse().ok())
        .map(Duration::from_micros)
    else {
        return;
    };
    if ring.is_zero() {
        return;
    }
    warn(
        canary > ring / 2,
        format!(
            "canary_interval_ms = {} is over half of systemd's WatchdogSec ({} ms): an idle service may be killed",
            ms(canary),
            ms(ring)
        ),
    );
    // The thread that kills looks once in its interval only.
    let own = stall + limits.watchdog_interval;
    warn(
        own >= ring,
        format!(
            "liveness_max_stall_ms + watchdog_interval_ms = {} is not below systemd's WatchdogSec ({} ms): systemd kills before the service can say why",
            ms(own),
            ms(ring)
        ),
    );
    warn(
        limits.disconnect_kill >= ring,
        format!(
            "disconnect_kill_ms = {} is not below systemd's WatchdogSec ({} ms): systemd kills before the service can say why",
            ms(limits.disconnect_kill),
            ms(ring)
        ),
    );
    warn(
        limits.heartbeat_timeout <= ring,
        format!(
            "heartbeat_timeout_ms = {} is not above systemd's WatchdogSec ({} ms): the monitor kills before systemd does",
            ms(limits.heartbeat_timeout),
            ms(ring)
        ),
    );
}
