//! The stage ledger: how much is inside each stage of a job's life, and when something last left it.

use super::event::{EngineId, TokenizerId, Worker};
use crate::clock::Moment;
use crate::job::Lane;
use std::fmt;
use std::time::Duration;

/// A step of a job's life, named after what it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// In the broker's queue, on its way to us.
    Received,
    /// Here, waiting for its model to be loaded, or being read and tokenized.
    Admitted,
    /// In its lane, waiting for a batch.
    Batched,
    /// In an engine.
    Computed,
    /// On its way to the sender, until the broker confirms.
    Published,
    /// Answered, until the acknowledgement is written.
    Acked,
}

impl Stage {
    /// All stages in the order of a job's life.
    pub const ALL: [Stage; 6] = [
        Stage::Received,
        Stage::Admitted,
        Stage::Batched,
        Stage::Computed,
        Stage::Published,
        Stage::Acked,
    ];

    /// The name used in logs, metrics and records.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Received => "received",
            Stage::Admitted => "admitted",
            Stage::Batched => "batched",
            Stage::Computed => "computed",
            Stage::Published => "published",
            Stage::Acked => "acked",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One place where things wait. The clock of a stall runs from the later of "it became occupied" and
/// "something left it".
#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    inside: usize,
    occupied_since: Moment,
    left: Option<Moment>,
}

impl Cell {
    fn enter(&mut self, n: usize, now: Moment) {
        if self.inside == 0 && n > 0 {
            self.occupied_since = now;
        }
        self.inside += n;
    }

    fn leave(&mut self, n: usize, now: Moment) {
        debug_assert!(n <= self.inside, "{n} leave a stage that holds {}", self.inside);
        self.inside = self.inside.saturating_sub(n);
        self.left = Some(now);
    }

    fn waiting(&self, now: Moment) -> Duration {
        if self.inside == 0 {
            return Duration::ZERO;
        }
        now.since(
            self.left
                .map_or(self.occupied_since, |left| left.max(self.occupied_since)),
        )
    }
}

/// A thread that has nothing to do is asked from time to time whether it still would.
#[derive(Clone, Copy, Debug)]
struct Trial {
    /// Since when it owes an answer: since it last did anything, not since it was asked.
    asked: Option<Moment>,
    answered: Moment,
}

impl Trial {
    /// Whether an idle thread is to be asked; if so, it is.
    fn due(&mut self, idle: &Cell, every: Duration, now: Moment) -> bool {
        let last = idle.left.unwrap_or(Moment::ZERO).max(self.answered);
        let due = self.asked.is_none() && idle.inside == 0 && now.since(last) >= every;
        if due {
            self.asked = Some(last);
        }
        due
    }
}

/// All stages. `Computed` is kept per engine, `Admitted` per tokenizer and `Received` per queue as well: one
/// that is stuck must not hide behind a busy one.
#[derive(Clone, Debug)]
pub struct Ledger {
    stages: [Cell; 6],
    engines: Vec<Cell>,
    tokenizers: Vec<Cell>,
    /// Models on their way into memory or out of it: admitted jobs may wait for them, and one thread moves them all.
    moves: Cell,
    engine_trials: Vec<Trial>,
    tokenizer_trials: Vec<Trial>,
    /// Per lane, whether the broker has messages for us that it does not deliver.
    queues: [Cell; Lane::COUNT],
    /// Per lane, the large messages that are being read; each of its consumers reads one at a time.
    readers: [Cell; Lane::COUNT],
}

impl Ledger {
    /// Empty stages, with `engines` places to compute and `tokenizers` to tokenize, all of them well `now`.
    pub fn new(engines: usize, tokenizers: usize, now: Moment) -> Ledger {
        let trial = Trial {
            asked: None,
            answered: now,
        };
        Ledger {
            stages: [Cell::default(); 6],
            engines: vec![Cell::default(); engines],
            tokenizers: vec![Cell::default(); tokenizers],
            moves: Cell::default(),
            engine_trials: vec![trial; engines],
            tokenizer_trials: vec![trial; tokenizers],
            queues: [Cell::default(); Lane::COUNT],
            readers: [Cell::default(); Lane::COUNT],
        }
    }

