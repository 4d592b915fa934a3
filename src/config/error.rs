//! Where a value came from, and what is wrong with it.

use std::fmt;
use std::path::PathBuf;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Nothing set it.
    Default,
    /// A file.
    File(PathBuf),
    /// An environment variable.
    Env(String),
    /// `--set` or `--config` on the command line.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => write!(f, "default"),
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Env(name) => write!(f, "environment {name}"),
            Origin::Flag => write!(f, "flag --set"),
        }
    }
}

/// One thing that is wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A file that was asked for, or is there, cannot be read.
    #[error("{}: failed to read: {problem}", path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        problem: String,
    },
    /// A file is not TOML.
    #[error("{}:{line}: not valid TOML: {problem}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What the parser said; never the text of the line, which may hold a password.
        problem: String,
    },
    /// A key that does not exist.
    #[error("{origin}: unknown key {key}{hint}")]
    Unknown {
        /// Who set it.
        origin: Origin,
        /// The key.
        key: String,
        /// What was probably meant, with a leading separator, or nothing.
        hint: String,
        /// The key that was probably meant.
        nearest: Option<&'static str>,
    },
    /// A value of the wrong type or out of range, or a secret that cannot be read.
    #[error("{origin}: {key} = {value}: {problem}")]
    Value {
        /// Who set it.
        origin: Origin,
        /// The key.
        key: String,
        /// The value as written, without secrets.
        value: String,
        /// What is wrong and what is allowed.
        problem: String,
    },
    /// A value that is allowed by itself, and not beside the others.
    #[error("{origin}: {key} = {value}: {problem}")]
    Combination {
        /// Who set it.
        origin: Origin,
        /// The key.
        key: String,
        /// The value as written, without secrets.
        value: String,
        /// What is wrong and what is allowed.
        problem: String,
    },
    /// A flag that is not `KEY=VALUE`.
    #[error("flag --set {written}: must be KEY=VALUE, such as max_queue=512")]
    Flag {
        /// The flag up to the first `=`.
        written: String,
    },
}

/// Everything that is wrong with the configuration, never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    /// One per line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}
