//! How fast work goes: rates and means over the last while, as estimates for people and for callers who are to
//! come back. Nothing here decides.

use super::event::Ticket;
use crate::clock::Moment;
use std::ops::RangeInclusive;
use std::time::Duration;

/// A retry is never asked for sooner or later than this.
const RETRY_MS: RangeInclusive<u64> = 50..=600_000;
/// Memory of a rate: an event counts half after about 7 s. Long enough to smooth batches, short enough to
/// follow a change of load within the time a caller waits.
const RATE_MEMORY: Duration = Duration::from_secs(10);
/// Assumed time per job while none has been settled yet and no canary either; it weighs as much as so many that were: a few that come
/// out of the first batch must not be taken for the pace.
const JOB_GUESS: Duration = Duration::from_millis(25);
const JOB_GUESS_WEIGHT: f64 = 8.0;
/// What an input costs whatever its length, in bytes of text that cost as much, and the most bytes of one that count: longer ones are cut.
/// By `docs/performance-flow.md`: a text of a word takes half a millisecond in a flood, one of 256 tokens (1100 bytes) ten times that; 512
/// tokens are as many as most models read.
const INPUT_BYTES: f64 = 100.0;
const INPUT_BYTES_MAX: f64 = 2400.0;
/// A gap between two jobs that is so many times the mean is a standstill.
const STANDSTILL: f64 = 8.0;
/// But not if there was one already within so many times its length: batch after batch of a slow engine is a slow pace.
const STANDSTILLS_APART: f64 = 32.0;
/// A gap of less is none, however fast jobs go: a batch of long texts takes as long.
const STANDSTILL_MIN: Duration = Duration::from_secs(1);
/// Weight of the newest job in the mean of service times: the last thirty or so count.
const PACE_WEIGHT: f64 = 1.0 / 16.0;

/// When to come back for what may be had in so many seconds.
pub fn retry_ms(seconds: f64) -> u64 {
    ((seconds * 1000.0) as u64).clamp(*RETRY_MS.start(), *RETRY_MS.end())
}

/// Events a second, forgetting exponentially.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    weight: f64,
    at: Moment,
    seen: bool,
}

impl Rate {
    /// `n` events happened.
    pub fn count(&mut self, n: f64, now: Moment) {
        self.weight = self.decayed(now) + n;
        self.at = now;
        self.seen = true;
    }

    /// Events a second at this moment; `None` before the first.
    pub fn per_second(&self, now: Moment) -> Option<f64> {
        self.seen.then(|| self.decayed(now) / RATE_MEMORY.as_secs_f64())
    }

    fn decayed(&self, now: Moment) -> f64 {
        self.weight * (-now.since(self.at).as_secs_f64() / RATE_MEMORY.as_secs_f64()).exp()
    }
}

/// How long jobs take.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    last_latency: Option<Duration>,
    /// Exponentially weighted mean, in seconds.
    service_s: Option<f64>,
}

impl Pace {
    /// A job was answered with vectors: `latency` since it was delivered, `service` since its first batch.
    pub fn settled(&mut self, latency: Duration, service: Duration) {
        self.last_latency = Some(latency);
        let new = service.as_secs_f64();
        self.service_s = Some(
            self.service_s
                .map_or(new, |mean| mean + (new - mean) * PACE_WEIGHT),
        );
    }

    /// The last job's latency; `None` before the first.
    pub fn last_latency(&self) -> Option<Duration> {
        self.last_latency
    }

    /// The mean service time; `None` before the first job.
    pub fn service_time(&self) -> Option<Duration> {
        self.service_s.map(Duration::from_secs_f64)
    }
}

/// How large the jobs of a lane are, those that it holds beside those whose pace is known: a hundred jobs of a word are gone before one
/// of a hundred pages.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sizes {
    held: f64,
    usual: Option<f64>,
}

impl Sizes {
    /// A job's size, by what it costs to compute.
    pub fn of(ticket: &Ticket) -> f64 {
        let inputs = ticket.inputs as f64;
        inputs * INPUT_BYTES + (ticket.bytes as f64).min(inputs * INPUT_BYTES_MAX)
    }

    /// The lane holds the job from now on.
    pub fn enters(&mut self, ticket: &Ticket) {
        self.held += Sizes::of(ticket);
    }

    /// The lane holds the job no longer, and perhaps nothing.
    pub fn leaves(&mut self, ticket: &Ticket, empty: bool) {
        self.held = if empty {
            0.0
        } else {
            (self.held - Sizes::of(ticket)).max(0.0)
        };
    }

