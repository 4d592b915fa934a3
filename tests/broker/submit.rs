//! `embeddings submit` against a running service.

use crate::caller::cosine;
use crate::private::wait_for;
use crate::service::{Bench, SOON, bench};
use serde_json::Value;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// `embeddings submit` against this broker, without its arguments.
pub fn command(bench: &Bench, url: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_embeddings"));
    command
        .args(["submit", "--config", "/dev/null"])
        .arg("--set")
        .arg(format!("broker.url={url}"))
        .arg("--set")
        .arg(format!("broker.prefix={}", bench.prefix))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A file of so many lines, all different.
pub fn file_of(dir: &Path, name: &str, lines: usize) -> PathBuf {
    let text: String = (1..=lines)
        .map(|n| format!("{name} has a line {n} about {}\n", n * 7919 % 1000))
        .collect();
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// The indices in an output, which must be whole records.
pub fn indices(output: &[u8]) -> Vec<u64> {
    let text = std::str::from_utf8(output).unwrap();
    let index = |line: &str| {
        let record: Value = serde_json::from_str(line).unwrap();
        assert_eq!(record["embedding"].as_array().unwrap().len(), 384);
        record["index"].as_u64().unwrap()
    };
    text.lines().map(index).collect()
}

/// Sends a signal to a child that runs.
pub fn signal(child: &Child, signal: libc::c_int) {
    let pid = libc::pid_t::try_from(child.id()).unwrap();
    // SAFETY: the child is ours and not yet reaped, so the id is still its own.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

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

    // More lines than the service takes in one job are sent again as fewer.
    let many = bench.submit(&["--job-inputs", "40"], &b"x\n".repeat(40));
    let stderr = String::from_utf8_lossy(&many.stderr).into_owned();
    assert_eq!(code(&many), Some(0), "{stderr}");
    assert_eq!(lines(&many).len(), 40);
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

/// Goal: a streamed job's vectors leave while it is computed, and its lines are all there, in order, although the
/// service is killed under it. Method: one job of all lines, of which the first must be readable before the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_job_is_read_while_it_is_computed() {
    const LINES: usize = 3000;
    let Some(bench) = bench("reads") else { return };
    let mut service = bench.serve("");
    let dir = tempfile::tempdir().unwrap();
    let input = file_of(dir.path(), "in", LINES);
    let mut submit = command(&bench, &bench.node.url)
        .args(["--jobs", "1", "--job-inputs", "3000"])
        .arg(&input)
        .spawn()
        .unwrap();
    let mut stdout = submit.stdout.take().unwrap();
    let mut read = vec![0; 64 << 10];
    stdout.read_exact(&mut read).unwrap();
    assert!(submit.try_wait().unwrap().is_none());
    service.signal(libc::SIGKILL);
    service.exit(SOON);
    let _service = bench.serve("");
    stdout.read_to_end(&mut read).unwrap();
    let output = submit.wait_with_output().unwrap();
    assert_eq!(code(&output), Some(0), "{output:?}");
    assert!(indices(&read).into_iter().eq(0..LINES as u64));
}

/// Goal: many files, one after the other; what cannot be read is told by name and harms no other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_file_harms_no_other() {
    const FILES: usize = 1500;
    let Some(bench) = bench("files") else { return };
    let _service = bench.serve("");
    let dir = tempfile::tempdir().unwrap();
    let mut files: Vec<PathBuf> = (0..FILES)
        .map(|n| file_of(dir.path(), &format!("f{n}"), 1))
        .collect();
    files.insert(700, dir.path().join("missing"));
    files.insert(900, dir.path().to_owned());
    // Fewer descriptors than files: they are opened one at a time.
    let script = "ulimit -n 64; exec \"$@\"";
    let submit = command(&bench, &bench.node.url);
    let mut limited = Command::new("sh");
    limited.args(["-c", script, "sh"]).arg(submit.get_program());
    let output = limited.args(submit.get_args()).args(&files).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(code(&output), Some(1), "{stderr}");
    assert!(stderr.contains("missing: cannot be opened"), "{stderr}");
    assert!(
        stderr.contains("is a directory; name the files in it"),
        "{stderr}"
    );
    assert!(stderr.contains("2 failed"), "{stderr}");
    assert!(indices(&output.stdout).into_iter().eq(0..FILES as u64));
}

/// Highest resident memory of a submit of so many lines, in MiB.
fn peak_mib(bench: &Bench, lines: usize) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("in");
    let text: String = (0..lines).map(|n| format!("{n}\n")).collect();
    std::fs::write(&path, text).unwrap();
    let mut submit = command(bench, &bench.node.url)
        .arg("--output")
        .arg(dir.path().join("out"))
        .arg(path)
        .spawn()
        .unwrap();
    let status = PathBuf::from(format!("/proc/{}/status", submit.id()));
    let mut peak_kib = 0;
    // A process that has ended shows no memory: the last look before counts.
    while submit.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let seen = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let seen = seen.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        peak_kib = seen.unwrap_or(peak_kib);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let output = submit.wait_with_output().unwrap();
    assert_eq!(code(&output), Some(0), "{output:?}");
    let written = std::fs::read(dir.path().join("out")).unwrap();
    assert!(indices(&written).into_iter().eq(0..lines as u64));
    peak_kib / 1024
}

