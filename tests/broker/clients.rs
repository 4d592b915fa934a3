//! The example programs of docs/clients, run as they stand, each by its own interpreter.

use crate::caller::cosine;
use crate::service::{Bench, Service, bench};
use crate::web::{address, get};
use embeddings::clock::{Clock, Moment};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// Exit status of all three where nobody answers.
const UNAVAILABLE: i32 = 69;

/// What runs the programs, and where the service is.
struct Clients {
    url: String,
    prefix: String,
    http: String,
    /// Holds a copy of the JavaScript program beside the libraries that it imports.
    beside_libraries: tempfile::TempDir,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Python,
    JavaScript,
    Shell,
}
use Kind::{JavaScript, Python, Shell};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn python() -> PathBuf {
    root().join(".cache/venv/bin/python")
}

/// Ready to run, or `None` with a word on what is missing.
fn clients(bench: &Bench, service: &Service) -> Option<Clients> {
    let libraries = root().join(".cache/amqplib/node_modules");
    let runs = |program: &Path, argument: &str| {
        let tried = Command::new(program).arg(argument).output();
        tried.is_ok_and(|output| output.status.success())
    };
    let there = python().exists()
        && libraries.join("amqplib").is_dir()
        && runs(Path::new("jq"), "--version")
        && runs(Path::new("curl"), "--version");
    if !there {
        eprintln!("skipped: scripts/get-pika, scripts/get-amqplib, and apt install curl jq make it possible");
        return None;
    }
    let beside_libraries = tempfile::tempdir().unwrap();
    let program = root().join("docs/clients/client.mjs");
    std::fs::copy(program, beside_libraries.path().join("client.mjs")).unwrap();
    std::os::unix::fs::symlink(libraries, beside_libraries.path().join("node_modules")).unwrap();
    Some(Clients {
        url: bench.node.url.clone(),
        prefix: bench.prefix.clone(),
        http: format!("http://{}", address(service)),
        beside_libraries,
    })
}

