//! Contract 6: health, status and metrics by HTTP, through a service's life and its troubles.

use crate::frozen::Frozen;
use crate::private::wait_for;
use crate::service::{SOON, bench};
use crate::web::{address, connect, embed, get};
use embeddings::clock::{Clock, Moment};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// HTTP on any free port.
const ON: &str = "http.listen = \"127.0.0.1:0\"\n";

fn condition(body: &Value, name: &str) -> Value {
    let conditions = body["conditions"].as_array().unwrap();
    let found = conditions.iter().find(|condition| condition["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {body}")).clone()
}

/// Goal: what HTTP says is what `embeddings status` says, with every condition and its bound.
#[test]
fn status_and_health_tell_one_truth() {
    let Some(bench) = bench("httphealth") else { return };
    let service = bench.serve(ON);
    let at = address(&service);
    embed(&at, &json!({"input": "a text"})).vectors();
    let by_socket: Value = serde_json::from_slice(&service.status(&["--json"]).stdout).unwrap();
    let by_http = get(&at, "/status").json();
    let keys = |of: &Value| of.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(keys(&by_http), keys(&by_socket));
    for same in [
        "state",
        "pid",
        "host",
        "version",
        "model",
        "device",
        "limits",
        "http",
        "ready",
        "queue_max",
    ] {
        assert_eq!(by_http[same], by_socket[same], "{same}");
    }
    assert_eq!(by_http["broker"]["address"], bench.node.address());
    let ready = get(&at, "/health/ready");
    assert_eq!(ready.status, 200, "{ready:?}");
    let body = ready.json();
    let conditions = body["conditions"].as_array().unwrap();
    assert!(conditions.iter().all(|it| it["ok"] == true), "{body}");
    assert_eq!(condition(&body, "queue_below_max")["limit"], 256);
    assert_eq!(condition(&body, "broker_proven")["limit"], 10_000);
    assert_eq!(condition(&body, "computed_moves")["limit"], 30_000);
    assert!(condition(&body, "loop_answers")["value"].as_u64().unwrap() < 2500);
    assert_eq!(get(&at, "/health/live").status, 200);
}

/// Goal: with the loop alone frozen, HTTP answers at once and says that it hangs: not ready after seconds, not alive after
/// the bound of a stall; a job is refused, not held. Method: ptrace stops one thread.
#[test]
fn a_loop_that_hangs_is_told_of_at_once() {
    let Some(bench) = bench("httploop") else { return };
    let limits = format!("{ON}liveness_max_stall_ms = 8000\nwatchdog_interval_ms = 6000");
    let mut service = bench.serve(&limits);
    let at = address(&service);
    let frozen = Frozen::threads(service.pid(), "loop");
    let clock = Clock::start();
    let took = |path: &str| {
        let clock = Clock::start();
        let response = get(&at, path);
        (response, clock.now().since(Moment::ZERO))
    };
    wait_for(Duration::from_secs(5), "it is not ready", || {
        let (ready, took) = took("/health/ready");
        assert!(took < Duration::from_secs(1), "{took:?}");
        ready.status == 503 && ready.json()["not_ready"] == "hung"
    });
    assert_eq!(took("/health/live").0.status, 200, "late is not dead");
    let refused = embed(&at, &json!({"input": "a"}));
    assert_eq!((refused.status, refused.error().1.as_str()), (503, "unavailable"));
    assert!(refused.headers["retry-after"].parse::<u64>().unwrap() >= 1);
    assert!(clock.now().since(Moment::ZERO) < Duration::from_secs(9));
    wait_for(Duration::from_secs(10), "it is not alive", || {
        let (live, took) = took("/health/live");
        assert!(took < Duration::from_secs(1), "{took:?}");
        live.status == 503
    });
    let (status, _) = took("/status");
    assert_eq!(status.json()["activity"], "hung");
    assert_eq!(service.exit(SOON).0, Some(71), "{}", service.log());
    drop(frozen);
}

/// Sets the bound on open files of this process, and of those that it starts.
fn files_max(files: libc::rlim_t) {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a whole struct of ours.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) }, 0);
    limit.rlim_cur = files;
    // SAFETY: likewise.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
}

/// Goal: whoever only holds connections keeps no health check out, and is let go of.
#[test]
fn silent_connections_keep_nobody_out() {
    let Some(bench) = bench("httpslow") else { return };
    // A quarter of these may be connections that stay.
    files_max(2048);
    let service = bench.serve(ON);
    let at = address(&service);
    let silent: Vec<_> = (0..540).map(|_| connect(&at)).collect();
    let mut half = connect(&at);
    half.write_all(b"GET /health/live HTTP/1.1\r\nhost: loc").unwrap();
    let clock = Clock::start();
    assert_eq!(get(&at, "/health/live").status, 200);
    assert!(clock.now().since(Moment::ZERO) < Duration::from_secs(1));
    // Above what may stay a connection gets seconds, and no more.
    let mut bytes = Vec::new();
    half.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    half.read_to_end(&mut bytes).unwrap();
    drop(silent);
}

/// Goal: Prometheus' own judge finds nothing wrong with the names, types and help texts; counters count, and the contract's
/// are there. Method: `promtool check metrics` (`scripts/get-promtool` fetches it) after some work.
#[test]
fn promtool_finds_nothing_wrong() {
    let Some(bench) = bench("httpmetrics") else { return };
    let service = bench.serve(&format!("{ON}canary_interval_ms = 500"));
    let at = address(&service);
    embed(&at, &json!({"input": ["a text", "two"]})).vectors();
    assert_eq!(embed(&at, &json!({"input": 7})).status, 400);
    let sample = |page: &str, name: &str| -> f64 {
        let value = page
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value
            .unwrap_or_else(|| panic!("no {name} in {page}"))
            .parse()
            .unwrap()
    };
    let page = || get(&at, "/metrics").body;
    wait_for(SOON, "two canaries came round", || {
        let page = page();
        let rejected = sample(&page, "embeddings_rejected_total{reason=\"invalid_request\"}");
        sample(&page, "embeddings_canary_seconds_count") >= 2.0 && rejected == 1.0
    });
    let page = page();
    assert_eq!(
        sample(
            &page,
            "embeddings_jobs_total{lane=\"interactive\",outcome=\"answered\"}"
        ),
        1.0
    );
    assert_eq!(
        sample(&page, "embeddings_rejected_total{reason=\"invalid_request\"}"),
        1.0
    );
    assert_eq!(
        sample(&page, "embeddings_job_seconds_count{lane=\"interactive\"}"),
        1.0
    );
    assert!(sample(&page, "embeddings_tokens_total") > 2.0);
    assert!(sample(&page, "embeddings_watchdog_pets_total") >= 2.0);
    assert!(sample(&page, "embeddings_stage_seconds_count{stage=\"published\"}") >= 2.0);
    assert_eq!(sample(&page, "embeddings_spans_dropped_total"), 0.0);
    assert!(sample(&page, "process_resident_memory_bytes") > 1e6);
    assert!(
        sample(
            &page,
            "embeddings_http_requests_total{route=\"/v1/embeddings\",code=\"400\"}"
        ) == 1.0
    );
    assert!(
        page.contains("embeddings_model_state{model=\"all-MiniLM-L6-v2\",state=\"ready\"} 1\n"),
        "{page}"
    );

    let promtool = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/prometheus/usr/bin/promtool");
    if !promtool.is_file() {
        eprintln!("skipped: no {} (scripts/get-promtool)", promtool.display());
        return;
    }
    let mut judge = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    judge.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = judge.wait_with_output().unwrap();
    assert!(
        output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(),
        "{output:?}\n{page}"
    );
}
