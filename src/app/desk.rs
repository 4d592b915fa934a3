//! What the logic never sees: the texts, tokens and vectors of the jobs that are here, by their keys.

use super::catalogue::{Catalogue, Plan};
use super::results::{self, Results};
use super::spans::Followed;
use crate::broker::{Arrival, Content, PAUSES, Publication, Receipt, ReplyBody};
use crate::clock::Moment;
use crate::engine::{Sequence, pooling};
use crate::http;
use crate::job::checkpoint::Checkpoint;
use crate::job::chunks::Chunks;
use crate::job::reply::{Answer, Done};
use crate::job::request::Request;
use crate::job::trace::TraceParent;
use crate::job::{JobKey, Lane, Names, Refusal};
use crate::logic::event::{CallerId, Onward, Streaming};
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::oneshot;

/// A streamed job goes on as another message behind so many inputs or bytes of text: what a death costs is computed
/// again, so this is seconds of work, and yet so much that the message in between is nothing beside it.
const SLICE_INPUTS: usize = 512;
const SLICE_BYTES: usize = 128 << 10;

/// How far the sender of a streamed job knows it to be.
#[derive(Debug, Default)]
pub struct Pace {
    /// Inputs of this slice whose chunks are confirmed.
    pub confirmed: usize,
    /// Inputs of each chunk that is not, in the order in which they went out.
    pub unconfirmed: VecDeque<usize>,
    /// When it was told so last.
    pub told: Option<Moment>,
}

/// One job's data.
#[derive(Debug)]
pub struct Held {
    /// Its lane.
    pub lane: Lane,
    /// Its right to be settled; a canary that took the short way has none, nor has a job that came by HTTP.
    pub receipt: Option<Receipt>,
    /// Where the caller waits of a job that came by HTTP, until it is answered or goes away.
    pub connection: Option<oneshot::Sender<http::Reply>>,
    /// Where its answer goes.
    reply_to: Option<String>,
    /// What its sender recognises the answer by.
    pub correlation_id: Option<String>,
    /// The trace that it belongs to; of a job that is followed, our own span in it.
    pub traceparent: Option<TraceParent>,
    /// What is to be told of it in its trace when it ends.
    pub followed: Option<Box<Followed>>,
    /// The job id.
    pub id: String,
    /// Which attempt this is at the inputs that came; the first is 1.
    pub attempt: u32,
    /// It has come once more than it may be tried: it is not computed, and the attempt before this one was the last.
    pub spent: bool,
    /// How far the whole job had come when this came.
    pub checkpoint: Checkpoint,
    /// What a message that goes on behind this slice asks for, without its texts.
    request: Option<Request>,
    /// The texts behind this slice.
    rest: Vec<String>,
    /// Whether the slice may be cut.
    cuttable: bool,
    /// How far the sender knows the job to be.
    pub pace: Pace,
    /// What it asks for; a malformed one asks for nothing.
    pub plan: Option<Plan>,
    /// Who sent it.
    pub caller: CallerId,
    /// Its texts, until they are tokenized.
    pub texts: Vec<String>,
    /// How many they are, of this slice.
    pub inputs: usize,
    /// Its tokens, until they are computed.
    pub sequences: Vec<Sequence>,
    vectors: Vec<Vec<f32>>,
    /// Its body's digest, if its sender gave it its id.
    digest: Option<u64>,
    /// What was answered to it when it was here before.
    pub recalled: Option<Arc<results::Result>>,
    /// Where the slice begins that is to follow this one; behind all inputs where this is the last.
    pub reached: Option<usize>,
    /// When it came.
    pub arrived: Moment,
    /// The same in Unix milliseconds.
    pub received_ms: u64,
    /// Lives as long as the job is wanted.
    alive: Arc<()>,
}

impl Held {
    /// A delivery's data.
    pub fn new(arrival: Arrival, received_ms: u64, now: Moment) -> Held {
        let Arrival {
            lane,
            receipt,
            properties,
            attempt,
            checkpoint,
            digest,
            ..
        } = arrival;
        let made_up = || format!("{:032x}", rand::random::<u128>());
        let named = properties.message_id.is_some() || properties.correlation_id.is_some();
        let id = properties
            .message_id
            .or_else(|| properties.correlation_id.clone())
            .unwrap_or_else(made_up);
        Held {
            receipt: Some(receipt),
            reply_to: properties.reply_to,
            correlation_id: properties.correlation_id,
            traceparent: properties.traceparent,
            attempt,
            checkpoint: checkpoint.unwrap_or_default(),
            digest: named.then_some(digest),
            received_ms,
            ..Held::blank(lane, id, now)
        }
    }

