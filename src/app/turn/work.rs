//! What the threads that work report, on its way to the loop, and what the loop makes of it.

use super::super::LOAD_STEP_MAX;
use super::super::loader::{Loader, Loading};
use super::Loop;
use super::heard::ATTEMPT_MAX;
use super::signals::Fresh;
use crate::broker::Command;
use crate::clock::Moment;
use crate::engine::EngineError;
use crate::engine::Sequence;
use crate::engine::pool::{BatchResult, PoolEvent, Report};
use crate::engine::tokenize::{self, Progress};
use crate::job::{JobKey, Lane, Refusal};
use crate::logic::event::{BatchId, EngineId, Event, Item, TokenizerId, Worker};
use crate::logic::ledger::Stage;
use crate::logic::pressure::Memory;
use crate::telemetry::memory;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::mpsc::{self, error::TrySendError};
use tracing::{error, info};

/// What engines and tokenizers report.
#[derive(Debug)]
pub enum Done {
    /// An engine finished a layer.
    Step(EngineId),
    /// An idle engine answered, and whether what it computed was right.
    Tried(EngineId, bool),
    /// An engine finished a batch.
    Batch(EngineId, BatchId, BatchResult),
    /// A tokenizer took up a job, got on in it, or is through with it.
    Tokenizer(TokenizerId, Progress),
    /// A job's texts are tokens.
    Tokens(JobKey, Result<Vec<Sequence>, Refusal>),
    /// A reading of memory.
    Memory(Memory),
    /// A model comes or goes.
    Loading(Loading),
    /// The configuration has been read again, or cannot be.
    Configuration(Result<Box<Fresh>, String>),
}

/// Starts the thread that loads models. A step may be dropped when the loop is behind: the next follows soon.
pub fn start_loader(done: mpsc::Sender<Done>) -> std::io::Result<Loader> {
    Loader::start(move |loading| {
        if matches!(loading, Loading::Step(_)) {
            let _ = done.try_send(Done::Loading(loading));
        } else {
            let _ = done.blocking_send(Done::Loading(loading));
        }
    })
}

/// Carries readings of memory to the loop. One may be dropped when the loop is behind: the next follows soon.
pub fn watch_memory(done: mpsc::Sender<Done>) -> std::io::Result<()> {
    memory::watch(move |reading| {
        !matches!(done.try_send(Done::Memory(reading)), Err(TrySendError::Closed(_)))
    })
}

/// Carries the tokenizers' reports to the loop, as [`report`] does for the engines.
pub fn report_tokenizers(done: mpsc::Sender<Done>) -> tokenize::Report {
    Arc::new(move |tokenizer, progress| {
        let said = Done::Tokenizer(TokenizerId(tokenizer), progress);
        if progress == Progress::Step {
            let _ = done.try_send(said);
        } else {
            let _ = done.blocking_send(said);
        }
    })
}

/// Carries engine events to the loop. A step may be dropped when the loop is behind: it only says that
/// the engine moves, and the batch's end says so too.
pub fn report(done: mpsc::Sender<Done>) -> Report {
    Arc::new(move |event| match event {
        PoolEvent::Step { engine, .. } => {
            let _ = done.try_send(Done::Step(EngineId(engine)));
        }
        PoolEvent::Tried { engine, right } => {
            let _ = done.blocking_send(Done::Tried(EngineId(engine), right));
        }
        PoolEvent::Done {
            engine,
            batch,
            result,
        } => {
            let _ = done.blocking_send(Done::Batch(EngineId(engine), BatchId(batch), result));
        }
    })
}

