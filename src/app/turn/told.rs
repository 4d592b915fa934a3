//! What the loop says of itself: to those who ask, and on the board for those who look.

use super::super::window::{self, Question};
use super::Loop;
use crate::clock::Moment;
use crate::http::Posted;
use crate::logic::event::Event;
use crate::report::Report;
use std::time::Duration;

/// The board is written at most this often; the loop turns at least every half second.
const POST_INTERVAL: Duration = Duration::from_millis(100);
/// The same when readiness has changed; with a queue at its bound it may with every job.
const NEWS_INTERVAL: Duration = Duration::from_millis(10);

impl Loop {
    /// Says how things are. That the loop does so is half of the answer; its tick is a turn like any other,
    /// so that those who ask keep nothing from being looked at.
    pub(super) fn answer(&self, question: Question) -> Option<Event> {
        question.answer(self.report(self.parts.clock.now()));
        Some(Event::Tick)
    }

    /// How things are, as far as the loop knows.
    pub(super) fn report(&self, now: Moment) -> Report {
        let awaited = self.awaited(now).filter(|_| !self.ready && !self.draining);
        let line = awaited.unwrap_or_else(|| self.show.present(&self.parts.logic, now));
        let mut report = window::report(&self.parts.logic, line, now);
        let names = self.parts.catalogue.model_names();
        let states = self.parts.logic.model_states().map(str::to_owned);
        report.models = names.into_iter().zip(states).collect();
        report.retrying = self.retries.shown(now);
        (report.model, report.device) = (self.show.model().into(), self.show.device().into());
        report.broker.waiting.clone_from(&self.waiting);
        report.broker.address.clone_from(&self.address);
        report
    }

    /// Says so on the board: soon whether new work is welcome, and all else seldom enough that it costs nothing.
    pub(super) fn post(&mut self, now: Moment) {
        if self.parts.http.is_none() {
            return;
        }
        let ready = self.parts.logic.readiness(now).is_ok();
        let rest = |(at, told): (Moment, bool)| {
            let interval = if told == ready {
                POST_INTERVAL
            } else {
                NEWS_INTERVAL
            };
            let rest = interval.saturating_sub(now.since(at));
            (!rest.is_zero()).then_some(rest)
        };
        self.unposted = self.posted.and_then(rest);
        if self.unposted.is_some() {
            return;
        }
        self.posted = Some((now, ready));
        self.parts.board.post(Posted {
            at: now,
            report: self.report(now),
            tally: Some(Box::new(self.parts.logic.tally().clone())),
            late_after: window::ANSWER_MAX,
            dead_after: self.parts.logic.limits().liveness_max_stall,
        });
    }
}