    /// `n` things entered a stage other than `Computed`.
    pub fn enter(&mut self, stage: Stage, n: usize, now: Moment) {
        self.stages[stage as usize].enter(n, now);
    }

    /// `n` things left a stage other than `Computed`; with zero it is progress inside it.
    pub fn leave(&mut self, stage: Stage, n: usize, now: Moment) {
        self.stages[stage as usize].leave(n, now);
    }

    /// `n` inputs went into an engine.
    pub fn compute(&mut self, engine: usize, n: usize, now: Moment) {
        self.engines[engine].enter(n, now);
        self.stages[Stage::Computed as usize].enter(n, now);
    }

    /// `n` inputs came out of an engine; with zero it is a step inside a batch.
    pub fn computed(&mut self, engine: usize, n: usize, now: Moment) {
        self.engines[engine].leave(n, now);
        self.tried(Worker::Engine(EngineId(engine)), now);
        self.stages[Stage::Computed as usize].leave(n, now);
    }

    /// A tokenizer took up a job.
    pub fn tokenizer_began(&mut self, tokenizer: usize, now: Moment) {
        self.tokenizers[tokenizer].enter(1, now);
        self.tried(Worker::Tokenizer(TokenizerId(tokenizer)), now);
    }

    /// A tokenizer got further in its job, or, with one, to its end.
    pub fn tokenizer_moved(&mut self, tokenizer: usize, ended: usize, now: Moment) {
        self.tokenizers[tokenizer].leave(ended, now);
        self.tried(Worker::Tokenizer(TokenizerId(tokenizer)), now);
    }

    /// A model is to be brought into memory, or out of it.
    pub fn model_moves(&mut self, now: Moment) {
        self.moves.enter(1, now);
    }

    /// That got further, or, with one, to its end. For the jobs that wait for a model this is progress.
    pub fn model_moved(&mut self, ended: usize, now: Moment) {
        self.moves.leave(ended, now);
        self.leave(Stage::Admitted, 0, now);
    }

    /// Threads that have had nothing to do for this long and are to be asked now: a frozen one must not wait
    /// unseen for the next job to be lost in it.
    pub fn trials_due(&mut self, every: Duration, now: Moment) -> Vec<Worker> {
        let engines = self.engine_trials.iter_mut().zip(&self.engines).enumerate();
        let engines = engines
            .filter_map(|(at, (trial, cell))| trial.due(cell, every, now).then_some(EngineId(at)))
            .map(Worker::Engine);
        let tokenizers = self.tokenizer_trials.iter_mut().zip(&self.tokenizers).enumerate();
        let tokenizers = tokenizers
            .filter_map(|(at, (trial, cell))| trial.due(cell, every, now).then_some(TokenizerId(at)))
            .map(Worker::Tokenizer);
        engines.chain(tokenizers).collect()
    }

    /// A thread answered. A batch that an engine was given meanwhile waits for it from now on.
    pub fn tried(&mut self, worker: Worker, now: Moment) {
        let trial = match worker {
            Worker::Engine(engine) => {
                self.engines[engine.0].left = Some(now);
                &mut self.engine_trials[engine.0]
            }
            Worker::Tokenizer(tokenizer) => &mut self.tokenizer_trials[tokenizer.0],
        };
        (trial.asked, trial.answered) = (None, now);
    }

    /// A delivery came. Any is progress of the way here, but only a canary's own coming ends its waiting:
    /// a probe queue that delivers nothing must not hide behind the others, nor they behind it.
    pub fn received(&mut self, lane: Lane, now: Moment) {
        self.queues[lane as usize].left = Some(now);
        let cell = &mut self.stages[Stage::Received as usize];
        if lane == Lane::Probe {
            cell.inside = cell.inside.saturating_sub(1);
        }
        cell.left = Some(now);
    }

