//! Five callers send ten times the queue at once: how long each refusal takes from the sending of its job, beside the
//! time in which RabbitMQ delivers the same flood to a consumer that only acknowledges, and to one that echoes.

use crate::client::{Answer, Client, Plain, plain_consumer};
use crate::figures::{Table, median, ms, percentile, short, tell};
use crate::groups::Groups;
use crate::{knob, knobs, short_text};
use embeddings::broker::{CONSUMER_PREFETCH_MAX, REFUSE_ROOM};
use embeddings::clock::{Clock, Moment};
use embeddings::logic::rest;
use serde_json::json;
use std::time::Duration;
use tokio::sync::mpsc;

const CALLERS: usize = 5;

/// Measures, and tells.
pub async fn run() {
    let rounds = knob("ROUNDS", 5);
    let columns = [
        "max_queue",
        "jobs",
        "refused",
        "refusal p50 ms",
        "p99 ms",
        "max ms",
        "refusals/s",
        "last refusal ms",
        "delivered ms",
        "echoed ms",
        "echoed with confirms ms",
        "last refusal ÷ delivered",
        "÷ echoed",
        "÷ echoed with confirms",
    ];
    let table = Table::new(
        "Flood: ten times the queue from five callers at once (medians of rounds)",
        &columns,
    );
    let mut told = Vec::new();
    for max_queue in knobs("QUEUES", &[256, 2000]) {
        let measured = flood(max_queue, rounds).await;
        let of = |get: fn(&Round) -> f64| median(&measured.iter().map(get).collect::<Vec<_>>());
        let all: Vec<f64> = measured
            .iter()
            .flat_map(|round| round.latencies.clone())
            .collect();
        let (p50, p99, max) = (
            percentile(&all, 0.5),
            percentile(&all, 0.99),
            percentile(&all, 1.0),
        );
        let (refused, rate, last) = (
            of(|it| it.latencies.len() as f64),
            of(|it| it.rate),
            of(|it| it.last_ms),
        );
        let (delivered, echoed) = (of(|it| it.delivered_ms), of(|it| it.echoed_ms));
        let confirmed = of(|it| it.confirmed_ms);
        let to_delivered = of(|it| it.last_ms / it.delivered_ms);
        let to_echoed = of(|it| it.last_ms / it.echoed_ms);
        let to_confirmed = of(|it| it.last_ms / it.confirmed_ms);
        let mut cells = vec![max_queue.to_string(), (10 * max_queue).to_string()];
        let numbers = [
            refused,
            p50,
            p99,
            max,
            rate,
            last,
            delivered,
            echoed,
            confirmed,
            to_delivered,
            to_echoed,
            to_confirmed,
        ];
        cells.extend(numbers.map(short));
        table.row(&cells);
        told.push(json!({
            "max_queue": max_queue, "jobs": 10 * max_queue, "rounds": rounds, "refused": refused, "p50_ms": p50,
            "p99_ms": p99, "max_ms": max, "refusals_s": rate, "last_refusal_ms": last, "delivered_ms": delivered,
            "echoed_ms": echoed, "confirmed_ms": confirmed, "last_to_delivered": to_delivered, "last_to_echoed": to_echoed,
            "last_to_confirmed": to_confirmed,
        }));
    }
    tell("flood", json!(told));
}

struct Round {
    /// From a job's sending to its refusal.
    latencies: Vec<f64>,
    rate: f64,
    last_ms: f64,
    delivered_ms: f64,
    echoed_ms: f64,
    confirmed_ms: f64,
}

