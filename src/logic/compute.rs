//! What goes into the engines, and what comes out of them.

use super::batch::{self, Draw, Haste, Place};
use super::event::{Action, BatchId, EngineId, Item, ModelId};
use super::places::{Taken, is_bulk};
use super::settle::{Job, Phase};
use super::{Logic, Stage};
use crate::clock::Moment;
use crate::job::{JobKey, Lane};

/// A part of a batch that failed whole: one bad input must fail alone.
#[derive(Clone, Debug)]
pub(super) struct Part {
    model: ModelId,
    pub(super) items: Vec<Item>,
}

/// All that decides what is drawn, but for a cut, which leaves less to draw: where it is as it was, so is what comes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sight {
    lanes: u64,
    batches: (u64, usize),
    taken: Taken,
    bulk_pauses: bool,
    max_inflight: usize,
}

impl Logic {
    /// Parts go before all else: what is in them has waited longest.
    fn start_parts(&mut self, now: Moment, actions: &mut Vec<Action>) {
        while let Some(place) = self
            .parts
            .front()
            .and_then(|_| self.batcher.place(usize::MAX, 0, Haste::Patient))
        {
            let Some(Part { model, items }) = self.parts.pop_front() else {
                return;
            };
            self.health.ledger.leave(Stage::Batched, items.len(), now);
            self.start_batch((place, Haste::Patient), model, items, true, now, actions);
        }
    }

    fn start_batch(
        &mut self,
        (place, haste): (Place, Haste),
        model: ModelId,
        items: Vec<Item>,
        part: bool,
        now: Moment,
        actions: &mut Vec<Action>,
    ) {
        let Place { engine, first } = place;
        self.health.ledger.compute(engine.0, items.len(), now);
        let tokens: usize = items.iter().map(|item| item.tokens).sum();
        self.tally.batch_tokens.observe(tokens as f64);
        let batch = self.batcher.start(place, haste, model, items.clone(), part);
        actions.push(Action::StartBatch {
            engine,
            first,
            batch,
            model,
            items,
        });
    }

    pub(super) fn fill_engines(&mut self, now: Moment, actions: &mut Vec<Action>) {
        self.start_parts(now, actions);
        loop {
            // Thousands may wait, and most turns change nothing of what may be drawn of them.
            let sight = self.sight();
            if self.nothing_in.as_ref() == Some(&sight) {
                debug_assert!(
                    self.next_draw().is_none(),
                    "a turn that changes what may be drawn is seen"
                );
                return;
            }
            let Some((draw, haste, place)) = self.next_draw() else {
                self.nothing_in = Some(sight);
                return;
            };
            let share = self.batcher.share(draw.tokens(), self.setup.batch_tokens);
            let items: Vec<Item> = batch::compose(&draw.window, share)
                .into_iter()
                .map(|place| draw.window[place])
                .collect();
            self.lanes.drawn(draw.lead, draw.caller);
            for item in &items {
                self.jobs.deadline_met(item.job);
                let job = self.jobs.get(item.job).expect("a waiting job is here");
                let (line, caller) = (job.line(), job.ticket.caller);
                let begins = job.begun.is_none().then(|| now.since(job.entered));
                self.jobs.draw(item.job, item.input, now);
                if let Some(waited) = begins {
                    self.tally.passed(Stage::Batched, waited);
                }
                let job = self.jobs.get(item.job).expect("a waiting job is here");
                if line != job.line() && job.undrawn > 0 {
                    self.lanes.remove(line, caller, item.job);
                    self.lanes.push(job.line(), caller, item.job);
                }
                if job.undrawn == 0 {
                    self.lanes.remove(line, caller, item.job);
                }
            }
            self.health.ledger.leave(Stage::Batched, items.len(), now);
            self.start_batch((place, haste), draw.model, items, false, now, actions);
            self.count_in_flight();
        }
    }

    fn sight(&self) -> Sight {
        Sight {
            lanes: self.lanes.changes(),
            batches: self.batcher.changes(),
            taken: self.taken(),
            bulk_pauses: self.admission.bulk_pauses().is_some(),
            max_inflight: self.setup.limits.max_inflight,
        }
    }

    /// What is drawn next, and where it goes. Where the first in line is worth no batch yet, as a small job that goes on is not while
    /// its engine computes another, those that may go between two layers need not wait for it.
    fn next_draw(&self) -> Option<(Draw, Haste, Place)> {
        let in_order = self.batcher.has_room().then(|| self.placed(false)).flatten();
        let overtake = || self.batcher.can_be_overtaken() && self.lanes.urgent_lead();
        in_order.or_else(|| overtake().then(|| self.placed(true)).flatten())
    }

    fn placed(&self, overtake: bool) -> Option<(Draw, Haste, Place)> {
        let draw = self.draw(overtake)?;
        let haste = if draw.canary || draw.lead == Lane::Interactive {
            Haste::Urgent
        } else {
            Haste::Patient
        };
        let place = self
            .batcher
            .place(draw.tokens(), self.setup.batch_tokens, haste)?;
        Some((draw, haste, place))
    }

