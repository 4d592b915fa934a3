//! What bulk work costs the interactive lane: single short texts one at a time, alone and while bulk jobs of long texts
//! keep every engine busy; beside the time that one bulk batch takes. And what is left to bulk under a steady
//! interactive load.

use crate::client::{Client, Plain, plain_consumer};
use crate::figures::{Table, ms, percentile, short, tell};
use crate::groups::Groups;
use crate::service::Bench;
use crate::{knob, long_text, short_text};
use embeddings::clock::Clock;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::task::JoinHandle;

/// `engine.batch_tokens`, as it is set below.
const BATCH_TOKENS: usize = 512;
/// The size of an answer with one vector in base64.
const ECHO_BYTES: usize = 2300;
/// Inputs of one bulk job, each of 256 tokens, unless it is set otherwise.
const BULK_INPUTS: usize = 32;
/// The bulk queue is kept at this many jobs at least: a minute of work for a fast machine.
const BULK_JOBS: usize = 200;
/// Interactive jobs under way for the steady load: more than all engines can hold.
const STEADY_JOBS: usize = 64;
/// Bulk's least part of all batches while interactive jobs wait: one in eight (`logic/lane.rs`).
const BULK_SHARE: f64 = 1.0 / 8.0;
/// For how long a rate or a share is measured, unless it is set otherwise.
const SPAN_S: usize = 20;

/// Measures, and tells.
pub async fn run() {
    let bench = &crate::bench("lanes");
    let asks = knob("ASKS", 300);
    let rounds = 2;
    let span = Duration::from_secs(knob("SPAN_S", SPAN_S) as u64);
    let engines = knob(
        "ENGINES",
        std::thread::available_parallelism().map_or(1, usize::from),
    );
    let settings = format!("[engine]\nthreads = {engines}\nbatch_tokens = {BATCH_TOKENS}");
    let service = bench.serve(&settings);
    let _groups = Groups::part(bench, &service);
    let clock = Clock::start();
    let mut caller = Client::connect(bench, clock).await;
    let plain = format!("{}.plain", bench.prefix);
    caller.declare_quorum(&plain).await;
    let echo = Plain::Echo(ECHO_BYTES);
    let _echoing = plain_consumer(&bench.node.url, &plain, 8, echo, clock).await;
    ask(&mut caller, 20).await;
    let (mut alone, mut under) = (Asked::default(), Asked::default());
    let (mut tokens, mut seconds) = (0, 0.0);
    for _ in 0..rounds {
        alone.extend(ask(&mut caller, asks / rounds).await);
        let mut bulk = Bulk::start(bench, clock).await;
        let done = bulk.during(span / 2).await;
        (tokens, seconds) = (tokens + done.0, seconds + done.1);
        under.extend(ask(&mut caller, asks / rounds).await);
        assert!(bulk.since_then() > 0, "no bulk job was computed meanwhile");
        bulk.stop().await;
        note(&alone.jobs, &under.jobs, tokens as f64 / seconds / engines as f64);
    }
    let rate = tokens as f64 / seconds;
    let batch_ms = 1000.0 * BATCH_TOKENS as f64 / (rate / engines as f64);

    let mut bulk = Bulk::start(bench, clock).await;
    bulk.during(Duration::from_secs(3)).await;
    let steady = steady(bench, clock).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    steady.1.store(0, std::sync::atomic::Ordering::Relaxed);
    let (bulk_tokens, took) = bulk.during(span).await;
    let interactive_tokens = steady.1.load(std::sync::atomic::Ordering::Relaxed);
    steady.0.abort();
    bulk.stop().await;
    let share = bulk_tokens as f64 / (bulk_tokens + interactive_tokens) as f64;

    let p99 = |values: &[f64]| percentile(values, 0.99);
    let bound = batch_ms + 2.0 * p99(&alone.jobs);
    let columns = [
        "interactive, one short text at a time",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "max ms",
    ];
    let table = Table::new(
        &format!("Lanes: {asks} jobs each, {engines} engine threads"),
        &columns,
    );
    let rows = [
        ("alone", &alone.jobs),
        ("a plain echo, alone", &alone.echoes),
        ("under full bulk", &under.jobs),
        ("a plain echo, under full bulk", &under.echoes),
    ];
    for (name, values) in rows {
        let parts = [0.5, 0.9, 0.99, 1.0].map(|part| short(percentile(values, part)));
        table.row(&[[name.to_owned()].as_slice(), &parts].concat());
    }
    eprintln!();
    eprintln!("bulk alone {rate:.0} tokens/s, so one batch of {BATCH_TOKENS} tokens takes {batch_ms:.0} ms");
    eprintln!(
        "p99 under bulk {:.0} ms, bound (one batch + 2 × p99 alone) {bound:.0} ms: {}",
        p99(&under.jobs),
        if p99(&under.jobs) <= bound {
            "kept"
        } else {
            "MISSED"
        }
    );
    eprintln!(
        "bulk under {STEADY_JOBS} interactive jobs at any time: {:.0} tokens/s, share {share:.3}, at least {BULK_SHARE:.3} stated",
        bulk_tokens as f64 / took
    );
    tell(
        "lanes",
        json!({
            "asks": asks, "engines": engines, "alone_p50_ms": percentile(&alone.jobs, 0.5), "alone_p99_ms": p99(&alone.jobs),
            "bulk_p50_ms": percentile(&under.jobs, 0.5), "bulk_p99_ms": p99(&under.jobs), "bulk_tokens_s": rate,
            "batch_ms": batch_ms, "bound_ms": bound, "kept": p99(&under.jobs) <= bound, "bulk_share": share,
        }),
    );
}

