//! Contract 4: five callers send ten times the queue at once, with the engine working, slow, stuck and dead. Every
//! job gets one answer, and a refusal waits for no engine.

use crate::caller::{Caller, Reply};
use crate::frozen::Frozen;
use crate::service::{Bench, SOON, bench};
use embeddings::clock::{Clock, Moment};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

const CALLERS: usize = 5;
const QUEUE: usize = 20;
const JOBS: usize = 10 * QUEUE;
/// A refusal takes some milliseconds; this is for a machine that is busy with other tests, and still far less than the
/// engine is kept from working below.
const REFUSED_MAX: Duration = Duration::from_secs(10);

/// The callers, and what they wait for.
struct Flood {
    callers: Vec<Caller>,
    /// Per caller, when each job that has no answer yet was sent.
    open: Vec<BTreeMap<String, Moment>>,
    clock: Clock,
    jobs: usize,
    vectors: usize,
    refused: usize,
    /// Longest time from a job's sending to its refusal.
    slowest: Duration,
}

impl Flood {
    /// All jobs are sent before the first answer is looked at.
    async fn send(bench: &Bench, jobs: usize) -> Flood {
        let clock = Clock::start();
        let mut callers = Vec::new();
        for _ in 0..CALLERS {
            callers.push(Caller::connect(bench).await);
        }
        let sends = callers.iter_mut().map(|caller| async move {
            let jobs: Vec<_> = (0..jobs / CALLERS).map(|_| caller.properties()).collect();
            let open = jobs.iter().map(|(_, id)| (id.clone(), clock.now())).collect();
            let caller = &*caller;
            let sends = jobs.into_iter().map(|(properties, _)| {
                caller.publish(&caller.names.interactive, br#"{"input":"a"}"#, properties)
            });
            futures_util::future::join_all(sends).await;
            open
        });
        let open = futures_util::future::join_all(sends).await;
        Flood {
            callers,
            open,
            clock,
            jobs,
            vectors: 0,
            refused: 0,
            slowest: Duration::ZERO,
        }
    }

    /// Takes answers until so many jobs have none.
    async fn answered_but(&mut self, left: usize) {
        while self.open.iter().map(BTreeMap::len).sum::<usize>() > left {
            let next = self
                .callers
                .iter_mut()
                .map(|caller| Box::pin(caller.reply_within(SOON)));
            let (reply, whose, _) = futures_util::future::select_all(next).await;
            self.take(whose, reply.expect("an answer in time"));
        }
    }

    fn take(&mut self, whose: usize, reply: Reply) {
        let sent = self.open[whose].remove(reply.correlation_id().unwrap());
        let sent = sent.expect("an answer to a job of this caller, and the only one");
        if reply.kind() == Some("embeddings.result") {
            assert_eq!(reply.vectors().len(), 1);
            self.vectors += 1;
            return;
        }
        assert_eq!(reply.error(), ("overloaded", 429, None));
        assert_eq!(reply.json["error"]["overloaded"], true);
        assert!((50..=600_000).contains(&reply.json["error"]["retry_after_ms"].as_u64().unwrap()));
        self.refused += 1;
        self.slowest = self.slowest.max(self.clock.now().since(sent));
    }

    /// Every job has its answer; there comes no second one.
    async fn ends(&mut self) {
        self.answered_but(0).await;
        assert_eq!(self.vectors + self.refused, self.jobs);
        assert!(self.slowest < REFUSED_MAX, "a refusal took {:?}", self.slowest);
        for caller in &mut self.callers {
            let more = caller.reply_within(Duration::from_millis(100)).await;
            assert!(more.is_none(), "{more:?}");
        }
    }
}

/// Goal: with the engine working, what is admitted is computed, and the rest is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_while_the_engine_works() {
    let Some(bench) = bench("floodworks") else { return };
    let _service = bench.serve(&format!("max_queue = {QUEUE}"));
    let mut flood = Flood::send(&bench, JOBS).await;
    flood.ends().await;
    assert!(flood.vectors >= QUEUE, "{} computed", flood.vectors);
}

