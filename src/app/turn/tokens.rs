//! Texts to tokens: what is asked of the tokenizer threads, and what spares them the work.

use super::Loop;
use super::work::Done;
use crate::app::catalogue::Plan;
use crate::engine::tokenize::{Slices, Task};
use crate::engine::{Model, Sequence, TokenizeError};
use crate::job::chunks::Chunks;
use crate::job::{ErrorType, JobKey, Refusal};
use crate::logic::event::Event;
use std::ops::ControlFlow;
use std::sync::Arc;
use tracing::{debug, error};

/// Tokens after which a slice ends: some 10 ms of a thread, so that nobody who is overtaken, or waits for a canary, waits for longer.
const SLICE_TOKENS: usize = 4096;

impl Loop {
    pub(super) fn tokenize(&mut self, job: JobKey) -> Option<Event> {
        let held = self.desk.get_mut(&job)?;
        let plan = held.plan.clone()?;
        // The logic has seen to it that the model is there.
        let model = self.parts.catalogue.model(plan.model)?;
        if let Some(key) = held.key() {
            if let Some(result) = self.results.recall(&key) {
                debug!(job = %held.id, trace_id = held.trace_id(), "answered with what is at hand");
                held.recalled = Some(result);
                return Some(Event::Recalled { job });
            }
            if self.twins.joins(key, job, held.lane) {
                debug!(job = %held.id, trace_id = held.trace_id(), "the same is being computed; waits for that answer");
                return Some(Event::Twin { job });
            }
        }
        let wanted = held.wanted();
        let mut texts = Texts {
            model,
            plan,
            before: held.checkpoint.done,
            chunks: held.goes_on_behind(),
            texts: held.texts_to_tokenize(),
            sequences: Vec::new(),
        };
        let done = self.parts.work_done.clone();
        let slices: Slices = Box::new(move |step| {
            // A job that has gone meanwhile (late, handed back, its session lost) is not worth the work.
            if done.is_closed() || wanted.upgrade().is_none() {
                return ControlFlow::Break(());
            }
            let Some(result) = texts.slice(step) else {
                return ControlFlow::Continue(());
            };
            let _ = done.blocking_send(Done::Tokens(job, result));
            ControlFlow::Break(())
        });
        let task = Task {
            job,
            lane: held.lane,
            caller: held.caller,
            slices,
        };
        self.trace.begins([job], &self.desk);
        self.parts.tokenizers.submit(task).is_err().then(|| {
            error!("the tokenizers do not take work");
            let refusal = Refusal::new(ErrorType::Internal, "the tokenizers do not take work");
            Event::Tokenized {
                job,
                result: Err(refusal),
            }
        })
    }
}

/// A job's texts on their way to tokens.
struct Texts {
    model: Arc<Model>,
    plan: Plan,
    /// Inputs of the whole job in front of these.
    before: usize,
    /// The chunks, behind each of which the job can go on; `None` if it cannot.
    chunks: Option<Chunks>,
    texts: Vec<String>,
    sequences: Vec<Sequence>,
}

impl Texts {
    /// Tokens of the next texts, and all of them after the last or what is wrong with one; `step` is called at least once for each.
    /// Where whole chunks come before one that is wrong, the tokens of those: the job goes on behind them, and ends there.
    fn slice(&mut self, step: &mut dyn FnMut()) -> Option<Result<Vec<Sequence>, Refusal>> {
        let prompt = self.plan.prompt.as_deref();
        let mut tokens = 0;
        while tokens < SLICE_TOKENS {
            let at = self.sequences.len();
            let Some(text) = self.texts.get(at) else {
                return Some(Ok(std::mem::take(&mut self.sequences)));
            };
            match self
                .model
                .tokenize_in_steps(text, prompt, self.plan.truncate, step)
            {
                Ok(sequence) => {
                    tokens += sequence.ids.len();
                    self.sequences.push(sequence);
                }
                Err(error) => {
                    let whole = self.chunks.map_or(0, |chunks| chunks.whole(at));
                    if whole > 0 {
                        self.sequences.truncate(whole);
                        return Some(Ok(std::mem::take(&mut self.sequences)));
                    }
                    // As its sender counts.
                    return Some(Err(refusal(self.before.saturating_add(at), &error)));
                }
            }
        }
        None
    }
}

fn refusal(index: usize, error: &TokenizeError) -> Refusal {
    let told = format!("input[{index}]: {error}");
    match error {
        TokenizeError::TooLong { .. } => Refusal::new(ErrorType::InputTooLong, told).on("input"),
        TokenizeError::Unknown { .. } | TokenizeError::Empty => {
            Refusal::new(ErrorType::InvalidRequest, told).on("input")
        }
        TokenizeError::Failed(_) => Refusal::new(ErrorType::Internal, told),
    }
}
