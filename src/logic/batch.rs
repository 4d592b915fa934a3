//! Batches: which inputs run through a model together, and on which engine.

use super::event::{BatchId, CallerId, EngineId, Item, ModelId};
use super::lane::BULK_SHARE;
use crate::job::Lane;
use std::collections::HashMap;

/// How many token budgets of waiting inputs are looked at to find inputs of like length.
pub const WINDOW_BUDGETS: usize = 4;
/// Batches that one engine may hold: one that runs, and one that lies ready. An urgent one may come on top.
const PER_ENGINE: usize = 2;
/// How many urgent batches may be computed before a patient one that has begun is through: bulk keeps its share.
const OVERTAKEN_MAX: u32 = BULK_SHARE - 1;

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
    engines: Vec<Held>,
    running: HashMap<BatchId, Running>,
    next: u64,
}

/// What one engine holds.
#[derive(Clone, Debug, Default)]
struct Held {
    batches: Vec<(BatchId, Haste)>,
    /// How many urgent batches went ahead of the patient ones, since one of those was through.
    overtaken: u32,
}

/// Whether somebody waits for a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Haste {
    /// Callers of the interactive lane, or a canary.
    Urgent,
    /// Bulk work, and what goes on from another queue.
    Patient,
}

/// Where a batch goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which engine.
    pub engine: EngineId,
    /// Ahead of all that it holds: between two layers of the batch that runs.
    pub first: bool,
}

impl Held {
    /// Whether an urgent batch may go ahead of what it holds: of patient batches only, and one at a time.
    fn can_be_overtaken(&self) -> bool {
        let patient = self.batches.iter().all(|(_, haste)| *haste == Haste::Patient);
        patient && !self.batches.is_empty() && self.overtaken < OVERTAKEN_MAX
    }
}

impl Batcher {
    /// `engines` idle engines.
    pub fn new(engines: usize) -> Batcher {
        Batcher {
            engines: vec![Held::default(); engines],
            running: HashMap::new(),
            next: 0,
        }
    }

    /// Whether any engine could take a further batch.
    pub fn has_room(&self) -> bool {
        self.engines.iter().any(|held| held.batches.len() < PER_ENGINE)
    }

    /// Whether any engine could take an urgent one, at least.
    pub fn can_be_overtaken(&self) -> bool {
        self.engines.iter().any(Held::can_be_overtaken)
    }

    /// Where the next batch should go, if `waiting` tokens are worth one: an idle engine takes anything, a busy one
    /// lays a full batch ready. An urgent batch of any size goes ahead of the patient ones of an engine, which computes
    /// it behind the layer that it is at: so it waits for one layer and not for a batch.
    pub fn place(&self, waiting: usize, budget: usize, haste: Haste) -> Option<Place> {
        let engines = || self.engines.iter().enumerate();
        let at = |engine: usize, first: bool| Place {
            engine: EngineId(engine),
            first,
        };
        let (least, held) = engines().min_by_key(|(_, held)| held.batches.len())?;
        if held.batches.is_empty() {
            return Some(at(least, false));
        }
        if haste == Haste::Urgent {
            let patient = engines().filter(|(_, held)| held.can_be_overtaken());
            if let Some((engine, _)) = patient.min_by_key(|(_, held)| held.overtaken) {
                return Some(at(engine, true));
            }
        }
        let worth_it = held.batches.len() < PER_ENGINE && waiting >= budget;
        worth_it.then_some(at(least, false))
    }

    /// Tokens for the next batch: the budget, or an equal share of less among the idle engines.
    pub fn share(&self, waiting: usize, budget: usize) -> usize {
        let idle = self.engines.iter().filter(|held| held.batches.is_empty()).count();
        waiting.div_ceil(idle.max(1)).min(budget)
    }

