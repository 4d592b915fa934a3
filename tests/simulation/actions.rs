//! Whether each action of the logic is allowed, by the judge's book.

use super::Oracle;
use super::seen::{Place, Seen};
use embeddings::clock::Moment;
use embeddings::job::{ErrorType, JobKey, Lane};
use embeddings::logic::ahead::JOBS_MAX;
use embeddings::logic::event::{Action, BatchId, Item, ModelId, Onward, Outcome, Worker};
use embeddings::logic::pressure::memory_of;
use embeddings::logic::rest;

impl Oracle {
    pub fn action(&mut self, action: &Action, now: Moment) {
        assert!(self.killed.is_none(), "{action:?} after the kill");
        match action {
            Action::Load { model } => {
                let wanted = self.jobs.values().any(|seen| seen.holds(model.0));
                self.models.load(model.0, wanted, now);
            }
            Action::Unload { model } => {
                assert!(self.draining.is_none(), "unloaded while draining");
                let held = self.jobs.values().any(|seen| seen.holds(model.0));
                self.models.unload(model.0, held, &self.setup.limits, now);
            }
            Action::Tokenize { job } => {
                let key = *job;
                let seen = self.job(key, action);
                assert_eq!(seen.place, Place::Tokenizing);
                let (waited, model) = (std::mem::take(&mut seen.to_tokenize), seen.model.0);
                assert!(self.models.is_in(model), "tokenized without its model");
                if !waited {
                    self.admitted(key, now);
                }
            }
            Action::StartBatch {
                engine,
                first,
                batch,
                model,
                items,
            } => {
                self.start_batch(engine.0, *batch, *model, items, action, now);
                let waited_for = |item: &Item| {
                    let lane = self.jobs.get(&item.job).map(|seen| seen.lane);
                    matches!(lane, Some(Lane::Interactive | Lane::Probe))
                };
                let most = if *first {
                    assert!(items.iter().all(waited_for), "bulk work overtakes");
                    3
                } else {
                    2
                };
                assert!(
                    self.engines[engine.0].len() <= most,
                    "{most} batches on one engine"
                );
            }
            Action::Answer { job } => {
                let seen = self.job(*job, action);
                assert!(seen.place == Place::Working && !seen.failed && !seen.local);
                assert!(seen.stream.is_none(), "a streamed job is sent in chunks");
                assert_eq!(seen.done, seen.tokens.len(), "answered before all was computed");
                assert!(!seen.gone, "nobody waits for it");
                seen.reply();
                (seen.vectors, seen.last_word) = (true, true);
            }
            Action::Chunk { job, first, inputs } => {
                let seen = self.job(*job, action);
                let (chunk, _) = seen.stream.expect("chunks belong to streamed jobs");
                assert!(seen.place == Place::Working && !seen.returned);
                let at = seen.before + first;
                assert!(*first == 0 || at.is_multiple_of(chunk), "a chunk begins at {at}");
                assert_eq!(*inputs, (chunk - at % chunk).min(seen.tokens.len() - first));
                assert!(
                    seen.good[*first..first + inputs].iter().all(|good| *good),
                    "not computed"
                );
                assert!(seen.chunks.insert(*first), "a chunk sent twice in one delivery");
                seen.unconfirmed += 1;
            }
            Action::Cut { job, inputs } => {
                let patience = self.patience_with_slices();
                let seen = self.job(*job, action);
                assert!(seen.place == Place::Working && seen.lane != Lane::Probe);
                let at_work = seen.begun_at.map(|begun| now.since(begun));
                let mut patience = patience.into_iter();
                let cut = patience
                    .find(|(cut, most)| at_work >= Some(*most) && seen.can_be_cut(*cut) == Some(*inputs));
                seen.cut = Some(cut.expect("cut too soon, or elsewhere").0);
                seen.tokens.truncate(*inputs);
                seen.started.truncate(*inputs);
                seen.good.truncate(*inputs);
                seen.stream = seen.stream.map(|(chunk, _)| (chunk, false));
            }
            Action::Finish { job } => {
                let seen = self.job(*job, action);
                let (chunk, last) = seen.stream.expect("only streamed jobs are finished");
                assert!(last && seen.place == Place::Working && seen.at_rest() && !seen.failed);
                assert_eq!(
                    seen.chunks.len(),
                    seen.chunks_in_all(chunk),
                    "not all chunks are out"
                );
                seen.place = Place::Publishing;
                (seen.vectors, seen.last_word) = (true, true);
            }
            Action::Move { job, onward } => {
                let resumable = self.resumable;
                let max_attempts = self.setup.limits.max_attempts;
                let draining = self.draining.is_some();
                self.withdrawn_now = true;
                let held_max = self.held_max;
                let model = self.job(*job, action).model.0;
                let no_model = self.models.is_out(model);
                let seen = self.job(*job, action);
                assert!(resumable || *onward == Onward::Back);
                assert!(!seen.local && !seen.called && seen.lane != Lane::Probe);
                match onward {
                    // One that has waited for long.
                    Onward::Suspect if now.since(seen.delivered) >= held_max => {
                        assert!(seen.place.waits() && !seen.begun());
                    }
                    // One that waits here while the service stops goes back without being charged.
                    Onward::Suspect if draining && seen.lane != Lane::Interactive => {
                        assert!(seen.place.waits() && !seen.begun());
                    }
                    Onward::Back => {
                        let far_back =
                            seen.lane == Lane::Interactive || seen.fetched && seen.lane == Lane::Bulk;
                        assert!(draining && far_back && !seen.suspect);
                        assert!(seen.place.waits() && !seen.begun());
                    }
                    Onward::Suspect => {
                        assert!(seen.suspect && seen.lane != Lane::Resumed && !seen.admitted);
                        assert_eq!(seen.place, Place::Tokenizing);
                    }
                    Onward::NextSlice => {
                        let (chunk, last) = seen.stream.expect("only streamed jobs have slices");
                        assert!(!last && seen.place == Place::Working && seen.at_rest() && !seen.failed);
                        assert_eq!(
                            seen.chunks.len(),
                            seen.chunks_in_all(chunk),
                            "not all chunks are out"
                        );
                        seen.slice = true;
                    }
                    Onward::Retry(_) => {
                        assert!(seen.attempt < max_attempts, "one attempt too many");
                        let refused = seen.place == Place::Publishing && seen.vectors;
                        let failed = seen.place == Place::Working && seen.failed && seen.at_rest();
                        // There is no memory for its model; an interactive one is refused for that.
                        let no_room = no_model && seen.place == Place::Tokenizing && !seen.admitted;
                        let no_room = no_room && matches!(seen.lane, Lane::Bulk | Lane::Resumed);
                        let not_loaded = seen.load_failed && seen.place == Place::Awaiting;
                        assert!(refused || failed || no_room || not_loaded);
                        seen.vectors = false;
                    }
                }
                (seen.moved, seen.last_word) = (true, false);
                seen.place = Place::Publishing;
            }
            Action::Refuse { job, refusal } => {
                if refusal.error == ErrorType::Overloaded {
                    self.overloaded_is_true(*job);
                }
                self.withdrawn_now = true;
                self.parts.retain(|(of, _)| of != job);
                let held_max = self.held_max;
                let max_queue_bytes = self.setup.limits.max_queue_bytes;
                let seen = self.job(*job, action);
                // What is admitted may yet have an input that is too long.
                if refusal.error == ErrorType::InputTooLong && !seen.admitted {
                    let too_large = seen.bytes > max_queue_bytes && seen.lane == Lane::Interactive;
                    assert!(too_large, "there would be room for it");
                } else if refusal.error == ErrorType::TooManyInputs {
                    assert!(seen.is_too_long(held_max, now), "ended before its time");
                } else if seen.place == Place::Working {
                    let computed = seen.at_rest() || !seen.begun();
                    assert!(computed, "refused with inputs in an engine");
                }
                if refusal.error == ErrorType::DeadlineExceeded {
                    assert!(seen.deadline.is_some_and(|deadline| deadline <= now));
                    assert!(!seen.begun(), "refused for its deadline after its work began");
                }
                // After the last attempt the sender is told once the copy is safe.
                let last_word = seen.dead_letter && seen.place == Place::Acking;
                let waits = seen.place.waits();
                assert!(last_word || waits && !seen.local && !seen.gone);
                seen.reply();
                seen.last_word = true;
            }
            Action::DeadLetter { job, refusal } => {
                // One that was refused keeps its reason where its reply queue does not take that.
                if refusal.error == ErrorType::Overloaded && !self.jobs[job].last_word {
                    self.overloaded_is_true(*job);
                }
                self.withdrawn_now = true;
                self.parts.retain(|(of, _)| of != job);
                let seen = self.job(*job, action);
                assert!(
                    !seen.dead_letter && !seen.local && !seen.called,
                    "{action:?} twice, or for none of the broker's"
                );
                seen.dead_letter = true;
                (seen.vectors, seen.last_word) = (false, false);
                seen.place = Place::Publishing;
            }
            Action::Ack { job } => {
                let seen = self.job(*job, action);
                if seen.place == Place::Working && seen.returned && seen.at_rest() && !seen.failed {
                    // Nobody takes its chunks any more, as it may be with an answer.
                    (seen.place, seen.vectors) = (Place::Acking, true);
                }
                assert_eq!(seen.place, Place::Acking, "acked before the answer was confirmed");
                assert!(!seen.settled && !seen.local && !seen.called, "settled twice");
                seen.settled = true;
            }
            Action::Requeue { job } => {
                let draining = self.draining.is_some();
                let takes = self.connected && !self.blocked;
                let resumable = self.resumable;
                let seen = self.job(*job, action);
                let sent_anew = match seen.lane {
                    Lane::Interactive => !seen.suspect,
                    Lane::Bulk | Lane::Resumed => resumable,
                    Lane::Probe => false,
                };
                assert!(!(takes && sent_anew), "charged for having waited");
                assert!(
                    draining,
                    "requeue belongs to draining; elsewhere the delivery returns hot"
                );
                assert!(
                    !seen.settled && !seen.local && !seen.called,
                    "settled twice, or no delivery to give back"
                );
                assert!(!seen.begun(), "given back although its work has begun");
                seen.settled = true;
            }
            Action::Forget { job, outcome } => self.forget(*job, *outcome, action, now),
            Action::SendCanary { through_broker, .. } => {
                assert!(self.connected && self.draining.is_none() && !self.models.starts());
                assert_eq!(*through_broker, !self.blocked);
                let mine = |seen: &Seen| seen.lane == Lane::Probe && seen.local != *through_broker;
                assert!(!self.jobs.values().any(mine), "a second canary on the same way");
                if *through_broker {
                    assert!(!self.canary_on_its_way, "a second canary on the same way");
                    self.canary_on_its_way = true;
                }
            }
            Action::Ready => {
                assert!(!self.ready && self.round_now && self.draining.is_none());
                assert!(!self.models.starts(), "ready before every model was seen to work");
                self.ready = true;
            }
            Action::Pet => {
                assert!(self.round_now, "a pet without a round");
                assert!(
                    self.connected && self.draining.is_none(),
                    "a pet without a session"
                );
                assert!(
                    self.reasons(now).is_empty(),
                    "a pet while {:?}",
                    self.reasons(now)
                );
                let spaced = self
                    .pet
                    .is_none_or(|last| now.since(last) >= self.setup.pet_spacing);
                assert!(spaced, "two pets too close");
                self.pet = Some(now);
            }
            Action::Rest { until } => {
                let from = self.rest_until.max(now);
                assert!(
                    *until > from && *until <= now + rest::SPAN,
                    "a rest until {until:?}"
                );
                self.rested += until.since(from);
                self.rest_until = *until;
                let most = rest::allowance(self.setup.limits.max_queue) + now.since(self.born) / rest::SHARE;
                assert!(self.rested <= most, "{:?} of rest, {most:?} at most", self.rested);
            }
            Action::Try(Worker::Engine(engine)) if self.is_for_a_canary(engine.0) => {}
            Action::Try(worker) => {
                let idle = match worker {
                    Worker::Engine(engine) => self.engines[engine.0].is_empty(),
                    Worker::Tokenizer(tokenizer) => self.tokenizers[tokenizer.0].is_none(),
                };
                assert!(
                    idle && self.draining.is_none(),
                    "{worker:?} has better things to do"
                );
                let since = self.last_active.get(worker).copied().unwrap_or(self.born);
                assert!(
                    self.asked.insert(*worker, since).is_none(),
                    "{worker:?} is asked twice"
                );
            }
            Action::Backpressure(change) => {
                let fill = self.fill();
                self.book.look(&fill, &self.setup.limits);
                self.book.told(change, &fill, &self.setup.limits, now);
            }
            Action::LookAhead { jobs, memory, .. } => {
                assert!(self.connected && !self.blocked && self.draining.is_none());
                assert!(!self.looking, "one look at a time");
                let bulk = |seen: &&Seen| seen.lane == Lane::Bulk;
                let bulk: Vec<&Seen> = self.jobs.values().filter(bulk).collect();
                assert!(*jobs > 0 && *memory > 0 && bulk.len() + jobs <= JOBS_MAX);
                let consumed = bulk.iter().filter(|seen| !seen.fetched).count();
                assert!(
                    consumed * 4 >= self.setup.prefetch[Lane::Bulk as usize] * 3,
                    "the consumer has room"
                );
                self.looking = true;
            }
            Action::Reconnect { .. } => {
                assert!(self.reconnect_now, "a session given up for nothing");
                self.reconnect_now = false;
            }
            Action::Drained => {
                assert!(self.draining.is_some() && !self.drained);
                assert!(self.jobs.is_empty() && self.engines.iter().all(Vec::is_empty));
                self.drained = true;
            }
            Action::Kill(reason) => self.killed = Some(*reason),
        }
    }

