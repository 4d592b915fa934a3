//! The world around one service, life after life: clients, callers, a broker with its queues, tokenizers, engines
//! and a clock, all made up, and all trouble drawn from one seed. Time moves from happening to happening.

mod broker;
mod callers;
mod trouble;
mod workers;

use super::oracle::Oracle;
use super::rng::Rng;
use callers::Waiting;
use embeddings::clock::Moment;
use embeddings::config::Limits;
use embeddings::job::chunks::Chunks;
use embeddings::job::{ErrorType, JobKey, Lane, Refusal};
use embeddings::logic::event::{
    Action, BatchId, CallerId, Confirmation, EngineId, Event, Item, ModelId, Onward, Outcome, Streaming,
    Ticket, TokenizerId, Worker,
};
use embeddings::logic::health::{Condition, KillReason};
use embeddings::logic::pressure::Memory;
use embeddings::logic::{Logic, ModelSetup, Setup};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashSet, VecDeque};
use std::time::Duration;

/// Unacknowledged deliveries per lane, in the order of [`Lane::ALL`].
const PREFETCH: [usize; Lane::COUNT] = [4, 24, 12, 1];
/// Inputs of one slice of a streamed job.
const SLICE: usize = 16;
/// Clients hold back while the broker has this many messages.
const BACKLOG_MAX: usize = 120;
/// Steps longer than this are trouble.
const CALM_STEP_MS: u64 = 60;

/// A client's message, as the broker keeps it.
#[derive(Clone, Debug)]
struct Message {
    lane: Lane,
    model: ModelId,
    caller: CallerId,
    tokens: Vec<usize>,
    budget: Option<u64>,
    broken: bool,
    answerable: bool,
    /// Inputs of one chunk, if it is streamed.
    chunk: Option<usize>,
    /// The queue it is in, or was delivered from.
    at: Lane,
    /// Inputs before the first one in the message; their chunks are with the sender.
    done: usize,
    /// As its header says.
    attempt: u32,
    alone: bool,
    /// How often it was delivered from the queue it is in.
    deliveries: u32,
    /// Inputs that the sender has, and whether it was told that these are all.
    sent: Vec<bool>,
    finished: bool,
    /// Inputs of the slice that was delivered last.
    slice: usize,
    /// A copy of it went on.
    moved: bool,
    /// How often it was settled for good; exactly once when all is over.
    settled: u32,
    /// Replies and dead-letter copies that reached the broker.
    outcomes: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Letter {
    Client(usize),
    Canary,
}

/// What the service publishes for a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Parcel {
    Answer,
    /// From this input of the slice on, so many.
    Chunk(usize, usize),
    Done,
    Refusal,
    Suspect,
    /// As it came.
    Back,
    NextSlice,
    Retry,
    DeadLetter,
}

impl Parcel {
    /// Whether it is a job's last word, so that its delivery is acknowledged once it is in a queue.
    fn is_last(self) -> bool {
        matches!(self, Parcel::Answer | Parcel::Done | Parcel::Refusal)
    }

    /// Whether it goes to a queue of ours, which is tried until it takes it.
    fn is_ours(self) -> bool {
        matches!(
            self,
            Parcel::Suspect | Parcel::Back | Parcel::NextSlice | Parcel::Retry | Parcel::DeadLetter
        )
    }
}

#[derive(Clone, Copy, Debug)]
struct Delivery {
    letter: Letter,
    lane: Lane,
    /// Inputs of it that are taken up.
    inputs: usize,
    /// Which attempt it is.
    attempt: u32,
    streamed: bool,
    /// False for a canary that never saw the broker.
    brokered: bool,
    /// It was asked for, beyond what the consumer may hold.
    fetched: bool,
}

/// What is going to happen. Each carries the life, and where it matters the session, it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    Produce,
    Chaos,
    /// Callers come, one goes away, and the service is told so.
    Call,
    Leave(JobKey),
    Gone(JobKey),
    Born,
    Connect,
    Down(u64),
    Probe(u64),
    Unblock(u64),
    Arrive(u64, Letter),
    /// So many messages are fetched from the bulk lane's queue.
    Look(u64, usize),
    LocalCanary,
    /// Another job is found to compute the same, and then to have ended.
    Twin(JobKey),
    TwinEnds(JobKey),
    /// A free tokenizer looks for work.
    Tokenize,
    TokenizerStep(usize, JobKey),
    Tried(Worker),
    /// A model comes into memory, in so many more steps, or goes out of it.
    Load(ModelId, u64),
    Unloaded(ModelId),
    EngineStep(usize, u64),
    Published(u64, JobKey, Parcel),
    /// A job that is to go on has waited long enough.
    Later(usize),
    Unconfirmed(u64, JobKey),
    Acked(u64, JobKey),
}

