//! The last hour in slots of ten seconds: what was counted in each, and the most that was inside. Nothing here decides.
//!
//! ```text
//!   looked at, with the totals since the start ──> the present slot: totals less those of the last look before it
//!                                                    └ its time is over ──> kept for an hour
//! ```
//!
//! Everything that is counted is counted by a turn of the loop, and every turn is followed by a look soon: so a slot in which
//! nobody looked is one in which the loop stood still. It is a gap, and neither a zero nor a mean. Only what HTTP turns away it
//! counts itself, also while the loop stands still: that is in the slot of the look that comes after. Slots go by the monotonic
//! clock, which no hand sets; the wall clock is asked by whoever shows them.

use super::event::Outcome;
use super::tally::{Histogram, Tally};
use crate::clock::Moment;
use crate::job::Lane;
use crate::report::Report;
use std::collections::VecDeque;
use std::time::Duration;

/// Length of a slot: fine enough for a death and a restart to be seen, coarse enough for an hour on a small screen.
pub const STEP: Duration = Duration::from_secs(10);
/// An hour of them.
pub const SLOTS_MAX: usize = 360;
/// The lanes of callers; canaries are no work.
pub const LANES: [Lane; 3] = [Lane::Interactive, Lane::Bulk, Lane::Resumed];

/// How long jobs took, in seconds. The quantiles are as near as the bounds of a [`Histogram`] tell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    /// Mean.
    pub mean: f64,
    /// Half of them took less.
    pub median: f64,
    /// One in a hundred took longer.
    pub p99: f64,
}

/// Ten seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slot {
    /// Which, from the start of the process.
    pub number: u64,
    /// Jobs answered with vectors, in the order of [`LANES`].
    pub jobs: [u64; LANES.len()],
    /// From delivery to acknowledgement, the same jobs.
    pub latency: [Option<Latency>; LANES.len()],
    /// Inputs computed.
    pub inputs: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Jobs turned away as overloaded.
    pub overloaded: u64,
    /// Other error replies.
    pub errors: u64,
    /// What HTTP turned away before it was a job.
    pub door: u64,
    /// The most jobs that waited, in the order of [`LANES`].
    pub queue: [u64; LANES.len()],
    /// The most jobs in flight.
    pub inflight: u64,
    /// Why new work was not welcome when last it was not.
    pub not_ready: Option<String>,
}

/// What only grows.
#[derive(Clone, Debug, Default)]
struct Totals {
    jobs: [u64; LANES.len()],
    seconds: [Option<Histogram>; LANES.len()],
    inputs: u64,
    tokens: u64,
    overloaded: u64,
    errors: u64,
    door: u64,
}

impl Totals {
    fn of(report: &Report, tally: &Tally, door: u64) -> Totals {
        let answered = |lane: Lane| tally.jobs[lane as usize][Outcome::Answered as usize];
        let refused = report
            .backpressure
            .values()
            .flat_map(|lane| lane.refused.values());
        Totals {
            jobs: LANES.map(answered),
            seconds: LANES.map(|lane| Some(tally.job_seconds[lane as usize].clone())),
            inputs: tally.inputs,
            tokens: tally.tokens,
            overloaded: refused.sum(),
            errors: tally.refused.iter().sum(),
            door,
        }
    }

    fn latency_since(&self, before: &Totals, lane: usize) -> Option<Latency> {
        let now = self.seconds[lane].as_ref()?;
        let seen = before.seconds[lane]
            .as_ref()
            .map_or_else(|| now.clone(), |before| now.since(before));
        Some(Latency {
            mean: seen.mean()?,
            median: seen.quantile(0.5)?,
            p99: seen.quantile(0.99)?,
        })
    }
}

/// The last hour.
#[derive(Clone, Debug, Default)]
pub struct Hour {
    /// Slots in which somebody looked, by rising number; the last may still go on. At most [`SLOTS_MAX`].
    slots: VecDeque<Slot>,
    /// As last looked at before the last slot.
    before: Totals,
    /// As last looked at.
    last: Totals,
}

impl Hour {
    /// Looks at how things are; `door` is how often HTTP has turned something away since the start.
    pub fn look(&mut self, report: &Report, tally: &Tally, door: u64, now: Moment) {
        let latest = self.slots.back().map_or(0, |slot| slot.number);
        // A moment before the last look belongs to the slot of that: no slot is opened twice.
        let number = number(now).max(latest);
        if self.slots.back().is_none_or(|slot| slot.number < number) {
            self.before = self.last.clone();
            self.slots.push_back(Slot {
                number,
                ..Slot::default()
            });
            let first = (number + 1).saturating_sub(SLOTS_MAX as u64);
            while self.slots.front().is_some_and(|slot| slot.number < first) {
                self.slots.pop_front();
            }
        }
        self.last = Totals::of(report, tally, door);
        let (last, before) = (&self.last, &self.before);
        let slot = self.slots.back_mut().expect("it was just opened");
        for (lane, of) in LANES.iter().enumerate() {
            slot.jobs[lane] = last.jobs[lane].saturating_sub(before.jobs[lane]);
            slot.latency[lane] = last.latency_since(before, lane);
            let queue = report.queues.get(of.name()).copied();
            slot.queue[lane] = slot.queue[lane].max(queue.unwrap_or_default());
        }
        slot.inputs = last.inputs.saturating_sub(before.inputs);
        slot.tokens = last.tokens.saturating_sub(before.tokens);
        slot.overloaded = last.overloaded.saturating_sub(before.overloaded);
        slot.errors = last.errors.saturating_sub(before.errors);
        slot.door = last.door.saturating_sub(before.door);
        slot.inflight = slot.inflight.max(report.inflight);
        if report.not_ready.is_some() {
            slot.not_ready.clone_from(&report.not_ready);
        }
    }