/// Goal: memory is bounded by what is under way and not by the input.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_does_not_grow_with_the_input() {
    /// The window: 32 jobs of 256 lines with vectors of 1.5 KiB are 13 MiB; the rest is code and buffers.
    const PEAK_MIB_MAX: u64 = 96;
    let Some(bench) = bench("memory") else { return };
    let _service = bench.serve("");
    let peak = peak_mib(&bench, 20_000);
    eprintln!("20000 lines: {peak} MiB");
    assert!((4..PEAK_MIB_MAX).contains(&peak), "{peak} MiB");
}

/// Goal: what was asked for and cannot be is said at once, with its own exit code, and no file is touched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outputs_are_not_destroyed() {
    let Some(bench) = bench("outputs") else { return };
    let _service = bench.serve("");
    let dir = tempfile::tempdir().unwrap();
    let input = file_of(dir.path(), "in", 3);
    let out = dir.path().join("out");
    let submit = |arguments: &[&str]| {
        let output = command(&bench, &bench.node.url)
            .args(arguments)
            .arg(&input)
            .output()
            .unwrap();
        (
            code(&output),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let out_name = out.to_str().unwrap();
    assert_eq!(submit(&["--output", out_name]).0, Some(0));
    let first = std::fs::read(&out).unwrap();
    let (refused, why) = submit(&["--output", out_name]);
    assert!(
        refused == Some(2) && why.contains("--resume goes on with it"),
        "{why}"
    );
    for wrong in [
        &["--resume"][..],
        &["--resume", "--output", "/dev/null"],
        &["--resume", "--force", "--output", out_name],
        &["--output", input.to_str().unwrap(), "--force"],
        &["--output", dir.path().to_str().unwrap()],
    ] {
        assert_eq!(submit(wrong).0, Some(2), "{wrong:?}");
    }
    assert_eq!(std::fs::read(&out).unwrap(), first);
    assert_eq!(submit(&["--output", out_name, "--resume"]).0, Some(0));
    assert_eq!(submit(&["--output", out_name, "--force"]).0, Some(0));
    assert_eq!(std::fs::read(&out).unwrap(), first);
    assert_eq!(submit(&["--output", "/dev/null"]).0, Some(0));
    let (full, why) = submit(&["--output", "/dev/full"]);
    assert!(full == Some(74) && why.contains("No space left"), "{why}");
}

/// Goal: a reader that has gone ends it quietly; a signal ends it with all that is finished written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_ends_when_it_is_told_to() {
    let Some(bench) = bench("ends") else { return };
    let _service = bench.serve("");
    let dir = tempfile::tempdir().unwrap();
    let input = file_of(dir.path(), "in", 20_000);
    let mut reading = command(&bench, &bench.node.url).arg(&input).spawn().unwrap();
    let mut begin = [0; 1000];
    reading.stdout.take().unwrap().read_exact(&mut begin).unwrap();
    let output = reading.wait_with_output().unwrap();
    assert_eq!((code(&output), output.stderr.len()), (Some(141), 0), "{output:?}");

    for (number, exit) in [(libc::SIGINT, 130), (libc::SIGTERM, 143)] {
        let out = dir.path().join(format!("out-{exit}"));
        let submit = command(&bench, &bench.node.url)
            .arg("--output")
            .arg(&out)
            .arg(&input)
            .spawn()
            .unwrap();
        wait_for(SOON, "something is written", || {
            std::fs::metadata(&out).is_ok_and(|out| out.len() > 100_000)
        });
        signal(&submit, number);
        let output = submit.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(code(&output), Some(exit), "{stderr}");
        assert!(stderr.contains("with --resume goes on"), "{stderr}");
        let written = std::fs::read(&out).unwrap();
        let count = indices(&written).len() as u64;
        assert!(written.ends_with(b"\n") && indices(&written).into_iter().eq(0..count));
    }
}
