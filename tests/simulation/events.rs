//! What the judge writes into its book when the world tells the logic something.

use super::Oracle;
use super::seen::{Place, Seen};
use embeddings::clock::Moment;
use embeddings::job::{JobKey, Lane};
use embeddings::logic::event::{Action, BatchId, Confirmation, EngineId, Event, Item, Worker};
use embeddings::logic::ledger::Stage;

impl Oracle {
    /// Takes in what the world is about to tell the logic.
    pub fn before(&mut self, event: &Event, now: Moment) {
        self.round_now = false;
        self.withdrawn_now = false;
        self.reconnect_now = false;
        self.delivered_now = None;
        self.book.turn();
        match event {
            Event::Tick => {}
            Event::BrokerUp { resumable } => {
                self.resumable = *resumable;
                self.connected = true;
                self.proof = Some(now);
            }
            Event::BrokerDown => {
                self.connected = false;
                self.blocked = false;
                self.looking = false;
                let stays = |job: &JobKey| self.jobs.get(job).is_some_and(|seen| seen.called);
                self.parts.retain(|(job, _)| stays(job));
                self.canary_on_its_way = false;
                self.withdrawn_now = true;
                self.undelivered = [None; Lane::COUNT];
                self.reading = [None; Lane::COUNT];
                self.unconsumed = [0; Lane::COUNT];
            }
            Event::BrokerProof => self.proof = Some(now),
            Event::Called { job, arrival } => {
                let ticket = arrival.as_ref().ok();
                let seen = Seen {
                    called: true,
                    ..Seen::new(Lane::Interactive, ticket, now)
                };
                assert!(self.jobs.insert(*job, seen).is_none());
                self.delivered_now = Some(*job);
            }
            // What of it is in an engine comes out of there, and the rest is not begun.
            Event::CallerGone { job } => {
                if let Some(seen) = self.jobs.get_mut(job) {
                    (seen.gone, seen.returned) = (true, true);
                }
            }
            Event::HandedOver { job, taken } => {
                let seen = self
                    .jobs
                    .get_mut(job)
                    .expect("handed over in the turn of its answer");
                assert_eq!(seen.place, Place::Handing, "{event:?}");
                seen.place = Place::Handed { taken: *taken };
            }
            Event::QueueSeen {
                lane,
                ready,
                consumers,
            } if self.connected && self.draining.is_none() => {
                self.proof = Some(now);
                let at = *lane as usize;
                let held = |seen: &&Seen| seen.lane == *lane && !seen.local && !seen.called && !seen.fetched;
                let credit = self.jobs.values().filter(held).count() < self.setup.prefetch[at];
                if *ready > 0 && credit && *consumers > 0 {
                    self.undelivered[at].get_or_insert(now);
                } else {
                    self.undelivered[at] = None;
                }
                self.unconsumed[at] = if *consumers == 0 {
                    self.unconsumed[at] + 1
                } else {
                    0
                };
                self.reconnect_now = self.unconsumed[at] == 3;
                if *consumers > 0 {
                    self.unconsumed_since[at] = None;
                } else if self.unconsumed[at] >= 3 {
                    self.unconsumed_since[at].get_or_insert(now);
                }
            }
            Event::QueueSeen { .. } => {}
            Event::Reading { lane } => {
                self.reading[*lane as usize].get_or_insert(now);
            }
            Event::Read { lane } => self.reading[*lane as usize] = None,
            Event::Tried(worker) => {
                self.active(*worker, now);
                if let Worker::Engine(engine) = worker {
                    self.tried(engine.0, now);
                }
            }
            Event::LoadStep => {
                self.models.step(now);
                self.progress(Stage::Admitted, now);
            }
            Event::Loaded { model, bytes } => {
                self.models.ended(model.0, true, now);
                let known = &mut self.setup.models[model.0].bytes;
                *known = bytes.unwrap_or(*known);
                self.progress(Stage::Admitted, now);
                for seen in self.jobs.values_mut().filter(|seen| seen.model == *model) {
                    if seen.place == Place::Awaiting {
                        seen.place = Place::Tokenizing;
                        seen.to_tokenize = true;
                    }
                }
            }
            Event::LoadFailed { model, .. } => {
                self.models.ended(model.0, false, now);
                self.progress(Stage::Admitted, now);
                for seen in self.jobs.values_mut().filter(|seen| seen.model == *model) {
                    if seen.place == Place::Awaiting {
                        seen.load_failed = true;
                    }
                }
            }
            Event::HeldTooLong { limit } => self.held_max = self.held_max.min(*limit / 3),
            Event::LookedAhead => self.looking = false,
            Event::Superseded { .. } => unreachable!("the world sends no copies"),
            Event::Unloaded { model } => {
                self.models.unloaded(model.0, now);
                self.progress(Stage::Admitted, now);
            }
            Event::TokenizerBegan { tokenizer } => {
                self.active(Worker::Tokenizer(*tokenizer), now);
                let before = self.tokenizers[tokenizer.0].replace(now);
                assert!(before.is_none(), "a tokenizer with two jobs");
            }
            Event::TokenizerStep { tokenizer } => {
                self.active(Worker::Tokenizer(*tokenizer), now);
                self.tokenizers[tokenizer.0] = Some(now);
                self.tokenizers_moved = now;
            }
            Event::TokenizerEnded { tokenizer } => {
                self.active(Worker::Tokenizer(*tokenizer), now);
                self.tokenizers[tokenizer.0] = None;
                self.tokenizers_moved = now;
            }
            Event::BrokerBlocked => self.blocked = true,
            Event::BrokerUnblocked => {
                if self.blocked {
                    self.progress(Stage::Published, now);
                    self.progress(Stage::Received, now);
                    self.undelivered = self.undelivered.map(|since| since.map(|_| now));
                }
                self.blocked = false;
            }
            Event::Delivered {
                job,
                lane,
                arrival,
                attempt,
                suspect,
                fetched,
                ..
            } => {
                let local = job.0 > 1 << 63;
                if !local {
                    self.proof = Some(now);
                    self.progress(Stage::Received, now);
                    if !fetched {
                        self.unconsumed[*lane as usize] = 0;
                        self.unconsumed_since[*lane as usize] = None;
                        let undelivered = &mut self.undelivered[*lane as usize];
                        *undelivered = undelivered.map(|_| now);
                    }
                    if *lane == Lane::Probe {
                        self.canary_on_its_way = false;
                    }
                }
                let ticket = arrival.as_ref().ok();
                let seen = Seen {
                    local,
                    attempt: *attempt,
                    suspect: *suspect,
                    fetched: *fetched,
                    ..Seen::new(*lane, ticket, now)
                };
                assert!(self.jobs.insert(*job, seen).is_none());
                self.delivered_now = Some(*job);
            }
            Event::Tokenized { job, result } => {
                if let Some(seen) = self.jobs.get_mut(job)
                    && seen.place == Place::Tokenizing
                {
                    if let Ok(tokens) = result {
                        seen.place = Place::Working;
                        if tokens.len() < seen.inputs {
                            seen.stream = seen.stream.map(|(chunk, _)| (chunk, false));
                        }
                        seen.tokens = tokens.clone();
                        seen.started = vec![false; tokens.len()];
                        seen.good = vec![false; tokens.len()];
                    } else {
                        self.corrupt |= seen.lane == Lane::Probe;
                    }
                    self.progress(Stage::Admitted, now);
                }
            }
            Event::Recalled { job } => {
                if let Some(seen) = self.jobs.get_mut(job)
                    && matches!(seen.place, Place::Tokenizing | Place::Twin)
                {
                    let tokenizing = seen.place == Place::Tokenizing;
                    (seen.place, seen.recalled) = (Place::Working, true);
                    if tokenizing {
                        self.progress(Stage::Admitted, now);
                    }
                }
            }
            Event::Twin { job } => {
                if let Some(seen) = self.jobs.get_mut(job)
                    && seen.place == Place::Tokenizing
                {
                    assert!(
                        seen.lane != Lane::Resumed,
                        "a death would be charged to it while it waits"
                    );
                    seen.place = Place::Twin;
                }
            }
            Event::Parted { job } => {
                if let Some(seen) = self.jobs.get_mut(job)
                    && seen.place == Place::Twin
                {
                    (seen.place, seen.to_tokenize) = (Place::Tokenizing, true);
                }
            }
            Event::BatchStep { engine } => {
                self.active(Worker::Engine(*engine), now);
                self.engine_since[engine.0] = now;
            }
            Event::BatchDone {
                engine,
                batch,
                results,
            } => self.batch_done(engine.0, *batch, results, now),
            Event::Confirmed { job, outcome } => self.confirmed(*job, *outcome, now),
            Event::DeadLettered { job } => {
                if let Some(seen) = self.jobs.get_mut(job) {
                    self.proof = Some(now);
                    // The sender is told as well; either way it ends here.
                    seen.place = Place::Acking;
                    self.progress(Stage::Published, now);
                }
            }
            Event::Acked { job } => {
                if let Some(seen) = self.jobs.get_mut(job) {
                    assert!(seen.settled, "acknowledged although nobody asked");
                    seen.place = Place::Acked;
                    self.round_now = (seen.vectors || seen.slice) && !seen.recalled;
                    self.progress(Stage::Acked, now);
                }
            }
            Event::CanaryWrong => self.corrupt = true,
            Event::Drain => {
                self.draining.get_or_insert(now);
            }
            Event::Reloaded(limits) => {
                self.setup.limits = *limits;
                // Before anything ends in this turn for having taken too long.
                let fill = self.fill();
                self.book.look(&fill, &self.setup.limits);
            }
            Event::MemorySeen(memory) => self.book.memory_seen(*memory),
        }
        if self.round_now {
            self.round = Some(now);
        }
    }

