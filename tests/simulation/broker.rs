//! The made-up broker and its clients: queues, prefetch, deliveries, confirms, and sessions that end.

use super::*;

impl World {
    pub(super) fn produce(&mut self) {
        let pause = if self.trouble { self.rng.range(1, 400) } else { 200 };
        self.plan(pause, Next::Produce);
        let backlog: usize = self.queues.iter().map(VecDeque::len).sum();
        if backlog >= BACKLOG_MAX || !self.trouble || self.quiet {
            return;
        }
        let flood = self.rng.one_in(40);
        for _ in 0..self.rng.range(1, if flood { 60 } else { 4 }) {
            let message = self.draw_message();
            self.queues[message.lane as usize].push_back(Letter::Client(self.messages.len()));
            self.messages.push(message);
        }
    }

    pub(super) fn connect(&mut self) {
        self.session += 1;
        (self.up, self.link, self.blocked) = (true, true, false);
        self.unconsumed = [false; 3];
        self.reader_stuck = [false; 3];
        self.unconfirming = None;
        self.disturbed();
        self.plan(0, Next::Probe(self.session));
        self.step(Event::BrokerUp);
    }

    /// The broker sees the session end: what was delivered and not acknowledged goes back, in order.
    pub(super) fn cut(&mut self) {
        self.link = false;
        self.blocked = false;
        self.held_back.clear();
        let delivered = self.deliveries.values().filter(|delivery| delivery.brokered);
        let mut back: Vec<Letter> = delivered.map(|delivery| delivery.letter).collect();
        back.append(&mut self.on_the_wire);
        for delivery in self.deliveries.values_mut() {
            delivery.letter = Letter::Canary;
        }
        back.sort_unstable();
        for letter in back.into_iter().rev() {
            if let Letter::Client(number) = letter {
                self.queues[self.messages[number].lane as usize].push_front(letter);
            }
        }
        self.queues[Lane::Probe as usize].clear();
    }

    pub(super) fn unblock(&mut self) {
        self.blocked = false;
        for (job, dead) in std::mem::take(&mut self.held_back) {
            self.publish(job, dead);
        }
        self.disturbed();
        self.step(Event::BrokerUnblocked);
    }

    /// The broker delivers up to each consumer's prefetch.
    pub(super) fn send_more(&mut self) {
        if !self.link || !self.up || !self.intake {
            return;
        }
        for lane in Lane::ALL {
            if lane == Lane::Probe && self.blocked {
                continue;
            }
            if self.unconsumed[lane as usize] || self.undelivering[lane as usize] {
                continue;
            }
            let on_the_wire = |letter: &&Letter| self.lane_of(**letter) == lane;
            let unacked = self
                .deliveries
                .values()
                .filter(|it| it.lane == lane && it.brokered)
                .count()
                + self.on_the_wire.iter().filter(on_the_wire).count();
            for _ in unacked..PREFETCH[lane as usize] {
                let Some(letter) = self.queues[lane as usize].pop_front() else {
                    break;
                };
                self.on_the_wire.push(letter);
                let delay = self.rng.range(0, 5);
                self.plan(delay, Next::Arrive(self.session, letter));
            }
        }
    }

    pub(super) fn lane_of(&self, letter: Letter) -> Lane {
        match letter {
            Letter::Client(number) => self.messages[number].lane,
            Letter::Canary => Lane::Probe,
        }
    }

    pub(super) fn arrive(&mut self, letter: Letter) {
        let lane = self.lane_of(letter);
        if self.reader_stuck[lane as usize] {
            // It stays on the wire, as does what comes behind it.
            self.step(Event::Reading { lane });
            return;
        }
        if self.rng.one_in(20) {
            self.step(Event::Reading { lane });
            if self.logic.is_none() {
                return;
            }
        }
        let at = self
            .on_the_wire
            .iter()
            .position(|it| *it == letter)
            .expect("sent before");
        self.on_the_wire.remove(at);
        self.next_key += 1;
        let job = JobKey(self.next_key);
        let delivery = Delivery {
            letter,
            lane: self.lane_of(letter),
            brokered: true,
        };
        let (arrival, answerable) = match letter {
            Letter::Canary => (Ok(canary_ticket()), true),
            Letter::Client(number) => {
                let message = &self.messages[number];
                let ticket = Ticket {
                    model: message.model,
                    caller: message.caller,
                    inputs: message.tokens.len(),
                    bytes: message.tokens.iter().sum::<usize>() * 5,
                    deadline: message.budget.map(|ms| self.moment() + Duration::from_millis(ms)),
                };
                let broken = Refusal::invalid("input", "input is missing");
                let arrival = if message.broken { Err(broken) } else { Ok(ticket) };
                (arrival, message.answerable)
            }
        };
        self.delivered(job, delivery, arrival, answerable);
    }

    pub(super) fn publish(&mut self, job: JobKey, dead: bool) {
        if self.blocked {
            self.held_back.push((job, dead));
        } else if self.link {
            if !dead && self.unconfirming.is_some_and(|one_in| self.rng.one_in(one_in)) {
                self.plan(1500, Next::Unconfirmed(self.session, job));
                return;
            }
            let delay = if self.rng.one_in(30) {
                300
            } else {
                self.rng.range(0, 10)
            };
            self.plan(delay, Next::Published(self.session, job, dead));
        }
    }

    pub(super) fn published(&mut self, job: JobKey, dead: bool) {
        if self.blocked {
            self.held_back.push((job, dead));
            return;
        }
        let real = match self.deliveries[&job].letter {
            Letter::Client(number) => Some(number),
            Letter::Canary => None,
        };
        let outcome = match self.rng.below(20) {
            0 if real.is_some() => Confirmation::Rejected,
            1 if real.is_some() => Confirmation::Returned,
            _ => Confirmation::Routed,
        };
        if let Some(number) = real
            && (dead || outcome != Confirmation::Rejected)
        {
            self.messages[number].outcomes += 1;
        }
        self.step(if dead {
            Event::DeadLettered { job }
        } else {
            Event::Confirmed { job, outcome }
        });
    }
}
