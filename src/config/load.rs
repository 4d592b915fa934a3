//! From layers to a valid [`Config`]: every value checked, then built, then checked against the others.

use super::error::{ConfigError, ConfigErrors, Origin};
use super::keys::{self, KEYS, Key, Kind, MODEL_KEYS, Preset};
use super::layers::{self, Inputs, Merged};
use super::rules::{self, Parsed, Set};
use super::url;
use super::{Config, build, dirs};
use figment::value::{Dict, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The outcome of loading.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// All settings, validated.
    pub config: Config,
    /// Combinations that are allowed and risky, one sentence each.
    pub warnings: Vec<String>,
    /// Every key, its value without secrets, and where it came from, in the table's order.
    pub sources: Vec<Setting>,
}

/// One key as `embeddings config` shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// Full name.
    pub key: String,
    /// Value, without secrets; null is unset.
    pub value: serde_json::Value,
    /// Unit of a number, or nothing.
    pub unit: &'static str,
    /// Who set it.
    pub origin: Origin,
}

/// Values that were set and fit, by full key and by model and key.
pub(super) struct Values {
    pub flat: BTreeMap<&'static str, Set>,
    pub models: BTreeMap<String, BTreeMap<&'static str, Set>>,
    /// Keys whose value was refused; checks of combinations leave them alone.
    pub refused: Vec<String>,
}

/// Everything that loading finds, also where something is wrong.
#[derive(Debug, Clone)]
pub struct Examined {
    /// All settings. Where a value was refused its default stands in for it.
    pub loaded: Loaded,
    /// Everything that is wrong; the service starts only if nothing is.
    pub errors: Vec<ConfigError>,
}

/// Loads the configuration, or lists everything that is wrong with it.
pub fn load(inputs: &Inputs) -> Result<Loaded, ConfigErrors> {
    let Examined { loaded, errors } = examine(inputs);
    match errors.is_empty() {
        true => Ok(loaded),
        false => Err(ConfigErrors(errors)),
    }
}

/// Loads what can be loaded, for whoever wants to look on behind the first error.
pub fn examine(inputs: &Inputs) -> Examined {
    let mut errors = Vec::new();
    let merged = layers::read(inputs, &mut errors);
    let mut values = Values {
        flat: BTreeMap::new(),
        models: BTreeMap::new(),
        refused: Vec::new(),
    };
    walk(&merged, &merged.dict, "", &mut values, &mut errors);
    let (directories, directories_from) = dirs::choose(inputs);
    let mut warnings = Vec::new();
    let config = build::build(&values, inputs, directories, &mut errors, &mut warnings);
    let sources = settings(&values, &config, &directories_from);
    Examined {
        loaded: Loaded {
            config,
            warnings,
            sources,
        },
        errors,
    }
}

/// Sorts every value into `values` or into `errors`.
fn walk(merged: &Merged, dict: &Dict, above: &str, values: &mut Values, errors: &mut Vec<ConfigError>) {
    for (name, value) in dict {
        let key = if above.is_empty() {
            name.clone()
        } else {
            format!("{above}.{name}")
        };
        if let Some(known) = keys::find(&key) {
            match accept(merged, known, &key, value, errors) {
                Some(set) => drop(values.flat.insert(known.name, set)),
                None => values.refused.push(key),
            }
        } else if key == "models"
            || KEYS
                .iter()
                .any(|known| known.name.starts_with(&format!("{key}.")))
        {
            match value {
                Value::Dict(_, models) if key == "models" => walk_models(merged, models, values, errors),
                Value::Dict(_, inner) => walk(merged, inner, &key, values, errors),
                other => errors.push(wrong(
                    merged,
                    None,
                    &key,
                    other,
                    format!("must be a table [{key}]"),
                )),
            }
        } else {
            errors.push(match (value, table_near(&key)) {
                (Value::Dict(..), Some(near)) => ConfigError::Unknown {
                    origin: origin_of(merged, value),
                    hint: format!("; did you mean [{near}]?"),
                    key,
                    nearest: None,
                },
                _ => unknown(merged, &key, value, keys::nearest(&key, KEYS)),
            });
        }
    }
}

/// The table that was probably meant by one that does not exist.
pub fn table_near(wrong: &str) -> Option<String> {
    let tables = KEYS.iter().filter_map(|key| key.name.rsplit_once('.'));
    let mut names: Vec<String> = tables.map(|(table, _)| table.to_owned()).collect();
    names.push("models".to_owned());
    keys::similar(wrong, names)
}

fn walk_models(merged: &Merged, models: &Dict, values: &mut Values, errors: &mut Vec<ConfigError>) {
    for (name, value) in models {
        let above = format!("models.{name:?}");
        let Value::Dict(_, section) = value else {
            errors.push(wrong(
                merged,
                None,
                &above,
                value,
                format!("must be a table [{above}]"),
            ));
            continue;
        };
        if let Err(problem) = rules::follow(keys::Rule::ModelName, name) {
            errors.push(wrong(merged, None, &above, value, format!("the name {problem}")));
            continue;
        }
        let mut settings = BTreeMap::new();
        for (part, value) in section {
            let key = format!("{above}.{part}");
            match keys::find_model(part) {
                None => errors.push(unknown(merged, &key, value, keys::nearest(part, MODEL_KEYS))),
                Some(known) => match accept(merged, known, &key, value, errors) {
                    Some(set) => drop(settings.insert(known.name, set)),
                    None => values.refused.push(key),
                },
            }
        }
        values.models.insert(name.clone(), settings);
    }
}

