//! OpenAI's route, judged by OpenAI's own clients: Python's, JavaScript's, and LangChain's on top of it.

use crate::service::bench;
use crate::web::address;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Interactive jobs that may be here: small, so that a crowd meets refusals.
const MAX_QUEUE: usize = 4;

/// Where `scripts/get-openai` puts the clients, if it did.
fn clients() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/openai");
    let there = folder.join("venv/bin/python").exists() && folder.join("node_modules/openai").is_dir();
    if !there {
        eprintln!("skipped: no clients in {} (scripts/get-openai)", folder.display());
    }
    there.then_some(folder)
}

fn passes(output: &Output) {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert!(stdout.contains("all cases passed"), "{stdout}");
}

/// Goal: the clients work unchanged by base URL: batches, base64, dimensions, errors in their shape, and their own retries
/// over a crowd that is refused. Method: `tests/openai/`, run by their own interpreters.
#[test]
fn openai_s_own_clients_agree_http() {
    let Some(clients) = clients() else { return };
    let Some(bench) = bench("openai") else { return };
    let settings = format!("http.listen = \"127.0.0.1:0\"\nmax_queue = {MAX_QUEUE}");
    let mut service = bench.serve(&settings);
    let base = format!("http://{}/v1", address(&service));
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openai");
    let mut python = Command::new(clients.join("venv/bin/python"));
    python
        .arg(tests.join("client.py"))
        .arg(&base)
        .arg(MAX_QUEUE.to_string());
    passes(&python.output().unwrap());
    let mut node = Command::new("node");
    node.arg(tests.join("client.mjs"))
        .arg(&base)
        .env("OPENAI_FOLDER", &clients);
    passes(&node.output().unwrap());
    assert!(service.exited().is_none());
}