    /// A job of this size tells the pace.
    pub fn settled(&mut self, ticket: &Ticket) {
        let new = Sizes::of(ticket);
        self.usual = Some(self.usual.map_or(new, |mean| mean + (new - mean) * PACE_WEIGHT));
    }

    /// A job of this size is all that tells the pace.
    pub fn guess(&mut self, ticket: &Ticket) {
        self.usual = Some(Sizes::of(ticket));
    }

    /// To how many of the usual size the `held` jobs of the lane amount.
    pub fn jobs(&self, held: usize) -> f64 {
        self.usual.map_or(held as f64, |usual| self.held / usual)
    }
}

/// How fast the jobs of a lane go, counted over the time in which the lane held any: an hour without jobs says nothing
/// about it. Nor does a standstill, which is waited for beside the jobs: by the time for which it has lasted, since what
/// has stood still for so long is as likely as not to do so once more. Taken for a slow pace, half a second before the
/// first answer of a process would be minutes for a queue of hundreds.
#[derive(Clone, Copy, Debug)]
pub struct SettleRate {
    jobs: f64,
    busy_s: f64,
    /// Busy seconds since the last job was settled.
    last_s: f64,
    /// Of those, seconds in which the engines were told to rest.
    rested_s: f64,
    /// Busy seconds since the last standstill ended.
    flowing_s: f64,
    busy: bool,
    at: Moment,
}

impl Default for SettleRate {
    fn default() -> SettleRate {
        SettleRate {
            jobs: JOB_GUESS_WEIGHT,
            busy_s: JOB_GUESS_WEIGHT * JOB_GUESS.as_secs_f64(),
            last_s: 0.0,
            rested_s: 0.0,
            flowing_s: f64::INFINITY,
            busy: false,
            at: Moment::ZERO,
        }
    }
}

impl SettleRate {
    /// From now on the lane holds jobs, or holds none.
    pub fn holds(&mut self, busy: bool, now: Moment) {
        self.last_s = self.still(now);
        self.at = self.at.max(now);
        self.busy = busy;
    }

    /// Nothing has been settled yet, but a job is known to take so long.
    pub fn guess(&mut self, job: Duration) {
        self.busy_s = self.jobs * job.as_secs_f64();
    }

    /// The engines are to rest for so long, which says nothing of how fast they are.
    pub fn rests(&mut self, span: Duration) {
        if self.busy {
            self.rested_s += span.as_secs_f64();
        }
    }

    /// A job was settled.
    pub fn settled(&mut self, now: Moment) {
        let mut gap = (self.still(now) - std::mem::take(&mut self.rested_s)).max(0.0);
        let usual = (STANDSTILL * self.seconds_per_job()).max(STANDSTILL_MIN.as_secs_f64());
        if gap > usual && self.flowing_s >= STANDSTILLS_APART * gap {
            self.flowing_s = 0.0;
            gap = usual;
        } else {
            self.flowing_s += gap;
        }
        let memory = RATE_MEMORY.as_secs_f64();
        let kept = (-gap / memory).exp();
        // The work on a job is spread over the gap before it, or else slow jobs would weigh too much.
        let spread = gap / memory;
        let weight = if spread > 1e-9 {
            -(-spread).exp_m1() / spread
        } else {
            1.0
        };
        self.jobs = self.jobs * kept + weight;
        self.busy_s = self.busy_s * kept + memory * (1.0 - kept);
        self.last_s = 0.0;
        self.at = self.at.max(now);
    }

    /// Seconds until so many jobs of the usual size have gone.
    pub fn seconds_for(&self, jobs: f64, now: Moment) -> f64 {
        jobs * self.seconds_per_job() + self.still(now)
    }

    /// Seconds that a job takes, which are never zero.
    fn seconds_per_job(&self) -> f64 {
        // Smaller than any job takes; a lane that was busy for no time at all must not divide by it.
        (self.busy_s / self.jobs).max(1e-6)
    }

