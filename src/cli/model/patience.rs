//! Waiting for the Hub, but never for ever: what stands still is given up, what is slow is not.

use anyhow::{Context, bail, ensure};
use hf_hub::api::Progress;
use indicatif::ProgressBar;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// Runs `task` on a thread of its own and waits for it, unless `activity` stands still for `limit`. The
/// thread is then left behind; the process is about to end with the error.
///
/// # Errors
/// The silence, or a thread that could not be started.
pub fn watched<T: Send + 'static>(
    limit: Duration,
    activity: &Arc<AtomicU64>,
    task: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<T> {
    let tick = Duration::from_millis(100);
    let (done, answer) = channel();
    std::thread::Builder::new()
        .name("io-hub".to_owned())
        .spawn(move || drop(done.send(task())))
        .context("failed to start a thread")?;
    let (mut seen, mut quiet) = (activity.load(Ordering::Relaxed), Duration::ZERO);
    loop {
        match answer.recv_timeout(tick) {
            Ok(result) => return Ok(result),
            Err(RecvTimeoutError::Disconnected) => bail!("the download ended without a result"),
            Err(RecvTimeoutError::Timeout) => {
                let now = activity.load(Ordering::Relaxed);
                quiet = if now == seen { quiet + tick } else { Duration::ZERO };
                seen = now;
                ensure!(quiet < limit, "no answer for {} s", limit.as_secs());
            }
        }
    }
}

/// Moves the one bar of a pull, and shows that bytes move.
pub struct Meter {
    /// The bar.
    pub bar: ProgressBar,
    /// Bytes of the files before this one.
    pub before: u64,
    /// Bytes of this file.
    pub done: u64,
    /// Grows with every piece that comes.
    pub activity: Arc<AtomicU64>,
}

impl Progress for Meter {
    fn init(&mut self, _size: usize, _filename: &str) {
        self.done = 0;
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        self.activity.fetch_add(1, Ordering::Relaxed);
        self.bar.set_position(self.before + self.done);
    }

    fn finish(&mut self) {}
}
