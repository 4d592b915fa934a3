//! The real binary as a child process, with a configuration, directories and a notify socket of its own.

use crate::node::{self, Node};
use embeddings::clock::{Clock, Moment};
use embeddings::telemetry::{blackbox, history};
use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Longest wait for anything that should happen soon.
pub const SOON: Duration = Duration::from_secs(40);
/// The model's name in all configurations here; `mini` is an alias.
pub const MODEL: &str = "all-MiniLM-L6-v2";

/// What every test needs: a node, a model folder, and a prefix that no other test uses.
pub struct Bench {
    /// The shared node.
    pub node: Node,
    /// First part of the names of this test's queues.
    pub prefix: String,
    model: PathBuf,
}

/// The bench, or `None` with a word on what is missing.
pub fn bench(test: &str) -> Option<Bench> {
    let model = std::env::var_os("EMBEDDINGS_TEST_MODEL").map(PathBuf::from);
    let cached = || {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(".cache/models")
            .join(MODEL)
    };
    let model = model.unwrap_or_else(cached);
    if !model.join("model.safetensors").is_file() {
        eprintln!("skipped: no model in {} (scripts/get-model)", model.display());
        return None;
    }
    let node = node::shared()?;
    let prefix = format!("{test}-{}", std::process::id());
    Some(Bench { node, prefix, model })
}

impl Bench {
    /// The model's folder.
    pub fn model_dir(&self) -> &Path {
        &self.model
    }

    /// Starts a service on the node and waits until it is ready. `settings` are lines of TOML for the top.
    pub fn serve(&self, settings: &str) -> Service {
        let mut service = self.start(&self.node.url, settings);
        service.ready();
        service
    }

    /// Starts a service with this broker URL; does not wait.
    pub fn start(&self, url: &str, settings: &str) -> Service {
        static SERVICES: AtomicU32 = AtomicU32::new(0);
        let number = SERVICES.fetch_add(1, Ordering::Relaxed);
        let dir = tempfile::Builder::new()
            .prefix(&format!("embeddings-{number}-"))
            .tempdir()
            .unwrap();
        let socket = dir.path().join("notify");
        let notify = UnixDatagram::bind(&socket).unwrap();
        let mut service = Service {
            config: dir.path().join("embeddings.toml"),
            child: None,
            heard: listen(notify),
            bench: (self.prefix.clone(), self.model.clone(), url.to_owned()),
            dir,
        };
        service.write_config(settings);
        service.again();
        service
    }

    /// Runs `embeddings submit` against the node, with this on its stdin.
    pub fn submit(&self, arguments: &[&str], stdin: &[u8]) -> std::process::Output {
        use std::io::Write;
        let mut child = Command::new(env!("CARGO_BIN_EXE_embeddings"))
            .arg("submit")
            .args(["--config", "/dev/null"])
            .arg("--set")
            .arg(format!("broker.url={}", self.node.url))
            .arg("--set")
            .arg(format!("broker.prefix={}", self.prefix))
            // Last, so that they win.
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut pipe = child.stdin.take().unwrap();
        let stdin = stdin.to_vec();
        let writer = std::thread::spawn(move || {
            // A command that ends before its input does closes the pipe, which is its right.
            let _ = pipe.write_all(&stdin);
        });
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output
    }
}

/// A running service. Dropped, it is killed.
pub struct Service {
    child: Option<Child>,
    /// Everything it has told systemd. A thread reads it: whoever tells systemd waits while nobody listens.
    heard: Arc<Mutex<Vec<String>>>,
    config: PathBuf,
    bench: (String, PathBuf, String),
    dir: tempfile::TempDir,
}

impl Service {
    /// Writes the configuration, as `serve` and SIGHUP read it.
    pub fn write_config(&self, settings: &str) {
        let (prefix, model, url) = &self.bench;
        let model = model.display();
        // Keys below [broker] and [http] are given as `broker.KEY = VALUE`, one to a line.
        let below = |section: &str| {
            let lines = settings.lines().filter_map(|line| line.strip_prefix(section));
            lines.collect::<Vec<_>>().join("\n")
        };
        let (broker, mut http) = (below("broker."), below("http."));
        if http.is_empty() {
            http = "listen = \"\"".into();
        }
        let own = |line: &&str| !line.starts_with("broker.") && !line.starts_with("http.");
        let top = settings.lines().filter(own).collect::<Vec<_>>().join("\n");
        let text = format!(
            "{top}\n[broker]\n{broker}\nurl = \"{url}\"\nprefix = \"{prefix}\"\n[http]\n{http}\n\
             [models.\"{MODEL}\"]\npath = \"{model}\"\naliases = [\"mini\"]\n"
        );
        std::fs::write(&self.config, text).unwrap();
    }

