//! `embeddings monitor` as a process, with workers that are processes too.
//!
//! Goal: it ends the right process, in the right way, for the right reason, and no other. Method: this test
//! binary runs itself again as the worker (see `a_worker_of_the_other_tests`), which says over the socket
//! whatever a test wants it to say.
#![cfg(target_os = "linux")]

use embeddings::clock::{Clock, Moment};
use serde_json::{Value, json};
use signal_hook::consts::signal::{SIGCONT, SIGKILL, SIGSTOP, SIGTERM};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);
/// The monitor's `heartbeat_timeout_ms` here.
const SILENCE_MS: u64 = 1500;
/// Tells the test binary that it is a worker: its plan, in JSON.
const PLAN: &str = "FAKE_WORKER_PLAN";

/// Not a test: a worker. `first` is said once, then `then` every 100 ms, if there is one.
#[test]
fn a_worker_of_the_other_tests() {
    let Ok(plan) = std::env::var(PLAN) else { return };
    let plan: Value = serde_json::from_str(&plan).unwrap();
    let text = |key: &str| (!plan[key].is_null()).then(|| plan[key].to_string());
    if plan["stubborn"] == true {
        signal_hook::flag::register(
            SIGTERM,
            std::sync::Arc::<std::sync::atomic::AtomicBool>::default(),
        )
        .unwrap();
    }
    let socket = UnixDatagram::unbound().unwrap();
    let path = plan["socket"].as_str().unwrap();
    socket.send_to(text("first").unwrap().as_bytes(), path).unwrap();
    for _ in 0..600 {
        std::thread::sleep(Duration::from_millis(100));
        if let Some(beat) = text("then") {
            let _ = socket.send_to(beat.as_bytes(), path);
        }
    }
}

/// A process that is killed when it is dropped.
struct Running(Child);

