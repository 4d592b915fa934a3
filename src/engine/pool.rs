//! Engine threads: one batch after another, the next one lying ready. What is urgent comes between two layers of the
//! batch that runs. An engine that has nothing to do helps one that has, until it has work of its own.

use super::gpu::Place;
use super::team::Team;
use super::{Engine, EngineError, Model, Sequence, VectorFault, device, kernel, trial};
use crate::clock::{Clock, Moment};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
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
    crew: Arc<Crew>,
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

/// All engines, as one of them sees the others.
struct Crew {
    queues: Vec<Queue>,
    /// How many of them wait for something to do, roughly: they are asked one by one only if there are some.
    idle: AtomicUsize,
    /// Whether the machine has processors for two of them.
    teams: bool,
    /// Shares of work that one has done for another.
    helped: AtomicU64,
}

impl Crew {
    /// Asks an engine other than `leader` that waits for something to do for its help; false if there is none.
    fn ask(&self, leader: usize, team: &Arc<Team>) -> bool {
        if self.idle.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let mut others = self
            .queues
            .iter()
            .enumerate()
            .filter(|(engine, _)| *engine != leader);
        others.any(|(_, queue)| {
            let mut state = queue.lock();
            let free = state.idle && !state.has_news() && state.help.is_none();
            if free {
                state.help = Some(team.clone());
                drop(state);
                queue.changed.notify_one();
            }
            free
        })
    }
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    /// Whether the state holds something that is more than help: seen without the lock.
    news: AtomicBool,
}

#[derive(Default)]
struct State {
    work: VecDeque<Work>,
    /// The engine waits for something to do.
    idle: bool,
    /// Who wants its help, where it has nothing to do.
    help: Option<Arc<Team>>,
    /// Engines of models that are gone are to be given up.
    tidy: bool,
    /// The engine owes an answer.
    asked: bool,
    closed: bool,
}

impl State {
    fn has_news(&self) -> bool {
        self.closed || self.asked || self.tidy || !self.work.is_empty()
    }
}

impl Queue {
    /// Changes the state and tells its engine, also one that helps another.
    fn tell(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        self.news.store(state.has_news(), Ordering::Relaxed);
        drop(state);
        self.changed.notify_one();
    }

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
        let crew = Arc::new(Crew {
            queues: (0..engines.max(1)).map(|_| Queue::default()).collect(),
            idle: AtomicUsize::default(),
            teams: device::threads() > 1,
            helped: AtomicU64::default(),
        });
        let rest = Arc::new(Rest {
            clock,
            until: AtomicU64::new(0),
        });
        let threads = (0..crew.queues.len())
            .map(|engine| {
                let (crew, rest, report) = (crew.clone(), rest.clone(), report.clone());
                std::thread::Builder::new()
                    .name(format!("engine-{engine}"))
                    .spawn(move || run(engine, &crew, &rest, &report))
            })
            .collect::<std::io::Result<Vec<_>>>()?;
        Ok(Pool { crew, rest, threads })
    }

    /// How many engines there are; they are numbered from zero.
    pub fn engines(&self) -> usize {
        self.crew.queues.len()
    }

    /// Shares of batches that an engine has done for another, whose batch it was.
    pub fn shares_helped(&self) -> u64 {
        self.crew.helped.load(Ordering::Relaxed)
    }

    /// Queues a batch for an engine, or hands it back when that engine has [`QUEUE`] waiting.
    ///
    /// # Errors
    /// The work itself.
    pub fn submit(&self, engine: usize, work: Work) -> Result<(), Work> {
        let Some(queue) = self.crew.queues.get(engine) else {
            return Err(work);
        };
        let mut refused = None;
        queue.tell(|state| {
            if state.work.len() >= QUEUE {
                refused = Some(work);
            } else if work.urgent {
                state.work.push_front(work);
            } else {
                state.work.push_back(work);
            }
        });
        refused.map_or(Ok(()), Err)
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
        if let Some(queue) = self.crew.queues.get(engine) {
            queue.tell(|state| state.asked = true);
        }
    }

    /// Has every engine give up what it keeps for models that have no other owner. To be called after the last
    /// `Arc` of a model was let go, so that its memory is returned.
    pub fn tidy(&self) {
        for queue in &self.crew.queues {
            queue.tell(|state| state.tidy = true);
        }
    }
}

impl Drop for Pool {
    /// Finishes the batch that each engine computes, forgets those that wait, and joins the threads.
    fn drop(&mut self) {
        for queue in &self.crew.queues {
            queue.tell(|state| {
                state.closed = true;
                state.work.clear();
            });
        }
        for thread in self.threads.drain(..) {
            // A panic has been through the hook already.
            let _ = thread.join();
        }
    }
}

enum Next {
    Work(Work),
    Help(Arc<Team>),
    Tidy,
    Answer,
    End,
}

fn next(crew: &Crew, engine: usize) -> Next {
    let queue = &crew.queues[engine];
    let mut state = queue.lock();
    loop {
        let next = state.next();
        queue.news.store(state.has_news(), Ordering::Relaxed);
        if let Some(next) = next {
            return next;
        }
        state.idle = true;
        crew.idle.fetch_add(1, Ordering::Relaxed);
        state = queue.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        crew.idle.fetch_sub(1, Ordering::Relaxed);
        state.idle = false;
    }
}

impl State {
    fn next(&mut self) -> Option<Next> {
        if self.has_news()
            && let Some(team) = self.help.take()
        {
            team.decline();
        }
        if self.closed {
            return Some(Next::End);
        }
        if std::mem::take(&mut self.asked) {
            return Some(Next::Answer);
        }
        if std::mem::take(&mut self.tidy) {
            return Some(Next::Tidy);
        }
        let work = self.work.pop_front().map(Next::Work);
        work.or_else(|| self.help.take().map(Next::Help))
    }
}

/// Urgent work, if there is some: it lies in front.
fn next_urgent(queue: &Queue) -> Option<Work> {
    let mut state = queue.lock();
    let waits = state.work.front().is_some_and(|work| work.urgent);
    waits.then(|| state.work.pop_front()).flatten()
}

fn run(engine: usize, crew: &Arc<Crew>, rest: &Rest, report: &Report) {
    let arch = kernel::arch();
    let queue = &crew.queues[engine];
    let team = crew.teams.then(|| {
        // Weak: who asks belongs to the crew, and a question that nobody takes up lies in it.
        let crew = Arc::downgrade(crew);
        Team::new(move |team| crew.upgrade().is_some_and(|crew| crew.ask(engine, team)))
    });
    // What is urgent is computed while another batch is half done, so it needs buffers of its own.
    let (mut own, mut between) = (Engines::new(team.clone()), Engines::new(team));
    loop {
        let work = match next(crew, engine) {
            Next::Work(work) => work,
            Next::Help(team) => {
                let shares = team.help(&|| queue.news.load(Ordering::Relaxed));
                crew.helped.fetch_add(shares, Ordering::Relaxed);
                continue;
            }
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
struct Engines {
    /// The thread's, if engines help each other.
    team: Option<Arc<Team>>,
    engines: Vec<(Weak<Model>, Box<dyn Engine>)>,
    /// Devices that it has computed on, for the time when their models are gone.
    places: Vec<Place>,
}

impl Engines {
    fn new(team: Option<Arc<Team>>) -> Engines {
        Engines {
            team,
            engines: Vec::new(),
            places: Vec::new(),
        }
    }

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
            let mut engine = model.engine();
            if let Some(team) = &self.team {
                engine.lead(team);
            }
            self.engines.push((Arc::downgrade(&model), engine));
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
