//! What tests of the logic share: plain limits, and a service that is driven event by event.
#![allow(dead_code, reason = "each test binary uses its part")]

use embeddings::clock::Moment;
use embeddings::config::Limits;
use embeddings::job::{JobKey, Lane, Refusal};
use embeddings::logic::event::{
    Action, BatchId, CallerId, Confirmation, EngineId, Event, ModelId, Ticket, Worker,
};
use embeddings::logic::health::KillReason;
use embeddings::logic::{Logic, ModelSetup, Setup};
use std::time::Duration;

/// The contract's defaults.
pub fn limits() -> Limits {
    Limits {
        max_inflight: 8,
        max_queue: 256,
        max_queue_bytes: 1 << 20,
        liveness_max_stall: Duration::from_secs(30),
        disconnect_kill: Duration::from_secs(10),
        watchdog_interval: Duration::from_secs(1),
        drain: Duration::from_secs(5),
        heartbeat_interval: Duration::from_secs(5),
        heartbeat_timeout: Duration::from_secs(45),
        slam_limit: Duration::from_secs(20),
        canary_interval: Duration::from_secs(5),
        max_attempts: 5,
        max_inputs: 2048,
        max_stream_inputs: 1 << 20,
        batch_inputs: 32,
        idle_unload: Duration::ZERO,
    }
}

/// One engine, one model, a small batch.
pub fn setup() -> Setup {
    Setup {
        limits: limits(),
        engines: 1,
        tokenizers: 2,
        prefetch: [8, 320, 16, 1],
        batch_tokens: 512,
        models: vec![ModelSetup {
            kept: true,
            ..ModelSetup::default()
        }],
        default: ModelId(0),
        pet_spacing: Duration::from_secs(1),
    }
}

/// A job of `inputs` texts for the first model.
pub fn ticket(inputs: usize) -> Ticket {
    Ticket {
        model: ModelId(0),
        caller: CallerId(0),
        inputs,
        bytes: 100 * inputs,
        deadline: None,
        stream: None,
    }
}

/// A service whose models have just come into memory.
pub fn loaded(setup: Setup) -> Logic {
    let mut logic = Logic::new(setup, Moment::ZERO);
    for model in 0..logic.model_states().count() {
        let model = ModelId(model);
        logic.step(
            Event::Loaded { model, bytes: None },
            Moment::ZERO,
            &mut Vec::new(),
        );
    }
    logic
}

/// A service on made-up time.
pub struct Service {
    pub logic: Logic,
    pub now: u64,
    next: u64,
}

impl Service {
    /// Connected, at the moment zero.
    pub fn connected(setup: Setup) -> (Service, Vec<Action>) {
        let mut service = Service {
            logic: loaded(setup),
            now: 0,
            next: 0,
        };
        let actions = service.step(Event::BrokerUp { resumable: false });
        (service, actions)
    }

    /// Connected, its first canary already round, at `now` 0.
    pub fn ready(setup: Setup) -> Service {
        let (mut service, _) = Service::connected(setup);
        let canary = service.deliver(Lane::Probe, ticket(1));
        let actions = service.finish(canary);
        assert!(actions.contains(&Action::Ready) && actions.contains(&Action::Pet));
        service
    }

    /// One turn at the present moment. Threads that are asked whether they still work answer at once.
    pub fn step(&mut self, event: Event) -> Vec<Action> {
        let now = Moment::from_millis(self.now);
        let mut actions = Vec::new();
        self.logic.step(event, now, &mut actions);
        let asked: Vec<Worker> = (actions.iter())
            .filter_map(|action| match action {
                Action::Try(worker) => Some(*worker),
                _ => None,
            })
            .collect();
        for worker in asked {
            self.logic.step(Event::Tried(worker), now, &mut actions);
        }
        actions
    }

    /// Lets time pass, with ticks as wanted and the broker answering; returns what was done.
    pub fn pass(&mut self, ms: u64) -> Vec<Action> {
        let end = self.now + ms;
        let mut actions = Vec::new();
        while self.now < end {
            let check = self.logic.next_check(Moment::from_millis(self.now)).as_millis();
            self.now = check.min(end);
            actions.extend(self.step(Event::BrokerProof));
            actions.extend(self.step(Event::Tick));
        }
        actions
    }

    /// A delivery, and its number.
    pub fn deliver(&mut self, lane: Lane, ticket: Ticket) -> JobKey {
        self.next += 1;
        let job = JobKey(self.next);
        self.deliver_as(job, lane, Ok(ticket));
        job
    }

    /// A delivery under this number.
    pub fn deliver_as(&mut self, job: JobKey, lane: Lane, arrival: Result<Ticket, Refusal>) -> Vec<Action> {
        self.step(Event::Delivered {
            job,
            lane,
            arrival,
            answerable: true,
            attempt: 1,
            suspect: false,
            fetched: false,
        })
    }

    /// A job of the bulk lane that was asked for.
    pub fn fetch(&mut self, ticket: Ticket) -> Vec<Action> {
        self.next += 1;
        self.step(Event::Delivered {
            job: JobKey(self.next),
            lane: Lane::Bulk,
            arrival: Ok(ticket),
            answerable: true,
            attempt: 1,
            suspect: false,
            fetched: true,
        })
    }

    /// The job's inputs have ten tokens each.
    pub fn tokenize(&mut self, job: JobKey, inputs: usize) -> Vec<Action> {
        let result = Ok(vec![10; inputs]);
        self.step(Event::Tokenized { job, result })
    }

    /// A batch of `inputs` is done, all well.
    pub fn compute(&mut self, batch: BatchId, inputs: usize) -> Vec<Action> {
        self.step(Event::BatchDone {
            engine: EngineId(0),
            batch,
            results: vec![Ok(()); inputs],
        })
    }

    /// A job of one input goes all the way at the present moment; returns its last actions.
    pub fn finish(&mut self, job: JobKey) -> Vec<Action> {
        let batch = batch_of(&self.tokenize(job, 1));
        self.compute(batch, 1);
        let outcome = Confirmation::Routed;
        self.step(Event::Confirmed { job, outcome });
        self.step(Event::Acked { job })
    }
}

/// The batch that was started.
pub fn batch_of(actions: &[Action]) -> BatchId {
    let started = actions.iter().find_map(|action| match action {
        Action::StartBatch { batch, .. } => Some(*batch),
        _ => None,
    });
    started.unwrap_or_else(|| panic!("no batch among {actions:?}"))
}

/// Why the process is ended, if it is.
pub fn killed(actions: &[Action]) -> Option<KillReason> {
    actions.iter().find_map(|action| match action {
        Action::Kill(reason) => Some(*reason),
        _ => None,
    })
}
