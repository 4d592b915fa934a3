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
        self.unconsumed = [false; Lane::COUNT];
        self.reader_stuck = [false; Lane::COUNT];
        self.unconfirming = None;
        self.disturbed();
        self.plan(0, Next::Probe(self.session));
        self.step(Event::BrokerUp {
            resumable: self.resumable,
        });
    }

    /// The broker sees the session end: what was delivered and not acknowledged goes back, in order.
    pub(super) fn cut(&mut self) {
        self.link = false;
        self.blocked = false;
        if self.logic.is_some() {
            let held = self.deliveries.values().map(|delivery| delivery.letter);
            self.innocent.extend(held.filter_map(|letter| match letter {
                Letter::Client(number) => Some(number),
                Letter::Canary => None,
            }));
        }
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
                self.queues[self.messages[number].at as usize].push_front(letter);
            }
        }
        self.queues[Lane::Probe as usize].clear();
    }

    pub(super) fn unblock(&mut self) {
        self.blocked = false;
        for (job, parcel) in std::mem::take(&mut self.held_back) {
            self.publish(job, parcel);
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
                .filter(|it| it.lane == lane && it.brokered && !it.fetched)
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
            Letter::Client(number) => self.messages[number].at,
            Letter::Canary => Lane::Probe,
        }
    }

    /// Message after message is asked for, until there are none or these are enough.
    pub(super) fn look(&mut self, jobs: usize) {
        let session = self.session;
        for _ in 0..jobs {
            // A slow one, and what comes in between: the rest is left there.
            if !self.intake || self.rng.one_in(30) {
                break;
            }
            let Some(letter) = self.queues[Lane::Bulk as usize].pop_front() else {
                break;
            };
            self.on_the_wire.push(letter);
            self.counts.fetched += 1;
            self.arrive(letter, true);
            if self.reader_stuck[Lane::Bulk as usize]
                || !self.link
                || self.session != session
                || self.logic.is_none()
            {
                return;
            }
        }
        self.step(Event::LookedAhead);
    }

    pub(super) fn arrive(&mut self, letter: Letter, fetched: bool) {
        let lane = self.lane_of(letter);
        if self.reader_stuck[lane as usize] {
            // It stays on the wire, as does what comes behind it.
            self.step(Event::Reading { lane });
            return;
        }
        if self.rng.one_in(20) {
            for event in [Event::Reading { lane }, Event::Read { lane }] {
                self.step(event);
                if self.logic.is_none() {
                    return;
                }
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
            inputs: 1,
            attempt: 1,
            streamed: false,
            brokered: true,
            fetched,
        };
        let (arrival, answerable, tries) = match letter {
            Letter::Canary => (Ok(canary_ticket()), true, (1, false)),
            Letter::Client(number) => {
                let now = self.moment();
                let resumable = self.resumable;
                let innocent = self.innocent.contains(&number);
                let message = &mut self.messages[number];
                let redelivered = message.deliveries > 0 && !innocent;
                let resumed = message.at == Lane::Resumed;
                let lost = if resumed && redelivered {
                    message.deliveries
                } else {
                    0
                };
                let attempt = if redelivered && !resumed {
                    let tried = self.at_work.contains(&number);
                    (1 + u32::from(tried)).min(self.setup.limits.max_attempts)
                } else {
                    message.attempt + lost
                };
                message.deliveries += 1;
                let rest = message.tokens.len() - message.done;
                let sliced = message.chunk.filter(|_| resumable);
                let end = sliced.map(|chunk| {
                    let whole = (message.done + SLICE) / chunk * chunk;
                    whole.max((message.done / chunk + 1) * chunk)
                });
                message.slice = end.map_or(rest, |end| rest.min(end - message.done));
                let stream = message.chunk.map(|chunk| Streaming {
                    chunks: Chunks::new(chunk, message.done),
                    last: message.slice == rest,
                });
                let ticket = Ticket {
                    model: message.model,
                    caller: message.caller,
                    inputs: message.slice,
                    bytes: message.tokens.iter().sum::<usize>() * 5,
                    deadline: message.budget.map(|ms| now + Duration::from_millis(ms)),
                    stream,
                };
                let broken = Refusal::invalid("input", "input is missing");
                let arrival = if message.broken { Err(broken) } else { Ok(ticket) };
                let suspect = redelivered || resumed && message.alone;
                (arrival, message.answerable, (attempt, suspect))
            }
        };
        self.delivered(job, delivery, arrival, answerable, tries);
    }

    pub(super) fn publish(&mut self, job: JobKey, parcel: Parcel) {
        if self.blocked {
            self.held_back.push((job, parcel));
        } else if self.link {
            if !parcel.is_ours() && self.unconfirming.is_some_and(|one_in| self.rng.one_in(one_in)) {
                self.plan(1500, Next::Unconfirmed(self.session, job));
                return;
            }
            let delay = if self.rng.one_in(30) {
                300
            } else {
                self.rng.range(0, 10)
            };
            self.plan(delay, Next::Published(self.session, job, parcel));
        }
    }

    pub(super) fn published(&mut self, job: JobKey, parcel: Parcel) {
        if self.blocked {
            self.held_back.push((job, parcel));
            return;
        }
        // A chunk of a job that is gone meanwhile.
        let Some(delivery) = self.deliveries.get(&job) else {
            return;
        };
        let real = match delivery.letter {
            Letter::Client(number) => Some(number),
            Letter::Canary => None,
        };
        let outcome = match self.rng.below(20) {
            0 if real.is_some() && !parcel.is_ours() => Confirmation::Rejected,
            1 if real.is_some() && !parcel.is_ours() => Confirmation::Returned,
            _ => Confirmation::Routed,
        };
        if let Some(number) = real
            && outcome != Confirmation::Rejected
        {
            let attempt = delivery.attempt;
            self.arrived(number, parcel, attempt);
        }
        if parcel.is_last() && outcome == Confirmation::Routed {
            self.acknowledge(job);
        }
        self.step(match parcel {
            Parcel::DeadLetter => Event::DeadLettered { job },
            _ => Event::Confirmed { job, outcome },
        });
    }

    /// Writes the acknowledgement, which takes a while.
    pub(super) fn acknowledge(&mut self, job: JobKey) {
        let delay = self.rng.range(0, 3);
        self.plan(delay, Next::Acked(self.session, job));
    }

    /// The broker has put something of a message's job into a queue.
    fn arrived(&mut self, number: usize, parcel: Parcel, attempt: u32) {
        let message = &mut self.messages[number];
        match parcel {
            Parcel::Answer | Parcel::Refusal | Parcel::DeadLetter => message.outcomes += 1,
            Parcel::Done => {
                message.outcomes += 1;
                message.finished = true;
            }
            Parcel::Chunk(first, inputs) => {
                let first = message.done + first;
                message.sent[first..first + inputs].fill(true);
                // A chunk that nobody takes ends the job, as an answer would.
                message.outcomes += 1;
            }
            // The copy takes the place of the message; that is acknowledged next.
            Parcel::Suspect | Parcel::Back | Parcel::NextSlice | Parcel::Retry => {
                let copy = Message {
                    at: if parcel == Parcel::Back {
                        message.at
                    } else {
                        Lane::Resumed
                    },
                    done: message.done
                        + if parcel == Parcel::NextSlice {
                            message.slice
                        } else {
                            0
                        },
                    attempt: match parcel {
                        Parcel::Retry => attempt + 1,
                        Parcel::Suspect => attempt,
                        Parcel::Back => message.attempt,
                        _ => 1,
                    },
                    alone: matches!(parcel, Parcel::Suspect | Parcel::Retry),
                    deliveries: 0,
                    settled: 0,
                    budget: message.budget.filter(|_| parcel != Parcel::NextSlice),
                    ..message.clone()
                };
                message.outcomes += 1;
                message.moved = true;
                let copied = self.messages.len();
                self.messages.push(copy);
                let pause = if parcel == Parcel::Retry { 1000 } else { 0 };
                self.plan(pause, Next::Later(copied));
            }
        }
    }
}
