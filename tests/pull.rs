//! Goal: `embeddings model pull` installs all of a model or nothing, goes on after a cut, and needs no network
//! for what it has. Method: the real binary against a server in this test that speaks the Hub's protocol.

use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

const ID: &str = "test-org/tiny-model";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server does and what it was asked.
#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// Cut answers with the weights after so many bytes, so many times.
    cut: Option<(usize, usize)>,
    /// Checksum to claim for the weights instead of the true one.
    claimed: Option<String>,
    /// Requests as `METHOD PATH range`.
    log: Vec<String>,
}

/// A Hub on this machine.
struct Hub {
    endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Hub {
    fn start() -> Hub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State {
            files: model(),
            ..State::default()
        }));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || answer(stream, &shared));
            }
        });
        Hub { endpoint, state }
    }

    fn weights(&self) -> Vec<u8> {
        self.state.lock().unwrap().files["model.safetensors"].clone()
    }

    /// Ranges in which the weights were asked for, leaving out questions for their size.
    fn ranges(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let of_weights = state
            .log
            .iter()
            .filter(|line| line.contains("/model.safetensors "));
        let ranges = of_weights
            .filter_map(|line| line.rsplit(' ').next())
            .filter(|range| *range != "bytes=0-0");
        ranges.map(str::to_owned).collect()
    }
}

/// A model's files, and some that it does not need.
fn model() -> BTreeMap<String, Vec<u8>> {
    let data: Vec<u8> = (0..300_000u32).flat_map(|n| n.to_le_bytes()).collect();
    let header =
        json!({"w": {"dtype": "F32", "shape": [300_000], "data_offsets": [0, data.len()]}}).to_string();
    let mut weights = (header.len() as u64).to_le_bytes().to_vec();
    weights.extend_from_slice(header.as_bytes());
    weights.extend_from_slice(&data);
    let modules = json!([
        {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]);
    let text = |value: serde_json::Value| value.to_string().into_bytes();
    BTreeMap::from([
        ("modules.json".to_owned(), text(modules)),
        (
            "config.json".to_owned(),
            text(
                json!({"model_type": "bert", "vocab_size": 240, "hidden_size": 384, "num_hidden_layers": 1,
                "num_attention_heads": 12, "intermediate_size": 64, "max_position_embeddings": 64}),
            ),
        ),
        (
            "tokenizer.json".to_owned(),
            include_bytes!("golden/cls/tokenizer.json").to_vec(),
        ),
        (
            "1_Pooling/config.json".to_owned(),
            text(json!({"pooling_mode_mean_tokens": true})),
        ),
        ("model.safetensors".to_owned(), weights),
        ("pytorch_model.bin".to_owned(), vec![0; 1000]),
        ("onnx/model.onnx".to_owned(), vec![0; 1000]),
        ("README.md".to_owned(), b"hello".to_vec()),
    ])
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Answers one request and closes the connection.
fn answer(mut stream: TcpStream, state: &Mutex<State>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap())
        .lines()
        .map_while(Result::ok);
    let first = lines.next().unwrap_or_default();
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let header = |line: String| line.to_lowercase().strip_prefix("range: ").map(str::to_owned);
    let range = lines
        .by_ref()
        .take_while(|line| !line.is_empty())
        .filter_map(header)
        .last();
    let mut state = state.lock().unwrap();
    state
        .log
        .push(format!("{path} {}", range.as_deref().unwrap_or("-")));

    let plain = path.split('?').next().unwrap_or_default();
    if plain == format!("/api/models/{ID}/revision/main") {
        let weights = state
            .claimed
            .clone()
            .unwrap_or_else(|| hex(&state.files["model.safetensors"]));
        let siblings = state.files.iter().map(|(name, bytes)| match name.as_str() {
            "model.safetensors" => json!({"rfilename": name, "size": bytes.len(),
                "lfs": {"sha256": weights, "size": bytes.len(), "pointerSize": 134}}),
            _ => json!({"rfilename": name, "size": bytes.len()}),
        });
        let body = json!({"id": ID, "sha": COMMIT, "siblings": siblings.collect::<Vec<_>>()}).to_string();
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}",
            body.len()
        );
        let _ = write!(stream, "{head}\r\nConnection: close\r\n\r\n{body}");
        return;
    }
    let name = plain
        .strip_prefix(&format!("/{ID}/resolve/{COMMIT}/"))
        .unwrap_or_default()
        .to_owned();
    let Some(bytes) = state.files.get(&name).cloned() else {
        let _ = write!(
            stream,
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        return;
    };
    let bounds = range
        .as_deref()
        .and_then(|range| range.strip_prefix("bytes="))
        .unwrap_or("0-")
        .to_owned();
    let (from, to) = bounds.split_once('-').unwrap();
    let from: usize = from.parse().unwrap();
    let to = to.parse::<usize>().map_or(bytes.len(), |last| last + 1);
    if from >= bytes.len() {
        let _ = write!(
            stream,
            "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        return;
    }
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\nETag: \"{}\"\r\nx-repo-commit: {COMMIT}\r\nContent-Range: bytes {from}-{}/{}",
        hex(&bytes),
        to - 1,
        bytes.len()
    );
    let _ = write!(
        stream,
        "{head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        to - from
    );
    let mut part = &bytes[from..to];
    if let Some((after, times)) = state.cut
        && times > 0
        && name == "model.safetensors"
        && part.len() > after
    {
        part = &part[..after];
        state.cut = Some((after, times - 1));
    }
    let _ = stream.write_all(part);
}

