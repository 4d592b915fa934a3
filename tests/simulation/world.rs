//! The world around one service, life after life: clients, a broker with its queues, tokenizers, engines
//! and a clock, all made up, and all trouble drawn from one seed. Time moves from happening to happening.

use super::oracle::Oracle;
use super::rng::Rng;
use embeddings::clock::Moment;
use embeddings::config::Limits;
use embeddings::job::{ErrorType, JobKey, Lane, Refusal};
use embeddings::logic::event::{Action, BatchId, Confirmation, EngineId, Event, Item, ModelId, Ticket};
use embeddings::logic::health::KillReason;
use embeddings::logic::{Logic, Setup};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Duration;

/// Unacknowledged deliveries per lane, in the order of [`Lane::ALL`].
const PREFETCH: [usize; 3] = [4, 24, 12];
/// Clients hold back while the broker has this many messages.
const BACKLOG_MAX: usize = 120;
/// Steps longer than this are trouble.
const CALM_STEP_MS: u64 = 60;

/// A client's message, as the broker keeps it.
#[derive(Clone, Debug)]
struct Message {
    lane: Lane,
    model: ModelId,
    tokens: Vec<usize>,
    budget: Option<u64>,
    broken: bool,
    answerable: bool,
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

#[derive(Clone, Copy, Debug)]
struct Delivery {
    letter: Letter,
    lane: Lane,
    /// False for a canary that never saw the broker.
    brokered: bool,
}

/// What is going to happen. Each carries the life, and where it matters the session, it belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Next {
    Produce,
    Chaos,
    Born,
    Connect,
    Down(u64),
    Probe(u64),
    Unblock(u64),
    Arrive(u64, Letter),
    LocalCanary,
    Tokenized(JobKey),
    EngineStep(usize, u64),
    Published(u64, JobKey, bool),
    Acked(u64, JobKey),
}

#[derive(Default)]
struct Engine {
    held: VecDeque<(BatchId, Vec<Item>)>,
    steps_left: u64,
    step_ms: u64,
    slow: bool,
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
}

/// All of it.
pub struct World {
    rng: Rng,
    now: u64,
    trouble: bool,
    quiet: bool,
    future: BinaryHeap<Reverse<(u64, u64, u64, Next)>>,
    sequence: u64,
    life: u64,
    logic: Option<Logic>,
    oracle: Oracle,
    setup: Setup,
    engines: Vec<Engine>,
    tokenizer_stuck: bool,
    tokenizer_slow: bool,
    wrong_letters: bool,
    messages: Vec<Message>,
    queues: [VecDeque<Letter>; 3],
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
    held_back: Vec<(JobKey, bool)>,
    next_key: u64,
    /// Until when slow tokenizations last.
    slow_until: u64,
    /// Since when nothing is wrong.
    calm_since: u64,
    trace: bool,
    pub counts: Counts,
}