/// A round takes minutes on a slow machine: what is known so far. `rate` is an engine's tokens a second.
fn note(alone: &[f64], under: &[f64], rate: f64) {
    let of = |values: &[f64]| {
        [0.5, 0.99]
            .map(|part| short(percentile(values, part)))
            .join(" and ")
    };
    let batch_ms = 1000.0 * BATCH_TOKENS as f64 / rate;
    eprintln!(
        "p50 and p99 so far, ms: alone {}, under bulk {}, one batch {batch_ms:.0}",
        of(alone),
        of(under)
    );
}

/// Latencies in milliseconds: of jobs, and of messages that a plain consumer sends straight back.
#[derive(Default)]
struct Asked {
    jobs: Vec<f64>,
    echoes: Vec<f64>,
}

impl Asked {
    fn extend(&mut self, other: Asked) {
        self.jobs.extend(other.jobs);
        self.echoes.extend(other.echoes);
    }
}

/// So many jobs and as many echoes, one after the other.
async fn ask(caller: &mut Client, count: usize) -> Asked {
    let queue = caller.names.interactive.clone();
    let plain = queue.replace(".interactive", ".plain");
    let mut asked = Asked::default();
    for id in 0..count {
        let body = json!({"input": short_text(id), "encoding_format": "base64"}).to_string();
        let took = caller.ask(&queue, id, body.as_bytes(), "embeddings.result").await;
        asked.jobs.push(ms(took));
        // So that not every job begins just when the one before has made room for a bulk batch.
        tokio::time::sleep(Duration::from_millis((id * 7 % 40) as u64)).await;
        asked
            .echoes
            .push(ms(caller.ask(&plain, id, body.as_bytes(), "echo").await));
    }
    asked
}

/// A backlog that never ends.
struct Bulk {
    caller: Client,
    queue: String,
    body: Vec<u8>,
    under_way: usize,
    clock: Clock,
}

impl Bulk {
    async fn start(bench: &Bench, clock: Clock) -> Bulk {
        let caller = Client::connect(bench, clock).await;
        let inputs = knob("BULK_INPUTS", BULK_INPUTS);
        let texts: Vec<String> = (0..inputs).map(long_text).collect();
        let mut bulk = Bulk {
            queue: caller.names.bulk.clone(),
            caller,
            body: json!({"input": texts, "encoding_format": "base64"})
                .to_string()
                .into_bytes(),
            under_way: 0,
            clock,
        };
        bulk.fill().await;
        bulk.answer().await;
        bulk
    }

    async fn fill(&mut self) {
        while self.under_way < BULK_JOBS {
            self.caller.send(&self.queue, self.under_way, &self.body).await;
            self.under_way += 1;
        }
    }

    /// Tokens of the next job that is answered.
    async fn answer(&mut self) -> usize {
        let answer = self.caller.answer().await;
        assert_eq!(answer.kind, "embeddings.result");
        self.under_way -= 1;
        tokens(&answer.body)
    }

    /// Tokens that were computed, from an answer to one this much later, and the seconds between.
    async fn during(&mut self, span: Duration) -> (usize, f64) {
        self.answer().await;
        let (begun, mut sum) = (self.clock.now(), 0);
        loop {
            sum += self.answer().await;
            self.fill().await;
            let passed = self.clock.now().since(begun);
            if passed >= span {
                return (sum, passed.as_secs_f64());
            }
        }
    }

    /// Tokens of what was answered and not looked at yet.
    fn since_then(&mut self) -> usize {
        let answers = self.caller.answers_at_hand();
        self.under_way -= answers.len();
        answers.iter().map(|answer| tokens(&answer.body)).sum()
    }

    async fn stop(mut self) {
        self.under_way -= self.caller.purge(&self.queue).await;
        while self.under_way > 0 {
            self.answer().await;
        }
    }
}

/// A caller with so many interactive jobs of one long text under way, and the tokens it was answered.
async fn steady(
    bench: &Bench,
    clock: Clock,
) -> (JoinHandle<()>, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
    let mut caller = Client::connect(bench, clock).await;
    let done = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = done.clone();
    let task = tokio::spawn(async move {
        let queue = caller.names.interactive.clone();
        let body = json!({"input": long_text(1), "encoding_format": "base64"}).to_string();
        for id in 0..STEADY_JOBS {
            caller.send(&queue, id, body.as_bytes()).await;
        }
        for id in STEADY_JOBS.. {
            let answer = caller.answer().await;
            assert_eq!(answer.kind, "embeddings.result");
            counted.fetch_add(tokens(&answer.body), std::sync::atomic::Ordering::Relaxed);
            caller.send(&queue, id, body.as_bytes()).await;
        }
    });
    (task, done)
}

fn tokens(body: &[u8]) -> usize {
    let json: Value = serde_json::from_slice(body).expect("JSON");
    json["usage"]["total_tokens"].as_u64().expect("a usage") as usize
}
