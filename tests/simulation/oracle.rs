//! The judge: sees every event before the logic does and every action after, keeps its own book of where
//! each job is, and panics at the first action that the contract does not allow, or that it demands and
//! that does not come. It shares no code with the ledger or with health.

#[path = "pressure.rs"]
mod pressure;
#[path = "residence.rs"]
mod residence;

use embeddings::clock::Moment;
use embeddings::job::{ErrorType, JobKey, Lane};
use embeddings::logic::event::{
    Action, BatchId, Confirmation, EngineId, Event, Item, ModelId, Onward, Outcome, Ticket, Worker,
};
use embeddings::logic::health::{KillReason, Verdict};
use embeddings::logic::ledger::Stage;
use embeddings::logic::pressure::memory_of;
use embeddings::logic::rest;
use embeddings::logic::{Logic, Setup};
use pressure::{Book, Fill};
use residence::Models;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

/// Where the judge believes a job to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Admitted, and its model is not in memory.
    Awaiting,
    /// A canary that an engine answers for without its model.
    Trying,
    Tokenizing,
    /// Another job computes the same.
    Twin,
    Working,
    Publishing,
    Acking,
    Acked,
    /// Given to its caller, which takes no time.
    Handing,
    /// Its caller has it, or was not there any more.
    Handed {
        taken: bool,
    },
}

impl Place {
    /// Here, and perhaps not begun.
    fn waits(self) -> bool {
        matches!(
            self,
            Place::Awaiting | Place::Tokenizing | Place::Twin | Place::Working
        )
    }
}

#[derive(Clone, Debug)]
struct Seen {
    lane: Lane,
    model: ModelId,
    bytes: usize,
    inputs: usize,
    begun_at: Option<Moment>,
    deadline: Option<Moment>,
    local: bool,
    /// Its caller waits on a connection of its own: no session takes it away, and nothing of it goes to the broker.
    called: bool,
    /// That caller went away.
    gone: bool,
    admitted: bool,
    place: Place,
    tokens: Vec<usize>,
    started: Vec<bool>,
    done: usize,
    failed: bool,
    vectors: bool,
    /// What is on its way is a last word: once that is in a queue, it is acknowledged without an action.
    last_word: bool,
    dead_letter: bool,
    settled: bool,
    attempt: u32,
    suspect: bool,
    /// Inputs of a chunk and whether the slice is the last, if it is streamed.
    stream: Option<(usize, bool)>,
    /// Per input, whether its vector came out well.
    good: Vec<bool>,
    /// Chunks that are out, and how many of those the broker has not answered for.
    chunks: BTreeSet<usize>,
    unconfirmed: usize,
    returned: bool,
    delivered: Moment,
    /// It goes on from another queue.
    moved: bool,
    /// Its model has just come; it goes to the tokenizers.
    to_tokenize: bool,
    /// It was answered without being computed.
    recalled: bool,
    /// An engine answered for it without its model.
    tried: bool,
    /// Whether chunks of a slice went before.
    slice: bool,
    /// Its slice ends early.
    cut: bool,
    /// Its model could not be loaded.
    load_failed: bool,
}

impl Seen {
    /// What has just come.
    fn new(lane: Lane, ticket: Option<&Ticket>, now: Moment) -> Seen {
        Seen {
            lane,
            model: ticket.map_or(ModelId(0), |ticket| ticket.model),
            bytes: ticket.map_or(0, |ticket| ticket.bytes),
            inputs: ticket.map_or(0, |ticket| ticket.inputs),
            begun_at: None,
            deadline: ticket.and_then(|ticket| ticket.deadline),
            local: false,
            called: false,
            gone: false,
            admitted: false,
            place: Place::Tokenizing,
            tokens: Vec::new(),
            started: Vec::new(),
            done: 0,
            failed: false,
            vectors: false,
            last_word: false,
            dead_letter: false,
            settled: false,
            attempt: 1,
            suspect: false,
            stream: ticket
                .and_then(|ticket| ticket.stream)
                .map(|streaming| (streaming.chunk, streaming.last)),
            good: Vec::new(),
            chunks: BTreeSet::new(),
            unconfirmed: 0,
            returned: false,
            delivered: now,
            moved: false,
            to_tokenize: false,
            recalled: false,
            tried: false,
            load_failed: false,
            slice: false,
            cut: false,
        }
    }

    /// Where its slice ends if nothing further of it is begun, if that is before its end.
    fn can_be_cut(&self) -> Option<usize> {
        let (chunk, _) = self.stream?;
        let begun = self.started.iter().rposition(|started| *started)? + 1;
        let left = begun.div_ceil(chunk) * chunk;
        (left < self.started.len()).then_some(left)
    }

    fn undrawn(&self) -> usize {
        if self.place == Place::Working && !self.failed && !self.returned {
            self.started.iter().filter(|started| !**started).count()
        } else {
            0
        }
    }

    fn begun(&self) -> bool {
        self.place == Place::Working && self.started.contains(&true)
    }

    /// A caller's job ends with what its caller was given, or with nobody to give it to.
    fn judge_end_of_call(&self, outcome: Outcome) {
        let expected = match self.place {
            Place::Handed { taken: true } if self.vectors => Outcome::Answered,
            Place::Handed { taken: true } => Outcome::Refused,
            Place::Handed { taken: false } => Outcome::Returned,
            place => {
                let in_an_engine = place == Place::Working && !self.at_rest();
                assert!(self.gone && !in_an_engine, "given up at {place:?}");
                Outcome::Returned
            }
        };
        assert_eq!(outcome, expected, "how a call ends");
    }

    /// Its answer or refusal leaves.
    fn reply(&mut self) {
        self.place = if self.called {
            Place::Handing
        } else {
            Place::Publishing
        };
    }

    /// Whether its model must stay in memory. A canary that an engine answered for has no use for it.
    fn holds(&self, model: usize) -> bool {
        self.admitted && self.model.0 == model && !self.tried
    }