    /// The data of a job whose caller waits on a connection.
    pub fn called(
        id: String,
        traceparent: Option<TraceParent>,
        connection: oneshot::Sender<http::Reply>,
        received_ms: u64,
        now: Moment,
    ) -> Held {
        Held {
            connection: Some(connection),
            traceparent,
            received_ms,
            ..Held::blank(Lane::Interactive, id, now)
        }
    }

    /// Whether a trace begins with it.
    fn is_root(&self) -> bool {
        self.followed.as_ref().is_some_and(|followed| followed.is_root())
    }

    /// The id of the trace that the job belongs to, for the log.
    pub fn trace_id(&self) -> Option<&str> {
        self.traceparent.as_ref().map(TraceParent::trace_id)
    }

    /// A canary that never sees the broker.
    pub fn local(plan: Plan, texts: Vec<String>, now: Moment) -> Held {
        Held {
            plan: Some(plan),
            texts,
            ..Held::blank(Lane::Probe, "canary".into(), now)
        }
    }

    fn blank(lane: Lane, id: String, now: Moment) -> Held {
        Held {
            lane,
            receipt: None,
            connection: None,
            reply_to: None,
            correlation_id: None,
            traceparent: None,
            followed: None,
            id,
            attempt: 1,
            spent: false,
            checkpoint: Checkpoint::default(),
            request: None,
            rest: Vec::new(),
            cuttable: false,
            pace: Pace::default(),
            plan: None,
            caller: CallerId::default(),
            texts: Vec::new(),
            inputs: 0,
            sequences: Vec::new(),
            vectors: Vec::new(),
            digest: None,
            recalled: None,
            reached: None,
            arrived: now,
            received_ms: 0,
            alive: Arc::default(),
        }
    }

    /// The attempts that whoever watches is told of: the most that anything of the job has taken. Each slice is tried
    /// from one on, and a counter that fell in the midst of a job would say nothing.
    pub fn attempts(&self) -> u32 {
        self.checkpoint.most.max(self.attempt - u32::from(self.spent))
    }

    /// Takes in what the job asks for. Of a streamed one only a slice is taken up if it can go on behind that.
    pub fn plan(
        &mut self,
        mut request: Request,
        plan: Plan,
        resumable: bool,
        unix_ms: u64,
    ) -> (usize, Option<Streaming>) {
        self.texts = std::mem::take(&mut request.input);
        if self.checkpoint.total == 0 {
            self.checkpoint.total = self.texts.len();
        }
        if self.checkpoint.begun_ms == 0 {
            self.checkpoint.begun_ms = unix_ms;
        }
        if plan.chunk.is_some() && self.checkpoint.lineage == 0 {
            self.checkpoint.lineage = rand::random::<u64>().max(1);
        }
        let stream = plan.chunk.map(|chunk| {
            // Behind what failed attempts count from one again, so this is a failure that is not known of yet.
            let new = self.checkpoint.done >= self.checkpoint.trouble;
            let chunks = Chunks::new(chunk, self.checkpoint.done);
            if resumable && self.attempt > 1 && new {
                let before = slice(&self.texts, chunks, self.attempt - 1);
                let end = self.checkpoint.done.saturating_add(before);
                self.checkpoint.trouble = self.checkpoint.trouble.max(end);
            }
            self.cuttable = resumable;
            if resumable {
                self.rest = self.texts.split_off(slice(&self.texts, chunks, self.attempt));
            }
            Streaming {
                chunks,
                last: self.rest.is_empty(),
            }
        });
        self.request = Some(request);
        self.plan = Some(plan);
        self.inputs = self.texts.len();
        (self.inputs, stream)
    }

    /// Its texts, to be tokenized. They are kept of a slice that may be cut.
    pub fn texts_to_tokenize(&mut self) -> Vec<String> {
        if self.cuttable {
            self.texts.clone()
        } else {
            std::mem::take(&mut self.texts)
        }
    }

    /// Whether its sender gave it its id, by which it is known again.
    pub fn is_named(&self) -> bool {
        self.digest.is_some()
    }

    /// The chunks of the slice, if the job can go on behind each.
    pub fn goes_on_behind(&self) -> Option<Chunks> {
        let chunk = self.plan.as_ref()?.chunk?;
        self.cuttable.then(|| Chunks::new(chunk, self.checkpoint.done))
    }

    /// The slice ends after so many inputs.
    pub fn cut(&mut self, inputs: usize) {
        let behind = self.texts.split_off(inputs);
        self.rest.splice(0..0, behind);
        self.sequences.truncate(inputs);
        self.vectors.truncate(inputs);
        self.inputs = inputs;
    }

    /// Takes the tokens in. Those of fewer inputs end the slice there.
    pub fn tokenized(&mut self, sequences: Vec<Sequence>) {
        if self.goes_on_behind().is_some() && sequences.len() < self.inputs {
            self.cut(sequences.len());
        }
        self.vectors = vec![Vec::new(); sequences.len()];
        self.sequences = sequences;
    }

