//! `embeddings submit` against a running service.

use crate::caller::cosine;
use crate::service::{Bench, bench};
use serde_json::Value;

fn lines(output: &std::process::Output) -> Vec<Value> {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn vector(record: &Value) -> Vec<f32> {
    let numbers = record["embedding"].as_array().unwrap();
    numbers.iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

fn code(output: &std::process::Output) -> Option<i32> {
    output.status.code()
}

/// Goal: every line once, in order, with its number; failures are told by place and by exit code; an
/// overload is retried. Method: more jobs at once than the service's queue takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_come_back_in_order() {
    let Some(bench) = bench("submit") else { return };
    let _service = bench.serve("max_queue = 2\nmax_inputs = 16");
    let mut text: Vec<u8> = (1..=200)
        .flat_map(|n| format!("line number {n}\n").into_bytes())
        .collect();
    text.extend(b"\n\xff\nthe end");
    let fast = ["--lane", "interactive", "--job-inputs", "3", "--jobs", "12"];
    let output = bench.submit(&fast, &text);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(code(&output), Some(1), "{stderr}");
    assert!(stderr.contains("-:202: not UTF-8"), "{stderr}");
    assert!(stderr.contains("1 empty lines skipped"), "{stderr}");
    let records = lines(&output);
    assert_eq!(records.len(), 201);
    for (index, record) in records.iter().enumerate() {
        assert_eq!(record["index"], index);
        assert_eq!(record["file"], "-");
        assert_eq!(record["truncated"], false);
        let line = if index == 200 { 203 } else { index + 1 };
        assert_eq!(record["line"], line);
        assert_eq!(vector(record).len(), 384);
    }
    // Vectors belong to their texts.
    let again = bench.submit(&[], b"line number 77");
    assert_eq!(code(&again), Some(0));
    assert!(cosine(&vector(&lines(&again)[0]), &vector(&records[76])) > 0.9999);

    let many = bench.submit(&["--job-inputs", "17"], &b"x\n".repeat(17));
    let stderr = String::from_utf8_lossy(&many.stderr).into_owned();
    assert_eq!(code(&many), Some(1), "{stderr}");
    assert_eq!(stderr.matches("413 too_many_inputs").count(), 17, "{stderr}");
    let none = bench.submit(&["--model", "none"], b"x");
    assert_eq!(code(&none), Some(1));
    searches(&bench);
}

fn searches(bench: &Bench) {
    let corpus = "The cat sleeps on the warm sofa.\nStocks fell sharply on Monday.\n\n\
                  A recipe for tomato soup with basil.\n";
    let arguments = [
        "--search",
        "financial markets",
        "--search",
        "cooking",
        "--top",
        "1",
    ];
    let output = bench.submit(&arguments, corpus.as_bytes());
    assert_eq!(code(&output), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    let shown: Vec<&str> = text.lines().collect();
    assert_eq!(shown.len(), 5, "{text}");
    assert!(shown[0] == "financial markets" && shown[1].ends_with("-:2  Stocks fell sharply on Monday."));
    assert!(shown[3] == "cooking" && shown[4].ends_with("-:4  A recipe for tomato soup with basil."));
}

/// Goal: no service is no broker's fault, and both are told apart from a failure of inputs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_there_is_69() {
    let Some(bench) = bench("nobody") else { return };
    let output = bench.submit(&[], b"x");
    assert_eq!(code(&output), Some(69));
    assert!(String::from_utf8_lossy(&output.stderr).contains("does not exist"));
    let mut service = bench.serve("");
    service.signal(libc::SIGKILL);
    service.exit(crate::service::SOON);
    let output = bench.submit(&["--timeout", "1"], b"x");
    assert_eq!(code(&output), Some(69));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no service answers"));
    let nowhere = bench.submit(&["--set", "broker.url=amqp://127.0.0.1:1"], b"x");
    assert_eq!(code(&nowhere), Some(69));
    assert!(output.stdout.is_empty() && nowhere.stdout.is_empty());
    assert_eq!(code(&bench.submit(&["--jobs", "0"], b"x")), Some(2));
}
