//! Looking ahead in the bulk lane's queue. Callers take turns among the jobs that are here; whoever stands behind another's
//! thousand jobs in the broker's queue has no turn. So while the consumer holds all that it may, and somebody has several
//! jobs here, further messages are taken in, beyond the prefetch and within bounds of number, time and memory.
//! `docs/design/0027` has what was measured.

use super::Logic;
use super::event::{Action, ModelId};
use super::pace::Pace;
use super::pressure::memory_of;
use super::settle::Source;
use crate::clock::Moment;
use crate::job::Lane;
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

/// Jobs of the bulk lane that are here at most, those of the consumer among them.
pub const JOBS_MAX: usize = 1024;
/// Memory that those beyond the prefetch may come to need, in bytes, and the part of what is free that they may.
const MEMORY_MAX: u64 = 512 << 20;
const MEMORY_SHARE: u64 = 4;
/// As much work is taken in as is done in this time: what waits here longer than ten minutes goes on elsewhere.
const WORK_ALONE: Duration = Duration::from_secs(60);
/// And in company: what one worker holds no other can begin, and may stand for once the queue is empty.
const WORK_SHARED: Duration = Duration::from_secs(10);
/// Jobs in company that are not counted, since their model has as many at work as it may: their places are no use to others.
const KEPT_OUT_SHARED: usize = 64;
/// Nor more than one of so many parts of the longest wait here: a broker that is known to have little patience must not be tried.
const WAIT_SHARE: u32 = 4;
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(250);
/// After a session that was lost in the midst of one.
const PAUSE_LOST: Duration = Duration::from_secs(600);

/// What is known of looks.
#[derive(Clone, Debug, Default)]
pub(super) struct Ahead {
    under_way: bool,
    /// When it was last thought of, or had an end.
    last: Option<Moment>,
    /// Nobody else takes from the queue, as far as the broker has told.
    alone: bool,
    /// How long the lane's jobs of each model are at work.
    paces: BTreeMap<ModelId, Pace>,
}

impl Ahead {
    /// So many consumers take from the queue, ours among them.
    pub(super) fn consumers(&mut self, consumers: usize) {
        self.alone = consumers <= 1;
    }

    /// What was asked for has come.
    pub(super) fn ended(&mut self, now: Moment) {
        (self.under_way, self.last) = (false, Some(now));
    }

    /// The session is gone, perhaps because the broker does not let this queue be looked into.
    pub(super) fn session_lost(&mut self, now: Moment) {
        if std::mem::take(&mut self.under_way) {
            self.last = Some(now + PAUSE_LOST);
        }
    }

    fn is_due(&self, now: Moment) -> bool {
        !self.under_way && self.last.is_none_or(|last| now.since(last) >= PAUSE)
    }

    fn work_max(&self) -> Duration {
        if self.alone { WORK_ALONE } else { WORK_SHARED }
    }

    /// A job of the model was at work for so long, and is answered or goes on elsewhere.
    pub(super) fn worked(&mut self, model: ModelId, service: Duration) {
        self.paces.entry(model).or_default().settled(service, service);
    }

    /// As many jobs of a model that has `most` at work at once as it gets through in `limit`. None before the first.
    fn within(&self, limit: Duration, model: ModelId, most: usize) -> usize {
        let mean = self.paces.get(&model).and_then(Pace::service_time);
        mean.map_or(0, |mean| {
            (limit.as_secs_f64() * most as f64 / mean.as_secs_f64()) as usize
        })
    }
}

impl Logic {
    /// Asks for what stands behind the jobs that are here, if somebody else's may be among it.
    pub(super) fn look_ahead(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if !self.ahead.is_due(now) {
            return;
        }
        self.ahead.last = Some(now);
        // What waits too long here must be able to go on elsewhere.
        if self.health.is_draining()
            || !self.resumable
            || !self.health.is_connected()
            || self.health.blocked_since().is_some()
            || self.admission.bulk_pauses().is_some()
        {
            return;
        }
        let here = self.jobs.values();
        let here = here.filter(|job| job.lane == Lane::Bulk && job.source == Source::Queue);
        let (mut held, mut consumed, mut memory) = (0, 0, 0u64);
        // Jobs that wait for others of their model, and leave the engines to other models.
        let mut kept_out = BTreeMap::<ModelId, usize>::new();
        let places = self.places();
        let mut callers = HashSet::new();
        for job in here {
            held += 1;
            consumed += usize::from(!job.fetched);
            callers.insert(job.ticket.caller);
            if job.waits() {
                if places.are_taken_of(job.ticket.model) {
                    *kept_out.entry(job.ticket.model).or_default() += 1;
                }
                memory = memory.saturating_add(memory_of(job.ticket.bytes, job.ticket.inputs));
            }
        }
        // Somewhat less: some are on their way out.
        let is_full = consumed * 4 >= self.setup.prefetch[Lane::Bulk as usize] * 3;
        let somebody_has_several = held > callers.len();
        if !is_full || !somebody_has_several && kept_out.is_empty() {
            return;
        }
        let most_begun = self.setup.limits.max_inflight;
        let work_max = self.ahead.work_max().min(self.held_max / WAIT_SHARE);
        let within_time = match self.admission.seconds_per_job(Lane::Bulk, most_begun, now) {
            Some(seconds) => (work_max.as_secs_f64() / seconds) as usize,
            // Nothing is known of the pace before the first answer or slice.
            None if kept_out.is_empty() => return,
            None => 0,
        };
        // The pace is that of the jobs which are not kept out. Of others as many can be begun at once as there are places.
        let at_once = if kept_out.is_empty() { 0 } else { most_begun };
        let most = within_time.max(at_once).min(JOBS_MAX);
        let counted = held - self.uncounted(kept_out);
        let jobs = most.saturating_sub(counted).min(JOBS_MAX.saturating_sub(held));
        let free = self.admission.memory().map_or(u64::MAX, |seen| {
            seen.bound().saturating_sub(seen.in_use) / MEMORY_SHARE
        });
        let memory = free.min(MEMORY_MAX).saturating_sub(memory);
        // Not for a handful.
        if jobs >= (most / 8).max(1) && memory >= MEMORY_MAX / 64 {
            self.ahead.under_way = true;
            // Others are to find something, whoever looks first. How many they are is not known: the broker counts their looks as well.
            let one_in = if self.ahead.alone { 1 } else { 2 };
            actions.push(Action::LookAhead { jobs, one_in, memory });
        }
    }

    /// How many of the jobs that wait for others of their model leave room for more: what the consumer holds, and what goes by the pace
    /// of that model, or those that wait too long here would fill the queue of what goes on.
    fn uncounted(&self, kept_out: BTreeMap<ModelId, usize>) -> usize {
        let limit = WORK_ALONE.min(self.held_max / WAIT_SHARE);
        let of_model = kept_out.into_iter().map(|(model, count)| {
            // Only a model with a bound of its own keeps jobs out.
            let most = self.setup.models[model.0].max_inflight.unwrap_or(1);
            let paced = self.ahead.within(limit, model, most);
            count.min(paced.max(self.setup.prefetch[Lane::Bulk as usize]))
        });
        let most = if self.ahead.alone {
            JOBS_MAX
        } else {
            KEPT_OUT_SHARED
        };
        of_model.sum::<usize>().min(most)
    }
}
