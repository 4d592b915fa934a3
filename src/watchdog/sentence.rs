//! The monitor's sentence on a worker, as a file: the worker reads from it that it is not to exit as if it had
//! been asked to stop, and `embeddings postmortem` why it had to die.

use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;

/// `reason` of every sentence.
pub const REASON: &str = "heartbeat_timeout";

/// Why the monitor ended a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sentence {
    /// The process.
    pub pid: u32,
    /// [`REASON`]
    pub reason: String,
    /// Since its last heartbeat.
    pub silent_ms: u64,
    /// In words.
    pub detail: String,
}

impl Sentence {
    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// Whatever the system says.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, serde_json::to_vec(self)?)?;
        std::fs::rename(&fresh, path)
    }

    /// Reads it; `None` if there is none that can be read.
    pub fn read(path: &Path) -> Option<Sentence> {
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }
}
