//! How fast jobs are sent: fewer at a time after each overload, more again with each job that is answered, and
//! never before the service said to come back. Decides only; time and chance are parameters.

use crate::clock::Moment;
use std::time::Duration;

/// A pause that the service asks for is drawn from itself to this much longer: callers that were refused in one
/// moment must not come back in one moment.
const JITTER: f64 = 0.5;
/// First pause before connecting again. The real one is drawn from zero to it (full jitter).
const RECONNECT_FIRST: Duration = Duration::from_millis(200);
/// Longest pause before connecting again.
const RECONNECT_MAX: Duration = Duration::from_secs(5);

/// How many jobs may be under way, and from when on.
///
/// ```text
///   answered: limit += 1/limit, up to jobs_max        refused: limit /= 2, down to 1, once per round
/// ```
/// As TCP does it: additive increase, multiplicative decrease.
#[derive(Debug)]
pub struct Pace {
    jobs_max: f64,
    limit: f64,
    /// Nothing is sent before.
    held_until: Moment,
    /// When the limit was lowered last. A refusal of a job that was sent before that says nothing new.
    lowered: Option<Moment>,
}

impl Pace {
    /// All of `jobs_max` (at least 1) at the start.
    pub fn new(jobs_max: usize) -> Pace {
        let jobs_max = jobs_max.max(1) as f64;
        Pace {
            jobs_max,
            limit: jobs_max,
            held_until: Moment::ZERO,
            lowered: None,
        }
    }

    /// How many jobs may be under way.
    pub fn limit(&self) -> usize {
        self.limit as usize
    }

    /// Nothing is sent before this moment.
    pub fn held_until(&self) -> Moment {
        self.held_until
    }

    /// Whether another job may be sent beside so many.
    pub fn may_send(&self, under_way: usize, now: Moment) -> bool {
        now >= self.held_until && under_way < self.limit()
    }

    /// A job was computed.
    pub fn answered(&mut self) {
        self.limit = (self.limit + 1.0 / self.limit).min(self.jobs_max);
    }

    /// A job that was sent at `sent` was refused. `draw` is a random number from 0 to 1. Says from when on it may
    /// be sent again.
    pub fn refused(&mut self, sent: Moment, retry_after: Duration, draw: f64, now: Moment) -> Moment {
        if self.lowered.is_none_or(|lowered| sent >= lowered) {
            self.limit = (self.limit / 2.0).max(1.0);
            self.lowered = Some(now);
        }
        let again = now + stretched(retry_after, draw);
        self.held_until = self.held_until.max(again);
        again
    }
}

/// From `pause` to half as much more, by a random number from 0 to 1.
pub fn stretched(pause: Duration, draw: f64) -> Duration {
    let more = pause.as_secs_f64() * JITTER * draw.clamp(0.0, 1.0);
    pause.saturating_add(Duration::try_from_secs_f64(more).unwrap_or(Duration::MAX))
}

/// Pauses between attempts to connect.
#[derive(Debug)]
pub struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff(RECONNECT_FIRST)
    }
}

impl Backoff {
    /// The next pause, by a random number from 0 to 1.
    pub fn next(&mut self, draw: f64) -> Duration {
        let pause = self.0.mul_f64(draw.clamp(0.0, 1.0));
        self.0 = self.0.saturating_mul(2).min(RECONNECT_MAX);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    /// Goal: one burst of refusals halves once, answers bring the limit back by one per round.
    #[test]
    fn one_round_halves_once() {
        let mut pace = Pace::new(8);
        for ms in [100, 101, 102] {
            pace.refused(at(50), Duration::from_millis(10), 0.0, at(ms));
        }
        assert_eq!(pace.limit(), 4);
        assert!(!pace.may_send(0, at(111)) && pace.may_send(0, at(112)));
        for _ in 0..5 {
            pace.answered();
        }
        assert_eq!(pace.limit(), 5);
        pace.refused(at(200), Duration::ZERO, 0.0, at(210));
        assert_eq!(pace.limit(), 2);
    }

    #[test]
    fn a_pause_is_never_shorter_than_asked() {
        let pause = Duration::from_millis(400);
        assert_eq!(stretched(pause, 0.0), pause);
        assert_eq!(stretched(pause, 1.0), Duration::from_millis(600));
        assert_eq!(stretched(Duration::MAX, 1.0), Duration::MAX);
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..7).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(pauses, [200, 400, 800, 1600, 3200, 5000, 5000]);
    }

    proptest! {
        /// Goal: whatever is answered and refused, the limit stays from 1 to what was asked for, and nothing is sent
        /// before the service said.
        #[test]
        fn the_limit_is_kept(
            jobs_max in 1usize..100,
            steps in proptest::collection::vec((any::<bool>(), 0u64..5000, 0.0f64..1.0, 0u64..100), 0..200),
        ) {
            let mut pace = Pace::new(jobs_max);
            let mut now = 0;
            for (answered, retry_ms, draw, passed) in steps {
                now += passed;
                if answered {
                    pace.answered();
                } else {
                    let again = pace.refused(at(now), Duration::from_millis(retry_ms), draw, at(now));
                    prop_assert!(again >= at(now + retry_ms));
                    prop_assert!(retry_ms == 0 || !pace.may_send(0, at(now + retry_ms - 1)));
                }
                prop_assert!((1..=jobs_max).contains(&pace.limit()));
                prop_assert!(!pace.may_send(pace.limit(), at(u64::MAX)));
                prop_assert!(pace.may_send(0, pace.held_until()));
            }
        }
    }
}
