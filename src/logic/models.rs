//! Jobs and their models: a job whose model is not in memory waits for it, and a model that nobody has asked for in
//! a long while goes. Canaries follow the models that are there; they load none.

use super::Logic;
use super::event::{Action, EngineId, ModelId, Worker};
use super::ledger::Stage;
use super::places::is_bulk;
use super::settle::Phase;
use crate::clock::Moment;
use crate::job::{ErrorType, JobKey, Lane, Refusal};

impl Logic {
    /// An admitted job goes to the tokenizers, or waits for its model.
    pub(super) fn take_up(&mut self, key: JobKey, now: Moment, actions: &mut Vec<Action>) {
        let Some(job) = self.jobs.get_mut(key) else { return };
        let model = job.ticket.model;
        let ready = self.residence.is_ready(model);
        if job.lane == Lane::Probe && !ready {
            self.try_an_engine(key, now, actions);
            return;
        }
        job.holds_model = true;
        self.health.ledger.enter(Stage::Admitted, 1, now);
        if ready {
            actions.push(Action::Tokenize { job: key });
        } else {
            job.phase = Phase::Awaiting;
            self.awaiting.insert((model, key));
        }
        if self.residence.hold(model) {
            self.load(model, now, actions);
        }
    }

    /// Why a bulk job cannot have its model in memory, if so; loaded all the same, it would cost the process, and the job an
    /// attempt each time. An interactive one is refused at its admission.
    pub(super) fn lacks_memory(&self, lane: Lane, model: ModelId) -> Option<Refusal> {
        let need = self.memory_to_load(model);
        let lacks = is_bulk(lane) && need > 0 && !self.admission.has_memory_for(need);
        let message = || format!("the model needs {need} bytes of memory, which are not free");
        lacks.then(|| Refusal::new(ErrorType::Internal, message()))
    }

    /// Memory that the job asks for beside its own: that of its model, if nobody else has asked for it.
    pub(super) fn memory_to_load(&self, model: ModelId) -> u64 {
        if self.residence.is_unloaded(model) {
            self.setup.models[model.0].bytes
        } else {
            0
        }
    }

    fn load(&mut self, model: ModelId, now: Moment, actions: &mut Vec<Action>) {
        self.health.ledger.model_moves(now);
        actions.push(Action::Load { model });
    }

    pub(super) fn loaded(
        &mut self,
        model: ModelId,
        bytes: Option<u64>,
        now: Moment,
        actions: &mut Vec<Action>,
    ) {
        self.health.ledger.model_moved(1, now);
        let known = &mut self.setup.models[model.0].bytes;
        *known = bytes.unwrap_or(*known);
        self.residence.loaded(model, now);
        for job in self.take_awaiting(model) {
            if let Some(waiting) = self.jobs.get_mut(job) {
                waiting.phase = Phase::Tokenizing;
                actions.push(Action::Tokenize { job });
            }
        }
    }

    /// No fault of the senders: each job is tried again as after any failure.
    pub(super) fn load_failed(&mut self, model: ModelId, why: &str, now: Moment, actions: &mut Vec<Action>) {
        self.health.ledger.model_moved(1, now);
        self.residence.failed(model);
        for job in self.take_awaiting(model) {
            self.health.ledger.leave(Stage::Admitted, 1, now);
            let message = format!("the model cannot be loaded: {why}");
            self.fail(job, Refusal::new(ErrorType::Internal, message), now, actions);
        }
    }

    pub(super) fn unloaded(&mut self, model: ModelId, now: Moment, actions: &mut Vec<Action>) {
        self.health.ledger.model_moved(1, now);
        if self.residence.unloaded(model) {
            self.load(model, now, actions);
        }
    }

    pub(super) fn unload_idle(&mut self, now: Moment, actions: &mut Vec<Action>) {
        while !self.health.is_draining()
            && let Some(model) = self.residence.unload(now)
        {
            self.health.ledger.model_moves(now);
            actions.push(Action::Unload { model });
        }
    }

    fn take_awaiting(&mut self, model: ModelId) -> Vec<JobKey> {
        let behind = self.awaiting.split_off(&(model, JobKey(0)));
        let (own, others) = behind.into_iter().partition(|(of, _)| *of == model);
        self.awaiting.extend::<Vec<_>>(others);
        let own: Vec<(ModelId, JobKey)> = own;
        own.into_iter().map(|(_, job)| job).collect()
    }

    /// Of a model that is not in memory a canary proves the rest of the way, and that an engine computes. They take
    /// turns.
    fn try_an_engine(&mut self, key: JobKey, now: Moment, actions: &mut Vec<Action>) {
        let engine = EngineId(self.next_trial % self.setup.engines);
        self.next_trial += 1;
        self.health.ledger.compute(engine.0, 1, now);
        self.trials.push((engine, key));
        if let Some(job) = self.jobs.get_mut(key) {
            job.phase = Phase::Trying;
        }
        actions.push(Action::Try(Worker::Engine(engine)));
    }

    /// A thread answered; if it is an engine, so have the canaries been that asked it.
    pub(super) fn tried(&mut self, worker: Worker, now: Moment, actions: &mut Vec<Action>) {
        self.health.ledger.tried(worker, now);
        let Worker::Engine(engine) = worker else { return };
        for (_, key) in self
            .trials
            .extract_if(.., |(of, _)| *of == engine)
            .collect::<Vec<_>>()
        {
            self.health.ledger.computed(engine.0, 1, now);
            let Some(job) = self.jobs.get_mut(key) else {
                continue;
            };
            job.begun = Some(now);
            self.answer(key, now, actions);
        }
    }
}
