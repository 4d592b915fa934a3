//! Contract 3.2 and 5: a network that is cut, frozen or not there yet.

use crate::caller::Caller;
use crate::frozen::Frozen;
use crate::private::{Private, wait_for};
use crate::proxy::Proxy;
use crate::service::{SOON, bench};
use embeddings::clock::{Clock, Moment};
use embeddings::telemetry::blackbox::Phase;
use lapin::BasicProperties;
use lapin::options::QueueDeleteOptions;
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;

/// What a death may take longer than its bound on a busy machine: the last proof may be as old as one
/// prober interval less, and the process needs a moment to be reaped.
const SLACK: Duration = Duration::from_millis(1500);

/// Goal: short cuts cost no job and no life. Method: jobs flow while the connections are reset again and
/// again; every job is answered at least once, which needs confirm before ack.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_cuts_lose_nothing() {
    const CUTS: usize = 4;
    const JOBS: usize = 30;
    let Some(bench) = bench("cuts") else { return };
    let proxy = Proxy::to(bench.node.address());
    let mut service = bench.start(&bench.node.url_at(proxy.address), "");
    service.ready();
    let mut caller = Caller::connect(&bench).await;
    let mut waiting = BTreeSet::new();
    let mut answered_between = 0;
    for cut in 0..=CUTS {
        for n in 0..JOBS {
            let body = json!({"input": vec![format!("cut {cut} job {n}"); 4]});
            waiting.insert(caller.send(&body).await);
        }
        if cut < CUTS {
            // In the middle of the work, not before it.
            let reply = caller.reply().await;
            answered_between += usize::from(waiting.remove(reply.correlation_id().unwrap()));
            proxy.cut();
        }
    }
    while !waiting.is_empty() {
        let reply = caller.reply().await;
        reply.vectors();
        waiting.remove(reply.correlation_id().unwrap());
    }
    assert!(answered_between > 0);
    assert!(service.exited().is_none(), "a short cut kills nothing");
    assert!(service.log().contains("lost the broker"), "the cuts were felt");
    let queue = caller.names.interactive.clone();
    caller.settles_at(&queue, (0, 1)).await;
    assert_eq!(caller.depth(&caller.names.dead).await.0, 0);
}

/// Goal: a broker that falls silent without closing anything ends the process in time, with 70.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_kills_in_time() {
    let Some(bench) = bench("silence") else { return };
    let proxy = Proxy::to(bench.node.address());
    let limits = "disconnect_kill_ms = 2000\nwatchdog_interval_ms = 200\ncanary_interval_ms = 500";
    let mut service = bench.start(&bench.node.url_at(proxy.address), limits);
    service.ready();
    proxy.freeze(true);
    let (code, after) = service.exit(SOON);
    assert_eq!(code, Some(70), "{}", service.log());
    assert!(after <= Duration::from_millis(2200) + SLACK, "after {after:?}");
    assert!(service.log().contains("broker_disconnected"));
    assert_eq!(service.deaths(), ["broker_disconnected"]);
}

/// Goal: after a kill that nobody could foresee, the black box names the jobs that may be why. Method: long
/// jobs, the box read while they run; the process is ended when it names them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_black_box_names_what_is_worked_on() {
    let Some(bench) = bench("blackbox") else { return };
    let mut service = bench.serve("");
    assert_eq!(
        service.black_box().suspects.ids,
        [""; 0],
        "canaries are no suspects"
    );
    let mut caller = Caller::connect(&bench).await;
    let text = "one two three four five six seven eight nine ten ".repeat(20);
    let mut sent = BTreeSet::new();
    for _ in 0..4 {
        sent.insert(caller.send(&json!({"input": vec![text.as_str(); 200]})).await);
    }
    let clock = Clock::start();
    while service.black_box().figures.inflight.unwrap_or(0) == 0 {
        assert!(
            clock.now().since(Moment::ZERO) < SOON,
            "{:?}",
            service.black_box()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    service.signal(libc::SIGKILL);
    service.exit(SOON);
    let left = service.black_box();
    assert_eq!(left.figures.phase, Phase::Ready);
    assert!(left.figures.connected && left.figures.rss_bytes > 0, "{left:?}");
    assert_eq!(left.suspects.total, left.suspects.ids.len());
    assert!(
        !left.suspects.ids.is_empty() && left.suspects.ids.iter().all(|id| sent.contains(id)),
        "{left:?}"
    );
    assert!(left.death.is_none());
}

/// Goal: a silence shorter than the bound kills nothing, and work goes on after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_silence_kills_nothing() {
    let Some(bench) = bench("freeze") else { return };
    let proxy = Proxy::to(bench.node.address());
    let mut service = bench.start(&bench.node.url_at(proxy.address), "disconnect_kill_ms = 20000");
    service.ready();
    let mut caller = Caller::connect(&bench).await;
    proxy.freeze(true);
    let id = caller.send(&json!({"input": "in the cold"})).await;
    // The fault itself: nothing can be waited for while nothing happens.
    tokio::time::sleep(Duration::from_secs(2)).await;
    proxy.freeze(false);
    assert_eq!(caller.reply().await.correlation_id(), Some(id.as_str()));
    assert!(service.exited().is_none());
}

