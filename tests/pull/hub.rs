//! A Hub on this machine: it speaks the Hub's protocol, and misbehaves as it is told to.

use serde_json::json;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

pub const ID: &str = "test-org/tiny-model";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const WEIGHTS: &str = "model.safetensors";

/// A request.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    pub path: String,
    pub range: Option<String>,
    pub if_range: Option<String>,
    pub authorization: Option<String>,
}

/// What the server has and does.
#[derive(Default)]
pub struct State {
    pub files: BTreeMap<String, Vec<u8>>,
    /// Further names of the one model that it has.
    pub names: Vec<String>,
    /// Commit that every branch and tag leads to.
    pub commit: String,
    /// Cut answers with the weights after so many bytes, so many times.
    pub cut: Option<(usize, usize)>,
    /// Send so many bytes of the weights and then nothing, so many times.
    pub silent: Option<(usize, usize)>,
    /// Checksums to claim in place of the true ones.
    pub claimed: BTreeMap<String, String>,
    /// Sizes to claim in place of the true ones.
    pub sizes: BTreeMap<String, u64>,
    /// Answers to give to requests for the weights, in place of the right ones: status and further header lines.
    pub refusals: VecDeque<(u16, &'static str)>,
    /// Answer every request with the whole file.
    pub no_ranges: bool,
    /// Where the weights really are.
    pub store: Option<String>,
    /// So many requests for the weights must be under way before one is answered.
    pub together: usize,
    /// After the first answer with weights that was cut, they are these.
    pub later: Option<Vec<u8>>,
    /// Requests in order.
    pub log: Vec<Asked>,
    under_way: usize,
}

pub struct Hub {
    pub endpoint: String,
    shared: Arc<(Mutex<State>, Condvar)>,
}

impl Hub {
    pub fn start() -> Hub {
        Hub::with(model(300_000))
    }

    pub fn with(files: BTreeMap<String, Vec<u8>>) -> Hub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = State {
            files,
            commit: COMMIT.to_owned(),
            ..State::default()
        };
        let shared = Arc::new((Mutex::new(state), Condvar::new()));
        let hub = Hub {
            endpoint,
            shared: shared.clone(),
        };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || answer(stream, &shared));
            }
        });
        hub
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap()
    }

    pub fn weights(&self) -> Vec<u8> {
        self.state().files[WEIGHTS].clone()
    }

    /// Requests for a file.
    pub fn asked(&self, name: &str) -> Vec<Asked> {
        let end = format!("/{name}");
        let log = self.state().log.clone();
        log.into_iter()
            .filter(|asked| asked.path.ends_with(&end))
            .collect()
    }

    /// First bytes of the requests for the weights.
    pub fn starts(&self) -> Vec<usize> {
        let start = |asked: &Asked| bounds(asked.range.as_deref(), usize::MAX).0;
        self.asked(WEIGHTS).iter().map(start).collect()
    }
}

/// A model's files, with weights of so many numbers, and some files that it does not need.
pub fn model(numbers: u32) -> BTreeMap<String, Vec<u8>> {
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
            include_bytes!("../golden/cls/tokenizer.json").to_vec(),
        ),
        (
            "1_Pooling/config.json".to_owned(),
            text(json!({"pooling_mode_mean_tokens": true})),
        ),
        (WEIGHTS.to_owned(), weights(numbers, 0)),
        ("pytorch_model.bin".to_owned(), vec![0; 1000]),
        ("onnx/model.onnx".to_owned(), vec![0; 1000]),
        ("README.md".to_owned(), b"hello".to_vec()),
    ])
}

/// A safetensors file of so many numbers from `first` on.
pub fn weights(numbers: u32, first: u32) -> Vec<u8> {
    let data: Vec<u8> = (first..first + numbers).flat_map(u32::to_le_bytes).collect();
    let header =
        json!({"w": {"dtype": "F32", "shape": [numbers], "data_offsets": [0, data.len()]}}).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&data);
    file
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn git_sha1(bytes: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", bytes.len()));
    hash.update(bytes);
    hex(&hash.finalize())
}

/// From the first byte that is asked for to behind the last.
fn bounds(range: Option<&str>, len: usize) -> (usize, usize) {
    let text = range
        .and_then(|range| range.strip_prefix("bytes="))
        .unwrap_or("0-");
    let (from, to) = text.split_once('-').unwrap();
    let to = to.parse::<usize>().map_or(len, |last| last + 1);
    (from.parse().unwrap(), to.min(len))
}

