//! `embeddings monitor`: the outermost ring. It listens to the heartbeats of the workers on this machine, asks
//! [`crate::logic::monitor`] for verdicts, and carries them out. Nothing of a worker's own is needed for that.
//!
//! One thread, one loop. Each second it sends itself a datagram by the same path that the workers use; only
//! while that comes back does it judge anyone, and only that is what it tells systemd it lives by. A monitor
//! that hears nothing ends itself, and nobody else.

use crate::args::MonitorArgs;
use crate::clock::{Clock, Moment};
use crate::config::{self, Directories, Inputs};
use crate::job::heartbeat::Heartbeat;
use crate::job::sentence::{self, Sentence};
use crate::logic::monitor::{Bounds, Cause, Heard, Monitor, Verdict};
use crate::telemetry;
use crate::watchdog::heartbeat::Sender;
use crate::watchdog::listener::{DATAGRAM_BYTES_MAX, Listener};
use crate::watchdog::notify;
use crate::watchdog::process::{Process, Signal};
use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGTERM};
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};
use tracing::{debug, error, info, warn};

/// Longest wait for something to come; so a signal that comes just before the wait is seen soon after.
const WAIT_MAX: Duration = Duration::from_millis(500);
/// How often the monitor listens for itself, and says in a line what it sees.
const ECHO_INTERVAL: Duration = Duration::from_secs(1);
/// Echoes in a row that may get lost, as when the queue was full, before the monitor is deaf.
const ECHOES_LOST_MAX: u32 = 5;
/// Datagrams taken in one turn, so that a flood cannot keep the loop from judging.
const DATAGRAMS_PER_TURN: usize = 4096;
/// A sentence this young is carried out on the process that has its number now: SIGTERM, grace, SIGKILL.
const SENTENCE_FRESH_MS: u64 = 30_000;
/// Sentences are kept this long for whoever asks after a death, in milliseconds.
const SENTENCE_KEPT_MS: u64 = 3600 * 1000;
/// How often old ones are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(600);

/// Runs the command, until SIGTERM.
///
/// # Errors
/// The configuration, the socket's place, another monitor, or a socket that hears nothing any more.
pub fn run(args: &MonitorArgs) -> anyhow::Result<ExitCode> {
    let clock = Clock::start();
    // The last flag wins: the monitor needs no secret, and must not fail because it may not read one.
    let mut set = args.config.set.clone();
    set.push("broker.password_file=".to_owned());
    let inputs =
        Inputs::from_process(args.config.config.clone(), set).of_instance(args.config.instance.clone());
    let config = config::load(&inputs)?.config;
    telemetry::init(&config.log.level)?;
    let flag = |signal| {
        let flag = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal, flag.clone()).map(|_| flag)
    };
    let (stop, interrupt, reload) = (flag(SIGTERM)?, flag(SIGINT)?, flag(SIGHUP)?);

    let mut post = Post::open(
        clock,
        config.dirs.clone(),
        inputs.clone(),
        Bounds::new(&config.limits),
    )?;
    info!(
        silence_ms = config.limits.heartbeat_timeout.as_millis() as u64,
        "listening for heartbeats"
    );
    notify::ready(&post.status_line());
    while !stop.load(Ordering::Relaxed) && !interrupt.load(Ordering::Relaxed) {
        if reload.swap(false, Ordering::Relaxed) {
            notify::reloading();
            match config::load(&inputs) {
                Ok(loaded) => post.logic.reload(Bounds::new(&loaded.config.limits)),
                Err(errors) => error!("configuration kept as it was: {errors}"),
            }
            post.bind_instances();
            notify::ready(&post.status_line());
        }
        post.turn()?;
    }
    notify::stopping("stopping");
    Ok(ExitCode::SUCCESS)
}

/// A worker, and what it last said.
struct Worker {
    process: Process,
    beat: Heartbeat,
}

/// The monitor at its post.
struct Post {
    clock: Clock,
    dirs: Directories,
    /// What the bounds are read from.
    inputs: Inputs,
    listener: Listener,
    logic: Monitor,
    workers: BTreeMap<u32, Worker>,
    /// To ourselves.
    echo: Sender,
    echo_sent: Option<Moment>,
    echoes_lost: u32,
    pet: Option<Moment>,
    swept: Option<Moment>,
}

