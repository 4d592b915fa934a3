//! The monitor's sentence on a worker, as a file in the monitor's folder: the worker sees from it that it is not to exit
//! as if it had been asked to stop, and `embeddings postmortem` reads why it had to die.

use serde::{Deserialize, Serialize};

/// `reason` of every sentence.
pub const REASON: &str = "heartbeat_timeout";

/// Why the monitor ended a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
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

/// The name of its file.
pub fn file_name(pid: u32) -> String {
    format!("kill-{pid}.json")
}

/// The process that a file of this name is about, also of one that is half written under another ending.
pub fn pid_of(file_name: &str) -> Option<u32> {
    file_name.strip_prefix("kill-")?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_its_name() {
        assert_eq!(pid_of(&file_name(7)), Some(7));
        assert_eq!(pid_of("kill-7.new"), Some(7));
        assert_eq!(pid_of("kill-all.json"), None);
        assert_eq!(pid_of("heartbeat.sock"), None);
    }
}
