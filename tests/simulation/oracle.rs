//! The judge: sees every event before the logic does and every action after, keeps its own book of where
//! each job is, and panics at the first action that the contract does not allow, or that it demands and
//! that does not come. It shares no code with the ledger or with health.
//!
//! Here is its book; `events` writes into it, `actions` and `verdict` judge by it.

#[path = "actions.rs"]
mod actions;
#[path = "events.rs"]
mod events;
#[path = "pressure.rs"]
mod pressure;
#[path = "residence.rs"]
mod residence;
#[path = "seen.rs"]
mod seen;
#[path = "verdict.rs"]
mod verdict;

use embeddings::clock::Moment;
use embeddings::job::{JobKey, Lane};
use embeddings::logic::event::{Action, BatchId, Item, ModelId, Worker};
use embeddings::logic::health::KillReason;
use embeddings::logic::ledger::Stage;
use embeddings::logic::{Logic, Setup};
use pressure::{Book, Fill};
use residence::Models;
use seen::{Place, Seen};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

/// The judge's book about one process.
pub struct Oracle {
    setup: Setup,
    jobs: BTreeMap<JobKey, Seen>,
    gone: HashSet<JobKey>,
    engines: Vec<Vec<(BatchId, Vec<Item>)>>,
    engine_since: Vec<Moment>,
    /// Per engine, jobs in a row whose batches failed wholly, and the last of them.
    failures: Vec<(u32, Option<JobKey>)>,
    /// Since when each tokenizer has been at its job without getting on.
    tokenizers: Vec<Option<Moment>>,
    tokenizers_moved: Moment,
    /// Idle threads that owe an answer, since when.
    asked: BTreeMap<Worker, Moment>,
    last_active: BTreeMap<Worker, Moment>,
    born: Moment,
    /// How long engines have rested, and until when.
    rested: Duration,
    rest_until: Moment,
    /// Per lane, since when the broker has had messages that it does not deliver.
    undelivered: [Option<Moment>; Lane::COUNT],
    /// Per lane, since when a large message has been read.
    reading: [Option<Moment>; Lane::COUNT],
    unconsumed: [u32; Lane::COUNT],
    unconsumed_since: [Option<Moment>; Lane::COUNT],
    reconnect_now: bool,
    /// Messages beyond the prefetch have been asked for.
    looking: bool,
    /// When the watchdog thread last looked, where there is one.
    pub look: Option<Moment>,
    since: [Moment; 6],
    before: [usize; 6],
    engines_before: Vec<usize>,
    /// Inputs of batches that failed whole, which are computed again.
    parts: BTreeSet<(JobKey, usize)>,
    /// Batches of such inputs.
    part_batches: HashSet<BatchId>,
    /// Whether jobs can go on from another queue.
    resumable: bool,
    /// Longest wait before a job is begun.
    held_max: Duration,
    connected: bool,
    proof: Option<Moment>,
    blocked: bool,
    draining: Option<Moment>,
    drained: bool,
    corrupt: bool,
    canary_on_its_way: bool,
    pub ready: bool,
    round: Option<Moment>,
    round_now: bool,
    withdrawn_now: bool,
    pub pet: Option<Moment>,
    pub killed: Option<KillReason>,
    book: Book,
    models: Models,
    /// What came in this turn.
    delivered_now: Option<JobKey>,
    /// Canaries that an engine is to answer for.
    trials: Vec<(usize, JobKey)>,
}

