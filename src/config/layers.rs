//! Reads what was written: files, environment, flags. Later layers win; every value remembers its layer.

use super::error::{ConfigError, Origin};
use super::keys::{self, Kind, Preset};
use super::url;
use figment::providers::{Format, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider, Source};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Everything that loading looks at, so that a test can make it all up.
#[derive(Clone)]
pub struct Inputs {
    /// `--config`: read this file instead of the ones below `etc`.
    pub file: Option<PathBuf>,
    /// `--set KEY=VALUE`, in order.
    pub set: Vec<String>,
    /// A snapshot of the environment.
    pub environment: BTreeMap<String, String>,
    /// Holds `embeddings.toml` and `conf.d`.
    pub etc: PathBuf,
    /// Holds `models` that packages install.
    pub share: PathBuf,
    /// User id of the process.
    pub uid: u32,
    /// The service's own state folder, which root uses without systemd where it exists.
    pub system_state: PathBuf,
    /// `--instance`: the service is `embeddings@NAME.service`, with files of its own; none is `embeddings.service`.
    pub instance: Option<String>,
}

impl std::fmt::Debug for Inputs {
    /// Leaves out what the environment and the flags say: both may hold the broker's password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inputs")
            .field("file", &self.file)
            .field("etc", &self.etc)
            .finish_non_exhaustive()
    }
}

impl Inputs {
    /// What this process sees, with the command line's `--config` and `--set`.
    pub fn from_process(file: Option<PathBuf>, set: Vec<String>) -> Inputs {
        use std::os::unix::fs::MetadataExt;
        let text = |os: std::ffi::OsString| os.to_string_lossy().into_owned();
        Inputs {
            file,
            set,
            environment: std::env::vars_os()
                .map(|(name, value)| (text(name), text(value)))
                .collect(),
            etc: PathBuf::from("/etc/embeddings"),
            share: PathBuf::from("/usr/share/embeddings"),
            // The owner of /proc/self is the effective user; where there is no /proc, assume an ordinary one.
            uid: std::fs::metadata("/proc/self").map_or(u32::MAX, |of| of.uid()),
            system_state: PathBuf::from("/var/lib/embeddings"),
            instance: None,
        }
    }

    /// The same for an instance, or for the service itself if none is named.
    pub fn of_instance(mut self, name: Option<String>) -> Inputs {
        self.instance = name;
        self
    }

    /// Holds the files that are read: `embeddings.toml` and `conf.d`.
    fn folder(&self) -> PathBuf {
        match &self.instance {
            Some(name) => self.etc.join("instances").join(name),
            None => self.etc.clone(),
        }
    }

    /// The variable, unless it is unset or empty.
    pub(super) fn var(&self, name: &str) -> Option<&str> {
        self.environment
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }
}

/// All layers merged; a value's tag leads back to its layer.
pub(super) struct Merged {
    pub dict: Dict,
    figment: Figment,
}

impl Merged {
    /// Who set this value.
    pub fn origin(&self, value: &Value) -> Origin {
        match self
            .figment
            .get_metadata(value.tag())
            .and_then(|metadata| metadata.source.clone())
        {
            Some(Source::File(path)) => Origin::File(path),
            Some(Source::Custom(name)) if name.is_empty() => Origin::Flag,
            Some(Source::Custom(name)) => Origin::Env(name),
            _ => Origin::Default,
        }
    }
}

/// Reads all layers; what cannot be read goes to `errors`, and the rest is merged all the same.
pub(super) fn read(inputs: &Inputs, errors: &mut Vec<ConfigError>) -> Merged {
    let mut figment = Figment::new();
    let mut model_names = Vec::new();
    for (path, must_exist) in files(inputs, errors, &mut Vec::new()) {
        if let Some(dict) = read_file(&path, must_exist, errors) {
            if let Some(Value::Dict(_, models)) = dict.get("models") {
                model_names.extend(models.keys().cloned());
            }
            figment = figment.merge(Layer {
                source: Source::File(path),
                dict,
            });
        }
    }
    // The bare name first, so that the full EMBED_ name wins over it.
    if let Some(value) = inputs.var("HEARTBEAT_TIMEOUT") {
        let dict = leaf(&["heartbeat_timeout_ms".to_owned()], value);
        figment = figment.merge(Layer {
            source: Source::Custom("HEARTBEAT_TIMEOUT".to_owned()),
            dict,
        });
    }
    for (name, value) in &inputs.environment {
        let Some(rest) = name.strip_prefix("EMBED_").filter(|rest| !rest.is_empty()) else {
            continue;
        };
        let path = variable_path(rest, &model_names);
        figment = figment.merge(Layer {
            source: Source::Custom(name.clone()),
            dict: leaf(&path, value),
        });
    }
    for flag in &inputs.set {
        match flag
            .split_once('=')
            .map(|(key, value)| (flag_path(key.trim()), value))
        {
            Some((Some(path), value)) => {
                figment = figment.merge(Layer {
                    source: Source::Custom(String::new()),
                    dict: leaf(&path, value),
                });
            }
            _ => {
                let written = url::mask(flag.split('=').next().unwrap_or_default());
                errors.push(ConfigError::Flag { written });
            }
        }
    }
    let dict = figment
        .data()
        .ok()
        .and_then(|mut profiles| profiles.remove(&Profile::Default))
        .unwrap_or_default();
    Merged { dict, figment }
}

