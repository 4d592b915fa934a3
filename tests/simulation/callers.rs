//! The made-up callers that wait on connections of their own, as those by HTTP do: patient ones, those with a budget, and
//! those that go away without a word, at any moment.

use super::*;

/// A caller that waits for one job.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    tokens: Vec<usize>,
    /// Its connection has ended; the service hears of it a little later.
    left: bool,
    /// How often it was given an answer or a refusal.
    answers: u32,
}

impl World {
    /// Callers come, each with one job.
    pub(super) fn call(&mut self) {
        let pause = if self.trouble {
            self.rng.range(1, 1500)
        } else {
            200
        };
        self.plan(pause, Next::Call);
        if !self.trouble || self.quiet || self.logic.is_none() {
            return;
        }
        let flood = self.rng.one_in(30);
        for _ in 0..self.rng.range(1, if flood { 40 } else { 3 }) {
            self.one_calls();
        }
    }

    fn one_calls(&mut self) {
        // A process that ended under the ones before takes no more of them.
        if self.logic.is_none() {
            return;
        }
        self.counts.called += 1;
        self.next_call += 1;
        let job = JobKey(JobKey::CALLED + self.next_call);
        let now = self.moment();
        let message = self.draw_message();
        let tokens = message.tokens;
        let ticket = Ticket {
            model: message.model,
            caller: message.caller,
            inputs: tokens.len(),
            bytes: tokens.iter().sum::<usize>() * 5,
            deadline: message.budget.map(|ms| now + Duration::from_millis(ms)),
            stream: None,
        };
        let broken = Refusal::invalid("input", "input is missing");
        let arrival = if message.broken { Err(broken) } else { Ok(ticket) };
        let waiting = Waiting {
            tokens,
            left: false,
            answers: 0,
        };
        self.calls.insert(job, waiting);
        if self.rng.one_in(4) {
            let patience = self.rng.range(0, 1500);
            self.plan(patience, Next::Leave(job));
        }
        self.step(Event::Called { job, arrival });
    }

    /// Its connection ends. The service may hear of it after the answer has found nobody.
    pub(super) fn leave(&mut self, job: JobKey) {
        if let Some(waiting) = self.calls.get_mut(&job) {
            waiting.left = true;
            let delay = self.rng.range(0, 20);
            self.plan(delay, Next::Gone(job));
        }
    }

    /// What a caller's texts come to, if it is one.
    pub(super) fn call_tokens(&self, job: JobKey) -> Option<Vec<usize>> {
        Some(self.calls.get(&job)?.tokens.clone())
    }

    /// An answer or a refusal goes to a caller at once, and the service is told in its next turn; false if it is not for one.
    pub(super) fn hand_over(&mut self, job: JobKey) -> bool {
        let Some(waiting) = self.calls.get_mut(&job) else {
            return false;
        };
        waiting.answers += 1;
        self.handed.push_back((job, !waiting.left));
        true
    }

    /// The service is done with a caller's job; false if it is none.
    pub(super) fn call_ended(&mut self, job: JobKey, outcome: Outcome) -> bool {
        let Some(waiting) = self.calls.remove(&job) else {
            return false;
        };
        let Waiting { left, answers, .. } = waiting;
        match outcome {
            Outcome::Answered | Outcome::Refused => assert!(answers == 1 && !left, "{answers} answers"),
            Outcome::Returned => assert!(left && answers <= 1, "given up, and its caller waits"),
            other => panic!("a caller's job ended as {other:?}"),
        }
        match outcome {
            Outcome::Answered => self.counts.call_answers += 1,
            Outcome::Refused => self.counts.call_refusals += 1,
            _ => self.counts.call_gone += 1,
        }
        true
    }
}
