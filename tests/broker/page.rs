//! Contract 6, `GET /`: the live page, as a person on call sees it in a real Chromium.

use crate::frozen::Frozen;
use crate::http::metric;
use crate::private::wait_for;
use crate::proxy::Proxy;
use crate::service::{SOON, Service, bench};
use crate::web::{ask, connect, embed};
use serde_json::json;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::Duration;

/// Debian's.
const CHROMIUM: &str = "/usr/bin/chromium";
/// Longest time for one look at all pages.
const LOOK_MAX: Duration = Duration::from_secs(90);

/// `tests/page/judge.mjs`, with four pages open: two widths, light and dark.
struct Judge {
    child: Child,
    answers: Receiver<String>,
}

impl Judge {
    /// Starts it, if browser and driver are there (`scripts/get-chromium`).
    fn start() -> Option<Judge> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let tools = root.join(".cache/page");
        if !Path::new(CHROMIUM).exists() || !tools.join("node_modules/playwright-core").is_dir() {
            eprintln!(
                "skipped: no {CHROMIUM}, or no driver in {} (scripts/get-chromium)",
                tools.display()
            );
            return None;
        }
        let shots = root.join("target/page");
        std::fs::create_dir_all(&shots).unwrap();
        let mut child = Command::new("node")
            .arg(root.join("tests/page/judge.mjs"))
            .envs([("PAGE_TOOLS", &tools), ("PAGE_SHOTS", &shots)])
            .env("CHROMIUM", CHROMIUM)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (told, answers) = mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| told.send(line)));
        Some(Judge { child, answers })
    }

    /// Has all pages looked at.
    fn looks(&mut self, at: &str) {
        writeln!(self.child.stdin.as_ref().unwrap(), "{at}").unwrap();
        let answer = self.answers.recv_timeout(LOOK_MAX);
        let answer = answer.unwrap_or_else(|_| panic!("no answer on {at:?}"));
        assert!(answer.starts_with("ok "), "{}", answer.replace("\\n", "\n"));
        eprintln!("{answer}");
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        // At the end of its questions it closes the browser; one that hangs is not waited for.
        drop(self.child.stdin.take());
        while self.answers.recv_timeout(Duration::from_secs(5)).is_ok() {}
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Callers that always have something to ask.
struct Callers {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Callers {
    fn of(at: &str) -> Callers {
        let stop = Arc::<AtomicBool>::default();
        let (stopped, at) = (stop.clone(), at.to_owned());
        let thread = std::thread::spawn(move || {
            let body = json!({"input": vec!["words that somebody wants the vector of"; 16]});
            while !stopped.load(Ordering::Relaxed) {
                embed(&at, &body);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        Callers {
            stop,
            thread: Some(thread),
        }
    }

    fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// An address that a service can have again after its death, for the page that stays open.
fn fixed_address() -> String {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    taken.local_addr().unwrap().to_string()
}

/// Has the service turn away a job for which its queue has no room beside another (`max_queue_bytes`), and a request while
/// another one's body, which does not come, has all the room there is for bodies: 32 MiB, or `max_queue_bytes` if that is more.
fn turned_away(service: &Service, at: &str) {
    let huge = json!({"input": "a".repeat(100_000)});
    assert_eq!(embed(at, &huge).status, 413, "there never is room for it");
    let large = json!({"input": "a".repeat(40_000)});
    let frozen = Frozen::threads(service.pid(), "engine-");
    let held = std::thread::spawn({
        let (at, large) = (at.to_owned(), large.clone());
        move || embed(&at, &large).status
    });
    wait_for(SOON, "the first is here", || {
        metric(at, "embeddings_inflight_jobs") > 0.0
    });
    assert_eq!(embed(at, &large).status, 429);
    drop(frozen);
    assert_eq!(held.join().unwrap(), 200);
    // It is told to go on when it has its room, and before that nobody else asks for any.
    let held = "POST /v1/embeddings HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n\
                expect: 100-continue\r\ncontent-length: 33554432\r\n\r\n";
    let mut silent = connect(at);
    silent.write_all(held.as_bytes()).unwrap();
    let mut told = [0; 12];
    silent.read_exact(&mut told).unwrap();
    assert_eq!(told.as_slice(), b"HTTP/1.1 100");
    let small = json!({"input": "a text"});
    assert_eq!(embed(at, &small).status, 429);
    drop(silent);
    wait_for(SOON, "there is room again", || embed(at, &small).status == 200);
}

/// Goal: one page, opened once, tells a whole outage: at work, without its broker, ended, back with the death on record; then
/// a process that hangs as a whole. Method: the real service behind a proxy to the real broker; the pages stay open.
#[test]
fn a_page_that_stays_open_tells_of_an_outage_http() {
    let Some(bench) = bench("page") else { return };
    let Some(mut judge) = Judge::start() else { return };
    let proxy = Proxy::to(bench.node.address());
    let at = fixed_address();
    let settings = format!(
        "http.listen = \"{at}\"\ndisconnect_kill_ms = 20000\nwatchdog_interval_ms = 200\ncanary_interval_ms = 500\nmax_queue_bytes = 65536"
    );
    let mut service = bench.start(&bench.node.url_at(proxy.address), &settings);
    service.ready();
    turned_away(&service, &at);
    let callers = Callers::of(&at);
    judge.looks(&format!("open http://{at}"));
    judge.looks("healthy");
    callers.stop();

    proxy.refuse(true);
    proxy.cut();
    judge.looks("degraded");
    assert_eq!(service.exit(SOON).0, Some(70), "{}", service.log());
    judge.looks("gone ended");

    proxy.refuse(false);
    service.again();
    service.ready();
    judge.looks("back broker_disconnected");
    service.signal(libc::SIGSTOP);
    judge.looks("gone hangs");
    service.signal(libc::SIGCONT);
    judge.looks("back");
    judge.looks("rare");
}

/// Goal: with a token the page shows health alone and asks for it, and opens to it; an engine that stands still is seen at
/// its stage before the process ends. Method: the engines' threads are stopped with work inside.
#[test]
fn the_page_asks_for_the_token_and_shows_a_stuck_engine_http() {
    let Some(bench) = bench("pagestuck") else { return };
    let Some(mut judge) = Judge::start() else { return };
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "open sesame\n").unwrap();
    let at = fixed_address();
    let settings = format!(
        "http.listen = \"{at}\"\nhttp.token_file = \"{}\"\nliveness_max_stall_ms = 20000",
        file.path().display()
    );
    let service: Service = bench.serve(&settings);
    judge.looks(&format!("open http://{at}"));
    judge.looks("token open sesame");
    let frozen = Frozen::threads(service.pid(), "engine-");
    let asking = std::thread::spawn({
        let at = at.clone();
        move || {
            let token = [("authorization", "Bearer open sesame")];
            ask(&at, "POST", "/v1/embeddings", &token, r#"{"input": "a text"}"#).status
        }
    });
    judge.looks("stuck");
    drop(frozen);
    assert_eq!(asking.join().unwrap(), 200);
}