    fn start_batch(
        &mut self,
        engine: usize,
        batch: BatchId,
        model: ModelId,
        items: &[Item],
        action: &Action,
        now: Moment,
    ) {
        assert!(!items.is_empty(), "an empty batch");
        let mut parts = std::mem::take(&mut self.parts);
        let mut part_batches = std::mem::take(&mut self.part_batches);
        let fill = self.fill();
        self.book.look(&fill, &self.setup.limits);
        let mut bulk = fill.inflight[Lane::Bulk as usize];
        for item in items {
            // The shell has what is computed: a job that is gone has left nothing behind.
            let seen = self.job(item.job, action);
            // What was in a batch that failed whole is computed to its end, though its job has failed or nobody takes it.
            let again = parts.remove(&(item.job, item.input));
            if again {
                part_batches.insert(batch);
            }
            assert!(seen.place == Place::Working && (again || !seen.failed && !seen.returned));
            assert_eq!(seen.model, model, "a batch mixes models");
            assert_eq!(seen.tokens[item.input], item.tokens);
            let suspect = seen.suspect;
            assert!(
                again || !seen.started[item.input],
                "an input computed twice in one delivery"
            );
            assert!(
                !suspect || items.iter().all(|other| other.job == item.job),
                "a suspect among others"
            );
            let new = !seen.begun();
            let (urgent, of_bulk) = (seen.is_urgent(), seen.lane == Lane::Bulk);
            seen.started[item.input] = true;
            seen.begun_at.get_or_insert(now);
            if new && of_bulk {
                let paused = self.book.bulk_pauses();
                assert!(!paused || bulk == 0, "a bulk job is begun while intake pauses");
                bulk += 1;
            }
            if new && !urgent {
                let of_model = self
                    .jobs
                    .values()
                    .filter(|seen| seen.in_flight() && seen.model == model);
                let of_model = of_model.filter(|seen| !seen.is_urgent()).count();
                let most = self.setup.models[model.0].max_inflight;
                assert!(
                    most.is_none_or(|most| of_model <= most),
                    "{of_model} jobs of a model in flight"
                );
                let begun = self.jobs.values().filter(|seen| seen.in_flight()).count();
                let urgent = self
                    .jobs
                    .values()
                    .filter(|seen| seen.in_flight() && seen.is_urgent());
                let most = self.setup.limits.max_inflight + urgent.count();
                assert!(begun <= most, "{begun} jobs in flight");
            }
        }
        (self.parts, self.part_batches) = (parts, part_batches);
        let tokens: usize = items.iter().map(|item| item.tokens).sum();
        assert!(
            tokens <= self.setup.batch_tokens || items.len() == 1,
            "{tokens} tokens in a batch"
        );
        let fill = self.fill();
        self.book.look(&fill, &self.setup.limits);
        self.engines[engine].push((batch, items.to_vec()));
    }

