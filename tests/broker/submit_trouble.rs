//! `embeddings submit` while things die around it, and after it has died itself.

use crate::private::{Private, wait_for};
use crate::proxy::Proxy;
use crate::service::{Bench, SOON, bench};
use crate::submit::{command, file_of, indices, signal};
use std::path::Path;
use std::process::{Child, Output};
use std::time::Duration;

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |file| file.len())
}

fn spawn(bench: &Bench, url: &str, input: &Path, out: &Path, more: &[&str]) -> Child {
    command(bench, url)
        .args(more)
        .arg("--output")
        .arg(out)
        .arg(input)
        .spawn()
        .unwrap()
}

/// Waits for its end; its exit code and its words.
fn ended(submit: Child) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = submit.wait_with_output().unwrap();
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

fn run(bench: &Bench, input: &Path, out: &Path, more: &[&str]) -> (Option<i32>, String) {
    ended(spawn(bench, &bench.node.url, input, out, more))
}

/// Goal: connections that break under it cost no line and double none. Method: three cuts, during the last of which
/// nobody may connect for a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_connections_cost_no_line() {
    const LINES: usize = 12_000;
    let Some(bench) = bench("cuts") else { return };
    let _service = bench.serve("");
    let proxy = Proxy::to(bench.node.address());
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (file_of(dir.path(), "in", LINES), dir.path().join("out"));
    let submit = spawn(&bench, &bench.node.url_at(proxy.address), &input, &out, &[]);
    for cut in 1..=3 {
        wait_for(SOON, "it is connected", || proxy.is_used());
        // What had come before the last cut is written meanwhile; what is written then came by the new connection.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let before = size(&out);
        wait_for(SOON, "it gets on", || size(&out) > before + 500_000);
        proxy.refuse(cut == 3);
        proxy.cut();
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    proxy.refuse(false);
    let (code, stderr) = ended(submit);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(
        stderr.matches("lost the connection to the broker").count(),
        3,
        "{stderr}"
    );
    let written = std::fs::read(&out).unwrap();
    assert!(indices(&written).into_iter().eq(0..LINES as u64));
}

/// Goal: the broker is killed and started again, later the service too; no line is lost and none is doubled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_survives_broker_and_service() {
    const LINES: usize = 15_000;
    let Some(bench) = bench("restarts") else { return };
    let node = Private::start();
    let settings = "disconnect_kill_ms = 60000\nheartbeat_timeout_ms = 90000";
    let mut service = bench.start(&node.url, settings);
    service.ready();
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (file_of(dir.path(), "in", LINES), dir.path().join("out"));
    let submit = spawn(&bench, &node.url, &input, &out, &[]);
    wait_for(SOON, "something is written", || size(&out) > 1_000_000);
    node.kill();
    let before = size(&out);
    node.start_again();
    wait_for(SOON, "it goes on", || size(&out) > before + 1_000_000);
    service.signal(libc::SIGKILL);
    service.exit(SOON);
    let _service = bench.start(&node.url, settings);
    let (code, stderr) = ended(submit);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("connected to the broker again"), "{stderr}");
    let written = std::fs::read(&out).unwrap();
    assert!(indices(&written).into_iter().eq(0..LINES as u64));
}

/// Goal: killed at any moment, also in the midst of a record, it goes on and the output is the same as that of a run
/// that nobody disturbed. Method: kills at several sizes of the output, some with the last record torn after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_goes_on_after_its_own_death() {
    const LINES: usize = 2000;
    let Some(bench) = bench("resumes") else { return };
    let _service = bench.serve("");
    let dir = tempfile::tempdir().unwrap();
    let (input, whole) = (file_of(dir.path(), "in", LINES), dir.path().join("whole"));
    assert_eq!(run(&bench, &input, &whole, &[]).0, Some(0));
    let out = dir.path().join("out");
    for (death, torn) in [
        (1u64, false),
        (1_000_000, true),
        (3_000_000, false),
        (5_000_000, true),
    ] {
        let submit = spawn(&bench, &bench.node.url, &input, &out, &["--resume"]);
        wait_for(SOON, "it gets on", || size(&out) >= death);
        signal(&submit, libc::SIGKILL);
        assert_eq!(ended(submit).0, None);
        if torn {
            let file = std::fs::OpenOptions::new().write(true).open(&out).unwrap();
            file.set_len(size(&out) - 700).unwrap();
        }
    }
    let there = size(&out);
    let (code, stderr) = run(&bench, &input, &out, &["--resume"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("half a record at the end is cut off"), "{stderr}");
    assert!(there > 4_000_000 && stderr.contains("there before"), "{stderr}");
    let (whole, written) = (std::fs::read(&whole).unwrap(), std::fs::read(&out).unwrap());
    assert!(indices(&written).into_iter().eq(0..LINES as u64));
    assert_eq!(whole.len(), written.len());
    assert!(whole == written, "equal to the last byte");
}

