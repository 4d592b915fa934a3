//! The judge's book about intake: its own means, guards, memory, and what the world was told.

use embeddings::clock::Moment;
use embeddings::config::Limits;
use embeddings::job::Lane;
use embeddings::logic::event::ModelId;
use embeddings::logic::pressure::{Cause, Change, Memory};
use std::time::Duration;

/// Off no sooner than this after the last time a bound was near.
const RELIEF: Duration = Duration::from_secs(1);

/// How full the lanes are, as the judge counts it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fill {
    /// Admitted jobs, per lane.
    pub held: [usize; Lane::COUNT],
    /// Begun and not finished, per lane.
    pub inflight: [usize; Lane::COUNT],
    /// Bytes of the interactive lane.
    pub bytes: usize,
    /// Whether a model has more than 80 % of its own bound.
    pub model_near: bool,
}

#[derive(Default)]
pub struct Book {
    means: [Option<f64>; Lane::COUNT],
    shut: [bool; Lane::COUNT],
    memory: Option<Memory>,
    taken: u64,
    tight: bool,
    told: [bool; Lane::COUNT],
    /// Whose own bound it was when it was told.
    model: [Option<ModelId>; Lane::COUNT],
    tense: [Moment; Lane::COUNT],
    refused_now: bool,
}

impl Book {
    pub fn turn(&mut self) {
        self.refused_now = false;
    }

    pub fn answered(&mut self, lane: Lane, service: Duration) {
        let new = service.as_secs_f64();
        let mean = &mut self.means[lane as usize];
        *mean = Some(mean.map_or(new, |mean| mean + (new - mean) / 16.0));
    }

    /// Looks at the guards: above the limit they shut, under 80 % of it they open.
    pub fn look(&mut self, fill: &Fill, limits: &Limits) {
        for lane in 1..3 {
            let mean = Duration::from_secs_f64(self.means[lane].unwrap_or(0.0)).as_secs_f64();
            let product = mean * fill.inflight[lane] as f64;
            let limit = limits.slam_limit.as_secs_f64();
            self.shut[lane] = product > limit || (self.shut[lane] && product >= 0.8 * limit);
            assert!(
                fill.inflight[lane] > 0 || !self.shut[lane],
                "shut with nothing in flight"
            );
        }
    }

    pub fn memory_seen(&mut self, memory: Memory) {
        (self.memory, self.taken) = (Some(memory), 0);
        self.tight |= memory.in_use > memory.bound();
        let spare = (memory.limit - memory.bound()) as f64;
        self.tight &= (memory.in_use as f64) >= memory.limit as f64 - (spare * 1.5).ceil();
    }

    pub fn admitted(&mut self, need: u64) {
        self.taken += need;
        self.tight |= self
            .memory
            .is_some_and(|seen| seen.in_use + self.taken > seen.bound());
    }

    /// Whether want of memory, or the guard, keeps an interactive job out.
    pub fn keeps_out(&self, need: u64, alone: bool) -> bool {
        let scarce = self.memory.is_some_and(|seen| {
            let then = seen.in_use + self.taken + need;
            if alone {
                then > seen.limit
            } else {
                self.tight || then > seen.bound()
            }
        });
        scarce || self.shut[Lane::Interactive as usize]
    }

    pub fn bulk_pauses(&self) -> bool {
        self.tight || self.shut[Lane::Bulk as usize]
    }

    pub fn refused(&mut self) {
        self.refused_now = true;
    }

    /// A change is told: once, in turn, and for a cause that is true.
    pub fn told(&mut self, change: &Change, fill: &Fill, limits: &Limits, now: Moment) {
        let at = change.lane as usize;
        assert!(change.lane != Lane::Probe, "canaries are never turned away");
        assert!(self.told[at] != change.on, "told twice: {change:?}");
        self.told[at] = change.on;
        assert_eq!(change.inflight, fill.inflight[at], "{change:?}");
        if !change.on {
            assert_eq!(change.model, self.model[at], "{change:?}");
            assert_eq!(change.retry_after_ms, 0);
            assert!(now.since(self.tense[at]) >= RELIEF, "off too soon: {change:?}");
            return;
        }
        self.model[at] = change.model;
        assert!((50..=600_000).contains(&change.retry_after_ms), "{change:?}");
        let interactive = change.lane == Lane::Interactive;
        let holds = match change.cause {
            Cause::QueueFull => {
                interactive
                    && (fill.held[at] >= limits.max_queue || change.model.is_some() || self.refused_now)
            }
            // The refusal that follows is judged by itself.
            Cause::Bytes => interactive,
            Cause::Memory => self.tight || interactive,
            Cause::Slam => self.shut[at],
        };
        assert!(holds, "told for nothing: {change:?}");
    }

    /// What must have been told after a turn has been told.
    pub fn after(&mut self, fill: &Fill, limits: &Limits, now: Moment) {
        for lane in [Lane::Interactive, Lane::Bulk] {
            let at = lane as usize;
            let interactive = lane == Lane::Interactive;
            let full = interactive && fill.held[at] >= limits.max_queue;
            let refused = interactive && self.refused_now;
            let over = full || refused || self.shut[at] || self.tight;
            let near = interactive
                && (fill.held[at] * 5 > limits.max_queue * 4
                    || fill.bytes * 5 > limits.max_queue_bytes * 4
                    || fill.model_near);
            if over || near {
                self.tense[at] = now;
            }
            assert!(
                self.told[at] || !over,
                "{lane:?} turns work away and says nothing"
            );
            let eased = now.since(self.tense[at]) >= RELIEF;
            assert!(
                !(self.told[at] && eased),
                "{lane:?} is at ease and says nothing: {fill:?}"
            );
        }
    }
}