    /// A look ahead brought a message: the way here is open, which says nothing of the lane's own consumer.
    pub fn fetched(&mut self, now: Moment) {
        self.stages[Stage::Received as usize].left = Some(now);
    }

    /// A large message of the lane is being read.
    pub fn reading(&mut self, lane: Lane, now: Moment) {
        self.readers[lane as usize].enter(1, now);
    }

    /// It is read.
    pub fn read(&mut self, lane: Lane, now: Moment) {
        self.readers[lane as usize].leave(1, now);
    }

    /// The broker was asked how a lane's queue stands: `waits` says that it has messages which it could
    /// deliver to us.
    pub fn queue_seen(&mut self, lane: Lane, waits: bool, now: Moment) {
        let cell = &mut self.queues[lane as usize];
        if !waits {
            cell.inside = 0;
        } else if cell.inside == 0 {
            cell.enter(1, now);
        }
    }

    /// `n` things are taken out of a stage other than `Computed` without its having done anything for
    /// them: their callers no longer wait, or they are handed back. That is no progress, else a stuck
    /// stage would look alive for as long as jobs run into their deadlines inside it.
    pub fn withdraw(&mut self, stage: Stage, n: usize) {
        let cell = &mut self.stages[stage as usize];
        debug_assert!(
            n <= cell.inside,
            "{n} are withdrawn from a stage that holds {}",
            cell.inside
        );
        cell.inside = cell.inside.saturating_sub(n);
    }

    /// The stage's stall clock starts anew.
    pub fn restart(&mut self, stage: Stage, now: Moment) {
        self.stages[stage as usize].occupied_since = now;
        if stage == Stage::Received {
            self.queues.iter_mut().for_each(|cell| cell.occupied_since = now);
        }
    }

    /// The session is gone, and with it all of its jobs that was not in an engine: `inside` is what is left.
    pub fn session_lost(&mut self, inside: &[usize; Stage::ALL.len()]) {
        for stage in Stage::ALL {
            if stage != Stage::Computed {
                self.stages[stage as usize].inside = inside[stage as usize];
            }
        }
        for cell in self.queues.iter_mut().chain(&mut self.readers) {
            cell.inside = 0;
        }
    }

    /// What is inside a stage.
    pub fn inside(&self, stage: Stage) -> usize {
        self.stages[stage as usize].inside
    }

    /// How long something has been waiting in a stage without anything leaving it. What waits for a batch
    /// or for a tokenizer while all of those are busy is judged by them.
    pub fn waiting_for(&self, stage: Stage, now: Moment) -> Duration {
        let own = &self.stages[stage as usize];
        match stage {
            Stage::Received => longest(&self.queues, now)
                .max(longest(&self.readers, now))
                .max(own.waiting(now)),
            Stage::Admitted => longest(&self.tokenizers, now)
                .max(self.moves.waiting(now))
                .max(unanswered(&self.tokenizer_trials, now))
                .max(waiting_before(&self.tokenizers, own, now)),
            Stage::Batched => waiting_before(&self.engines, own, now),
            Stage::Computed => longest(&self.engines, now).max(unanswered(&self.engine_trials, now)),
            Stage::Published | Stage::Acked => own.waiting(now),
        }
    }

    /// When something last left a stage.
    pub fn left(&self, stage: Stage) -> Option<Moment> {
        self.stages[stage as usize].left
    }

    /// When something last left any stage.
    pub fn last_left(&self) -> Option<Moment> {
        self.stages.iter().filter_map(|cell| cell.left).max()
    }
}

/// The longest that something has been waiting in any of these places.
fn longest(places: &[Cell], now: Moment) -> Duration {
    let waiting = places.iter().map(|cell| cell.waiting(now));
    waiting.max().unwrap_or_default()
}

/// The longest that any of these threads has owed an answer.
fn unanswered(trials: &[Trial], now: Moment) -> Duration {
    let waiting = trials.iter().filter_map(|trial| Some(now.since(trial.asked?)));
    waiting.max().unwrap_or_default()
}

