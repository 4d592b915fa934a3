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
    shown: Option<Moment>,
    /// Before it is ready it says what is awaited, and a stopping service has said its last word.
    speaks: bool,
    /// Said of a start too soon after the line before, for the next turn that may.
    withheld: Option<String>,
}

impl Show {
    /// Nothing shown yet.
    pub fn new(catalogue: &Catalogue) -> Show {
        let entry = catalogue.default_entry();
        Show::of(entry.name.clone(), entry.outline.device.name())
    }

    fn of(model: String, device: String) -> Show {
        Show {
            model,
            device,
            line: String::new(),
            shown: None,
            speaks: false,
            withheld: None,
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

    /// The start moves: it gets `span` more from now on, and people see what it waits for.
    pub fn starting(&mut self, span: Duration, line: String, now: Moment) {
        // A model is read in hundreds of steps a second. Each buys time, and none is worth a line of its own.
        let line = self.due(line, now);
        notify::extend_start(span, line.as_deref());
    }

    /// The line back if it may be written now, else it is kept for later.
    fn due(&mut self, line: String, now: Moment) -> Option<String> {
        if self.is_too_soon(now) {
            self.withheld = Some(line);
            return None;
        }
        (self.shown, self.withheld) = (Some(now), None);
        Some(line)
    }

    fn is_too_soon(&self, now: Moment) -> bool {
        self.shown.is_some_and(|shown| now.since(shown) < STATUS_INTERVAL)
    }

    /// The service is ready: systemd is told, and from now on the line is kept fresh.
    pub fn ready(&mut self, logic: &Logic, now: Moment) {
        self.speaks = true;
        self.line = self.status_line(logic, now);
        (self.shown, self.withheld) = (Some(now), None);
        notify::ready(&self.line);
    }

    /// The service is stopping: what is shown now stays.
    pub fn stopping(&mut self, line: &str) {
        (self.speaks, self.withheld) = (false, None);
        notify::stopping(line);
    }

    /// The loop has turned.
    pub fn turned(&mut self, logic: &Logic, now: Moment) {
        if self.is_too_soon(now) {
            return;
        }
        if let Some(line) = self.withheld.take() {
            self.shown = Some(now);
            notify::status(&line);
        }
        if !self.speaks {
            return;
        }
        let line = self.status_line(logic, now);
        self.shown = Some(now);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: however fast a start moves, a line is written once a second, and the last one is not lost. Method: a step
    /// each millisecond for 3.5 s.
    #[test]
    fn a_start_writes_a_line_a_second() {
        let mut show = Show::of("model".into(), "cpu".into());
        let at = |ms| Moment::ZERO + Duration::from_millis(ms);
        let lines = (0..=3500).filter_map(|ms| show.due(format!("{ms} MB read"), at(ms)));
        let lines: Vec<String> = lines.collect();
        assert_eq!(
            lines,
            ["0 MB read", "1000 MB read", "2000 MB read", "3000 MB read"]
        );
        assert_eq!(show.withheld.as_deref(), Some("3500 MB read"));
        assert!(show.is_too_soon(at(3999)) && !show.is_too_soon(at(4000)));
    }
}