/// Goal: what does not fit is refused with its place and nothing is touched; what had failed is tried again and put
/// where it belongs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_there_is_held_against_the_input() {
    let Some(bench) = bench("holds") else { return };
    let _service = bench.serve("");
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (file_of(dir.path(), "in", 300), dir.path().join("out"));
    assert_eq!(run(&bench, &input, &out, &[]).0, Some(0));
    let whole = std::fs::read_to_string(&out).unwrap();
    let text = std::fs::read_to_string(&input).unwrap();
    let begun: String = whole.split_inclusive('\n').take(200).collect();
    std::fs::write(&out, &begun).unwrap();

    std::fs::write(&input, text.replace("line 150 ", "lines 150 ")).unwrap();
    let (code, stderr) = run(&bench, &input, &out, &["--resume"]);
    assert_eq!(code, Some(2), "{stderr}");
    let place = format!("{}:150 has another text now", input.display());
    assert!(stderr.contains(&place), "{stderr}");
    assert_eq!(std::fs::read_to_string(&out).unwrap(), begun);
    std::fs::write(&input, &text).unwrap();

    // Another model: as if the first record had been made by it.
    let first = begun.lines().next().unwrap().to_owned() + "\n";
    let other = first
        .replacen("\"embedding\":[", "\"embedding\":[9", 1)
        .replace("[9-", "[9");
    std::fs::write(&out, &other).unwrap();
    let (code, stderr) = run(&bench, &input, &out, &["--resume"]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("the model makes other vectors"), "{stderr}");
    assert_eq!(std::fs::read_to_string(&out).unwrap(), other);

    // An earlier run in which three lines had failed, one of them the last but one that it came to.
    let gaps = [0, 77, 198];
    let holed: String = begun
        .split_inclusive('\n')
        .enumerate()
        .filter(|(index, _)| !gaps.contains(index))
        .map(|(_, record)| record)
        .collect();
    std::fs::write(&out, holed).unwrap();
    let (code, stderr) = run(&bench, &input, &out, &["--resume"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(
        stderr.contains("3 lines that had failed are tried again"),
        "{stderr}"
    );
    assert_eq!(std::fs::read_to_string(&out).unwrap(), whole);
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 2, "nothing is left beside the output");
}

/// Goal: where nobody comes back it gives up in time, says so, and what is written can be gone on with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patience_has_an_end() {
    let Some(bench) = bench("patience") else { return };
    let mut service = bench.serve("");
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (file_of(dir.path(), "in", 3000), dir.path().join("out"));
    let submit = spawn(&bench, &bench.node.url, &input, &out, &["--timeout", "4"]);
    wait_for(SOON, "something is written", || size(&out) > 100_000);
    service.signal(libc::SIGKILL);
    service.exit(SOON);
    let (code, stderr) = ended(submit);
    assert_eq!(code, Some(69), "{stderr}");
    assert!(
        stderr.contains("nothing got on for 4 s") && stderr.contains("with --resume"),
        "{stderr}"
    );
    let count = indices(&std::fs::read(&out).unwrap()).len();
    assert!(count < 3000);
    let _service = bench.serve("");
    let (code, stderr) = run(&bench, &input, &out, &["--resume"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains(&format!("{count} there before")), "{stderr}");
    assert!(indices(&std::fs::read(&out).unwrap()).into_iter().eq(0..3000));
}

/// Goal: a file that could not be read and can be now is embedded by naming it last; named where it was, it would shift what is there,
/// which is refused. A file that can no longer be read is told as what it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_can_be_read_again_is_named_last() {
    let Some(bench) = bench("again") else { return };
    let _service = bench.serve("");
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let submit = |names: [&str; 3]| {
        let files = names.map(|name| dir.path().join(name));
        let mut submit = command(&bench, &bench.node.url);
        submit.args(["--resume", "--output"]).arg(&out).args(files);
        ended(submit.spawn().unwrap())
    };
    file_of(dir.path(), "first", 50);
    file_of(dir.path(), "third", 50);
    let (code, stderr) = submit(["first", "second", "third"]);
    assert_eq!(code, Some(1), "{stderr}");
    let written = std::fs::read(&out).unwrap();

    file_of(dir.path(), "second", 50);
    let (code, stderr) = submit(["first", "second", "third"]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("the input has changed"), "{stderr}");
    let (code, stderr) = submit(["gone", "third", "second"]);
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("gone: cannot be opened"), "{stderr}");
    assert!(std::fs::read(&out).unwrap() == written);

    let (code, stderr) = submit(["first", "third", "second"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(indices(&std::fs::read(&out).unwrap()).into_iter().eq(0..150));
}
