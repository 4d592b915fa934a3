//! What the loop tells the black box: the figures ten times a second at most, the jobs that are being worked
//! on at once, before the work that one of them may not survive begins.

use super::desk::Desk;
use crate::clock::{Moment, millis};
use crate::job::{JobKey, Lane};
use crate::logic::Logic;
use crate::telemetry::blackbox::{
    self, Figures, MARKS_MAX, Phase, SUSPECT_BYTES_MAX, SUSPECTS_MAX, StageFigures, Suspects,
};
use crate::telemetry::journal::clip;
use std::collections::BTreeMap;
use std::time::Duration;

/// Figures are written at most this often.
const INTERVAL: Duration = Duration::from_millis(100);

/// What the box has been told.
#[derive(Debug, Default)]
pub struct Trace {
    model: String,
    phase: Phase,
    /// Jobs of callers in a tokenizer or an engine, with the number of their pieces there; oldest first.
    suspects: BTreeMap<JobKey, usize>,
    changed: bool,
    figures: Option<Moment>,
    pet: Option<Moment>,
}

impl Trace {
    /// A loop that has not turned yet.
    pub fn new(model: &str) -> Trace {
        Trace {
            model: model.into(),
            phase: Phase::Starting,
            ..Trace::default()
        }
    }

    /// How far the service has come.
    pub fn phase(&mut self, phase: Phase) {
        // A start that is given up is still a start.
        if phase == Phase::Draining && self.phase != Phase::Ready {
            return;
        }
        self.phase = phase;
        self.figures = None;
    }

    /// systemd was petted.
    pub fn pet(&mut self, now: Moment) {
        self.pet = Some(now);
    }

    /// Pieces of these jobs are about to be worked on.
    pub fn begins(&mut self, jobs: impl IntoIterator<Item = JobKey>, desk: &Desk) {
        for job in jobs {
            if desk.get(&job).is_some_and(|held| held.lane != Lane::Probe) {
                *self.suspects.entry(job).or_default() += 1;
                self.changed = true;
            }
        }
        self.write_suspects(desk);
    }

    /// Work on a piece of a job has ended.
    pub fn ends(&mut self, job: JobKey) {
        if let Some(pieces) = self.suspects.get_mut(&job) {
            *pieces -= 1;
            if *pieces == 0 {
                self.gone(job);
            }
        }
    }

    /// The job is here no longer.
    pub fn gone(&mut self, job: JobKey) {
        self.changed |= self.suspects.remove(&job).is_some();
    }

    /// The loop has turned.
    pub fn turned(&mut self, logic: &Logic, desk: &Desk, now: Moment) {
        self.write_suspects(desk);
        if self.figures.is_some_and(|last| now.since(last) < INTERVAL) {
            return;
        }
        self.figures = Some(now);
        if let Some(own) = blackbox::own() {
            own.figures(self.view(logic, now));
        }
    }

    fn write_suspects(&mut self, desk: &Desk) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let Some(own) = blackbox::own() else { return };
        let known = || self.suspects.keys().filter_map(|job| desk.get(job));
        own.suspects(&Suspects {
            total: self.suspects.len(),
            ids: known()
                .take(SUSPECTS_MAX)
                .map(|held| clip(&held.id, SUSPECT_BYTES_MAX).replace(char::is_control, "_"))
                .collect(),
            marks: known()
                .take(MARKS_MAX)
                .map(|held| blackbox::mark(&held.id))
                .collect(),
        });
    }

    fn view(&self, logic: &Logic, now: Moment) -> Figures {
        let seen = logic.snapshot(now);
        let stage = |it: &crate::logic::status::StageView| StageFigures {
            stage: it.stage.name().into(),
            inside: it.inside,
            waiting_ms: millis(it.waiting),
        };
        Figures {
            phase: self.phase,
            state: seen.state.name().into(),
            model: self.model.clone(),
            queue: Some(seen.figures.queue),
            inflight: Some(seen.figures.inflight),
            stages: seen.stages.iter().map(stage).collect(),
            stalled: seen.stalled.map(|stage| stage.name().into()).unwrap_or_default(),
            progress_age_ms: Some(millis(seen.progress_age)),
            proof_age_ms: seen.proof_age.map(millis),
            connected: seen.connected,
            pet_age_ms: self.pet.map(|pet| millis(now.since(pet))),
            ..Figures::default()
        }
    }
}