impl Post {
    fn open(clock: Clock, dirs: Directories, inputs: Inputs, bounds: Bounds) -> anyhow::Result<Post> {
        let (dir, path) = (dirs.monitor(), dirs.heartbeat_socket());
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(&dir)
            .with_context(|| format!("failed to make {}", dir.display()))?;
        let listener = Listener::bind(&path).with_context(|| match path.exists() {
            true => format!(
                "failed to listen at {}, where another monitor may be",
                path.display()
            ),
            false => format!("failed to listen at {}", path.display()),
        })?;
        Ok(Post {
            clock,
            dirs,
            inputs,
            listener,
            logic: Monitor::new(bounds, clock.now()),
            workers: BTreeMap::new(),
            echo: Sender::new(path),
            echo_sent: None,
            echoes_lost: 0,
            pet: None,
            swept: None,
        })
    }

    /// Waits for something to happen, hears all that came, judges.
    fn turn(&mut self) -> anyhow::Result<()> {
        let now = self.clock.now();
        if is_due(self.echo_sent, ECHO_INTERVAL, now) {
            self.echo_sent = Some(now);
            self.echoes_lost += 1;
            // Sent and at once in the queue: the same turn hears it.
            if let Err(error) = self.echo.send(b"{}") {
                debug!(%error, "cannot send to the own socket");
            }
            notify::status(&self.status_line());
        }
        self.wait(now).context("failed to wait for heartbeats")?;
        let now = self.clock.now();
        self.forget_ended();
        self.hear(now).context("failed to read heartbeats")?;
        if self.echoes_lost > ECHOES_LOST_MAX {
            let path = self.dirs.heartbeat_socket();
            anyhow::bail!(
                "nothing arrives at {} any more, not even from here",
                path.display()
            );
        }
        if self.echoes_lost == 0 {
            for verdict in self.logic.judge(now) {
                self.carry_out(verdict);
            }
        }
        if is_due(self.swept, SWEEP_INTERVAL, now) {
            self.swept = Some(now);
            self.sweep();
        }
        Ok(())
    }

