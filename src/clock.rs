//! Time as plain data. [`Moment`] is what all decisions take as a parameter; [`Clock`] is the only
//! place that reads the machine's clocks, so everything above can be run on made-up time.

use std::ops::{Add, Sub};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A point on the monotonic clock, counted from the start of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(Duration);

impl Moment {
    /// The start of the process.
    pub const ZERO: Moment = Moment(Duration::ZERO);

    /// The moment `ms` milliseconds after the start.
    pub const fn from_millis(ms: u64) -> Moment {
        Moment(Duration::from_millis(ms))
    }

    /// Milliseconds since the start.
    pub fn as_millis(self) -> u64 {
        millis(self.0)
    }

    /// How long after `earlier` this moment is; zero if it is not after it.
    pub fn since(self, earlier: Moment) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;
    fn add(self, span: Duration) -> Moment {
        Moment(self.0.saturating_add(span))
    }
}

impl Sub<Duration> for Moment {
    type Output = Moment;
    /// Saturates at the start of the process.
    fn sub(self, span: Duration) -> Moment {
        Moment(self.0.saturating_sub(span))
    }
}

/// A span in whole milliseconds, as everything that is told outside counts.
pub fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Reads the machine's clocks. Copies share the same start.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock whose [`Moment::ZERO`] is now.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the monotonic clock"
    )]
    pub fn start() -> Clock {
        Clock {
            start: Instant::now(),
        }
    }

    /// The present moment.
    pub fn now(&self) -> Moment {
        Moment(self.start.elapsed())
    }

    /// Milliseconds since the Unix epoch by the wall clock, which may be set at any time; zero if it stands before that.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the wall clock"
    )]
    pub fn unix_ms() -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis)
    }

    /// Milliseconds on the clock that all processes of this machine share, and that never steps back: by it
    /// one process can tell how old another's words are.
    pub fn monotonic_ms() -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let millis = i128::from(now.tv_sec) * 1000 + i128::from(now.tv_nsec) / 1_000_000;
        u64::try_from(millis).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_saturate_instead_of_wrapping() {
        let (early, late) = (Moment::from_millis(5), Moment::from_millis(9));
        assert_eq!(late.since(early), Duration::from_millis(4));
        assert_eq!(early.since(late), Duration::ZERO);
        assert_eq!(early - Duration::from_secs(1), Moment::ZERO);
        assert_eq!((early + Duration::from_millis(4)).as_millis(), late.as_millis());
    }
}
