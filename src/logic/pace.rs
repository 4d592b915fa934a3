//! How fast work goes: rates and means over the last while, as estimates for people and for callers who are to
//! come back. Nothing here decides.

use crate::clock::Moment;
use std::time::Duration;

/// Memory of a rate: an event counts half after about 7 s. Long enough to smooth batches, short enough to
/// follow a change of load within the time a caller waits.
const RATE_MEMORY: Duration = Duration::from_secs(10);
/// Assumed time per job while no job has been settled yet; it weighs as much as one job that was.
const JOB_GUESS: Duration = Duration::from_millis(100);
/// Weight of the newest job in the mean of service times: the last thirty or so count.
const PACE_WEIGHT: f64 = 1.0 / 16.0;

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

/// Jobs of a lane settled per second of the time in which the lane held any. An hour without jobs says nothing
/// about how fast they go, so it is not counted; a standstill with jobs inside is, and the rate falls with it.
#[derive(Clone, Copy, Debug)]
pub struct SettleRate {
    jobs: f64,
    busy_s: f64,
    /// Busy seconds since the last job was settled: the work on the next is spread over them, or else the rate
    /// would be too high just after a job and too low just before one.
    last_s: f64,
    busy: bool,
    at: Moment,
}

impl Default for SettleRate {
    fn default() -> SettleRate {
        SettleRate {
            jobs: 1.0,
            busy_s: JOB_GUESS.as_secs_f64(),
            last_s: 0.0,
            busy: false,
            at: Moment::ZERO,
        }
    }
}

impl SettleRate {
    /// From now on the lane holds jobs, or holds none.
    pub fn holds(&mut self, busy: bool, now: Moment) {
        *self = self.at(now);
        self.busy = busy;
    }

    /// A job was settled.
    pub fn settled(&mut self, now: Moment) {
        *self = self.at(now);
        let spread = self.last_s / RATE_MEMORY.as_secs_f64();
        self.jobs += if spread > 1e-9 {
            -(-spread).exp_m1() / spread
        } else {
            1.0
        };
        self.last_s = 0.0;
    }

    /// Seconds that a job takes at this moment, which is never zero.
    pub fn seconds_per_job(&self, now: Moment) -> f64 {
        let rate = self.at(now);
        // Smaller than any job takes; a lane that was busy for no time at all must not divide by it.
        (rate.busy_s / rate.jobs).max(1e-6)
    }

    fn at(&self, now: Moment) -> SettleRate {
        let memory = RATE_MEMORY.as_secs_f64();
        let busy_s = if self.busy {
            now.since(self.at).as_secs_f64()
        } else {
            0.0
        };
        let kept = (-busy_s / memory).exp();
        SettleRate {
            // Above zero even after days of standstill.
            jobs: (self.jobs * kept).max(f64::MIN_POSITIVE),
            busy_s: self.busy_s * kept + memory * (1.0 - kept),
            last_s: self.last_s + busy_s,
            busy: self.busy,
            at: self.at.max(now),
        }
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
        let pace = rate.seconds_per_job(at(20_000));
        assert!((0.09..0.11).contains(&pace), "{pace}");
        rate.holds(false, at(20_000));
        let later = at(3_600_000);
        assert!((rate.seconds_per_job(later) - pace).abs() < 1e-9);
        rate.holds(true, later);
        let stuck = rate.seconds_per_job(later + Duration::from_secs(30));
        assert!(stuck > 10.0 * pace, "{stuck}");
        assert!(rate.seconds_per_job(later + Duration::from_secs(1 << 20)) > 1e9);
    }
}