impl Oracle {
    pub fn new(setup: Setup, now: Moment) -> Oracle {
        let (engines, tokenizers) = (setup.engines, setup.tokenizers);
        Oracle {
            models: Models::new(&setup.models, now),
            delivered_now: None,
            trials: Vec::new(),
            looking: false,
            setup,
            jobs: BTreeMap::new(),
            gone: HashSet::new(),
            engines: vec![Vec::new(); engines],
            engine_since: vec![Moment::ZERO; engines],
            failures: vec![(0, None); engines],
            tokenizers: vec![None; tokenizers],
            tokenizers_moved: Moment::ZERO,
            asked: BTreeMap::new(),
            last_active: BTreeMap::new(),
            born: now,
            rested: Duration::ZERO,
            rest_until: Moment::ZERO,
            undelivered: [None; Lane::COUNT],
            reading: [None; Lane::COUNT],
            unconsumed: [0; Lane::COUNT],
            unconsumed_since: [None; Lane::COUNT],
            reconnect_now: false,
            look: None,
            since: [Moment::ZERO; 6],
            before: [0; 6],
            engines_before: vec![0; engines],
            parts: BTreeSet::new(),
            part_batches: HashSet::new(),
            resumable: false,
            held_max: Duration::from_secs(600),
            connected: false,
            proof: None,
            blocked: false,
            draining: None,
            drained: false,
            corrupt: false,
            canary_on_its_way: false,
            ready: false,
            round: None,
            round_now: false,
            withdrawn_now: false,
            pet: None,
            killed: None,
            book: Book::default(),
        }
    }

    /// Whether nothing that was delivered is left.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    fn progress(&mut self, stage: Stage, now: Moment) {
        self.since[stage as usize] = now;
    }

    /// Judges what the logic answered.
    pub fn after(&mut self, actions: &[Action], logic: &Logic, now: Moment) {
        self.awaits(actions, now);
        for action in actions {
            self.action(action, now);
        }
        self.nothing_forgotten(now);
        let fill = self.fill();
        self.book.look(&fill, &self.setup.limits);
        if self.draining.is_none() {
            self.book.after(&fill, &self.setup.limits, now);
        }
        assert!(
            !self.reconnect_now,
            "a consumer is missing, and the session goes on"
        );
        let inside = self.inside();
        for (at, (stage, count)) in logic.health().inside().into_iter().enumerate() {
            assert_eq!(count, inside[at], "the ledger and the world disagree on {stage}");
            if self.before[at] == 0 && count > 0 {
                self.since[at] = now;
            }
        }
        self.before = inside;
        for (engine, held) in self.engines.iter().enumerate() {
            let count = held.len() + self.trials.iter().filter(|(of, _)| *of == engine).count();
            if self.engines_before[engine] == 0 && count > 0 {
                self.engine_since[engine] = now;
            }
            self.engines_before[engine] = count;
        }
        self.judge_verdict(actions, logic, now);
    }

    fn inside(&self) -> [usize; 6] {
        let count = |place| self.jobs.values().filter(|seen| seen.place == place).count();
        [
            usize::from(self.canary_on_its_way),
            count(Place::Tokenizing) + count(Place::Awaiting),
            self.jobs.values().map(Seen::undrawn).sum::<usize>() + self.parts.len(),
            self.engines
                .iter()
                .flatten()
                .map(|(_, items)| items.len())
                .sum::<usize>()
                + self.trials.len(),
            count(Place::Publishing) + self.jobs.values().map(|seen| seen.unconfirmed).sum::<usize>(),
            count(Place::Acking),
        ]
    }

    fn job(&mut self, key: JobKey, what: &Action) -> &mut Seen {
        assert!(!self.gone.contains(&key), "{what:?} after the job was forgotten");
        self.jobs
            .get_mut(&key)
            .unwrap_or_else(|| panic!("{what:?} for an unknown job"))
    }

    /// How full the lanes are.
    fn fill(&self) -> Fill {
        let mut fill = Fill::default();
        for seen in self.jobs.values() {
            fill.held[seen.lane as usize] += usize::from(seen.admitted);
            fill.inflight[seen.lane as usize] += usize::from(seen.in_flight());
            if seen.admitted && seen.lane == Lane::Interactive {
                fill.bytes += seen.bytes;
            }
        }
        let bounds = self.setup.models.iter().enumerate();
        fill.model_near = bounds
            .filter_map(|(model, own)| Some((ModelId(model), own.max_queue?)))
            .any(|(model, bound)| self.of_model(model) * 5 > bound * 4);
        fill
    }

    /// Admitted interactive jobs of a model.
    fn of_model(&self, model: ModelId) -> usize {
        let interactive = |seen: &&Seen| seen.admitted && seen.lane == Lane::Interactive;
        let held = self.jobs.values().filter(interactive);
        held.filter(|seen| seen.model == model).count()
    }
}
