//! A job as the judge has it in its book.

use embeddings::clock::Moment;
use embeddings::job::Lane;
use embeddings::logic::event::{ModelId, Outcome, Ticket};
use embeddings::logic::settle::Cut;
use std::collections::BTreeSet;
use std::time::Duration;

/// Where the judge believes a job to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Admitted, and its model is not in memory.
    Awaiting,
    /// A canary that an engine answers for without its model.
    Trying,
    Tokenizing,
    /// Another job computes the same.
    Twin,
    Working,
    Publishing,
    Acking,
    Acked,
    /// Given to its caller, which takes no time.
    Handing,
    /// Its caller has it, or was not there any more.
    Handed {
        taken: bool,
    },
}

impl Place {
    /// Here, and perhaps not begun.
    pub fn waits(self) -> bool {
        matches!(
            self,
            Place::Awaiting | Place::Tokenizing | Place::Twin | Place::Working
        )
    }
}

#[derive(Clone, Debug)]
pub struct Seen {
    pub lane: Lane,
    pub model: ModelId,
    pub bytes: usize,
    pub inputs: usize,
    pub begun_at: Option<Moment>,
    pub deadline: Option<Moment>,
    pub local: bool,
    /// It was asked for, and says nothing of the queue's consumer.
    pub fetched: bool,
    /// Its caller waits on a connection of its own: no session takes it away, and nothing of it goes to the broker.
    pub called: bool,
    /// That caller went away.
    pub gone: bool,
    pub admitted: bool,
    pub place: Place,
    pub tokens: Vec<usize>,
    pub started: Vec<bool>,
    pub done: usize,
    pub failed: bool,
    pub vectors: bool,
    /// What is on its way is a last word: once that is in a queue, it is acknowledged without an action.
    pub last_word: bool,
    pub dead_letter: bool,
    pub settled: bool,
    pub attempt: u32,
    pub suspect: bool,
    /// Inputs of a chunk and whether the slice is the last, if it is streamed.
    pub stream: Option<(usize, bool)>,
    /// Inputs of the whole job before its slice.
    pub before: usize,
    /// Per input, whether its vector came out well.
    pub good: Vec<bool>,
    /// Chunks that are out, and how many of those the broker has not answered for.
    pub chunks: BTreeSet<usize>,
    pub unconfirmed: usize,
    pub returned: bool,
    pub delivered: Moment,
    /// It goes on from another queue.
    pub moved: bool,
    /// Its model has just come; it goes to the tokenizers.
    pub to_tokenize: bool,
    /// It was answered without being computed.
    pub recalled: bool,
    /// An engine answered for it without its model.
    pub tried: bool,
    /// Whether chunks of a slice went before.
    pub slice: bool,
    /// Its slice ends early.
    pub cut: Option<Cut>,
    /// Its model could not be loaded.
    pub load_failed: bool,
}

impl Seen {
    /// What has just come.
    pub fn new(lane: Lane, ticket: Option<&Ticket>, now: Moment) -> Seen {
        let stream = ticket.and_then(|ticket| ticket.stream);
        Seen {
            lane,
            model: ticket.map_or(ModelId(0), |ticket| ticket.model),
            bytes: ticket.map_or(0, |ticket| ticket.bytes),
            inputs: ticket.map_or(0, |ticket| ticket.inputs),
            begun_at: None,
            deadline: ticket.and_then(|ticket| ticket.deadline),
            local: false,
            fetched: false,
            called: false,
            gone: false,
            admitted: false,
            place: Place::Tokenizing,
            tokens: Vec::new(),
            started: Vec::new(),
            done: 0,
            failed: false,
            vectors: false,
            last_word: false,
            dead_letter: false,
            settled: false,
            attempt: 1,
            suspect: false,
            stream: stream.map(|streaming| (streaming.chunks.size(), streaming.last)),
            before: stream.map_or(0, |streaming| streaming.chunks.before()),
            good: Vec::new(),
            chunks: BTreeSet::new(),
            unconfirmed: 0,
            returned: false,
            delivered: now,
            moved: false,
            to_tokenize: false,
            recalled: false,
            tried: false,
            load_failed: false,
            slice: false,
            cut: None,
        }
    }

    /// Where its slice ends if no further chunk of it is begun, or no further input, if that is before its end.
    pub fn can_be_cut(&self, cut: Cut) -> Option<usize> {
        if self.cut >= Some(cut) {
            return None;
        }
        let (chunk, _) = self.stream?;
        let begun = self.started.iter().rposition(|started| *started)? + 1;
        let left = match cut {
            Cut::BehindChunk => (self.before + begun).next_multiple_of(chunk) - self.before,
            Cut::WithinChunk => begun,
        };
        (left < self.started.len()).then_some(left)
    }

    /// How many chunks the slice makes. They end where those of the whole job do, and where the slice does.
    pub fn chunks_in_all(&self, chunk: usize) -> usize {
        let end = self.before + self.tokens.len();
        end.div_ceil(chunk) - self.before / chunk
    }

    pub fn undrawn(&self) -> usize {
        if self.place == Place::Working && !self.failed && !self.returned {
            self.started.iter().filter(|started| !**started).count()
        } else {
            0
        }
    }

    pub fn begun(&self) -> bool {
        self.place == Place::Working && self.started.contains(&true)
    }

    /// A caller's job ends with what its caller was given, or with nobody to give it to.
    pub fn judge_end_of_call(&self, outcome: Outcome) {
        let expected = match self.place {
            Place::Handed { taken: true } if self.vectors => Outcome::Answered,
            Place::Handed { taken: true } => Outcome::Refused,
            Place::Handed { taken: false } => Outcome::Returned,
            place => {
                let in_an_engine = place == Place::Working && !self.at_rest();
                assert!(self.gone && !in_an_engine, "given up at {place:?}");
                Outcome::Returned
            }
        };
        assert_eq!(outcome, expected, "how a call ends");
    }

    /// Its answer or refusal leaves.
    pub fn reply(&mut self) {
        self.place = if self.called {
            Place::Handing
        } else {
            Place::Publishing
        };
    }

    /// Whether its model must stay in memory. A canary that an engine answered for has no use for it.
    pub fn holds(&self, model: usize) -> bool {
        self.admitted && self.model.0 == model && !self.tried
    }

    /// Begun at once, whatever else is in flight.
    pub fn is_urgent(&self) -> bool {
        matches!(self.lane, Lane::Probe | Lane::Resumed)
    }

    pub fn in_flight(&self) -> bool {
        let drawn = self.started.iter().filter(|started| **started).count();
        self.begun() && (self.done < drawn || self.undrawn() > 0)
    }

    /// In one piece from a queue, and longer at work than its delivery may be held.
    pub fn is_too_long(&self, held_max: Duration, now: Moment) -> bool {
        let plain = self.stream.is_none() && !self.called && self.lane != Lane::Probe;
        let (held, at_work) = (
            now.since(self.delivered),
            self.begun_at.map(|begun| now.since(begun)),
        );
        plain && self.begun() && held >= held_max + held_max / 3 && at_work >= Some(held_max / 3)
    }

    /// Nothing of it is in an engine, before one, or on its way to the sender.
    pub fn at_rest(&self) -> bool {
        self.done == self.started.iter().filter(|started| **started).count()
            && (self.failed || self.returned || self.done == self.tokens.len())
            && self.unconfirmed == 0
    }
}
