//! Engines rest while jobs pour in: between two layers they leave the processors to those who take the jobs in.
//!
//! Engines keep every processor busy for as long as there is work, and whoever shares the machine with them waits for a
//! turn: this process's other threads, and a broker on the same machine. In a flood that is what refused callers wait
//! for. Whether a group of threads is let through is the scheduler's affair and differs from machine to machine; that
//! nobody is in the way is ours.

use crate::clock::Moment;
use std::time::Duration;

/// So long after each job that comes in, unless the next one comes in meanwhile; and two jobs further apart do not pour.
/// A broker that is short of processors stands still for as long now and then.
pub const SPAN: Duration = Duration::from_millis(30);
/// Jobs pour in if the lane holds this part of its bound, ...
const PART: usize = 16;
/// ... and not fewer than this: what two engines have done in a moment is no flood.
const JOBS_MIN: usize = 32;
/// What is rested at most in one go; a flood of thousands of jobs is delivered in less.
pub const ALLOWANCE: Duration = Duration::from_millis(500);
/// And of all time, one part in so many.
pub const SHARE: u32 = 20;
/// A rest is made longer in steps of at least this, so that not every job of a flood does.
const STEP: Duration = Duration::from_millis(5);

/// How long engines have rested, and may.
#[derive(Clone, Copy, Debug)]
pub struct Rest {
    /// What may still be rested, at the moment of the last job.
    left: Duration,
    /// When the last job came in.
    last: Option<Moment>,
    until: Moment,
}

impl Default for Rest {
    fn default() -> Rest {
        Rest {
            left: ALLOWANCE,
            last: None,
            until: Moment::ZERO,
        }
    }
}

impl Rest {
    /// A job has come in. The lane holds so many of at most `most`, and had no room for this one if `refused`. Until when
    /// engines are to rest, if that is longer than before.
    pub fn arrived(&mut self, held: usize, most: usize, refused: bool, now: Moment) -> Option<Moment> {
        let gap = self.last.replace(now).map(|last| now.since(last));
        self.left = ALLOWANCE.min(self.left + gap.unwrap_or_default() / SHARE);
        let is_flood = refused || held >= JOBS_MIN.max(most / PART);
        if !is_flood || gap.is_none_or(|gap| gap > SPAN) {
            return None;
        }
        let begin = self.until.max(now);
        let more = (now + SPAN).since(begin).min(self.left);
        if more < STEP {
            return None;
        }
        self.left -= more;
        self.until = begin + more;
        Some(self.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    #[test]
    fn a_flood_has_rest_and_a_steady_trickle_has_none() {
        let mut rest = Rest::default();
        let flood: Vec<_> = (0..40)
            .map(|n| rest.arrived(n, 256, false, at(n as u64)))
            .collect();
        assert_eq!(
            flood.iter().flatten().next(),
            Some(&(at(32) + SPAN)),
            "the 33rd finds 32 before it: {flood:?}"
        );
        let mut trickle = Rest::default();
        let mut jobs = (0..100).map(|n| trickle.arrived(256, 256, true, at(40 * n)));
        assert!(jobs.all(|rest| rest.is_none()), "jobs that come one by one");
        let mut calm = Rest::default();
        let mut jobs = (0..100).map(|n| calm.arrived(31, 256, false, at(n)));
        assert!(jobs.all(|rest| rest.is_none()), "jobs that are done as they come");
        let mut small = Rest::default();
        assert_eq!(small.arrived(2, 2, true, at(0)), None, "the first of a flood");
        assert_eq!(
            small.arrived(2, 2, true, at(1)),
            Some(at(1) + SPAN),
            "a small queue's"
        );
    }

    proptest! {
        /// However jobs come in, engines have nineteen parts of twenty of the time but for one allowance, and are never
        /// held for longer than the span behind the last job.
        #[test]
        fn rest_is_bounded(gaps in proptest::collection::vec((0u64..60, any::<bool>(), 0usize..600), 1..400)) {
            let (mut rest, mut now, mut rested, mut until) = (Rest::default(), Moment::ZERO, Duration::ZERO, Moment::ZERO);
            for (gap, refused, held) in gaps {
                now = now + Duration::from_millis(gap);
                if let Some(end) = rest.arrived(held, 512, refused, now) {
                    prop_assert!(end > until && end <= now + SPAN);
                    rested += end.since(until.max(now));
                    until = end;
                    prop_assert!(rested <= ALLOWANCE + now.since(Moment::ZERO) / SHARE, "{rested:?} at {now:?}");
                }
            }
        }
    }
}