    /// The slots of the last hour whose time is over at `now`, without a hole: the number of the first, and each of them, or
    /// `None` where nobody looked.
    pub fn over(&self, now: Moment) -> (u64, Vec<Option<&Slot>>) {
        let end = number(now);
        let oldest = self.slots.front().map_or(end, |slot| slot.number);
        let first = oldest.max(end.saturating_sub(SLOTS_MAX as u64)).min(end);
        let mut slots = vec![None; usize::try_from(end - first).unwrap_or_default()];
        for slot in &self.slots {
            let at = slot
                .number
                .checked_sub(first)
                .and_then(|at| usize::try_from(at).ok());
            if let Some(place) = at.and_then(|at| slots.get_mut(at)) {
                *place = Some(slot);
            }
        }
        (first, slots)
    }
}

/// The slot of a moment.
fn number(at: Moment) -> u64 {
    at.as_millis() / STEP.as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    fn worked(tally: &mut Tally, jobs: u64, seconds: f64) {
        tally.jobs[Lane::Interactive as usize][Outcome::Answered as usize] += jobs;
        tally.inputs += 2 * jobs;
        for _ in 0..jobs {
            tally.job_seconds[Lane::Interactive as usize].observe(seconds);
        }
    }

    /// Goal: what happened stands in its slot; where the loop stood still there is a gap, and what comes after it is not spread
    /// over it; the present slot is not shown before its time is over.
    #[test]
    fn what_happened_stands_in_its_slot() {
        let (mut hour, mut tally, mut report) = (Hour::default(), Tally::new(at(0)), Report::default());
        report.queues.insert("interactive".into(), 7);
        worked(&mut tally, 3, 0.02);
        hour.look(&report, &tally, 2, at(2000));
        report.queues.insert("interactive".into(), 1);
        report.not_ready = Some("saturated".into());
        hour.look(&report, &tally, 3, at(9000));
        report.not_ready = None;
        worked(&mut tally, 5, 0.2);
        hour.look(&report, &tally, 7, at(41_000));
        assert_eq!(hour.over(at(9999)).1, []);
        let (first, slots) = hour.over(at(50_000));
        assert_eq!(first, 0);
        let jobs: Vec<_> = slots.iter().map(|slot| slot.map(|slot| slot.jobs[0])).collect();
        assert_eq!(jobs, [Some(3), None, None, None, Some(5)]);
        let (early, late) = (slots[0].unwrap(), slots[4].unwrap());
        assert_eq!((early.queue[0], early.inputs, late.queue[0]), (7, 6, 1));
        assert_eq!((early.door, late.door), (3, 4));
        assert_eq!(early.not_ready.as_deref(), Some("saturated"));
        assert_eq!((&late.not_ready, late.latency[1]), (&None, None));
        let latency = late.latency[0].unwrap();
        assert!((latency.mean - 0.2).abs() < 1e-9, "{latency:?}");
        assert!((0.1..=0.25).contains(&latency.median) && latency.p99 > latency.median);
    }

    /// One look: how much later, or how much earlier than the last; jobs since; jobs waiting.
    fn looks() -> impl Strategy<Value = Vec<(i64, u64, u64)>> {
        let step = prop_oneof![
            8 => 0i64..3000,
            2 => 0i64..60_000,
            1 => 0i64..20_000_000,
            1 => -30_000i64..0,
        ];
        prop::collection::vec((step, 0u64..20, 0u64..300), 1..400)
    }

    proptest! {
        /// Goal: over any steps of the clock, forwards, far forwards and back, the hour is bounded, in order and without a
        /// hole, and holds all that was counted in it, once. Method: a plain account of every look by its slot, beside it.
        #[test]
        fn an_hour_is_bounded_and_loses_nothing(looks in looks()) {
            let (mut hour, mut tally, mut report) = (Hour::default(), Tally::new(at(0)), Report::default());
            let (mut now, mut account) = (0i64, std::collections::BTreeMap::<u64, (u64, u64)>::new());
            for (step, jobs, queue) in looks {
                now = (now + step).max(0);
                worked(&mut tally, jobs, 0.01);
                report.queues.insert("interactive".into(), queue);
                let moment = at(now as u64);
                hour.look(&report, &tally, 0, moment);
                let latest = account.last_key_value().map_or(0, |(&number, _)| number);
                let slot = account.entry(number(moment).max(latest)).or_default();
                *slot = (slot.0 + jobs, slot.1.max(queue));
                prop_assert!(hour.slots.len() <= SLOTS_MAX);

                let shown = Moment::ZERO + STEP * (number(moment).max(latest) as u32 + 1);
                let (first, slots) = hour.over(shown);
                prop_assert!(slots.len() <= SLOTS_MAX);
                for (at, slot) in slots.iter().enumerate() {
                    let number = first + at as u64;
                    let expected = account.get(&number).copied();
                    prop_assert_eq!(slot.map(|slot| (slot.jobs[0], slot.queue[0])), expected);
                    prop_assert!(slot.is_none_or(|slot| slot.number == number && slot.inputs == 2 * slot.jobs[0]));
                }
                let kept: u64 = slots.iter().flatten().map(|slot| slot.jobs[0]).sum();
                let known: u64 = account.range(first..).map(|(_, &(jobs, _))| jobs).sum();
                prop_assert_eq!(kept, known);
            }
        }
    }
}
