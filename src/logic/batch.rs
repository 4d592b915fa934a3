//! Batches: which inputs run through a model together, and on which engine.

use super::event::{BatchId, CallerId, EngineId, Item, ModelId};
use crate::job::Lane;
use std::collections::HashMap;

/// How many token budgets of waiting inputs are looked at to find inputs of like length.
pub const WINDOW_BUDGETS: usize = 4;
/// Batches that one engine may hold: one that runs, and one that lies ready.
const PER_ENGINE: usize = 2;

/// Chooses from `window` (in order of waiting; the first is the oldest) the inputs of one batch: the
/// oldest always, and around it those of most similar length, up to `budget` tokens. So no input waits
/// longer than there are inputs before it, and a batch holds at least one input, however long.
/// Returns places in `window`, by length.
pub fn compose(window: &[Item], budget: usize) -> Vec<usize> {
    let mut by_length: Vec<usize> = (0..window.len()).collect();
    by_length.sort_by_key(|&place| (window[place].tokens, place));
    let Some(oldest) = by_length.iter().position(|&place| place == 0) else {
        return Vec::new();
    };
    let length = |at: usize| window[by_length[at]].tokens;
    let (mut low, mut high, mut total) = (oldest, oldest + 1, length(oldest));
    loop {
        let shorter = (low > 0)
            .then(|| length(low - 1))
            .filter(|tokens| total + tokens <= budget);
        let longer = (high < by_length.len())
            .then(|| length(high))
            .filter(|tokens| total + tokens <= budget);
        let own = length(oldest);
        match (shorter, longer) {
            (Some(tokens), other) if other.is_none_or(|long| own - tokens <= long - own) => {
                low -= 1;
                total += tokens;
            }
            (_, Some(tokens)) => {
                high += 1;
                total += tokens;
            }
            _ => return by_length[low..high].to_vec(),
        }
    }
}

/// A batch in an engine.
#[derive(Clone, Debug)]
pub struct Running {
    /// Where it runs.
    pub engine: EngineId,
    /// Which model computes it.
    pub model: ModelId,
    /// What is in it.
    pub items: Vec<Item>,
    /// Whether it is a part of one that failed whole.
    pub part: bool,
}

/// The engines and what they hold.
#[derive(Clone, Debug)]
pub struct Batcher {
    held: Vec<usize>,
    running: HashMap<BatchId, Running>,
    next: u64,
}

impl Batcher {
    /// `engines` idle engines.
    pub fn new(engines: usize) -> Batcher {
        Batcher {
            held: vec![0; engines],
            running: HashMap::new(),
            next: 0,
        }
    }

    /// Whether any engine could take a further batch.
    pub fn has_room(&self) -> bool {
        self.held.iter().any(|&held| held < PER_ENGINE)
    }

    /// The engine that should get the next batch, if `waiting` tokens are worth one: an idle engine takes
    /// anything, a busy one lays a full batch ready.
    pub fn free_engine(&self, waiting: usize, budget: usize) -> Option<EngineId> {
        let (engine, &held) = self.held.iter().enumerate().min_by_key(|&(_, held)| held)?;
        (held == 0 || (held < PER_ENGINE && waiting >= budget)).then_some(EngineId(engine))
    }

    /// Tokens for the next batch: the budget, or an equal share of less among the idle engines.
    pub fn share(&self, waiting: usize, budget: usize) -> usize {
        let idle = self.held.iter().filter(|&&held| held == 0).count().max(1);
        waiting.div_ceil(idle).min(budget)
    }

    /// A batch goes to its engine.
    pub fn start(&mut self, engine: EngineId, model: ModelId, items: Vec<Item>, part: bool) -> BatchId {
        self.next += 1;
        let batch = BatchId(self.next);
        self.held[engine.0] += 1;
        let running = Running {
            engine,
            model,
            items,
            part,
        };
        self.running.insert(batch, running);
        batch
    }

    /// A batch is done. `None` if there is no such batch.
    pub fn finish(&mut self, batch: BatchId) -> Option<Running> {
        let running = self.running.remove(&batch)?;
        self.held[running.engine.0] -= 1;
        Some(running)
    }

    /// Whether any engine holds a batch.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty()
    }
}

/// What is drawn for one engine.
#[derive(Clone, Debug)]
pub struct Draw {
    /// The model of all of it.
    pub model: ModelId,
    /// The lane of the first in it.
    pub lead: Lane,
    /// Whether that job is a canary.
    pub canary: bool,
    /// Whether it is computed with no other's inputs.
    pub alone: bool,
    /// The caller of the first in it.
    pub caller: CallerId,
    /// In order of waiting.
    pub window: Vec<Item>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::JobKey;
    use proptest::prelude::*;

    fn window(tokens: &[usize]) -> Vec<Item> {
        tokens
            .iter()
            .enumerate()
            .map(|(input, &tokens)| Item {
                job: JobKey(1),
                input,
                tokens,
            })
            .collect()
    }

    #[test]
    fn like_lengths_travel_together() {
        assert_eq!(compose(&window(&[50, 500, 48, 52, 9]), 155), [2, 0, 3]);
        assert_eq!(compose(&window(&[900, 1]), 512), [0]);
        assert!(compose(&[], 512).is_empty());
    }

    proptest! {
        /// Goal: a batch always holds the oldest, never repeats, and keeps to the budget unless one input
        /// alone is over it.
        #[test]
        fn batches_keep_to_the_budget(tokens in proptest::collection::vec(1usize..600, 1..40), budget in 1usize..1024) {
            let window = window(&tokens);
            let chosen = compose(&window, budget);
            let total: usize = chosen.iter().map(|&place| tokens[place]).sum();
            prop_assert!(chosen.contains(&0));
            prop_assert!(total <= budget || chosen == [0]);
            let mut unique = chosen.clone();
            unique.sort_unstable();
            unique.dedup();
            prop_assert_eq!(unique.len(), chosen.len());
        }
    }
}
