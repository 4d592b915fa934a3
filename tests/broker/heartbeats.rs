//! Contract 5.1 and 7: heartbeats, and the end that the monitor asks for.

use crate::caller::Caller;
use crate::service::{SOON, bench};
use embeddings::clock::{Clock, Moment};
use lapin::options::ExchangeDeleteOptions;
use lapin::types::FieldTable;
use serde_json::{Value, json};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

const KEYS: [&str; 24] = [
    "pid",
    "name",
    "host",
    "connected",
    "ready",
    "queue",
    "inflight",
    "last_progress_ts",
    "last_job_latency_ms",
    "avg_job_ms",
    "state",
    "stalled_stage",
    "model",
    "device",
    "rss_bytes",
    "version",
    "interval_ms",
    "sent_ts",
    "uptime_ms",
    "instance",
    "inputs_per_second",
    "queue_max",
    "not_ready",
    "last_kill",
];

async fn bound_queue(caller: &Caller) -> String {
    caller.listen("heartbeat.#").await
}

/// Goal: the contract's keys, on the exchange and at the monitor's socket, often enough, and truly said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_arrive_at_the_exchange() {
    let Some(bench) = bench("heartbeat") else { return };
    let service = bench.serve("heartbeat_interval_ms = 500");
    let mut caller = Caller::connect(&bench).await;
    let queue = bound_queue(&caller).await;
    caller.ask(&json!({"input": ["one", "two"]})).await.vectors();
    let clock = Clock::start();
    let mut beats = Vec::new();
    while beats.len() < 4 {
        let delivery = caller.take(&queue).await;
        let beat: Value = serde_json::from_slice(&delivery.data).unwrap();
        let mut keys: Vec<&str> = beat.as_object().unwrap().keys().map(String::as_str).collect();
        let mut expected = KEYS.to_vec();
        keys.sort_unstable();
        expected.sort_unstable();
        assert_eq!(keys, expected);
        let host = beat["host"].as_str().unwrap();
        assert_eq!(delivery.routing_key.as_str(), format!("heartbeat.{host}"));
        assert_eq!(delivery.properties.delivery_mode(), &Some(1));
        assert_eq!(beat["pid"], service.pid());
        assert_eq!(beat["name"], "embeddings");
        assert!(beat["rss_bytes"].as_u64() > Some(10_000_000), "{beat}");
        beats.push(beat);
    }
    let took = clock.now().since(Moment::ZERO);
    assert!(took < Duration::from_secs(6), "4 heartbeats took {took:?}");
    let last = &beats[3];
    assert_eq!((&last["connected"], &last["ready"]), (&json!(true), &json!(true)));
    assert!(
        last["avg_job_ms"].is_u64() && last["last_job_latency_ms"].is_u64(),
        "{last}"
    );
    let progress = Clock::unix_ms().abs_diff(last["last_progress_ts"].as_u64().unwrap());
    assert!(progress < 60_000, "{last}");

    // An exchange that is gone costs no session, only the heartbeats until it is declared anew.
    let gone = caller.another_channel().await;
    let options = ExchangeDeleteOptions::default();
    gone.exchange_delete(caller.names.events.as_str().into(), options)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    caller.ask(&json!({"input": "still here"})).await.vectors();
    assert!(!service.log().contains("lost the broker"), "{}", service.log());
    assert!(service.log().contains("are not published"), "{}", service.log());
    let clock = Clock::start();
    let passive = lapin::options::ExchangeDeclareOptions {
        passive: true,
        durable: true,
        ..Default::default()
    };
    loop {
        let channel = caller.another_channel().await;
        let name = caller.names.events.as_str();
        let there = channel.exchange_declare(
            name.into(),
            lapin::ExchangeKind::Topic,
            passive,
            FieldTable::default(),
        );
        if there.await.is_ok() {
            break;
        }
        assert!(
            clock.now().since(Moment::ZERO) < SOON,
            "the exchange never came back"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let queue = bound_queue(&caller).await;
    caller.take(&queue).await;
}

/// Goal: the monitor hears of a worker from its start on, also while there is no broker; and a worker that it
/// ends dies of the signal, so that systemd does not take it for an administrator's wish.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_monitor_is_told_and_heeded() {
    let Some(bench) = bench("sentence") else { return };
    // Nobody listens at the port of discard.
    let mut service = bench.start(
        "amqp://guest:guest@127.0.0.1:9/%2f",
        "heartbeat_interval_ms = 500",
    );
    let dir = service.monitor_dir();
    std::fs::create_dir(&dir).unwrap();
    let socket = UnixDatagram::bind(dir.join("heartbeat.sock")).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let mut buffer = [0; 4096];
    let mut hear = || -> Value {
        let bytes = socket.recv(&mut buffer).expect("a heartbeat in time");
        serde_json::from_slice(&buffer[..bytes]).unwrap()
    };
    for _ in 0..3 {
        let beat = hear();
        assert_eq!(
            (&beat["state"], &beat["connected"]),
            (&json!("starting"), &json!(false))
        );
        assert_eq!(
            (&beat["ready"], &beat["avg_job_ms"]),
            (&json!(false), &Value::Null)
        );
    }
    let sentence = json!({"pid": service.pid(), "reason": "heartbeat_timeout", "silent_ms": 1, "detail": ""});
    std::fs::write(
        dir.join(format!("kill-{}.json", service.pid())),
        sentence.to_string(),
    )
    .unwrap();
    service.signal(libc::SIGTERM);
    service.exit(SOON);
    let status = service.exited().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGTERM), "{status}");
}