impl Running {
    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn signal(&self, signal: i32) {
        let pid = libc::pid_t::try_from(self.pid()).unwrap();
        // SAFETY: the child is ours and not yet reaped, so the number is still its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// Its end, and how long that took.
    fn ends(&mut self) -> (ExitStatus, Duration) {
        let clock = Clock::start();
        loop {
            let waited = clock.now().since(Moment::ZERO);
            if let Some(status) = self.0.try_wait().unwrap() {
                return (status, waited);
            }
            assert!(waited < SOON, "still running");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A monitor with a place of its own.
struct Ring {
    dir: tempfile::TempDir,
    /// What it tells systemd. A thread reads it: whoever tells systemd waits while nobody listens.
    heard: mpsc::Receiver<String>,
    process: Running,
}

impl Ring {
    fn start() -> Ring {
        let dir = tempfile::tempdir().unwrap();
        let notify = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        let (tell, heard) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(bytes) = notify.recv(&mut buffer) {
                if tell
                    .send(String::from_utf8_lossy(&buffer[..bytes]).into_owned())
                    .is_err()
                {
                    return;
                }
            }
        });
        let process = monitor(dir.path());
        let ring = Ring { dir, heard, process };
        ring.tells("READY=1");
        ring
    }

    /// Waits until it tells systemd a message with these words in it.
    fn tells(&self, words: &str) -> String {
        loop {
            match self.heard.recv_timeout(SOON) {
                Ok(message) if message.contains(words) => return message,
                Ok(_) => {}
                Err(_) => panic!("never said {words:?}: {}", self.log()),
            }
        }
    }

    fn place(&self) -> PathBuf {
        self.dir.path().join("embeddings-monitor")
    }

    fn sentence(&self, pid: u32) -> Option<Value> {
        let text = std::fs::read(self.place().join(format!("kill-{pid}.json"))).ok()?;
        Some(serde_json::from_slice(&text).unwrap())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    fn worker(&self, plan: Value) -> Running {
        let mut plan = plan;
        plan["socket"] = json!(self.place().join("heartbeat.sock"));
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_worker_of_the_other_tests", "--nocapture"])
            .env(PLAN, plan.to_string())
            .stdout(Stdio::null())
            .spawn();
        Running(child.unwrap())
    }
}

fn monitor(dir: &Path) -> Running {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join("log"))
        .unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_embeddings"))
        .args(["monitor", "--config", "/dev/null"])
        .args([
            "--set",
            "heartbeat_interval_ms=100",
            "--set",
            "disconnect_kill_ms=1000",
        ])
        .env("HEARTBEAT_TIMEOUT", SILENCE_MS.to_string())
        .env("RUNTIME_DIRECTORY", dir.join("embeddings"))
        .env("NOTIFY_SOCKET", dir.join("notify"))
        .env("WATCHDOG_USEC", "4000000")
        .env_remove("WATCHDOG_PID")
        .env_remove("JOURNAL_STREAM")
        .stderr(log)
        .spawn();
    Running(child.unwrap())
}

/// A worker falls silent: asked to go within the bound, with the reason left behind.
#[test]
fn a_silent_worker_is_terminated() {
    let ring = Ring::start();
    let mut worker = ring.worker(json!({"first": {"connected": true, "queue": 42}}));
    ring.tells("watching 1 worker ");
    let (status, waited) = worker.ends();
    assert_eq!(status.signal(), Some(SIGTERM));
    assert!(waited < Duration::from_millis(SILENCE_MS + 1000), "{waited:?}");
    let sentence = ring.sentence(worker.pid()).expect("a sentence");
    assert_eq!(
        (&sentence["pid"], &sentence["reason"]),
        (&json!(worker.pid()), &json!("heartbeat_timeout"))
    );
    assert!(sentence["silent_ms"].as_u64() >= Some(SILENCE_MS), "{sentence}");
    assert!(
        sentence["detail"]
            .as_str()
            .is_some_and(|text| text.contains("no heartbeat")),
        "{sentence}"
    );
    ring.tells("watching 0 workers ");
    let log = ring.log();
    assert!(
        log.contains("is ended: no heartbeat") && log.contains("queue=42"),
        "{log}"
    );
    assert!(
        !log.to_lowercase().contains("kill_reason"),
        "the record of the death is another's: {log}"
    );
}

#[test]
fn one_that_does_not_heed_is_killed() {
    let ring = Ring::start();
    let mut worker = ring.worker(json!({"first": {}, "stubborn": true}));
    let (status, waited) = worker.ends();
    assert_eq!(status.signal(), Some(SIGKILL));
    assert!(waited > Duration::from_millis(SILENCE_MS + 4500), "{waited:?}");
}

/// Goal: nobody can have another process killed. The kernel's word counts, not the payload's.
#[test]
fn the_sender_is_judged_and_not_the_number_that_it_says() {
    let ring = Ring::start();
    let mut bystander = Running(Command::new("sleep").arg("60").spawn().unwrap());
    let mut liar = ring.worker(json!({"first": {"pid": bystander.pid(), "connected": true}}));
    assert_eq!(liar.ends().0.signal(), Some(SIGTERM));
    assert!(bystander.lives() && ring.sentence(bystander.pid()).is_none());
}

/// Those that are well live, also those that still wait for their first broker; one that has lost it is ended.
#[test]
fn beating_workers_live_as_long_as_they_have_their_broker() {
    let ring = Ring::start();
    let well = json!({"connected": true, "state": "idle"});
    let waiting = json!({"connected": false, "state": "starting"});
    let lost = json!({"connected": false, "state": "degraded"});
    let mut good = ring.worker(json!({"first": well, "then": well}));
    let mut patient = ring.worker(json!({"first": waiting, "then": waiting}));
    let mut cut_off = ring.worker(json!({"first": well, "then": lost}));
    assert_eq!(cut_off.ends().0.signal(), Some(SIGTERM));
    let sentence = ring.sentence(cut_off.pid()).expect("a sentence");
    assert!(
        sentence["detail"]
            .as_str()
            .is_some_and(|text| text.contains("broker lost")),
        "{sentence}"
    );
    // Stopped for far longer than the bound, it blames nobody for what it did not hear.
    ring.process.signal(SIGSTOP);
    std::thread::sleep(Duration::from_millis(3 * SILENCE_MS));
    ring.process.signal(SIGCONT);
    ring.tells("WATCHDOG=1");
    std::thread::sleep(Duration::from_millis(SILENCE_MS));
    assert!(good.lives() && patient.lives(), "{}", ring.log());
    ring.tells("watching 2 workers ");
    good.signal(SIGKILL);
    good.ends();
    ring.tells("watching 1 worker ");
}

/// A datagram that is no heartbeat, or too long, is nobody's.
#[test]
fn nonsense_is_not_watched() {
    let ring = Ring::start();
    let socket = UnixDatagram::unbound().unwrap();
    for nonsense in [&b"{"[..], b"null", &[b' '; 5000]] {
        socket
            .send_to(nonsense, ring.place().join("heartbeat.sock"))
            .unwrap();
    }
    ring.tells("WATCHDOG=1");
    assert!(ring.tells("STATUS=").contains("watching 0 workers"));
}

#[test]
fn one_monitor_at_a_place_and_a_dead_ones_socket_is_no_hindrance() {
    let mut ring = Ring::start();
    let (refused, _) = monitor(ring.dir.path()).ends();
    assert_eq!(refused.code(), Some(1));
    assert!(ring.log().contains("another monitor"), "{}", ring.log());
    ring.process.signal(SIGKILL);
    ring.process.ends();
    ring.process = monitor(ring.dir.path());
    ring.tells("READY=1");
    ring.process.signal(SIGTERM);
    ring.tells("STOPPING=1");
    assert_eq!(ring.process.ends().0.code(), Some(0));
    assert!(!ring.place().join("heartbeat.sock").exists());
}

/// Goal: a monitor that cannot be reached ends itself, and no worker for its own deafness.
#[test]
fn a_deaf_monitor_ends_nobody_but_itself() {
    let mut ring = Ring::start();
    let well = json!({"connected": true});
    let mut worker = ring.worker(json!({"first": well, "then": well}));
    ring.tells("watching 1 worker ");
    std::fs::remove_file(ring.place().join("heartbeat.sock")).unwrap();
    let (status, _) = ring.process.ends();
    assert_eq!(status.code(), Some(1), "{}", ring.log());
    assert!(worker.lives() && ring.sentence(worker.pid()).is_none());
}
