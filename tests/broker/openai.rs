//! OpenAI's route, judged by OpenAI's own clients: Python's, JavaScript's, and LangChain's on top of it.

use crate::service::bench;
use crate::web::address;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::fmt::Write as _;
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

/// A folder with the vocabulary that `tiktoken` else fetches from the network, under the name by which it looks for it: the
/// SHA-1 of its URL. It is written from our own copy, and `tiktoken` compares its SHA-256 with the one that it expects.
fn vocabulary() -> tempfile::TempDir {
    let library = tiktoken_rs::cl100k_base().unwrap();
    let mut text = String::new();
    for id in 0..100_256 {
        let token = STANDARD.encode(library.decode_bytes(&[id]).unwrap());
        writeln!(text, "{token} {id}").unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("9b5ad71b2ce5302211f9c61530b329a4922fc6a4"),
        text,
    )
    .unwrap();
    folder
}

/// Goal: the clients work unchanged by base URL: batches, base64, token ids, dimensions, errors in their shape, and their own
/// retries over a crowd that is refused. Method: `tests/openai/`, run by their own interpreters.
#[test]
fn openai_s_own_clients_agree_http() {
    let Some(clients) = clients() else { return };
    let Some(bench) = bench("openai") else { return };
    let settings = format!("http.listen = \"127.0.0.1:0\"\nmax_queue = {MAX_QUEUE}");
    let mut service = bench.serve(&settings);
    let base = format!("http://{}/v1", address(&service));
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openai");
    let vocabulary = vocabulary();
    let mut python = Command::new(clients.join("venv/bin/python"));
    python
        .arg(tests.join("client.py"))
        .arg(&base)
        .arg(MAX_QUEUE.to_string())
        .env("TIKTOKEN_CACHE_DIR", vocabulary.path());
    passes(&python.output().unwrap());
    let mut node = Command::new("node");
    node.arg(tests.join("client.mjs"))
        .arg(&base)
        .env("OPENAI_FOLDER", &clients);
    passes(&node.output().unwrap());
    assert!(service.exited().is_none());
}
