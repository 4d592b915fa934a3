//! Cost against the size of a job: the same texts in jobs of 1 to `max_inputs` inputs, and in streamed ones of up to
//! `max_stream_inputs`. Time and processor time per input, the service's peak of memory, and what went over its
//! connections.

use crate::client::Client;
use crate::figures::{Process, Table, ms, short, tell};
use crate::service::Bench;
use crate::{knob, knobs, short_text};
use embeddings::clock::Clock;
use serde_json::json;

/// Each size is measured over at least this many inputs, so that small jobs keep the engines as busy as large ones.
const INPUTS_MIN: usize = 2000;

/// Measures, and tells.
pub async fn run() {
    let bench = &crate::bench("size");
    let plain = knobs("SIZES", &[1, 10, 100, 1000, 2048]);
    let streamed = knobs("STREAMED", &[1, 10, 100, 1000, 10_000, 100_000]);
    let least = knob("INPUTS_MIN", INPUTS_MIN);
    let service = bench.serve("");
    let process = Process::of(service.pid());
    let clock = Clock::start();
    let mut caller = Client::connect(bench, clock).await;
    measure(
        &mut caller,
        process,
        clock,
        Case {
            inputs: 100,
            jobs: 20,
            stream: false,
        },
    )
    .await;
    let columns = [
        "job",
        "jobs",
        "s",
        "ms/input",
        "ratio to 1000",
        "cpu ms/input",
        "ratio to 1000",
        "peak MB",
        "bytes/input in",
        "bytes/input out",
    ];
    let table = Table::new(
        "Size: the same texts in jobs of other sizes, on the bulk lane",
        &columns,
    );
    let cases = [
        plain.iter().map(|&n| (n, false)).collect::<Vec<_>>(),
        streamed.iter().map(|&n| (n, true)).collect(),
    ];
    let mut told = Vec::new();
    for (inputs, stream) in cases.concat() {
        let case = Case {
            inputs,
            jobs: least.div_ceil(inputs),
            stream,
        };
        // The standard takes its turn beside each, since the machine may change meanwhile.
        let standard = Case {
            inputs: 1000,
            jobs: least.div_ceil(1000),
            stream,
        };
        let beside = measure(&mut caller, process, clock, standard).await;
        let before = octets(bench, service.pid());
        let cost = measure(&mut caller, process, clock, case).await;
        let after = octets(bench, service.pid());
        let all = (inputs * case.jobs) as f64;
        let bytes = [after.0 - before.0, after.1 - before.1].map(|it| it as f64 / all);
        let name = if stream {
            format!("{inputs} streamed")
        } else {
            inputs.to_string()
        };
        let (wall_ratio, cpu_ratio) = (cost.wall_ms / beside.wall_ms, cost.cpu_ms / beside.cpu_ms);
        let mut cells = vec![name, case.jobs.to_string(), short(cost.wall_ms * all / 1000.0)];
        let numbers = [
            cost.wall_ms,
            wall_ratio,
            cost.cpu_ms,
            cpu_ratio,
            cost.peak_mb,
            bytes[0],
            bytes[1],
        ];
        cells.extend(numbers.map(short));
        table.row(&cells);
        told.push(json!({
            "inputs": inputs, "streamed": stream, "jobs": case.jobs, "ms_per_input": cost.wall_ms,
            "to_1000": wall_ratio, "cpu_ms_per_input": cost.cpu_ms, "cpu_to_1000": cpu_ratio,
            "peak_mb": cost.peak_mb, "bytes_in_per_input": bytes[0], "bytes_out_per_input": bytes[1],
        }));
    }
    tell("size", json!(told));
}

#[derive(Debug, Clone, Copy)]
struct Case {
    inputs: usize,
    jobs: usize,
    stream: bool,
}

/// Per input, but for the peak.
struct Cost {
    wall_ms: f64,
    cpu_ms: f64,
    peak_mb: f64,
}

async fn measure(caller: &mut Client, process: Process, clock: Clock, case: Case) -> Cost {
    let Case { inputs, jobs, stream } = case;
    let queue = caller.names.bulk.clone();
    process.forget_peak();
    let (begun, cpu_s) = (clock.now(), process.cpu_s());
    for job in 0..jobs {
        let texts: Vec<String> = (0..inputs).map(|n| short_text(job * inputs + n)).collect();
        let body = json!({"input": texts, "encoding_format": "base64", "stream": stream}).to_string();
        caller.send(&queue, job, body.as_bytes()).await;
    }
    let (mut ended, mut vectors) = (0, 0);
    while ended < jobs {
        let answer = caller.answer().await;
        match answer.kind.as_str() {
            "embeddings.result" | "embeddings.done" => ended += 1,
            "embeddings.chunk" => {}
            "embeddings.progress" => continue,
            _ => panic!("{}", String::from_utf8_lossy(&answer.body)),
        }
        vectors += answer
            .body
            .windows(11)
            .filter(|it| it == br#""embedding""#)
            .count();
    }
    // `"object":"embedding"` and `"embedding":"…"`; a chunk may come twice.
    assert!(vectors / 2 >= jobs * inputs, "{vectors}");
    let all = (inputs * jobs) as f64;
    Cost {
        wall_ms: ms(clock.now().since(begun)) / all,
        cpu_ms: (process.cpu_s() - cpu_s) * 1000.0 / all,
        peak_mb: process.peak_mb(),
    }
}

/// Bytes that the service has been sent by RabbitMQ, and has sent to it.
fn octets(bench: &Bench, pid: u32) -> (u64, u64) {
    let listed = bench
        .node
        .ctl("list_connections client_properties recv_oct send_oct");
    let own = format!(".{pid} ");
    let (mut sent, mut received) = (0, 0);
    for line in listed.lines().filter(|line| line.contains(&own)) {
        let mut numbers = line.rsplit('\t').map(|it| it.trim().parse::<u64>().unwrap_or(0));
        // RabbitMQ's view: what it sends is what the service receives.
        received += numbers.next().unwrap_or(0);
        sent += numbers.next().unwrap_or(0);
    }
    (received, sent)
}
