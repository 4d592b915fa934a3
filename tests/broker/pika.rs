//! The same wire, judged by a client that shares nothing with ours: Python's pika.

use crate::service::bench;
use std::path::Path;
use std::process::Command;

/// Goal: contract 3.1 and 3.2 as an independent client sees them. Method: `tests/pika/conformance.py`, run by
/// the interpreter in `.cache/venv` (`scripts/get-pika` makes it).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pika_agrees() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join(".cache/venv/bin/python");
    let imports = Command::new(&python).args(["-c", "import pika"]).output();
    if !imports.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no pika in {} (scripts/get-pika)", python.display());
        return;
    }
    let Some(bench) = bench("pika") else { return };
    let mut service = bench.serve("max_inputs = 64");
    let output = Command::new(&python)
        .arg(root.join("tests/pika/conformance.py"))
        .args([&bench.node.url, &bench.prefix])
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert!(stdout.contains("all cases passed"), "{stdout}");
    assert!(service.exited().is_none());
}
