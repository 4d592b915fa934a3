//! What a job that goes on takes along: how far it has come, and how often it was tried.
//!
//! It travels in a header of the job's message, so that any worker can go on where another stopped. The message
//! holds only the inputs that are still to be computed.

use serde::{Deserialize, Serialize};

/// Header of a job in the resumed lane.
pub const HEADER_CHECKPOINT: &str = "x-checkpoint";
/// Header of what was moved or has died: the queue that the job was sent to, however often it went on since.
pub const HEADER_ORIGINAL_QUEUE: &str = "x-original-queue";

/// How far a job has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Checkpoint {
    /// Inputs of the whole job that come before the first one in the message; their chunks are confirmed.
    pub done: usize,
    /// A number that all slices of one run of the job share, and no other run has; 0 where none was given. A copy of a
    /// slice that has been followed by another is known by it.
    pub lineage: u64,
    /// Inputs of the whole job.
    pub total: usize,
    /// Tokens of the inputs that are done.
    pub tokens: u64,
    /// When its first inputs were taken up, Unix milliseconds; 0 if none were.
    pub begun_ms: u64,
    /// Which attempt at the inputs in the message this is; the first is 1.
    pub attempt: u32,
    /// The most attempts that any inputs before those in the message took; 0 if there are none.
    pub most: u32,
    /// What the last failure was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Where the slice ended at which an attempt failed: until the job is past it, its attempts count on.
    pub trouble: usize,
    /// It may have ended a process, or failed: it is computed with no other job's inputs.
    pub alone: bool,
}

impl Checkpoint {
    /// Reads a header. What is not one of ours counts as none.
    pub fn parse(header: &str) -> Option<Checkpoint> {
        // An array would be read as the fields in their order.
        let object = header.starts_with('{');
        object.then(|| serde_json::from_str(header).ok()).flatten()
    }

    /// Writes the header.
    pub fn to_header(&self) -> String {
        serde_json::to_string(self).expect("plain data is always written")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_survives_its_header() {
        let checkpoint = Checkpoint {
            done: 512,
            lineage: 3,
            total: 6000,
            tokens: 9,
            begun_ms: 1_700_000_000_000,
            attempt: 2,
            most: 1,
            trouble: 600,
            last_error: Some("internal: \"odd\"".into()),
            alone: true,
        };
        assert_eq!(Checkpoint::parse(&checkpoint.to_header()), Some(checkpoint));
        assert_eq!(Checkpoint::parse("[]"), None);
    }
}
