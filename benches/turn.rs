//! What the logic costs per job, by the number of jobs that wait: `cargo bench --bench turn`.
//!
//! A service whose engine computes one text at a time has a full queue. Each round one more job comes and is
//! refused, and one is computed, answered and replaced, with all events that belong to it. The cost of a
//! round should not depend on the queue.
//!
//! And what it costs the loop to tell of a job in its caller's trace, with nobody there to take the spans.

#[path = "../tests/support/mod.rs"]
mod support;

use embeddings::clock::{Clock, Moment};
use embeddings::job::request::Encoding;
use embeddings::job::trace::TraceParent;
use embeddings::job::{JobKey, Lane};
use embeddings::logic::event::{Action, CallerId, Confirmation, Event, Outcome, Ticket};
use embeddings::logic::ledger::Stage;
use embeddings::logic::{Logic, Setup};
use embeddings::traces::{self, Asked, Job, Source, Traces};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Rounds of one measurement.
const ROUNDS: usize = 4000;
/// Who sends: five callers in turn.
const CALLERS: u64 = 5;

fn main() {
    println!("| jobs waiting | beside | µs a round | events a round |\n|---|---|---|---|");
    let beside = [
        ("nothing", Beside::Nothing),
        ("a streamed job", Beside::Stream),
        ("a model's own bound reached", Beside::Bound),
    ];
    for (queue, (name, beside)) in [16, 256, 2000, 9000]
        .into_iter()
        .flat_map(|queue| beside.map(|beside| (queue, beside)))
    {
        let mut best = Duration::MAX;
        let mut events = 0;
        for _ in 0..3 {
            let mut service = Service::full(queue, beside);
            service.events = 0;
            let began = now();
            for _ in 0..ROUNDS {
                service.round();
            }
            best = best.min(began.elapsed());
            events = service.events;
        }
        let micros = best.as_secs_f64() * 1e6 / ROUNDS as f64;
        println!(
            "| {queue} | {name} | {micros:.2} | {:.1} |",
            events as f64 / ROUNDS as f64
        );
    }
    let best = (0..5).map(|_| told()).min().unwrap_or_default();
    println!("a job told of in its trace: {:.2} µs", best.as_secs_f64() * 1e6);
}

/// The time for one job, as long as the queue has room.
fn told() -> Duration {
    const JOBS: u32 = 4000;
    let clock = Clock::start();
    let traces = Traces::start(traces::Setup {
        endpoint: "http://127.0.0.1:1".into(),
        sample_percent: 0,
        clock,
        host: "host".into(),
        unit: "embeddings".into(),
    });
    let traces = traces.expect("a thread");
    let parent = TraceParent::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let began = now();
    for number in 0..JOBS {
        let place = traces.place(parent.as_ref()).expect("its caller keeps it");
        std::hint::black_box(place.traceparent());
        let mut steps = Vec::with_capacity(5);
        steps.extend(Stage::ALL.into_iter().skip(1).map(|stage| (stage, clock.now())));
        traces.tell(Job {
            place,
            source: Source::Queue {
                name: "embeddings.interactive".into(),
                correlation_id: Some("a correlation id".into()),
                bytes: 100,
            },
            id: format!("job-{number}"),
            lane: Lane::Interactive,
            outcome: Outcome::Answered,
            attempt: 1,
            asked: Some(Asked {
                model: "all-MiniLM-L6-v2".into(),
                inputs: 2,
                tokens: 7,
                dimensions: 384,
                encoding: Encoding::Float,
            }),
            refused: None,
            came_unix_ms: 0,
            came: Moment::ZERO,
            ended: clock.now(),
            steps,
        });
    }
    began.elapsed() / JOBS
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
fn now() -> Instant {
    Instant::now()
}

/// The logic with a broker that confirms at once and an engine that is asked to go on.
struct Service {
    logic: Logic,
    now: u64,
    key: u64,
    batches: VecDeque<Action>,
    events: usize,
    large: Option<JobKey>,
}

/// What is at work while jobs wait.
#[derive(Clone, Copy, PartialEq)]
enum Beside {
    Nothing,
    /// A streamed job of which some inputs are in no batch yet, and places for no other.
    Stream,
    /// Jobs that wait for others of their model, and engines with room for more.
    Bound,
}

impl Service {
    fn full(queue: usize, beside: Beside) -> Service {
        let mut setup = Setup {
            batch_tokens: 16,
            ..support::setup()
        };
        setup.limits.max_queue = queue;
        setup.limits.max_queue_bytes = usize::MAX;
        setup.limits.slam_limit = Duration::from_secs(3600);
        setup.prefetch[Lane::Interactive as usize] = queue + 64;
        match beside {
            Beside::Nothing => {}
            Beside::Stream => setup.limits.max_inflight = 1,
            Beside::Bound => setup.models[0].max_inflight = Some(1),
        }
        let mut service = Service {
            logic: support::loaded(setup),
            now: 0,
            key: 0,
            batches: VecDeque::new(),
            events: 0,
            large: None,
        };
        service.send(Event::BrokerUp { resumable: true });
        if beside == Beside::Stream {
            service.deliver(Lane::Bulk);
        }
        for _ in 0..queue {
            service.deliver(Lane::Interactive);
        }
        service
    }

    fn round(&mut self) {
        self.now += 1;
        self.deliver(Lane::Interactive);
        if let Some(Action::StartBatch {
            engine, batch, items, ..
        }) = self.batches.pop_front()
        {
            let results = vec![Ok(()); items.len()];
            self.send(Event::BatchDone {
                engine,
                batch,
                results,
            });
            self.deliver(Lane::Interactive);
        }
    }

    fn deliver(&mut self, lane: Lane) {
        self.key += 1;
        let inputs = if lane == Lane::Bulk {
            self.large = Some(JobKey(self.key));
            ROUNDS
        } else {
            1
        };
        let ticket = Ticket {
            caller: CallerId(self.key % CALLERS),
            ..support::ticket(inputs)
        };
        self.send(Event::Delivered {
            job: JobKey(self.key),
            lane,
            arrival: Ok(ticket),
            answerable: true,
            attempt: 1,
            suspect: false,
            fetched: false,
        });
    }

    fn send(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        let mut actions = Vec::new();
        while let Some(event) = events.pop_front() {
            self.events += 1;
            self.logic
                .step(event, Moment::from_millis(self.now), &mut actions);
            for action in actions.drain(..) {
                match action {
                    Action::Tokenize { job } => events.push_back(Event::Tokenized {
                        job,
                        result: Ok(vec![16; if self.large == Some(job) { ROUNDS } else { 1 }]),
                    }),
                    // A last word takes its acknowledgement along (design 25).
                    Action::Answer { job } | Action::Refuse { job, .. } => {
                        let outcome = Confirmation::Routed;
                        events.extend([Event::Confirmed { job, outcome }, Event::Acked { job }]);
                    }
                    Action::StartBatch { .. } => self.batches.push_back(action),
                    _ => {}
                }
            }
        }
    }
}
