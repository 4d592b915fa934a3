//! Contract 5.4: what `embeddings status` says, and that asking disturbs nobody.

use crate::caller::Caller;
use crate::frozen::Frozen;
use crate::service::{SOON, Service, bench};
use embeddings::clock::{Clock, Moment};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::process::Output;
use std::time::Duration;

/// Exit code, first line of the text, and all of it.
fn said(output: &Output) -> (Option<i32>, String) {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.stderr.is_empty(), "{output:?}");
    (output.status.code(), text)
}

fn status(service: &Service) -> (Option<i32>, String) {
    said(&service.status(&[]))
}

fn report(service: &Service) -> Value {
    serde_json::from_slice(&service.status(&["--json"]).stdout).unwrap()
}

/// Goal: the symbol and the exit code follow the service through its life: ● ready, ◐ frozen, ● again,
/// ○ gone; the deaths are told in each. Method: the real binary, and SIGSTOP.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_follows_the_service() {
    let Some(bench) = bench("status") else { return };
    let mut service = bench.serve("");
    let death =
        r#"{"kill_id":"k","kill_reason":"no_progress","stage":"computed","unix_ms":1,"uptime_ms":5000}"#;
    std::fs::write(service.dir().join("kills.jsonl"), death).unwrap();
    Caller::connect(&bench)
        .await
        .ask(&json!({"input": "a text"}))
        .await
        .vectors();

    let (code, text) = status(&service);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.starts_with("● embeddings is running · all-MiniLM-L6-v2 on cpu · "),
        "{text}"
    );
    assert!(text.contains("no_progress/computed  after 5.0 s"), "{text}");
    assert!(!text.contains('\x1b'), "no terminal, no colour");

    let told = report(&service);
    assert_eq!(
        (&told["state"], &told["ready"], &told["live"]),
        (&json!("running"), &json!(true), &json!(true))
    );
    assert_eq!(told["model"], "all-MiniLM-L6-v2");
    assert_eq!(told["device"], "cpu");
    assert_eq!(told["queue_max"], 256);
    assert_eq!(told["limits"]["liveness_max_stall_ms"], 30_000);
    assert_eq!(told["broker"]["connected"], true);
    assert_eq!(told["broker"]["address"], bench.node.address());
    assert_eq!(told["kills"][0]["kill_id"], "k");
    assert_eq!(told["jobs"]["interactive"]["answered"], 1);
    assert_eq!(told["retrying"], json!([]));
    assert_eq!(told["stages"].as_array().unwrap().len(), 6);
    assert!(told["rss_bytes"].as_u64().unwrap() > 1 << 20);
    for field in [
        "pid",
        "uptime_ms",
        "at_unix_ms",
        "round_age_ms",
        "progress_age_ms",
        "last_job_latency_ms",
    ] {
        assert!(told[field].is_u64(), "{field}: {}", told[field]);
    }
    let conditions = told["conditions"].as_array().unwrap();
    assert!(
        conditions.iter().all(|condition| condition["ok"] == true),
        "{conditions:?}"
    );
    let proven = conditions
        .iter()
        .find(|condition| condition["name"] == "broker_proven")
        .unwrap();
    assert_eq!(proven["limit"], 10_000);

    service.signal(libc::SIGSTOP);
    let clock = Clock::start();
    let (code, text) = status(&service);
    assert!(clock.now().since(Moment::ZERO) < Duration::from_secs(4));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.starts_with("◐ embeddings is hung"), "{text}");
    assert!(
        text.contains("T (stopped)") && text.contains("no_progress/computed"),
        "{text}"
    );
    service.signal(libc::SIGCONT);
    assert_eq!(status(&service).0, Some(0));

    service.signal(libc::SIGTERM);
    assert_eq!(service.exit(SOON).0, Some(0));
    let (code, text) = status(&service);
    assert_eq!(code, Some(3), "{text}");
    assert!(text.starts_with("○ embeddings is stopped"), "{text}");
    assert!(text.contains("no_progress/computed"), "{text}");
    assert_eq!(report(&service)["state"], "stopped");
}