/// Goal: a broker that is gone for longer than the bound ends the process in time, with 70.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_broker_kills_in_time() {
    let Some(bench) = bench("lost") else { return };
    let proxy = Proxy::to(bench.node.address());
    let limits = "disconnect_kill_ms = 2000\nwatchdog_interval_ms = 200";
    let mut service = bench.start(&bench.node.url_at(proxy.address), limits);
    service.ready();
    proxy.refuse(true);
    proxy.cut();
    let (code, after) = service.exit(SOON);
    assert_eq!(code, Some(70), "{}", service.log());
    assert!(after <= Duration::from_millis(2200) + SLACK, "after {after:?}");
    assert!(after >= Duration::from_millis(1000), "after {after:?}");
}

/// Goal: a broker that is not there yet is waited for, aloud, however long; then the service is ready.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_broker_is_waited_for() {
    let Some(bench) = bench("absent") else { return };
    let proxy = Proxy::to(bench.node.address());
    proxy.refuse(true);
    let limits = "disconnect_kill_ms = 1000\nwatchdog_interval_ms = 100";
    let mut service = bench.start(&bench.node.url_at(proxy.address), limits);
    service.tells("waiting for the broker");
    service.tells("EXTEND_TIMEOUT_USEC=");
    // Well over the bound that holds once connected.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(service.exited().is_none());
    assert!(!service.has_told("READY=1"));
    assert!(!service.log().contains("guest:guest"), "no password in the log");
    proxy.refuse(false);
    service.ready();
    let mut caller = Caller::connect(&bench).await;
    caller.ask(&json!({"input": "here we are"})).await.vectors();
}

/// Goal: a queue deleted under the service is declared again, and served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_queue_comes_back() {
    let Some(bench) = bench("deleted") else { return };
    let mut service = bench.serve("");
    let mut caller = Caller::connect(&bench).await;
    for queue in [caller.names.interactive.clone(), caller.names.dead.clone()] {
        let channel = caller.another_channel().await;
        channel
            .queue_delete(queue.as_str().into(), QueueDeleteOptions::default())
            .await
            .unwrap();
    }
    let clock = embeddings::clock::Clock::start();
    let queue = caller.names.interactive.clone();
    loop {
        let channel = caller.another_channel().await;
        let passive = lapin::options::QueueDeclareOptions::durable().passive();
        let looked = channel.queue_declare(queue.as_str().into(), passive, Default::default());
        if looked.await.is_ok_and(|queue| queue.consumer_count() == 1) {
            break;
        }
        assert!(clock.now().since(embeddings::clock::Moment::ZERO) < SOON);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    caller.ask(&json!({"input": "back again"})).await.vectors();
    assert_eq!(caller.depth(&caller.names.dead).await.0, 0);
    assert!(service.exited().is_none());
}

