//! Ends that come from outside: a session that is lost, and the wish that the service stop.

use super::Logic;
use super::event::{Action, Onward, Outcome};
use super::ledger::Stage;
use super::settle::{Phase, Source};
use crate::clock::Moment;
use crate::job::{JobKey, Lane};

impl Logic {
    /// The broker will deliver again what the lost session had delivered; here it is void. Who waits on a connection of its
    /// own has lost nothing.
    pub(super) fn session_lost(&mut self, now: Moment, actions: &mut Vec<Action>) {
        self.tally.disconnected(now);
        self.ahead.session_lost(now);
        for key in self.jobs.keys() {
            let stays = |source| source == Source::Connection;
            if self.jobs.get(key).is_some_and(|job| !stays(job.source)) {
                self.leave_lane(key);
                self.forget(key, Outcome::Lost, now, actions);
            }
        }
        let jobs = &self.jobs;
        for part in &mut self.parts {
            part.items.retain(|item| jobs.get(item.job).is_some());
        }
        self.parts.retain(|part| !part.items.is_empty());
        let inside = Stage::ALL.map(|stage| self.inside_without_broker(stage));
        self.health.broker_down(&inside);
        self.count_in_flight();
    }

    /// What is inside a stage of the jobs that no session has delivered.
    fn inside_without_broker(&self, stage: Stage) -> usize {
        match stage {
            Stage::Admitted => {
                let before = |phase| matches!(phase, Phase::Awaiting | Phase::Tokenizing);
                self.jobs.values().filter(|job| before(job.phase)).count()
            }
            Stage::Batched => {
                let undrawn: usize = self.jobs.values().map(|job| job.undrawn).sum();
                undrawn + self.parts.iter().map(|part| part.items.len()).sum::<usize>()
            }
            Stage::Received | Stage::Computed | Stage::Published | Stage::Acked => 0,
        }
    }

    /// Hands back what no engine has begun, and lets the rest finish. Who waits on a connection is told to come again.
    pub(super) fn drain(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if self.health.is_draining() {
            return;
        }
        self.health.drain(now);
        for key in self.jobs.keys() {
            let Some(job) = self.jobs.get(key) else { continue };
            if !job.waits() {
                continue;
            }
            let source = job.source;
            self.leave_lane(key);
            match source {
                Source::Within => self.forget(key, Outcome::Probe, now, actions),
                Source::Connection => self.refuse(key, self.stopping(now), now, actions),
                Source::Queue => self.hand_back(key, now, actions),
            }
        }
    }

    /// A job of which nothing is begun goes on elsewhere. Given back, it would look as if a process had died of it: so it is sent
    /// anew where the broker takes that. What is not out when the time to drain is over goes back with the session.
    pub(super) fn hand_back(&mut self, key: JobKey, now: Moment, actions: &mut Vec<Action>) {
        let Some(job) = self.jobs.get(key) else { return };
        let takes = self.health.is_connected() && self.health.blocked_since().is_none();
        let onward = match job.lane {
            // One that may have ended a process keeps its mark.
            Lane::Interactive if !job.alone => Some(Onward::Back),
            // It was far back there, and others need not wait while it is computed alone.
            Lane::Bulk if job.fetched && !job.alone => Some(Onward::Back),
            // At the end of its queue a bulk job would wait for the whole backlog once more.
            Lane::Bulk | Lane::Resumed if self.resumable => Some(Onward::Suspect),
            Lane::Interactive | Lane::Bulk | Lane::Resumed | Lane::Probe => None,
        };
        match onward.filter(|_| takes) {
            Some(onward) => self.move_on(key, onward, now, actions),
            None => {
                actions.push(Action::Requeue { job: key });
                self.forget(key, Outcome::Requeued, now, actions);
            }
        }
    }

    pub(super) fn finish_drain(&mut self, actions: &mut Vec<Action>) {
        if self.health.is_draining() && !self.drained && self.jobs.is_empty() && self.batcher.is_idle() {
            self.drained = true;
            actions.push(Action::Drained);
        }
    }
}