/// Which files are read, and which lie beside them.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// Holds the files that are read without `--config`.
    pub folder: PathBuf,
    /// Read in this order; later ones win.
    pub files: Vec<PathBuf>,
    /// In `conf.d`, and not read, as their names do not end in `.toml`; those of editors and of dpkg are left out.
    pub ignored: Vec<PathBuf>,
}

/// Which files loading reads, those that are there.
pub fn reading(inputs: &Inputs) -> Reading {
    let mut ignored = Vec::new();
    let files = files(inputs, &mut Vec::new(), &mut ignored);
    let files = files.into_iter().map(|(path, _)| path);
    Reading {
        folder: inputs.folder(),
        files: files.filter(|path| path.exists()).collect(),
        ignored,
    }
}

/// The files to read, in order, and whether each must exist.
fn files(inputs: &Inputs, errors: &mut Vec<ConfigError>, ignored: &mut Vec<PathBuf>) -> Vec<(PathBuf, bool)> {
    if let Some(file) = &inputs.file {
        return vec![(file.clone(), true)];
    }
    // The defaults would make a second service beside the first: an instance that nobody has configured is a slip.
    let must_exist = inputs.instance.is_some();
    let mut files = vec![(inputs.folder().join("embeddings.toml"), must_exist)];
    let folder = inputs.folder().join("conf.d");
    match std::fs::read_dir(&folder).and_then(Iterator::collect::<std::io::Result<Vec<_>>>) {
        Ok(entries) => {
            let mut parts: Vec<PathBuf> = entries.iter().map(std::fs::DirEntry::path).collect();
            parts.sort();
            for path in parts {
                let name = path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                if name.starts_with('.') {
                    // An editor's or dpkg's, not an operator's.
                } else if name.ends_with(".toml") {
                    files.push((path, true));
                } else if !is_leftover(&name) {
                    ignored.push(path);
                }
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => errors.push(ConfigError::Unreadable {
            path: folder,
            problem: error.to_string(),
        }),
    }
    files
}

/// Files that editors, dpkg and people who put something aside leave; nobody expects them to be read.
fn is_leftover(name: &str) -> bool {
    const ENDS: [&str; 9] = [
        "~",
        ".bak",
        ".orig",
        ".old",
        ".save",
        ".rej",
        ".swp",
        ".disabled",
        ".off",
    ];
    name == "README" || name.contains(".dpkg-") || ENDS.iter().any(|end| name.ends_with(end))
}

fn read_file(path: &Path, must_exist: bool, errors: &mut Vec<ConfigError>) -> Option<Dict> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must_exist => return None,
        Err(error) => {
            errors.push(ConfigError::Unreadable {
                path: path.to_owned(),
                problem: error.to_string(),
            });
            return None;
        }
    };
    match Toml::from_str::<Dict>(&text) {
        Ok(dict) => Some(dict),
        Err(error) => {
            // Only the message: the error's own display quotes the line, which may hold a password.
            let before = text
                .get(..error.span().map_or(0, |span| span.start))
                .unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            let mut problem = error.message().lines().next().unwrap_or_default().to_owned();
            if let Some((key, value, range)) = huge_number(&text, line) {
                problem = format!("{key} = {value}: {problem}; must be {range}");
            }
            errors.push(ConfigError::Syntax {
                path: path.to_owned(),
                line,
                problem,
            });
            None
        }
    }
}