impl Clients {
    /// The program, with its address and the seconds that it waits; its options and texts are still to come.
    fn command(&self, kind: Kind, budget: u32) -> Command {
        let mut command = match kind {
            Shell => Command::new(root().join("docs/clients/client.sh")),
            Python => {
                let mut command = Command::new(python());
                command.arg(root().join("docs/clients/client.py"));
                command
            }
            JavaScript => {
                let mut command = Command::new("node");
                command.arg(self.beside_libraries.path().join("client.mjs"));
                command
            }
        };
        if kind == Shell {
            command.env("EMBEDDINGS_HTTP", &self.http);
            command.env("EMBEDDINGS_BUDGET", budget.to_string());
        } else {
            command.args(["--url", &self.url, "--prefix", &self.prefix]);
            command.args(["--budget", &budget.to_string()]);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

/// The texts and vectors that it printed.
fn printed(output: &Output) -> Vec<(String, Vec<f32>)> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {stderr}", output.status);
    let stdout = String::from_utf8_lossy(&output.stdout);
    let lines = stdout.lines().map(|line| {
        let record: Value = serde_json::from_str(line).unwrap();
        let vector = serde_json::from_value(record["embedding"].clone()).unwrap();
        (record["text"].as_str().unwrap().to_owned(), vector)
    });
    lines.collect()
}

/// Goal: the same vectors by each program, in the order of the texts, whatever characters they have; streamed jobs
/// too. What is refused for good ends with 1 and the service's reason.
#[test]
fn each_client_prints_a_vector_for_each_text() {
    let Some(bench) = bench("clients") else { return };
    let service = bench.serve("http.listen = \"127.0.0.1:0\"\nmax_inputs = 3\nbatch_inputs = 4");
    let Some(clients) = clients(&bench, &service) else {
        return;
    };
    let texts = ["a \"quoted\" text", "zwei\nZeilen: ä, 漢", "--not an option"];
    let mut first: Option<Vec<(String, Vec<f32>)>> = None;
    for kind in [Python, JavaScript, Shell] {
        let mut command = clients.command(kind, 30);
        if kind != Shell {
            command.arg("--");
        }
        let records = printed(&command.args(texts).output().unwrap());
        let told: Vec<&str> = records.iter().map(|(text, _)| text.as_str()).collect();
        assert_eq!(told, texts, "{kind:?}");
        let same = first.get_or_insert_with(|| records.clone());
        for ((_, vector), (_, other)) in records.iter().zip(same) {
            assert_eq!(vector.len(), 384);
            assert!(cosine(vector, other) > 0.9999, "{kind:?}");
        }

        let refused = clients.command(kind, 30).args(["a"; 4]).output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{kind:?}: {said}");
        assert!(said.contains("too_many_inputs"), "{kind:?}: {said}");
    }
    let many: Vec<String> = (0..50).map(|number| format!("text number {number}")).collect();
    for kind in [Python, JavaScript] {
        let streamed = clients.command(kind, 30).arg("--stream").args(&many).output();
        let records = printed(&streamed.unwrap());
        let told: Vec<&String> = records.iter().map(|(text, _)| text).collect();
        assert_eq!(told, many.iter().collect::<Vec<_>>(), "{kind:?}");
    }
}

/// Goal: what docs/clients.md tells people to type for the JavaScript program works. Method: the block as it stands, in a shell whose
/// `node` adds where this test's broker is; npm takes what `scripts/get-amqplib` had it fetch.
#[test]
fn the_document_s_block_for_javascript_works() {
    let Some(bench) = bench("npm") else { return };
    let service = bench.serve("http.listen = \"127.0.0.1:0\"");
    let Some(clients) = clients(&bench, &service) else {
        return;
    };
    let text = std::fs::read_to_string(root().join("docs/clients.md")).unwrap();
    let mark =
        "```sh because npm's registry is needed; tests/broker/clients.rs runs it with what npm keeps\n";
    let script = text.split(mark).nth(1).unwrap().split("```").next().unwrap();
    let folder = tempfile::tempdir().unwrap();
    for name in ["client.mjs", "package.json", "package-lock.json"] {
        std::fs::copy(root().join("docs/clients").join(name), folder.path().join(name)).unwrap();
    }
    let node = format!(
        "node() {{ program=$1; shift; command node \"$program\" --url '{}' --prefix '{}' \"$@\"; }}\n",
        clients.url, clients.prefix
    );
    let done = Command::new("sh")
        .args(["-euc", &format!("{node}{script}")])
        .current_dir(folder.path())
        .env("npm_config_prefer_offline", "true")
        .env("npm_config_audit", "false")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&done.stdout);
    let vectors = told.lines().filter(|line| line.contains("\"embedding\""));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(vectors.count(), 2, "{told}");
}

/// Goal: who is refused comes back when told, and gets its vectors. Method: the service stands still until a crowd has
/// sent its jobs, and then finds room for one of them.
#[test]
fn each_client_comes_back_when_told() {
    let Some(bench) = bench("crowd") else { return };
    let service = bench.serve("http.listen = \"127.0.0.1:0\"\nmax_queue = 1\n[engine]\nthreads = 1");
    let Some(clients) = clients(&bench, &service) else {
        return;
    };
    let refused = || {
        let metrics = get(clients.http.trim_start_matches("http://"), "/metrics").body;
        let sample = metrics
            .lines()
            .find(|line| line.starts_with("embeddings_rejected_total{reason=\"queue_full\"}"));
        sample.map_or(0.0, |line| {
            line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
        })
    };
    let long = "many words make long work ".repeat(60);
    for kind in [Python, JavaScript, Shell] {
        let before = refused();
        service.signal(libc::SIGSTOP);
        let crowd: Vec<_> = (0..5)
            .map(|_| {
                clients
                    .command(kind, 60)
                    .args([long.as_str(); 16])
                    .spawn()
                    .unwrap()
            })
            .collect();
        // Until all have sent; a late one would only find more room.
        std::thread::sleep(Duration::from_secs(3));
        service.signal(libc::SIGCONT);
        let mut said = String::new();
        for one in crowd {
            let output = one.wait_with_output().unwrap();
            said.push_str(&String::from_utf8_lossy(&output.stderr));
            assert_eq!(printed(&output).len(), 16, "{kind:?}");
        }
        assert!(
            refused() > before,
            "{kind:?}: nobody was refused, so this shows nothing"
        );
        if kind != Shell {
            assert!(said.contains("overloaded: again in"), "{kind:?}: {said}");
        }
    }
}

/// Goal: nobody waits for ever: no broker, no queue, no answer each end with 69 and the reason, in time.
#[test]
fn each_client_notices_that_nobody_answers() {
    let Some(bench) = bench("nobody") else { return };
    let service = bench.serve("http.listen = \"127.0.0.1:0\"");
    let Some(mut clients) = clients(&bench, &service) else {
        return;
    };
    let ends = |clients: &Clients, kind: Kind, words: &str| {
        let clock = Clock::start();
        let output = clients.command(kind, 2).arg("a text").output().unwrap();
        let took = clock.now().since(Moment::ZERO);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(UNAVAILABLE), "{kind:?}: {said}");
        assert!(said.contains(words), "{kind:?}: {said}");
        assert!(took < Duration::from_secs(20), "{kind:?} took {took:?}");
    };
    service.signal(libc::SIGSTOP);
    ends(&clients, Python, "no answer in time");
    ends(&clients, JavaScript, "no answer in time");
    ends(&clients, Shell, "no answer from");
    service.signal(libc::SIGCONT);
    clients.prefix = format!("{}-that-nobody-has", clients.prefix);
    ends(&clients, Python, "there is no queue");
    ends(&clients, JavaScript, "there is no queue");
    clients.url = "amqp://guest:guest@127.0.0.1:1/%2f".into();
    clients.http = "http://127.0.0.1:1".into();
    ends(&clients, Python, "error: ");
    ends(&clients, JavaScript, "ECONNREFUSED");
    ends(&clients, Shell, "no answer from");
}
