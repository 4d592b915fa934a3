//! Contract 5.3: signals, and several workers on one broker.

use crate::caller::Caller;
use crate::service::{SOON, bench};
use lapin::options::{BasicGetOptions, BasicNackOptions};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;

fn job(n: usize) -> serde_json::Value {
    json!({"input": vec![format!("job number {n} has some words to read"); 8]})
}

/// Goal: SIGTERM under load loses nothing: every job is answered or back in the queue, and the code is 0.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_loses_nothing() {
    const JOBS: usize = 150;
    let Some(bench) = bench("stop") else { return };
    let mut service = bench.serve("drain_ms = 20000");
    let mut caller = Caller::connect(&bench).await;
    let mut waiting = BTreeSet::new();
    for n in 0..JOBS {
        waiting.insert(caller.send(&job(n)).await);
    }
    let first = caller.reply().await;
    waiting.remove(first.correlation_id().unwrap());
    service.signal(libc::SIGTERM);
    service.tells("STOPPING=1");
    assert_eq!(service.exit(SOON).0, Some(0), "{}", service.log());
    // What was in flight is settled on the session it came by, so nothing is answered and handed back both.
    assert!(!service.log().contains("lost the broker"), "{}", service.log());
    while let Some(reply) = caller.reply_within(Duration::from_millis(500)).await {
        waiting.remove(reply.correlation_id().unwrap());
    }
    let queue = caller.names.interactive.clone();
    let options = BasicGetOptions { no_ack: true };
    let mut handed_back = 0;
    while let Some(message) = caller
        .channel
        .basic_get(queue.as_str().into(), options)
        .await
        .unwrap()
    {
        let id = message.properties.correlation_id().as_ref().unwrap().to_string();
        waiting.remove(&id);
        handed_back += 1;
    }
    assert!(
        waiting.is_empty(),
        "neither answered nor in the queue: {waiting:?}"
    );
    assert!(handed_back > 0, "the stop came in the middle of the work");
    assert_eq!(caller.depth(&caller.names.dead).await.0, 0);
}

/// Goal: who merely waited when the service was stopped is computed by the next one as if nothing had been: no attempt is
/// charged, on either lane. Method: a stop in the middle of the work, and the service again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_charges_nobody() {
    const JOBS: usize = 100;
    let Some(bench) = bench("charged") else { return };
    let mut service = bench.serve("drain_ms = 20000");
    let mut caller = Caller::connect(&bench).await;
    let (interactive, bulk) = (caller.names.interactive.clone(), caller.names.bulk.clone());
    let mut waiting = BTreeSet::new();
    for n in 0..JOBS {
        waiting.insert(caller.send(&job(n)).await);
        let (properties, id) = caller.properties();
        caller
            .publish(&bulk, job(n).to_string().as_bytes(), properties)
            .await;
        waiting.insert(id);
    }
    let first = caller.reply().await;
    waiting.remove(first.correlation_id().unwrap());
    service.signal(libc::SIGTERM);
    assert_eq!(service.exit(SOON).0, Some(0), "{}", service.log());
    let left = caller.depth(&interactive).await.0;
    assert!(left > 0, "the stop came in the middle of the work");
    service.again();
    service.ready();
    while !waiting.is_empty() {
        let reply = caller.reply().await;
        assert_eq!(reply.header("x-attempt").as_deref(), Some("1"), "{}", reply.json);
        reply.vectors();
        waiting.remove(reply.correlation_id().unwrap());
    }
    assert_eq!(caller.depth(&caller.names.dead).await.0, 0);
}

/// Goal: SIGHUP takes new limits in without losing a job; a bad file keeps the old ones and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_keeps_working() {
    let Some(bench) = bench("reload") else { return };
    let mut service = bench.serve("max_queue = 200");
    let mut caller = Caller::connect(&bench).await;
    service.forget_told();
    service.write_config("max_queue = \"many\"");
    service.signal(libc::SIGHUP);
    service.tells("READY=1");
    assert!(service.log().contains("configuration kept as it was"));
    caller.ask(&job(0)).await.vectors();

    let mut waiting: BTreeSet<String> = BTreeSet::new();
    for n in 0..40 {
        waiting.insert(caller.send(&job(n)).await);
    }
    service.forget_told();
    service.write_config("max_queue = 1");
    service.signal(libc::SIGHUP);
    service.tells("READY=1");
    while !waiting.is_empty() {
        let reply = caller.reply().await;
        // Those that were admitted before are computed; those still on their way may meet the new bound.
        assert!(reply.kind() == Some("embeddings.result") || reply.error().0 == "overloaded");
        waiting.remove(reply.correlation_id().unwrap());
    }
    for n in 0..40 {
        caller.send(&job(n)).await;
    }
    let mut refused = 0;
    for _ in 0..40 {
        let reply = caller.reply().await;
        refused += usize::from(reply.kind() == Some("embeddings.error"));
    }
    assert!(refused > 0, "the new bound holds");
    assert!(service.exited().is_none());
}

/// Goal: what is delivered again is judged by the attempts that hold now, not by those of the start: that it merely waited when
/// it was given back never costs it its last. Method: the broker is given a job back while a service runs whose
/// `max_attempts` was lowered to 1 by SIGHUP.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_holds_for_what_is_delivered_again() {
    let Some(bench) = bench("reload-attempts") else {
        return;
    };
    let mut service = bench.serve("max_attempts = 5");
    let mut caller = Caller::connect(&bench).await;
    service.signal(libc::SIGTERM);
    assert_eq!(service.exit(SOON).0, Some(0), "{}", service.log());
    caller.send(&job(0)).await;
    let options = BasicGetOptions { no_ack: false };
    let queue = caller.names.interactive.clone();
    let taken = caller.channel.basic_get(queue.as_str().into(), options).await;
    let taken = taken.unwrap().expect("nobody else takes it");
    service.again();
    service.ready();
    service.forget_told();
    service.write_config("max_attempts = 1");
    service.signal(libc::SIGHUP);
    service.tells("READY=1");
    let back = BasicNackOptions {
        requeue: true,
        ..BasicNackOptions::default()
    };
    taken.acker.nack(back).await.unwrap();
    caller.reply().await.vectors();
}

/// Goal: two workers share the work, each job answered once; when one is killed the other takes over
/// what it held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_share_and_take_over() {
    const JOBS: usize = 80;
    let Some(bench) = bench("two") else { return };
    let limits = "max_queue = 10\n[engine]\nthreads = 1";
    let (first, mut second) = (bench.serve(limits), bench.serve(limits));
    let mut caller = Caller::connect(&bench).await;
    let bulk = caller.names.bulk.clone();
    caller.settles_at(&bulk, (0, 2)).await;
    let mut waiting = BTreeSet::new();
    for n in 0..JOBS {
        let (properties, id) = caller.properties();
        caller
            .publish(&bulk, job(n).to_string().as_bytes(), properties)
            .await;
        waiting.insert(id);
    }
    for _ in 0..10 {
        let reply = caller.reply().await;
        assert!(waiting.remove(reply.correlation_id().unwrap()), "answered once");
    }
    // Without a word to anyone.
    first.signal(libc::SIGKILL);
    while !waiting.is_empty() {
        let reply = caller.reply().await;
        reply.vectors();
        waiting.remove(reply.correlation_id().unwrap());
    }
    assert!(second.exited().is_none());
    caller.settles_at(&bulk, (0, 1)).await;
    assert_eq!(caller.depth(&caller.names.dead).await.0, 0);
}