/// Goal: while it waits for its first broker it is ◐, and says for what.
#[test]
fn a_service_without_a_broker_is_degraded_and_says_so() {
    let Some(bench) = bench("statuswait") else { return };
    // A port that nobody listens on: bound, and not listening.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    drop(taken);
    let mut service = bench.start(&bench.node.url_at(address), "");
    service.tells("waiting for the broker");
    let (code, text) = status(&service);
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.starts_with("◐ embeddings is starting · waiting for the broker at"),
        "{text}"
    );
    let told = report(&service);
    assert_eq!(
        (&told["activity"], &told["not_ready"]),
        (&json!("starting"), &json!("starting"))
    );
    assert!(
        told["broker"]["waiting"].as_str().unwrap().contains("attempt"),
        "{told}"
    );
    assert_eq!(told["broker"]["connected"], false);
    assert!(!told.to_string().contains("guest:guest"), "no password: {told}");
}

/// Goal: a flood of questions, and callers who connect and say nothing, cost no job, no health and no ●.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_questions_disturbs_no_work() {
    const CALLS: usize = 100;
    const JOBS: usize = 60;
    let Some(bench) = bench("statusflood") else { return };
    let service = bench.serve("");
    let mut caller = Caller::connect(&bench).await;
    // These read nothing.
    let mute: Vec<UnixStream> = (0..20)
        .map(|_| UnixStream::connect(service.runtime().join("status.sock")).unwrap())
        .collect();
    let asked: Vec<_> = (0..CALLS).map(|_| service.spawn_status(&[])).collect();
    let mut waiting = BTreeSet::new();
    for n in 0..JOBS {
        waiting.insert(caller.send(&json!({"input": vec![format!("text {n}"); 8]})).await);
    }
    for _ in 0..JOBS {
        let reply = caller.reply().await;
        reply.vectors();
        assert!(waiting.remove(reply.correlation_id().unwrap()));
    }
    for call in asked {
        let output = call.wait_with_output().unwrap();
        let (code, text) = said(&output);
        assert_eq!(code, Some(0), "{text}");
        assert!(text.starts_with('●'), "{text}");
    }
    drop(mute);
    let told = report(&service);
    assert_eq!(told["jobs"]["interactive"]["answered"], JOBS);
    assert_eq!(caller.depth(&caller.names.interactive).await.0, 0);
    assert_eq!(caller.depth(&caller.names.dead).await.0, 0);
}

/// Goal: questions that never end keep no tick from coming: an idle service goes on sending canaries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_without_end_keep_canaries_coming() {
    let Some(bench) = bench("statusidle") else { return };
    let service = bench.serve("canary_interval_ms = 300\nliveness_max_stall_ms = 2000");
    let clock = Clock::start();
    let socket = service.runtime().join("status.sock");
    while clock.now().since(Moment::ZERO) < Duration::from_secs(5) {
        let answer = std::io::read_to_string(UnixStream::connect(&socket).unwrap()).unwrap();
        let told: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(told["state"], "running", "{told}");
    }
    let canaries = report(&service)["jobs"]["probe"]["answered"].as_u64().unwrap();
    assert!(canaries >= 8, "{canaries} canaries in 5 s");
}

/// Goal: the answer is the loop's. With the loop alone frozen, every other thread runs on, and the status
/// says that the loop hangs; the process's own watchdog ends it as it said. Method: ptrace stops one thread.
#[test]
fn a_loop_that_hangs_does_not_answer() {
    let Some(bench) = bench("statusloop") else { return };
    let mut service = bench.serve("liveness_max_stall_ms = 6000");
    let frozen = Frozen::threads(service.pid(), "loop");
    let (code, text) = status(&service);
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.starts_with("◐ embeddings is hung · takes questions"),
        "{text}"
    );
    assert!(
        text.contains("ends it 6.0 s after the last turn") && text.contains("no_progress"),
        "{text}"
    );
    assert_eq!(service.exit(SOON).0, Some(71), "{}", service.log());
    drop(frozen);
    assert_eq!(status(&service).0, Some(3));
}
