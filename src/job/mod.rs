//! The words of the wire, as plain data: a job's request, its replies, its refusals.
//!
//! What stands here is the contract's text in types; it decides nothing about order or time.

pub mod backpressure;
pub mod checkpoint;
pub mod chunks;
pub mod heartbeat;
mod input;
pub mod received;
pub mod reply;
pub mod reply_to;
pub mod request;
pub mod sentence;
pub mod trace;

use std::fmt;
use std::time::Duration;

/// The service's own number for one delivery, unique within the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobKey(pub u64);

impl JobKey {
    /// Keys of jobs that came by HTTP lie above this, and above those of all deliveries.
    pub const CALLED: u64 = 1 << 62;
    /// Keys of canaries that never saw the broker lie above this, and above all others.
    pub const WITHIN: u64 = 1 << 63;
}

/// A class of service, with its own broker queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// The service's own canaries.
    Probe,
    /// Answered soon, or refused at once.
    Interactive,
    /// May wait in the broker.
    Bulk,
    /// Jobs that go on: the rest of a streamed one, one to be tried again, one that may have ended a process.
    Resumed,
}

impl Lane {
    /// How many there are.
    pub const COUNT: usize = 4;
    /// All lanes, as they are declared.
    pub const ALL: [Lane; Lane::COUNT] = [Lane::Probe, Lane::Interactive, Lane::Bulk, Lane::Resumed];

    /// The name used in queues, logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Lane::Probe => "probe",
            Lane::Interactive => "interactive",
            Lane::Bulk => "bulk",
            Lane::Resumed => "resumed",
        }
    }
}

/// The error types of the wire, each with its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorType {
    /// The request is not what the contract asks for.
    InvalidRequest,
    /// No such model here.
    ModelNotFound,
    /// An input is longer than the model reads, and `truncate` is `false`.
    InputTooLong,
    /// More inputs, or a larger answer, than one job may have.
    TooManyInputs,
    /// No room; try again later.
    Overloaded,
    /// The caller's budget ran out before the work began.
    DeadlineExceeded,
    /// The service is shutting down.
    Draining,
    /// The service failed.
    Internal,
}

impl ErrorType {
    /// How many there are.
    pub const COUNT: usize = 8;
    /// All of them.
    pub const ALL: [ErrorType; ErrorType::COUNT] = [
        ErrorType::InvalidRequest,
        ErrorType::ModelNotFound,
        ErrorType::InputTooLong,
        ErrorType::TooManyInputs,
        ErrorType::Overloaded,
        ErrorType::DeadlineExceeded,
        ErrorType::Draining,
        ErrorType::Internal,
    ];

    /// `type` on the wire.
    pub fn name(self) -> &'static str {
        match self {
            ErrorType::InvalidRequest => "invalid_request",
            ErrorType::ModelNotFound => "model_not_found",
            ErrorType::InputTooLong => "input_too_long",
            ErrorType::TooManyInputs => "too_many_inputs",
            ErrorType::Overloaded => "overloaded",
            ErrorType::DeadlineExceeded => "deadline_exceeded",
            ErrorType::Draining => "draining",
            ErrorType::Internal => "internal",
        }
    }

    /// `code` on the wire, an HTTP status.
    pub fn code(self) -> u16 {
        match self {
            ErrorType::InvalidRequest => 400,
            ErrorType::ModelNotFound => 404,
            ErrorType::InputTooLong | ErrorType::TooManyInputs => 413,
            ErrorType::Overloaded => 429,
            ErrorType::DeadlineExceeded => 504,
            ErrorType::Draining => 503,
            ErrorType::Internal => 500,
        }
    }
}

/// Longest message of a refusal. It may repeat what the caller wrote, and it travels in replies, in headers of
/// dead letters (which must fit into one frame) and in logs.
const MESSAGE_BYTES_MAX: usize = 1024;
/// Longest name of a field in a refusal; it may be a key that the caller made up.
const PARAM_BYTES_MAX: usize = 128;

/// An answer that is no vector: what is wrong, in which field, and when to come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Type and code.
    pub error: ErrorType,
    /// For people: lower case, with the value and the limit.
    pub message: String,
    /// The field or property that is wrong, if it is one.
    pub param: Option<String>,
    /// When a retry may succeed, in milliseconds.
    pub retry_after_ms: Option<u64>,
}

impl Refusal {
    /// A refusal that names no field.
    pub fn new(error: ErrorType, message: impl Into<String>) -> Refusal {
        Refusal {
            error,
            message: capped(message.into(), MESSAGE_BYTES_MAX),
            param: None,
            retry_after_ms: None,
        }
    }

    /// `invalid_request` in the field `param`.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Refusal {
        Refusal::new(ErrorType::InvalidRequest, message).on(param)
    }

    /// Names the field.
    pub fn on(mut self, param: impl Into<String>) -> Refusal {
        self.param = Some(capped(param.into(), PARAM_BYTES_MAX));
        self
    }

    /// Says when to come back.
    pub fn retry_after(mut self, ms: u64) -> Refusal {
        self.retry_after_ms = Some(ms);
        self
    }
}

/// Cuts a text that may hold what a caller wrote, and says so.
fn capped(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        let end = (0..=bytes_max)
            .rev()
            .find(|&end| text.is_char_boundary(end))
            .unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.error.name(), self.message)
    }
}

/// Names of the broker's objects, all made from the one configured prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// Queue of the interactive lane.
    pub interactive: String,
    /// Queue of the bulk lane.
    pub bulk: String,
    /// Queue of jobs that go on.
    pub resumed: String,
    /// Queue for what could not be answered.
    pub dead: String,
    /// Topic exchange for heartbeats, backpressure and progress.
    pub events: String,
}

impl Names {
    /// The topology's names below `prefix`.
    pub fn new(prefix: &str) -> Names {
        Names {
            interactive: format!("{prefix}.interactive"),
            bulk: format!("{prefix}.bulk"),
            resumed: format!("{prefix}.resumed"),
            dead: format!("{prefix}.dead"),
            events: format!("{prefix}.events"),
        }
    }

    /// Queue of a lane whose jobs are callers'.
    ///
    /// # Panics
    /// The probes' queue is the session's own, and has no name that is known before.
    pub fn of(&self, lane: Lane) -> &str {
        match lane {
            Lane::Interactive => &self.interactive,
            Lane::Bulk => &self.bulk,
            Lane::Resumed => &self.resumed,
            Lane::Probe => panic!("probes have a queue for each session"),
        }
    }

    /// Queue in which a job waits for so long before it is resumed.
    pub fn later(&self, pause: Duration) -> String {
        format!("{}.after-{}s", self.resumed, pause.as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: however much a caller writes, what is said of it stays small.
    #[test]
    fn refusals_are_short() {
        let refusal = Refusal::invalid("ü".repeat(1000), "ü".repeat(100_000));
        assert!(refusal.message.len() <= MESSAGE_BYTES_MAX + 3 && refusal.message.ends_with('…'));
        assert!(
            refusal
                .param
                .is_some_and(|param| param.len() <= PARAM_BYTES_MAX + 3)
        );
    }
}
