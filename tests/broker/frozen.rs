//! Single threads of another process, stopped while the rest of it runs on. A SIGSTOP stops whole processes; one
//! thread alone can only be stopped by a tracer, which here is a thread of its own, since the kernel ties a tracee
//! to the thread that seized it.

use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the tracer looks whether the threads have ended, which they can only do when it reaps them.
const LOOK: Duration = Duration::from_millis(20);

/// The threads stand until this is dropped.
pub struct Frozen {
    // Dropped, it tells the tracer to let go.
    let_go: Option<mpsc::Sender<()>>,
    tracer: Option<JoinHandle<()>>,
}

impl Frozen {
    /// Stops every thread of the process, which must be a child of ours, whose name is this, or this with something
    /// behind it such as a number. Returns when they stand.
    pub fn threads(pid: u32, name: &str) -> Frozen {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let named = |task: &PathBuf| {
            std::fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim().starts_with(name))
        };
        let tasks = tasks.map(|task| task.unwrap().path()).filter(named);
        let ids: Vec<libc::pid_t> = tasks
            .map(|task| task.file_name().unwrap().to_str().unwrap().parse().unwrap())
            .collect();
        assert!(!ids.is_empty(), "process {pid} has no thread {name}");
        let (let_go, stop) = mpsc::channel::<()>();
        let (stand, standing) = mpsc::channel();
        let tracer = std::thread::spawn(move || {
            for &id in &ids {
                seize(id);
            }
            stand.send(()).unwrap();
            hold(ids, &stop);
        });
        standing.recv().expect("the threads stand");
        Frozen {
            let_go: Some(let_go),
            tracer: Some(tracer),
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.let_go.take());
        let traced = self.tracer.take().map(JoinHandle::join);
        assert!(
            std::thread::panicking() || traced.is_none_or(|end| end.is_ok()),
            "the tracer failed"
        );
    }
}

fn seize(id: libc::pid_t) {
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: neither request reads or writes memory of ours; the thread belongs to our own child.
    unsafe {
        let seized = libc::ptrace(libc::PTRACE_SEIZE, id, none, none);
        assert_eq!(seized, 0, "{}", std::io::Error::last_os_error());
        assert_eq!(libc::ptrace(libc::PTRACE_INTERRUPT, id, none, none), 0);
    }
    let stopped = changes(id, 0).expect("it changes when it is interrupted");
    assert!(libc::WIFSTOPPED(stopped));
}

/// Reaps those that end with their process, and lets go of the others when it is told to.
fn hold(mut ids: Vec<libc::pid_t>, stop: &mpsc::Receiver<()>) {
    while stop.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        let lives = |status: libc::c_int| !libc::WIFEXITED(status) && !libc::WIFSIGNALED(status);
        ids.retain(|&id| changes(id, libc::WNOHANG).is_none_or(lives));
    }
    for id in ids {
        let none = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: as above. A thread that has ended makes this an error, which does no harm.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, id, none, none) };
    }
}

/// What has become of a thread; `None` if nothing new.
fn changes(id: libc::pid_t, options: libc::c_int) -> Option<libc::c_int> {
    let mut status = 0;
    // SAFETY: `status` is ours and outlives the call.
    let waited = unsafe { libc::waitpid(id, &mut status, libc::__WALL | options) };
    (waited == id).then_some(status)
}