/// A machine of its own for the binary.
struct Home(TempDir);

impl Home {
    fn new() -> Home {
        Home(tempfile::tempdir().unwrap())
    }

    fn pull(&self, endpoint: &str, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_embeddings"))
            .env_clear()
            .env("HOME", self.0.path())
            .env("STATE_DIRECTORY", self.0.path().join("state"))
            .env("CACHE_DIRECTORY", self.0.path().join("cache"))
            .env("HF_ENDPOINT", endpoint)
            .args(["model", "pull"])
            .args(args)
            .args(["--config", "/dev/null"])
            .output()
            .unwrap()
    }

    fn models(&self) -> PathBuf {
        self.0.path().join("state/models")
    }

    /// Everything below the models' folder, hidden folders of a half-done install included.
    fn installed(&self) -> Vec<String> {
        let mut all = Vec::new();
        walk(&self.models(), &self.models(), &mut all);
        all.sort();
        all
    }
}

fn walk(root: &Path, dir: &Path, all: &mut Vec<String>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.path().is_dir() {
            true => walk(root, &entry.path(), all),
            false => all.push(entry.path().strip_prefix(root).unwrap().display().to_string()),
        }
    }
}

const NEEDED: [&str; 6] = [
    "tiny-model/.source.json",
    "tiny-model/1_Pooling/config.json",
    "tiny-model/config.json",
    "tiny-model/model.safetensors",
    "tiny-model/modules.json",
    "tiny-model/tokenizer.json",
];

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_pull_installs_what_the_model_needs_and_only_that() {
    let (hub, home) = (Hub::start(), Home::new());
    let output = home.pull(&hub.endpoint, &[ID, "--sha256", &hex(&hub.weights())]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        String::from_utf8_lossy(&output.stdout).starts_with("installed tiny-model: bert, 384 dimensions")
    );
    assert_eq!(home.installed(), NEEDED);
    assert_eq!(
        std::fs::read(home.models().join("tiny-model/model.safetensors")).unwrap(),
        hub.weights()
    );
    let log = hub.state.lock().unwrap().log.join("\n");
    assert!(
        !log.contains("pytorch") && !log.contains("onnx") && !log.contains("README"),
        "{log}"
    );
}

