//! What must hold of health, admission, lanes and batches over any history.
//!
//! Goal: the promises of the health truth hold for any order of events and any step of time. Method:
//! proptest draws histories and shrinks those that fail; the simulation's judge looks on, and what it
//! cannot see (other moments, other depths, the same history twice) is asked here.

#[path = "simulation/oracle.rs"]
mod oracle;
mod support;

use embeddings::clock::Moment;
use embeddings::job::{ErrorType, JobKey, Lane};
use embeddings::logic::admission::Admission;
use embeddings::logic::batch::{Batcher, Haste, compose};
use embeddings::logic::event::{
    Action, BatchId, CallerId, Confirmation, EngineId, Event, Item, ModelId, Ticket,
};
use embeddings::logic::health::{KillReason, Verdict};
use embeddings::logic::lane::{BULK_SHARE, Lanes};
use embeddings::logic::ledger::Stage;
use embeddings::logic::pressure::{Cause, Guard, Load, Memory, Told, memory_of};
use embeddings::logic::{Logic, Setup};
use oracle::Oracle;
use proptest::prelude::*;
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;
use support::{limits, loaded, setup, ticket};

/// One turn of a history. Numbers choose among what is possible then.
#[derive(Clone, Debug)]
enum Turn {
    Wait(u64),
    /// Lane, inputs, budget, caller.
    Deliver(Lane, usize, Option<u64>, u64),
    /// Something that was asked for comes about, in whatever order.
    Keep(usize),
    Step(usize),
    Up,
    Down,
    Proof,
    /// The broker tells of a lane's queue: messages, consumers.
    Seen(Lane, usize, usize),
    Block,
    Unblock,
    Reload(u64),
    /// MiB in use, of 1000.
    Memory(u64),
    Drain,
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let lane = prop_oneof![3 => Just(Lane::Interactive), 2 => Just(Lane::Bulk)];
    let seen = prop_oneof![Just(Lane::Probe), Just(Lane::Interactive), Just(Lane::Bulk)];
    let budget = proptest::option::weighted(0.3, 0u64..4000);
    let turn = prop_oneof![
        6 => (0u64..3000).prop_map(Turn::Wait),
        1 => (0u64..40_000).prop_map(Turn::Wait),
        6 => (lane, 1usize..6, budget, 0u64..4)
            .prop_map(|(lane, inputs, ms, caller)| Turn::Deliver(lane, inputs, ms, caller)),
        24 => any::<usize>().prop_map(Turn::Keep),
        2 => (0usize..2).prop_map(Turn::Step),
        1 => Just(Turn::Up),
        1 => Just(Turn::Down),
        6 => Just(Turn::Proof),
        2 => (seen, 0usize..2, prop_oneof![3 => Just(1), 2 => Just(0)])
            .prop_map(|(lane, ready, consumers)| Turn::Seen(lane, ready, consumers)),
        1 => Just(Turn::Block),
        1 => Just(Turn::Unblock),
        1 => (2000u64..40_000).prop_map(Turn::Reload),
        2 => prop_oneof![0u64..800, 800u64..1100].prop_map(Turn::Memory),
    ];
    let end = prop_oneof![4 => Just(None), 1 => (0usize..150).prop_map(Some)];
    (proptest::collection::vec(turn, 1..150), end).prop_map(|(mut turns, end)| {
        if let Some(at) = end {
            turns.insert(at.min(turns.len()), Turn::Drain);
        }
        turns
    })
}

/// A service that lives through a history. What it asks for is kept as a promise until its turn comes.
struct Life {
    logic: Logic,
    oracle: Oracle,
    now: u64,
    next: u64,
    connected: bool,
    drained: bool,
    promises: Vec<Event>,
    /// Jobs that were sent anew: that is no last word.
    moved: HashSet<JobKey>,
    inputs: HashMap<JobKey, usize>,
    seen: Vec<Vec<Action>>,
}

impl Life {
    fn new(setup: Setup) -> Life {
        Life {
            logic: Logic::new(setup.clone(), Moment::ZERO),
            oracle: Oracle::new(setup, Moment::ZERO),
            now: 0,
            next: 0,
            connected: false,
            drained: false,
            promises: Vec::new(),
            moved: HashSet::new(),
            inputs: HashMap::new(),
            seen: Vec::new(),
        }
    }

