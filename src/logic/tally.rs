//! What has happened so far, counted: the source of the metrics. Nothing here decides.

use super::event::Outcome;
use super::ledger::Stage;
use crate::clock::Moment;
use crate::job::{ErrorType, Lane};
use std::time::Duration;

/// Bounds of the time that a job takes, in seconds: from a short text on an idle machine to a long job in a full queue.
const JOB_SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];
/// Bounds of the time that a job spends in one stage, in seconds; the last is where a stage counts as stalled by default.
const STAGE_SECONDS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];
/// Bounds of the tokens of a batch; 512 is the default budget, and one input may be above any.
const BATCH_TOKENS: &[f64] = &[
    8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 384.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0,
];
/// No histogram has more bounds than this.
const BOUNDS_MAX: usize = 16;

/// How often a value lay where.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    bounds: &'static [f64],
    /// Values up to each bound and above the one before; the last are above all.
    counts: [u64; BOUNDS_MAX],
    sum: f64,
}

impl Histogram {
    /// Nothing seen. `bounds` rise.
    pub fn new(bounds: &'static [f64]) -> Histogram {
        assert!(bounds.len() < BOUNDS_MAX, "room for those above the last bound");
        Histogram {
            bounds,
            counts: [0; BOUNDS_MAX],
            sum: 0.0,
        }
    }

    /// A value was seen.
    pub fn observe(&mut self, value: f64) {
        let at = self.bounds.iter().position(|&bound| value <= bound);
        self.counts[at.unwrap_or(self.bounds.len())] += 1;
        self.sum += value;
    }

    /// Each bound, and how many values were not above it.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let below = self.counts.iter().scan(0, |below, count| {
            *below += count;
            Some(*below)
        });
        self.bounds.iter().copied().zip(below)
    }

    /// How many values were seen.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their sum.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// Their mean, if there are any.
    pub fn mean(&self) -> Option<f64> {
        (self.count() > 0).then(|| self.sum / self.count() as f64)
    }

    /// What was seen since `earlier`, which is this one as it was before.
    pub fn since(&self, earlier: &Histogram) -> Histogram {
        let mut since = self.clone();
        for (count, before) in since.counts.iter_mut().zip(earlier.counts) {
            *count = count.saturating_sub(before);
        }
        since.sum = (self.sum - earlier.sum).max(0.0);
        since
    }

    /// The value below which this part of all lies, as near as the bounds tell: within its bucket it is taken to lie evenly,
    /// as Prometheus' `histogram_quantile` does, and above the last bound it is that bound. `None` if nothing was seen.
    pub fn quantile(&self, part: f64) -> Option<f64> {
        let rank = part.clamp(0.0, 1.0) * self.count() as f64;
        let (mut floor, mut below) = (0.0, 0);
        for (bound, upto) in self.buckets() {
            if upto > below && upto as f64 >= rank {
                let within = (rank - below as f64) / (upto - below) as f64;
                return Some(floor + (bound - floor) * within.max(0.0));
            }
            (floor, below) = (bound, upto);
        }
        (self.count() > 0).then_some(floor)
    }
}

/// Everything that is counted.
#[derive(Clone, Debug, PartialEq)]
pub struct Tally {
    /// Jobs that ended here, by lane and outcome, in the order of [`Lane::ALL`] and [`Outcome::ALL`].
    pub jobs: [[u64; Outcome::COUNT]; Lane::COUNT],
    /// Inputs that came out of an engine.
    pub inputs: u64,
    /// Their tokens.
    pub tokens: u64,
    /// From delivery to acknowledgement, jobs that were answered with vectors, by lane.
    pub job_seconds: [Histogram; Lane::COUNT],
    /// The time that jobs spent in a stage, in the order of [`Stage::ALL`].
    pub stage_seconds: [Histogram; Stage::ALL.len()],
    /// Tokens of a batch.
    pub batch_tokens: Histogram,
    /// From the moment in which a canary was sent until it had gone all the way round.
    pub canary_seconds: Histogram,
    /// Refusals and errors by their type, in the order of [`ErrorType::ALL`]. Overloads are counted by their cause, with
    /// the lane's backpressure.
    pub refused: [u64; ErrorType::COUNT],
    /// Attempts that failed and are followed by another.
    pub retries: u64,
    /// Pets of systemd.
    pub pets: u64,
    /// When the last was.
    pub petted: Option<Moment>,
    /// Sessions with the broker that were lost.
    pub disconnects: u64,
    /// Since when there is none, if so.
    pub disconnected: Option<Moment>,
    /// When the canary that is under way was sent.
    canary_sent: Option<Moment>,
}

