//! Contract 4: refuse, don't hang; and budgets.

use crate::caller::{Caller, headers};
use crate::service::bench;
use embeddings::clock::Clock;
use serde_json::json;
use std::collections::BTreeMap;
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

/// Goal: a budget counts from `x-sent-at-ms`, else from the timestamp, else from receipt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn budgets_run_out() {
    let Some(bench) = bench("budget") else { return };
    let service = bench.serve("");
    let mut caller = Caller::connect(&bench).await;
    let body = br#"{"input":"a"}"#;
    let now_ms = i64::try_from(Clock::start().unix_ms()).unwrap();
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
    let now_ms = i64::try_from(Clock::start().unix_ms()).unwrap();
    let tight = headers(&[("x-budget-ms", 200), ("x-sent-at-ms", now_ms)]);
    let queue = caller.names.interactive.clone();
    caller.publish(&queue, body, properties.with_headers(tight)).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    service.signal(libc::SIGCONT);
    assert_eq!(caller.reply().await.error(), ("deadline_exceeded", 504, None));
}
