//! Contract 4: refuse, don't hang; and budgets.

use crate::caller::{Caller, headers};
use crate::service::bench;
use embeddings::clock::Clock;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Goal: a flood is refused at once with an estimate, what is admitted is computed, and every job is
/// answered exactly once. Method: long jobs, a queue of four, and all of them sent before the first answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_is_refused_at_once() {
    const JOBS: usize = 120;
    let Some(bench) = bench("flood") else { return };
    let _service = bench.serve("max_queue = 4\n[engine]\nthreads = 1");
    let mut caller = Caller::connect(&bench).await;
    // Some seconds of work in one job, so that the lane stays full.
    let heavy = json!({"input": vec!["many words make long work ".repeat(40); 16]});
    for _ in 0..4 {
        caller.send(&heavy).await;
    }
    let clock = Clock::start();
    let mut refused_ms = Vec::new();
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..JOBS {
        caller.send(&json!({"input": "a"})).await;
    }
    let sent_ms = clock.now().as_millis();
    let mut vectors = 0;
    for _ in 0..JOBS + 4 {
        let reply = caller.reply().await;
        *answers
            .entry(reply.correlation_id().unwrap().to_owned())
            .or_default() += 1;
        if reply.kind() == Some("embeddings.result") {
            vectors += 1;
            continue;
        }
        refused_ms.push(clock.now().as_millis());
        assert_eq!(reply.error(), ("overloaded", 429, None));
        let error = &reply.json["error"];
        assert_eq!(error["overloaded"], true);
        assert!((50..=600_000).contains(&error["retry_after_ms"].as_u64().unwrap()));
    }
    assert!(answers.len() == JOBS + 4 && answers.values().all(|&count| count == 1));
    assert!(vectors >= 4, "the admitted ones are computed");
    assert!(refused_ms.len() >= JOBS / 2, "{} refused", refused_ms.len());
    // The heavy jobs take seconds; a refusal waits for none of them.
    let first = refused_ms[0].saturating_sub(sent_ms);
    assert!(first < 1000, "the first refusal came {first} ms after the flood");
    assert!(caller.reply_within(Duration::from_millis(300)).await.is_none());
}

/// Goal: the latency guard refuses at once although the queue has room, says so, and opens again by itself; bulk
/// jobs wait through it and are never refused. Method: a limit that any job of some length is above.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_latency_guard_refuses_and_opens_again() {
    let Some(bench) = bench("slam") else { return };
    let service = bench.serve("slam_limit_ms = 40\n[engine]\nthreads = 1");
    let mut caller = Caller::connect(&bench).await;
    let events = caller.listen("backpressure.*").await;
    let heavy = json!({"input": vec!["many words make long work ".repeat(40); 64]});
    // The first tells how long such jobs take.
    caller.ask(&heavy).await.vectors();
    caller.send(&heavy).await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    let refused = caller.ask(&json!({"input": "a"})).await;
    assert_eq!(refused.error(), ("overloaded", 429, None));
    let message = refused.json["error"]["message"].as_str().unwrap();
    assert!(message.contains("limit is 40 ms"), "{message}");
    caller.reply().await.vectors();
    // With nothing in flight it is open.
    caller.ask(&json!({"input": "a"})).await.vectors();
    let on: Value = serde_json::from_slice(&caller.take(&events).await.data).unwrap();
    assert_eq!((&on["on"], &on["cause"]), (&json!(true), &json!("slam")), "{on}");
    assert!(
        on["avg_job_ms"].as_u64().unwrap() * on["inflight"].as_u64().unwrap() > 40,
        "{on}"
    );
    let off: Value = serde_json::from_slice(&caller.take(&events).await.data).unwrap();
    assert_eq!(off["on"], false, "{off}");

    let bulk = caller.names.bulk.clone();
    for _ in 0..6 {
        let (properties, _) = caller.properties();
        caller
            .publish(&bulk, heavy.to_string().as_bytes(), properties)
            .await;
    }
    for _ in 0..6 {
        caller.reply().await.vectors();
    }
    let on = caller.take(&events).await;
    assert_eq!(on.routing_key.as_str(), "backpressure.bulk");
    caller.take(&events).await;
    assert_eq!(
        service.log().matches("backpressure is on").count(),
        2,
        "{}",
        service.log()
    );
}

