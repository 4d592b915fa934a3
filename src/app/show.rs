//! What is shown of the loop, after each of its turns: the `Status:` line.

use super::catalogue::Catalogue;
use crate::clock::Moment;
use crate::logic::Logic;
use crate::logic::status::Subject;
use crate::watchdog::notify;
use std::time::Duration;

/// The `Status:` line is written at most this often.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// What has been shown, and when.
pub struct Show {
    model: String,
    device: String,
    line: String,
    shown: Moment,
    /// Before it is ready the connect loop speaks, and a stopping service has said its last word.
    speaks: bool,
}

impl Show {
    /// Nothing shown yet.
    pub fn new(catalogue: &Catalogue) -> Show {
        let entry = catalogue.default_entry();
        Show {
            model: entry.name.clone(),
            device: entry.outline.device.name(),
            line: String::new(),
            shown: Moment::ZERO,
            speaks: false,
        }
    }

    /// The default model's name.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Where it runs.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// The line as it is now, for one who asks.
    pub fn present(&self, logic: &Logic, now: Moment) -> String {
        self.status_line(logic, now)
    }

    /// The last line shown.
    pub fn line(&self) -> &str {
        &self.line
    }

    /// The service is ready: systemd is told, and from now on the line is kept fresh.
    pub fn ready(&mut self, logic: &Logic, now: Moment) {
        self.speaks = true;
        self.line = self.status_line(logic, now);
        self.shown = now;
        notify::ready(&self.line);
    }

    /// The service is stopping: what is shown now stays.
    pub fn stopping(&mut self, line: &str) {
        self.speaks = false;
        notify::stopping(line);
    }

    /// The loop has turned.
    pub fn turned(&mut self, logic: &Logic, now: Moment) {
        if !self.speaks || now.since(self.shown) < STATUS_INTERVAL {
            return;
        }
        let line = self.status_line(logic, now);
        self.shown = now;
        if line != self.line {
            notify::status(&line);
            self.line = line;
        }
    }

    fn status_line(&self, logic: &Logic, now: Moment) -> String {
        let subject = Subject {
            model: &self.model,
            device: &self.device,
        };
        logic.status_line(&subject, now)
    }
}