    /// The inputs among which the next batch is chosen: of the model of the first job in line, and of no
    /// more jobs at once than the bounds in flight allow; of the urgent lanes alone if it is to overtake. `None` if
    /// they leave nothing.
    fn draw(&self, overtake: bool) -> Option<Draw> {
        let mut places = self.places();
        let mut draw: Option<Draw> = None;
        let budget = self.setup.batch_tokens;
        let enough = budget * batch::WINDOW_BUDGETS;
        let mut total = 0;
        'lines: for line in self.lanes.order() {
            if overtake && is_bulk(line) {
                continue;
            }
            for key in self.lanes.line(line) {
                let job = self.jobs.get(key).expect("a waiting job is here");
                if overtake && is_bulk(job.lane) {
                    continue;
                }
                let new = job.phase == Phase::Waiting;
                if new && places.are_taken(line) {
                    break;
                }
                if new && !places.have_room_for(job, budget) {
                    continue;
                }
                if !new {
                    places.met(line);
                }
                let draw = draw.get_or_insert_with(|| Draw {
                    model: job.ticket.model,
                    lead: job.line(),
                    canary: job.lane == Lane::Probe,
                    alone: job.alone,
                    caller: job.ticket.caller,
                    window: Vec::new(),
                });
                // What somebody waits for is computed by itself: bulk inputs in its batch would cost it a batch's time.
                if draw.lead == Lane::Interactive && is_bulk(job.lane) {
                    break 'lines;
                }
                // A canary runs with no caller's input: what is poison to the one must not convict the engine. And a
                // suspect runs with nobody else's.
                let mixed = draw.canary != (job.lane == Lane::Probe);
                let apart = (draw.alone || job.alone) && !draw.window.is_empty();
                if draw.model != job.ticket.model || mixed || apart {
                    continue;
                }
                if new {
                    places.take(job, budget);
                }
                for input in job.undrawn_inputs() {
                    draw.window.push(Item {
                        job: key,
                        input,
                        tokens: job.tokens[input],
                    });
                    total += job.tokens[input];
                    if total >= enough {
                        break 'lines;
                    }
                }
            }
        }
        draw
    }

    pub(super) fn batch_done(
        &mut self,
        engine: EngineId,
        batch: BatchId,
        results: Vec<Result<(), String>>,
        now: Moment,
        actions: &mut Vec<Action>,
    ) {
        let Some(running) = self.batcher.finish(batch) else {
            return;
        };
        assert_eq!(
            running.items.len(),
            results.len(),
            "an engine answers for each item of its batch"
        );
        self.health.ledger.computed(engine.0, running.items.len(), now);
        self.inputs.count(running.items.len() as f64, now);
        self.tally.inputs += running.items.len() as u64;
        self.tally.tokens += running.items.iter().map(|item| item.tokens as u64).sum::<u64>();
        let failed = results.iter().filter(|result| result.is_err()).count();
        let new = |job: &JobKey| {
            self.jobs
                .get(*job)
                .is_some_and(|job| job.attempt == 1 && !job.alone)
        };
        let lead = Some(running.items[0].job).filter(new);
        // Before anything of this batch is believed: another canary in it may be about to complete a round.
        let canary = |item: &Item| self.jobs.get(item.job).is_some_and(|job| job.lane == Lane::Probe);
        let wrong = |(item, result): (&Item, &Result<(), String>)| result.is_err() && canary(item);
        let canary_failed = running.items.iter().zip(&results).any(wrong);
        let engine_failed = self.faults.batch_done(
            engine,
            running.model,
            lead,
            failed,
            running.items.len(),
            running.part,
        );
        if canary_failed || engine_failed {
            self.health.canary_wrong();
        }
        if failed > 1 && failed == running.items.len() && !canary_failed {
            self.part(running.model, running.items, now);
            return;
        }
        for (item, result) in running.items.into_iter().zip(results) {
            let Some(job) = self.jobs.get_mut(item.job) else {
                continue;
            };
            let good = result.is_ok();
            job.computed(result, item.input);
            if good {
                self.chunk(item.job, item.input, now, actions);
            }
            self.settle_computed(item.job, now, actions);
        }
    }

    /// A batch that failed whole is computed again in two halves, until what is bad fails alone.
    fn part(&mut self, model: ModelId, mut items: Vec<Item>, now: Moment) {
        let at_work = |job: &Job| job.phase == Phase::Computing;
        items.retain(|item| self.jobs.get(item.job).is_some_and(at_work));
        let second = items.split_off(items.len() / 2);
        for items in [items, second].into_iter().filter(|items| !items.is_empty()) {
            self.health.ledger.enter(Stage::Batched, items.len(), now);
            self.parts.push_back(Part { model, items });
        }
    }

    /// Nothing of the job is computed again.
    pub(super) fn leave_parts(&mut self, key: JobKey) {
        for part in &mut self.parts {
            let before = part.items.len();
            part.items.retain(|item| item.job != key);
            let left = before - part.items.len();
            self.health.ledger.withdraw(Stage::Batched, left);
        }
        self.parts.retain(|part| !part.items.is_empty());
    }
}
