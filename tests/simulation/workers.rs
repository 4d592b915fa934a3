//! The made-up tokenizers and engines: quick, slow with steps, failing on an input, or stuck for ever.

use super::*;

impl World {
    /// A tokenizer that is free and not frozen takes up the next job.
    pub(super) fn take_up(&mut self) {
        let free = |tokenizer: &Tokenizer| tokenizer.job.is_none() && !tokenizer.stuck;
        let Some(at) = self.tokenizers.iter().position(free) else {
            return;
        };
        let Some(job) = self.to_tokenize.pop_front() else {
            return;
        };
        let stall = self.setup.limits.liveness_max_stall.as_millis() as u64;
        let (steps, most) = if self.tokenizer_slow {
            (self.rng.range(1, 4), stall / 2)
        } else {
            (1, 20)
        };
        let step_ms = self.rng.range(0, most);
        if self.tokenizer_slow {
            self.slow_until = self.slow_until.max(self.now + steps * step_ms);
        }
        let tokenizer = &mut self.tokenizers[at];
        (tokenizer.job, tokenizer.steps_left, tokenizer.step_ms) = (Some(job), steps, step_ms);
        self.plan(step_ms, Next::TokenizerStep(at, job));
        self.step(Event::TokenizerBegan {
            tokenizer: TokenizerId(at),
        });
    }

    pub(super) fn tokenizer_step(&mut self, at: usize, job: JobKey) {
        let stall = self.setup.limits.liveness_max_stall.as_millis() as u64;
        let tokenizer = &mut self.tokenizers[at];
        if tokenizer.stuck || tokenizer.job != Some(job) {
            return;
        }
        tokenizer.steps_left -= 1;
        if tokenizer.steps_left > 0 {
            // A reload may have lowered the limit below the step that was agreed on.
            let step_ms = tokenizer.step_ms.min(stall * 3 / 4);
            self.plan(step_ms, Next::TokenizerStep(at, job));
            self.step(Event::TokenizerStep {
                tokenizer: TokenizerId(at),
            });
            return;
        }
        tokenizer.job = None;
        self.plan(0, Next::Tokenize);
        self.tokenized(job);
        self.step(Event::TokenizerEnded {
            tokenizer: TokenizerId(at),
        });
    }

    fn tokenized(&mut self, job: JobKey) {
        let called = self.call_tokens(job);
        let result = match self.deliveries.get(&job).map(|delivery| delivery.letter) {
            _ if called.is_some() => Ok(called.clone().unwrap_or_default()),
            Some(Letter::Client(number)) => {
                let resumable = self.resumable;
                let wrong = self.rng.one_in(20);
                let message = &mut self.messages[number];
                let first = message.chunk.map(|chunk| chunk - message.done % chunk);
                if let Some(first) = first.filter(|&first| wrong && resumable && first < message.slice) {
                    // One behind the first chunk is wrong.
                    message.slice = first;
                    self.counts.shortened += 1;
                }
                let message = &self.messages[number];
                Ok(message.tokens[message.done..message.done + message.slice].to_vec())
            }
            // Its session is gone, which the service does not know yet.
            Some(Letter::Canary) => Ok(vec![4; self.deliveries[&job].inputs]),
            None => Ok(vec![4]),
        };
        let delivery = self.deliveries.get(&job);
        let canary = called.is_none() && delivery.is_none_or(|delivery| delivery.lane == Lane::Probe);
        // The tokenizer of a job whose session is gone still ends, with whatever it had to do.
        let result = if !canary && self.rng.one_in(60) {
            Err(Refusal::new(
                ErrorType::InputTooLong,
                "input 0 has 513 tokens, limit is 512",
            ))
        } else {
            result
        };
        let delivery = self.deliveries.get(&job);
        let plain = called.is_some() || delivery.is_some_and(|delivery| !delivery.streamed);
        if !canary && plain && self.rng.one_in(40) {
            self.step(Event::Recalled { job });
            return;
        }
        self.step(Event::Tokenized { job, result });
    }

    pub(super) fn load_step(&mut self, model: ModelId, steps: u64) {
        let stall = self.setup.limits.liveness_max_stall.as_millis() as u64;
        if steps > 0 {
            // A slow disk is trouble: models that take turns in too little memory would load for longer than a healed world is
            // given to settle.
            let slow = self.trouble && self.rng.one_in(4);
            let most = if slow { stall * 3 / 4 } else { 100 };
            let pause = self.rng.range(0, most);
            self.plan(pause, Next::Load(model, steps - 1));
            self.step(Event::LoadStep);
        } else if !self.first_loads.contains(&model) && self.rng.one_in(8) {
            let why = "model.safetensors is missing".into();
            self.step(Event::LoadFailed { model, why });
        } else {
            self.first_loads.remove(&model);
            let bytes = self.rng.one_in(2).then(|| self.rng.range(0, 20) << 20);
            self.step(Event::Loaded { model, bytes });
        }
    }

    pub(super) fn start_engine(&mut self, at: usize) {
        let stall = self.setup.limits.liveness_max_stall.as_millis() as u64;
        let engine = &mut self.engines[at];
        let Some((batch, items)) = engine.held.front() else {
            return;
        };
        let tokens: usize = items.iter().map(|item| item.tokens).sum();
        let batch = batch.0;
        engine.steps_left = 4;
        engine.step_ms = 1 + tokens as u64 / 100;
        if engine.slow {
            engine.step_ms = (engine.step_ms * 10 + self.rng.range(0, stall / 2)).min(stall * 3 / 4);
        }
        let step = engine.step_ms;
        self.plan(step, Next::EngineStep(at, batch));
    }

    pub(super) fn engine_step(&mut self, at: usize, batch: u64) {
        let engine = &mut self.engines[at];
        if engine.stuck || engine.held.front().is_none_or(|(id, _)| id.0 != batch) {
            return;
        }
        engine.steps_left -= 1;
        // A reload may have lowered the limit below the step that was agreed on.
        let stall = self.setup.limits.liveness_max_stall.as_millis() as u64;
        engine.step_ms = engine.step_ms.min(stall * 3 / 4);
        if engine.steps_left > 0 {
            let step = engine.step_ms;
            self.plan(step, Next::EngineStep(at, batch));
            self.step(Event::BatchStep { engine: EngineId(at) });
            return;
        }
        let (batch, items) = engine.held.pop_front().expect("seen above");
        let lane = |item: &Item| self.deliveries.get(&item.job).map(|delivery| delivery.lane);
        let real: Vec<bool> = items.iter().map(|item| lane(item) != Some(Lane::Probe)).collect();
        let mut results = Vec::new();
        let broken = self.engines[at].broken;
        for real in real {
            let fails = broken || real && self.rng.one_in(80);
            results.push(if fails { Err("not a number".into()) } else { Ok(()) });
        }
        self.start_engine(at);
        self.step(Event::BatchDone {
            engine: EngineId(at),
            batch,
            results,
        });
    }
}