    /// A batch goes to its engine.
    pub fn start(
        &mut self,
        place: Place,
        haste: Haste,
        model: ModelId,
        items: Vec<Item>,
        part: bool,
    ) -> BatchId {
        self.next += 1;
        let batch = BatchId(self.next);
        let held = &mut self.engines[place.engine.0];
        held.batches.push((batch, haste));
        held.overtaken += u32::from(place.first);
        let running = Running {
            engine: place.engine,
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
        let held = &mut self.engines[running.engine.0];
        if held.batches.contains(&(batch, Haste::Patient)) {
            held.overtaken = 0;
        }
        held.batches.retain(|(other, _)| *other != batch);
        Some(running)
    }

    /// How many batches were started, and how many of them are not done: equal only if nothing of this has changed.
    pub fn changes(&self) -> (u64, usize) {
        (self.next, self.running.len())
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

impl Draw {
    /// How many tokens wait in it.
    pub fn tokens(&self) -> usize {
        self.window.iter().map(|item| item.tokens).sum()
    }
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

    fn start(batcher: &mut Batcher, haste: Haste, waiting: usize) -> Option<(usize, bool, BatchId)> {
        let place = batcher.place(waiting, 100, haste)?;
        let batch = batcher.start(place, haste, ModelId(0), window(&[1]), false);
        Some((place.engine.0, place.first, batch))
    }

    /// Goal: an urgent batch waits for none, on either engine; and a second one of the same engine lets it be through first.
    #[test]
    fn the_urgent_go_ahead_of_the_patient() {
        let mut batcher = Batcher::new(2);
        for expected in [(0, false), (1, false), (0, false), (1, false)] {
            let (engine, first, _) = start(&mut batcher, Haste::Patient, 100).unwrap();
            assert_eq!((engine, first), expected);
        }
        assert!(!batcher.has_room() && batcher.can_be_overtaken());
        assert_eq!(start(&mut batcher, Haste::Patient, 100), None);
        let (engine, first, urgent) = start(&mut batcher, Haste::Urgent, 1).unwrap();
        assert!(first);
        let (other, first, _) = start(&mut batcher, Haste::Urgent, 1).unwrap();
        assert!(first && engine != other);
        assert_eq!(start(&mut batcher, Haste::Urgent, 1), None);
        batcher.finish(urgent).unwrap();
        assert_eq!(
            start(&mut batcher, Haste::Urgent, 1).map(|it| (it.0, it.1)),
            Some((engine, true))
        );
        assert_eq!(batcher.finish(urgent).map(|it| it.engine), None);
    }

    /// Goal: urgent work does not go ahead of urgent work, nor to a busy engine while another is idle.
    #[test]
    fn the_urgent_are_in_order_among_themselves() {
        let mut batcher = Batcher::new(2);
        start(&mut batcher, Haste::Patient, 100).unwrap();
        assert_eq!(start(&mut batcher, Haste::Urgent, 1).map(|it| it.1), Some(false));
        assert_eq!(
            start(&mut batcher, Haste::Urgent, 1).map(|it| (it.0, it.1)),
            Some((0, true))
        );
        assert_eq!(start(&mut batcher, Haste::Urgent, 1), None);
    }

    /// Goal: a patient batch that runs is interrupted seven times at most.
    #[test]
    fn what_has_begun_gets_to_its_end() {
        let mut batcher = Batcher::new(1);
        let (_, _, running) = start(&mut batcher, Haste::Patient, 100).unwrap();
        start(&mut batcher, Haste::Patient, 100).unwrap();
        let overtake = |batcher: &mut Batcher| {
            let mut overtaken = 0;
            while let Some((_, first, urgent)) = start(batcher, Haste::Urgent, 1) {
                assert!(first);
                batcher.finish(urgent).unwrap();
                overtaken += 1;
            }
            overtaken
        };
        assert_eq!(overtake(&mut batcher), BULK_SHARE - 1);
        batcher.finish(running).unwrap();
        assert_eq!(overtake(&mut batcher), BULK_SHARE - 1);
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