    fn confirmed(&mut self, job: JobKey, outcome: Confirmation, now: Moment) {
        let Some(seen) = self.jobs.get_mut(&job) else {
            return;
        };
        let heard = outcome != Confirmation::Unconfirmed;
        match seen.place {
            Place::Working if seen.unconfirmed > 0 => {
                seen.unconfirmed -= 1;
                match outcome {
                    Confirmation::Routed => {}
                    Confirmation::Returned => seen.returned = true,
                    Confirmation::Rejected | Confirmation::Unconfirmed => seen.failed = true,
                }
            }
            Place::Publishing => {
                // One that was not taken is tried again or dead-lettered, unless its copy is there already.
                if seen.dead_letter || matches!(outcome, Confirmation::Routed | Confirmation::Returned) {
                    seen.place = Place::Acking;
                }
                if seen.last_word && outcome == Confirmation::Routed {
                    assert!(!seen.settled && !seen.local, "settled twice");
                    seen.settled = true;
                }
            }
            _ => return,
        }
        if heard {
            self.proof = Some(now);
            self.progress(Stage::Published, now);
        }
    }

    fn active(&mut self, worker: Worker, now: Moment) {
        self.asked.remove(&worker);
        self.last_active.insert(worker, now);
    }

    fn batch_done(&mut self, engine: usize, batch: BatchId, results: &[Result<(), String>], now: Moment) {
        let held = &mut self.engines[engine];
        let at = held
            .iter()
            .position(|(id, _)| *id == batch)
            .expect("a batch that runs");
        let (_, items) = held.remove(at);
        self.engine_since[engine] = now;
        self.active(Worker::Engine(EngineId(engine)), now);
        let lead = items[0].job;
        // One that was tried before may have failed on other engines.
        let new = |seen: &Seen| seen.attempt == 1 && !seen.suspect;
        let tried = !self.jobs.get(&lead).is_some_and(new);
        let (jobs, last) = &mut self.failures[engine];
        if results.iter().any(Result::is_ok) {
            (*jobs, *last) = (0, None);
        } else if !self.part_batches.remove(&batch) && !tried && *last != Some(lead) {
            (*jobs, *last) = (*jobs + 1, Some(lead));
        }
        self.corrupt |= *jobs >= 3;
        let canary = |item: &Item| {
            self.jobs
                .get(&item.job)
                .is_some_and(|seen| seen.lane == Lane::Probe)
        };
        if results.len() > 1 && results.iter().all(Result::is_err) && !items.iter().any(canary) {
            // All of it is computed again, in parts.
            let at_work = |seen: &Seen| seen.place == Place::Working;
            let here = items
                .iter()
                .filter(|item| self.jobs.get(&item.job).is_some_and(at_work));
            self.parts.extend(here.map(|item| (item.job, item.input)));
            return;
        }
        for (item, result) in items.iter().zip(results) {
            if let Some(seen) = self.jobs.get_mut(&item.job) {
                seen.good[item.input] = result.is_ok();
                seen.done += 1;
                seen.failed |= result.is_err();
                self.corrupt |= result.is_err() && seen.lane == Lane::Probe;
            }
        }
    }

