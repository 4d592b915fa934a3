//! Backpressure: when intake pauses, when it opens again, and what the world is told of it.
//!
//! ```text
//!            refused, full, or paused              under 80 % of every bound for RELIEF
//!   off ──────────────────────────────> on ─────────────────────────────────────────────> off
//!        told once, with the cause           told once; a bound that is neared meanwhile
//!                                            begins the wait anew
//! ```
//!
//! Refusing follows the bounds themselves and is decided in [`super::admission`]; what is told lags behind on the
//! way back, so that a lane that hovers at a bound is one change and not one per job.

use super::event::ModelId;
use crate::clock::Moment;
use crate::job::Lane;
use std::time::Duration;

/// A lane must have been well below its bounds for this long before its backpressure is off. Long against the
/// time between two jobs of a busy caller, short against the time in which a person looks twice.
const RELIEF: Duration = Duration::from_secs(1);
/// What is kept free below the kernel's bound: a tenth of it, and no more than this. A job here is at most a few
/// times its 32 MiB, and several may be under way before the next reading.
const MEMORY_SPARE_MAX: u64 = 256 << 20;
/// Memory that a job is expected to take per byte of its body: the body, its texts, and their tokens.
const MEMORY_PER_BYTE: u64 = 4;
/// And per input: its vector, and the vector as JSON.
const MEMORY_PER_INPUT: u64 = 16 << 10;

/// Why new work is not welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// As many jobs as the lane, or the model in it, may hold.
    QueueFull,
    /// As many bytes as may wait.
    Bytes,
    /// The kernel's bound on memory is near.
    Memory,
    /// The latency guard: mean time of a job times jobs in flight is above `slam_limit_ms`.
    Slam,
}

impl Cause {
    /// All causes.
    pub const ALL: [Cause; 4] = [Cause::QueueFull, Cause::Bytes, Cause::Memory, Cause::Slam];

    /// The name used in events, logs and the status.
    pub fn name(self) -> &'static str {
        match self {
            Cause::QueueFull => "queue_full",
            Cause::Bytes => "bytes",
            Cause::Memory => "memory",
            Cause::Slam => "slam",
        }
    }
}

/// Memory as the kernel counts it against us, or against the whole machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Bytes in use that the kernel cannot simply take back.
    pub in_use: u64,
    /// Bytes at which it steps in.
    pub limit: u64,
}

impl Memory {
    /// Bytes up to which jobs are taken in.
    pub fn bound(self) -> u64 {
        self.limit - (self.limit / 10).min(MEMORY_SPARE_MAX)
    }

    /// Bytes under which a pause ends: half as much again is free.
    fn reopen(self) -> u64 {
        self.limit - ((self.limit / 10).min(MEMORY_SPARE_MAX) * 3).div_ceil(2)
    }
}

/// Bytes that a job of this size is expected to take.
pub fn memory_of(bytes: usize, inputs: usize) -> u64 {
    let bytes = (bytes as u64).saturating_mul(MEMORY_PER_BYTE);
    bytes.saturating_add((inputs as u64).saturating_mul(MEMORY_PER_INPUT))
}

/// The bound on memory. Between two readings, what was admitted since the last counts on top of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryBound {
    seen: Option<Memory>,
    taken: u64,
    tight_since: Option<Moment>,
}

impl MemoryBound {
    /// A new reading.
    pub fn seen(&mut self, memory: Memory, now: Moment) {
        (self.seen, self.taken) = (Some(memory), 0);
        self.tighten(now);
        if memory.in_use < memory.reopen() {
            self.tight_since = None;
        }
    }

    /// A job was taken in.
    pub fn take(&mut self, memory: u64, now: Moment) {
        self.taken = self.taken.saturating_add(memory);
        self.tighten(now);
    }

    /// Whether intake pauses, and since when.
    pub fn tight_since(&self) -> Option<Moment> {
        self.tight_since
    }

