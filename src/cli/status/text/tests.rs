//! Goal: what people see is what the report says. Method: small reports, whole texts.

use super::*;
use crate::report::{Broker, Retrying, Stage, Unit};

fn plain(report: &Report) -> String {
    let text = people(report, Paint { on: false });
    for line in text.lines() {
        assert!(line.chars().count() <= COLUMNS, "{line:?} is too wide");
        assert_eq!(line, line.trim_end());
    }
    text
}

fn running() -> Report {
    let stage = |name: &str, inside, waiting_ms| Stage {
        name: name.into(),
        inside,
        waiting_ms,
        ..Stage::default()
    };
    Report {
        state: State::Running,
        activity: "working".into(),
        line:
            "ready · all-MiniLM-L6-v2 on cpu · 812 inputs/s · queue 3/256 · inflight 8 · last proof 0.4 s ago"
                .into(),
        ready: true,
        live: true,
        pid: Some(4711),
        host: "host".into(),
        version: "1.2.3".into(),
        uptime_ms: Some(8_040_000),
        at_unix_ms: 1_700_000_060_000,
        rss_bytes: Some(212 << 20),
        stages: vec![
            stage("batched", 12, 3),
            stage("computed", 64, 16_000),
            stage("acked", 0, 0),
        ],
        round_age_ms: Some(400),
        last_job_latency_ms: Some(41),
        broker: Broker {
            address: "127.0.0.1:5672".into(),
            connected: true,
            proof_age_ms: Some(400),
            ..Broker::default()
        },
        jobs: [(
            "bulk".into(),
            [("answered".into(), 7), ("dead_lettered".into(), 1)].into(),
        )]
        .into(),
        limits: [
            ("liveness_max_stall_ms".into(), 30_000),
            ("disconnect_kill_ms".into(), 10_000),
        ]
        .into(),
        kills: vec![Kill {
            reason: "no_progress".into(),
            stage: Some("computed".into()),
            at_unix_ms: Some(1_700_000_000_000),
            uptime_ms: Some(90_000),
            detail: Some("batch of 64 inside for 31 s".into()),
            ..Kill::default()
        }],
        ..Report::default()
    }
}

#[test]
fn a_running_service() {
    assert_eq!(
        plain(&running()),
        "\
● embeddings is running · all-MiniLM-L6-v2 on cpu · 812 inputs/s · queue 3/256
  inflight 8 · last proof 0.4 s ago
  pid 4711 on host · version 1.2.3 · up 2 h 14 min · 212 MiB

stage      inside  no progress for (limit 30 s)
batched        12  0.0 s
computed       64  16 s
acked           0  -

broker    connected to 127.0.0.1:5672, answered 0.4 s ago (limit 10 s)
round     last went all the way 0.4 s ago · last job 41 ms
jobs      bulk: 7 answered, 1 dead-lettered
retrying  none

deaths, the newest first
  2023-11-14 22:13:20Z  60 s ago  no_progress/computed  after 90 s
      batch of 64 inside for 31 s
"
    );
}

#[test]
fn a_starting_service_says_what_it_waits_for() {
    let waiting =
        "waiting for the broker at amqp://user:***@broker.example:5672/%2f · attempt 3: connection refused";
    let report = Report {
        state: State::Degraded,
        activity: "starting".into(),
        line: waiting.into(),
        kills_unknown: Some("not readable: run as root or as embeddings".into()),
        hints: vec!["word ".repeat(40)],
        ..Report::default()
    };
    let text = plain(&report);
    assert!(
        text.starts_with(
            "◐ embeddings is starting · waiting for the broker at\n  \
             amqp://user:***@broker.example:5672/%2f · attempt 3: connection refused\n  -> word"
        ),
        "{text}"
    );
    assert!(
        text.ends_with("deaths    not readable: run as root or as embeddings\n"),
        "{text}"
    );
}

#[test]
fn a_stopped_service_shows_what_systemd_knows() {
    let report = Report {
        activity: "stopped".into(),
        line: "no process answers".into(),
        systemd: Some(Unit {
            active_state: "failed".into(),
            sub_state: "failed".into(),
            result: "exit-code".into(),
            exit_status: Some(78),
            since: "Sun 2026-11-22 04:02:11 UTC".into(),
            restarts: Some(2),
            ..Unit::default()
        }),
        hints: vec!["mend it".into()],
        ..Report::default()
    };
    assert_eq!(
        plain(&report),
        "\
○ embeddings is stopped · no process answers
  -> mend it

systemd   failed (failed) since Sun 2026-11-22 04:02:11 UTC
          result exit-code, exit 78, 2 restarts
deaths    none on record
"
    );
}

/// Colour never carries what the text does not, and jobs that wait for another attempt are named.
#[test]
fn colour_adds_nothing_but_colour() {
    let mut report = running();
    report.retrying.push(Retrying {
        job: "job-1".into(),
        attempt: 2,
        retry_in_ms: Some(4000),
        last_error: "a batch failed".into(),
    });
    let coloured = people(&report, Paint { on: true });
    assert!(
        coloured.starts_with("\x1b[32m● embeddings is running\x1b[0m · all-"),
        "{coloured}"
    );
    assert!(
        coloured.contains("\x1b[33mcomputed"),
        "half of its limit: {coloured}"
    );
    let mut stripped = coloured;
    for code in ["\x1b[32m", "\x1b[33m", "\x1b[2m", "\x1b[0m"] {
        stripped = stripped.replace(code, "");
    }
    assert_eq!(stripped, plain(&report));
    assert!(stripped.contains("retrying  job-1 attempt 2 in 4.0 s: a batch failed\n"));
}

#[test]
fn moments_and_spans() {
    assert_eq!(moment(0), "1970-01-01 00:00:00Z");
    assert_eq!(moment(951_827_696_789), "2000-02-29 12:34:56Z");
    assert_eq!(moment(1_735_689_599_000), "2024-12-31 23:59:59Z");
    let spans = [
        (0, "0.0 s"),
        (9_999, "10.0 s"),
        (119_999, "119 s"),
        (7_199_000, "119 min"),
        (7_200_000, "2 h 0 min"),
    ];
    for (ms, said) in spans {
        assert_eq!(span(ms), said);
    }
    assert_eq!(span(200_000_000), "2 days");
}

#[test]
fn who_is_turned_away_at_the_door_is_counted() {
    let mut report = running();
    report.http.listen = Some("127.0.0.1:8970".into());
    assert!(plain(&report).contains("\nhttp      127.0.0.1:8970\n"));
    report.http.refused = [("http_requests", 2), ("http_bodies", 3), ("http_connections", 1)]
        .map(|(full, number)| (full.to_owned(), number))
        .into();
    let text = plain(&report);
    let line = "http      127.0.0.1:8970, 5 requests and 1 connection turned away at the door\n";
    assert!(text.contains(line), "{text}");
}

#[test]
fn a_lane_that_takes_nothing_is_named() {
    let mut report = running();
    let lane = crate::report::Backpressure {
        on: true,
        cause: Some("memory".into()),
        since_ms: Some(3000),
        changes: 3,
        refused: [("memory".into(), 10), ("queue_full".into(), 2)].into(),
        retry_after_ms: Some(800),
    };
    report.backpressure = [
        ("interactive".into(), lane),
        ("bulk".into(), crate::report::Backpressure::default()),
    ]
    .into();
    let text = plain(&report);
    assert!(
        text.contains("\nrefusing  interactive: memory since 3.0 s, 12 refused in all\n"),
        "{text}"
    );
    assert!(!text.contains("bulk: slam") && !plain(&running()).contains("refusing"));
}
