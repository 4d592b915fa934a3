//! The last acts of a process that ends itself, in bounded time and without any lock that a thread which
//! hangs may hold: journal, disk, terminal and memory may all be part of the trouble.
//!
//! Who writes the record is said in design note 9: under our unit the death goes into the black box and
//! `embeddings postmortem` tells the journal; without it the process tells the journal and the history itself.

use super::blackbox;
use super::death::{self, Death};
use super::history::History;
use super::journal;
use crate::clock::Clock;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::thread;
use std::time::Duration;

/// Set by the unit that has `ExecStopPost=embeddings postmortem`.
const POSTMORTEM: &str = "EMBEDDINGS_POSTMORTEM";
/// Whatever happens, the process is gone this long after it decided to die.
const LAST_WORDS_MAX: Duration = Duration::from_millis(500);
/// What the journal and the terminal each get of that.
const PATIENCE: Duration = Duration::from_millis(50);
/// How long a dying process stays, so that journald can still read to which unit it belonged.
const ATTRIBUTION_PAUSE: Duration = Duration::from_millis(300);

/// What a service knows before it can die.
#[derive(Debug)]
struct Service {
    state: PathBuf,
    /// Someone will write the record for us.
    postmortem: bool,
}

static SERVICE: OnceLock<Service> = OnceLock::new();
static DYING: AtomicBool = AtomicBool::new(false);
/// Who sees to it that last words end. Started with the service: a dying one may get no thread any more.
static GUARD: OnceLock<SyncSender<fn(i32)>> = OnceLock::new();
/// What the guard ends the process with.
static EXIT: AtomicI32 = AtomicI32::new(0);

/// This process is a service from now on: its death leaves a record, and its black box is open.
///
/// # Errors
/// There can be no black box; everything else works.
pub fn prepare(runtime: &Path, state: &Path) -> io::Result<()> {
    let _ = SERVICE.set(Service {
        state: state.to_owned(),
        postmortem: std::env::var_os(POSTMORTEM).is_some_and(|value| value == "1"),
    });
    let (guard, called) = mpsc::sync_channel::<fn(i32)>(1);
    let waiting = move || {
        let Ok(last) = called.recv() else { return };
        thread::sleep(LAST_WORDS_MAX);
        last(EXIT.load(Ordering::SeqCst));
    };
    let thread = thread::Builder::new().name("guard".into());
    if thread.stack_size(64 << 10).spawn(waiting).is_ok() {
        let _ = GUARD.set(guard);
    }
    blackbox::open(runtime)
}

/// Ends the process at once, with a record and without destructors, which could hang.
pub fn end(death: Death, exit_status: u8) -> ! {
    if DYING.swap(true, Ordering::SeqCst) {
        // The loop and the watchdog thread may find the same reason; a death has one record.
        loop {
            thread::park();
        }
    }
    EXIT.store(i32::from(exit_status), Ordering::SeqCst);
    in_bounded_time(|status| signal_hook::low_level::exit(status));
    if SERVICE.get().is_some_and(|service| !service.postmortem) {
        // Before the record: journald learns from a plain line to which unit this process belongs.
        say(&death.summary());
    }
    leave(death, "exited", &exit_status.to_string());
    super::flush(PATIENCE);
    signal_hook::low_level::exit(i32::from(exit_status))
}

/// Leaves the record of a death whose way leads through `main`, and which has been told on stderr.
pub fn record(death: Death, exit_status: u8) {
    if !DYING.swap(true, Ordering::SeqCst) {
        leave(death, "exited", &exit_status.to_string());
    }
}

/// A panic in any thread ends the process, with a record: a service with one part missing is a ghost.
pub fn abort_on_panic() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if SERVICE.get().is_some() && !DYING.swap(true, Ordering::SeqCst) {
            in_bounded_time(|_| std::process::abort());
            let name = thread::current().name().unwrap_or("unnamed").to_owned();
            let mut death = Death::of("panic");
            death.detail = format!("thread {name}: {panic}");
            leave(death, "killed", "ABRT");
        }
        default(panic);
        std::process::abort();
    }));
}

/// Does the last thing all the same if what comes before it takes too long.
fn in_bounded_time(last: fn(i32)) {
    if let Some(guard) = GUARD.get() {
        let _ = guard.try_send(last);
    }
}

fn leave(mut death: Death, exit_code: &str, exit_status: &str) {
    let Some(service) = SERVICE.get() else { return };
    let own = blackbox::own();
    death.exit_code = exit_code.into();
    death.exit_status = exit_status.into();
    death.threads = death::threads();
    if let Some(known) = own.and_then(blackbox::BlackBox::contents) {
        death.learn(&known, Clock::monotonic_ms());
    }
    death.seal(Clock::unix_ms());
    if let Some(own) = own {
        own.death(&death);
    }
    if service.postmortem {
        return;
    }
    let journal = super::to_journal();
    death.unsent =
        journal && journal::send(Path::new(journal::SOCKET), &death.entry(None), PATIENCE).is_err();
    if let Ok(mut history) = History::open(&service.state) {
        history.add(death.clone());
        let _ = history.save();
    }
    if let Some(own) = own {
        death.recorded = true;
        own.death(&death);
    }
    if journal {
        thread::sleep(ATTRIBUTION_PAUSE);
    }
}

/// A line on stderr, past the lock that another thread may hold, and only if it takes one now.
fn say(line: &str) {
    let stderr = io::stderr();
    let fd = stderr.as_fd();
    let patience = Timespec::try_from(PATIENCE).ok();
    let writable = poll(&mut [PollFd::new(&fd, PollFlags::OUT)], patience.as_ref());
    if matches!(writable, Ok(1)) {
        let _ = rustix::io::write(fd, format!("{line}\n").as_bytes());
    }
}