/// A cgroup of its own with a bound on memory; removed in the end.
struct Cgroup {
    dir: PathBuf,
    peak: &'static str,
}

impl Cgroup {
    /// `None` where this process may not make one.
    fn with_memory(bytes: u64) -> Option<Cgroup> {
        let name = format!("embeddings-test-{}", std::process::id());
        let kinds = [
            (
                "/sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.max_usage_in_bytes",
            ),
            ("/sys/fs/cgroup", "memory.max", "memory.peak"),
        ];
        kinds.into_iter().find_map(|(mount, limit, peak)| {
            let dir = Path::new(mount).join(&name);
            std::fs::create_dir(&dir).ok()?;
            let group = Cgroup { dir, peak };
            let limit = group.dir.join(limit);
            (limit.exists() && std::fs::write(limit, bytes.to_string()).is_ok()).then_some(group)
        })
    }

    fn take_in(&self, pid: u32) {
        std::fs::write(self.dir.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    /// The most that was in use, where the kernel tells.
    fn peak(&self) -> Option<u64> {
        let text = std::fs::read_to_string(self.dir.join(self.peak)).ok()?;
        text.trim().parse().ok()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.dir);
    }
}

/// Goal: a flood of large jobs is refused before the cgroup's bound on memory is reached, not after; the process
/// lives, and computes what it took in. Method: a cgroup with room for a few dozen of 60 jobs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_kept_below_the_kernels_bound() {
    const LIMIT: u64 = 330_000_000;
    const JOBS: usize = 60;
    let Some(bench) = bench("memory") else { return };
    let Some(group) = Cgroup::with_memory(LIMIT) else {
        println!("skipped: this process may not make a cgroup");
        return;
    };
    let mut service = bench.start(&bench.node.url, "[engine]\nthreads = 1");
    group.take_in(service.pid());
    service.ready();
    let mut caller = Caller::connect(&bench).await;
    let events = caller.listen("backpressure.interactive").await;
    // Three million bytes, of which the model reads little.
    let body = json!({"input": vec!["many words make long work ".repeat(20_000); 6]});
    for _ in 0..JOBS {
        caller.send(&body).await;
    }
    let mut refused = 0;
    for _ in 0..JOBS {
        let reply = caller.reply().await;
        if reply.kind() == Some("embeddings.error") {
            assert_eq!(reply.error(), ("overloaded", 429, None));
            refused += 1;
        }
    }
    assert!((1..JOBS).contains(&refused), "{refused} refused");
    assert!(service.exited().is_none(), "{}", service.log());
    let peak = group.peak();
    assert!(peak.is_none_or(|peak| peak < LIMIT), "{peak:?} bytes at most");
    let on: Value = serde_json::from_slice(&caller.take(&events).await.data).unwrap();
    assert_eq!(
        (&on["on"], &on["cause"]),
        (&json!(true), &json!("memory")),
        "{on}"
    );
    assert_eq!(
        on["limits"]["memory_bytes"].as_u64(),
        Some(LIMIT / 4096 * 4096),
        "{on}"
    );
    // Gone before its cgroup is.
    drop(service);
}

/// Goal: one caller's backlog does not bury another's single job.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_caller_is_served_among_the_jobs_of_another() {
    const JOBS: usize = 60;
    let Some(bench) = bench("fair") else { return };
    let _service = bench.serve("[engine]\nthreads = 1");
    let mut busy = Caller::connect(&bench).await;
    let mut lone = Caller::connect(&bench).await;
    let queue = busy.names.bulk.clone();
    let heavy = json!({"input": vec!["many words make long work ".repeat(10); 8]}).to_string();
    for _ in 0..JOBS {
        let (properties, _) = busy.properties();
        busy.publish(&queue, heavy.as_bytes(), properties).await;
    }
    let interactive = busy.names.interactive.clone();
    for _ in 0..JOBS {
        let (properties, _) = busy.properties();
        busy.publish(&interactive, heavy.as_bytes(), properties).await;
    }
    lone.ask(&json!({"input": "a"})).await.vectors();
    let mut before = 0;
    while let Some(reply) = busy.reply_within(Duration::ZERO).await {
        reply.vectors();
        before += 1;
    }
    assert!(before < JOBS, "{before} of {} jobs went before it", 2 * JOBS);
    for _ in before..2 * JOBS {
        busy.reply().await.vectors();
    }
}