/// Answers one request and closes the connection.
fn answer(mut stream: TcpStream, shared: &(Mutex<State>, Condvar)) {
    let mut lines = BufReader::new(stream.try_clone().unwrap())
        .lines()
        .map_while(Result::ok);
    let first = lines.next().unwrap_or_default();
    let mut asked = Asked {
        path: first.split(' ').nth(1).unwrap_or_default().to_owned(),
        ..Asked::default()
    };
    for line in lines.by_ref().take_while(|line| !line.is_empty()) {
        let Some((name, value)) = line.split_once(": ") else {
            continue;
        };
        let value = Some(value.to_owned());
        match name.to_lowercase().as_str() {
            "range" => asked.range = value,
            "if-range" => asked.if_range = value,
            "authorization" => asked.authorization = value,
            _ => {}
        }
    }
    let (lock, changed) = shared;
    let mut state = lock.lock().unwrap();
    state.log.push(asked.clone());
    let say = |stream: &mut TcpStream, status: u16, head: &str, body: &[u8]| {
        let len = body.len();
        let head =
            format!("HTTP/1.1 {status} Word\r\n{head}Content-Length: {len}\r\nConnection: close\r\n\r\n");
        let _ = stream
            .write_all(head.as_bytes())
            .and_then(|()| stream.write_all(body));
    };

    let plain = asked.path.split('?').next().unwrap_or_default();
    let names: Vec<String> = [ID.to_owned()].into_iter().chain(state.names.clone()).collect();
    let found = names.iter().find_map(|id| {
        let revision = plain.strip_prefix(&format!("/api/models/{id}/revision/"))?;
        Some((id, revision))
    });
    if let Some((id, revision)) = found {
        let known = ["main", "v1", "refs%2Fpr%2F1", state.commit.as_str()].contains(&revision);
        if !known {
            return say(&mut stream, 404, "", b"");
        }
        let siblings = state.files.iter().map(|(name, bytes)| {
            let size = state.sizes.get(name).copied().unwrap_or(bytes.len() as u64);
            let claimed = state.claimed.get(name).cloned();
            match name.ends_with(".safetensors") {
                true => json!({"rfilename": name, "size": size, "blobId": git_sha1(b"a pointer"),
                    "lfs": {"sha256": claimed.unwrap_or_else(|| sha256(bytes)), "size": size, "pointerSize": 134}}),
                false => json!({"rfilename": name, "size": size,
                    "blobId": claimed.unwrap_or_else(|| git_sha1(bytes))}),
            }
        });
        let body = json!({"id": id, "sha": state.commit, "siblings": siblings.collect::<Vec<_>>()});
        return say(
            &mut stream,
            200,
            "Content-Type: application/json\r\n",
            body.to_string().as_bytes(),
        );
    }
    let of_commit = |id: &String| plain.strip_prefix(&format!("/{id}/resolve/{}/", state.commit));
    let name = names
        .iter()
        .find_map(of_commit)
        .or_else(|| plain.strip_prefix("/store/"))
        .unwrap_or_default()
        .to_owned();
    let Some(bytes) = state.files.get(&name).cloned() else {
        return say(&mut stream, 404, "", b"");
    };
    let of_weights = name == WEIGHTS;
    if of_weights {
        if let Some((status, head)) = state.refusals.pop_front() {
            return say(&mut stream, status, head, b"");
        }
        if let Some(store) = &state.store {
            let head = format!("Location: {store}/store/{name}?signed=1\r\n");
            return say(&mut stream, 302, &head, b"");
        }
        state.under_way += 1;
        changed.notify_all();
        let enough = |state: &mut State| state.under_way < state.together;
        let (after, late) = changed
            .wait_timeout_while(state, Duration::from_secs(10), enough)
            .unwrap();
        state = after;
        if late.timed_out() {
            return;
        }
    }
    let tag = format!("\"{}\"", sha256(&bytes));
    let same = asked.if_range.as_ref().is_none_or(|wanted| *wanted == tag);
    let sliced = asked.range.is_some() && same && !state.no_ranges;
    let (from, to) = bounds(asked.range.as_deref().filter(|_| sliced), bytes.len());
    if from >= bytes.len() {
        return say(&mut stream, 416, "", b"");
    }
    let whole = bytes.len();
    let (status, head) = match sliced {
        true => (
            "206 Partial Content",
            format!("Content-Range: bytes {from}-{}/{whole}\r\n", to - 1),
        ),
        false => ("200 OK", String::new()),
    };
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\nETag: {tag}\r\n{head}Content-Length: {}\r\nConnection: close\r\n\r\n",
        to - from
    );
    let mut part = &bytes[from..to];
    let mut hold = false;
    if let Some((after, times)) = state.cut
        && times > 0
        && of_weights
        && part.len() > after
    {
        part = &part[..after];
        state.cut = Some((after, times - 1));
        if let Some(later) = state.later.take() {
            state.files.insert(name.clone(), later);
        }
    }
    if let Some((after, times)) = state.silent
        && times > 0
        && of_weights
        && part.len() > after
    {
        part = &part[..after];
        state.silent = Some((after, times - 1));
        hold = true;
    }
    drop(state);
    let _ = stream.write_all(part);
    if hold {
        // Longer than any test has patience; the thread ends with the test.
        std::thread::sleep(Duration::from_secs(120));
    }
}