#[derive(Default)]
struct Engine {
    held: VecDeque<(BatchId, Vec<Item>)>,
    steps_left: u64,
    step_ms: u64,
    slow: bool,
    stuck: bool,
    /// Every batch fails.
    broken: bool,
}

#[derive(Default)]
struct Tokenizer {
    job: Option<JobKey>,
    steps_left: u64,
    step_ms: u64,
    stuck: bool,
}

/// How often what was done, so that a run cannot pass by doing nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub events: u64,
    pub settled: u64,
    pub pets: u64,
    pub lives: u64,
    pub drains: u64,
    pub stalls: u64,
    pub disconnects: u64,
    pub corrupt: u64,
    pub drain_timeouts: u64,
    pub canaries: u64,
    pub refused: u64,
    pub moved: u64,
    /// Jobs that a service which was stopped sent back as they had come.
    pub sent_back: u64,
    pub reconnects: u64,
    pub loads: u64,
    pub unloads: u64,
    pub cuts: u64,
    /// Those that left a chunk shorter.
    pub cuts_within: u64,
    /// Slices that ended before an input that was wrong.
    pub shortened: u64,
    /// Messages that were fetched beyond what the consumer may hold.
    pub fetched: u64,
    /// Plain jobs that were at work for too long.
    pub too_long: u64,
    /// Callers, what their jobs came to, and how many of the refusals were for a budget that had run out; the rest was cut off
    /// by the end of a process.
    pub called: u64,
    pub call_answers: u64,
    pub call_refusals: u64,
    pub call_late: u64,
    pub call_gone: u64,
    /// Times that backpressure went on, in the order of `Cause::ALL`.
    pub pressed: [u64; 4],
}

/// A fault put into the logic on purpose, to see that the judge finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Pets come from a timer, as so many services send them.
    TimerPet,
    /// Pets are sent although this one condition does not hold.
    Without(Condition),
    /// Nothing is ever killed.
    NoKill,
    /// Steps inside a batch or a text are not taken for progress.
    DeafToSteps,
    /// No canary is ever sent.
    NoCanary,
    /// A job is acknowledged twice.
    AcksTwice,
    /// Backpressure is told again with each refusal.
    TellsPerJob,
    /// That backpressure is over is not told.
    NeverAtEase,
    /// A model is loaded twice at once.
    LoadsTwice,
    /// A model is unloaded under a job.
    UnloadsUnderAJob,
    /// An idle model stays.
    NeverUnloads,
    /// Callers are let in beyond the bounds that they share with jobs from the broker.
    LetsCallersIn,
    /// A caller is answered twice.
    AnswersTwice,
    /// What was a gone caller's stays.
    KeepsTheGone,
}

/// All of it.
pub struct World {
    /// The fault, if there is to be one.
    pub mutant: Option<Mutant>,
    rng: Rng,
    now: u64,
    trouble: bool,
    quiet: bool,
    /// Whether the broker has the queues for jobs that go on.
    resumable: bool,
    /// Messages that were here when a session was lost.
    innocent: HashSet<usize>,
    /// Messages that were in an engine when the process before this one died.
    at_work: HashSet<usize>,
    future: BinaryHeap<Reverse<(u64, u64, u64, Next)>>,
    sequence: u64,
    life: u64,
    logic: Option<Logic>,
    oracle: Oracle,
    setup: Setup,
    engines: Vec<Engine>,
    tokenizers: Vec<Tokenizer>,
    to_tokenize: VecDeque<JobKey>,
    tokenizer_slow: bool,
    /// The thread that loads models hangs.
    loader_stuck: bool,
    /// Models that have not been in memory in this life: one that cannot be loaded the first time ends the process.
    first_loads: BTreeSet<ModelId>,
    /// Since when the watchdog thread has been frozen.
    watchdog_stuck: Option<u64>,
    /// Per lane, whether the broker has lost our consumer, and whether it does not deliver.
    unconsumed: [bool; Lane::COUNT],
    undelivering: [bool; Lane::COUNT],
    /// Per lane, whether the thread that reads large messages hangs.
    reader_stuck: [bool; Lane::COUNT],
    /// The broker confirms nothing, or nothing to one in so many reply queues.
    unconfirming: Option<u64>,
    /// Which queue is looked at next.
    look_at: usize,
    messages: Vec<Message>,
    /// Callers whose jobs are here, by these.
    calls: BTreeMap<JobKey, Waiting>,
    next_call: u64,
    /// What was given to callers in this turn, and whether it found them.
    handed: VecDeque<(JobKey, bool)>,
    queues: [VecDeque<Letter>; Lane::COUNT],
    deliveries: BTreeMap<JobKey, Delivery>,
    on_the_wire: Vec<Letter>,
    session: u64,
    /// Whether the service believes in a session.
    up: bool,
    /// Whether bytes really pass.
    link: bool,
    blocked: bool,
    /// Consumers are cancelled when the service is asked to stop; what is on the wire still comes.
    intake: bool,
    held_back: Vec<(JobKey, Parcel)>,
    next_key: u64,
    /// Until when slow tokenizations last.
    slow_until: u64,
    /// Since when nothing is wrong.
    calm_since: u64,
    /// When the service wants to be woken, as it said in its last turn.
    check: u64,
    trace: bool,
    pub counts: Counts,
}