/// Goal: a broker that has messages and delivers none, while it answers everything else and canaries go
/// round, is a stall of the stage `received`. Method: deliveries of one lane get lost on the way, more of
/// them than the prefetch, so that some stay ready.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_undelivered_queue_is_a_stall() {
    let Some(bench) = bench("undelivered") else { return };
    let proxy = Proxy::to(bench.node.address());
    let limits = "liveness_max_stall_ms = 3000\nwatchdog_interval_ms = 200\ncanary_interval_ms = 500\nmax_inflight = 1\ndisconnect_kill_ms = 5000";
    let mut service = bench.start(&bench.node.url_at(proxy.address), limits);
    service.ready();
    proxy.lose_deliveries("bulk");
    let mut caller = Caller::connect(&bench).await;
    for n in 0..10 {
        let (properties, _) = caller.properties();
        let body = json!({"input": format!("job {n}")}).to_string();
        caller
            .publish(&caller.names.bulk, body.as_bytes(), properties)
            .await;
    }
    let (code, after) = service.exit(SOON);
    assert_eq!(code, Some(71), "{}", service.log());
    assert!(after >= Duration::from_millis(2500), "after {after:?}");
    // Each queue is looked at every third time, once a tenth of disconnect_kill_ms.
    assert!(
        after <= Duration::from_millis(3200 + 1500) + SLACK,
        "after {after:?}"
    );
    let log = service.log();
    assert!(log.contains("no_progress") && log.contains("received"), "{log}");
}

/// Goal: a broker that no longer knows our consumer, and never told us, is left and found again; nobody dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_consumer_begins_a_new_session() {
    let Some(bench) = bench("unconsumed") else { return };
    let proxy = Proxy::to(bench.node.address());
    let mut service = bench.start(
        &bench.node.url_at(proxy.address),
        "disconnect_kill_ms = 4000\nwatchdog_interval_ms = 200",
    );
    service.ready();
    proxy.deny_consumers(true);
    let clock = embeddings::clock::Clock::start();
    while !service.log().contains("our consumer is missing from its queue") {
        assert!(clock.now().since(embeddings::clock::Moment::ZERO) < SOON);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    proxy.deny_consumers(false);
    let mut caller = Caller::connect(&bench).await;
    caller.ask(&json!({"input": "here again"})).await.vectors();
    assert!(service.exited().is_none());
}

/// Goal: a consumer that stays missing costs readiness, and then the process with 70 in time; the record says what was missing,
/// though the broker answered all the while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_stays_missing_is_told_of() {
    let Some(bench) = bench("forsaken") else { return };
    let proxy = Proxy::to(bench.node.address());
    let mut service = bench.start(
        &bench.node.url_at(proxy.address),
        "disconnect_kill_ms = 4000\nwatchdog_interval_ms = 200\ncanary_interval_ms = 500",
    );
    service.ready();
    proxy.deny_consumers(true);
    let clock = Clock::start();
    let mut told = String::new();
    while !told.contains("\"unconsumed\"") {
        assert!(clock.now().since(Moment::ZERO) < SOON, "{told}");
        assert!(service.exited().is_none(), "nobody was told before: {told}");
        told = String::from_utf8(service.status(&["--json"]).stdout).unwrap();
    }
    let report: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(report["ready"], false, "{report}");
    let conditions = report["conditions"].as_array().unwrap();
    let proven = conditions
        .iter()
        .find(|it| it["name"] == "broker_proven")
        .unwrap();
    assert_eq!(proven["ok"], false, "{report}");
    assert!(
        report["line"].as_str().unwrap().contains("no consumer on lane"),
        "{report}"
    );
    assert_eq!(service.exit(SOON).0, Some(70), "{}", service.log());
    assert_eq!(service.deaths(), ["broker_disconnected"]);
    let log = service.log();
    assert!(
        log.contains("no consumer on lane") && log.contains("though the broker answers"),
        "{log}"
    );
}

