//! What people see on stderr meanwhile: a progress bar where stderr is a terminal, and single words of what happens.

use super::lines;
use crate::args::SubmitArgs;
use crate::clock::{Clock, Moment};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::sync::{Arc, Mutex, PoisonError};

/// The bar and its counts. Copies are the same board.
#[derive(Debug, Clone)]
pub struct Board {
    bar: ProgressBar,
    clock: Clock,
    shown: Arc<Mutex<Shown>>,
}

#[derive(Debug, Default)]
struct Shown {
    embedded: u64,
    trouble: String,
}

impl Board {
    /// A bar over the bytes of the files, or a counter for stdin; nothing where stderr is no terminal. `clock`
    /// started when the command did.
    pub fn new(args: &SubmitArgs, clock: Clock) -> Board {
        let total = lines::total_bytes(&args.files);
        let target = if args.quiet {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        let style = match total {
            Some(_) => "{bar:30} {percent:>3} % · {msg} · eta {eta}",
            None => "{spinner} {msg} · {elapsed}",
        };
        let style = ProgressStyle::with_template(style).expect("the templates are well-formed");
        Board {
            bar: ProgressBar::with_draw_target(total, target).with_style(style),
            clock,
            shown: Arc::default(),
        }
    }

    /// So many lines were written, and so many bytes of the input are done with.
    pub fn wrote(&self, lines: u64, bytes: u64) {
        self.bar.inc(bytes);
        self.shown().embedded += lines;
        self.draw();
    }

    /// What is written already was read again, and says nothing about how fast it goes.
    pub fn skipped(&self) {
        self.bar.reset_eta();
    }

    /// What stands behind the counts until it is replaced; empty if all is well.
    pub fn trouble(&self, trouble: String) {
        if self.shown().trouble != trouble {
            self.shown().trouble = trouble;
            self.draw();
        }
    }

    /// A line of its own.
    pub fn say(&self, line: &str) {
        self.bar.suspend(|| tell!("{line}"));
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }

    /// Since the command began.
    pub fn seconds(&self) -> f64 {
        self.clock.now().since(Moment::ZERO).as_secs_f64()
    }

    /// A rate since the command began.
    pub fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.seconds().max(0.001)
    }

    fn draw(&self) {
        let shown = self.shown();
        let rate = self.per_second(shown.embedded);
        let gap = if shown.trouble.is_empty() { "" } else { " · " };
        let message = format!(
            "{} lines · {rate:.0} inputs/s{gap}{}",
            shown.embedded, shown.trouble
        );
        drop(shown);
        self.bar.set_message(message);
    }

    fn shown(&self) -> std::sync::MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
