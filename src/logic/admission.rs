//! Admission: room or no room, and when there may be room again. A job is admitted or refused whole.

use super::event::Ticket;
use crate::clock::Moment;
use crate::config::Limits;
use crate::job::{ErrorType, Lane, Refusal};
use std::time::Duration;

/// Memory of the settle rate: an event counts half after about 7 s. Long enough to smooth batches,
/// short enough to follow a change of load within the time a caller waits.
const RATE_MEMORY: Duration = Duration::from_secs(10);
/// Assumed time per job while no job has been settled yet.
const JOB_GUESS: Duration = Duration::from_millis(100);
/// A retry is never asked for sooner or later than this.
const RETRY_MS: std::ops::RangeInclusive<u64> = 50..=600_000;

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

/// Weight of the newest job in the mean of service times: the last thirty or so count.
const PACE_WEIGHT: f64 = 1.0 / 16.0;

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

/// What is held, against what may be held.
#[derive(Clone, Debug)]
pub struct Admission {
    limits: Limits,
    held: [usize; Lane::COUNT],
    bytes: usize,
    settled: Rate,
}

impl Admission {
    /// Nothing held.
    pub fn new(limits: Limits) -> Admission {
        Admission {
            limits,
            held: [0; Lane::COUNT],
            bytes: 0,
            settled: Rate::default(),
        }
    }

    /// New limits hold for the next job.
    pub fn reload(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Takes the job in, or says why not. Bulk jobs are bounded by the prefetch, canaries by being one.
    pub fn admit(
        &mut self,
        lane: Lane,
        ticket: &Ticket,
        max_queue: usize,
        now: Moment,
    ) -> Result<(), Refusal> {
        if lane == Lane::Interactive {
            if self.held[lane as usize] >= max_queue {
                let message = format!(
                    "queue holds {} jobs, limit is {max_queue}",
                    self.held[lane as usize]
                );
                return Err(self.overloaded(message, now));
            }
            let bytes = self.bytes.saturating_add(ticket.bytes);
            if bytes > self.limits.max_queue_bytes {
                let limit = self.limits.max_queue_bytes;
                return Err(self.overloaded(format!("queue would hold {bytes} bytes, limit is {limit}"), now));
            }
        }
        self.held[lane as usize] += 1;
        if lane == Lane::Interactive {
            self.bytes = self.bytes.saturating_add(ticket.bytes);
        }
        Ok(())
    }

    /// An admitted job has left. `settled` says that it left by being worked off.
    pub fn release(&mut self, lane: Lane, ticket: &Ticket, settled: bool, now: Moment) {
        self.held[lane as usize] = self.held[lane as usize].saturating_sub(1);
        if lane == Lane::Interactive {
            self.bytes = self.bytes.saturating_sub(ticket.bytes);
        }
        if settled && lane != Lane::Probe {
            self.settled.count(1.0, now);
        }
    }

    /// Whether the interactive lane is full.
    pub fn is_saturated(&self) -> bool {
        self.held[Lane::Interactive as usize] >= self.limits.max_queue
    }

    /// Jobs held in a lane.
    pub fn held(&self, lane: Lane) -> usize {
        self.held[lane as usize]
    }

    /// Bytes of the interactive bodies held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// When a retry may find room: the jobs before it, at the rate at which jobs are settled now. While
    /// nothing is settled the rate falls, and so the estimate grows with the length of the standstill.
    pub fn retry_after_ms(&self, now: Moment) -> u64 {
        let depth = (self.held.iter().sum::<usize>() + 1) as f64;
        let floor = 1.0 / RETRY_MS.end().to_owned() as f64;
        let per_second = self
            .settled
            .per_second(now)
            .unwrap_or(1.0 / JOB_GUESS.as_secs_f64())
            .max(floor);
        ((depth / per_second * 1000.0) as u64).clamp(*RETRY_MS.start(), *RETRY_MS.end())
    }

    fn overloaded(&self, message: String, now: Moment) -> Refusal {
        Refusal::new(ErrorType::Overloaded, message).retry_after(self.retry_after_ms(now))
    }
}