    /// Busy seconds since the last job was settled.
    fn still(&self, now: Moment) -> f64 {
        let since = if self.busy {
            now.since(self.at).as_secs_f64()
        } else {
            0.0
        };
        self.last_s + since
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    /// Ten jobs a second while there are any: an idle hour changes nothing, a standstill does.
    #[test]
    fn only_busy_time_counts() {
        let mut rate = SettleRate::default();
        rate.holds(true, at(0));
        for n in 1..=200 {
            rate.settled(at(100 * n));
        }
        let hundred = |rate: &SettleRate, now| rate.seconds_for(100.0, now);
        let before = hundred(&rate, at(20_000));
        assert!((9.0..11.0).contains(&before), "{before}");
        rate.holds(false, at(20_000));
        let later = at(3_600_000);
        assert!((hundred(&rate, later) - before).abs() < 1e-9);
        rate.holds(true, later);
        let stuck = hundred(&rate, later + Duration::from_secs(30));
        assert!((stuck - before - 30.0).abs() < 1e-6, "{stuck}");
    }

    /// Goal: half a second until the first answer of a process is not multiplied by the jobs that wait. Each was told to
    /// come back after two minutes and a half, when the queue had long been empty.
    #[test]
    fn a_slow_start_is_no_slow_pace() {
        let mut rate = SettleRate::default();
        rate.holds(true, at(0));
        assert!(rate.seconds_for(257.0, at(500)) < 10.0);
        rate.settled(at(500));
        for n in 1..=50 {
            rate.settled(at(500 + 3 * n));
        }
        let settled = rate.seconds_for(257.0, at(650));
        assert!(settled < 10.0, "{settled}");
    }

    /// Goal: behind a standstill jobs are promised to go as fast as they did before it.
    #[test]
    fn a_standstill_ends() {
        let mut rate = SettleRate::default();
        rate.holds(true, at(0));
        for n in 1..=5000 {
            rate.settled(at(3 * n));
        }
        let before = rate.seconds_for(257.0, at(15_000));
        rate.settled(at(75_000));
        let behind = rate.seconds_for(257.0, at(75_000));
        assert!(behind < 2.0 * before, "{before} s before, {behind} s behind it");
    }

    /// Goal: jobs that come out in large batches, seconds apart, are no standstill over and over.
    #[test]
    fn slow_batches_are_a_slow_pace() {
        let mut rate = SettleRate::default();
        rate.holds(true, at(0));
        for batch in 1..=10 {
            for n in 0..32 {
                rate.settled(at(4000 * batch + n));
            }
        }
        let needed = 257.0 / 32.0 * 4.0;
        let promised = rate.seconds_for(257.0, at(40_031));
        assert!(
            (0.8 * needed..1.3 * needed).contains(&promised),
            "{promised} of {needed}"
        );
    }

    /// Goal: jobs that have become slow for good are known as such after a few.
    #[test]
    fn a_change_of_pace_is_seen() {
        let mut rate = SettleRate::default();
        rate.holds(true, at(0));
        for n in 1..=1000 {
            rate.settled(at(3 * n));
        }
        for n in 1..=10 {
            rate.settled(at(3000 + 20_000 * n));
        }
        let slow = rate.seconds_for(1.0, at(203_000));
        assert!((15.0..25.0).contains(&slow), "{slow}");
    }

    /// Goal: what a canary took is the guess for jobs as small, and in proportion for larger ones; a moment until the first batch is out,
    /// or a rest, is no pace. A flood that was over in half a second was told to come back in twenty.
    #[test]
    fn a_guess_is_in_proportion() {
        let ticket = |inputs, bytes| Ticket {
            inputs,
            bytes,
            ..crate::logic::arrive::NO_TICKET
        };
        let (small, large) = (ticket(1, 100), ticket(32, 32 * 1900));
        let mut rate = SettleRate::default();
        let mut sizes = Sizes::default();
        assert!((sizes.jobs(300) - 300.0).abs() < 1e-9, "of unknown size");
        rate.guess(Duration::from_millis(4));
        sizes.guess(&small);
        (0..300).for_each(|_| sizes.enters(&small));
        rate.holds(true, at(0));
        let promised = rate.seconds_for(sizes.jobs(300), at(0));
        assert!((1.1..1.3).contains(&promised), "{promised}");
        rate.rests(Duration::from_millis(400));
        for _ in 0..16 {
            rate.settled(at(450));
            sizes.leaves(&small, false);
            sizes.settled(&small);
        }
        let promised = rate.seconds_for(sizes.jobs(284), at(450));
        assert!(promised < 1.3, "{promised}");
        let before = sizes.jobs(0);
        sizes.enters(&large);
        assert!((sizes.jobs(0) - before - 320.0).abs() < 1.0);
        sizes.leaves(&large, true);
        assert!(sizes.jobs(0) < 1e-9);
    }
}
