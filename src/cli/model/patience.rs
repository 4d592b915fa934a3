//! How long to wait before the Hub is asked again.

use std::time::Duration;

/// Longest pause that a host is granted; who asks for more is asked again by a later command.
pub const PAUSE_MAX: Duration = Duration::from_secs(120);
/// Failures in a row after which a request is given up.
pub const ATTEMPTS: u32 = 6;
/// The pause after the first failure; each further one is twice as long.
const FIRST: Duration = Duration::from_millis(500);

/// The pause after so many failures in a row: what the host asks for, or else a growing one. `chance` from 0 to 1
/// spreads those that failed together.
pub fn pause(failures: u32, asked: Option<Duration>, chance: f64) -> Duration {
    let grown = FIRST * 2u32.pow(failures.saturating_sub(1).min(6));
    let spread = grown.mul_f64(0.5 + chance / 2.0);
    asked.map_or(spread, |asked| asked.max(spread)).min(PAUSE_MAX)
}

/// The pause that `Retry-After` asks for. The form with a date is not read; the pause then grows by itself.
pub fn asked_for(header: &str) -> Option<Duration> {
    header.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_keep_to_what_the_host_asks_for() {
        let s = Duration::from_secs;
        assert_eq!(pause(1, None, 1.0), Duration::from_millis(500));
        assert_eq!(pause(1, None, 0.0), Duration::from_millis(250));
        assert_eq!(pause(5, None, 1.0), s(8));
        assert_eq!(pause(100, None, 1.0), s(32));
        assert_eq!(pause(1, Some(s(3)), 0.5), s(3));
        assert_eq!(pause(1, Some(s(9999)), 0.5), PAUSE_MAX);
        assert_eq!(asked_for(" 7 "), Some(s(7)));
        assert_eq!(asked_for("Wed, 21 Oct 2015 07:28:00 GMT"), None);
    }
}