/// Goal: a reply queue that takes nothing, and in the broker holds up all that is published behind it, harms
/// the jobs that want to go there and no others; nothing is lost, and nobody dies of it. Method: the process of
/// a quorum queue is suspended inside the broker, as it is when the queue has no leader.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_queue_that_takes_nothing_harms_no_other() {
    const JOBS: usize = 6;
    let Some(bench) = bench("wedged") else { return };
    let limits = "liveness_max_stall_ms = 6000\ncanary_interval_ms = 500\nmax_attempts = 1";
    let mut service = bench.start(&bench.node.url, limits);
    service.ready();
    let mut caller = Caller::connect(&bench).await;
    let wedged = format!("{}.wedged", bench.prefix);
    caller.declare_quorum(&wedged).await;
    let suspend = |what: &str| {
        let process = format!("sys:{what}(list_to_atom(\"%2F_{wedged}\"), infinity).");
        bench.node.ctl(&format!("eval '{process}'"));
    };
    suspend("suspend");
    let clock = Clock::start();
    for n in 0..JOBS {
        let properties = BasicProperties::default()
            .with_reply_to(wedged.as_str().into())
            .with_message_id(format!("stuck {n}").into());
        let queue = caller.names.interactive.clone();
        caller.publish(&queue, br#"{"input":"a"}"#, properties).await;
    }
    // Twice the stall limit, and always somebody is answered.
    while clock.now().since(Moment::ZERO) < Duration::from_secs(13) {
        caller.ask(&json!({"input": "next to it"})).await.vectors();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(service.exited().is_none(), "{}", service.log());
    assert!(service.log().contains("a reply queue confirms nothing"));
    for _ in 0..JOBS {
        let dead = caller.take(&caller.names.dead).await;
        assert_eq!(dead.properties.reply_to().as_ref().unwrap().as_str(), wedged);
    }
    suspend("resume");
    let queue = caller.names.interactive.clone();
    caller.settles_at(&queue, (0, 1)).await;
}

/// Goal: a broker with an alarm, which takes no answers, kills nobody, however long, and no reply queue is blamed for it; when the alarm
/// has passed, each job has its answer, once. Method: the alarm begins while engines stand still with jobs before them, lasts longer than a
/// stage may stand still, and more than twice as long as a reply queue may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alarm_of_the_broker_kills_nobody() {
    const JOBS: usize = 40;
    const ALARM: Duration = Duration::from_millis(7500);
    let Some(mut bench) = bench("alarm") else { return };
    let node = Private::start();
    bench.node.url.clone_from(&node.url);
    let mut service = bench.serve("liveness_max_stall_ms = 6000\ncanary_interval_ms = 500");
    let mut caller = Caller::connect(&bench).await;
    let frozen = Frozen::threads(service.pid(), "engine-");
    let mut waiting = BTreeSet::new();
    for n in 0..JOBS {
        waiting.insert(caller.send(&json!({"input": format!("text {n}")})).await);
    }
    node.ctl("set_vm_memory_high_watermark 0.0000001");
    drop(frozen);
    let line = || service.status(&["--json"]).stdout;
    wait_for(SOON, "the alarm is told", || {
        String::from_utf8_lossy(&line()).contains("degraded · broker blocks publishing")
    });
    assert!(caller.reply_within(ALARM).await.is_none());
    node.ctl("set_vm_memory_high_watermark 0.6");
    while !waiting.is_empty() {
        let reply = caller.reply().await;
        reply.vectors();
        assert!(waiting.remove(reply.correlation_id().unwrap()));
    }
    wait_for(SOON, "it is ready again", || {
        service.status(&[]).status.code() == Some(0)
    });
    let log = service.log();
    assert!(
        !log.contains("confirms nothing") && !log.contains("lost the broker"),
        "{log}"
    );
    assert!(service.exited().is_none(), "{log}");
}

/// Goal: an attempt at a session that the broker answers too late leaves no consumer behind: it would be handed a whole
/// prefetch of jobs, and nobody would ever see them. That happened when a cluster had lost its quorum and found it again.
/// Method: as above; the subscription is asked for while the queue's process stands still, and answered after it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_was_given_up_leaves_no_consumer() {
    let Some(bench) = bench("ghost") else { return };
    let mut first = bench.serve("");
    let caller = Caller::connect(&bench).await;
    first.signal(libc::SIGKILL);
    first.exit(SOON);
    let queue = caller.names.interactive.clone();
    caller.settles_at(&queue, (0, 0)).await;
    let suspend = |what: &str| {
        let process = format!("sys:{what}(list_to_atom(\"%2F_{queue}\"), infinity).");
        bench.node.ctl(&format!("eval '{process}'"));
    };
    suspend("suspend");
    let mut second = bench.start(&bench.node.url, "");
    let clock = Clock::start();
    while second.log().matches("no answer within").count() < 2 {
        let waited = clock.now().since(Moment::ZERO);
        assert!(waited < SOON, "{}", second.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    suspend("resume");
    second.ready();
    caller.settles_at(&queue, (0, 1)).await;
    let mut caller = caller;
    for _ in 0..20 {
        caller.ask(&json!({"input": "no ghost takes it"})).await.vectors();
    }
}