impl World {
    pub fn new(seed: u64) -> World {
        let mut rng = Rng::new(seed);
        let models = rng.range(1, 3) as usize;
        let setup = trouble::draw_setup(&mut rng, models);
        let resumable = !rng.one_in(5);
        let mut world = World {
            mutant: None,
            rng,
            now: 0,
            trouble: true,
            quiet: false,
            resumable,
            innocent: HashSet::new(),
            at_work: HashSet::new(),
            future: BinaryHeap::new(),
            sequence: 0,
            life: 0,
            logic: None,
            oracle: Oracle::new(setup.clone(), Moment::ZERO),
            setup,
            engines: Vec::new(),
            tokenizers: Vec::new(),
            to_tokenize: VecDeque::new(),
            tokenizer_slow: false,
            loader_stuck: false,
            first_loads: BTreeSet::new(),
            watchdog_stuck: None,
            unconsumed: [false; Lane::COUNT],
            undelivering: [false; Lane::COUNT],
            reader_stuck: [false; Lane::COUNT],
            unconfirming: None,
            look_at: 0,
            messages: Vec::new(),
            calls: BTreeMap::new(),
            next_call: 0,
            handed: VecDeque::new(),
            queues: Default::default(),
            deliveries: BTreeMap::new(),
            on_the_wire: Vec::new(),
            session: 0,
            up: false,
            link: false,
            blocked: false,
            intake: true,
            held_back: Vec::new(),
            next_key: 0,
            slow_until: 0,
            calm_since: 0,
            check: 0,
            trace: std::env::var_os("SIM_TRACE").is_some(),
            counts: Counts::default(),
        };
        world.plan(0, Next::Born);
        world.plan(1, Next::Produce);
        world.plan(1, Next::Call);
        world.plan(500, Next::Chaos);
        world
    }

    /// Runs `events` events of trouble, then lets the world heal and sees that everything is settled.
    pub fn run(&mut self, events: u64) {
        while self.counts.events < events {
            self.turn();
        }
        self.heal();
        let patience = self.now + 600_000;
        while !self.all_settled() {
            assert!(
                self.now < patience,
                "not settled within ten minutes: {}",
                self.left_over()
            );
            self.turn();
        }
        for (number, message) in self.messages.iter().enumerate() {
            assert_eq!(
                message.settled, 1,
                "message {number} settled {} times",
                message.settled
            );
            assert!(
                message.outcomes >= 1,
                "message {number} was acked without an answer"
            );
            let whole = !message.finished || message.sent.iter().all(|sent| *sent);
            assert!(whole, "message {number} was finished without all its chunks");
        }
    }

    fn all_settled(&self) -> bool {
        self.messages.iter().all(|message| message.settled > 0)
            && self.calls.is_empty()
            && self.oracle.is_empty()
    }

    fn left_over(&self) -> String {
        let open = self
            .messages
            .iter()
            .filter(|message| message.settled == 0)
            .count();
        let queued: usize = self.queues.iter().map(VecDeque::len).sum();
        format!(
            "{open} messages, {queued} queued, {} delivered, {} callers",
            self.deliveries.len(),
            self.calls.len()
        )
    }

