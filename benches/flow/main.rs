//! How work flows through the whole service and a real RabbitMQ: what a refusal costs in a flood, what bulk work
//! costs the interactive lane, and what becomes of time and memory as jobs and backlogs grow.
//!
//! `cargo bench --bench flow -- [flood] [lanes] [size] [backlog]`, or `scripts/bench-flow`. A table for people on
//! stderr, one line of JSON per scenario on stdout. What is compared takes turns in one run, and is given as a
//! ratio: client, broker and service share the machine with whatever else is on it.

mod backlog;
mod client;
mod figures;
mod flood;
mod groups;
mod lanes;
#[path = "../../tests/broker/node.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod node;
#[path = "../../tests/broker/service.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod service;
mod size;

use service::Bench;

/// Jobs, rounds and sizes can be set by environment variables of this beginning.
const ENV: &str = "BENCH_FLOW_";

fn main() {
    // Cargo itself adds `--bench`.
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|it| !it.starts_with('-'))
        .collect();
    let all = ["flood", "lanes", "size", "backlog"];
    if let Some(unknown) = wanted.iter().find(|it| !all.contains(&it.as_str())) {
        eprintln!("no scenario {unknown}; there are: {}", all.join(" "));
        std::process::exit(2);
    }
    if service::bench("flow").is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let is_wanted = |it: &&str| wanted.is_empty() || wanted.iter().any(|name| name == it);
    for scenario in all.into_iter().filter(is_wanted) {
        runtime.block_on(async {
            match scenario {
                "flood" => flood::run().await,
                "lanes" => lanes::run().await,
                "size" => size::run().await,
                _ => backlog::run().await,
            }
        });
    }
}

/// The bench with queues of this name.
fn bench(name: &str) -> Bench {
    service::bench(&format!("flow-{name}")).expect("it was there a moment ago")
}

/// A number from the environment, or else this one.
fn knob(name: &str, otherwise: usize) -> usize {
    knobs(name, &[otherwise])[0]
}

/// Numbers with commas from the environment, or else these.
fn knobs(name: &str, otherwise: &[usize]) -> Vec<usize> {
    let Ok(text) = std::env::var(format!("{ENV}{name}")) else {
        return otherwise.to_vec();
    };
    let numbers: Result<Vec<usize>, _> = text.split(',').map(|it| it.trim().parse()).collect();
    numbers.unwrap_or_else(|error| {
        eprintln!("{ENV}{name}={text}: {error}");
        std::process::exit(2);
    })
}

/// A sentence of some dozen words, another one for each number.
fn short_text(n: usize) -> String {
    let (subject, place) = (n % 7919, n * 31 % 977);
    format!("Note {n}: the harbour master of town {subject} wrote down what ship {place} had on board.")
}

/// A text that fills the model's window of 256 tokens.
fn long_text(n: usize) -> String {
    (0..16)
        .map(|part| short_text(n + 17 * part))
        .collect::<Vec<_>>()
        .join(" ")
}