fn accept(
    merged: &Merged,
    known: &Key,
    key: &str,
    value: &Value,
    errors: &mut Vec<ConfigError>,
) -> Option<Set> {
    match rules::check(known.kind, value) {
        Ok(parsed) => Some(Set {
            value: parsed,
            origin: merged.origin(value),
        }),
        Err(problem) => {
            errors.push(wrong(merged, Some(known.kind), key, value, problem));
            None
        }
    }
}

fn wrong(merged: &Merged, kind: Option<Kind>, key: &str, value: &Value, problem: String) -> ConfigError {
    // A section that is no table has no kind, and its text may be anything: show only what it is.
    let value_shown = match (kind, value) {
        (None, Value::String(_, _)) => "a string".to_owned(),
        (kind, value) => rules::shown(kind, value),
    };
    ConfigError::Value {
        origin: origin_of(merged, value),
        key: key.to_owned(),
        value: value_shown,
        problem,
    }
}

fn unknown(merged: &Merged, key: &str, value: &Value, nearest: Option<&'static str>) -> ConfigError {
    let hint = match (key, nearest) {
        (key, _) if key.starts_with("broker.pass") => {
            "; a password belongs into broker.password_file or the systemd credential broker-password"
                .to_owned()
        }
        (_, Some(nearest)) => format!("; did you mean {nearest}?"),
        (_, None) => "; `embeddings config` lists all keys".to_owned(),
    };
    // Somebody may have put the URL where the key belongs.
    let key = if key.contains('@') || key.contains("://") {
        url::mask(key)
    } else {
        key.to_owned()
    };
    ConfigError::Unknown {
        origin: origin_of(merged, value),
        key,
        hint,
        nearest,
    }
}

/// A table's own tag may be that of another layer: ask the first value inside.
fn origin_of(merged: &Merged, value: &Value) -> Origin {
    match value {
        Value::Dict(_, inner) => inner
            .values()
            .next()
            .map_or(merged.origin(value), |first| origin_of(merged, first)),
        value => merged.origin(value),
    }
}

/// Every key with its value and origin.
fn settings(values: &Values, config: &Config, directories_from: &[(&'static str, Origin)]) -> Vec<Setting> {
    let mut all = Vec::new();
    for key in KEYS {
        all.push(setting(key, key.name.to_owned(), values.flat.get(key.name)));
    }
    let empty = BTreeMap::new();
    for name in config.models.keys() {
        let section = values.models.get(name).unwrap_or(&empty);
        for key in MODEL_KEYS {
            all.push(setting(
                key,
                format!("models.{name:?}.{}", key.name),
                section.get(key.name),
            ));
        }
    }
    let of = |name| match name {
        "runtime" => &config.dirs.runtime,
        "state" => &config.dirs.state,
        _ => &config.dirs.cache,
    };
    for (name, origin) in directories_from {
        let value = serde_json::Value::from(PathBuf::from(of(name)).to_string_lossy());
        all.push(Setting {
            key: format!("directory.{name}"),
            value,
            unit: "",
            origin: origin.clone(),
        });
    }
    all
}

fn setting(key: &Key, full: String, set: Option<&Set>) -> Setting {
    use serde_json::Value as Json;
    let unit = match key.kind {
        Kind::Int { unit, .. } => unit,
        _ => "",
    };
    let value = match (set.map(|set| &set.value), key.default) {
        (Some(Parsed::Int(number)), _) => Json::from(*number),
        (Some(Parsed::Bool(flag)), _) => Json::from(*flag),
        (Some(Parsed::List(list)), _) => Json::from(list.clone()),
        (Some(Parsed::Text(text)), _) if key.kind == Kind::Text(keys::Rule::BrokerUrl) => {
            Json::from(url::mask(text))
        }
        (Some(Parsed::Text(text)), _) if text.is_empty() && key.kind == Kind::Text(keys::Rule::Path) => {
            Json::Null
        }
        (Some(Parsed::Text(text)), _) => Json::from(text.clone()),
        (None, Preset::Int(number)) => Json::from(number),
        (None, Preset::Bool(flag)) => Json::from(flag),
        (None, Preset::Text(text)) if key.kind == Kind::Text(keys::Rule::BrokerUrl) => {
            Json::from(url::mask(text))
        }
        (None, Preset::Text(text)) => Json::from(text),
        (None, Preset::Empty) => Json::Array(Vec::new()),
        (None, Preset::Unset) => Json::Null,
    };
    Setting {
        key: full,
        value,
        unit,
        origin: set.map_or(Origin::Default, |set| set.origin.clone()),
    }
}
