//! Counts who is inside a place that has a bound, and how fast they leave it: so that whoever is turned away is told when to
//! come back by what is, and not by a constant. It decides nothing.

use crate::clock::Clock;
use crate::logic::pace::{SettleRate, retry_ms};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The way in and out.
#[derive(Debug)]
pub(super) struct Turnstile {
    clock: Clock,
    inside: Mutex<Inside>,
}

#[derive(Debug, Default)]
struct Inside {
    count: usize,
    pace: SettleRate,
}

impl Turnstile {
    /// Nobody is inside.
    pub(super) fn new(clock: Clock) -> Turnstile {
        Turnstile {
            clock,
            inside: Mutex::default(),
        }
    }

    /// Somebody goes in.
    pub(super) fn enter(&self) {
        let now = self.clock.now();
        let mut inside = self.lock();
        inside.count += 1;
        inside.pace.holds(true, now);
    }

    /// Somebody comes out.
    pub(super) fn leave(&self) {
        let now = self.clock.now();
        let mut inside = self.lock();
        inside.count = inside.count.saturating_sub(1);
        let busy = inside.count > 0;
        inside.pace.settled(now);
        inside.pace.holds(busy, now);
    }

    /// When there may be room: those who are inside and one more must have left, as fast as they do, and as long again as
    /// nobody has. The same reckoning as that of the queue, since a place that is free for an instant is another's.
    pub(super) fn retry_after_ms(&self) -> u64 {
        let now = self.clock.now();
        let inside = self.lock();
        retry_ms(inside.pace.seconds_for(inside.count as f64 + 1.0, now))
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the more are inside, the later; and who has left is not waited for.
    #[test]
    fn a_crowd_is_waited_for() {
        let turnstile = Turnstile::new(Clock::start());
        turnstile.enter();
        let one = turnstile.retry_after_ms();
        for _ in 0..400 {
            turnstile.enter();
        }
        let many = turnstile.retry_after_ms();
        assert!(many > 50 * one, "{one} ms for one, {many} ms for 401");
        for _ in 0..401 {
            turnstile.leave();
        }
        assert!(turnstile.retry_after_ms() <= one);
    }
}
