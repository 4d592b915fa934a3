//! How long a model takes from its folder to its first vector: `cargo bench --bench load [-- PROGRAM…]`.
//!
//! Every program loads the model in each precision, in turns, in a process of its own, `ROUNDS` times with its files in
//! the page cache: `embeddings model check --json`, which says how long the load took. Without a name the program of
//! this build is measured; with two, the ratio of their medians is that of before and after. `MODEL_DIR` names another
//! folder than `.cache/models/all-MiniLM-L6-v2`.

use serde_json::Value;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const ROUNDS: usize = 15;
const PRECISIONS: [&str; 4] = ["f32", "bf16", "int8", "auto"];

fn main() {
    // `cargo bench` adds an option of its own.
    let mut programs: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"))
        .collect();
    if programs.is_empty() {
        programs.push(env!("CARGO_BIN_EXE_embeddings").to_owned());
    }
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/models/all-MiniLM-L6-v2");
    let model = std::env::var_os("MODEL_DIR").map_or(own, PathBuf::from);
    assert!(model.is_dir(), "{} is no folder", model.display());

    println!("| precision | program | median ms | least ms | one sentence ms | peak MB | of the first |");
    println!("|---|---|---|---|---|---|---|");
    for precision in PRECISIONS {
        let mut taken = vec![Vec::new(); programs.len()];
        let (mut first_vector, mut peak) = (vec![0.0; programs.len()], vec![0; programs.len()]);
        for round in 0..=ROUNDS {
            for (at, program) in programs.iter().enumerate() {
                let (load_ms, embed_ms, bytes) = load(program, &model, precision);
                // The first round brings program and model into the page cache.
                if round > 0 {
                    taken[at].push(load_ms);
                    first_vector[at] = embed_ms;
                    peak[at] = peak[at].max(bytes);
                }
            }
        }
        let mut medians = Vec::new();
        for (at, program) in programs.iter().enumerate() {
            taken[at].sort_by(f64::total_cmp);
            let median = taken[at][ROUNDS / 2];
            medians.push(median);
            println!(
                "| {precision} | {program} | {median:.0} | {:.0} | {:.1} | {} | {:.2} |",
                taken[at][0],
                first_vector[at],
                peak[at] / 1000,
                median / medians[0]
            );
        }
    }
}

/// Milliseconds to load, milliseconds to embed a sentence, and the peak of memory in kB.
fn load(program: &str, model: &Path, precision: &str) -> (f64, f64, u64) {
    let set = |key: &str, value: &str| ["--set".to_owned(), format!("{key}={value}")];
    #[expect(clippy::zombie_processes, reason = "`wait4` waits for it, and says more")]
    let mut child = Command::new(program)
        .args(["model", "check", "bench", "--json", "--config", "/dev/null"])
        .args(set("default_model", "bench"))
        .args(set("models.bench.path", &model.display().to_string()))
        .args(set("models.bench.precision", precision))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("failed to start {program}: {error}"));
    let mut text = String::new();
    let mut stdout = child.stdout.take().expect("a pipe");
    stdout.read_to_string(&mut text).expect("text");
    let (mut status, id) = (0, child.id() as libc::pid_t);
    // SAFETY: numbers alone make a valid `rusage`, and both places outlive the call.
    let (ended, usage) = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        (libc::wait4(id, &raw mut status, 0, &raw mut usage), usage)
    };
    assert!(ended == id && status == 0, "{program} fails with {status}");
    let answer: Value = serde_json::from_str(&text).expect("JSON");
    let ms = |key: &str| answer[key].as_f64().expect("milliseconds");
    (ms("load_ms"), ms("embed_ms"), usage.ru_maxrss as u64)
}