#[test]
fn a_cut_connection_is_taken_up_where_it_was_cut() {
    let (hub, home) = (Hub::start(), Home::new());
    hub.state.lock().unwrap().cut = Some((500_000, 2));
    let output = home.pull(&hub.endpoint, &[ID]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(home.installed(), NEEDED);
    assert_eq!(
        std::fs::read(home.models().join("tiny-model/model.safetensors")).unwrap(),
        hub.weights()
    );
    let starts: Vec<usize> = hub
        .ranges()
        .iter()
        .map(|range| {
            range
                .trim_start_matches("bytes=")
                .trim_end_matches('-')
                .parse()
                .unwrap()
        })
        .collect();
    assert_eq!(starts.len(), 3, "{starts:?}");
    assert!(
        starts[0] == 0 && starts[1] > 0 && starts[2] > starts[1],
        "{starts:?}"
    );
}

#[test]
fn a_checksum_that_does_not_match_installs_nothing() {
    let (hub, home) = (Hub::start(), Home::new());
    let output = home.pull(&hub.endpoint, &[ID, "--sha256", &"0".repeat(64)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("--sha256 asks for 0000"),
        "{}",
        stderr(&output)
    );
    assert_eq!(
        hub.ranges(),
        Vec::<String>::new(),
        "the weights were fetched in vain"
    );
    // The Hub says one thing and sends another: damaged on the way.
    hub.state.lock().unwrap().claimed = Some("1".repeat(64));
    let output = home.pull(&hub.endpoint, &[ID]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("the Hub says 1111"),
        "{}",
        stderr(&output)
    );
    assert_eq!(home.installed(), Vec::<String>::new());
    // And what was damaged is not taken for good the next time.
    hub.state.lock().unwrap().claimed = None;
    let output = home.pull(&hub.endpoint, &[ID]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(home.installed(), NEEDED);
}

#[test]
fn the_second_pull_needs_no_network() {
    let (hub, home) = (Hub::start(), Home::new());
    assert!(home.pull(&hub.endpoint, &[ID]).status.success());
    // Nobody listens on this port: it was just given back.
    let closed = format!(
        "http://{}",
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    );
    let again = home.pull(&closed, &[ID]);
    assert!(again.status.success(), "{}", stderr(&again));
    assert!(String::from_utf8_lossy(&again.stdout).contains("is installed already"));
    std::fs::remove_dir_all(home.models()).unwrap();
    let again = home.pull(&closed, &[ID]);
    assert!(again.status.success(), "{}", stderr(&again));
    assert!(
        stderr(&again).contains("using what an earlier pull left in the cache"),
        "{}",
        stderr(&again)
    );
    assert_eq!(home.installed(), NEEDED);
    let other = home.pull(&closed, &["test-org/other"]);
    assert_eq!(other.status.code(), Some(1));
    assert!(
        stderr(&other).contains("failed to reach http://127.0.0.1:"),
        "{}",
        stderr(&other)
    );
}

#[test]
fn an_unknown_model_and_an_unusable_one_are_refused_clearly() {
    let (hub, home) = (Hub::start(), Home::new());
    let output = home.pull(&hub.endpoint, &["test-org/absent"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("has no model test-org/absent at revision main"),
        "{}",
        stderr(&output)
    );
    hub.state.lock().unwrap().files.remove("model.safetensors");
    hub.state
        .lock()
        .unwrap()
        .files
        .insert("model.safetensors.bak".to_owned(), Vec::new());
    let output = home.pull(&hub.endpoint, &[ID, "--name", "../../etc"]);
    assert!(stderr(&output).contains("model name"), "{}", stderr(&output));
    assert_eq!(home.installed(), Vec::<String>::new());
}

#[test]
fn a_model_is_replaced_only_when_asked() {
    let (hub, home) = (Hub::start(), Home::new());
    assert!(home.pull(&hub.endpoint, &[ID]).status.success());
    std::fs::write(
        home.models().join("tiny-model/.source.json"),
        "{\"from\":\"elsewhere\"}",
    )
    .unwrap();
    let output = home.pull(&hub.endpoint, &[ID]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("--replace replaces it"),
        "{}",
        stderr(&output)
    );
    let output = home.pull(&hub.endpoint, &[ID, "--replace"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(home.installed(), NEEDED);
    let source = std::fs::read_to_string(home.models().join("tiny-model/.source.json")).unwrap();
    assert!(source.contains(ID) && source.contains(COMMIT), "{source}");
}
