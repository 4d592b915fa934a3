//! The stage ledger: how much is inside each stage of a job's life, and when something last left it.

use crate::clock::Moment;
use std::fmt;
use std::time::Duration;

/// A step of a job's life, named after what it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// In the broker's queue, on its way to us.
    Received,
    /// Here, being read and tokenized.
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

/// All stages. `Computed` is kept per engine: one stuck engine must not hide behind a busy one.
#[derive(Clone, Debug)]
pub struct Ledger {
    stages: [Cell; 6],
    engines: Vec<Cell>,
}

impl Ledger {
    /// Empty stages, with `engines` places to compute.
    pub fn new(engines: usize) -> Ledger {
        Ledger {
            stages: [Cell::default(); 6],
            engines: vec![Cell::default(); engines],
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
        self.stages[Stage::Computed as usize].leave(n, now);
    }

    /// A delivery came. Any is progress of the way here, but only a canary's own coming ends its waiting:
    /// a probe queue that delivers nothing must not hide behind the others.
    pub fn received(&mut self, canary: bool, now: Moment) {
        let cell = &mut self.stages[Stage::Received as usize];
        if canary {
            cell.inside = cell.inside.saturating_sub(1);
        }
        cell.left = Some(now);
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
    }

    /// The session is gone, and with it all that was not in an engine.
    pub fn session_lost(&mut self) {
        for stage in Stage::ALL {
            if stage != Stage::Computed {
                self.stages[stage as usize].inside = 0;
            }
        }
    }

    /// What is inside a stage.
    pub fn inside(&self, stage: Stage) -> usize {
        self.stages[stage as usize].inside
    }

    /// How long something has been waiting in a stage without anything leaving it. Inputs that wait for
    /// a batch while every engine is busy are judged by the engines.
    pub fn waiting_for(&self, stage: Stage, now: Moment) -> Duration {
        match stage {
            Stage::Computed => self
                .engines
                .iter()
                .map(|cell| cell.waiting(now))
                .max()
                .unwrap_or_default(),
            Stage::Batched => {
                if self.engines.iter().all(|cell| cell.inside > 0) {
                    return Duration::ZERO;
                }
                let freed = self.stages[Stage::Computed as usize].left.unwrap_or(Moment::ZERO);
                self.stages[stage as usize].waiting(now).min(now.since(freed))
            }
            _ => self.stages[stage as usize].waiting(now),
        }
    }

    /// When something last left any stage.
    pub fn last_left(&self) -> Option<Moment> {
        self.stages.iter().filter_map(|cell| cell.left).max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    #[test]
    fn an_empty_stage_never_waits() {
        let mut ledger = Ledger::new(1);
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
        let mut ledger = Ledger::new(2);
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
        let mut ledger = Ledger::new(1);
        ledger.compute(0, 1, at(0));
        ledger.enter(Stage::Batched, 5, at(0));
        assert_eq!(ledger.waiting_for(Stage::Batched, at(100)), Duration::ZERO);
        ledger.computed(0, 1, at(100));
        assert_eq!(
            ledger.waiting_for(Stage::Batched, at(130)),
            Duration::from_millis(30)
        );
    }
}
