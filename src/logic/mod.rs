//! Every decision of the service, as one pure machine: [`Event`]s and the present [`Moment`] go in,
//! [`Action`]s come out. No IO, no `async`, no clock, no global; `tests/tidy.rs` keeps it so.
//!
//! This file only routes. What becomes of a delivery is decided in `arrive`, what may come in in [`admission`], what the
//! world is told of that in [`pressure`], who goes next in [`lane`] and is looked for in [`ahead`], what runs together in
//! [`batch`], what becomes of a job in [`settle`], how it goes on in `onward`, how it leaves in `leave`, what is different for one
//! whose caller waits on a connection in `caller`, and whether all of it is alive in [`health`] over the stages of [`ledger`].

pub mod admission;
pub mod ahead;
mod answer;
mod arrive;
pub mod batch;
mod caller;
mod compute;
mod endings;
pub mod event;
pub mod faults;
pub mod fleet;
pub mod health;
pub mod hour;
mod intake;
pub mod lane;
mod leave;
pub mod ledger;
mod models;
pub mod monitor;
mod onward;
pub mod pace;
mod places;
pub mod pressure;
pub mod residence;
pub mod rest;
pub mod settle;
pub mod status;
pub mod tally;

use crate::clock::Moment;
use crate::config::Limits;
use crate::job::{JobKey, Lane};
use admission::Admission;
use ahead::Ahead;
use arrive::Arrived;
use batch::Batcher;
use compute::{Part, Sight};
use event::{Action, EngineId, Event, ModelId};
use faults::Faults;
use health::{Health, Verdict};
use lane::Lanes;
use ledger::Stage;
use pace::{Pace, Rate};
use pressure::Told;
use residence::Residence;
use rest::Rest;
use settle::{Job, Jobs, Phase, Source};
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;
use tally::Tally;

/// What the logic must know of the machine it runs on.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Bounds and time limits.
    pub limits: Limits,
    /// Engine threads.
    pub engines: usize,
    /// Tokenizer threads.
    pub tokenizers: usize,
    /// Deliveries that may be unacknowledged, per lane in the order of [`Lane::ALL`].
    pub prefetch: [usize; Lane::COUNT],
    /// Token budget of one batch.
    pub batch_tokens: usize,
    /// What is particular to each model.
    pub models: Vec<ModelSetup>,
    /// The model of a job that names none.
    pub default: ModelId,
    /// At most one pet per this span (an eighth of systemd's `WATCHDOG_USEC`).
    pub pet_spacing: Duration,
}

/// One model's own bounds, where it has them, and what is known of it at the start, when each is loaded once.
#[derive(Clone, Copy, Debug, Default)]
pub struct ModelSetup {
    /// On the interactive lane.
    pub max_queue: Option<usize>,
    /// On jobs in flight.
    pub max_inflight: Option<usize>,
    /// On its idleness in memory.
    pub idle_unload: Option<Duration>,
    /// Whether it is kept in memory once it has been seen to work.
    pub kept: bool,
    /// Memory that it takes, in bytes, as far as that is known before it has been there.
    pub bytes: u64,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Logic {
    setup: Setup,
    jobs: Jobs,
    admission: Admission,
    lanes: Lanes,
    ahead: Ahead,
    batcher: Batcher,
    /// What was seen when nothing could be drawn.
    nothing_in: Option<Sight>,
    /// Parts of batches that failed whole, to be computed apart from each other.
    parts: VecDeque<Part>,
    residence: Residence,
    /// Jobs that wait for their model.
    awaiting: BTreeSet<(ModelId, JobKey)>,
    /// Canaries that wait for an engine's own computation.
    trials: Vec<(EngineId, JobKey)>,
    /// The engine that is asked next for one.
    next_trial: usize,
    health: Health,
    faults: Faults,
    inputs: Rate,
    pace: Pace,
    rest: Rest,
    tally: Tally,
    /// Per lane, what the world was told of its backpressure.
    told: [Told; Lane::COUNT],
    next_local: u64,
    /// The model whose turn it is to be tried by a canary.
    next_canary: usize,
    /// Whether the broker has the queues for jobs that go on.
    resumable: bool,
    /// Longest wait of a job here before it is begun, from which follows all else that bounds how long a delivery is held.
    held_max: Duration,
    drained: bool,
    killed: bool,
}

impl Logic {
    /// A service that has done nothing yet, but for what loads each of its models for the first time.
    pub fn new(setup: Setup, now: Moment) -> Logic {
        let own = setup.models.iter();
        let max_queue: Vec<_> = own.clone().map(|model| model.max_queue).collect();
        let residence = own.map(|model| (model.idle_unload, model.kept));
        let mut health = Health::new(setup.limits, setup.engines, setup.tokenizers, now);
        setup.models.iter().for_each(|_| health.ledger.model_moves(now));
        Logic {
            jobs: Jobs::default(),
            admission: Admission::new(setup.limits, &max_queue),
            residence: Residence::new(residence, setup.limits.idle_unload, now),
            awaiting: BTreeSet::new(),
            trials: Vec::new(),
            next_trial: 0,
            lanes: Lanes::default(),
            ahead: Ahead::default(),
            batcher: Batcher::new(setup.engines),
            nothing_in: None,
            parts: VecDeque::new(),
            health,
            faults: Faults::new(setup.engines),
            inputs: Rate::default(),
            pace: Pace::default(),
            rest: Rest::default(),
            tally: Tally::new(now),
            told: [Told::default(); Lane::COUNT],
            next_local: JobKey::WITHIN,
            next_canary: 0,
            resumable: false,
            held_max: onward::HELD_MAX,
            drained: false,
            killed: false,
            setup,
        }
    }

