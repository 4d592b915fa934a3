//! Intake: jobs are taken in or refused, and the world is told when that changes.

use super::Logic;
use super::event::{Action, Ticket};
use super::pressure::{Cause, Change, Load, Told};
use crate::clock::Moment;
use crate::config::Limits;
use crate::job::{Lane, Refusal};
use std::time::Duration;

/// Lanes that have backpressure: canaries are never turned away.
const LANES: [Lane; 2] = [Lane::Interactive, Lane::Bulk];

impl Logic {
    /// So many deliveries of each lane may be unacknowledged in the session that begins; the loop tells it before
    /// [`BrokerUp`](super::event::Event::BrokerUp).
    pub fn fetches(&mut self, prefetch: [usize; Lane::COUNT]) {
        self.setup.prefetch = prefetch;
    }

    /// Takes the job in, or says what to answer. A first refusal is told to the world at once, with its cause.
    pub(super) fn admit(
        &mut self,
        lane: Lane,
        ticket: &Ticket,
        now: Moment,
        actions: &mut Vec<Action>,
    ) -> Result<(), Refusal> {
        self.admission.fits(lane, ticket)?;
        let load = self.memory_to_load(ticket.model);
        let admitted = self.admission.admit(lane, ticket, load, now);
        if lane == Lane::Interactive {
            let Limits {
                max_queue,
                liveness_max_stall,
                ..
            } = self.setup.limits;
            let rest = self.rest.arrived(max_queue, liveness_max_stall, now);
            if let Some(until) = rest {
                self.admission.rests(until, now);
                actions.push(Action::Rest { until });
            }
        }
        admitted.map_err(|overload| {
            let told = &mut self.told[lane as usize];
            told.refused(overload.cause);
            if let Some(change) = told.judge(Load::Over(overload.cause), overload.model, now) {
                actions.push(Action::Backpressure(self.change(lane, change, now)));
            }
            overload.refusal
        })
    }

    /// The latency guards see how many jobs are in flight. Called wherever that, or the mean, may have changed.
    pub(super) fn count_in_flight(&mut self) {
        let inflight = self.jobs.count_being_computed();
        for lane in LANES {
            self.admission.in_flight(lane, inflight[lane as usize]);
        }
    }

    /// Tells each change of backpressure once. A service that is stopping takes no work, and has nothing to tell.
    pub(super) fn tell_pressure(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if self.health.is_draining() {
            return;
        }
        for lane in LANES {
            let load = self.admission.load(lane);
            if let Some(change) = self.told[lane as usize].judge(load, None, now) {
                actions.push(Action::Backpressure(self.change(lane, change, now)));
            }
        }
    }

    /// What the world was last told of a lane.
    pub fn told(&self, lane: Lane) -> &Told {
        &self.told[lane as usize]
    }

    /// Jobs of a lane whose computation has begun and is not finished.
    pub(super) fn in_flight(&self, lane: Lane) -> usize {
        self.jobs.being_computed().filter(|job| job.lane == lane).count()
    }

    fn change(&self, lane: Lane, (on, cause, lasted): (bool, Cause, Duration), now: Moment) -> Change {
        let inflight = self.in_flight(lane);
        Change {
            lane,
            on,
            cause,
            model: self.told[lane as usize].model,
            lasted,
            queue: self.admission.held(lane).saturating_sub(inflight),
            inflight,
            bytes: self.admission.bytes(),
            mean: self.admission.service_time(lane),
            memory: self.admission.memory(),
            retry_after_ms: if on {
                self.admission.retry_after_ms(lane, cause, now)
            } else {
                0
            },
        }
    }
}
