//! Cost against the backlog: the bulk queue holds 1 to 100 000 jobs of one short text when the service starts. How many
//! jobs a second it works off, what each costs, and how much memory it takes.

use crate::client::Client;
use crate::figures::{Process, Table, short, tell};
use crate::{knobs, short_text};
use embeddings::clock::Clock;
use serde_json::json;
use std::collections::BTreeMap;

/// Measures, and tells.
pub async fn run() {
    let columns = [
        "jobs waiting",
        "jobs/s",
        "cpu ms/job",
        "peak MB",
        "MB at the end",
        "cpu µs/job by thread",
    ];
    let table = Table::new("Backlog: single short texts on the bulk lane", &columns);
    let mut told = Vec::new();
    for jobs in knobs("BACKLOG", &[1, 100, 10_000, 100_000]) {
        let cost = work_off(jobs).await;
        let threads = cost.threads.iter().filter(|(_, us)| **us >= 1.0);
        let threads: Vec<String> = threads.map(|(name, us)| format!("{name} {us:.0}")).collect();
        let mut cells = vec![jobs.to_string()];
        cells.extend([cost.rate, cost.cpu_ms, cost.peak_mb, cost.end_mb].map(short));
        cells.push(threads.join(", "));
        table.row(&cells);
        told.push(json!({
            "jobs": jobs, "jobs_s": cost.rate, "cpu_ms_per_job": cost.cpu_ms, "peak_mb": cost.peak_mb,
            "end_mb": cost.end_mb, "threads_us_per_job": cost.threads,
        }));
    }
    tell("backlog", json!(told));
}

struct Cost {
    /// Jobs a second between the first answer and the last; of a single job, since it was asked for.
    rate: f64,
    cpu_ms: f64,
    peak_mb: f64,
    end_mb: f64,
    threads: BTreeMap<String, f64>,
}

async fn work_off(jobs: usize) -> Cost {
    let bench = &crate::bench(&format!("backlog-{jobs}"));
    // The first service declares the queues; the backlog comes while none is there.
    drop(bench.serve(""));
    let clock = Clock::start();
    let mut caller = Client::connect(bench, clock).await;
    let queue = caller.names.bulk.clone();
    for id in 0..jobs {
        let body = json!({"input": short_text(id), "encoding_format": "base64"}).to_string();
        caller.send(&queue, id, body.as_bytes()).await;
    }
    while caller.depth(&queue).await < jobs {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let service = bench.serve("");
    let process = Process::of(service.pid());
    process.forget_peak();
    let (begun, cpu_s, before) = (clock.now(), process.cpu_s(), process.threads_s());
    let first = caller.answer().await;
    assert_eq!(first.kind, "embeddings.result");
    // A service that has said that it is ready has worked already.
    let (mut seen, mut last) = (1, first.at);
    let mut after_ready = usize::from(first.at >= begun);
    while seen < jobs {
        let answer = caller.answer().await;
        assert_eq!(answer.kind, "embeddings.result");
        after_ready += usize::from(answer.at >= begun);
        (seen, last) = (seen + 1, answer.at);
    }
    let counted = after_ready.max(1) as f64;
    let span = if jobs > 1 {
        last.since(first.at)
    } else {
        last.since(begun)
    };
    let threads = process.threads_s().into_iter().map(|(name, s)| {
        let spent = s - before.get(&name).copied().unwrap_or(0.0);
        (name, spent * 1e6 / counted)
    });
    Cost {
        rate: (jobs.max(2) - 1) as f64 / span.as_secs_f64().max(1e-3),
        cpu_ms: (process.cpu_s() - cpu_s) * 1000.0 / counted,
        peak_mb: process.peak_mb(),
        end_mb: process.rss_mb(),
        threads: threads.collect(),
    }
}