async fn flood(max_queue: usize, rounds: usize) -> Vec<Round> {
    let bench = &crate::bench(&format!("flood-{max_queue}"));
    let service = bench.serve(&format!("max_queue = {max_queue}"));
    let _groups = Groups::part(bench, &service);
    let clock = Clock::start();
    let mut callers = Vec::new();
    for _ in 0..CALLERS {
        callers.push(Client::connect(bench, clock).await);
    }
    // RabbitMQ honours no more of one consumer.
    let prefetch = (max_queue + REFUSE_ROOM).min(CONSUMER_PREFETCH_MAX) as u16;
    let interactive = callers[0].names.interactive.clone();
    let plain = format!("{}.plain", bench.prefix);
    callers[0].declare_quorum(&plain).await;
    let mut measured = Vec::new();
    let mut refusal_bytes = 300;
    // The first one warms everything up.
    for round in 0..=rounds {
        let (delivered, mut deliveries) = mpsc::unbounded_channel();
        let (url, deliver) = (&bench.node.url, Plain::Deliver(delivered));
        let consumer = plain_consumer(url, &plain, prefetch, deliver, clock).await;
        let sent = send(&callers, &plain, max_queue).await;
        let mut last = Moment::ZERO;
        for _ in 0..10 * max_queue {
            last = deliveries.recv().await.expect("a delivery");
        }
        let delivered_ms = ms(last.since(first(&sent)));
        consumer.abort();

        let mut echoes_ms = [0.0; 2];
        let kinds = [Plain::Echo(refusal_bytes), Plain::ConfirmedEcho(refusal_bytes)];
        for (kind, took) in kinds.into_iter().zip(&mut echoes_ms) {
            let consumer = plain_consumer(url, &plain, prefetch, kind, clock).await;
            let sent = send(&callers, &plain, max_queue).await;
            let echoes = collect(&mut callers, max_queue).await;
            let last = echoes.iter().flatten().map(|it| it.at).max().expect("echoes");
            *took = ms(last.since(first(&sent)));
            // What is not acknowledged when its connection goes would be echoed once more, in the next turn.
            tokio::time::sleep(Duration::from_millis(300)).await;
            consumer.abort();
        }
        let [echoed_ms, confirmed_ms] = echoes_ms;

        let sent = send(&callers, &interactive, max_queue).await;
        let answers = collect(&mut callers, max_queue).await;
        let mut refusals: Vec<(Moment, f64)> = Vec::new();
        for (sent, answers) in sent.iter().zip(&answers) {
            let mut answered = vec![false; sent.len()];
            for answer in answers {
                assert!(
                    !std::mem::replace(&mut answered[answer.id], true),
                    "one answer to a job"
                );
                if answer.kind == "embeddings.error" {
                    refusal_bytes = refused(answer);
                    refusals.push((answer.at, ms(answer.at.since(sent[answer.id]))));
                }
            }
        }
        refusals.sort_by_key(|&(at, _)| at);
        let (Some(&(begun, _)), Some(&(ended, _))) = (refusals.first(), refusals.last()) else {
            panic!("nothing was refused: {}", service.log());
        };
        let measure = Round {
            latencies: refusals.iter().map(|&(_, latency)| latency).collect(),
            rate: refusals.len() as f64 / ended.since(begun).as_secs_f64(),
            last_ms: ms(ended.since(first(&sent))),
            delivered_ms,
            echoed_ms,
            confirmed_ms,
        };
        if round > 0 {
            measured.push(measure);
        }
        // A flood finds engines that have their rest before them.
        tokio::time::sleep(rest::allowance(max_queue) * rest::SHARE).await;
    }
    measured
}

fn first(sent: &[Vec<Moment>]) -> Moment {
    sent.iter().flatten().copied().min().expect("jobs were sent")
}

/// Each caller sends its share as fast as it can; when each job was sent.
async fn send(callers: &[Client], queue: &str, max_queue: usize) -> Vec<Vec<Moment>> {
    let each = 10 * max_queue / CALLERS;
    let floods = callers.iter().map(|caller| async move {
        let mut sent = Vec::with_capacity(each);
        for id in 0..each {
            let body = json!({"input": short_text(id), "encoding_format": "base64"}).to_string();
            sent.push(caller.send(queue, id, body.as_bytes()).await);
        }
        sent
    });
    futures_util::future::join_all(floods).await
}

async fn collect(callers: &mut [Client], max_queue: usize) -> Vec<Vec<Answer>> {
    let each = 10 * max_queue / CALLERS;
    let answers = callers.iter_mut().map(|caller| async move {
        let mut answers = Vec::with_capacity(each);
        for _ in 0..each {
            answers.push(caller.answer().await);
        }
        answers
    });
    futures_util::future::join_all(answers).await
}

/// The size of a refusal, after a look that it is one.
fn refused(answer: &Answer) -> usize {
    let text = String::from_utf8_lossy(&answer.body);
    let is_refusal = text.contains(r#""type":"overloaded""#) && text.contains(r#""retry_after_ms":"#);
    assert!(is_refusal, "{text}");
    answer.body.len()
}
