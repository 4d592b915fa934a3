//! Admission: room or no room, and when there may be room again. A job is admitted or refused whole.
//!
//! An interactive job is refused as soon as one of its bounds does not hold; a bulk job that is here already waits
//! instead, and nothing of its lane is begun while intake pauses; a canary is always let in.

use super::event::{ModelId, Ticket};
use super::pace::{Pace, SettleRate, Sizes, retry_ms};
use super::pressure::{Cause, Guard, Load, Memory, MemoryBound, is_relaxed, memory_of};
use crate::clock::Moment;
use crate::config::Limits;
use crate::job::{ErrorType, Lane, Refusal};
use std::time::Duration;

/// No room, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overload {
    /// Which bound.
    pub cause: Cause,
    /// The model whose own bound it is, if it is one's own.
    pub model: Option<ModelId>,
    /// What the caller is told.
    pub refusal: Refusal,
}

/// What is held, against what may be held.
#[derive(Clone, Debug)]
pub struct Admission {
    limits: Limits,
    held: [usize; Lane::COUNT],
    bytes: usize,
    /// Per model, its own bound on the interactive lane where it has one, and what it holds there.
    models: Vec<(Option<usize>, usize)>,
    settled: [SettleRate; Lane::COUNT],
    sizes: [Sizes; Lane::COUNT],
    rests_until: Moment,
    paces: [Pace; Lane::COUNT],
    /// Lanes of which something was computed and has left.
    worked: [bool; Lane::COUNT],
    guards: [Guard; Lane::COUNT],
    memory: MemoryBound,
}

impl Admission {
    /// Nothing held. `models` has, per model, its own bound on the interactive lane where it has one.
    pub fn new(limits: Limits, models: &[Option<usize>]) -> Admission {
        Admission {
            limits,
            held: [0; Lane::COUNT],
            bytes: 0,
            models: models.iter().map(|&bound| (bound, 0)).collect(),
            settled: Default::default(),
            sizes: Default::default(),
            rests_until: Moment::ZERO,
            paces: Default::default(),
            worked: [false; Lane::COUNT],
            guards: Default::default(),
            memory: MemoryBound::default(),
        }
    }

