//! The in-process watchdog: an OS thread of its own, without any async runtime, that asks the health
//! truth for a verdict and ends the process when a bound is passed. It can never pet.

use crate::clock::{Clock, Moment};
use crate::logic::health::{Health, KillReason, Verdict};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// The latest health truth, written by the loop after each turn, and when the thread last looked at it.
#[derive(Clone, Debug)]
pub struct Truth {
    health: Arc<Mutex<Option<Health>>>,
    look_ms: Arc<AtomicU64>,
}

impl Truth {
    /// Shares `health`, as if it had been looked at `now`.
    pub fn new(health: Health, now: Moment) -> Truth {
        Truth {
            health: Arc::new(Mutex::new(Some(health))),
            look_ms: Arc::new(AtomicU64::new(now.as_millis())),
        }
    }

    /// When the thread last looked: the loop watches the watchdog.
    pub fn last_look(&self) -> Moment {
        Moment::from_millis(self.look_ms.load(Ordering::Relaxed))
    }

    /// The loop's view after a turn.
    pub fn update(&self, health: &Health) {
        if let Ok(mut shared) = self.health.lock()
            && let Some(shared) = shared.as_mut()
        {
            shared.clone_from(health);
        }
    }

    /// All is settled and the process only closes its doors: there is nothing left to judge.
    pub fn retire(&self) {
        if let Ok(mut shared) = self.health.lock() {
            *shared = None;
        }
    }
}

/// Starts the thread. `interval` is `watchdog_interval_ms`, `stall_max` is `liveness_max_stall_ms` until the truth has said
/// what it is now: a truth that cannot even be read for that long is as good as a loop that does not turn. `kill` must
/// not return.
pub fn spawn(
    truth: Truth,
    clock: Clock,
    interval: Duration,
    mut stall_max: Duration,
    kill: impl Fn(KillReason, Option<&Health>, Moment) + Send + 'static,
) -> std::io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name("watchdog".into()).spawn(move || {
        let mut readable = clock.now();
        loop {
            thread::sleep(interval);
            let now = clock.now();
            truth.look_ms.store(now.as_millis(), Ordering::Relaxed);
            // Only a try: the thread that holds the lock may be the one that hangs.
            let seen = truth.health.try_lock().ok().map(|health| health.clone());
            match seen {
                Some(None) => return,
                Some(Some(health)) => {
                    readable = now;
                    stall_max = health.stall_max();
                    if let Verdict::Kill(reason) = health.verdict(now) {
                        kill(reason, Some(&health), now);
                    }
                }
                None if now.since(readable) >= stall_max => kill(KillReason::LoopHung, None, now),
                None => {}
            }
        }
    })
}
