//! What is told of one job: plain data, made by the loop when the job ends.

use crate::clock::Moment;
use crate::job::request::Encoding;
use crate::job::trace::Place;
use crate::job::{ErrorType, Lane};
use crate::logic::event::Outcome;
use crate::logic::ledger::Stage;

/// One job, from its delivery to its end here.
#[derive(Clone, Debug)]
pub struct Job {
    /// Where its span stands.
    pub place: Place,
    /// Where it came from.
    pub source: Source,
    /// Its id.
    pub id: String,
    /// Its lane.
    pub lane: Lane,
    /// How it ended here.
    pub outcome: Outcome,
    /// Which attempt this was; the first is 1.
    pub attempt: u32,
    /// What it asked for; `None` of one too broken to be read.
    pub asked: Option<Asked>,
    /// The type of its refusal or failure, and the field that is wrong. No text of a refusal is told: it may quote the job.
    pub refused: Option<(ErrorType, Option<String>)>,
    /// When it came, on the wall clock (Unix ms).
    pub came_unix_ms: u64,
    /// The same moment on the clock of all others.
    pub came: Moment,
    /// When it ended.
    pub ended: Moment,
    /// When it entered which stage, in order. It left each when it entered the next, and the last when it ended.
    pub steps: Vec<(Stage, Moment)>,
}

/// Where a job came from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A queue of the broker.
    Queue {
        /// Its name.
        name: String,
        /// What its sender recognises the answer by.
        correlation_id: Option<String>,
        /// Bytes of the body.
        bytes: usize,
    },
    /// OpenAI's route.
    Http,
}

/// What a job asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The model's configured name.
    pub model: String,
    /// How many texts.
    pub inputs: usize,
    /// Their tokens; 0 if it never came to that.
    pub tokens: u64,
    /// Length of its vectors.
    pub dimensions: usize,
    /// How they are written.
    pub encoding: Encoding,
}

impl Job {
    /// How many spans tell of it.
    pub(super) fn spans(&self) -> u64 {
        1 + self.steps.len() as u64
    }

    /// Whether it counts as an error, and of which type. By HTTP a caller's own mistake is none of the server's (semantic
    /// conventions for HTTP spans, "Status"); by the broker there is nobody else whose error it could be.
    pub(super) fn error(&self) -> Option<&'static str> {
        match (&self.refused, &self.source, self.outcome) {
            (Some((error, _)), Source::Http, _) => (error.code() >= 500).then(|| error.name()),
            (Some((error, _)), Source::Queue { .. }, _) => Some(error.name()),
            // The session ended; the broker delivers it again.
            (None, _, Outcome::Lost) => Some(Outcome::Lost.name()),
            (None, _, _) => None,
        }
    }
}
