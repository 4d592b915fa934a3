//! Where state, cache and run-time files lie, and where a model is.

use super::error::Origin;
use super::layers::Inputs;
use super::{Config, Directories};
use std::path::{Path, PathBuf};

/// A model's folder was not found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelDirError {
    /// The name is neither a configured model nor an alias of one.
    #[error("model {0} is not configured")]
    Unknown(String),
    /// `path` of its section is no folder with a model.
    #[error("models.\"{name}\".path = {}: no folder with a config.json or modules.json", path.display())]
    Path {
        /// The model.
        name: String,
        /// Its path.
        path: PathBuf,
    },
    /// None of the model folders has it.
    #[error("model {name} is installed neither below {}", searched.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(" nor below "))]
    NotInstalled {
        /// The model.
        name: String,
        /// The folders that were searched.
        searched: Vec<PathBuf>,
    },
}

/// The name of the unit of the service itself, without its ending, and of its folders.
const UNIT: &str = "embeddings";

/// The instance that a unit is: `gpu0` of `embeddings@gpu0`; none of the service itself, and of names that are neither.
pub fn instance_of(unit: &str) -> Option<&str> {
    let name = unit.strip_prefix(UNIT)?.strip_prefix('@')?;
    plain_name(name).then_some(name)
}

impl Inputs {
    /// The name of the unit without its ending, and of its folders.
    pub fn unit(&self) -> String {
        match &self.instance {
            Some(name) => format!("{UNIT}@{name}"),
            None => UNIT.to_owned(),
        }
    }

    /// Where systemd puts the unit's runtime directory.
    pub fn unit_runtime(&self) -> PathBuf {
        Path::new("/run").join(self.unit())
    }

    /// Where systemd puts the unit's state directory.
    pub fn unit_state(&self) -> PathBuf {
        match &self.instance {
            // Beside that of the service and not in it: systemd hands a unit's folder over with all that is inside.
            Some(_) => self.system_state.with_file_name(self.unit()),
            None => self.system_state.clone(),
        }
    }
}

impl Directories {
    /// Where the heartbeat monitor has its socket and its sentences.
    pub fn monitor(&self) -> PathBuf {
        monitor_beside(&self.runtime)
    }

    /// The socket that takes heartbeats.
    pub fn heartbeat_socket(&self) -> PathBuf {
        self.monitor().join("heartbeat.sock")
    }
}

/// The monitor's folder: beside the runtime directory of whom it watches, and the same place for every unit of the system.
pub fn monitor_beside(runtime: &Path) -> PathBuf {
    const NAME: &str = "embeddings-monitor";
    if runtime.starts_with("/run") && !runtime.starts_with("/run/user") {
        return Path::new("/run").join(NAME);
    }
    runtime.with_file_name(NAME)
}

impl Config {
    /// The configured name of a model, given its name or an alias.
    pub fn model_name<'a>(&'a self, name: &str) -> Option<&'a str> {
        let of_alias = || {
            self.models
                .iter()
                .find(|(_, model)| model.aliases.iter().any(|alias| alias == name))
        };
        self.models
            .get_key_value(name)
            .or_else(of_alias)
            .map(|(name, _)| name.as_str())
    }

    /// Folders whose children are installed models, in the order in which they are searched. Instances share those of
    /// the service itself.
    pub fn model_dirs(&self) -> Vec<PathBuf> {
        let (state, unit) = (&self.dirs.state, self.dirs.unit.as_str());
        let shares = instance_of(unit).is_some() && state.file_name().is_some_and(|name| name == unit);
        let common = shares.then(|| state.with_file_name(UNIT));
        let all = [Some(state.clone()), common, Some(self.dirs.share.clone())];
        all.into_iter().flatten().map(|dir| dir.join("models")).collect()
    }

    /// The folder of a configured model, given its name or an alias.
    pub fn model_dir(&self, name: &str) -> Result<PathBuf, ModelDirError> {
        let name = self
            .model_name(name)
            .ok_or_else(|| ModelDirError::Unknown(name.to_owned()))?;
        if let Some(path) = &self.models[name].path {
            let found = is_model(path);
            return found.then(|| path.clone()).ok_or_else(|| ModelDirError::Path {
                name: name.to_owned(),
                path: path.clone(),
            });
        }
        self.installed_dir(name)
    }

    /// The folder of an installed model, configured or not.
    pub fn installed_dir(&self, name: &str) -> Result<PathBuf, ModelDirError> {
        let searched = self.model_dirs();
        let candidate = |dir: &PathBuf| {
            plain_name(name)
                .then(|| dir.join(name))
                .filter(|dir| is_model(dir))
        };
        let found = searched.iter().find_map(candidate);
        found.ok_or_else(|| ModelDirError::NotInstalled {
            name: name.to_owned(),
            searched,
        })
    }
}

/// Whether a name can be a folder's name, so that it cannot lead anywhere else.
pub fn plain_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=100).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with(['.', '-'])
}

fn is_model(dir: &Path) -> bool {
    dir.join("config.json").is_file() || dir.join("modules.json").is_file()
}

/// The directories alone: they depend on no file, so even a process whose configuration is wrong knows
/// where its death belongs.
pub fn directories(inputs: &Inputs) -> Directories {
    choose(inputs).0
}

/// Chooses the directories: systemd's variable, else for root the service's own place where the package
/// is installed (so that `sudo embeddings model add` serves the service), else XDG's places.
pub(super) fn choose(inputs: &Inputs) -> (Directories, [(&'static str, Origin); 3]) {
    let unit = inputs.unit();
    let unit_state = inputs.unit_state();
    let system = inputs.uid == 0 && (inputs.system_state.is_dir() || unit_state.is_dir());
    let pick = |systemd: &str, own: &Path, xdg: &str, home: &str| -> (PathBuf, Origin) {
        // Several directories of one kind are separated by colons; the first is the main one.
        if let Some(first) = inputs
            .var(systemd)
            .and_then(|list| list.split(':').find(|dir| !dir.is_empty()))
        {
            return (PathBuf::from(first), Origin::Env(systemd.to_owned()));
        }
        if system {
            return (own.to_owned(), Origin::Default);
        }
        // XDG's specification has relative paths ignored.
        if let Some(base) = inputs.var(xdg).filter(|base| base.starts_with('/')) {
            return (Path::new(base).join(&unit), Origin::Env(xdg.to_owned()));
        }
        match inputs.var("HOME") {
            Some(base) if !home.is_empty() => (
                Path::new(base).join(home).join(&unit),
                Origin::Env("HOME".to_owned()),
            ),
            _ => (
                PathBuf::from(format!("/tmp/{unit}-{}", inputs.uid)),
                Origin::Default,
            ),
        }
    };
    let (runtime, runtime_from) = pick("RUNTIME_DIRECTORY", &inputs.unit_runtime(), "XDG_RUNTIME_DIR", "");
    let (state, state_from) = pick("STATE_DIRECTORY", &unit_state, "XDG_STATE_HOME", ".local/state");
    let (cache, cache_from) = pick(
        "CACHE_DIRECTORY",
        &Path::new("/var/cache").join(&unit),
        "XDG_CACHE_HOME",
        ".cache",
    );
    let origins = [
        ("runtime", runtime_from),
        ("state", state_from),
        ("cache", cache_from),
    ];
    (
        Directories {
            runtime,
            state,
            cache,
            share: inputs.share.clone(),
            unit,
        },
        origins,
    )
}