/// The key, the value and the range of a number on this line, from 1: one that is too large is no TOML at all. Only of keys that
/// hold numbers, and only digits: nothing else of a line may be shown.
fn huge_number(text: &str, line: usize) -> Option<(String, &str, String)> {
    let lines: Vec<&str> = text.lines().take(line).map(str::trim).collect();
    let (written, value) = lines.last()?.split_once('=')?;
    let (written, value) = (written.trim(), value.split('#').next().unwrap_or_default().trim());
    if !value.bytes().all(|b| b.is_ascii_digit() || b"_+-".contains(&b)) {
        return None;
    }
    let header = lines.iter().rfind(|line| line.starts_with('['));
    let table = header.map(|header| {
        header
            .trim_start_matches('[')
            .split(']')
            .next()
            .unwrap_or_default()
    });
    let full = table.map_or_else(
        || written.to_owned(),
        |table| format!("{}.{written}", table.trim()),
    );
    let path = flag_path(&full.replace('\'', "\""))?;
    let (key, full) = match path.as_slice() {
        [models, name, key] if models == "models" => {
            (keys::find_model(key)?, format!("models.{name:?}.{key}"))
        }
        path => (keys::find(&path.join("."))?, path.join(".")),
    };
    matches!(key.kind, Kind::Int { .. }).then(|| (full, value, key.kind.range()))
}

/// `BROKER__URL` to `broker.url`. A model's name is found among those in the files whatever its case and
/// punctuation, since a variable's name can hold neither.
fn variable_path(rest: &str, model_names: &[String]) -> Vec<String> {
    let mut path: Vec<String> = rest.split("__").map(str::to_lowercase).collect();
    if path.len() == 3 && path[0] == "models" {
        let preset = keys::find("default_model").and_then(|key| match key.default {
            Preset::Text(name) => Some(name),
            _ => None,
        });
        let plain = |name: &str| {
            name.to_lowercase()
                .replace(|c: char| !c.is_ascii_alphanumeric(), "_")
        };
        let names = model_names.iter().map(String::as_str).chain(preset);
        if let Some(name) = names.into_iter().find(|name| plain(name) == plain(&path[1])) {
            path[1] = name.to_owned();
        }
    }
    path
}

/// `models."a.b".path` to its three parts; none if a quote stays open or a part is empty.
fn flag_path(key: &str) -> Option<Vec<String>> {
    let mut path = vec![String::new()];
    let mut quoted = false;
    for c in key.chars() {
        match c {
            '"' => quoted = !quoted,
            '.' if !quoted => path.push(String::new()),
            c => path.last_mut()?.push(c),
        }
    }
    (!quoted && path.iter().all(|part| !part.is_empty())).then_some(path)
}

/// A nested dictionary with one value, read as its key's kind demands. Text that does not fit stays
/// text, so that validation names it.
fn leaf(path: &[String], text: &str) -> Dict {
    let key = match path {
        [models, _, key] if models == "models" => keys::find_model(key),
        _ => keys::find(&path.join(".")),
    };
    let text = text.trim();
    let mut value = match key.map(|key| key.kind) {
        Some(Kind::Int { .. }) => text
            .parse::<i128>()
            .map_or_else(|_| Value::from(text), Value::from),
        Some(Kind::Bool) => match text.to_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => Value::from(true),
            "false" | "no" | "off" | "0" => Value::from(false),
            _ => Value::from(text),
        },
        Some(Kind::List(_)) => {
            let inner = text
                .strip_prefix('[')
                .and_then(|rest| rest.strip_suffix(']'))
                .unwrap_or(text);
            let items = inner
                .split(',')
                .map(|item| item.trim().trim_matches('"'))
                .filter(|item| !item.is_empty());
            Value::from(items.map(Value::from).collect::<Vec<_>>())
        }
        Some(Kind::Text(_)) => {
            let inner = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
            Value::from(inner.unwrap_or(text))
        }
        None => Value::from(text),
    };
    for part in path.iter().skip(1).rev() {
        value = Value::from(Dict::from([(part.clone(), value)]));
    }
    Dict::from([(path[0].clone(), value)])
}

/// One layer on its way into figment.
struct Layer {
    source: Source,
    dict: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::from("layer", self.source.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.dict.clone())]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_flags_and_variables_become_paths() {
        let path = |key| flag_path(key).map(|path| path.join("|"));
        assert_eq!(path("broker.url").as_deref(), Some("broker|url"));
        assert_eq!(
            path("models.\"bge-small-en-v1.5\".path").as_deref(),
            Some("models|bge-small-en-v1.5|path")
        );
        assert_eq!(path("models..path"), None);
        assert_eq!(path("models.\"x.path"), None);
        let known = ["bge-small-en-v1.5".to_owned()];
        assert_eq!(variable_path("BROKER__URL", &[]), ["broker", "url"]);
        assert_eq!(
            variable_path("MODELS__BGE_SMALL_EN_V1_5__DEVICE", &known)[1],
            known[0]
        );
        assert_eq!(
            variable_path("MODELS__ALL_MINILM_L6_V2__DEVICE", &[])[1],
            "all-MiniLM-L6-v2"
        );
    }
}
