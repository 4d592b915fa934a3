//! Contract 5.3: signals, and several workers on one broker.

use crate::caller::Caller;
use crate::private::wait_for;
use crate::proxy::Proxy;
use crate::service::{SOON, bench};
use crate::web::{address, embed};
use embeddings::clock::{Clock, Moment};
use lapin::options::{BasicGetOptions, BasicNackOptions};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;

fn job(n: usize) -> serde_json::Value {
    json!({"input": vec![format!("job number {n} has some words to read"); 8]})
}

/// Goal: SIGTERM under load loses nothing: every job is answered or back in the queue, as it came, and the code is 0.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_loses_nothing() {
    const JOBS: usize = 150;
    const EXPIRATION: &str = "3600000";
    let Some(bench) = bench("stop") else { return };
    let mut service = bench.serve("drain_ms = 20000");
    let mut caller = Caller::connect(&bench).await;
    let queue = caller.names.interactive.clone();
    let mut waiting = BTreeSet::new();
    for n in 0..JOBS {
        let (properties, id) = caller.properties();
        let properties = properties.with_expiration(EXPIRATION.into());
        caller
            .publish(&queue, job(n).to_string().as_bytes(), properties)
            .await;
        waiting.insert(id);
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
        let expiration = message.properties.expiration().as_ref();
        assert_eq!(expiration.map(|it| it.as_str()), Some(EXPIRATION));
        handed_back += 1;
    }
    assert!(
        waiting.is_empty(),
        "neither answered nor in the queue: {waiting:?}"
    );
    assert!(handed_back > 0, "the stop came in the middle of the work");
    assert_eq!(caller.depth(&caller.names.dead).await.0, 0);
}

