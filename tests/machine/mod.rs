//! A made-up machine for configuration: folders below a temporary one, and an environment of its own.

use embeddings::config::{self, ConfigErrors, Inputs, Loaded};
use std::collections::BTreeMap;
use std::path::PathBuf;
use tempfile::TempDir;

/// The machine; each method returns it, so that a test reads as one sentence.
pub struct Machine {
    root: TempDir,
    /// What loading will look at.
    pub inputs: Inputs,
}

impl Machine {
    /// Nothing installed, an ordinary user, a home.
    pub fn new() -> Machine {
        let root = tempfile::tempdir().unwrap();
        let inputs = Inputs {
            file: None,
            set: Vec::new(),
            environment: BTreeMap::from([("HOME".to_owned(), "/home/someone".to_owned())]),
            etc: root.path().join("etc"),
            share: root.path().join("share"),
            uid: 1000,
            system_state: root.path().join("absent"),
            instance: None,
        };
        Machine { root, inputs }
    }

    /// Writes a file below the root.
    pub fn write(self, path: &str, text: &str) -> Machine {
        let path = self.root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    /// Writes the main file.
    pub fn file(self, text: &str) -> Machine {
        self.write("etc/embeddings.toml", text)
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Machine {
        self.inputs.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Adds a `--set`.
    pub fn set(mut self, flag: &str) -> Machine {
        self.inputs.set.push(flag.to_owned());
        self
    }

    /// A path below the root.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    /// Loads.
    pub fn load(&self) -> Result<Loaded, ConfigErrors> {
        config::load(&self.inputs)
    }

    /// Loads what must be right.
    #[track_caller]
    pub fn good(&self) -> Loaded {
        self.load().unwrap_or_else(|errors| panic!("{errors}"))
    }

    /// Loads what must be wrong, and returns the message.
    #[track_caller]
    pub fn bad(&self) -> String {
        self.load()
            .map(|loaded| format!("{loaded:?}"))
            .unwrap_err()
            .to_string()
    }
}