    /// Begun at once, whatever else is in flight.
    fn is_urgent(&self) -> bool {
        matches!(self.lane, Lane::Probe | Lane::Resumed)
    }

    fn in_flight(&self) -> bool {
        let drawn = self.started.iter().filter(|started| **started).count();
        self.begun() && (self.done < drawn || self.undrawn() > 0)
    }

    /// In one piece from a queue, and longer at work than its delivery may be held.
    fn is_too_long(&self, held_max: Duration, now: Moment) -> bool {
        let plain = self.stream.is_none() && !self.called && self.lane != Lane::Probe;
        let (held, at_work) = (
            now.since(self.delivered),
            self.begun_at.map(|begun| now.since(begun)),
        );
        plain && self.begun() && held >= held_max + held_max / 3 && at_work >= Some(held_max / 3)
    }

    /// Nothing of it is in an engine, before one, or on its way to the sender.
    fn at_rest(&self) -> bool {
        self.done == self.started.iter().filter(|started| **started).count()
            && (self.failed || self.returned || self.done == self.tokens.len())
            && self.unconfirmed == 0
    }
}

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

    /// Takes in what the world is about to tell the logic.
    pub fn before(&mut self, event: &Event, now: Moment) {
        self.round_now = false;
        self.withdrawn_now = false;
        self.reconnect_now = false;
        self.delivered_now = None;
        self.book.turn();
        match event {
            Event::Tick => {}
            Event::BrokerUp { resumable } => {
                self.resumable = *resumable;
                self.connected = true;
                self.proof = Some(now);
            }
            Event::BrokerDown => {
                self.connected = false;
                self.blocked = false;
                let stays = |job: &JobKey| self.jobs.get(job).is_some_and(|seen| seen.called);
                self.parts.retain(|(job, _)| stays(job));
                self.canary_on_its_way = false;
                self.withdrawn_now = true;
                self.undelivered = [None; Lane::COUNT];
                self.reading = [None; Lane::COUNT];
                self.unconsumed = [0; Lane::COUNT];
            }
            Event::BrokerProof => self.proof = Some(now),
            Event::Called { job, arrival } => {
                let ticket = arrival.as_ref().ok();
                let seen = Seen {
                    called: true,
                    ..Seen::new(Lane::Interactive, ticket, now)
                };
                assert!(self.jobs.insert(*job, seen).is_none());
                self.delivered_now = Some(*job);
            }
            // What of it is in an engine comes out of there, and the rest is not begun.
            Event::CallerGone { job } => {
                if let Some(seen) = self.jobs.get_mut(job) {
                    (seen.gone, seen.returned) = (true, true);
                }
            }
            Event::HandedOver { job, taken } => {
                let seen = self
                    .jobs
                    .get_mut(job)
                    .expect("handed over in the turn of its answer");
                assert_eq!(seen.place, Place::Handing, "{event:?}");
                seen.place = Place::Handed { taken: *taken };
            }
            Event::QueueSeen {
                lane,
                ready,
                consumers,
            } if self.connected && self.draining.is_none() => {
                self.proof = Some(now);
                let at = *lane as usize;
                let held = |seen: &&Seen| seen.lane == *lane && !seen.local && !seen.called;
                let credit = self.jobs.values().filter(held).count() < self.setup.prefetch[at];
                if *ready > 0 && credit && *consumers > 0 {
                    self.undelivered[at].get_or_insert(now);
                } else {
                    self.undelivered[at] = None;
                }
                self.unconsumed[at] = if *consumers == 0 {
                    self.unconsumed[at] + 1
                } else {
                    0
                };
                self.reconnect_now = self.unconsumed[at] == 3;
                if *consumers > 0 {
                    self.unconsumed_since[at] = None;
                } else if self.unconsumed[at] >= 3 {
                    self.unconsumed_since[at].get_or_insert(now);
                }
            }
            Event::QueueSeen { .. } => {}
            Event::Reading { lane } => {
                self.reading[*lane as usize].get_or_insert(now);
            }
            Event::Tried(worker) => {
                self.active(*worker, now);
                if let Worker::Engine(engine) = worker {
                    self.tried(engine.0, now);
                }
            }
            Event::LoadStep => {
                self.models.step(now);
                self.progress(Stage::Admitted, now);
            }
            Event::Loaded { model, bytes } => {
                self.models.ended(model.0, true, now);
                let known = &mut self.setup.models[model.0].bytes;
                *known = bytes.unwrap_or(*known);
                self.progress(Stage::Admitted, now);
                for seen in self.jobs.values_mut().filter(|seen| seen.model == *model) {
                    if seen.place == Place::Awaiting {
                        seen.place = Place::Tokenizing;
                        seen.to_tokenize = true;
                    }
                }
            }
            Event::LoadFailed { model, .. } => {
                self.models.ended(model.0, false, now);
                self.progress(Stage::Admitted, now);
                for seen in self.jobs.values_mut().filter(|seen| seen.model == *model) {
                    if seen.place == Place::Awaiting {
                        seen.load_failed = true;
                    }
                }
            }
            Event::HeldTooLong { limit } => self.held_max = self.held_max.min(*limit / 3),
            Event::Superseded { .. } => unreachable!("the world sends no copies"),
            Event::Unloaded { model } => {
                self.models.unloaded(model.0, now);
                self.progress(Stage::Admitted, now);
            }
            Event::TokenizerBegan { tokenizer } => {
                self.active(Worker::Tokenizer(*tokenizer), now);
                let before = self.tokenizers[tokenizer.0].replace(now);
                assert!(before.is_none(), "a tokenizer with two jobs");
            }
            Event::TokenizerStep { tokenizer } => {
                self.active(Worker::Tokenizer(*tokenizer), now);
                self.tokenizers[tokenizer.0] = Some(now);
                self.tokenizers_moved = now;
            }
            Event::TokenizerEnded { tokenizer } => {
                self.active(Worker::Tokenizer(*tokenizer), now);
                self.tokenizers[tokenizer.0] = None;
                self.tokenizers_moved = now;
            }
            Event::BrokerBlocked => self.blocked = true,
            Event::BrokerUnblocked => {
                if self.blocked {
                    self.progress(Stage::Published, now);
                    self.progress(Stage::Received, now);
                    self.undelivered = self.undelivered.map(|since| since.map(|_| now));
                }
                self.blocked = false;
            }
            Event::Delivered {
                job,
                lane,
                arrival,
                attempt,
                suspect,
                ..
            } => {
                let local = job.0 > 1 << 63;
                if !local {
                    self.proof = Some(now);
                    self.progress(Stage::Received, now);
                    self.reading[*lane as usize] = None;
                    self.unconsumed[*lane as usize] = 0;
                    self.unconsumed_since[*lane as usize] = None;
                    let undelivered = &mut self.undelivered[*lane as usize];
                    *undelivered = undelivered.map(|_| now);
                    if *lane == Lane::Probe {
                        self.canary_on_its_way = false;
                    }
                }
                let ticket = arrival.as_ref().ok();
                let seen = Seen {
                    local,
                    attempt: *attempt,
                    suspect: *suspect,
                    ..Seen::new(*lane, ticket, now)
                };
                assert!(self.jobs.insert(*job, seen).is_none());
                self.delivered_now = Some(*job);
            }
            Event::Tokenized { job, result } => {
                if let Some(seen) = self.jobs.get_mut(job)
                    && seen.place == Place::Tokenizing
                {
                    if let Ok(tokens) = result {
                        seen.place = Place::Working;
                        seen.tokens = tokens.clone();
                        seen.started = vec![false; tokens.len()];
                        seen.good = vec![false; tokens.len()];
                    } else {
                        self.corrupt |= seen.lane == Lane::Probe;
                    }
                    self.progress(Stage::Admitted, now);
                }
            }
            Event::Recalled { job } => {
                if let Some(seen) = self.jobs.get_mut(job)
                    && matches!(seen.place, Place::Tokenizing | Place::Twin)
                {
                    let tokenizing = seen.place == Place::Tokenizing;
                    (seen.place, seen.recalled) = (Place::Working, true);
                    if tokenizing {
                        self.progress(Stage::Admitted, now);
                    }
                }
            }
            Event::Twin { job } => {
                if let Some(seen) = self.jobs.get_mut(job)
                    && seen.place == Place::Tokenizing
                {
                    assert!(
                        seen.lane != Lane::Resumed,
                        "a death would be charged to it while it waits"
                    );
                    seen.place = Place::Twin;
                }
            }
            Event::Parted { job } => {
                if let Some(seen) = self.jobs.get_mut(job)
                    && seen.place == Place::Twin
                {
                    (seen.place, seen.to_tokenize) = (Place::Tokenizing, true);
                }
            }
            Event::BatchStep { engine } => {
                self.active(Worker::Engine(*engine), now);
                self.engine_since[engine.0] = now;
            }
            Event::BatchDone {
                engine,
                batch,
                results,
            } => self.batch_done(engine.0, *batch, results, now),
            Event::Confirmed { job, outcome } => self.confirmed(*job, *outcome, now),
            Event::DeadLettered { job } => {
                if let Some(seen) = self.jobs.get_mut(job) {
                    self.proof = Some(now);
                    // The sender is told as well; either way it ends here.
                    seen.place = Place::Acking;
                    self.progress(Stage::Published, now);
                }
            }
            Event::Acked { job } => {
                if let Some(seen) = self.jobs.get_mut(job) {
                    assert!(seen.settled, "acknowledged although nobody asked");
                    seen.place = Place::Acked;
                    self.round_now = (seen.vectors || seen.slice) && !seen.recalled;
                    self.progress(Stage::Acked, now);
                }
            }
            Event::CanaryWrong => self.corrupt = true,
            Event::Drain => {
                self.draining.get_or_insert(now);
            }
            Event::Reloaded(limits) => self.setup.limits = *limits,
            Event::MemorySeen(memory) => self.book.memory_seen(*memory),
        }
        if self.round_now {
            self.round = Some(now);
        }
    }

    fn confirmed(&mut self, job: JobKey, outcome: Confirmation, now: Moment) {
        let Some(seen) = self.jobs.get_mut(&job) else {
            return;
        };
        let heard = outcome != Confirmation::Unconfirmed;
        match seen.place {
            Place::Working if seen.unconfirmed > 0 => {
                seen.unconfirmed -= 1;
                match outcome {
                    Confirmation::Routed => {}
                    Confirmation::Returned => seen.returned = true,
                    Confirmation::Rejected | Confirmation::Unconfirmed => seen.failed = true,
                }
            }
            Place::Publishing => {
                // One that was not taken is tried again or dead-lettered, unless its copy is there already.
                if seen.dead_letter || matches!(outcome, Confirmation::Routed | Confirmation::Returned) {
                    seen.place = Place::Acking;
                }
                if seen.last_word && outcome == Confirmation::Routed {
                    assert!(!seen.settled && !seen.local, "settled twice");
                    seen.settled = true;
                }
            }
            _ => return,
        }
        if heard {
            self.proof = Some(now);
            self.progress(Stage::Published, now);
        }
    }

    fn active(&mut self, worker: Worker, now: Moment) {
        self.asked.remove(&worker);
        self.last_active.insert(worker, now);
    }

    fn batch_done(&mut self, engine: usize, batch: BatchId, results: &[Result<(), String>], now: Moment) {
        let held = &mut self.engines[engine];
        let at = held
            .iter()
            .position(|(id, _)| *id == batch)
            .expect("a batch that runs");
        let (_, items) = held.remove(at);
        self.engine_since[engine] = now;
        self.active(Worker::Engine(EngineId(engine)), now);
        let (jobs, last) = &mut self.failures[engine];
        if results.iter().any(Result::is_ok) {
            (*jobs, *last) = (0, None);
        } else if !self.part_batches.remove(&batch) && *last != Some(items[0].job) {
            (*jobs, *last) = (*jobs + 1, Some(items[0].job));
        }
        self.corrupt |= *jobs >= 3;
        let canary = |item: &Item| {
            self.jobs
                .get(&item.job)
                .is_some_and(|seen| seen.lane == Lane::Probe)
        };
        if results.len() > 1 && results.iter().all(Result::is_err) && !items.iter().any(canary) {
            // All of it is computed again, in parts.
            let at_work = |seen: &Seen| seen.place == Place::Working;
            let here = items
                .iter()
                .filter(|item| self.jobs.get(&item.job).is_some_and(at_work));
            self.parts.extend(here.map(|item| (item.job, item.input)));
            return;
        }
        for (item, result) in items.iter().zip(results) {
            if let Some(seen) = self.jobs.get_mut(&item.job) {
                seen.good[item.input] = result.is_ok();
                seen.done += 1;
                seen.failed |= result.is_err();
                self.corrupt |= result.is_err() && seen.lane == Lane::Probe;
            }
        }
    }

    /// An engine computed something of its own, and so has every canary that asked it.
    fn tried(&mut self, engine: usize, now: Moment) {
        self.engine_since[engine] = now;
        let (done, left) = std::mem::take(&mut self.trials)
            .into_iter()
            .partition(|(of, _)| *of == engine);
        self.trials = left;
        let done: Vec<(usize, JobKey)> = done;
        for (_, job) in done {
            if let Some(seen) = self.jobs.get_mut(&job) {
                seen.place = Place::Working;
            }
        }
    }

    /// A job whose model is not in memory is taken in without a word, unless another action speaks of it.
    fn awaits(&mut self, actions: &[Action], now: Moment) {
        let Some(key) = self.delivered_now else { return };
        let model = self.jobs[&key].model.0;
        let spoken_of = actions.iter().any(|action| {
            matches!(action,
                Action::Refuse { job, .. } | Action::DeadLetter { job, .. } | Action::Move { job, .. }
                | Action::Requeue { job } | Action::Forget { job, .. } | Action::Tokenize { job } if *job == key)
        });
        if spoken_of || self.models.is_in(model) {
            return;
        }
        let lane = self.jobs[&key].lane;
        self.admitted(key, now);
        let seen = self.jobs.get_mut(&key).expect("delivered just now");
        if lane != Lane::Probe {
            seen.place = Place::Awaiting;
            return;
        }
        (seen.place, seen.tried) = (Place::Trying, true);
        let engine = actions.iter().find_map(|action| match action {
            Action::Try(Worker::Engine(engine)) => Some(engine.0),
            _ => None,
        });
        self.trials.push((engine.expect("an engine is asked"), key));
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

    fn action(&mut self, action: &Action, now: Moment) {
        assert!(self.killed.is_none(), "{action:?} after the kill");
        match action {
            Action::Load { model } => {
                let wanted = self.jobs.values().any(|seen| seen.holds(model.0));
                self.models.load(model.0, wanted, now);
            }
            Action::Unload { model } => {
                assert!(self.draining.is_none(), "unloaded while draining");
                let held = self.jobs.values().any(|seen| seen.holds(model.0));
                self.models.unload(model.0, held, &self.setup.limits, now);
            }
            Action::Tokenize { job } => {
                let key = *job;
                let seen = self.job(key, action);
                assert_eq!(seen.place, Place::Tokenizing);
                let (waited, model) = (std::mem::take(&mut seen.to_tokenize), seen.model.0);
                assert!(self.models.is_in(model), "tokenized without its model");
                if !waited {
                    self.admitted(key, now);
                }
            }
            Action::StartBatch {
                engine,
                first,
                batch,
                model,
                items,
            } => {
                self.start_batch(engine.0, *batch, *model, items, action, now);
                let waited_for = |item: &Item| {
                    let lane = self.jobs.get(&item.job).map(|seen| seen.lane);
                    matches!(lane, Some(Lane::Interactive | Lane::Probe))
                };
                let most = if *first {
                    assert!(items.iter().all(waited_for), "bulk work overtakes");
                    3
                } else {
                    2
                };
                assert!(
                    self.engines[engine.0].len() <= most,
                    "{most} batches on one engine"
                );
            }
            Action::Answer { job } => {
                let seen = self.job(*job, action);
                assert!(seen.place == Place::Working && !seen.failed && !seen.local);
                assert!(seen.stream.is_none(), "a streamed job is sent in chunks");
                assert_eq!(seen.done, seen.tokens.len(), "answered before all was computed");
                assert!(!seen.gone, "nobody waits for it");
                seen.reply();
                (seen.vectors, seen.last_word) = (true, true);
            }
            Action::Chunk { job, first, inputs } => {
                let seen = self.job(*job, action);
                let (chunk, _) = seen.stream.expect("chunks belong to streamed jobs");
                assert!(seen.place == Place::Working && !seen.returned);
                assert_eq!(first % chunk, 0);
                assert_eq!(*inputs, chunk.min(seen.tokens.len() - first));
                assert!(
                    seen.good[*first..first + inputs].iter().all(|good| *good),
                    "not computed"
                );
                assert!(seen.chunks.insert(*first), "a chunk sent twice in one delivery");
                seen.unconfirmed += 1;
            }
            Action::Cut { job, inputs } => {
                assert!(self.resumable && self.draining.is_none());
                let slice_max = self.held_max / 10;
                let seen = self.job(*job, action);
                assert!(seen.place == Place::Working && seen.lane != Lane::Probe && !seen.cut);
                assert!(seen.begun_at.is_some_and(|begun| now.since(begun) >= slice_max));
                assert_eq!(Some(*inputs), seen.can_be_cut(), "cut in the wrong place");
                seen.tokens.truncate(*inputs);
                seen.started.truncate(*inputs);
                seen.good.truncate(*inputs);
                seen.cut = true;
                seen.stream = seen.stream.map(|(chunk, _)| (chunk, false));
            }
            Action::Finish { job } => {
                let seen = self.job(*job, action);
                let (chunk, last) = seen.stream.expect("only streamed jobs are finished");
                assert!(last && seen.place == Place::Working && seen.at_rest() && !seen.failed);
                assert_eq!(
                    seen.chunks.len(),
                    seen.tokens.len().div_ceil(chunk),
                    "not all chunks are out"
                );
                seen.place = Place::Publishing;
                (seen.vectors, seen.last_word) = (true, true);
            }
            Action::Move { job, onward } => {
                let resumable = self.resumable;
                let max_attempts = self.setup.limits.max_attempts;
                let draining = self.draining.is_some();
                self.withdrawn_now = true;
                let held_max = self.held_max;
                let model = self.job(*job, action).model.0;
                let no_model = self.models.is_out(model);
                let seen = self.job(*job, action);
                assert!(resumable || *onward == Onward::Back);
                assert!(!seen.local && !seen.called && seen.lane != Lane::Probe);
                match onward {
                    // One that has waited for long.
                    Onward::Suspect if now.since(seen.delivered) >= held_max => {
                        assert!(seen.place.waits() && !seen.begun());
                    }
                    // One that waits here while the service stops goes back without being charged.
                    Onward::Suspect if draining && seen.lane != Lane::Interactive => {
                        assert!(seen.place.waits() && !seen.begun());
                    }
                    Onward::Back => {
                        assert!(draining && seen.lane == Lane::Interactive && !seen.suspect);
                        assert!(seen.place.waits() && !seen.begun());
                    }
                    Onward::Suspect => {
                        assert!(seen.suspect && seen.lane != Lane::Resumed && !seen.admitted);
                        assert_eq!(seen.place, Place::Tokenizing);
                    }
                    Onward::NextSlice => {
                        let (chunk, last) = seen.stream.expect("only streamed jobs have slices");
                        assert!(!last && seen.place == Place::Working && seen.at_rest() && !seen.failed);
                        assert_eq!(
                            seen.chunks.len(),
                            seen.tokens.len().div_ceil(chunk),
                            "not all chunks are out"
                        );
                        seen.slice = true;
                    }
                    Onward::Retry(_) => {
                        assert!(seen.attempt < max_attempts, "one attempt too many");
                        let refused = seen.place == Place::Publishing && seen.vectors;
                        let failed = seen.place == Place::Working && seen.failed && seen.at_rest();
                        // There is no memory for its model; an interactive one is refused for that.
                        let no_room = no_model && seen.place == Place::Tokenizing && !seen.admitted;
                        let no_room = no_room && matches!(seen.lane, Lane::Bulk | Lane::Resumed);
                        let not_loaded = seen.load_failed && seen.place == Place::Awaiting;
                        assert!(refused || failed || no_room || not_loaded);
                        seen.vectors = false;
                    }
                }
                (seen.moved, seen.last_word) = (true, false);
                seen.place = Place::Publishing;
            }
            Action::Refuse { job, refusal } => {
                if refusal.error == ErrorType::Overloaded {
                    self.overloaded_is_true(*job);
                }
                self.withdrawn_now = true;
                self.parts.retain(|(of, _)| of != job);
                let held_max = self.held_max;
                let max_queue_bytes = self.setup.limits.max_queue_bytes;
                let seen = self.job(*job, action);
                // What is admitted may yet have an input that is too long.
                if refusal.error == ErrorType::InputTooLong && !seen.admitted {
                    let too_large = seen.bytes > max_queue_bytes && seen.lane == Lane::Interactive;
                    assert!(too_large, "there would be room for it");
                } else if refusal.error == ErrorType::TooManyInputs {
                    assert!(seen.is_too_long(held_max, now), "ended before its time");
                } else if seen.place == Place::Working {
                    let computed = seen.at_rest() || !seen.begun();
                    assert!(computed, "refused with inputs in an engine");
                }
                if refusal.error == ErrorType::DeadlineExceeded {
                    assert!(seen.deadline.is_some_and(|deadline| deadline <= now));
                    assert!(!seen.begun(), "refused for its deadline after its work began");
                }
                // After the last attempt the sender is told once the copy is safe.
                let last_word = seen.dead_letter && seen.place == Place::Acking;
                let waits = seen.place.waits();
                assert!(last_word || waits && !seen.local && !seen.gone);
                seen.reply();
                seen.last_word = true;
            }
            Action::DeadLetter { job, refusal } => {
                if refusal.error == ErrorType::Overloaded {
                    self.overloaded_is_true(*job);
                }
                self.withdrawn_now = true;
                self.parts.retain(|(of, _)| of != job);
                let seen = self.job(*job, action);
                assert!(
                    !seen.dead_letter && !seen.local && !seen.called,
                    "{action:?} twice, or for none of the broker's"
                );
                seen.dead_letter = true;
                (seen.vectors, seen.last_word) = (false, false);
                seen.place = Place::Publishing;
            }
            Action::Ack { job } => {
                let seen = self.job(*job, action);
                if seen.place == Place::Working && seen.returned && seen.at_rest() && !seen.failed {
                    // Nobody takes its chunks any more, as it may be with an answer.
                    (seen.place, seen.vectors) = (Place::Acking, true);
                }
                assert_eq!(seen.place, Place::Acking, "acked before the answer was confirmed");
                assert!(!seen.settled && !seen.local && !seen.called, "settled twice");
                seen.settled = true;
            }
            Action::Requeue { job } => {
                let draining = self.draining.is_some();
                let takes = self.connected && !self.blocked;
                let resumable = self.resumable;
                let seen = self.job(*job, action);
                let sent_anew = match seen.lane {
                    Lane::Interactive => !seen.suspect,
                    Lane::Bulk | Lane::Resumed => resumable,
                    Lane::Probe => false,
                };
                assert!(!(takes && sent_anew), "charged for having waited");
                assert!(
                    draining,
                    "requeue belongs to draining; elsewhere the delivery returns hot"
                );
                assert!(
                    !seen.settled && !seen.local && !seen.called,
                    "settled twice, or no delivery to give back"
                );
                assert!(!seen.begun(), "given back although its work has begun");
                seen.settled = true;
            }
            Action::Forget { job, outcome } => self.forget(*job, *outcome, action, now),
            Action::SendCanary { through_broker, .. } => {
                assert!(self.connected && self.draining.is_none() && !self.models.starts());
                assert_eq!(*through_broker, !self.blocked);
                let mine = |seen: &Seen| seen.lane == Lane::Probe && seen.local != *through_broker;
                assert!(!self.jobs.values().any(mine), "a second canary on the same way");
                if *through_broker {
                    assert!(!self.canary_on_its_way, "a second canary on the same way");
                    self.canary_on_its_way = true;
                }
            }
            Action::Ready => {
                assert!(!self.ready && self.round_now && self.draining.is_none());
                assert!(!self.models.starts(), "ready before every model was seen to work");
                self.ready = true;
            }
            Action::Pet => {
                assert!(self.round_now, "a pet without a round");
                assert!(
                    self.connected && self.draining.is_none(),
                    "a pet without a session"
                );
                assert!(
                    self.reasons(now).is_empty(),
                    "a pet while {:?}",
                    self.reasons(now)
                );
                let spaced = self
                    .pet
                    .is_none_or(|last| now.since(last) >= self.setup.pet_spacing);
                assert!(spaced, "two pets too close");
                self.pet = Some(now);
            }
            Action::Rest { until } => {
                let from = self.rest_until.max(now);
                assert!(
                    *until > from && *until <= now + rest::SPAN,
                    "a rest until {until:?}"
                );
                self.rested += until.since(from);
                self.rest_until = *until;
                let most = rest::ALLOWANCE + now.since(self.born) / rest::SHARE;
                assert!(self.rested <= most, "{:?} of rest, {most:?} at most", self.rested);
            }
            Action::Try(Worker::Engine(engine)) if self.is_for_a_canary(engine.0) => {}
            Action::Try(worker) => {
                let idle = match worker {
                    Worker::Engine(engine) => self.engines[engine.0].is_empty(),
                    Worker::Tokenizer(tokenizer) => self.tokenizers[tokenizer.0].is_none(),
                };
                assert!(
                    idle && self.draining.is_none(),
                    "{worker:?} has better things to do"
                );
                let since = self.last_active.get(worker).copied().unwrap_or(self.born);
                assert!(
                    self.asked.insert(*worker, since).is_none(),
                    "{worker:?} is asked twice"
                );
            }
            Action::Backpressure(change) => {
                let fill = self.fill();
                self.book.look(&fill, &self.setup.limits);
                self.book.told(change, &fill, &self.setup.limits, now);
            }
            Action::Reconnect { .. } => {
                assert!(self.reconnect_now, "a session given up for nothing");
                self.reconnect_now = false;
            }
            Action::Drained => {
                assert!(self.draining.is_some() && !self.drained);
                assert!(self.jobs.is_empty() && self.engines.iter().all(Vec::is_empty));
                self.drained = true;
            }
            Action::Kill(reason) => self.killed = Some(*reason),
        }
    }

    /// It is taken in: with room for it, in time, and not while stopping.
    fn admitted(&mut self, key: JobKey, now: Moment) {
        let load = self.memory_to_load(key);
        let seen = self.jobs.get_mut(&key).expect("a job that is here");
        assert!(!seen.admitted, "admitted twice");
        assert!(
            seen.deadline.is_none_or(|deadline| deadline > now),
            "admitted late"
        );
        seen.admitted = true;
        let (lane, model, need) = (seen.lane, seen.model, memory_of(seen.bytes, seen.inputs) + load);
        if lane == Lane::Interactive {
            let fill = self.fill();
            let (jobs, bytes) = (fill.held[lane as usize], fill.bytes);
            assert!(jobs <= self.setup.limits.max_queue, "the lane holds {jobs} jobs");
            let own = self.of_model(model);
            let most = self.setup.models[model.0].max_queue;
            assert!(
                most.is_none_or(|most| own <= most),
                "the lane holds {own} of a model"
            );
            assert!(
                bytes <= self.setup.limits.max_queue_bytes,
                "the lane holds {bytes} bytes"
            );
            assert!(
                !self.book.keeps_out(need, jobs == 1),
                "admitted while intake pauses"
            );
        }
        // A canary of a model that is not there has no use for it.
        if lane != Lane::Probe || self.models.is_in(model.0) {
            self.models.wanted(model.0);
        }
        self.book.admitted(need);
        assert!(self.draining.is_none(), "admitted while draining");
    }

    /// What its model takes, if it is the first to ask for it.
    fn memory_to_load(&self, key: JobKey) -> u64 {
        let model = self.jobs[&key].model.0;
        if self.models.is_out(model) {
            self.setup.models[model].bytes
        } else {
            0
        }
    }

    /// Whether the engine was asked in this turn for a canary whose model is not in memory.
    fn is_for_a_canary(&self, engine: usize) -> bool {
        let trial = |job| self.trials.contains(&(engine, job));
        self.delivered_now.is_some_and(trial)
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

    fn overloaded_is_true(&mut self, job: JobKey) {
        let seen = &self.jobs[&job];
        assert!(
            seen.bytes <= self.setup.limits.max_queue_bytes,
            "told to come again, and there never is room for it"
        );
        self.book.refused();
        assert_eq!(
            seen.lane,
            Lane::Interactive,
            "only these are ever refused for load"
        );
        let fill = self.fill();
        let held = fill.held[Lane::Interactive as usize];
        let own = self.setup.models[seen.model.0].max_queue;
        let full =
            held >= self.setup.limits.max_queue || own.is_some_and(|own| self.of_model(seen.model) >= own);
        let heavy = fill.bytes + seen.bytes > self.setup.limits.max_queue_bytes;
        let need = memory_of(seen.bytes, seen.inputs) + self.memory_to_load(job);
        let paused = self.book.keeps_out(need, held == 0);
        assert!(full || heavy || paused, "refused with room left");
    }

    fn start_batch(
        &mut self,
        engine: usize,
        batch: BatchId,
        model: ModelId,
        items: &[Item],
        action: &Action,
        now: Moment,
    ) {
        assert!(!items.is_empty(), "an empty batch");
        let mut parts = std::mem::take(&mut self.parts);
        let mut part_batches = std::mem::take(&mut self.part_batches);
        let fill = self.fill();
        self.book.look(&fill, &self.setup.limits);
        let mut bulk = fill.inflight[Lane::Bulk as usize];
        for item in items {
            // The shell has what is computed: a job that is gone has left nothing behind.
            let seen = self.job(item.job, action);
            // What was in a batch that failed whole is computed to its end, though its job has failed or nobody takes it.
            let again = parts.remove(&(item.job, item.input));
            if again {
                part_batches.insert(batch);
            }
            assert!(seen.place == Place::Working && (again || !seen.failed && !seen.returned));
            assert_eq!(seen.model, model, "a batch mixes models");
            assert_eq!(seen.tokens[item.input], item.tokens);
            let suspect = seen.suspect;
            assert!(
                again || !seen.started[item.input],
                "an input computed twice in one delivery"
            );
            assert!(
                !suspect || items.iter().all(|other| other.job == item.job),
                "a suspect among others"
            );
            let new = !seen.begun();
            let (urgent, of_bulk) = (seen.is_urgent(), seen.lane == Lane::Bulk);
            seen.started[item.input] = true;
            seen.begun_at.get_or_insert(now);
            if new && of_bulk {
                let paused = self.book.bulk_pauses();
                assert!(!paused || bulk == 0, "a bulk job is begun while intake pauses");
                bulk += 1;
            }
            if new && !urgent {
                let of_model = self
                    .jobs
                    .values()
                    .filter(|seen| seen.in_flight() && seen.model == model);
                let of_model = of_model.filter(|seen| !seen.is_urgent()).count();
                let most = self.setup.models[model.0].max_inflight;
                assert!(
                    most.is_none_or(|most| of_model <= most),
                    "{of_model} jobs of a model in flight"
                );
                let begun = self.jobs.values().filter(|seen| seen.in_flight()).count();
                let urgent = self
                    .jobs
                    .values()
                    .filter(|seen| seen.in_flight() && seen.is_urgent());
                let most = self.setup.limits.max_inflight + urgent.count();
                assert!(begun <= most, "{begun} jobs in flight");
            }
        }
        (self.parts, self.part_batches) = (parts, part_batches);
        let tokens: usize = items.iter().map(|item| item.tokens).sum();
        assert!(
            tokens <= self.setup.batch_tokens || items.len() == 1,
            "{tokens} tokens in a batch"
        );
        let fill = self.fill();
        self.book.look(&fill, &self.setup.limits);
        self.engines[engine].push((batch, items.to_vec()));
    }

    fn forget(&mut self, key: JobKey, outcome: Outcome, action: &Action, now: Moment) {
        let seen = self.job(key, action).clone();
        match outcome {
            _ if seen.called => seen.judge_end_of_call(outcome),
            Outcome::Answered => assert!(seen.place == Place::Acked && seen.vectors),
            // A refusal may find nobody, just as vectors may.
            Outcome::Returned => assert!(seen.place == Place::Acked),
            Outcome::Refused => assert!(seen.place == Place::Acked && !seen.vectors),
            Outcome::DeadLettered => assert!(seen.place == Place::Acked && seen.dead_letter),
            Outcome::MovedOn => assert!(seen.place == Place::Acked && seen.moved),
            Outcome::Requeued => assert!(seen.settled && seen.place != Place::Acked),
            Outcome::Lost => assert!(!self.connected, "a delivery is void only with its session"),
            Outcome::Probe => {
                assert!(seen.local, "only a canary of the short way ends so");
                let computed = seen.place == Place::Working && seen.done == seen.tokens.len() && !seen.failed;
                if computed && self.blocked && self.draining.is_none() {
                    self.round_now = true;
                    self.round = Some(now);
                }
            }
        }
        let worked_off = matches!(outcome, Outcome::Answered | Outcome::Returned) && !seen.gone;
        if let (true, Some(begun)) = (worked_off && seen.lane != Lane::Probe, seen.begun_at) {
            self.book.answered(seen.lane, now.since(begun));
        }
        if seen.holds(seen.model.0) && seen.lane != Lane::Probe {
            self.models.used(seen.model.0, now);
        }
        self.jobs.remove(&key);
        self.gone.insert(key);
    }

    /// What the last step should have moved on has moved on.
    fn nothing_forgotten(&self, now: Moment) {
        for model in 0..self.setup.models.len() {
            let held = self.jobs.values().any(|seen| seen.holds(model));
            let due = self.models.is_due(model, &self.setup.limits, now);
            let stays = held || self.draining.is_some() || self.killed.is_some();
            assert!(stays || !due, "model {model} is idle and stays");
        }
        for (key, seen) in &self.jobs {
            assert!(seen.place != Place::Acked, "{key:?} is acked and not forgotten");
            let handed = matches!(seen.place, Place::Handed { .. });
            assert!(!handed, "{key:?} is handed over and not forgotten");
            let given_up = seen.gone && (seen.place != Place::Working || seen.at_rest());
            assert!(!given_up, "{key:?} stays, and its caller is gone");
            assert!(
                seen.place != Place::Acking || seen.settled,
                "{key:?} is confirmed and not acked"
            );
            if seen.place == Place::Tokenizing {
                assert!(
                    seen.admitted,
                    "{key:?} was neither admitted nor refused nor given back"
                );
            }
            if seen.place == Place::Working && seen.at_rest() {
                panic!("{key:?} is computed and not answered");
            }
            let slow = seen
                .begun_at
                .is_some_and(|begun| now.since(begun) >= self.held_max / 10);
            let cuttable = slow && !seen.cut && seen.undrawn() > 0 && seen.can_be_cut().is_some();
            let queued = self.resumable && seen.lane != Lane::Probe && self.draining.is_none();
            assert!(
                !(cuttable && queued),
                "{key:?} holds its delivery for a slow slice"
            );
            let too_long = seen.place == Place::Working && seen.is_too_long(self.held_max, now);
            assert!(!too_long, "{key:?} holds its delivery for too long");
            assert!(!seen.to_tokenize, "{key:?} has its model and is not tokenized");
            assert!(
                seen.place != Place::Awaiting || !self.models.is_out(seen.model.0),
                "{key:?} waits for a model that nobody loads"
            );
            if seen.place.waits() && !seen.begun() {
                let late = seen.deadline.is_some_and(|deadline| deadline <= now);
                assert!(!late, "{key:?} waits although its deadline has passed");
            }
        }
    }

    /// Why the process must end now; empty if it must not.
    fn reasons(&self, now: Moment) -> Vec<KillReason> {
        let limits = &self.setup.limits;
        let mut reasons = Vec::new();
        if let Some(since) = self.draining {
            if now.since(since) >= limits.drain && !self.drained {
                reasons.push(KillReason::DrainTimeout);
            }
            return reasons;
        }
        if self.corrupt {
            reasons.push(KillReason::EngineCorrupt);
        }
        let inside = self.inside();
        let stalled = |since: Moment| now.since(since) >= limits.liveness_max_stall;
        for (worker, &since) in &self.asked {
            if stalled(since) {
                reasons.push(KillReason::NoProgress(match worker {
                    Worker::Engine(_) => Stage::Computed,
                    Worker::Tokenizer(_) => Stage::Admitted,
                }));
            }
        }
        if self.tokenizers.iter().flatten().any(|&since| stalled(since)) {
            reasons.push(KillReason::NoProgress(Stage::Admitted));
        }
        if self.models.stuck_since().is_some_and(stalled) {
            reasons.push(KillReason::NoProgress(Stage::Admitted));
        }
        let waits = self.undelivered.iter().chain(&self.reading).flatten();
        if !self.blocked && waits.into_iter().any(|&since| stalled(since)) {
            reasons.push(KillReason::NoProgress(Stage::Received));
        }
        let watching = limits.liveness_max_stall.max(2 * limits.watchdog_interval);
        if self.look.is_some_and(|look| now.since(look) >= watching) {
            reasons.push(KillReason::WatchdogHung);
        }
        for stage in [Stage::Received, Stage::Admitted, Stage::Published, Stage::Acked] {
            let at = stage as usize;
            let busy = stage == Stage::Admitted
                && (self.tokenizers.iter().all(Option::is_some) || !stalled(self.tokenizers_moved));
            let excused = busy || self.blocked && matches!(stage, Stage::Received | Stage::Published);
            // What became occupied in this very step has not waited yet.
            let old = self.before[at] > 0;
            if inside[at] > 0 && old && !excused && now.since(self.since[at]) >= limits.liveness_max_stall {
                reasons.push(KillReason::NoProgress(stage));
            }
        }
        for (engine, held) in self.engines.iter().enumerate() {
            let old = self.engines_before[engine] > 0;
            let waited = now.since(self.engine_since[engine]);
            let trial = self.trials.iter().any(|(of, _)| *of == engine);
            if (trial || !held.is_empty()) && old && waited >= limits.liveness_max_stall {
                reasons.push(KillReason::NoProgress(Stage::Computed));
                break;
            }
        }
        let unproven = |since: Moment| now.since(since) >= limits.disconnect_kill;
        let unconsumed = self.unconsumed_since.into_iter().flatten().any(unproven);
        if self.proof.is_some_and(|proof| unproven(proof) || unconsumed) {
            reasons.push(KillReason::BrokerDisconnected);
        }
        reasons
    }

    fn judge_verdict(&mut self, actions: &[Action], logic: &Logic, now: Moment) {
        let reasons = self.reasons(now);
        match self.killed {
            Some(reason) => assert!(
                reasons.contains(&reason),
                "{reason:?}, but the truth is {reasons:?}"
            ),
            None => assert!(reasons.is_empty(), "must end: {reasons:?}"),
        }
        let proven = self.connected && self.draining.is_none() && reasons.is_empty();
        let verdict = logic.health().verdict(now);
        assert_eq!(verdict == Verdict::Proven, proven, "{verdict:?}");
        if logic.readiness(now).is_ok() {
            assert!(
                !self.models.has_failed(self.setup.default.0),
                "ready without its model"
            );
            assert!(
                self.connected && self.ready && !self.blocked,
                "ready for work that cannot be done"
            );
        }
        if self.draining.is_some() {
            assert!(logic.readiness(now).is_err(), "ready while draining");
            let empty = self.jobs.is_empty() && self.engines.iter().all(Vec::is_empty);
            assert_eq!(empty, self.drained, "drained means that nothing is left");
            return;
        }
        if self.round_now && self.connected && reasons.is_empty() && !self.withdrawn_now {
            assert!(
                self.ready || self.models.starts(),
                "the first round with all models makes ready"
            );
            let due = self
                .pet
                .is_none_or(|last| now.since(last) >= self.setup.pet_spacing);
            assert!(!due || actions.contains(&Action::Pet), "a round without its pet");
        }
        let interval = self.setup.limits.canary_interval;
        let due = !self.ready || self.round.is_none_or(|round| now.since(round) >= interval);
        let due = due && !self.models.starts();
        if self.connected && due && self.killed.is_none() && self.local_or_none_under_way() {
            let sent = actions
                .iter()
                .any(|action| matches!(action, Action::SendCanary { .. }));
            assert!(sent || self.blocked, "no canary although one is due");
        }
    }

    fn local_or_none_under_way(&self) -> bool {
        let through = |seen: &Seen| seen.lane == Lane::Probe && !seen.local;
        !self.canary_on_its_way && !self.jobs.values().any(through)
    }
}