    /// Whether a job that takes this much fits. One that is alone in its lane may take the last of the spare: what
    /// it could wait for may never be free, and a lane that stands still serves nobody.
    pub fn fits(&self, memory: u64, alone: bool) -> bool {
        let Some(seen) = self.seen else { return true };
        let then = self.in_use().saturating_add(memory);
        if alone {
            then <= seen.limit
        } else {
            self.tight_since.is_none() && then <= seen.bound()
        }
    }

    /// The last reading, with what was admitted since; `None` before the first.
    pub fn present(&self) -> Option<Memory> {
        self.seen.map(|seen| Memory {
            in_use: self.in_use(),
            ..seen
        })
    }

    fn in_use(&self) -> u64 {
        self.seen.map_or(0, |seen| seen.in_use.saturating_add(self.taken))
    }

    fn tighten(&mut self, now: Moment) {
        if self.seen.is_some_and(|seen| self.in_use() > seen.bound()) {
            self.tight_since.get_or_insert(now);
        }
    }
}

/// The latency guard of one lane: shut above `slam_limit_ms`, open again under 80 % of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Guard {
    shut: bool,
    product_s: f64,
}

impl Guard {
    /// Takes in the mean time of a job and how many are in flight. With none in flight it opens.
    pub fn judge(&mut self, mean: Option<Duration>, inflight: usize, limit: Duration) {
        self.product_s = mean.unwrap_or_default().as_secs_f64() * inflight as f64;
        if self.product_s > limit.as_secs_f64() {
            self.shut = true;
        } else if self.product_s < limit.as_secs_f64() * 0.8 {
            self.shut = false;
        }
    }

    /// Mean time of a job times jobs in flight, when they were last looked at.
    pub fn product(self) -> Duration {
        Duration::try_from_secs_f64(self.product_s).unwrap_or(Duration::MAX)
    }

    /// Whether it is shut.
    pub fn is_shut(self) -> bool {
        self.shut
    }
}

/// Whether `held` is at most 80 % of its bound.
pub fn is_relaxed(held: usize, bound: usize) -> bool {
    held.saturating_mul(5) <= bound.saturating_mul(4)
}

/// How a lane stands against its bounds after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// At most 80 % of every bound.
    Relaxed,
    /// Above that, and nobody is turned away.
    Near,
    /// A job more is, or was in this turn, turned away or held back.
    Over(Cause),
}

/// A change of a lane's backpressure, with the figures that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which lane.
    pub lane: Lane,
    /// On or off from now on.
    pub on: bool,
    /// Why it is, or was, on.
    pub cause: Cause,
    /// The model whose own bound it was, if it was one's own.
    pub model: Option<ModelId>,
    /// For how long it was on.
    pub lasted: Duration,
    /// Admitted jobs of the lane that no engine has begun.
    pub queue: usize,
    /// Jobs of the lane whose computation has begun and is not finished.
    pub inflight: usize,
    /// Bytes of the interactive lane's bodies.
    pub bytes: usize,
    /// Mean time of a job of the lane, from its first batch.
    pub mean: Option<Duration>,
    /// Memory, where it is known.
    pub memory: Option<Memory>,
    /// When a job may find room; 0 if there is room.
    pub retry_after_ms: u64,
}

/// What is told of one lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Why it is on, and since when; `None` is off.
    pub on: Option<(Cause, Moment)>,
    /// The model whose own bound it is, or was last, if it was one's own.
    pub model: Option<ModelId>,
    /// How often it has changed.
    pub changes: u64,
    /// Jobs refused as overloaded, in the order of [`Cause::ALL`].
    pub refused: [u64; 4],
    /// When it was last not relaxed.
    tense: Moment,
}

impl Told {
    /// A job was refused.
    pub fn refused(&mut self, cause: Cause) {
        self.refused[cause as usize] += 1;
    }

