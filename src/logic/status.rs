//! The one line that `systemctl status` shows: the state in a word, then what makes it so.

use super::Logic;
use super::health::{NotReady, Verdict};
use crate::clock::Moment;
use crate::job::Lane;
use std::fmt::Write as _;
use std::time::Duration;

/// What the line needs from outside the logic.
#[derive(Clone, Debug)]
pub struct Subject<'a> {
    /// The default model's name.
    pub model: &'a str,
    /// Where it runs.
    pub device: &'a str,
}

/// The figures of the line, for other views of the same truth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// Inputs computed a second, lately.
    pub inputs_per_second: f64,
    /// Admitted interactive jobs that no engine has begun.
    pub queue: usize,
    /// Their bound.
    pub queue_max: usize,
    /// Jobs whose computation has begun and is not finished.
    pub inflight: usize,
}

impl Logic {
    /// The present figures.
    pub fn figures(&self, now: Moment) -> Figures {
        let inflight = self.inflight();
        let held = self.admission.held(Lane::Interactive);
        Figures {
            inputs_per_second: self.inputs.per_second(now).unwrap_or(0.0),
            queue: held.saturating_sub(inflight),
            queue_max: self.setup.limits.max_queue,
            inflight,
        }
    }

    /// Whether new work is welcome, or why not.
    pub fn readiness(&self, now: Moment) -> Result<(), NotReady> {
        self.health.readiness(self.admission.is_saturated(), now)
    }

    /// The `Status:` line.
    pub fn status_line(&self, subject: &Subject<'_>, now: Moment) -> String {
        let mut line = match self.readiness(now) {
            Ok(()) => "ready".to_owned(),
            Err(NotReady::Starting) => format!("starting · {}", NotReady::Starting),
            Err(NotReady::Draining) => "draining".to_owned(),
            Err(cause @ NotReady::Blocked) => {
                let since = self
                    .health
                    .blocked_since()
                    .map_or(Duration::ZERO, |since| now.since(since));
                format!("degraded · {cause} since {} s", since.as_secs())
            }
            Err(cause) => format!("degraded · {cause}"),
        };
        if let (Some(stage), Verdict::Unproven | Verdict::Kill(_)) =
            (self.health.stalled(now), self.health.verdict(now))
        {
            let _ = write!(line, " · stage {stage} stalled");
        }
        let figures = self.figures(now);
        let _ = write!(
            line,
            " · {} on {} · {:.0} inputs/s · queue {}/{} · inflight {}",
            subject.model,
            subject.device,
            figures.inputs_per_second,
            figures.queue,
            figures.queue_max,
            figures.inflight
        );
        match self.health.round_age(now) {
            Some(age) => {
                let _ = write!(line, " · last proof {:.1} s ago", age.as_secs_f64());
            }
            None => line.push_str(" · no proof yet"),
        }
        line
    }
}
