//! Whether what had to be done is done, and whether the process must end, may be petted, and is ready, by the judge's book.

use super::Oracle;
use super::seen::{Place, Seen};
use embeddings::clock::Moment;
use embeddings::job::Lane;
use embeddings::logic::Logic;
use embeddings::logic::event::{Action, Worker};
use embeddings::logic::health::{KillReason, Verdict};
use embeddings::logic::ledger::Stage;
use embeddings::logic::settle::Cut;
use std::time::Duration;

impl Oracle {
    /// What the last step should have moved on has moved on.
    pub fn nothing_forgotten(&self, now: Moment) {
        for model in 0..self.setup.models.len() {
            let held = self.jobs.values().any(|seen| seen.holds(model));
            let due = self.models.is_due(model, &self.setup.limits, now);
            let stays = held || self.draining.is_some() || self.killed.is_some();
            assert!(stays || !due, "model {model} is idle and stays");
        }
        for (key, seen) in &self.jobs {
            assert!(seen.place != Place::Acked, "{key:?} is acked and not forgotten");
            let handed = matches!(seen.place, Place::Handed { .. });
            assert!(!handed, "{key:?} is handed over and not forgotten");
            let given_up = seen.gone && (seen.place != Place::Working || seen.at_rest());
            assert!(!given_up, "{key:?} stays, and its caller is gone");
            assert!(
                seen.place != Place::Acking || seen.settled,
                "{key:?} is confirmed and not acked"
            );
            if seen.place == Place::Tokenizing {
                assert!(
                    seen.admitted,
                    "{key:?} was neither admitted nor refused nor given back"
                );
            }
            if seen.place == Place::Working && seen.at_rest() {
                panic!("{key:?} is computed and not answered");
            }
            let at_work = seen.begun_at.map(|begun| now.since(begun));
            for (cut, most) in self.patience_with_slices() {
                let slow = seen.lane != Lane::Probe && at_work >= Some(most);
                let cuttable = seen.undrawn() > 0 && seen.can_be_cut(cut).is_some();
                assert!(
                    !(slow && cuttable),
                    "{key:?} holds its delivery for a slow slice: {cut:?}"
                );
            }
            let too_long = seen.place == Place::Working && seen.is_too_long(self.held_max, now);
            assert!(!too_long, "{key:?} holds its delivery for too long");
            assert!(!seen.to_tokenize, "{key:?} has its model and is not tokenized");
            assert!(
                seen.place != Place::Awaiting || !self.models.is_out(seen.model.0),
                "{key:?} waits for a model that nobody loads"
            );
            if seen.place.waits() && !seen.begun() {
                let late = seen.deadline.is_some_and(|deadline| deadline <= now);
                assert!(!late, "{key:?} waits although its deadline has passed");
            }
        }
    }

    /// How long slices may be at work before they end early, one way and the other.
    pub fn patience_with_slices(&self) -> Vec<(Cut, Duration)> {
        let (behind_chunk, within_chunk) = match self.draining {
            None => (self.held_max / 10, self.held_max / 4),
            Some(_) if self.connected && !self.blocked => (Duration::ZERO, self.setup.limits.drain / 4),
            Some(_) => return Vec::new(),
        };
        if !self.resumable {
            return Vec::new();
        }
        vec![(Cut::BehindChunk, behind_chunk), (Cut::WithinChunk, within_chunk)]
    }