    fn of(turns: &[Turn]) -> Life {
        let mut setup = setup();
        setup.engines = 2;
        setup.batch_tokens = 40;
        setup.limits.max_queue = 6;
        setup.limits.max_inflight = 3;
        setup.limits.slam_limit = Duration::from_secs(4);
        let mut life = Life::new(setup);
        for model in 0..life.logic.model_states().count() {
            let model = ModelId(model);
            life.step(Event::Loaded { model, bytes: None });
        }
        life.step(Event::BrokerUp { resumable: false });
        for turn in turns {
            if !life.is_over() {
                life.turn(turn);
            }
        }
        life
    }

    fn is_over(&self) -> bool {
        self.oracle.killed.is_some() || self.drained
    }

    fn moment(&self) -> Moment {
        Moment::from_millis(self.now)
    }

    fn turn(&mut self, turn: &Turn) {
        match turn {
            Turn::Wait(ms) => {
                self.now += ms;
                self.step(Event::Tick);
            }
            Turn::Deliver(lane, inputs, budget, caller) if self.connected => {
                let mut ticket = ticket(*inputs);
                ticket.caller = CallerId(*caller);
                ticket.deadline = budget.map(|ms| self.moment() + Duration::from_millis(ms));
                self.next += 1;
                let job = JobKey(self.next);
                self.deliver(job, *lane, ticket);
            }
            Turn::Keep(choice) if !self.promises.is_empty() => {
                let event = self.promises.remove(choice % self.promises.len());
                self.step(event);
            }
            Turn::Step(engine) => self.step(Event::BatchStep {
                engine: EngineId(*engine),
            }),
            Turn::Up if !self.connected => self.step(Event::BrokerUp { resumable: false }),
            Turn::Down if self.connected => self.step(Event::BrokerDown),
            Turn::Proof if self.connected => self.step(Event::BrokerProof),
            Turn::Seen(lane, ready, consumers) if self.connected => self.step(Event::QueueSeen {
                lane: *lane,
                ready: *ready,
                consumers: *consumers,
            }),
            Turn::Block if self.connected => self.step(Event::BrokerBlocked),
            Turn::Unblock if self.connected => self.step(Event::BrokerUnblocked),
            Turn::Reload(stall_ms) => {
                let mut limits = limits();
                limits.liveness_max_stall = Duration::from_millis(*stall_ms);
                limits.slam_limit = Duration::from_millis(*stall_ms / 4);
                self.step(Event::Reloaded(limits));
            }
            Turn::Memory(mib) => self.step(Event::MemorySeen(Memory {
                in_use: mib << 20,
                limit: 1000 << 20,
            })),
            Turn::Drain => self.step(Event::Drain),
            _ => {}
        }
    }

    fn deliver(&mut self, job: JobKey, lane: Lane, ticket: embeddings::logic::event::Ticket) {
        self.step(Event::Delivered {
            job,
            lane,
            arrival: Ok(ticket),
            answerable: !job.0.is_multiple_of(7),
            attempt: 1,
            suspect: false,
            fetched: false,
        });
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::BrokerUp { .. } => self.connected = true,
            Event::Delivered {
                job,
                arrival: Ok(ref ticket),
                ..
            } => {
                self.inputs.insert(job, ticket.inputs);
            }
            Event::BrokerDown => {
                self.connected = false;
                // Only what does not need the session outlives it.
                let inner = |event: &Event| match event {
                    Event::Tokenized { .. } | Event::BatchDone { .. } | Event::Tried(_) => true,
                    Event::Delivered { job, .. } => job.0 > 1 << 63,
                    _ => false,
                };
                self.promises.retain(inner);
            }
            _ => {}
        }
        // What was published is a last word.
        let acknowledgement = match event {
            Event::Confirmed {
                job,
                outcome: Confirmation::Routed,
            } if !self.moved.contains(&job) => Some(Event::Acked { job }),
            _ => None,
        };
        let now = self.moment();
        self.oracle.before(&event, now);
        let mut actions = Vec::new();
        self.logic.step(event, now, &mut actions);
        self.oracle.after(&actions, &self.logic, now);
        self.promises.extend(acknowledgement);
        for action in &actions {
            self.promise(action);
        }
        self.seen.push(actions);
    }

    fn promise(&mut self, action: &Action) {
        let event = match action {
            // Three tokens an input, and a long one now and then.
            Action::Tokenize { job } => {
                let result = Ok((0..self.inputs[job])
                    .map(|at| 3 + 60 * usize::from(at == 4))
                    .collect());
                Event::Tokenized { job: *job, result }
            }
            Action::StartBatch {
                engine, batch, items, ..
            } => Event::BatchDone {
                engine: *engine,
                batch: *batch,
                results: items.iter().map(fate).collect(),
            },
            Action::Answer { job } | Action::Refuse { job, .. } => {
                let outcome = match job.0 % 11 {
                    3 => Confirmation::Returned,
                    5 => Confirmation::Rejected,
                    _ => Confirmation::Routed,
                };
                Event::Confirmed { job: *job, outcome }
            }
            Action::Move { job, .. } => {
                self.moved.insert(*job);
                Event::Confirmed {
                    job: *job,
                    outcome: Confirmation::Routed,
                }
            }
            Action::DeadLetter { job, .. } => Event::DeadLettered { job: *job },
            Action::Ack { job } => Event::Acked { job: *job },
            Action::Try(worker) => Event::Tried(*worker),
            Action::SendCanary { through_broker, .. } => {
                let job = if *through_broker {
                    self.next += 1;
                    JobKey(self.next)
                } else {
                    self.logic.local_key()
                };
                Event::Delivered {
                    job,
                    lane: Lane::Probe,
                    arrival: Ok(ticket(1)),
                    answerable: true,
                    attempt: 1,
                    suspect: false,
                    fetched: false,
                }
            }
            Action::Drained => {
                assert!(self.oracle.is_empty());
                self.drained = true;
                return;
            }
            _ => return,
        };
        self.promises.push(event);
    }
}