    fn wait(&self, now: Moment) -> io::Result<()> {
        let mut fds = vec![PollFd::new(&self.listener, PollFlags::IN)];
        fds.extend(
            self.workers
                .values()
                .map(|worker| PollFd::new(&worker.process, PollFlags::IN)),
        );
        let until_check = self.logic.next_check().map_or(WAIT_MAX, |check| check.since(now));
        let wait = Timespec::try_from(until_check.min(WAIT_MAX)).unwrap_or_default();
        match poll(&mut fds, Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn forget_ended(&mut self) {
        let logic = &mut self.logic;
        self.workers.retain(|&pid, worker| {
            let ended = worker.process.has_ended();
            if ended {
                info!(worker_pid = pid, "worker {pid} has ended");
                logic.ended(pid);
            }
            !ended
        });
    }

    fn hear(&mut self, now: Moment) -> io::Result<()> {
        let mut buffer = [0; DATAGRAM_BYTES_MAX];
        for _ in 0..DATAGRAMS_PER_TURN {
            let Some(datagram) = self.listener.receive(&mut buffer)? else {
                break;
            };
            if datagram.pid == std::process::id() {
                self.heard_ourselves(now);
                continue;
            }
            let beat = datagram
                .bytes
                .map(|bytes| serde_json::from_slice(&buffer[..bytes]));
            match beat {
                Some(Ok(beat)) => self.heard(datagram.pid, beat, now),
                _ => debug!(sender_pid = datagram.pid, "a datagram is no heartbeat"),
            }
        }
        Ok(())
    }

    /// The whole way works: what is sent to our path arrives here.
    fn heard_ourselves(&mut self, now: Moment) {
        self.echoes_lost = 0;
        if notify::period().is_some_and(|period| is_due(self.pet, period / 8, now)) {
            self.pet = Some(now);
            notify::pet();
        }
    }

    fn heard(&mut self, pid: u32, beat: Heartbeat, now: Moment) {
        if let Some(worker) = self.workers.get_mut(&pid) {
            self.logic.heard(pid, &beat, now);
            worker.beat = beat;
            return;
        }
        let process = match Process::open(pid) {
            Ok(process) => process,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                warn!(worker_pid = pid, %error, "cannot take hold of worker {pid}, so it is not watched");
                return;
            }
        };
        if self.logic.heard(pid, &beat, now) == Heard::Refused {
            warn!(
                worker_pid = pid,
                "too many workers, so worker {pid} is not watched"
            );
            return;
        }
        info!(
            worker_pid = pid,
            claimed_pid = beat.pid,
            "worker {pid} is watched"
        );
        // A sentence on an earlier process of this number must not be taken for one on this; a fresh one is on
        // this, by a monitor that has been started anew since.
        let path = self.dirs.monitor().join(sentence::file_name(pid));
        if std::fs::metadata(&path).is_ok_and(|metadata| self.age_ms(&metadata) >= SENTENCE_FRESH_MS) {
            let _ = std::fs::remove_file(path);
        }
        self.bind(pid, &beat.name);
        self.workers.insert(pid, Worker { process, beat });
    }

    /// An instance is held to its own configuration. One that cannot be read now is held to the monitor's.
    fn bind(&mut self, pid: u32, unit: &str) {
        let Some(name) = config::instance_of(unit) else {
            return;
        };
        match config::load(&self.inputs.clone().of_instance(Some(name.to_owned()))) {
            Ok(loaded) => self.logic.bind(pid, Some(Bounds::new(&loaded.config.limits))),
            Err(errors) => warn!(worker_pid = pid, "the limits of {unit} are not known: {errors}"),
        }
    }

    /// Reads the limits of the instances anew; where that fails they are kept.
    fn bind_instances(&mut self) {
        let units = self
            .workers
            .iter()
            .map(|(&pid, worker)| (pid, worker.beat.name.clone()));
        for (pid, unit) in units.collect::<Vec<_>>() {
            self.bind(pid, &unit);
        }
    }

    fn carry_out(&self, verdict: Verdict) {
        let (pid, signal) = match verdict {
            Verdict::Terminate {
                pid,
                cause,
                lasted,
                silent,
            } => {
                self.say_why(pid, cause, lasted, silent);
                (pid, Signal::TERM)
            }
            Verdict::Kill { pid } => {
                warn!(worker_pid = pid, "worker {pid} does not end by itself: SIGKILL");
                (pid, Signal::KILL)
            }
        };
        let Some(worker) = self.workers.get(&pid) else {
            return;
        };
        if let Err(error) = worker.process.signal(signal) {
            error!(worker_pid = pid, %error, "failed to signal worker {pid}");
        }
    }

    /// In the log, and in a file for the worker and for those who come after it.
    fn say_why(&self, pid: u32, cause: Cause, lasted: Duration, silent: Duration) {
        let (lasted_ms, silent_ms) = (lasted.as_millis() as u64, silent.as_millis() as u64);
        let sentence = Sentence {
            pid,
            reason: sentence::REASON.to_owned(),
            silent_ms,
            detail: format!("{cause} for {lasted_ms} ms"),
        };
        if let Err(error) = write_down(&sentence, &self.dirs.monitor().join(sentence::file_name(pid))) {
            error!(worker_pid = pid, %error, "failed to write down why worker {pid} is ended");
        }
        let Some(Worker { beat, .. }) = self.workers.get(&pid) else {
            return;
        };
        warn!(
            worker_pid = pid,
            silent_ms,
            connected = beat.connected,
            ready = beat.ready,
            queue = beat.queue,
            inflight = beat.inflight,
            last_progress_ts = beat.last_progress_ts,
            last_job_latency_ms = beat.last_job_latency_ms,
            avg_job_ms = beat.avg_job_ms,
            state = beat.state,
            stalled_stage = beat.stalled_stage,
            model = beat.model,
            device = beat.device,
            rss_bytes = beat.rss_bytes,
            version = beat.version,
            "worker {pid} is ended: {}",
            sentence.detail
        );
    }

    /// Takes away sentences that nobody will ask for any more.
    fn sweep(&self) {
        let Ok(entries) = std::fs::read_dir(self.dirs.monitor()) else {
            return;
        };
        for entry in entries.flatten() {
            let Some(pid) = sentence::pid_of(&entry.file_name().to_string_lossy()) else {
                continue;
            };
            let age_ms = entry
                .metadata()
                .map_or(u64::MAX, |metadata| self.age_ms(&metadata));
            if age_ms >= SENTENCE_KEPT_MS && !self.workers.contains_key(&pid) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// How long ago a file was written.
    fn age_ms(&self, metadata: &std::fs::Metadata) -> u64 {
        let written = metadata.modified().ok();
        let written = written.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        written.map_or(u64::MAX, |at| {
            Clock::unix_ms().saturating_sub(at.as_millis() as u64)
        })
    }

    fn status_line(&self) -> String {
        let workers = super::count(self.logic.workers(), "worker");
        match self.logic.silent_for(self.clock.now()) {
            Some(age) => format!(
                "watching {workers} · last heartbeat {:.1} s ago",
                age.as_secs_f64()
            ),
            None => format!("watching {workers} · no heartbeat yet"),
        }
    }
}

/// Writes a sentence, whole or not at all.
fn write_down(sentence: &Sentence, path: &Path) -> io::Result<()> {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, serde_json::to_vec(sentence)?)?;
    std::fs::rename(&fresh, path)
}

fn is_due(last: Option<Moment>, interval: Duration, now: Moment) -> bool {
    last.is_none_or(|last| now.since(last) >= interval)
}
