//! Engines rest while jobs pour in: between two layers they leave the processors to those who take the jobs in.
//!
//! Engines keep every processor busy for as long as there is work, and whoever shares the machine with them waits for a
//! turn: this process's other threads, and a broker on the same machine. In a flood that is what refused callers wait
//! for. Whether a group of threads is let through is the scheduler's affair and differs from machine to machine; that
//! nobody is in the way is ours.

use crate::clock::Moment;
use std::ops::RangeInclusive;
use std::time::Duration;

/// So long after each job that comes in, unless the next one comes in meanwhile; and two jobs further apart do not pour.
/// A broker that is short of processors stands still for as long now and then.
pub const SPAN: Duration = Duration::from_millis(30);
/// Jobs pour in if within this time so many more come in ...
const WINDOW: Duration = Duration::from_millis(250);
/// ... than five quarters of those that are done (callers who send one job after the other send as many as are done, and a
/// batch of them more), ...
const DONE: (usize, usize) = (5, 4);
/// ... that they fill this part of the lane's bound, ...
const PART: usize = 4;
/// ... and not fewer than this: what two engines have done in a moment is no flood. Nor need they be more than that: a lane of
/// thousands is not filled so fast.
const JOBS: RangeInclusive<usize> = 32..=512;
/// The window is counted in so many slots, of which the oldest is forgotten as a whole.
const SLOTS: usize = 5;
/// What is rested at most in one go, for each job that the lane may hold: a flood of ten times as many is delivered, and nine
/// of ten refused, in that time.
const OF_PLACE: Duration = Duration::from_millis(1);
/// Not less, since callers do not send all at the same moment, ...
const ALLOWANCE_MIN: Duration = Duration::from_millis(500);
/// ... and not more, since those who were taken in wait meanwhile.
const ALLOWANCE_MAX: Duration = Duration::from_millis(2500);
/// And of all time, one part in so many.
pub const SHARE: u32 = 20;
/// A rest is part of what the engines' stage may stand still for before it counts as stalled.
const OF_STALL: u32 = 4;
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
    flow: Flow,
}

impl Default for Rest {
    fn default() -> Rest {
        Rest {
            left: ALLOWANCE_MAX,
            last: None,
            until: Moment::ZERO,
            flow: Flow::default(),
        }
    }
}

impl Rest {
    /// A job has come in, and was taken in or refused, into a lane that holds at most `most`; a stage may stand still for
    /// `stall`. Until when engines are to rest, if that is longer than before.
    pub fn arrived(&mut self, most: usize, stall: Duration, now: Moment) -> Option<Moment> {
        let gap = self.last.replace(now).map(|last| now.since(last));
        let allowance = allowance(most).min(stall / OF_STALL);
        self.left = allowance.min(self.left + gap.unwrap_or_default() / SHARE);
        self.flow.turn(now).0 += 1;
        if gap.is_none_or(|gap| gap > SPAN)
            || self.flow.surplus() < (most / PART).clamp(*JOBS.start(), *JOBS.end())
        {
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

    /// A job is done with its vectors.
    pub fn done(&mut self, now: Moment) {
        self.flow.turn(now).1 += 1;
    }
}

/// What may be rested in one go, where the lane holds at most `most`.
pub fn allowance(most: usize) -> Duration {
    let places = u32::try_from(most).unwrap_or(u32::MAX);
    OF_PLACE
        .saturating_mul(places)
        .clamp(ALLOWANCE_MIN, ALLOWANCE_MAX)
}

/// Jobs that came in and jobs that were done, of late.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    slots: [(usize, usize); SLOTS],
    /// Number of the newest slot, counted from the start.
    newest: u128,
}

impl Flow {
    /// The slot of this moment; those in between were empty.
    fn turn(&mut self, now: Moment) -> &mut (usize, usize) {
        let slot = now.since(Moment::ZERO).as_nanos() / (WINDOW.as_nanos() / SLOTS as u128);
        let place = |slot: u128| (slot % SLOTS as u128) as usize;
        for empty in (self.newest + 1..=slot).rev().take(SLOTS) {
            self.slots[place(empty)] = (0, 0);
        }
        self.newest = self.newest.max(slot);
        &mut self.slots[place(self.newest)]
    }