    fn forget(&mut self, key: JobKey, outcome: Outcome, action: &Action, now: Moment) {
        let seen = self.job(key, action).clone();
        match outcome {
            _ if seen.called => seen.judge_end_of_call(outcome),
            Outcome::Answered => assert!(seen.place == Place::Acked && seen.vectors),
            // A refusal may find nobody, just as vectors may.
            Outcome::Returned => assert!(seen.place == Place::Acked),
            Outcome::Refused => assert!(seen.place == Place::Acked && !seen.vectors),
            Outcome::DeadLettered => assert!(seen.place == Place::Acked && seen.dead_letter),
            Outcome::MovedOn => assert!(seen.place == Place::Acked && seen.moved),
            Outcome::Requeued => assert!(seen.settled && seen.place != Place::Acked),
            Outcome::Lost => assert!(!self.connected, "a delivery is void only with its session"),
            Outcome::Probe => {
                assert!(seen.local, "only a canary of the short way ends so");
                let computed = seen.place == Place::Working && seen.done == seen.tokens.len() && !seen.failed;
                if computed && self.blocked && self.draining.is_none() {
                    self.round_now = true;
                    self.round = Some(now);
                }
            }
        }
        let worked_off = matches!(outcome, Outcome::Answered | Outcome::Returned) && !seen.gone;
        if let (true, Some(begun)) = (worked_off && seen.lane != Lane::Probe, seen.begun_at) {
            self.book.answered(seen.lane, now.since(begun));
        }
        if seen.holds(seen.model.0) && seen.lane != Lane::Probe {
            self.models.used(seen.model.0, now);
        }
        self.jobs.remove(&key);
        self.gone.insert(key);
    }