    fn plan(&mut self, after: u64, next: Next) {
        self.sequence += 1;
        let entry = (self.now + after, self.sequence, self.life, next);
        self.future.push(Reverse(entry));
    }

    fn moment(&self) -> Moment {
        Moment::from_millis(self.now)
    }

    /// The next happening, or a tick if the service wants to be woken before it.
    fn turn(&mut self) {
        let next = self.future.peek().map_or(u64::MAX, |Reverse(entry)| entry.0);
        if self.logic.is_some() && self.check < next {
            self.now = self.now.max(self.check);
            self.step(Event::Tick);
            return;
        }
        let Reverse((at, _, life, next)) = self.future.pop().expect("something always happens");
        self.now = self.now.max(at);
        if life == self.life || matches!(next, Next::Produce | Next::Call | Next::Chaos | Next::Later(_)) {
            self.happen(next);
        }
    }

    fn happen(&mut self, next: Next) {
        match next {
            Next::Produce => self.produce(),
            Next::Chaos => self.chaos(),
            Next::Call => self.call(),
            Next::Leave(job) => self.leave(job),
            Next::Gone(job) => self.step(Event::CallerGone { job }),
            Next::Born => self.born(),
            Next::Connect => self.connect(),
            Next::Down(session) if session == self.session && self.up => {
                self.cut();
                self.up = false;
                self.disturbed();
                let pause = self.rng.range(1, 3000);
                self.plan(pause, Next::Connect);
                self.step(Event::BrokerDown);
            }
            Next::Probe(session) if session == self.session && self.link => {
                let pause = (self.setup.limits.disconnect_kill.as_millis() as u64 / 10).clamp(50, 2000);
                self.plan(pause, Next::Probe(session));
                let lane = Lane::ALL[self.look_at % Lane::COUNT];
                self.look_at += 1;
                self.step(Event::QueueSeen {
                    lane,
                    ready: self.queues[lane as usize].len(),
                    consumers: usize::from(!self.unconsumed[lane as usize]),
                });
            }
            Next::Unblock(session) if session == self.session && self.link && self.blocked => self.unblock(),
            Next::Arrive(session, letter) if session == self.session && self.link => {
                self.arrive(letter, false);
            }
            Next::Look(session, jobs) if session == self.session && self.link => self.look(jobs),
            Next::LocalCanary => {
                let job = self.logic.as_mut().expect("this life").local_key();
                let delivery = Delivery {
                    letter: Letter::Canary,
                    lane: Lane::Probe,
                    inputs: 1,
                    attempt: 1,
                    streamed: false,
                    brokered: false,
                    fetched: false,
                };
                self.delivered(job, delivery, Ok(canary_ticket()), true, (1, false));
            }
            Next::Tried(worker) => {
                let frozen = match worker {
                    Worker::Engine(engine) => self.engines[engine.0].stuck,
                    Worker::Tokenizer(tokenizer) => self.tokenizers[tokenizer.0].stuck,
                };
                if !frozen {
                    self.step(Event::Tried(worker));
                }
            }
            Next::Load(model, steps) if !self.loader_stuck => self.load_step(model, steps),
            Next::Unloaded(model) if !self.loader_stuck => self.step(Event::Unloaded { model }),
            Next::Twin(job) => {
                let delay = self.rng.range(0, 5000);
                self.plan(delay, Next::TwinEnds(job));
                self.step(Event::Twin { job });
            }
            Next::TwinEnds(job) if self.rng.one_in(2) => self.step(Event::Recalled { job }),
            Next::TwinEnds(job) => self.step(Event::Parted { job }),
            Next::Tokenize => self.take_up(),
            Next::TokenizerStep(tokenizer, job) => self.tokenizer_step(tokenizer, job),
            Next::EngineStep(engine, batch) => self.engine_step(engine, batch),
            Next::Published(session, job, parcel) if session == self.session && self.link => {
                self.published(job, parcel);
            }
            Next::Later(number) => {
                let queue = self.messages[number].at;
                self.queues[queue as usize].push_back(Letter::Client(number));
            }
            Next::Unconfirmed(session, job) if session == self.session && self.link => {
                match self.deliveries.get(&job).map(|it| it.lane) {
                    None => {}
                    // A canary's answer is waited for as long as it takes.
                    Some(Lane::Probe) => self.publish(job, Parcel::Answer),
                    Some(_) => self.step(Event::Confirmed {
                        job,
                        outcome: Confirmation::Unconfirmed,
                    }),
                }
            }
            Next::Acked(session, job) if session == self.session && self.up => {
                // Written is not read: on a dead link the broker never sees it.
                let delivery = self.deliveries.get(&job).copied();
                if let (true, Some(Letter::Client(number))) = (self.link, delivery.map(|it| it.letter)) {
                    self.messages[number].settled += 1;
                    self.counts.settled += 1;
                }
                if self.link
                    && let Some(delivery) = self.deliveries.get_mut(&job)
                {
                    delivery.letter = Letter::Canary;
                }
                self.step(Event::Acked { job });
            }
            _ => {}
        }
        self.send_more();
    }

