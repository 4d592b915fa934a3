//! Engine threads: one batch after another, the next one lying ready. What is urgent comes between two layers of the
//! batch that runs.

use super::gpu::Place;
use super::{Engine, EngineError, Model, Sequence, VectorFault, kernel, trial};
use crate::clock::{Clock, Moment};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

/// Batches that wait for one engine while it computes. One lies ready, an urgent one may come ahead of it, and the third
/// covers the time in which the other half of the program is busy with results.
pub const QUEUE: usize = 3;

/// One batch for one engine.
#[derive(Debug, Clone)]
pub struct Work {
    /// Names the batch in the events.
    pub batch: u64,
    /// Which model computes it.
    pub model: Arc<Model>,
    /// What is computed together.
    pub sequences: Vec<Sequence>,
    /// Whether it goes ahead of what the engine holds, and of the layers of the batch that runs which are left.
    pub urgent: bool,
}

/// One result for each sequence of a batch, or why there is none.
pub type BatchResult = Result<Vec<Result<Vec<f32>, VectorFault>>, EngineError>;

/// What an engine thread reports.
#[derive(Debug)]
pub enum PoolEvent {
    /// A layer of the batch is done.
    Step {
        /// Which engine.
        engine: usize,
        /// Which batch.
        batch: u64,
    },
    /// The engine was asked whether it still works, and has computed something.
    Tried {
        /// Which engine.
        engine: usize,
        /// Whether the result was right.
        right: bool,
    },
    /// The batch is done.
    Done {
        /// Which engine.
        engine: usize,
        /// Which batch.
        batch: u64,
        /// Its vectors, before normalisation.
        result: BatchResult,
    },
}

/// Takes events on the engine's thread; it must not wait.
pub type Report = Arc<dyn Fn(PoolEvent) + Send + Sync>;

/// Engine threads, named `engine-0` and so on, each with a queue of its own.
///
/// A panic in an engine ends its thread through the panic hook; nothing here catches it.
pub struct Pool {
    queues: Vec<Arc<Queue>>,
    rest: Arc<Rest>,
    threads: Vec<JoinHandle<()>>,
}

/// Until when engines rest.
struct Rest {
    clock: Clock,
    /// Microseconds on that clock.
    until: AtomicU64,
}