    /// It is taken in: with room for it, in time, and not while stopping.
    pub fn admitted(&mut self, key: JobKey, now: Moment) {
        let load = self.memory_to_load(key);
        let seen = self.jobs.get_mut(&key).expect("a job that is here");
        assert!(!seen.admitted, "admitted twice");
        assert!(
            seen.deadline.is_none_or(|deadline| deadline > now),
            "admitted late"
        );
        seen.admitted = true;
        let (lane, model, need) = (seen.lane, seen.model, memory_of(seen.bytes, seen.inputs) + load);
        if lane == Lane::Interactive {
            let fill = self.fill();
            let (jobs, bytes) = (fill.held[lane as usize], fill.bytes);
            assert!(jobs <= self.setup.limits.max_queue, "the lane holds {jobs} jobs");
            let own = self.of_model(model);
            let most = self.setup.models[model.0].max_queue;
            assert!(
                most.is_none_or(|most| own <= most),
                "the lane holds {own} of a model"
            );
            assert!(
                bytes <= self.setup.limits.max_queue_bytes,
                "the lane holds {bytes} bytes"
            );
            assert!(
                !self.book.keeps_out(need, jobs == 1),
                "admitted while intake pauses"
            );
        }
        // A canary of a model that is not there has no use for it.
        if lane != Lane::Probe || self.models.is_in(model.0) {
            self.models.wanted(model.0);
        }
        self.book.admitted(need);
        assert!(self.draining.is_none(), "admitted while draining");
    }