    /// One turn: takes in an event, and appends what is to be done.
    pub fn step(&mut self, event: Event, now: Moment, actions: &mut Vec<Action>) {
        self.health.turned(now);
        self.take(event, now, actions);
        self.count_in_flight();
        self.expire(now, actions);
        self.cut_slices(now, actions);
        self.end_long_jobs(now, actions);
        self.fill_engines(now, actions);
        self.look_ahead(now, actions);
        self.unload_idle(now, actions);
        self.send_canary(now, actions);
        actions.extend(self.health.trials_due(now).into_iter().map(Action::Try));
        self.tell_pressure(now, actions);
        self.finish_drain(actions);
        if let Verdict::Kill(reason) = self.health.verdict(now)
            && !self.killed
            && !self.drained
        {
            self.killed = true;
            actions.push(Action::Kill(reason));
        }
    }

    /// When [`Event::Tick`] is wanted at the latest.
    pub fn next_check(&self, now: Moment) -> Moment {
        let idle = self.residence.next_check().filter(|_| !self.health.is_draining());
        let others = [self.jobs.next_deadline(), idle];
        let health = self.health.next_check(now);
        others.into_iter().flatten().fold(health, Moment::min)
    }

    /// The watchdog thread looked at `at`; the loop tells it before each turn.
    pub fn watched(&mut self, at: Moment) {
        self.health.watched(at);
    }

    /// The health truth, for the watchdog thread and for people.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Whether what is published for the job is its copy for the dead-letter queue.
    pub fn is_dead_lettering(&self, job: JobKey) -> bool {
        self.jobs
            .get(job)
            .is_some_and(|job| job.phase == Phase::DeadLettering)
    }

    /// Whether the job is at work, so that what the broker answers for is a chunk of it.
    pub fn is_computing(&self, job: JobKey) -> bool {
        self.jobs
            .get(job)
            .is_some_and(|job| job.phase == Phase::Computing)
    }

    /// Whether a model has not been in memory yet since the start.
    pub fn starts(&self) -> bool {
        self.residence.starts()
    }

    /// What has happened so far.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// A key for a canary that takes the short way.
    pub fn local_key(&mut self) -> JobKey {
        self.next_local += 1;
        JobKey(self.next_local)
    }

