//! A collector of OpenTelemetry's, as far as OTLP over HTTP needs one: it takes spans, or hangs, or would rather not.

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

/// What it does with a request that it has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// Takes it.
    Takes,
    /// Never answers.
    Hangs,
    /// Answers with this status.
    Answers(u16),
}

/// A running collector.
pub struct Collector {
    address: SocketAddr,
    inside: Arc<Inside>,
}

struct Inside {
    mood: Mutex<Mood>,
    spans: Mutex<Vec<(Resource, Span)>>,
    /// Bodies of the requests that these came in.
    bodies: Mutex<Vec<Vec<u8>>>,
    requests: Mutex<usize>,
}

impl Collector {
    /// Starts one at this address; port 0 is any that is free.
    pub fn start(address: &str, mood: Mood) -> Collector {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let inside = Arc::new(Inside {
            mood: Mutex::new(mood),
            spans: Mutex::default(),
            bodies: Mutex::default(),
            requests: Mutex::default(),
        });
        let shared = inside.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || while shared.serve(&stream).is_some() {});
            }
        });
        Collector { address, inside }
    }

    /// What belongs into the configuration.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on it does this.
    pub fn be(&self, mood: Mood) {
        *self.inside.mood.lock().unwrap() = mood;
    }

    /// The spans that it took, with who told them.
    pub fn spans(&self) -> Vec<(Resource, Span)> {
        self.inside.spans.lock().unwrap().clone()
    }

    /// Those of one trace.
    pub fn trace(&self, trace: &str) -> Vec<Span> {
        let of = self.spans().into_iter().map(|(_, span)| span);
        of.filter(|span| hex(&span.trace_id) == trace).collect()
    }

    /// Has OpenTelemetry's own messages, by Google's protobuf, read all that it took (`scripts/get-otlp`), as strictly as the protocol
    /// is written; they must see the spans that are seen here.
    pub fn is_read_by_others(&self) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python = root.join(".cache/otlp/bin/python");
        if !python.is_file() {
            eprintln!("skipped: no {} (scripts/get-otlp)", python.display());
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let bodies = self.inside.bodies.lock().unwrap();
        let files = bodies.iter().enumerate().map(|(number, body)| {
            let path = folder.path().join(number.to_string());
            std::fs::write(&path, body).unwrap();
            path
        });
        let judged = Command::new(python)
            .arg(root.join("tests/otlp/judge.py"))
            .args(files)
            .output()
            .unwrap();
        let told = String::from_utf8(judged.stdout).unwrap();
        assert!(
            judged.status.success(),
            "{}",
            String::from_utf8_lossy(&judged.stderr)
        );
        let theirs: Vec<[String; 3]> = told
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let ours = self.spans().into_iter().map(|(_, span)| span);
        let ours: Vec<_> = ours
            .map(|span| [hex(&span.trace_id), hex(&span.span_id), span.name])
            .collect();
        assert_eq!(theirs, ours);
    }

    /// How many requests it has read.
    pub fn requests(&self) -> usize {
        *self.inside.requests.lock().unwrap()
    }
}

impl Inside {
    /// One request and its answer; `None` at the end of the connection.
    fn serve(&self, stream: &TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream);
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            (reader.read_until(b'\n', &mut head).ok()? > 0).then_some(())?;
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let value = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
        assert!(head.starts_with("post /v1/traces http/1.1"), "{head}");
        assert_eq!(value("content-type: "), Some("application/x-protobuf"), "{head}");
        let length = value("content-length: ").unwrap().parse().unwrap();
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        *self.requests.lock().unwrap() += 1;
        let mood = *self.mood.lock().unwrap();
        let (status, answer) = match mood {
            Mood::Hangs => loop {
                std::thread::park();
            },
            Mood::Answers(status) => (status, Vec::new()),
            Mood::Takes => {
                self.take(&body);
                (200, ExportTraceServiceResponse::default().encode_to_vec())
            }
        };
        let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n", answer.len());
        let mut stream = stream;
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(&answer).ok()
    }

    fn take(&self, body: &[u8]) {
        let request = ExportTraceServiceRequest::decode(body).unwrap();
        self.bodies.lock().unwrap().push(body.to_vec());
        let mut spans = self.spans.lock().unwrap();
        for of in request.resource_spans {
            let resource = of.resource.unwrap();
            let told = of.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans.extend(told.map(|span| (resource.clone(), span)));
        }
    }
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An attribute as text, whatever its type.
pub fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|it| it.key == key)?;
    match &found.value {
        Some(AnyValue {
            value: Some(Value::StringValue(text)),
        }) => Some(text.clone()),
        Some(AnyValue {
            value: Some(Value::IntValue(number)),
        }) => Some(number.to_string()),
        other => Some(format!("{other:?}")),
    }
}