/// Goal: a stop doubles nothing: what is answered or sent anew is gone from the queue when the service is. RabbitMQ keeps acknowledgements
/// beyond some to itself while more are under way, and loses them with the channel. Method: many jobs wait, and the stop comes as soon
/// as the service is ready, so that nearly all are handed back at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_doubles_nothing() {
    const JOBS: u32 = 2500;
    let Some(bench) = bench("doubles") else { return };
    let settings = format!("max_queue = {JOBS}\ndrain_ms = 20000");
    let stop = || {
        let mut service = bench.serve(&settings);
        service.signal(libc::SIGTERM);
        assert_eq!(service.exit(SOON).0, Some(0), "{}", service.log());
        service
    };
    stop();
    let mut caller = Caller::connect(&bench).await;
    let queue = caller.names.interactive.clone();
    let jobs: Vec<_> = (0..JOBS).map(|_| caller.properties().0).collect();
    let sends = jobs
        .into_iter()
        .map(|properties| caller.publish(&queue, br#"{"input":"a"}"#, properties));
    futures_util::future::join_all(sends).await;
    let mut left = JOBS;
    for round in 0..4 {
        let service = stop();
        while caller.reply_within(Duration::from_millis(300)).await.is_some() {
            left -= 1;
        }
        // What was on its way to us comes back as delivered before, and goes on in the other queue.
        let waiting = caller.depth(&queue).await.0 + caller.depth(&caller.names.resumed).await.0;
        assert_eq!(waiting, left, "in round {round}: {}", service.log());
    }
    assert!(left > 0, "none was handed back");
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

/// Goal: a stop that has something to finish keeps its session for as long as that takes, and the sender has its answer from it.
/// Method: a long job, and a broker that is asked for its queues ten times a second meanwhile, also for those without a
/// consumer of ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_stop_keeps_its_session() {
    let Some(bench) = bench("longstop") else { return };
    let mut service = bench.serve("drain_ms = 60000\ndisconnect_kill_ms = 1000");
    let mut caller = Caller::connect(&bench).await;
    let text = "words to be done before the end ".repeat(60);
    let id = caller.send(&json!({"input": vec![text; 192]})).await;
    wait_for(SOON, "it is begun", || {
        let status = service.status(&["--json"]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        status["inflight"] == 1
    });
    service.signal(libc::SIGTERM);
    let reply = caller.reply().await;
    assert_eq!(reply.correlation_id(), Some(id.as_str()));
    assert_eq!(reply.vectors().len(), 192);
    assert_eq!(service.exit(SOON).0, Some(0), "{}", service.log());
    assert!(!service.log().contains("lost the broker"), "{}", service.log());
    assert_eq!(caller.depth(&caller.names.interactive).await.0, 0);
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

/// Goal: a reload takes over what a job may hold, by either way in, and shows no value that is not in force; how many bulk jobs
/// are fetched ahead follows with the next connection. Method: the connections are cut for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_takes_all_limits_over() {
    let Some(bench) = bench("limits") else { return };
    let proxy = Proxy::to(bench.node.address());
    let listen = "http.listen = \"127.0.0.1:0\"\n";
    let before = "max_inputs = 2\nmax_stream_inputs = 8\nbatch_inputs = 4\nmax_inflight = 8";
    let mut service = bench.start(&bench.node.url_at(proxy.address), &format!("{listen}{before}"));
    service.ready();
    let at = address(&service);
    let mut caller = Caller::connect(&bench).await;
    let inputs = |n: usize, stream: bool| json!({"input": vec!["a"; n], "stream": stream});
    let fetched = || {
        let listed = bench.node.ctl("list_consumers queue_name prefetch_count");
        let bulk = format!("{}.bulk", bench.prefix);
        let mut lines = listed.lines().filter_map(|line| line.split_once('\t'));
        let found = lines.find(|(queue, _)| *queue == bulk);
        found.map(|(_, count)| count.trim().to_owned())
    };
    assert_eq!(fetched().as_deref(), Some("16"));
    let too_many = ("too_many_inputs", 413, Some("input"));
    assert_eq!(caller.ask(&inputs(3, false)).await.error(), too_many);
    assert_eq!(caller.ask(&inputs(9, true)).await.error(), too_many);
    assert_eq!(embed(&at, &inputs(3, false)).status, 413);

    service.forget_told();
    let after = "max_inputs = 3\nmax_stream_inputs = 9\nbatch_inputs = 2\nmax_inflight = 5\ndrain_ms = 4000";
    service.write_config(&format!("{listen}{after}"));
    service.signal(libc::SIGHUP);
    service.tells("READY=1");
    assert_eq!(caller.ask(&inputs(3, false)).await.vectors().len(), 3);
    assert_eq!(caller.ask(&inputs(4, false)).await.error(), too_many);
    assert_eq!(embed(&at, &inputs(3, false)).vectors().len(), 3);
    assert_eq!(embed(&at, &inputs(4, false)).status, 413);
    caller.send(&inputs(9, true)).await;
    let mut chunks = 0;
    loop {
        let reply = caller.reply().await;
        match reply.kind() {
            Some("embeddings.chunk") => chunks += 1,
            Some("embeddings.done") => break,
            other => assert_eq!(other, Some("embeddings.progress"), "{}", reply.json),
        }
    }
    assert_eq!(chunks, 5, "nine texts by two");
    assert_eq!(caller.ask(&inputs(10, true)).await.error(), too_many);
    let status = service.status(&["--json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["limits"]["max_inputs"], 3, "{status}");
    assert!(
        !service.log().contains("waits for a restart"),
        "{}",
        service.log()
    );
    assert!(service.log().contains("fetched ahead from the next connection"));
    proxy.cut();
    wait_for(SOON, "the new session fetches ten ahead", || {
        fetched().as_deref() == Some("10")
    });
    // What was answered and not yet acknowledged before the cut may be answered twice.
    let id = caller.send(&inputs(3, false)).await;
    while caller.reply().await.correlation_id() != Some(id.as_str()) {}
    assert!(service.exited().is_none());
}

/// Goal: a configuration on a disk that hangs holds up nothing, however often it is to be read, and is taken over when the disk
/// answers. Method: the file is a pipe that nobody writes to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_that_hangs_holds_up_nothing() {
    let Some(bench) = bench("hungfile") else { return };
    let limits =
        "liveness_max_stall_ms = 1500\nwatchdog_interval_ms = 100\ncanary_interval_ms = 300\nmax_inputs = 2";
    let mut service = bench.serve(limits);
    let mut caller = Caller::connect(&bench).await;
    let file = service.dir().join("embeddings.toml");
    std::fs::remove_file(&file).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&file).status();
    assert!(made.unwrap().success());
    service.forget_told();
    let clock = Clock::start();
    while clock.now().since(Moment::ZERO) < Duration::from_secs(4) {
        service.signal(libc::SIGHUP);
        caller.ask(&json!({"input": ["a", "b"]})).await.vectors();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(service.exited().is_none(), "{}", service.log());
    assert!(!service.has_told("READY=1"), "nothing has been read yet");
    // Whoever reads the pipe now comes to an end, and what was asked since finds a file.
    let pipe = std::fs::File::options().write(true).open(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    service.write_config(&limits.replace("max_inputs = 2", "max_inputs = 3"));
    drop(pipe);
    wait_for(SOON, "the new limit holds", || {
        let status = service.status(&["--json"]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
        status["limits"]["max_inputs"] == 3
    });
    service.tells("READY=1");
    caller.ask(&json!({"input": ["a", "b", "c"]})).await.vectors();
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
