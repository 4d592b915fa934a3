//! Goal: whoever holds a connection, a head, a body or an answer up is let go of, and whoever comes into a crowd is told when to
//! come back. Method: the server on a socket, with bounds of a moment instead of half a minute; no test measures time, each
//! waits for what is to happen.

use super::*;
use crate::http::Posted;
use crate::http::board::Process;
use crate::report::{Backpressure, Report};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Short against anybody's patience.
const MOMENT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(600);
const POST: &str = "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
const LIVE: &str = "GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n";

fn patient() -> Bounds {
    Bounds {
        connections: 8,
        spare: 0,
        head: LONG,
        spare_head: LONG,
        body: LONG,
        answer: LONG,
        write: LONG,
    }
}

/// A server, and the board that it reads. Nobody takes its calls: no request of these comes so far.
struct Bench {
    _server: Server,
    board: Arc<Board>,
    at: SocketAddr,
}

async fn bench(bounds: Bounds, report: Report) -> Bench {
    let clock = Clock::start();
    let board = Arc::new(Board::new(clock));
    board.post(Posted {
        report,
        late_after: LONG,
        dead_after: LONG,
        ..Posted::default()
    });
    let setup = Setup {
        clock,
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        token: None,
        board: board.clone(),
        sources: Sources {
            host: "here".into(),
            process: Process::default,
            deaths: Arc::new(|| Ok(Vec::new())),
            kills_max: 0,
            spans: Arc::new(|| (0, 0)),
            storm: LONG,
            watchdog: None,
        },
        models: Vec::new(),
        limits: RequestLimits {
            inputs_max: 1,
            stream_inputs_max: 1,
            body_bytes_max: 4096,
        },
        bodies_bytes_max: 4096,
        requests_max: 2,
        calls: mpsc::channel(1).0,
    };
    let _server = start_within(setup, bounds);
    let at = loop {
        if let Some(listen) = board.http().listen {
            break listen.parse().unwrap();
        }
        tokio::task::yield_now().await;
    };
    Bench { _server, board, at }
}

impl Bench {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.at).await.unwrap()
    }

    /// Sends it on a connection of its own, and reads until that is closed.
    async fn send(&self, text: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(text.as_bytes()).await.unwrap();
        rest(&mut stream).await
    }
}

/// All that comes until the other end closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    // A reset after the answer is an end, too.
    let _ = stream.read_to_end(&mut text).await;
    String::from_utf8(text).unwrap()
}

/// What comes until its end is this.
async fn until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let byte = stream.read_u8().await.unwrap();
        text.push(char::from(byte));
    }
    text
}

fn header(answer: &str, name: &str) -> u64 {
    let mut lines = answer.lines().filter_map(|line| line.split_once(": "));
    let found = lines.find(|(header, _)| header.eq_ignore_ascii_case(name));
    found
        .unwrap_or_else(|| panic!("{name}: {answer}"))
        .1
        .parse()
        .unwrap()
}

#[tokio::test]
async fn a_head_that_does_not_come_is_not_waited_for() {
    let bounds = Bounds {
        head: MOMENT,
        ..patient()
    };
    let bench = bench(bounds, Report::default()).await;
    assert_eq!(bench.send("").await, "", "silent from the start");
    assert_eq!(bench.send("GET /health/live HTTP/1.1\r\nhost: ").await, "");
    // Idle behind an answer: the answer comes, and then the end.
    let answer = bench.send(LIVE).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let bounds = Bounds {
        body: MOMENT,
        ..patient()
    };
    let bench = bench(bounds, Report::default()).await;
    for length in ["content-length: 100\r\n", "transfer-encoding: chunked\r\n"] {
        let answer = bench.send(&format!("{POST}{length}\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        assert!(answer.contains("body_timeout"), "{answer}");
        assert!(answer.contains("within 0.05 s"), "{answer}");
    }
}

/// Method: an answer that no buffer of the kernel holds. The one place is somebody else's as soon as the server has given up.
#[tokio::test]
async fn an_answer_that_is_not_read_is_not_waited_for() {
    let bounds = Bounds {
        connections: 1,
        write: MOMENT,
        ..patient()
    };
    let report = Report {
        line: "long ".repeat(8 << 20),
        ..Report::default()
    };
    let bench = bench(bounds, report).await;
    let mut lazy = bench.connect().await;
    lazy.write_all(LIVE.as_bytes()).await.unwrap();
    let open = "GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    while !bench.send(open).await.starts_with("HTTP/1.1 200") {}
    let answer = rest(&mut lazy).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(
        (body.len() as u64) < header(head, "content-length"),
        "it was cut off"
    );
}

/// Goal: above all bounds a connection is told when to come back, and those that are here stay.
#[tokio::test]
async fn a_connection_too_many_is_told_so() {
    let bounds = Bounds {
        connections: 1,
        spare: 1,
        ..patient()
    };
    let bench = bench(bounds, Report::default()).await;
    let mut stays = bench.connect().await;
    let mut spare = bench.connect().await;
    let answer = bench.send(LIVE).await;
    assert!(
        answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"),
        "{answer}"
    );
    assert!(header(&answer, "retry-after") >= 1 && header(&answer, "retry-after-ms") >= 50);
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    assert_eq!(body.len() as u64, header(&answer, "content-length"));
    let error: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(error["error"]["code"], "unavailable");
    assert_eq!(bench.board.refused(Full::Connections), 1);
    for stream in [&mut stays, &mut spare] {
        stream.write_all(LIVE.as_bytes()).await.unwrap();
    }
    assert!(
        rest(&mut spare).await.contains("connection: close"),
        "served once"
    );
    assert!(until(&mut stays, "\r\n\r\n").await.starts_with("HTTP/1.1 503"));
}

/// Goal: what is turned away at the door is told to come back when the queue behind it has room, and is counted by what is full.
#[tokio::test]
async fn a_full_house_tells_when_to_come_back() {
    for (waiting, length, full) in [(2, 10, Full::Requests), (1, 4096, Full::Bodies)] {
        let mut report = Report::default();
        let told = Backpressure {
            retry_after_ms: Some(7000),
            ..Backpressure::default()
        };
        report.backpressure.insert("interactive".into(), told);
        let bench = bench(patient(), report).await;
        let mut held = Vec::new();
        for _ in 0..waiting {
            let mut stream = bench.connect().await;
            let head = format!("{POST}expect: 100-continue\r\ncontent-length: {length}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            // The body is asked for when there is a place for it.
            until(&mut stream, "100 Continue\r\n\r\n").await;
            held.push(stream);
        }
        let late = format!("{POST}connection: close\r\ncontent-length: 2\r\n\r\n{{}}");
        let answer = bench.send(&late).await;
        assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
        let ms = header(&answer, "retry-after-ms");
        assert!(ms >= 7000, "no sooner than the queue has room: {answer}");
        assert_eq!(header(&answer, "retry-after"), ms.div_ceil(1000));
        assert!(answer.contains("\"overloaded\":true"), "{answer}");
        assert_eq!(bench.board.refused(full), 1);
        assert_eq!(bench.board.http().refused[full.name()], 1);
    }
}