    /// Takes in how the lane stands now, and whose own bound that is if it is a model's. On a change: whether it is on, the cause, and how long it was on.
    pub fn judge(
        &mut self,
        load: Load,
        model: Option<ModelId>,
        now: Moment,
    ) -> Option<(bool, Cause, Duration)> {
        if load != Load::Relaxed {
            self.tense = now;
        }
        match (self.on, load) {
            (None, Load::Over(cause)) => {
                (self.on, self.model) = (Some((cause, now)), model);
                self.changes += 1;
                Some((true, cause, Duration::ZERO))
            }
            (Some((cause, since)), Load::Relaxed) if now.since(self.tense) >= RELIEF => {
                self.on = None;
                self.changes += 1;
                Some((false, cause, now.since(since)))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    #[test]
    fn the_guard_has_a_memory() {
        let mut guard = Guard::default();
        let limit = Duration::from_secs(20);
        let mut shut = |mean_s: u64, inflight| {
            guard.judge(Some(Duration::from_secs(mean_s)), inflight, limit);
            guard.is_shut()
        };
        assert!(!shut(5, 4));
        assert!(shut(5, 5));
        assert!(shut(5, 4));
        assert!(shut(4, 4));
        assert!(!shut(5, 3));
        assert!(!shut(4, 5));
        assert!(shut(1000, 1));
        assert!(!shut(1000, 0));
        guard.judge(None, 9, limit);
        assert!(!guard.is_shut());
    }

    /// On at once, off only after a second of ease, and each once.
    #[test]
    fn a_lane_that_hovers_is_one_change() {
        let mut told = Told::default();
        let over = Load::Over(Cause::QueueFull);
        assert_eq!(
            told.judge(over, Some(ModelId(1)), at(10)),
            Some((true, Cause::QueueFull, Duration::ZERO))
        );
        for n in 1..50 {
            assert_eq!(told.judge(Load::Relaxed, None, at(10 + 40 * n)), None);
            assert_eq!(told.judge(Load::Near, None, at(30 + 40 * n)), None);
            assert_eq!(told.judge(Load::Over(Cause::Slam), None, at(40 + 40 * n)), None);
        }
        assert_eq!(told.judge(Load::Relaxed, None, at(2999)), None);
        let lasted = Duration::from_millis(2990);
        assert_eq!(
            told.judge(Load::Relaxed, None, at(3000)),
            Some((false, Cause::QueueFull, lasted))
        );
        assert_eq!(
            told.model,
            Some(ModelId(1)),
            "who hears of its end hears of whose it was"
        );
        assert_eq!(told.judge(Load::Relaxed, None, at(9000)), None);
        assert_eq!(told.changes, 2);
    }

    #[test]
    fn memory_is_kept_free() {
        const MIB: u64 = 1 << 20;
        let mut bound = MemoryBound::default();
        assert!(bound.fits(u64::MAX, false));
        let seen = |in_use| Memory {
            in_use: in_use * MIB,
            limit: 1000 * MIB,
        };
        bound.seen(seen(800), at(0));
        assert!(bound.fits(100 * MIB, false) && !bound.fits(101 * MIB, false));
        // What was admitted since the reading counts.
        bound.take(60 * MIB, at(1));
        assert!(bound.fits(40 * MIB, false) && !bound.fits(41 * MIB, false));
        bound.take(60 * MIB, at(2));
        assert_eq!(bound.tight_since(), Some(at(2)));
        assert!(!bound.fits(0, false));
        // It ends only where half as much again is free.
        bound.seen(seen(860), at(3));
        assert!(!bound.fits(0, false));
        bound.seen(seen(849), at(4));
        assert!(bound.fits(MIB, false));
        // Nobody else is here to wait for.
        bound.seen(seen(950), at(5));
        assert!(!bound.fits(MIB, false) && bound.fits(50 * MIB, true) && !bound.fits(51 * MIB, true));
        // On a large machine a quarter of a gigabyte is enough.
        let large = Memory {
            in_use: 0,
            limit: 512 << 30,
        };
        assert_eq!(large.limit - large.bound(), MEMORY_SPARE_MAX);
    }

    #[test]
    fn eighty_percent_of_little() {
        assert!(is_relaxed(0, 1) && !is_relaxed(1, 1));
        assert!(is_relaxed(4, 5) && !is_relaxed(5, 5) && is_relaxed(3, 4));
    }
}