    fn born(&mut self) {
        self.counts.lives += 1;
        self.setup = trouble::draw_setup(&mut self.rng, self.setup.models.len());
        let now = self.moment();
        self.logic = Some(Logic::new(self.setup.clone(), now));
        self.oracle = Oracle::new(self.setup.clone(), now);
        self.check = self.now;
        self.engines = (0..self.setup.engines).map(|_| Engine::default()).collect();
        self.tokenizers = (0..self.setup.tokenizers).map(|_| Tokenizer::default()).collect();
        self.to_tokenize.clear();
        self.tokenizer_slow = false;
        self.loader_stuck = false;
        self.watchdog_stuck = None;
        self.undelivering = [false; Lane::COUNT];
        self.reader_stuck = [false; Lane::COUNT];
        self.slow_until = 0;
        self.intake = true;
        self.disturbed();
        self.first_loads = (0..self.setup.models.len()).map(ModelId).collect();
        for model in self.first_loads.clone() {
            let (wait, steps) = (self.rng.range(0, 500), self.rng.range(1, 6));
            self.plan(wait, Next::Load(model, steps));
        }
        let wait = self.rng.range(0, 2000);
        self.plan(wait, Next::Connect);
    }

    fn die(&mut self) {
        self.cut();
        self.innocent.clear();
        let items = self
            .engines
            .iter()
            .flat_map(|engine| &engine.held)
            .flat_map(|(_, items)| items);
        let letters = items.filter_map(|item| self.deliveries.get(&item.job));
        let numbers = letters.filter_map(|delivery| match delivery.letter {
            Letter::Client(number) => Some(number),
            Letter::Canary => None,
        });
        self.at_work = numbers.collect();
        self.up = false;
        self.logic = None;
        self.deliveries.clear();
        // Their connections end with the process, and they know it.
        self.calls.clear();
        self.handed.clear();
        self.life += 1;
        let pause = self.rng.range(1, 2000);
        self.plan(pause, Next::Born);
    }

    fn delivered(
        &mut self,
        job: JobKey,
        delivery: Delivery,
        arrival: Result<Ticket, Refusal>,
        answerable: bool,
        (attempt, suspect): (u32, bool),
    ) {
        let inputs = arrival.as_ref().map_or(1, |ticket| ticket.inputs);
        let taken = Delivery {
            inputs,
            attempt,
            streamed: arrival.as_ref().is_ok_and(|ticket| ticket.stream.is_some()),
            ..delivery
        };
        self.deliveries.insert(job, taken);
        let lane = delivery.lane;
        self.step(Event::Delivered {
            job,
            lane,
            arrival,
            answerable,
            attempt,
            suspect,
            fetched: delivery.fetched,
        });
    }