impl Tally {
    /// Nothing has happened by `now`.
    pub fn new(now: Moment) -> Tally {
        let job = Histogram::new(JOB_SECONDS);
        let stage = Histogram::new(STAGE_SECONDS);
        Tally {
            jobs: [[0; Outcome::COUNT]; Lane::COUNT],
            inputs: 0,
            tokens: 0,
            job_seconds: [(); Lane::COUNT].map(|()| job.clone()),
            stage_seconds: [(); Stage::ALL.len()].map(|()| stage.clone()),
            batch_tokens: Histogram::new(BATCH_TOKENS),
            canary_seconds: job.clone(),
            refused: [0; ErrorType::COUNT],
            retries: 0,
            pets: 0,
            petted: None,
            disconnects: 0,
            disconnected: Some(now),
            canary_sent: None,
        }
    }

    /// A job has been in a stage for so long, and has left it.
    pub(super) fn passed(&mut self, stage: Stage, span: Duration) {
        self.stage_seconds[stage as usize].observe(span.as_secs_f64());
    }

    /// A canary is sent.
    pub(super) fn canary_sent(&mut self, now: Moment) {
        self.canary_sent = Some(now);
    }

    /// A canary has gone all the way round.
    pub(super) fn canary_came(&mut self, now: Moment) {
        if let Some(sent) = self.canary_sent.take() {
            self.canary_seconds.observe(now.since(sent).as_secs_f64());
        }
    }

    /// systemd is petted.
    pub(super) fn petted(&mut self, now: Moment) {
        self.pets += 1;
        self.petted = Some(now);
    }

    /// A session stands.
    pub(super) fn connected(&mut self) {
        self.disconnected = None;
    }

    /// The session that stood is gone.
    pub(super) fn disconnected(&mut self, now: Moment) {
        if self.disconnected.is_none() {
            self.disconnects += 1;
            self.disconnected = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_add_up() {
        let mut histogram = Histogram::new(&[1.0, 2.0]);
        for value in [0.5, 1.0, 1.5, 7.0] {
            histogram.observe(value);
        }
        assert_eq!(histogram.buckets().collect::<Vec<_>>(), [(1.0, 2), (2.0, 3)]);
        assert_eq!((histogram.count(), histogram.sum()), (4, 10.0));
        assert_eq!(histogram.mean(), Some(2.5));
    }

    #[test]
    fn a_quantile_lies_in_its_bucket() {
        let empty = Histogram::new(&[1.0, 2.0, 4.0]);
        assert_eq!((empty.quantile(0.5), empty.mean()), (None, None));
        let mut histogram = empty.clone();
        for _ in 0..100 {
            histogram.observe(1.5);
        }
        assert_eq!(histogram.quantile(0.5), Some(1.5));
        assert_eq!(histogram.quantile(0.99), Some(1.99));
        let before = histogram.clone();
        histogram.observe(3.0);
        histogram.observe(900.0);
        let since = histogram.since(&before);
        assert_eq!((since.count(), since.sum()), (2, 903.0));
        assert_eq!(
            (since.quantile(0.5), since.quantile(0.99)),
            (Some(4.0), Some(4.0))
        );
    }

    /// Goal: a loss is one, however often it is told; before the first session there is nothing to lose.
    #[test]
    fn a_loss_counts_once() {
        let at = Moment::from_millis;
        let mut tally = Tally::new(at(0));
        tally.disconnected(at(5));
        assert_eq!((tally.disconnects, tally.disconnected), (0, Some(at(0))));
        tally.connected();
        tally.disconnected(at(9));
        tally.disconnected(at(12));
        assert_eq!((tally.disconnects, tally.disconnected), (1, Some(at(9))));
    }
}