/// Goal: while a huge job keeps every engine busy, refusals wait for none of them; and backpressure is told once when
/// it begins and once when it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_while_the_engine_is_slow() {
    let Some(bench) = bench("floodslow") else { return };
    let service = bench.serve(&format!("max_queue = {QUEUE}"));
    let mut huge = Caller::connect(&bench).await;
    let events = huge.listen("backpressure.#").await;
    // Some seconds of work for all engines together.
    huge.send(&json!({"input": vec!["many words make long work ".repeat(40); 200]}))
        .await;
    let mut flood = Flood::send(&bench, JOBS).await;
    flood.ends().await;
    assert!(flood.vectors >= QUEUE - 1, "{} computed", flood.vectors);
    assert!(flood.refused > 0);
    huge.reply().await.vectors();

    let on = huge.take(&events).await;
    assert_eq!(on.routing_key.as_str(), "backpressure.interactive");
    assert_eq!(
        on.properties.kind().as_ref().map(|kind| kind.as_str()),
        Some("embeddings.backpressure")
    );
    let on: Value = serde_json::from_slice(&on.data).unwrap();
    assert_eq!(
        (&on["on"], &on["cause"]),
        (&json!(true), &json!("queue_full")),
        "{on}"
    );
    assert_eq!(on["limits"]["max_queue"], QUEUE, "{on}");
    assert_eq!(
        on["queue"].as_u64().unwrap() + on["inflight"].as_u64().unwrap(),
        QUEUE as u64
    );
    assert!(
        on["retry_after_ms"].as_u64() >= Some(50) && on["at_unix_ms"].is_u64(),
        "{on}"
    );
    let off: Value = serde_json::from_slice(&huge.take(&events).await.data).unwrap();
    assert_eq!(
        (&off["on"], &off["lane"]),
        (&json!(false), &json!("interactive")),
        "{off}"
    );
    assert!(off["lasted_ms"].as_u64() >= Some(1000), "{off}");
    // Once, however many were refused.
    let log = service.log();
    assert_eq!(log.matches("backpressure is on").count(), 1, "{log}");
    assert_eq!(log.matches("backpressure is off").count(), 1, "{log}");
    let status: Value = serde_json::from_slice(&service.status(&["--json"]).stdout).unwrap();
    let told = &status["backpressure"]["interactive"];
    assert_eq!(
        (&told["on"], &told["changes"]),
        (&json!(false), &json!(2)),
        "{told}"
    );
    assert_eq!(told["refused"]["queue_full"], flood.refused, "{told}");
}

/// Goal: with every engine stuck, just as many jobs are admitted as the queue holds, and all others are refused as
/// soon as ever; what was admitted is computed when the engines go on. Method: ptrace stops the engine threads alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_while_the_engine_is_stuck() {
    let Some(bench) = bench("floodstuck") else { return };
    let mut service = bench.serve(&format!("max_queue = {QUEUE}"));
    let frozen = Frozen::threads(service.pid(), "engine-");
    let mut flood = Flood::send(&bench, JOBS).await;
    flood.answered_but(QUEUE).await;
    assert_eq!((flood.vectors, flood.refused), (0, JOBS - QUEUE));
    drop(frozen);
    flood.ends().await;
    assert_eq!(flood.vectors, QUEUE);
    assert!(service.exited().is_none(), "{}", service.log());
}

/// Goal: a queue that holds more than RabbitMQ hands out to one consumer is as long as it is configured, and what it has no room for
/// is refused as soon, over and over. Method: one larger than two consumers hold, all engines stuck; five hundred more, twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_a_large_queue() {
    const LARGE: usize = 4500;
    const MORE: usize = 500;
    let Some(bench) = bench("floodlarge") else { return };
    let mut service = bench.serve(&format!("max_queue = {LARGE}"));
    let mut other = Caller::connect(&bench).await;
    let interactive = other.names.interactive.clone();
    assert_eq!(other.depth(&interactive).await.1, 3, "consumers");
    let frozen = Frozen::threads(service.pid(), "engine-");
    let mut flood = Flood::send(&bench, LARGE + MORE).await;
    flood.answered_but(LARGE).await;
    assert_eq!((flood.vectors, flood.refused), (0, MORE));
    for _ in 0..MORE {
        other.send(&json!({"input": "a"})).await;
    }
    for _ in 0..MORE {
        assert_eq!(other.reply().await.error(), ("overloaded", 429, None));
    }
    drop(frozen);
    flood.ends().await;
    assert_eq!(flood.vectors, LARGE);
    assert!(service.exited().is_none(), "{}", service.log());
}

/// Goal: an engine that never goes on again costs a life, not a job: all that the queue has no room for is refused, the
/// process ends itself in time, and the next one computes what was admitted. Method: the engine threads stand until
/// the in-process watchdog ends the process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_while_the_engine_is_dead() {
    const STALL_MAX: Duration = Duration::from_secs(6);
    let Some(bench) = bench("flooddead") else { return };
    let settings = format!("max_queue = {QUEUE}\nliveness_max_stall_ms = 6000\nwatchdog_interval_ms = 200");
    let mut service = bench.serve(&settings);
    let frozen = Frozen::threads(service.pid(), "engine-");
    let mut flood = Flood::send(&bench, JOBS).await;
    flood.answered_but(QUEUE).await;
    assert_eq!((flood.vectors, flood.refused), (0, JOBS - QUEUE));
    let (code, after) = service.exit(SOON);
    assert_eq!(code, Some(71), "{}", service.log());
    assert!(after < STALL_MAX + Duration::from_secs(2), "after {after:?}");
    drop(frozen);
    let _next = bench.serve(&settings);
    flood.ends().await;
    assert_eq!(flood.vectors, QUEUE);
}