    /// One turn of the service's loop: the event, the judge on both sides of it, and the actions.
    fn step(&mut self, event: Event) {
        let now = self.moment();
        let Some(logic) = &mut self.logic else { return };
        self.counts.events += 1;
        self.oracle.before(&event, now);
        let told = self.trace.then(|| format!("{event:?}"));
        let fed = event.clone();
        let look = self.watchdog_stuck.map_or(now, Moment::from_millis);
        self.oracle.look = Some(look);
        logic.watched(look);
        let mut actions = Vec::new();
        let deaf = matches!(event, Event::BatchStep { .. } | Event::TokenizerStep { .. });
        if !(deaf && self.mutant == Some(Mutant::DeafToSteps)) {
            logic.step(event, now, &mut actions);
        }
        if let Some(mutant) = self.mutant {
            mutate(mutant, &fed, logic, now, &mut actions);
        }
        if let Some(told) = told {
            eprintln!("{} {told} -> {actions:?}", self.now);
        }
        self.oracle.after(&actions, logic, now);
        self.check = logic.next_check(now).as_millis().max(self.now + 1);
        assert!(self.check <= self.now + 500, "the loop must turn twice a second");
        let mut ended = false;
        for action in actions {
            ended |= matches!(action, Action::Kill(_) | Action::Drained);
            self.perform(action);
        }
        self.expect_pets();
        if ended {
            self.die();
        } else if let Some((job, taken)) = self.handed.pop_front() {
            // In the very turn in which it was made, as the shell does it.
            self.step(Event::HandedOver { job, taken });
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Load { model } => {
                self.counts.loads += 1;
                let steps = self.rng.range(1, 6);
                self.plan(0, Next::Load(model, steps));
            }
            Action::Unload { model } => {
                self.counts.unloads += 1;
                let delay = self.rng.range(0, 300);
                self.plan(delay, Next::Unloaded(model));
            }
            Action::Cut { job, inputs } => {
                self.counts.cuts += 1;
                if let Some(Letter::Client(number)) = self.deliveries.get(&job).map(|it| it.letter) {
                    let message = &mut self.messages[number];
                    message.slice = inputs;
                    let end = message.done + inputs;
                    let shorter = message.chunk.is_some_and(|chunk| !end.is_multiple_of(chunk));
                    self.counts.cuts_within += u64::from(shorter);
                }
            }
            Action::Tokenize { job } => {
                let delivery = self.deliveries.get(&job);
                let may = |lane| matches!(lane, Lane::Interactive | Lane::Bulk);
                let plain =
                    delivery.is_some_and(|it| !it.streamed && may(it.lane)) || self.calls.contains_key(&job);
                if plain && self.rng.one_in(30) {
                    self.plan(0, Next::Twin(job));
                } else {
                    self.to_tokenize.push_back(job);
                    self.plan(0, Next::Tokenize);
                }
            }
            Action::StartBatch {
                engine,
                first,
                batch,
                items,
                ..
            } => {
                self.engines[engine.0].held.push_back((batch, items));
                if first {
                    self.engines[engine.0].held.rotate_right(1);
                }
                if first || self.engines[engine.0].held.len() == 1 {
                    self.start_engine(engine.0);
                }
            }
            Action::Answer { job } => {
                if !self.hand_over(job) {
                    self.publish(job, Parcel::Answer);
                }
            }
            Action::Chunk { job, first, inputs } => self.publish(job, Parcel::Chunk(first, inputs)),
            Action::Finish { job } => self.publish(job, Parcel::Done),
            Action::Move { job, onward } => {
                self.counts.moved += 1;
                let parcel = match onward {
                    Onward::Suspect => Parcel::Suspect,
                    Onward::Back => {
                        self.counts.sent_back += 1;
                        Parcel::Back
                    }
                    Onward::NextSlice => Parcel::NextSlice,
                    Onward::Retry(_) => Parcel::Retry,
                };
                self.publish(job, parcel);
            }
            Action::Refuse { job, refusal } => {
                self.counts.refused += 1;
                self.counts.too_long += u64::from(refusal.error == ErrorType::TooManyInputs);
                let late = refusal.error == ErrorType::DeadlineExceeded && self.calls.contains_key(&job);
                self.counts.call_late += u64::from(late);
                if !self.hand_over(job) {
                    self.publish(job, Parcel::Refusal);
                }
            }
            Action::DeadLetter { job, .. } => self.publish(job, Parcel::DeadLetter),
            Action::Ack { job } => self.acknowledge(job),
            Action::Requeue { job } => {
                let letter = self.deliveries[&job].letter;
                if let (true, Letter::Client(number)) = (self.link, letter) {
                    self.queues[self.messages[number].at as usize].push_front(letter);
                }
                self.deliveries.get_mut(&job).expect("seen above").letter = Letter::Canary;
            }
            Action::Forget { job, outcome } => {
                let known = self.call_ended(job, outcome) || self.deliveries.remove(&job).is_some();
                assert!(known, "{job:?} forgotten twice");
            }
            Action::SendCanary { through_broker, .. } => {
                self.counts.canaries += 1;
                if !through_broker {
                    self.plan(0, Next::LocalCanary);
                } else if self.link {
                    self.queues[Lane::Probe as usize].push_back(Letter::Canary);
                }
            }
            Action::Pet => self.counts.pets += 1,
            Action::Kill(KillReason::NoProgress(_)) => self.counts.stalls += 1,
            Action::Kill(KillReason::BrokerDisconnected) => self.counts.disconnects += 1,
            Action::Kill(KillReason::EngineCorrupt) => self.counts.corrupt += 1,
            Action::Kill(KillReason::DrainTimeout) => self.counts.drain_timeouts += 1,
            Action::Try(worker) => {
                let delay = self.rng.range(0, 5);
                self.plan(delay, Next::Tried(worker));
            }
            Action::Kill(KillReason::LoopHung | KillReason::WatchdogHung) => self.counts.stalls += 1,
            Action::Reconnect { .. } => {
                self.counts.reconnects += 1;
                self.plan(0, Next::Down(self.session));
            }
            Action::LookAhead { jobs, .. } => {
                let delay = self.rng.range(0, 50);
                self.plan(delay, Next::Look(self.session, jobs));
            }
            Action::Backpressure(change) => {
                self.counts.pressed[change.cause as usize] += u64::from(change.on)
            }
            // An engine of the simulation takes any time anyway.
            Action::Drained | Action::Ready | Action::Rest { .. } => {}
        }
    }
}