    /// An engine computed something of its own, and so has every canary that asked it.
    fn tried(&mut self, engine: usize, now: Moment) {
        self.engine_since[engine] = now;
        let (done, left) = std::mem::take(&mut self.trials)
            .into_iter()
            .partition(|(of, _)| *of == engine);
        self.trials = left;
        let done: Vec<(usize, JobKey)> = done;
        for (_, job) in done {
            if let Some(seen) = self.jobs.get_mut(&job) {
                seen.place = Place::Working;
            }
        }
    }

    /// A job whose model is not in memory is taken in without a word, unless another action speaks of it.
    pub fn awaits(&mut self, actions: &[Action], now: Moment) {
        let Some(key) = self.delivered_now else { return };
        let model = self.jobs[&key].model.0;
        let spoken_of = actions.iter().any(|action| {
            matches!(action,
                Action::Refuse { job, .. } | Action::DeadLetter { job, .. } | Action::Move { job, .. }
                | Action::Requeue { job } | Action::Forget { job, .. } | Action::Tokenize { job } if *job == key)
        });
        if spoken_of || self.models.is_in(model) {
            return;
        }
        let lane = self.jobs[&key].lane;
        self.admitted(key, now);
        let seen = self.jobs.get_mut(&key).expect("delivered just now");
        if lane != Lane::Probe {
            seen.place = Place::Awaiting;
            return;
        }
        (seen.place, seen.tried) = (Place::Trying, true);
        let engine = actions.iter().find_map(|action| match action {
            Action::Try(Worker::Engine(engine)) => Some(engine.0),
            _ => None,
        });
        self.trials.push((engine.expect("an engine is asked"), key));
    }
}