    /// Why the process must end now; empty if it must not.
    pub fn reasons(&self, now: Moment) -> Vec<KillReason> {
        let limits = &self.setup.limits;
        let mut reasons = Vec::new();
        if let Some(since) = self.draining {
            if now.since(since) >= limits.drain && !self.drained {
                reasons.push(KillReason::DrainTimeout);
            }
            return reasons;
        }
        if self.corrupt {
            reasons.push(KillReason::EngineCorrupt);
        }
        let inside = self.inside();
        let stalled = |since: Moment| now.since(since) >= limits.liveness_max_stall;
        for (worker, &since) in &self.asked {
            if stalled(since) {
                reasons.push(KillReason::NoProgress(match worker {
                    Worker::Engine(_) => Stage::Computed,
                    Worker::Tokenizer(_) => Stage::Admitted,
                }));
            }
        }
        if self.tokenizers.iter().flatten().any(|&since| stalled(since)) {
            reasons.push(KillReason::NoProgress(Stage::Admitted));
        }
        if self.models.stuck_since().is_some_and(stalled) {
            reasons.push(KillReason::NoProgress(Stage::Admitted));
        }
        let waits = self.undelivered.iter().chain(&self.reading).flatten();
        if !self.blocked && waits.into_iter().any(|&since| stalled(since)) {
            reasons.push(KillReason::NoProgress(Stage::Received));
        }
        let watching = limits.liveness_max_stall.max(2 * limits.watchdog_interval);
        if self.look.is_some_and(|look| now.since(look) >= watching) {
            reasons.push(KillReason::WatchdogHung);
        }
        for stage in [Stage::Received, Stage::Admitted, Stage::Published, Stage::Acked] {
            let at = stage as usize;
            let busy = stage == Stage::Admitted
                && (self.tokenizers.iter().all(Option::is_some) || !stalled(self.tokenizers_moved));
            let excused = busy || self.blocked && matches!(stage, Stage::Received | Stage::Published);
            // What became occupied in this very step has not waited yet.
            let old = self.before[at] > 0;
            if inside[at] > 0 && old && !excused && now.since(self.since[at]) >= limits.liveness_max_stall {
                reasons.push(KillReason::NoProgress(stage));
            }
        }
        for (engine, held) in self.engines.iter().enumerate() {
            let old = self.engines_before[engine] > 0;
            let waited = now.since(self.engine_since[engine]);
            let trial = self.trials.iter().any(|(of, _)| *of == engine);
            if (trial || !held.is_empty()) && old && waited >= limits.liveness_max_stall {
                reasons.push(KillReason::NoProgress(Stage::Computed));
                break;
            }
        }
        let unproven = |since: Moment| now.since(since) >= limits.disconnect_kill;
        let unconsumed = self.unconsumed_since.into_iter().flatten().any(unproven);
        if self.proof.is_some_and(|proof| unproven(proof) || unconsumed) {
            reasons.push(KillReason::BrokerDisconnected);
        }
        reasons
    }

    pub fn judge_verdict(&mut self, actions: &[Action], logic: &Logic, now: Moment) {
        let reasons = self.reasons(now);
        match self.killed {
            Some(reason) => assert!(
                reasons.contains(&reason),
                "{reason:?}, but the truth is {reasons:?}"
            ),
            None => assert!(reasons.is_empty(), "must end: {reasons:?}"),
        }
        let proven = self.connected && self.draining.is_none() && reasons.is_empty();
        let verdict = logic.health().verdict(now);
        assert_eq!(verdict == Verdict::Proven, proven, "{verdict:?}");
        if logic.readiness(now).is_ok() {
            assert!(
                !self.models.has_failed(self.setup.default.0),
                "ready without its model"
            );
            assert!(
                self.connected && self.ready && !self.blocked && self.unconsumed_since == [None; Lane::COUNT],
                "ready for work that cannot be done"
            );
        }
        if self.draining.is_some() {
            assert!(logic.readiness(now).is_err(), "ready while draining");
            let empty = self.jobs.is_empty() && self.engines.iter().all(Vec::is_empty);
            assert_eq!(empty, self.drained, "drained means that nothing is left");
            return;
        }
        if self.round_now && self.connected && reasons.is_empty() && !self.withdrawn_now {
            assert!(
                self.ready || self.models.starts(),
                "the first round with all models makes ready"
            );
            let due = self
                .pet
                .is_none_or(|last| now.since(last) >= self.setup.pet_spacing);
            assert!(!due || actions.contains(&Action::Pet), "a round without its pet");
        }
        let interval = self.setup.limits.canary_interval;
        let due = !self.ready || self.round.is_none_or(|round| now.since(round) >= interval);
        let due = due && !self.models.starts();
        if self.connected && due && self.killed.is_none() && self.local_or_none_under_way() {
            let sent = actions
                .iter()
                .any(|action| matches!(action, Action::SendCanary { .. }));
            assert!(sent || self.blocked, "no canary although one is due");
        }
    }

    fn local_or_none_under_way(&self) -> bool {
        let through = |seen: &Seen| seen.lane == Lane::Probe && !seen.local;
        !self.canary_on_its_way && !self.jobs.values().any(through)
    }
}