    /// Takes one vector in, cut and normalised as the job asks.
    pub fn computed(&mut self, input: usize, vector: Vec<f32>) {
        let plan = self.plan.as_ref().expect("only a planned job is computed");
        self.vectors[input] = pooling::finish(vector, plan.dimensions, plan.normalize);
    }

    /// Whether a canary's vector is the one computed at start.
    pub fn canary_is_right(&self, catalogue: &Catalogue) -> bool {
        let Some(plan) = &self.plan else { return false };
        self.vectors
            .iter()
            .all(|vector| catalogue.canary_is_right(plan.model, vector))
    }

    /// By which its answer is kept, if its sender gave it an id and it is answered in one piece. Never a canary's: that
    /// must be computed each time, or it would prove nothing.
    pub fn key(&self) -> Option<results::Key> {
        let plain = self.plan.as_ref().is_some_and(|plan| plan.chunk.is_none());
        let kept = plain && self.lane != Lane::Probe;
        let digest = self.digest.filter(|_| kept)?;
        let id = self.id.clone();
        Some(results::Key { id, digest })
    }

    /// By which a thread can see whether the job is still here.
    pub fn wanted(&self) -> Weak<()> {
        Arc::downgrade(&self.alive)
    }

    /// The answer with all its vectors, to be published and kept. Leaves the job without them.
    pub fn answer(
        &mut self,
        key: JobKey,
        catalogue: &Catalogue,
        results: &mut Results,
    ) -> Option<Box<Publication>> {
        let (answer, fingerprint) = match self.recalled.take() {
            Some(result) => Arc::unwrap_or_clone(result),
            None => {
                let result = self.take(0..self.sequences.len(), catalogue)?;
                if let Some(kept) = self.key() {
                    results.keep(kept, &result);
                }
                result
            }
        };
        self.reply(key, ReplyBody::Result(answer, fingerprint))
    }

    /// The answer with all its vectors, for a caller on a connection. Leaves the job without them.
    pub fn vectors(&mut self, catalogue: &Catalogue) -> Option<http::Reply> {
        let (answer, fingerprint) = self.take(0..self.sequences.len(), catalogue)?;
        Some(self.given(http::Given::Vectors(answer, fingerprint)))
    }

    /// What its caller on a connection is given.
    pub fn given(&self, given: http::Given) -> http::Reply {
        http::Reply {
            given,
            traceparent: self.traceparent.clone(),
        }
    }

    /// A chunk of a streamed job, to be published. Leaves the job without its vectors.
    pub fn chunk(
        &mut self,
        key: JobKey,
        inputs: Range<usize>,
        catalogue: &Catalogue,
    ) -> Option<Box<Publication>> {
        self.pace.unconfirmed.push_back(inputs.len());
        let (answer, fingerprint) = self.take(inputs, catalogue)?;
        self.reply(key, ReplyBody::Chunk(answer, fingerprint))
    }

    fn take(&mut self, inputs: Range<usize>, catalogue: &Catalogue) -> Option<(Answer, String)> {
        let plan = self.plan.as_ref()?;
        let entry = catalogue.entry(plan.model);
        let dimensions = plan.dimensions.unwrap_or(entry.outline.dimensions);
        let first = self.checkpoint.done.saturating_add(inputs.start);
        let sequences = &mut self.sequences[inputs.clone()];
        let truncated = sequences
            .iter()
            .enumerate()
            .filter(|(_, sequence)| sequence.truncated);
        let answer = Answer {
            model: entry.name.clone(),
            first,
            vectors: self.vectors[inputs].iter_mut().map(std::mem::take).collect(),
            encoding: plan.encoding,
            tokens: sequences.iter().map(|sequence| sequence.ids.len() as u64).sum(),
            truncated: truncated.map(|(index, _)| first.saturating_add(index)).collect(),
        };
        Some((answer, entry.fingerprint(dimensions)))
    }

    /// The end of a streamed job, to be published.
    pub fn done(&mut self, key: JobKey, catalogue: &Catalogue, unix_ms: u64) -> Option<Box<Publication>> {
        self.reached = Some(usize::MAX);
        let model = &catalogue.entry(self.plan.as_ref()?.model).name;
        let Checkpoint { total, begun_ms, .. } = self.checkpoint;
        let wall_ms = unix_ms.saturating_sub(begun_ms);
        let done = Done::new(model, self.tokens(), total, wall_ms, self.attempts());
        let json = serde_json::to_vec(&done).expect("plain data is always written");
        self.reply(key, ReplyBody::Done(json))
    }

    /// Tokens of the whole job up to the end of this slice.
    fn tokens(&self) -> u64 {
        self.checkpoint.tokens.saturating_add(self.tokens_here())
    }

