//! The board: what the loop last said of itself, for whoever looks. Nobody who reads it waits for the loop, and the loop
//! waits for nobody who reads it.

use crate::clock::{Clock, Moment, millis};
use crate::job::Lane;
use crate::logic::hour::Hour;
use crate::logic::tally::Tally;
use crate::report::{Http, Kill, Report};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What was said at one moment.
#[derive(Clone, Debug, Default)]
pub struct Posted {
    /// When.
    pub at: Moment,
    /// All of it but what is read aside, such as memory and records of deaths.
    pub report: Report,
    /// What has been counted; `None` while there is no loop yet.
    pub tally: Option<Box<Tally>>,
    /// After this long the next word is late: whoever should say it hangs.
    pub late_after: Duration,
    /// After this long whoever should say it counts as dead.
    pub dead_after: Duration,
}

/// What is turned away by HTTP itself, before the loop could refuse it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// As many requests for vectors are here as may be.
    Requests,
    /// As many bytes of bodies.
    Bodies,
    /// As many connections.
    Connections,
}

impl Full {
    /// All of them.
    pub(super) const ALL: [Full; 3] = [Full::Requests, Full::Bodies, Full::Connections];

    /// The name used in metrics and in the status.
    pub(super) fn name(self) -> &'static str {
        match self {
            Full::Requests => "http_requests",
            Full::Bodies => "http_bodies",
            Full::Connections => "http_connections",
        }
    }
}

/// What is posted, and what HTTP itself counts beside it.
#[derive(Debug)]
pub struct Board {
    clock: Clock,
    posted: Mutex<Arc<Posted>>,
    hour: Mutex<Hour>,
    http: Mutex<Http>,
    /// In the order of [`Full::ALL`].
    refused: [AtomicU64; 3],
}

impl Board {
    /// Nothing said yet.
    pub fn new(clock: Clock) -> Board {
        Board {
            clock,
            posted: Mutex::default(),
            hour: Mutex::default(),
            http: Mutex::default(),
            refused: Default::default(),
        }
    }

    /// Says how things are.
    pub fn post(&self, posted: Posted) {
        if let Some(tally) = &posted.tally {
            let door = Full::ALL.map(|full| self.refused(full)).iter().sum();
            lock(&self.hour).look(&posted.report, tally, door, posted.at);
        }
        *lock(&self.posted) = Arc::new(posted);
    }

    /// What was said last, and how long ago.
    pub fn seen(&self) -> (Arc<Posted>, Duration) {
        let posted = lock(&self.posted).clone();
        let age = self.clock.now().since(posted.at);
        (posted, age)
    }

    /// The last hour, as far as it was posted.
    pub fn hour(&self) -> Hour {
        lock(&self.hour).clone()
    }

    /// How the HTTP listener stands.
    pub fn http(&self) -> Http {
        let refused = Full::ALL.map(|full| (full.name().to_owned(), self.refused(full)));
        Http {
            refused: refused.into_iter().filter(|&(_, count)| count > 0).collect(),
            ..lock(&self.http).clone()
        }
    }

    /// How often something was turned away for this.
    pub(super) fn refused(&self, full: Full) -> u64 {
        self.refused[full as usize].load(Ordering::Relaxed)
    }

    /// Something is turned away.
    pub(super) fn refuse(&self, full: Full) {
        self.refused[full as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// When a job that comes now and finds the queue full may find room, by the loop's last word; `None` before its first.
    pub(super) fn retry_after_ms(&self) -> Option<u64> {
        let (posted, age) = self.seen();
        let told = posted.report.backpressure.get(Lane::Interactive.name())?;
        // What has not moved since will take as long again.
        let age_ms = millis(age);
        Some(told.retry_after_ms?.saturating_add(age_ms))
    }

    pub(super) fn set_http(&self, http: Http) {
        *lock(&self.http) = http;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the system knows of this process. What it does not say is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Process {
    /// Memory in use.
    pub rss_bytes: Option<u64>,
    /// Processor time of all its threads since its start.
    pub cpu_seconds: Option<f64>,
    /// Open file descriptors.
    pub open_fds: Option<u64>,
    /// Their bound.
    pub max_fds: Option<u64>,
}

/// Where is read what the loop must not read.
pub struct Sources {
    /// This machine's name.
    pub host: String,
    /// The process.
    pub process: fn() -> Process,
    /// All records of deaths that are kept, the newest first, or why they cannot be told. It reads a disk.
    pub deaths: Arc<dyn Fn() -> Result<Vec<Kill>, String> + Send + Sync>,
    /// So many of them are shown.
    pub kills_max: usize,
    /// Spans that a collector took, and spans that were given up.
    pub spans: Arc<dyn Fn() -> (u64, u64) + Send + Sync>,
    /// A storm is judged by the deaths within this time.
    pub storm: Duration,
    /// systemd's watchdog period, if it watches us.
    pub watchdog: Option<Duration>,
}

impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}