fn fate(item: &Item) -> Result<(), String> {
    if item.job.0 % 13 == 4 {
        Err("not a number".into())
    } else {
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every pet, kill, batch and settlement of any history is judged; the same history is judged alike.
    #[test]
    fn equal_histories_give_equal_answers(turns in turns()) {
        let (one, two) = (Life::of(&turns), Life::of(&turns));
        prop_assert_eq!(&one.seen, &two.seen);
        for later in [0, 1, 999, 30_000] {
            let at = one.moment() + Duration::from_millis(later);
            prop_assert_eq!(one.logic.health().verdict(at), two.logic.health().verdict(at));
            prop_assert_eq!(one.logic.readiness(at), two.logic.readiness(at));
        }
    }

    /// Silence makes a verdict worse or leaves it; ticks are silence.
    #[test]
    fn silence_never_heals(turns in turns(), steps in proptest::collection::vec(1u64..5000, 1..20)) {
        let mut life = Life::of(&turns);
        let rank = |verdict| match verdict {
            Verdict::Proven => 0,
            Verdict::Unproven => 1,
            Verdict::Kill(_) => 2,
        };
        let (mut at, mut worst) = (life.moment(), 0);
        for step in &steps {
            at = at + Duration::from_millis(*step);
            let now = rank(life.logic.health().verdict(at));
            prop_assert!(now >= worst, "healed by silence");
            worst = now;
        }
        // Nor does a loop that turns on nothing pet, make ready, or outlive the bound of a lost broker.
        let draining = life.logic.health().is_draining();
        let seen = life.seen.len();
        while !life.is_over() && at > life.moment() {
            life.now = life.logic.next_check(life.moment()).as_millis();
            life.step(Event::Tick);
        }
        let ticked = life.seen[seen..].iter().flatten();
        prop_assert!(!ticked.clone().any(|action| matches!(action, Action::Pet | Action::Ready)));
        prop_assert!(!draining || life.logic.readiness(life.moment()).is_err());
    }

    /// What stalls at `t` is refused by `t` + limit, a lost broker and a drain by theirs; a loop that hangs
    /// is seen from outside without turning.
    #[test]
    fn every_bound_is_kept(turns in turns()) {
        let life = Life::of(&turns);
        let (health, now) = (life.logic.health(), life.moment());
        let after = |span: Duration| health.verdict(now + span);
        if health.is_draining() {
            prop_assert_eq!(after(limits().drain), Verdict::Kill(KillReason::DrainTimeout));
        } else {
            // A loop that turns and hears nothing has lost the broker; one that hangs is judged for that.
            let bound = now + limits().disconnect_kill;
            let mut turning = health.clone();
            turning.turned(bound);
            prop_assert!(matches!(turning.verdict(bound), Verdict::Kill(_)));
            let hung = after(limits().disconnect_kill);
            let soon = health.verdict(now + Duration::from_secs(1));
            prop_assert!(hung != Verdict::Kill(KillReason::BrokerDisconnected) || soon == hung);
            let longest = Duration::from_secs(40);
            prop_assert!(matches!(after(longest), Verdict::Kill(_)));
            let inside = |stage: Stage| health.inside()[stage as usize].1 > 0;
            let unexcused = [Stage::Admitted, Stage::Computed, Stage::Acked];
            if unexcused.into_iter().any(inside) {
                prop_assert!(health.stalled(now + longest).is_some());
            }
        }
    }

    /// The lane holds no more than its bounds, each model no more than its own, and every refusal names the bound
    /// that is reached and says when to come back.
    #[test]
    fn admission_keeps_its_bounds(
        jobs in proptest::collection::vec((0usize..300, 0usize..2, any::<bool>(), any::<bool>()), 1..200),
        max_queue in 1usize..20,
        own in proptest::option::of(1usize..20),
        memory in proptest::option::of(0u64..1000),
    ) {
        let mut bounds = limits();
        (bounds.max_queue, bounds.max_queue_bytes) = (max_queue, 1000);
        let mut admission = Admission::new(bounds, &[None, own]);
        let seen = memory.map(|mib| Memory { in_use: mib << 20, limit: 1000 << 20 });
        if let Some(seen) = seen {
            admission.memory_seen(seen, Moment::ZERO);
        }
        let mut held = VecDeque::new();
        let mut taken = 0;
        for (at, (bytes, model, leaves, settled)) in jobs.into_iter().enumerate() {
            let now = Moment::from_millis(50 * at as u64);
            let mut job = ticket(1);
            (job.bytes, job.model) = (bytes, ModelId(model));
            let of_model = held.iter().filter(|held: &&Ticket| held.model == job.model).count();
            let need = memory_of(bytes, 1);
            let tight = seen.is_some_and(|seen| {
                let then = seen.in_use + taken + need;
                if held.is_empty() { then > seen.limit } else { then > seen.bound() }
            });
            let full = held.len() >= max_queue || (model == 1 && own.is_some_and(|own| of_model >= own));
            let heavy = admission.bytes() + bytes > 1000;
            match admission.admit(Lane::Interactive, &job, 0, now) {
                Ok(()) => {
                    prop_assert!(!full && !heavy && !tight);
                    taken += need;
                    held.push_back(job);
                }
                Err(overload) => {
                    let true_cause = match overload.cause {
                        Cause::QueueFull => full,
                        Cause::Bytes => heavy,
                        Cause::Memory => tight,
                        Cause::Slam => false,
                    };
                    prop_assert!(true_cause, "{:?}", overload);
                    prop_assert_eq!(overload.model.is_some(), full && held.len() < max_queue);
                    prop_assert_eq!(overload.refusal.error, ErrorType::Overloaded);
                    prop_assert!(overload.refusal.retry_after_ms.is_some_and(|ms| ms > 0));
                }
            }
            prop_assert_eq!(admission.held(Lane::Interactive), held.len());
            prop_assert_eq!(admission.bytes(), held.iter().map(|job| job.bytes).sum::<usize>());
            if leaves && let Some(job) = held.pop_front() {
                admission.release(Lane::Interactive, &job, settled, now);
            }
        }
    }

    /// More jobs before you, or a longer standstill, never make the estimate shorter, whatever the cause; and an
    /// idle time before the rush does not make it longer.
    #[test]
    fn retry_after_grows_with_depth_and_standstill(
        settled in proptest::collection::vec(1u64..2000, 0..30),
        idle in 0u64..10_000_000,
        depth in 0usize..200,
        waits in proptest::collection::vec(1u64..20_000, 1..10),
        scarce in any::<bool>(),
    ) {
        let mut admission = Admission::new(limits(), &[None]);
        let (lane, job) = (Lane::Interactive, ticket(1));
        let mut now = Moment::ZERO;
        for pause in settled {
            admission.admit(lane, &job, 0, now).unwrap();
            now = now + Duration::from_millis(pause);
            admission.release(lane, &job, true, now);
        }
        let causes = Cause::ALL;
        let estimates = |admission: &Admission, now| causes.map(|cause| admission.retry_after_ms(lane, cause, now));
        let before = estimates(&admission, now);
        now = now + Duration::from_millis(idle);
        prop_assert_eq!(estimates(&admission, now), before);
        let mut last = before;
        for _ in 0..depth {
            admission.admit(lane, &job, 0, now).unwrap();
            let deeper = estimates(&admission, now);
            prop_assert!(deeper.iter().zip(last).all(|(&deeper, last)| deeper >= last));
            last = deeper;
        }
        if scarce {
            admission.memory_seen(Memory { in_use: 990, limit: 1000 }, now);
        }
        for wait in waits {
            now = now + Duration::from_millis(wait);
            let later = estimates(&admission, now);
            prop_assert!(later.iter().zip(last).all(|(&later, last)| later >= last));
            last = later;
        }
        // While nothing goes, at least as long again as it has stood still, up to the largest estimate.
        if depth > 100 {
            let rest = Duration::from_secs(120);
            let stuck = admission.retry_after_ms(lane, Cause::QueueFull, now + rest);
            prop_assert!(stuck >= 120_000, "{} ms after two minutes of standstill", stuck);
        }
    }

    /// What is promised is kept: with the engine going at a steady pace, a caller who comes back when told finds
    /// that as many jobs have gone as were before it.
    #[test]
    fn a_promise_is_kept_at_a_steady_pace(job_ms in 5u64..3000, depth in 1usize..100) {
        let mut admission = Admission::new(limits(), &[None]);
        let (lane, job) = (Lane::Interactive, ticket(1));
        for _ in 0..depth {
            admission.admit(lane, &job, 0, Moment::ZERO).unwrap();
        }
        let mut now = 0;
        // One goes and one comes, for a minute at least.
        while now < 60_000 {
            now += job_ms;
            admission.release(lane, &job, true, Moment::from_millis(now));
            admission.admit(lane, &job, 0, Moment::from_millis(now)).unwrap();
        }
        let promised = admission.retry_after_ms(lane, Cause::QueueFull, Moment::from_millis(now));
        let needed = job_ms * depth as u64;
        prop_assert!(promised.max(50) * 11 / 10 >= needed.min(600_000), "{} ms promised, {} needed", promised, needed);
        prop_assert!(promised <= needed * 2 + job_ms * 2 + 50, "{} ms promised, {} needed", promised, needed);
    }

    /// The guard shuts above its limit, opens under 80 % of it, and stays as it is between.
    #[test]
    fn the_guard_has_a_memory(limit_ms in 1u64..100_000, loads in proptest::collection::vec((0u64..50_000, 0usize..20), 1..50)) {
        let mut guard = Guard::default();
        let mut shut = false;
        for (mean_ms, inflight) in loads {
            guard.judge(Some(Duration::from_millis(mean_ms)), inflight, Duration::from_millis(limit_ms));
            let product = mean_ms * inflight as u64;
            let (over, under) = (product > limit_ms, product * 10 < limit_ms * 8);
            let between = product * 10 == limit_ms * 8;
            shut = over || (shut && !under);
            prop_assert!(between || guard.is_shut() == shut);
            shut = guard.is_shut();
        }
    }

    /// Whatever a lane goes through, its changes alternate, and each is off no sooner than a second after on.
    #[test]
    fn changes_alternate(turns in proptest::collection::vec((0u64..700, 0usize..3), 1..200)) {
        let mut told = Told::default();
        let (mut now, mut on, mut tense, mut changes) = (0, false, 0, 0);
        for (wait, load) in turns {
            now += wait;
            let load = [Load::Relaxed, Load::Near, Load::Over(Cause::Bytes)][load];
            if load != Load::Relaxed {
                tense = now;
            }
            if let Some((is_on, _, _)) = told.judge(load, None, Moment::from_millis(now)) {
                prop_assert!(is_on != on);
                let allowed = if is_on { matches!(load, Load::Over(_)) } else { now - tense >= 1000 };
                prop_assert!(allowed);
                on = is_on;
                changes += 1;
            }
            prop_assert!(on || !matches!(load, Load::Over(_)));
            prop_assert_eq!(told.changes, changes);
        }
    }

    /// While both lanes wait, bulk leads exactly one batch in `BULK_SHARE`, whatever canaries come between.
    #[test]
    fn bulk_has_its_share(canaries in proptest::collection::vec(any::<bool>(), 1..100)) {
        let mut lanes = Lanes::default();
        let whose = CallerId(0);
        lanes.push(Lane::Interactive, whose, JobKey(1));
        lanes.push(Lane::Bulk, whose, JobKey(2));
        let (mut led, mut bulk) = (0, 0);
        for canary in canaries {
            if canary {
                lanes.push(Lane::Probe, whose, JobKey(3));
                prop_assert_eq!(lanes.in_order().next(), Some(JobKey(3)));
                lanes.drawn(Lane::Probe, whose);
                lanes.remove(Lane::Probe, whose, JobKey(3));
            }
            let lead = lanes.in_order().next();
            let lane = if lead == Some(JobKey(2)) { Lane::Bulk } else { Lane::Interactive };
            lanes.drawn(lane, whose);
            led += 1;
            bulk += u32::from(lane == Lane::Bulk);
            prop_assert_eq!(bulk, led / BULK_SHARE);
        }
    }

    /// A batch holds the oldest and nothing twice, keeps to the budget unless one input alone is over it,
    /// and what it leaves out of a like length did not fit.
    #[test]
    fn batches_are_of_like_length(tokens in proptest::collection::vec(1usize..600, 1..60), budget in 1usize..2000) {
        let item = |(input, &tokens): (usize, &usize)| Item { job: JobKey(1), input, tokens };
        let window: Vec<Item> = tokens.iter().enumerate().map(item).collect();
        let chosen = compose(&window, budget);
        let total: usize = chosen.iter().map(|&place| tokens[place]).sum();
        prop_assert!(chosen.contains(&0) && (total <= budget || chosen == [0]));
        let (short, long) = (tokens[chosen[0]], tokens[*chosen.last().unwrap()]);
        for (place, &length) in tokens.iter().enumerate() {
            if !chosen.contains(&place) && short < length && length < long {
                prop_assert!(false, "input {} of {} tokens is left out between {} and {}", place, length, short, long);
            }
        }
    }

    /// No engine ever holds more than the batch that runs, the one that lies ready and an urgent one on top, and no
    /// idle engine is passed over; a patient batch overtakes nothing.
    #[test]
    fn engines_are_filled_evenly(engines in 1usize..5, turns in proptest::collection::vec((1usize..900, any::<bool>(), any::<bool>()), 1..80)) {
        let mut batcher = Batcher::new(engines);
        let mut held: Vec<Vec<BatchId>> = vec![Vec::new(); engines];
        for (waiting, ends, urgent) in turns {
            let idle = held.iter().any(Vec::is_empty);
            let haste = if urgent { Haste::Urgent } else { Haste::Patient };
            if let Some(place) = batcher.place(waiting, 512, haste) {
                let own = &mut held[place.engine.0];
                prop_assert!(own.is_empty() || (!idle && (waiting >= 512 || place.first)));
                prop_assert!(!place.first || urgent && !own.is_empty());
                own.push(batcher.start(place, haste, ModelId(0), Vec::new(), false));
                prop_assert!(own.len() <= 2 + usize::from(place.first));
            } else {
                prop_assert!(!idle);
            }
            let busiest = held.iter().enumerate().max_by_key(|(_, held)| held.len()).map(|(at, _)| at);
            if ends && let Some(batch) = held[busiest.unwrap()].pop() {
                prop_assert_eq!(batcher.finish(batch).map(|running| running.engine.0), busiest);
                prop_assert!(batcher.finish(batch).is_none());
            }
        }
    }

    /// No input starves: under a flood of interactive jobs of any size, on any number of engines and with
    /// any bound in flight, each input of a job is drawn within a number of batches that grows only with
    /// what was before it.
    #[test]
    fn no_input_starves(
        sizes in proptest::collection::vec(1usize..20, 4..12),
        bulk in any::<bool>(),
        inputs in 1usize..6,
        max_inflight in 1usize..5,
        engines in 1usize..3,
    ) {
        let mut setup = setup();
        (setup.engines, setup.batch_tokens) = (engines, 30);
        setup.limits.max_inflight = max_inflight;
        setup.models = vec![setup.models[0]; 2];
        let mut logic = loaded(setup);
        let mut running = VecDeque::new();
        let mut key = 0;
        let mut begin = |logic: &mut Logic, running: &mut VecDeque<_>, lane, inputs: usize| {
            key += 1;
            let job = JobKey(key);
            let mut ticket = ticket(inputs);
            ticket.model = ModelId(key as usize % 2);
            let arrival = Ok(ticket);
            let result = Ok(vec![10; inputs]);
            act(logic, running, Event::Delivered { job, lane, arrival, answerable: true, attempt: 1, suspect: false, fetched: false });
            act(logic, running, Event::Tokenized { job, result });
            job
        };
        for size in &sizes {
            begin(&mut logic, &mut running, Lane::Interactive, *size);
        }
        let lane = if bulk { Lane::Bulk } else { Lane::Interactive };
        let job = begin(&mut logic, &mut running, lane, inputs);
        let before = sizes.iter().sum::<usize>() + inputs;
        let bound = if bulk {
            // Its turn may wait for places in flight, which the largest jobs hold longest.
            inputs * (BULK_SHARE as usize + max_inflight * 20) + before
        } else {
            before
        };
        let (mut batches, mut drawn, mut turn) = (0, 0, 0);
        while drawn < inputs {
            let (engine, batch, items): (EngineId, BatchId, Vec<Item>) = running.pop_front().expect("work");
            drawn += items.iter().filter(|item| item.job == job).count();
            batches += 1;
            prop_assert!(batches <= bound, "{} of {} inputs drawn after {} batches", drawn, inputs, batches);
            let results = vec![Ok(()); items.len()];
            act(&mut logic, &mut running, Event::BatchDone { engine, batch, results });
            // The flood goes on.
            turn += 1;
            begin(&mut logic, &mut running, Lane::Interactive, sizes[turn % sizes.len()]);
        }
    }

    /// A caller with one job is not buried by others with floods of them: its job leads a batch after at most one
    /// batch of each of the others, and as many as it takes to free a place in flight, whatever the size of their
    /// jobs; and bulk has its share of the batches beside it.
    #[test]
    fn a_lone_caller_is_not_buried(
        floods in proptest::collection::vec((1usize..200, 1usize..30), 1..6),
        bulk in any::<bool>(),
        max_inflight in 2usize..6,
        engines in 1usize..3,
    ) {
        let mut setup = setup();
        (setup.engines, setup.batch_tokens) = (engines, 40);
        setup.limits.max_inflight = max_inflight;
        setup.limits.max_queue = 10_000;
        setup.limits.max_queue_bytes = usize::MAX;
        let mut logic = loaded(setup);
        let mut running = VecDeque::new();
        let mut key = 0;
        let mut begin = |logic: &mut Logic, running: &mut VecDeque<_>, caller: usize, inputs: usize| {
            key += 1;
            let job = JobKey(key);
            let lane = if bulk { Lane::Bulk } else { Lane::Interactive };
            let mut ticket = ticket(inputs);
            ticket.caller = CallerId(caller as u64);
            act(logic, running, Event::Delivered { job, lane, arrival: Ok(ticket), answerable: true, attempt: 1, suspect: false, fetched: false });
            act(logic, running, Event::Tokenized { job, result: Ok(vec![10; inputs]) });
            job
        };
        for (caller, &(jobs, inputs)) in floods.iter().enumerate() {
            for _ in 0..jobs {
                begin(&mut logic, &mut running, 1 + caller, inputs);
            }
        }
        let lone = begin(&mut logic, &mut running, 0, 1);
        // What runs or lies ready when it comes; a turn of each other caller; and again while short jobs of others
        // hold the places in flight.
        let bound = 2 * engines + (floods.len() + 1) * (1 + engines);
        let mut batches = 0;
        loop {
            let (engine, batch, items) = running.pop_front().expect("work");
            if items.iter().any(|item: &Item| item.job == lone) {
                break;
            }
            batches += 1;
            prop_assert!(batches <= bound, "not begun after {} batches", batches);
            let results = vec![Ok(()); items.len()];
            act(&mut logic, &mut running, Event::BatchDone { engine, batch, results });
        }
    }
}

/// One turn at the moment zero, whose batches join those that run.
fn act(logic: &mut Logic, running: &mut VecDeque<(EngineId, BatchId, Vec<Item>)>, event: Event) {
    let mut actions = Vec::new();
    logic.step(event, Moment::ZERO, &mut actions);
    for action in actions {
        if let Action::StartBatch {
            engine, batch, items, ..
        } = action
        {
            running.push_back((engine, batch, items));
        }
    }
}