    /// Tokens of this slice.
    pub fn tokens_here(&self) -> u64 {
        let here = self.sequences.iter().map(|sequence| sequence.ids.len() as u64);
        here.sum()
    }

    /// The message with which the job goes on.
    pub fn onward(&mut self, key: JobKey, onward: Onward, names: &Names) -> Option<Box<Publication>> {
        let mut checkpoint = self.checkpoint.clone();
        // Unless the next slice goes out, nothing follows this one, whatever was tried before.
        self.reached = None;
        let goes_on = onward != Onward::Back;
        let (to, body) = match onward {
            Onward::Suspect => {
                checkpoint.attempt = self.attempt;
                checkpoint.alone = true;
                (names.resumed.clone(), None)
            }
            Onward::Back => (names.of(self.lane).to_owned(), None),
            Onward::Retry(refusal) => {
                checkpoint.attempt = self.attempt.saturating_add(1);
                checkpoint.alone = true;
                checkpoint.last_error = Some(refusal.to_string());
                (names.later(pause(self.attempt)), None)
            }
            Onward::NextSlice => {
                checkpoint = self.behind();
                self.reached = Some(checkpoint.done);
                let mut request = self.request.take()?;
                request.input = std::mem::take(&mut self.rest);
                (names.resumed.clone(), Some(request.to_json()))
            }
        };
        let content = Content::Move {
            to,
            message_id: self.id.clone(),
            checkpoint: goes_on.then_some(checkpoint),
            // One that came with a trace of its caller's keeps that: its slices stand side by side below it.
            traceparent: self.traceparent.clone().filter(|_| self.is_root()),
            // A job that has begun is no longer bound by the time its sender would wait for that.
            budget_from_ms: body.is_none().then_some(self.received_ms),
            body,
        };
        Some(Box::new(Publication {
            job: key,
            receipt: self.receipt.clone()?,
            content,
        }))
    }

    /// How far the job has come when this slice is out.
    fn behind(&self) -> Checkpoint {
        let mut checkpoint = self.checkpoint.clone();
        checkpoint.done = checkpoint.done.saturating_add(self.sequences.len());
        checkpoint.tokens = self.tokens();
        checkpoint.most = self.attempts();
        if checkpoint.done >= checkpoint.trouble {
            checkpoint.attempt = 1;
            checkpoint.alone = false;
            checkpoint.last_error = None;
        } else {
            checkpoint.attempt = self.attempt;
            checkpoint.alone = true;
        }
        checkpoint
    }

    /// A refusal, to be published.
    pub fn refusal(&self, key: JobKey, refusal: Refusal) -> Option<Box<Publication>> {
        self.reply(key, ReplyBody::Refusal(refusal))
    }

    /// A copy for the dead-letter queue, to be published.
    pub fn dead_letter(&self, key: JobKey, refusal: Refusal) -> Option<Box<Publication>> {
        let content = Content::DeadLetter {
            refusal,
            attempt: self.attempts(),
        };
        Some(Box::new(Publication {
            job: key,
            receipt: self.receipt.clone()?,
            content,
        }))
    }

    /// How far a streamed job is, in JSON, to be published.
    pub fn progress(&self, key: JobKey, json: Vec<u8>) -> Option<Box<Publication>> {
        self.reply(key, ReplyBody::Progress(json))
    }

    fn reply(&self, key: JobKey, body: ReplyBody) -> Option<Box<Publication>> {
        let content = Content::Reply {
            to: self.reply_to.clone()?,
            correlation_id: self.correlation_id.clone(),
            message_id: self.id.clone(),
            attempt: self.attempts(),
            traceparent: self.traceparent.clone(),
            body,
        };
        Some(Box::new(Publication {
            job: key,
            receipt: self.receipt.clone()?,
            content,
        }))
    }
}

/// How long a job waits after this attempt has failed.
pub fn pause(attempt: u32) -> Duration {
    PAUSES[(attempt as usize).saturating_sub(1).min(PAUSES.len() - 1)]
}

/// How many of the texts make a slice: whole chunks, and at least one. After each attempt that failed it is a quarter,
/// so that a job gets on even where processes die faster than they work off a whole one.
fn slice(texts: &[String], chunks: Chunks, attempt: u32) -> usize {
    let shrunk = 2 * attempt.saturating_sub(1).min(8);
    let mut bytes = 0;
    let fitting = texts.iter().take(SLICE_INPUTS >> shrunk).take_while(|text| {
        bytes += text.len();
        bytes <= SLICE_BYTES >> shrunk
    });
    let whole = chunks.whole(fitting.count());
    whole.max(chunks.first(1)).min(texts.len())
}

/// All jobs that are here.
pub type Desk = HashMap<JobKey, Held>;

#[cfg(test)]
#[path = "desk_tests.rs"]
mod tests;