    fn take(&mut self, event: Event, now: Moment, actions: &mut Vec<Action>) {
        match event {
            Event::Tick => {}
            Event::BrokerUp { resumable } => {
                self.resumable = resumable;
                self.tally.connected();
                self.health.broker_up(now);
            }
            Event::BrokerDown => self.session_lost(now, actions),
            Event::HeldTooLong { limit } => self.held_too_long(limit),
            Event::BrokerProof => self.health.broker_proof(now),
            Event::QueueSeen {
                lane,
                ready,
                consumers,
            } => self.queue_seen(lane, ready, consumers, now, actions),
            Event::BrokerBlocked => self.health.broker_blocked(true, now),
            Event::BrokerUnblocked => self.health.broker_blocked(false, now),
            Event::Reading { lane } => self.health.ledger.reading(lane, now),
            Event::Read { lane } => self.health.ledger.read(lane, now),
            Event::Delivered {
                job,
                lane,
                arrival,
                answerable,
                attempt,
                suspect,
                fetched,
            } => {
                let arrived = Arrived {
                    lane,
                    arrival,
                    answerable,
                    attempt,
                    suspect,
                    fetched,
                };
                self.delivered(job, arrived, now, actions);
            }
            Event::LookedAhead => self.ahead.ended(now),
            Event::Called { job, arrival } => self.called(job, arrival, now, actions),
            Event::CallerGone { job } => self.caller_gone(job, now, actions),
            Event::HandedOver { job, taken } => self.handed_over(job, taken, now, actions),
            Event::Superseded { job, lane } => self.superseded(job, lane, now, actions),
            Event::TokenizerBegan { tokenizer } => self.health.ledger.tokenizer_began(tokenizer.0, now),
            Event::TokenizerStep { tokenizer } => self.health.ledger.tokenizer_moved(tokenizer.0, 0, now),
            Event::TokenizerEnded { tokenizer } => self.health.ledger.tokenizer_moved(tokenizer.0, 1, now),
            Event::Tried(worker) => self.tried(worker, now, actions),
            Event::Tokenized { job, result } => self.tokenized(job, result, now, actions),
            Event::Twin { job } => self.twin(job),
            Event::Parted { job } => self.parted(job, now, actions),
            Event::Recalled { job } => self.recalled(job, now, actions),
            Event::BatchStep { engine } => self.health.ledger.computed(engine.0, 0, now),
            Event::BatchDone {
                engine,
                batch,
                results,
            } => self.batch_done(engine, batch, results, now, actions),
            Event::Confirmed { job, outcome } => self.confirmed(job, outcome, now, actions),
            Event::DeadLettered { job } => self.dead_lettered(job, now, actions),
            Event::Acked { job } => self.acked(job, now, actions),
            Event::CanaryWrong => self.health.canary_wrong(),
            Event::Drain => self.drain(now, actions),
            Event::Reloaded(limits) => {
                self.setup.limits = limits;
                self.admission.reload(limits);
                self.residence.reload(limits.idle_unload);
                self.health.reload(limits);
                self.count_in_flight();
            }
            Event::MemorySeen(memory) => self.admission.memory_seen(memory, now),
            Event::LoadStep => self.health.ledger.model_moved(0, now),
            Event::Loaded { model, bytes } => self.loaded(model, bytes, now, actions),
            Event::LoadFailed { model, why } => self.load_failed(model, &why, now, actions),
            Event::Unloaded { model } => self.unloaded(model, now, actions),
        }
    }

    /// A queue of ours as the broker sees it: it may have messages that it should deliver and does not, and it
    /// may have lost our consumer.
    fn queue_seen(
        &mut self,
        lane: Lane,
        ready: usize,
        consumers: usize,
        now: Moment,
        actions: &mut Vec<Action>,
    ) {
        if self.health.is_draining() || !self.health.is_connected() {
            return;
        }
        self.let_go(now, actions);
        if lane == Lane::Bulk {
            self.ahead.consumers(consumers);
        }
        let held = |job: &&Job| job.lane == lane && job.source == Source::Queue && !job.fetched;
        let credit = self.setup.prefetch[lane as usize] > self.jobs.values().filter(held).count();
        if self.health.queue_seen(lane, ready > 0 && credit, consumers, now) {
            actions.push(Action::Reconnect { lane });
        }
    }

    /// A canary if one is due: of a model that has just failed at something, else of the next in turn that is in
    /// memory. With none in memory, any will do: an engine proves itself without it. Until every model has been there once,
    /// there is nothing to compare a vector with, and nothing to be ready for.
    fn send_canary(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if self.residence.starts() {
            return;
        }
        let urgent = self.faults.wants_check() || !self.health.has_been_ready();
        let Some(through_broker) = self.health.canary_due(urgent, now) else {
            return;
        };
        let model = self.faults.take_check().unwrap_or_else(|| {
            let turn = self.residence.next_ready(self.next_canary);
            let turn = turn.unwrap_or(self.setup.default);
            self.next_canary = turn.0 + 1;
            turn
        });
        self.tally.canary_sent(now);
        actions.push(Action::SendCanary {
            through_broker,
            model,
        });
    }

    /// Jobs whose computation has begun and is not finished.
    fn inflight(&self) -> usize {
        self.jobs.being_computed().count()
    }
}