/// What a logic with this fault would have answered.
fn mutate(mutant: Mutant, event: &Event, logic: &Logic, now: Moment, actions: &mut Vec<Action>) {
    let conditions = logic.health().conditions(now);
    match mutant {
        Mutant::TimerPet if *event == Event::Tick => actions.push(Action::Pet),
        Mutant::Without(missing) => {
            let vectors = |outcome: &Outcome| matches!(outcome, Outcome::Answered | Outcome::Returned);
            let round = actions
                .iter()
                .any(|action| matches!(action, Action::Forget { outcome, .. } if vectors(outcome)));
            let only = conditions
                .iter()
                .all(|(condition, holds)| *holds != (*condition == missing));
            if round && only {
                actions.push(Action::Pet);
            }
        }
        Mutant::NoKill => actions.retain(|action| !matches!(action, Action::Kill(_))),
        Mutant::NoCanary => actions.retain(|action| !matches!(action, Action::SendCanary { .. })),
        Mutant::AcksTwice => {
            if let Some(ack) = actions.iter().find(|action| matches!(action, Action::Ack { .. })) {
                actions.push(ack.clone());
            }
        }
        Mutant::TellsPerJob => {
            let told = actions
                .iter()
                .find(|action| matches!(action, Action::Backpressure(_)));
            if let Some(told) = told {
                actions.push(told.clone());
            }
        }
        Mutant::NeverAtEase => {
            actions.retain(|action| !matches!(action, Action::Backpressure(change) if !change.on));
        }
        Mutant::LoadsTwice => {
            if let Some(load) = actions
                .iter()
                .find(|action| matches!(action, Action::Load { .. }))
            {
                actions.push(load.clone());
            }
        }
        Mutant::UnloadsUnderAJob
            if actions
                .iter()
                .any(|action| matches!(action, Action::Tokenize { .. })) =>
        {
            actions.push(Action::Unload { model: ModelId(0) });
        }
        Mutant::NeverUnloads => actions.retain(|action| !matches!(action, Action::Unload { .. })),
        Mutant::LetsCallersIn => {
            for action in actions.iter_mut() {
                if let Action::Refuse { job, refusal } = action
                    && job.0 > JobKey::CALLED
                    && refusal.error == ErrorType::Overloaded
                {
                    *action = Action::Tokenize { job: *job };
                }
            }
        }
        Mutant::AnswersTwice => {
            let answer =
                |action: &&Action| matches!(action, Action::Answer { job } if job.0 > JobKey::CALLED);
            if let Some(answer) = actions.iter().find(answer) {
                actions.push(answer.clone());
            }
        }
        Mutant::KeepsTheGone if matches!(event, Event::CallerGone { .. }) => {
            actions.retain(|action| !matches!(action, Action::Forget { .. }));
        }
        Mutant::TimerPet | Mutant::DeafToSteps | Mutant::UnloadsUnderAJob | Mutant::KeepsTheGone => {}
    }
}

fn canary_ticket() -> Ticket {
    Ticket {
        model: ModelId(0),
        caller: CallerId(0),
        inputs: 1,
        bytes: 20,
        deadline: None,
        stream: None,
    }
}