/// How long something has been waiting in `stage` although one of the `places` behind it was free.
fn waiting_before(places: &[Cell], stage: &Cell, now: Moment) -> Duration {
    if places.iter().all(|cell| cell.inside > 0) {
        return Duration::ZERO;
    }
    let moved = places.iter().filter_map(|cell| cell.left).max();
    stage.waiting(now).min(now.since(moved.unwrap_or(Moment::ZERO)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    #[test]
    fn an_empty_stage_never_waits() {
        let mut ledger = Ledger::new(1, 1, at(0));
        assert_eq!(ledger.waiting_for(Stage::Published, at(99)), Duration::ZERO);
        ledger.enter(Stage::Published, 2, at(10));
        assert_eq!(
            ledger.waiting_for(Stage::Published, at(99)),
            Duration::from_millis(89)
        );
        ledger.leave(Stage::Published, 1, at(50));
        assert_eq!(
            ledger.waiting_for(Stage::Published, at(99)),
            Duration::from_millis(49)
        );
        ledger.leave(Stage::Published, 1, at(60));
        assert_eq!(ledger.waiting_for(Stage::Published, at(99)), Duration::ZERO);
    }

    /// A stuck engine is seen although its neighbour works on.
    #[test]
    fn engines_are_judged_one_by_one() {
        let mut ledger = Ledger::new(2, 1, at(0));
        ledger.compute(0, 4, at(0));
        ledger.compute(1, 4, at(0));
        ledger.computed(1, 4, at(30));
        ledger.compute(1, 4, at(30));
        ledger.computed(1, 0, at(90));
        assert_eq!(
            ledger.waiting_for(Stage::Computed, at(100)),
            Duration::from_millis(100)
        );
        assert_eq!(ledger.inside(Stage::Computed), 8);
    }

    /// Waiting for a batch is no stall of its own while the engines are busy.
    #[test]
    fn a_full_next_stage_takes_the_blame() {
        let mut ledger = Ledger::new(1, 1, at(0));
        ledger.compute(0, 1, at(0));
        ledger.enter(Stage::Batched, 5, at(0));
        assert_eq!(ledger.waiting_for(Stage::Batched, at(100)), Duration::ZERO);
        ledger.computed(0, 1, at(100));
        assert_eq!(
            ledger.waiting_for(Stage::Batched, at(130)),
            Duration::from_millis(30)
        );
    }

    /// A stuck tokenizer is seen although its neighbour works on, and a slow one that moves is not stuck.
    #[test]
    fn tokenizers_are_judged_one_by_one() {
        let mut ledger = Ledger::new(1, 2, at(0));
        ledger.enter(Stage::Admitted, 2, at(0));
        ledger.tokenizer_began(0, at(0));
        ledger.tokenizer_began(1, at(0));
        ledger.leave(Stage::Admitted, 1, at(60));
        ledger.tokenizer_moved(1, 1, at(60));
        assert_eq!(
            ledger.waiting_for(Stage::Admitted, at(100)),
            Duration::from_millis(100)
        );
        ledger.tokenizer_moved(0, 0, at(90));
        assert_eq!(
            ledger.waiting_for(Stage::Admitted, at(100)),
            Duration::from_millis(10)
        );
    }

    /// Messages that the broker has and does not deliver are a stall of the way here.
    #[test]
    fn an_undelivered_queue_waits_until_it_delivers_or_is_empty() {
        let mut ledger = Ledger::new(1, 1, at(0));
        ledger.queue_seen(Lane::Bulk, true, at(10));
        ledger.queue_seen(Lane::Bulk, true, at(40));
        ledger.received(Lane::Interactive, at(50));
        assert_eq!(
            ledger.waiting_for(Stage::Received, at(60)),
            Duration::from_millis(50)
        );
        ledger.received(Lane::Bulk, at(70));
        assert_eq!(
            ledger.waiting_for(Stage::Received, at(75)),
            Duration::from_millis(5)
        );
        ledger.queue_seen(Lane::Bulk, false, at(80));
        assert_eq!(ledger.waiting_for(Stage::Received, at(99)), Duration::ZERO);
    }
}
