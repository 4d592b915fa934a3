//! What the logic never sees: the texts, tokens and vectors of the jobs that are here, by their keys.

use super::catalogue::{Catalogue, Plan};
use crate::broker::{Arrival, Content, Publication, Receipt};
use crate::clock::Moment;
use crate::engine::{Sequence, pooling};
use crate::job::reply::Answer;
use crate::job::{JobKey, Lane, Refusal};
use std::collections::HashMap;
use std::sync::{Arc, Weak};

/// One job's data.
#[derive(Debug)]
pub struct Held {
    /// Its lane.
    pub lane: Lane,
    /// Its right to be settled; a canary that took the short way has none.
    pub receipt: Option<Receipt>,
    /// Where its answer goes.
    reply_to: Option<String>,
    correlation_id: Option<String>,
    /// The job id.
    pub id: String,
    attempt: u64,
    /// What it asks for; a malformed one asks for nothing.
    pub plan: Option<Plan>,
    /// Its texts, until they are tokenized.
    pub texts: Vec<String>,
    /// Its tokens, until they are computed.
    pub sequences: Vec<Sequence>,
    vectors: Vec<Vec<f32>>,
    /// When it came.
    pub arrived: Moment,
    /// Lives as long as the job is wanted.
    alive: Arc<()>,
}

impl Held {
    /// A delivery's data.
    pub fn new(arrival: Arrival, plan: Option<Plan>, texts: Vec<String>, now: Moment) -> Held {
        let Arrival {
            lane,
            receipt,
            properties,
            attempt,
            ..
        } = arrival;
        let made_up = || format!("{:032x}", rand::random::<u128>());
        let id = properties
            .message_id
            .or_else(|| properties.correlation_id.clone())
            .unwrap_or_else(made_up);
        Held {
            lane,
            receipt: Some(receipt),
            reply_to: properties.reply_to,
            correlation_id: properties.correlation_id,
            id,
            attempt,
            plan,
            texts,
            sequences: Vec::new(),
            vectors: Vec::new(),
            arrived: now,
            alive: Arc::default(),
        }
    }

    /// A canary that never sees the broker.
    pub fn local(plan: Plan, texts: Vec<String>, now: Moment) -> Held {
        Held {
            lane: Lane::Probe,
            receipt: None,
            reply_to: None,
            correlation_id: None,
            id: "canary".into(),
            attempt: 1,
            plan: Some(plan),
            texts,
            sequences: Vec::new(),
            vectors: Vec::new(),
            arrived: now,
            alive: Arc::default(),
        }
    }

    /// Takes the tokens in.
    pub fn tokenized(&mut self, sequences: Vec<Sequence>) {
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

    /// By which a thread can see whether the job is still here.
    pub fn wanted(&self) -> Weak<()> {
        Arc::downgrade(&self.alive)
    }

    /// The answer with all its vectors, to be published. Leaves the job without them.
    pub fn answer(&mut self, key: JobKey, catalogue: &Catalogue) -> Option<Box<Publication>> {
        let plan = self.plan.as_ref()?;
        let entry = catalogue.entry(plan.model);
        let dimensions = plan.dimensions.unwrap_or(entry.model.info().dimensions);
        let sequences = std::mem::take(&mut self.sequences);
        let truncated = sequences
            .iter()
            .enumerate()
            .filter(|(_, sequence)| sequence.truncated);
        let answer = Answer {
            model: entry.name.clone(),
            vectors: std::mem::take(&mut self.vectors),
            encoding: plan.encoding,
            tokens: sequences.iter().map(|sequence| sequence.ids.len() as u64).sum(),
            truncated: truncated.map(|(index, _)| index).collect(),
        };
        self.reply(key, Ok((answer, entry.model.fingerprint(dimensions))))
    }

    /// A refusal, to be published.
    pub fn refusal(&self, key: JobKey, refusal: Refusal) -> Option<Box<Publication>> {
        self.reply(key, Err(refusal))
    }

    /// A copy for the dead-letter queue, to be published.
    pub fn dead_letter(&self, key: JobKey, refusal: Refusal) -> Option<Box<Publication>> {
        let content = Content::DeadLetter {
            refusal,
            attempt: self.attempt,
        };
        Some(Box::new(Publication {
            job: key,
            receipt: self.receipt.clone()?,
            content,
        }))
    }

    fn reply(&self, key: JobKey, body: Result<(Answer, String), Refusal>) -> Option<Box<Publication>> {
        let content = Content::Reply {
            to: self.reply_to.clone()?,
            correlation_id: self.correlation_id.clone(),
            message_id: self.id.clone(),
            attempt: self.attempt,
            body,
        };
        Some(Box::new(Publication {
            job: key,
            receipt: self.receipt.clone()?,
            content,
        }))
    }
}

/// All jobs that are here.
pub type Desk = HashMap<JobKey, Held>;