impl Rest {
    /// Returns when the rest is over, at once if there is none.
    fn take(&self) {
        loop {
            let until = Duration::from_micros(self.until.load(Ordering::Relaxed));
            let left = until.saturating_sub(self.clock.now().since(Moment::ZERO));
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left);
        }
    }
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    work: VecDeque<Work>,
    /// Engines of models that are gone are to be given up.
    tidy: bool,
    /// The engine owes an answer.
    asked: bool,
    closed: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// Starts `engines` threads, at least one.
    ///
    /// # Errors
    /// The system starts no more threads.
    pub fn start(engines: usize, clock: Clock, report: Report) -> std::io::Result<Pool> {
        let queues: Vec<Arc<Queue>> = (0..engines.max(1)).map(|_| Arc::default()).collect();
        let rest = Arc::new(Rest {
            clock,
            until: AtomicU64::new(0),
        });
        let threads = queues
            .iter()
            .enumerate()
            .map(|(engine, queue)| {
                let (queue, rest, report) = (queue.clone(), rest.clone(), report.clone());
                std::thread::Builder::new()
                    .name(format!("engine-{engine}"))
                    .spawn(move || run(engine, &queue, &rest, &report))
            })
            .collect::<std::io::Result<Vec<_>>>()?;
        Ok(Pool {
            queues,
            rest,
            threads,
        })
    }

    /// How many engines there are; they are numbered from zero.
    pub fn engines(&self) -> usize {
        self.queues.len()
    }

    /// Queues a batch for an engine, or hands it back when that engine has [`QUEUE`] waiting.
    ///
    /// # Errors
    /// The work itself.
    pub fn submit(&self, engine: usize, work: Work) -> Result<(), Work> {
        let Some(queue) = self.queues.get(engine) else {
            return Err(work);
        };
        let mut state = queue.lock();
        if state.work.len() >= QUEUE {
            return Err(work);
        }
        if work.urgent {
            state.work.push_front(work);
        } else {
            state.work.push_back(work);
        }
        drop(state);
        queue.changed.notify_one();
        Ok(())
    }

    /// Has every engine rest until then, from the end of the layer that it computes.
    pub fn rest(&self, until: Moment) {
        let until = until.since(Moment::ZERO).as_micros();
        self.rest
            .until
            .store(u64::try_from(until).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Has an engine report [`PoolEvent::Tried`], before it takes up another batch.
    pub fn ask(&self, engine: usize) {
        if let Some(queue) = self.queues.get(engine) {
            queue.lock().asked = true;
            queue.changed.notify_one();
        }
    }

    /// Has every engine give up what it keeps for models that have no other owner. To be called after the last
    /// `Arc` of a model was let go, so that its memory is returned.
    pub fn tidy(&self) {
        for queue in &self.queues {
            queue.lock().tidy = true;
            queue.changed.notify_one();
        }
    }
}

impl Drop for Pool {
    /// Finishes the batch that each engine computes, forgets those that wait, and joins the threads.
    fn drop(&mut self) {
        for queue in &self.queues {
            let mut state = queue.lock();
            state.closed = true;
            state.work.clear();
            drop(state);
            queue.changed.notify_one();
        }
        for thread in self.threads.drain(..) {
            // A panic has been through the hook already.
            let _ = thread.join();
        }
    }
}

enum Next {
    Work(Work),
    Tidy,
    Answer,
    End,
}

fn next(queue: &Queue) -> Next {
    let mut state = queue.lock();
    loop {
        if state.closed {
            return Next::End;
        }
        if std::mem::take(&mut state.asked) {
            return Next::Answer;
        }
        if std::mem::take(&mut state.tidy) {
            return Next::Tidy;
        }
        if let Some(work) = state.work.pop_front() {
            return Next::Work(work);
        }
        state = queue.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

/// Urgent work, if there is some: it lies in front.
fn next_urgent(queue: &Queue) -> Option<Work> {
    let mut state = queue.lock();
    let waits = state.work.front().is_some_and(|work| work.urgent);
    waits.then(|| state.work.pop_front()).flatten()
}

fn run(engine: usize, queue: &Queue, rest: &Rest, report: &Report) {
    let arch = kernel::arch();
    // What is urgent is computed while another batch is half done, so it needs buffers of its own.
    let (mut own, mut between) = (Engines::default(), Engines::default());
    loop {
        let work = match next(queue) {
            Next::Work(work) => work,
            Next::Answer => {
                let right = trial::computes(arch) && own.compute() && between.compute();
                report(PoolEvent::Tried { engine, right });
                continue;
            }
            Next::Tidy => {
                own.tidy();
                between.tidy();
                continue;
            }
            Next::End => return,
        };
        let (batch, urgent) = (work.batch, work.urgent);
        let result = own.embed(work, &mut || {
            report(PoolEvent::Step { engine, batch });
            rest.take();
            // The urgent let each other be through first.
            if urgent {
                return;
            }
            while let Some(work) = next_urgent(queue) {
                let batch = work.batch;
                let result = between.embed(work, &mut || {
                    report(PoolEvent::Step { engine, batch });
                    rest.take();
                });
                report(PoolEvent::Done {
                    engine,
                    batch,
                    result,
                });
            }
        });
        report(PoolEvent::Done {
            engine,
            batch,
            result,
        });
    }
}

/// What one thread keeps for each model. A handful of models at most, so a list is searched faster than a map.
#[derive(Default)]
struct Engines {
    engines: Vec<(Weak<Model>, Box<dyn Engine>)>,
    /// Devices that it has computed on, for the time when their models are gone.
    places: Vec<Place>,
}

impl Engines {
    /// Gives up what is left of models that are gone.
    fn tidy(&mut self) {
        self.engines.retain(|(model, _)| model.strong_count() > 0);
    }

    /// Whether the devices compute right.
    fn compute(&self) -> bool {
        self.places.iter().all(Place::computes)
    }

    fn embed(&mut self, work: Work, step: &mut dyn FnMut()) -> BatchResult {
        let Work { model, sequences, .. } = work;
        // One of a model that went while its last batch was still under way.
        self.tidy();
        let index = self
            .engines
            .iter()
            .position(|(known, _)| std::ptr::eq(known.as_ptr(), Arc::as_ptr(&model)));
        let index = index.unwrap_or_else(|| {
            self.engines.push((Arc::downgrade(&model), model.engine()));
            let new = model.place().cloned();
            let places = &mut self.places;
            places.extend(new.filter(|place| !places.iter().any(|known| known.is_same(place))));
            self.engines.len() - 1
        });
        let sequences: Vec<&Sequence> = sequences.iter().collect();
        // The model is let go with the end, before that is reported: whoever hears of it may want to unload it.
        self.engines[index].1.embed(&sequences, step)
    }
}