    /// What its model takes, if it is the first to ask for it.
    fn memory_to_load(&self, key: JobKey) -> u64 {
        let model = self.jobs[&key].model.0;
        if self.models.is_out(model) {
            self.setup.models[model].bytes
        } else {
            0
        }
    }

    /// Whether the engine was asked in this turn for a canary whose model is not in memory.
    fn is_for_a_canary(&self, engine: usize) -> bool {
        let trial = |job| self.trials.contains(&(engine, job));
        self.delivered_now.is_some_and(trial)
    }

    fn overloaded_is_true(&mut self, job: JobKey) {
        let seen = &self.jobs[&job];
        assert!(
            seen.bytes <= self.setup.limits.max_queue_bytes,
            "told to come again, and there never is room for it"
        );
        self.book.refused();
        assert_eq!(
            seen.lane,
            Lane::Interactive,
            "only these are ever refused for load"
        );
        let fill = self.fill();
        let held = fill.held[Lane::Interactive as usize];
        let own = self.setup.models[seen.model.0].max_queue;
        let full =
            held >= self.setup.limits.max_queue || own.is_some_and(|own| self.of_model(seen.model) >= own);
        let heavy = fill.bytes + seen.bytes > self.setup.limits.max_queue_bytes;
        let need = memory_of(seen.bytes, seen.inputs) + self.memory_to_load(job);
        let paused = self.book.keeps_out(need, held == 0);
        assert!(full || heavy || paused, "refused with room left");
    }
}