    /// How many more came in than those that keep pace with what is done.
    fn surplus(&self) -> usize {
        let came: usize = self.slots.iter().map(|slot| slot.0).sum();
        let done: usize = self.slots.iter().map(|slot| slot.1).sum();
        came.saturating_sub(done * DONE.0 / DONE.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STALL: Duration = Duration::from_secs(30);

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    #[test]
    fn a_flood_has_rest_and_a_trickle_has_none() {
        let mut rest = Rest::default();
        let flood: Vec<_> = (0..80).map(|n| rest.arrived(256, STALL, at(n))).collect();
        assert_eq!(flood.iter().flatten().next(), Some(&(at(63) + SPAN)), "{flood:?}");
        assert_eq!(flood.iter().flatten().count(), 4, "in steps: {flood:?}");
        let mut trickle = Rest::default();
        let mut jobs = (0..100).map(|n| trickle.arrived(2, STALL, at(40 * n)));
        assert!(jobs.all(|rest| rest.is_none()), "jobs that come one by one");
        let mut calm = Rest::default();
        let mut jobs = (0..1000).map(|n| {
            calm.done(at(n));
            calm.arrived(256, STALL, at(n))
        });
        assert!(jobs.all(|rest| rest.is_none()), "jobs that are done as they come");
        let mut early = Rest::default();
        early.arrived(8, STALL, at(0));
        for n in 0..63 {
            early.arrived(8, STALL, at(n / 3));
        }
        assert!(early.until > Moment::ZERO);
        (0..63).for_each(|n| {
            assert_eq!(
                early.arrived(256, STALL, at(1000 + n)),
                None,
                "that flood is over"
            )
        });
    }

    /// Goal: callers who send their next job when they have an answer do not hold up the engines that work for them. Method:
    /// 200 of them, engines that finish 60 jobs every 25 ms, half of the time of a layer late or early.
    #[test]
    fn callers_who_wait_for_their_answers_cost_no_rest() {
        let mut rest = Rest::default();
        let rests = |rest: &mut Rest, jobs: u64, from: u64| {
            let told = (0..jobs).filter_map(|n| rest.arrived(256, STALL, at(from + n / 10)));
            told.count()
        };
        assert!(rests(&mut rest, 200, 0) > 0, "they begin all at once");
        let late = (1u64..400).map(|batch| {
            let now = 50 + 25 * batch + batch * 7 % 5;
            (0..60).for_each(|_| rest.done(at(now)));
            rests(&mut rest, 60, now)
        });
        // Until the window has forgotten their beginning.
        assert_eq!(late.skip(12).sum::<usize>(), 0);
    }

    proptest! {
        /// However jobs come in, engines have nineteen parts of twenty of the time but for one allowance, are never held for
        /// longer than the span behind the last job, and in one go not for longer than a quarter of what counts as stalled.
        #[test]
        fn rest_is_bounded(
            gaps in proptest::collection::vec((0u64..40, 0usize..4), 1..600),
            stall_ms in 100u64..5000,
            most in 64usize..4000,
        ) {
            let stall = Duration::from_millis(stall_ms);
            let (mut rest, mut now, mut rested, mut until) = (Rest::default(), Moment::ZERO, Duration::ZERO, Moment::ZERO);
            let mut begun = Moment::ZERO;
            for (gap, done) in gaps.into_iter().cycle().take(6000) {
                // Most come at once.
                now = now + Duration::from_millis(gap.saturating_sub(30));
                (0..done / 2).for_each(|_| rest.done(now));
                if let Some(end) = rest.arrived(most, stall, now) {
                    prop_assert!(end > until && end <= now + SPAN);
                    if now >= until {
                        begun = now;
                    }
                    rested += end.since(until.max(now));
                    until = end;
                    prop_assert!(rested <= allowance(most) + now.since(Moment::ZERO) / SHARE, "{rested:?} at {now:?}");
                    let in_one_go = end.since(begun);
                    prop_assert!(in_one_go <= stall / OF_STALL + in_one_go / SHARE + STEP, "{in_one_go:?} of {stall:?}");
                }
            }
        }
    }
}