    /// New limits hold for the next job.
    pub fn reload(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Takes the job in, or says why not. Bulk jobs are bounded by the prefetch, canaries by being one. `load` is the
    /// memory of the job's model, in bytes, if that is to be loaded for it.
    pub fn admit(&mut self, lane: Lane, ticket: &Ticket, load: u64, now: Moment) -> Result<(), Overload> {
        let memory = memory_of(ticket.bytes, ticket.inputs).saturating_add(load);
        if lane == Lane::Interactive {
            self.room(ticket, memory, now)?;
            self.bytes = self.bytes.saturating_add(ticket.bytes);
            self.models[ticket.model.0].1 += 1;
        }
        self.held[lane as usize] += 1;
        self.sizes[lane as usize].enters(ticket);
        self.settled[lane as usize].holds(true, now);
        self.memory.take(memory, now);
        Ok(())
    }

    /// Whether the lane would have room for the job if nothing else were in it, or what its sender is told: it need not come again.
    pub fn fits(&self, lane: Lane, ticket: &Ticket) -> Result<(), Refusal> {
        let (bytes, most) = (ticket.bytes, self.limits.max_queue_bytes);
        if lane != Lane::Interactive || bytes <= most {
            return Ok(());
        }
        let message = format!("the job has {bytes} bytes, the queue takes {most}");
        Err(Refusal::new(ErrorType::InputTooLong, message).on("input"))
    }

    /// Whether so many bytes of memory are free below the bound at which the kernel steps in.
    pub fn has_memory_for(&self, bytes: u64) -> bool {
        self.memory.fits(bytes, true)
    }

    /// The bounds of the interactive lane, the cheapest to lift first.
    fn room(&self, ticket: &Ticket, memory: u64, now: Moment) -> Result<(), Overload> {
        let lane = Lane::Interactive;
        let (held, most) = (self.held(lane), self.limits.max_queue);
        if held >= most {
            let message = format!("queue holds {held} jobs, limit is {most}");
            return Err(self.overload(Cause::QueueFull, message, now));
        }
        if let (Some(most), held) = self.models[ticket.model.0]
            && held >= most
        {
            let message = format!("queue holds {held} jobs of this model, its limit is {most}");
            return Err(Overload {
                model: Some(ticket.model),
                ..self.overload(Cause::QueueFull, message, now)
            });
        }
        let (bytes, most) = (
            self.bytes.saturating_add(ticket.bytes),
            self.limits.max_queue_bytes,
        );
        if bytes > most {
            let message = format!("queue would hold {bytes} bytes, limit is {most}");
            return Err(self.overload(Cause::Bytes, message, now));
        }
        let guard = self.guards[lane as usize];
        if guard.is_shut() {
            let (work, most) = (guard.product().as_millis(), self.limits.slam_limit.as_millis());
            let message = format!(
                "mean time of a job times jobs in flight is {work} ms, limit is {most} ms; it was above, and jobs are taken again under 80 % of it"
            );
            return Err(self.overload(Cause::Slam, message, now));
        }
        if let Some(present) = self.memory.present()
            && !self.memory.fits(memory, held == 0)
        {
            let (in_use, most) = (present.in_use, present.bound());
            let message = format!(
                "{in_use} bytes of memory are in use and the job may come to need {memory}; jobs are taken up to {most}, after a want of memory below that"
            );
            return Err(self.overload(Cause::Memory, message, now));
        }
        Ok(())
    }

    /// An admitted job has left. `settled` says that it left by being worked off.
    pub fn release(&mut self, lane: Lane, ticket: &Ticket, settled: bool, now: Moment) {
        let held = &mut self.held[lane as usize];
        *held = held.saturating_sub(1);
        let empty = *held == 0;
        let sizes = &mut self.sizes[lane as usize];
        sizes.leaves(ticket, empty);
        if settled {
            sizes.settled(ticket);
            self.settled[lane as usize].settled(now);
        }
        self.settled[lane as usize].holds(!empty, now);
        if lane == Lane::Interactive {
            self.bytes = self.bytes.saturating_sub(ticket.bytes);
            let (_, of_model) = &mut self.models[ticket.model.0];
            *of_model = of_model.saturating_sub(1);
        }
    }

    /// A canary took so long from its first batch on: all that is known of lanes of which nothing was computed yet.
    pub fn guess(&mut self, canary: &Ticket, service: Duration) {
        for lane in 0..Lane::COUNT {
            if !self.worked[lane] {
                self.settled[lane].guess(service);
                self.sizes[lane].guess(canary);
            }
        }
    }

    /// The engines are to rest until then.
    pub fn rests(&mut self, until: Moment, now: Moment) {
        let span = until.since(self.rests_until.max(now));
        self.rests_until = self.rests_until.max(until);
        self.settled.iter_mut().for_each(|rate| rate.rests(span));
    }

    /// A job of the lane was answered with vectors: `latency` since it was delivered, `service` since its first
    /// batch.
    pub fn answered(&mut self, lane: Lane, latency: Duration, service: Duration) {
        self.worked[lane as usize] = true;
        self.paces[lane as usize].settled(latency, service);
    }

    /// A slice of a job of the lane was computed, and the job has gone on elsewhere.
    pub fn sliced(&mut self, lane: Lane) {
        self.worked[lane as usize] = true;
    }

    /// So many jobs of the lane are in flight now: the latency guard is judged anew.
    pub fn in_flight(&mut self, lane: Lane, inflight: usize) {
        let mean = self.paces[lane as usize].service_time();
        self.guards[lane as usize].judge(mean, inflight, self.limits.slam_limit);
    }

    /// A reading of memory.
    pub fn memory_seen(&mut self, memory: Memory, now: Moment) {
        self.memory.seen(memory, now);
    }

    /// Why nothing further of the bulk lane may be begun, if so.
    pub fn bulk_pauses(&self) -> Option<Cause> {
        let memory = self.memory.tight_since().map(|_| Cause::Memory);
        let shut = self.guards[Lane::Bulk as usize].is_shut();
        memory.or(shut.then_some(Cause::Slam))
    }

    /// How the lane stands against its bounds.
    pub fn load(&self, lane: Lane) -> Load {
        match lane {
            Lane::Probe | Lane::Resumed => Load::Relaxed,
            // It fills up to its prefetch whenever the broker has enough: that is no load.
            Lane::Bulk => self.bulk_pauses().map_or(Load::Relaxed, Load::Over),
            Lane::Interactive => {
                let shut = self.guards[lane as usize].is_shut();
                if self.is_saturated() {
                    Load::Over(Cause::QueueFull)
                } else if shut {
                    Load::Over(Cause::Slam)
                } else if self.memory.tight_since().is_some() {
                    Load::Over(Cause::Memory)
                } else if is_relaxed(self.held(lane), self.limits.max_queue)
                    && is_relaxed(self.bytes, self.limits.max_queue_bytes)
                    && self
                        .models
                        .iter()
                        .all(|&(bound, held)| bound.is_none_or(|bound| is_relaxed(held, bound)))
                {
                    Load::Relaxed
                } else {
                    Load::Near
                }
            }
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

    /// Memory at the last reading, with what was admitted since.
    pub fn memory(&self) -> Option<Memory> {
        self.memory.present()
    }

    /// Mean time of a lane's jobs.
    pub fn service_time(&self, lane: Lane) -> Option<Duration> {
        self.paces[lane as usize].service_time()
    }

    /// Seconds that a job of the lane takes, one after the other, where at most so many are in flight: the slower of how fast they
    /// go and how long each is at work, until it is answered or goes on elsewhere. `None` before the first has.
    pub fn seconds_per_job(&self, lane: Lane, places: usize, now: Moment) -> Option<f64> {
        let gone = self.settled[lane as usize].seconds_for(1.0, now);
        let at_work = self.service_time(lane).unwrap_or_default().as_secs_f64() / places.max(1) as f64;
        self.worked[lane as usize].then(|| gone.max(at_work))
    }

    /// When a retry may find room: the jobs that must go before it, at the rate at which such jobs go, and as long again
    /// as none has gone. For want of memory both lanes must drain, and a want that has lasted long is not expected to
    /// be over soon.
    pub fn retry_after_ms(&self, lane: Lane, cause: Cause, now: Moment) -> u64 {
        let drained = |lane: Lane| {
            let jobs = self.sizes[lane as usize].jobs(self.held(lane)) + 1.0;
            self.settled[lane as usize].seconds_for(jobs, now)
        };
        let seconds = match (cause, self.memory.tight_since()) {
            (Cause::Memory, tight) => {
                let lasted = tight.map_or(0.0, |since| now.since(since).as_secs_f64());
                drained(Lane::Interactive).max(drained(Lane::Bulk)).max(lasted)
            }
            _ => drained(lane),
        };
        retry_ms(seconds)
    }

    fn overload(&self, cause: Cause, message: String, now: Moment) -> Overload {
        let retry_after_ms = self.retry_after_ms(Lane::Interactive, cause, now);
        Overload {
            cause,
            model: None,
            refusal: Refusal::new(ErrorType::Overloaded, message).retry_after(retry_after_ms),
        }
    }
}