impl World {
    pub fn new(seed: u64) -> World {
        let mut rng = Rng::new(seed);
        let models = rng.range(1, 3) as usize;
        let setup = draw_setup(&mut rng, models);
        let mut world = World {
            rng,
            now: 0,
            trouble: true,
            quiet: false,
            future: BinaryHeap::new(),
            sequence: 0,
            life: 0,
            logic: None,
            oracle: Oracle::new(setup.clone()),
            setup,
            engines: Vec::new(),
            tokenizer_stuck: false,
            tokenizer_slow: false,
            wrong_letters: false,
            messages: Vec::new(),
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
            trace: std::env::var_os("SIM_TRACE").is_some(),
            counts: Counts::default(),
        };
        world.plan(0, Next::Born);
        world.plan(1, Next::Produce);
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
        }
    }

    fn heal(&mut self) {
        self.trouble = false;
        self.tokenizer_slow = false;
        self.wrong_letters = false;
        self.engines.iter_mut().for_each(|engine| engine.slow = false);
        if self.link && self.blocked {
            self.unblock();
        }
    }

    fn all_settled(&self) -> bool {
        self.messages.iter().all(|message| message.settled > 0) && self.oracle.is_empty()
    }

    fn left_over(&self) -> String {
        let open = self
            .messages
            .iter()
            .filter(|message| message.settled == 0)
            .count();
        let queued: usize = self.queues.iter().map(VecDeque::len).sum();
        format!(
            "{open} messages, {queued} queued, {} delivered",
            self.deliveries.len()
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
        if let Some(logic) = &self.logic {
            let check = logic.next_check(self.moment()).as_millis().max(self.now + 1);
            assert!(check <= self.now + 500, "the loop must turn twice a second");
            if check < next {
                self.now = check;
                self.step(Event::Tick);
                return;
            }
        }
        let Reverse((at, _, life, next)) = self.future.pop().expect("something always happens");
        self.now = self.now.max(at);
        if life == self.life || matches!(next, Next::Produce | Next::Chaos) {
            self.happen(next);
        }
    }

    fn happen(&mut self, next: Next) {
        match next {
            Next::Produce => self.produce(),
            Next::Chaos => self.chaos(),
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
                self.step(Event::BrokerProof);
            }
            Next::Unblock(session) if session == self.session && self.link && self.blocked => self.unblock(),
            Next::Arrive(session, letter) if session == self.session && self.link => self.arrive(letter),
            Next::LocalCanary => {
                let job = self.logic.as_mut().expect("this life").local_key();
                let delivery = Delivery {
                    letter: Letter::Canary,
                    lane: Lane::Probe,
                    brokered: false,
                };
                self.delivered(job, delivery, Ok(canary_ticket()), true);
            }
            Next::Tokenized(job) => self.tokenized(job),
            Next::EngineStep(engine, batch) => self.engine_step(engine, batch),
            Next::Published(session, job, dead) if session == self.session && self.link => {
                self.published(job, dead);
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

    fn produce(&mut self) {
        let pause = if self.trouble { self.rng.range(1, 400) } else { 200 };
        self.plan(pause, Next::Produce);
        let backlog: usize = self.queues.iter().map(VecDeque::len).sum();
        if backlog >= BACKLOG_MAX || !self.trouble || self.quiet {
            return;
        }
        let flood = self.rng.one_in(40);
        for _ in 0..self.rng.range(1, if flood { 60 } else { 4 }) {
            let message = self.draw_message();
            self.queues[message.lane as usize].push_back(Letter::Client(self.messages.len()));
            self.messages.push(message);
        }
    }

    fn draw_message(&mut self) -> Message {
        let rng = &mut self.rng;
        let inputs = if rng.one_in(20) {
            rng.range(1, 60)
        } else {
            rng.range(1, 4)
        };
        let longest = if rng.one_in(30) { 900 } else { 120 };
        Message {
            lane: if rng.one_in(3) {
                Lane::Bulk
            } else {
                Lane::Interactive
            },
            model: ModelId(rng.below(self.setup.max_queue.len())),
            tokens: (0..inputs).map(|_| rng.range(1, longest) as usize).collect(),
            budget: rng.one_in(3).then(|| rng.range(0, 3000)),
            broken: rng.one_in(50),
            answerable: !rng.one_in(50),
            settled: 0,
            outcomes: 0,
        }
    }

    /// Trouble of one kind.
    fn chaos(&mut self) {
        let pause = if self.rng.one_in(8) {
            30_000
        } else {
            self.rng.range(100, 6000)
        };
        self.plan(pause, Next::Chaos);
        if !self.trouble || self.logic.is_none() {
            return;
        }
        let session = self.session;
        let engine = self.rng.below(self.setup.engines);
        match self.rng.below(64) {
            0..6 if self.up => self.plan(0, Next::Down(session)),
            6..9 if self.link => {
                // Half open: nothing passes, and nobody says so, for a while or for ever.
                self.cut();
                self.disturbed();
                if !self.rng.one_in(3) {
                    let noticed = self.rng.range(1, 4000);
                    self.plan(noticed, Next::Down(session));
                }
            }
            9..15 if self.link && !self.blocked => {
                self.blocked = true;
                let until = if self.rng.one_in(3) {
                    60_000
                } else {
                    self.rng.range(1, 4000)
                };
                self.plan(until, Next::Unblock(session));
                self.step(Event::BrokerBlocked);
            }
            15..25 => {
                self.engines[engine].slow ^= true;
            }
            25..27 => self.engines[engine].stuck = true,
            27 => self.tokenizer_stuck = true,
            28..33 => {
                self.tokenizer_slow ^= true;
            }
            33..36 => {
                self.counts.drains += 1;
                self.intake = false;
                self.step(Event::Drain);
            }
            36..44 => {
                let rng = &mut self.rng;
                let limits = draw_limits(rng);
                self.setup.limits = limits;
                self.disturbed();
                self.step(Event::Reloaded(limits));
            }
            44..46 => {
                self.now += self.rng.range(1, 60_000);
                self.disturbed();
            }
            46 if self.rng.one_in(4) => self.step(Event::CanaryWrong),
            47..52 => self.wrong_letters ^= true,
            52..56 => {
                self.tokenizer_slow = false;
                self.engines.iter_mut().for_each(|engine| engine.slow = false);
            }
            // Clients fall silent, or come back: canaries are all the work there is.
            56..62 => self.quiet ^= true,
            _ => {}
        }
    }

    /// Whatever was promised about calm times begins anew.
    fn disturbed(&mut self) {
        self.calm_since = self.now;
    }

    fn born(&mut self) {
        self.counts.lives += 1;
        self.setup = draw_setup(&mut self.rng, self.setup.max_queue.len());
        let now = self.moment();
        self.logic = Some(Logic::new(self.setup.clone(), now));
        self.oracle = Oracle::new(self.setup.clone());
        self.engines = (0..self.setup.engines).map(|_| Engine::default()).collect();
        self.tokenizer_stuck = false;
        self.tokenizer_slow = false;
        self.slow_until = 0;
        self.intake = true;
        self.disturbed();
        let wait = self.rng.range(0, 2000);
        self.plan(wait, Next::Connect);
    }

    fn die(&mut self) {
        self.cut();
        self.up = false;
        self.logic = None;
        self.deliveries.clear();
        self.life += 1;
        let pause = self.rng.range(1, 2000);
        self.plan(pause, Next::Born);
    }

    fn connect(&mut self) {
        self.session += 1;
        (self.up, self.link, self.blocked) = (true, true, false);
        self.disturbed();
        self.plan(0, Next::Probe(self.session));
        self.step(Event::BrokerUp);
    }

    /// The broker sees the session end: what was delivered and not acknowledged goes back, in order.
    fn cut(&mut self) {
        self.link = false;
        self.blocked = false;
        self.held_back.clear();
        let delivered = self.deliveries.values().filter(|delivery| delivery.brokered);
        let mut back: Vec<Letter> = delivered.map(|delivery| delivery.letter).collect();
        back.append(&mut self.on_the_wire);
        for delivery in self.deliveries.values_mut() {
            delivery.letter = Letter::Canary;
        }
        back.sort_unstable();
        for letter in back.into_iter().rev() {
            if let Letter::Client(number) = letter {
                self.queues[self.messages[number].lane as usize].push_front(letter);
            }
        }
        self.queues[Lane::Probe as usize].clear();
    }

    fn unblock(&mut self) {
        self.blocked = false;
        for (job, dead) in std::mem::take(&mut self.held_back) {
            self.publish(job, dead);
        }
        self.disturbed();
        self.step(Event::BrokerUnblocked);
    }

    /// The broker delivers up to each consumer's prefetch.
    fn send_more(&mut self) {
        if !self.link || !self.up || !self.intake {
            return;
        }
        for lane in Lane::ALL {
            if lane == Lane::Probe && self.blocked {
                continue;
            }
            let on_the_wire = |letter: &&Letter| self.lane_of(**letter) == lane;
            let unacked = self
                .deliveries
                .values()
                .filter(|it| it.lane == lane && it.brokered)
                .count()
                + self.on_the_wire.iter().filter(on_the_wire).count();
            for _ in unacked..PREFETCH[lane as usize] {
                let Some(letter) = self.queues[lane as usize].pop_front() else {
                    break;
                };
                self.on_the_wire.push(letter);
                let delay = self.rng.range(0, 5);
                self.plan(delay, Next::Arrive(self.session, letter));
            }
        }
    }

    fn lane_of(&self, letter: Letter) -> Lane {
        match letter {
            Letter::Client(number) => self.messages[number].lane,
            Letter::Canary => Lane::Probe,
        }
    }

    fn arrive(&mut self, letter: Letter) {
        let at = self
            .on_the_wire
            .iter()
            .position(|it| *it == letter)
            .expect("sent before");
        self.on_the_wire.remove(at);
        self.next_key += 1;
        let job = JobKey(self.next_key);
        let delivery = Delivery {
            letter,
            lane: self.lane_of(letter),
            brokered: true,
        };
        let (arrival, answerable) = match letter {
            Letter::Canary => (Ok(canary_ticket()), true),
            Letter::Client(number) => {
                let message = &self.messages[number];
                let ticket = Ticket {
                    model: message.model,
                    inputs: message.tokens.len(),
                    bytes: message.tokens.iter().sum::<usize>() * 5,
                    deadline: message.budget.map(|ms| self.moment() + Duration::from_millis(ms)),
                };
                let broken = Refusal::invalid("input", "input is missing");
                let arrival = if message.broken { Err(broken) } else { Ok(ticket) };
                (arrival, message.answerable)
            }
        };
        self.delivered(job, delivery, arrival, answerable);
    }

    fn delivered(
        &mut self,
        job: JobKey,
        delivery: Delivery,
        arrival: Result<Ticket, Refusal>,
        answerable: bool,
    ) {
        self.deliveries.insert(job, delivery);
        let lane = delivery.lane;
        self.step(Event::Delivered {
            job,
            lane,
            arrival,
            answerable,
        });
    }

    fn tokenized(&mut self, job: JobKey) {
        if self.tokenizer_stuck {
            return;
        }
        let result = match self.deliveries.get(&job).map(|delivery| delivery.letter) {
            Some(Letter::Client(number)) => Ok(self.messages[number].tokens.clone()),
            _ => Ok(vec![4]),
        };
        let canary = self
            .deliveries
            .get(&job)
            .is_none_or(|delivery| delivery.lane == Lane::Probe);
        // The tokenizer of a job whose session is gone still ends, with whatever it had to do.
        let result = if !canary && self.rng.one_in(60) {
            Err(Refusal::new(
                ErrorType::InputTooLong,
                "input 0 has 513 tokens, limit is 512",
            ))
        } else {
            result
        };
        self.step(Event::Tokenized { job, result });
    }

    fn start_engine(&mut self, at: usize) {
        let stall = self.setup.limits.liveness_max_stall.as_millis() as u64;
        let engine = &mut self.engines[at];
        let Some((batch, items)) = engine.held.front() else {
            return;
        };
        let tokens: usize = items.iter().map(|item| item.tokens).sum();
        let batch = batch.0;
        engine.steps_left = 4;
        engine.step_ms = 1 + tokens as u64 / 100;
        if engine.slow {
            engine.step_ms = (engine.step_ms * 10 + self.rng.range(0, stall / 2)).min(stall * 3 / 4);
        }
        let step = engine.step_ms;
        self.plan(step, Next::EngineStep(at, batch));
    }

    fn engine_step(&mut self, at: usize, batch: u64) {
        let engine = &mut self.engines[at];
        if engine.stuck || engine.held.front().is_none_or(|(id, _)| id.0 != batch) {
            return;
        }
        engine.steps_left -= 1;
        // A reload may have lowered the limit below the step that was agreed on.
        let stall = self.setup.limits.liveness_max_stall.as_millis() as u64;
        engine.step_ms = engine.step_ms.min(stall * 3 / 4);
        if engine.steps_left > 0 {
            let step = engine.step_ms;
            self.plan(step, Next::EngineStep(at, batch));
            self.step(Event::BatchStep { engine: EngineId(at) });
            return;
        }
        let (batch, items) = engine.held.pop_front().expect("seen above");
        let lane = |item: &Item| self.deliveries.get(&item.job).map(|delivery| delivery.lane);
        let real: Vec<bool> = items.iter().map(|item| lane(item) != Some(Lane::Probe)).collect();
        let mut results = Vec::new();
        for real in real {
            let fails = real && self.rng.one_in(80);
            results.push(if fails { Err("not a number".into()) } else { Ok(()) });
        }
        self.start_engine(at);
        self.step(Event::BatchDone {
            engine: EngineId(at),
            batch,
            results,
        });
    }

    fn publish(&mut self, job: JobKey, dead: bool) {
        if self.blocked {
            self.held_back.push((job, dead));
        } else if self.link {
            let delay = if self.rng.one_in(30) {
                300
            } else {
                self.rng.range(0, 10)
            };
            self.plan(delay, Next::Published(self.session, job, dead));
        }
    }

    fn published(&mut self, job: JobKey, dead: bool) {
        if self.blocked {
            self.held_back.push((job, dead));
            return;
        }
        let real = match self.deliveries[&job].letter {
            Letter::Client(number) => Some(number),
            Letter::Canary => None,
        };
        let outcome = match self.rng.below(20) {
            0 if real.is_some() => Confirmation::Rejected,
            1 if real.is_some() => Confirmation::Returned,
            _ => Confirmation::Routed,
        };
        if let Some(number) = real
            && (dead || outcome != Confirmation::Rejected)
        {
            self.messages[number].outcomes += 1;
        }
        self.step(if dead {
            Event::DeadLettered { job }
        } else {
            Event::Confirmed { job, outcome }
        });
    }

    /// One turn of the service's loop: the event, the judge on both sides of it, and the actions.
    fn step(&mut self, event: Event) {
        let now = self.moment();
        let Some(logic) = &mut self.logic else { return };
        self.counts.events += 1;
        self.oracle.before(&event, now);
        let told = self.trace.then(|| format!("{event:?}"));
        let mut actions = Vec::new();
        logic.step(event, now, &mut actions);
        if let Some(told) = told {
            eprintln!("{} {told} -> {actions:?}", self.now);
        }
        self.oracle.after(&actions, logic, now);
        let mut ended = false;
        for action in actions {
            ended |= matches!(action, Action::Kill(_) | Action::Drained);
            self.perform(action);
        }
        self.expect_pets();
        if ended {
            self.die();
        }
    }

    /// In calm times pets come, whether the broker blocks publishing or not.
    fn expect_pets(&mut self) {
        let slow =
            |engine: &Engine| engine.stuck || (!engine.held.is_empty() && engine.step_ms > CALM_STEP_MS);
        let calm = !self.tokenizer_stuck
            && self.slow_until <= self.now
            && self.link
            && self.intake
            && self.oracle.killed.is_none()
            && !self.engines.iter().any(slow);
        if !calm {
            self.disturbed();
            return;
        }
        let limits = &self.setup.limits;
        let slack = limits.canary_interval + self.setup.pet_spacing + Duration::from_secs(3);
        let since = Moment::from_millis(self.calm_since);
        let since = self.oracle.pet.map_or(since, |pet| pet.max(since));
        let silent = self.moment().since(since);
        assert!(silent <= slack, "no pet for {silent:?} although nothing is wrong");
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Tokenize { job } => {
                let stall = self.setup.limits.liveness_max_stall.as_millis() as u64;
                let slow = self.rng.range(0, stall / 2);
                let delay = if self.tokenizer_slow {
                    slow
                } else {
                    self.rng.range(0, 20)
                };
                if self.tokenizer_slow {
                    self.slow_until = self.slow_until.max(self.now + delay);
                }
                self.plan(delay, Next::Tokenized(job));
            }
            Action::StartBatch {
                engine, batch, items, ..
            } => {
                let at = engine.0;
                self.engines[at].held.push_back((batch, items));
                if self.engines[at].held.len() == 1 {
                    self.start_engine(at);
                }
            }
            Action::Answer { job } => self.publish(job, false),
            Action::Refuse { job, .. } => {
                self.counts.refused += 1;
                self.publish(job, false);
            }
            Action::DeadLetter { job, .. } => self.publish(job, true),
            Action::Ack { job } => {
                let delay = self.rng.range(0, 3);
                self.plan(delay, Next::Acked(self.session, job));
            }
            Action::Requeue { job } => {
                let letter = self.deliveries[&job].letter;
                if let (true, Letter::Client(number)) = (self.link, letter) {
                    self.queues[self.messages[number].lane as usize].push_front(letter);
                }
                self.deliveries.get_mut(&job).expect("seen above").letter = Letter::Canary;
            }
            Action::Forget { job, .. } => {
                let delivery = self.deliveries.remove(&job);
                assert!(delivery.is_some(), "{job:?} forgotten twice");
            }
            Action::SendCanary { through_broker } => {
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
            Action::Drained | Action::Ready | Action::Reconnect { .. } => {}
        }
    }
}

fn canary_ticket() -> Ticket {
    Ticket {
        model: ModelId(0),
        inputs: 1,
        bytes: 20,
        deadline: None,
    }
}

fn draw_limits(rng: &mut Rng) -> Limits {
    let ms = |rng: &mut Rng, low, high| Duration::from_millis(rng.range(low, high));
    Limits {
        max_inflight: rng.range(1, 12) as usize,
        max_queue: rng.range(1, 24) as usize,
        max_queue_bytes: rng.range(2_000, 200_000) as usize,
        liveness_max_stall: ms(rng, 6000, 30_000),
        disconnect_kill: ms(rng, 1000, 10_000),
        watchdog_interval: Duration::from_secs(1),
        drain: ms(rng, 200, 5000),
        heartbeat_interval: Duration::from_secs(5),
        heartbeat_timeout: Duration::from_secs(45),
        slam_limit: Duration::from_secs(20),
        canary_interval: ms(rng, 100, 5000),
        max_attempts: 5,
        max_inputs: 2048,
        max_stream_inputs: 1 << 20,
        batch_inputs: 32,
        idle_unload: Duration::ZERO,
    }
}

fn draw_setup(rng: &mut Rng, models: usize) -> Setup {
    Setup {
        limits: draw_limits(rng),
        engines: rng.range(1, 4) as usize,
        batch_tokens: rng.range(100, 800) as usize,
        max_queue: (0..models)
            .map(|_| rng.one_in(3).then(|| rng.range(1, 30) as usize))
            .collect(),
        pet_spacing: Duration::from_millis(rng.range(100, 3000)),
    }
}