    /// Starts it with what it was given, in the same directories; what ran before has ended.
    pub fn again(&mut self) {
        self.forget_told();
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.log_path())
            .unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_embeddings"))
            .args(["serve", "--config"])
            .arg(&self.config)
            .env("NOTIFY_SOCKET", self.dir.path().join("notify"))
            .env("RUNTIME_DIRECTORY", self.runtime())
            .env("STATE_DIRECTORY", self.dir.path())
            .env("CACHE_DIRECTORY", self.dir.path())
            .env_remove("WATCHDOG_USEC")
            .env_remove("JOURNAL_STREAM")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// Waits for `READY=1`.
    pub fn ready(&mut self) {
        self.tells("READY=1");
    }

    /// Waits until the service has told systemd a message with these words in it.
    pub fn tells(&mut self, words: &str) {
        let clock = Clock::start();
        while !self.has_told(words) {
            let waited = clock.now().since(Moment::ZERO);
            let heard = self.heard.lock().unwrap();
            assert!(waited < SOON, "never told systemd {words:?}: {heard:?}");
            drop(heard);
            assert!(self.exited().is_none(), "died before it told systemd {words:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether the service has told systemd these words so far.
    pub fn has_told(&self, words: &str) -> bool {
        self.heard
            .lock()
            .unwrap()
            .iter()
            .any(|message| message.contains(words))
    }

    /// Forgets what has been told so far.
    pub fn forget_told(&self) {
        self.heard.lock().unwrap().clear();
    }

    /// Sends a signal. After a SIGSTOP it returns when every thread stands: `kill` does not wait for those that run just then.
    pub fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.child.as_ref().unwrap().id()).unwrap();
        // SAFETY: the child is ours and not yet reaped, so the id is still its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
        let clock = Clock::start();
        while signal == libc::SIGSTOP && !stands(pid) {
            assert!(clock.now().since(Moment::ZERO) < SOON, "it does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Its exit status, if it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().unwrap().try_wait().unwrap()
    }

    /// Waits for its end: the exit code, and how long that took.
    pub fn exit(&mut self, limit: Duration) -> (Option<i32>, Duration) {
        let clock = Clock::start();
        loop {
            let waited = clock.now().since(Moment::ZERO);
            if let Some(status) = self.exited() {
                return (status.code(), waited);
            }
            assert!(waited < limit, "still running after {limit:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Its runtime directory.
    pub fn runtime(&self) -> PathBuf {
        self.dir.path().join("embeddings")
    }

    /// Its directory for everything else.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs `embeddings status` as its user would.
    pub fn status(&self, arguments: &[&str]) -> Output {
        self.spawn_status(arguments).wait_with_output().unwrap()
    }

    /// Starts `embeddings status`.
    pub fn spawn_status(&self, arguments: &[&str]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_embeddings"))
            .args(["status", "--config"])
            .arg(&self.config)
            .args(arguments)
            .env("RUNTIME_DIRECTORY", self.runtime())
            .env("STATE_DIRECTORY", self.dir())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Where its heartbeat monitor would be.
    pub fn monitor_dir(&self) -> PathBuf {
        self.dir.path().join("embeddings-monitor")
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The reasons in its history, oldest first.
    pub fn deaths(&self) -> Vec<String> {
        let deaths = history::last(self.dir.path(), 10);
        deaths.into_iter().rev().map(|death| death.kill_reason).collect()
    }

    /// What its black box holds.
    pub fn black_box(&self) -> blackbox::Contents {
        blackbox::read(&self.runtime()).unwrap()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }
}

/// Reads until the socket's owner is gone; the timeout lets the thread notice that.
fn listen(notify: UnixDatagram) -> Arc<Mutex<Vec<String>>> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::downgrade(&heard);
    notify.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0u8; 4096];
        while let Some(heard) = kept.upgrade() {
            if let Ok(bytes) = notify.recv(&mut buffer) {
                let message = String::from_utf8_lossy(&buffer[..bytes]).into_owned();
                heard.lock().unwrap().push(message);
            }
        }
    });
    heard
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
            if std::thread::panicking() {
                let log = self.log();
                let tail = log.len().saturating_sub(6000);
                eprintln!("the service's log: …{}", log.get(tail..).unwrap_or(&log));
            }
        }
    }
}

/// Whether every thread of the process is stopped, by a signal or by a tracer.
fn stands(pid: libc::pid_t) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    tasks.flatten().all(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        // The state follows the name, which is in parentheses and may have any in it.
        stat.rsplit(')')
            .next()
            .is_none_or(|rest| matches!(rest.trim_start().chars().next(), Some('T' | 't') | None))
    })
}
