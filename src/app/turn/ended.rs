//! A job's end here: it is forgotten, and told of in the log and, if it is followed, in its trace.

use super::Loop;
use crate::app::desk::Held;
use crate::app::spans::Followed;
use crate::clock::{Moment, millis};
use crate::job::{JobKey, Lane};
use crate::logic::event::Outcome;
use crate::traces::{Asked, Job, Source};
use tracing::{debug, warn};

impl Loop {
    pub(super) fn forget(&mut self, job: JobKey, outcome: Outcome, now: Moment) {
        let Some(mut held) = self.desk.remove(&job) else {
            return;
        };
        self.trace.gone(job);
        self.part_twins(job);
        let went_on = matches!(outcome, Outcome::MovedOn | Outcome::Answered | Outcome::Returned);
        if let (true, Some(reached)) = (went_on, held.reached) {
            self.lineages.reached(held.checkpoint.lineage, reached);
        }
        if !matches!(outcome, Outcome::MovedOn | Outcome::Lost | Outcome::Requeued) {
            self.retries.ended(&held.id);
        }
        let duration_ms = millis(now.since(held.arrived));
        let (lane, outcome_name) = (held.lane.name(), outcome.name());
        let by_queue = held.receipt.is_some();
        if outcome == Outcome::Returned && by_queue {
            let returned = self.parts.logic.tally().jobs[held.lane as usize][outcome as usize];
            warn!(job = %held.id, trace_id = held.trace_id(), lane, duration_ms, returned, "nobody waits for the answer any more");
        } else {
            debug!(job = %held.id, trace_id = held.trace_id(), lane, duration_ms, outcome = outcome_name, "settled");
        }
        self.told(&mut held, outcome, now);
    }

    /// Follows a job that has just come, if a span of it is to be told. From now on its trace is known by that span.
    pub(super) fn follow(&self, held: &mut Held) {
        let Some(traces) = self.parts.traces.as_ref().filter(|_| held.lane != Lane::Probe) else {
            return;
        };
        // Whether a job is told of is drawn once: what goes on as another message says so itself.
        if held.lane == Lane::Resumed && held.traceparent.is_none() {
            return;
        }
        held.followed = traces.place(held.traceparent.as_ref()).map(Followed::new);
        if let Some(followed) = &held.followed {
            held.traceparent = Some(followed.traceparent());
        }
    }

    /// A job has ended: its span is told.
    fn told(&self, held: &mut Held, outcome: Outcome, now: Moment) {
        let (Some(traces), Some(followed)) = (&self.parts.traces, held.followed.take()) else {
            return;
        };
        let source = match &held.receipt {
            Some(receipt) => Source::Queue {
                name: self.names.of(held.lane).to_owned(),
                correlation_id: held.correlation_id.clone(),
                bytes: receipt.body().len(),
            },
            None => Source::Http,
        };
        let asked = held.plan.as_ref().map(|plan| {
            let entry = self.parts.catalogue.entry(plan.model);
            Asked {
                model: entry.name.clone(),
                inputs: held.inputs,
                tokens: held.tokens_here(),
                dimensions: plan.dimensions.unwrap_or(entry.outline.dimensions),
                encoding: plan.encoding,
            }
        });
        traces.tell(Job {
            place: followed.place,
            source,
            id: std::mem::take(&mut held.id),
            lane: held.lane,
            outcome,
            attempt: held.attempts(),
            asked,
            refused: followed.refused,
            came_unix_ms: held.received_ms,
            came: held.arrived,
            ended: now,
            steps: followed.steps,
        });
    }
}
