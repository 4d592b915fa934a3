//! What a pull shows meanwhile: one bar on a terminal, plain lines elsewhere.

use crate::clock::{Clock, Moment};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Between two lines of how far it is, where there is no bar.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// The progress of all files together.
pub struct Board {
    /// Absent where stderr is no terminal.
    bar: Option<ProgressBar>,
    total: u64,
    done: AtomicU64,
    clock: Clock,
    said: Mutex<Moment>,
}

impl Board {
    /// For so many bytes, of which some are there already.
    pub fn new(total: u64, done: u64) -> Board {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total).with_position(done);
            let form = "{msg:30!} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
            let style = ProgressStyle::with_template(form);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.reset_eta();
            bar
        });
        let clock = Clock::start();
        Board {
            bar,
            total,
            done: AtomicU64::new(done),
            said: Mutex::new(clock.now()),
            clock,
        }
    }

    /// A file is begun or gone on with; so many bytes of it are there.
    pub fn begin(&self, name: &str, size: u64, there: u64) {
        match &self.bar {
            Some(bar) => bar.set_message(name.to_owned()),
            None if there > 0 => tell!(
                "fetching {name} ({}, {} of it are there)",
                HumanBytes(size),
                HumanBytes(there)
            ),
            None => tell!("fetching {name} ({})", HumanBytes(size)),
        }
    }

    /// So many bytes came.
    pub fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            return;
        }
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        if now.since(*said) >= LINE_EVERY {
            *said = now;
            tell!("fetched {} of {}", HumanBytes(done), HumanBytes(self.total));
        }
    }

    /// So many bytes came in vain.
    pub fn lose(&self, bytes: u64) {
        let before = self.done.fetch_sub(bytes, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.set_position(before.saturating_sub(bytes));
        }
    }

    /// Tells something that people should know.
    pub fn tell(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| tell!("{line}")),
            None => tell!("{line}"),
        }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