/// Goal: one caller's jobs in the bulk queue do not bury another's one that stands behind all of them, though the consumer holds no
/// more than a few at a time. Method: how many of the many are answered when the one is, with large jobs, and with a thousand that
/// take a moment each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_caller_is_found_behind_the_jobs_of_another() {
    for (case, jobs, inputs) in [("behind", 80, 16), ("behind-many", 1000, 1)] {
        let Some(bench) = bench(case) else { return };
        let _service = bench.serve("max_inflight = 4\n[engine]\nthreads = 1");
        let (mut many, mut one) = (Caller::connect(&bench).await, Caller::connect(&bench).await);
        let bulk = many.names.bulk.clone();
        let texts = vec!["many words make long work ".repeat(20); inputs];
        let body = json!({"input": texts, "dimensions": 4}).to_string();
        for _ in 0..jobs {
            let (properties, _) = many.properties();
            many.publish(&bulk, body.as_bytes(), properties).await;
        }
        let (properties, _) = one.properties();
        let alone = one.ask_raw(&bulk, br#"{"input": "the only one"}"#, properties);
        alone.await.vectors();
        let mut before = 0;
        while many.reply_within(Duration::ZERO).await.is_some() {
            before += 1;
        }
        assert!(before < jobs / 2, "{before} of {jobs} were answered before it");
        for _ in before..jobs {
            many.reply().await.vectors();
        }
        many.settles_at(&bulk, (0, 1)).await;
    }
}

/// Goal: a budget counts from `x-sent-at-ms`, else from the timestamp, else from receipt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn budgets_run_out() {
    let Some(bench) = bench("budget") else { return };
    let service = bench.serve("");
    let mut caller = Caller::connect(&bench).await;
    let body = br#"{"input":"a"}"#;
    let now_ms = i64::try_from(Clock::unix_ms()).unwrap();
    let minute_ago_s = u64::try_from(now_ms / 1000 - 60).unwrap();
    for queue in [caller.names.interactive.clone(), caller.names.bulk.clone()] {
        let (properties, _) = caller.properties();
        let late = headers(&[("x-budget-ms", 30_000), ("x-sent-at-ms", now_ms - 60_000)]);
        let reply = caller.ask_raw(&queue, body, properties.with_headers(late)).await;
        assert_eq!(reply.error(), ("deadline_exceeded", 504, None));

        let (properties, _) = caller.properties();
        let late = properties
            .with_headers(headers(&[("x-budget-ms", 30_000)]))
            .with_timestamp(minute_ago_s);
        let reply = caller.ask_raw(&queue, body, late.clone()).await;
        assert_eq!(reply.error(), ("deadline_exceeded", 504, None));
        // The header goes before the timestamp.
        let fresh = headers(&[("x-budget-ms", 30_000), ("x-sent-at-ms", now_ms)]);
        let reply = caller.ask_raw(&queue, body, late.with_headers(fresh)).await;
        assert_eq!(reply.vectors().len(), 1);

        let (properties, _) = caller.properties();
        let reply = caller
            .ask_raw(
                &queue,
                body,
                properties.with_headers(headers(&[("x-budget-ms", 0)])),
            )
            .await;
        assert_eq!(reply.error(), ("deadline_exceeded", 504, None));
        // A sender's clock that is ahead does it no harm.
        let (properties, _) = caller.properties();
        let ahead = headers(&[("x-budget-ms", 30_000), ("x-sent-at-ms", now_ms + 3_600_000)]);
        let reply = caller.ask_raw(&queue, body, properties.with_headers(ahead)).await;
        assert_eq!(reply.vectors().len(), 1);
    }
    // In the queue while the service stands still: the budget runs there too.
    service.signal(libc::SIGSTOP);
    let (properties, _) = caller.properties();
    let now_ms = i64::try_from(Clock::unix_ms()).unwrap();
    let tight = headers(&[("x-budget-ms", 200), ("x-sent-at-ms", now_ms)]);
    let queue = caller.names.interactive.clone();
    caller.publish(&queue, body, properties.with_headers(tight)).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    service.signal(libc::SIGCONT);
    assert_eq!(caller.reply().await.error(), ("deadline_exceeded", 504, None));
}