impl Loop {
    pub(super) fn work_done(&mut self, done: Done) -> Option<Event> {
        Some(match done {
            Done::Step(engine) => Event::BatchStep { engine },
            Done::Tried(engine, true) => Event::Tried(Worker::Engine(engine)),
            Done::Tried(engine, false) => {
                error!(engine = engine.0, "an engine computes wrong");
                Event::CanaryWrong
            }
            Done::Tokenizer(tokenizer, Progress::Tried) => Event::Tried(Worker::Tokenizer(tokenizer)),
            Done::Tokenizer(tokenizer, Progress::Began) => Event::TokenizerBegan { tokenizer },
            Done::Tokenizer(tokenizer, Progress::Step) => Event::TokenizerStep { tokenizer },
            Done::Tokenizer(tokenizer, Progress::Ended) => Event::TokenizerEnded { tokenizer },
            Done::Tokens(job, result) => {
                self.trace.ends(job);
                let now = self.parts.clock.now();
                let result = result.map(|sequences| {
                    let tokens = sequences.iter().map(|sequence| sequence.ids.len()).collect();
                    if let Some(held) = self.desk.get_mut(&job) {
                        held.tokenized(sequences);
                        held.enters(Stage::Batched, now);
                    }
                    tokens
                });
                Event::Tokenized { job, result }
            }
            Done::Memory(reading) => Event::MemorySeen(reading),
            Done::Loading(loading) => return self.loading(loading),
            Done::Configuration(read) => return self.configured(read),
            Done::Batch(engine, batch, result) => {
                if let Err(error @ EngineError::Device { .. }) = &result {
                    error!(engine = engine.0, %error, "an engine must not be used any more");
                    return Some(Event::CanaryWrong);
                }
                let items = self.batches.remove(&batch)?;
                items.iter().for_each(|item| self.trace.ends(item.job));
                let results = match result {
                    Ok(vectors) => {
                        // Else vectors would go to the wrong inputs.
                        assert_eq!(
                            items.len(),
                            vectors.len(),
                            "an engine answers for each item of its batch"
                        );
                        let pairs = items.iter().zip(vectors);
                        pairs
                            .map(|(item, vector)| self.take_vector(item, vector))
                            .collect()
                    }
                    Err(error) => {
                        error!(engine = engine.0, %error, "a batch failed");
                        vec![Err(error.to_string()); items.len()]
                    }
                };
                Event::BatchDone {
                    engine,
                    batch,
                    results,
                }
            }
        })
    }

    fn loading(&mut self, loading: Loading) -> Option<Event> {
        Some(match loading {
            Loading::Step(line) => {
                if let Some(line) = line {
                    self.loading = Some((line, self.parts.clock.now()));
                    self.start_moves(LOAD_STEP_MAX);
                }
                Event::LoadStep
            }
            Loading::First(_, Err(failure)) => {
                self.failure = Some(failure);
                return None;
            }
            Loading::First(model, Ok(proven)) => {
                self.first_load = false;
                // What jobs take meanwhile is not the model's.
                let bytes = Some(proven.bytes).filter(|_| self.quiet);
                self.parts.catalogue.prove(model, *proven);
                Event::Loaded { model, bytes }
            }
            Loading::Loaded(model, loaded) => {
                info!(
                    model = self.parts.catalogue.entry(model).name,
                    "a model is loaded"
                );
                self.parts.catalogue.put(model, loaded);
                Event::Loaded { model, bytes: None }
            }
            Loading::Failed(model, why) => {
                error!(model = self.parts.catalogue.entry(model).name, %why, "a model cannot be loaded");
                Event::LoadFailed { model, why }
            }
            Loading::Unloaded(model) => {
                // The engines' own part of it goes as well.
                self.parts.pool.tidy();
                info!(
                    model = self.parts.catalogue.entry(model).name,
                    "an idle model is unloaded"
                );
                Event::Unloaded { model }
            }
        })
    }

    /// Orders the next model for the first time, when the one before has been seen to work and what need not be kept of it is
    /// on its way out: they need not fit into memory together.
    pub(super) fn load_next(&mut self) {
        if !self.first_load
            && !self.draining
            && let Some(order) = self.parts.first_loads.pop_front()
        {
            (self.first_load, self.quiet) = (true, self.desk.is_empty());
            self.order(order);
        }
    }

    /// Every model has been in memory and seen to work: from now on, what a death ends may be its own fault.
    pub(super) fn models_proven(&mut self, now: Moment) {
        self.loading = None;
        info!(
            model = self.show.model(),
            engines = self.parts.pool.engines(),
            ready_after_ms = now.as_millis(),
            "models loaded"
        );
        self.parts.resume.store(true, Ordering::Relaxed);
        self.command(Command::Resume);
        self.start_moves(ATTEMPT_MAX);
    }

    fn take_vector(
        &mut self,
        item: &Item,
        vector: Result<Vec<f32>, crate::engine::VectorFault>,
    ) -> Result<(), String> {
        let vector = vector.map_err(|fault| fault.to_string())?;
        if let Some(held) = self.desk.get_mut(&item.job) {
            held.computed(item.input, vector);
            if held.lane == Lane::Probe && !held.canary_is_right(&self.parts.catalogue) {
                return Err("the canary's vector is not the one computed at start".into());
            }
        }
        Ok(())
    }
}
