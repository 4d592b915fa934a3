//! What the broker says, put into the logic's terms.

use super::super::catalogue::Way;
use super::super::desk::Held;
use super::Loop;
use crate::broker::{Arrival, BrokerEvent, Command, Published};
use crate::clock::{Clock, Moment};
use crate::http::Call;
use crate::job::checkpoint::Checkpoint;
use crate::job::request::{Number, Properties};
use crate::job::{Lane, Refusal, reply_to};
use crate::logic::event::{CallerId, Confirmation, Event};
use crate::logic::ledger::Stage;
use crate::telemetry::blackbox;
use std::hash::BuildHasher;
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::{info, warn};

/// While the first broker is awaited, each attempt buys the start this much time over the pause before
/// the next: more than one attempt can take.
pub(super) const ATTEMPT_MAX: Duration = Duration::from_secs(30);

/// Events of the broker's that are taken in one turn. Each takes microseconds; whoever else has something for the loop
/// waits less than a millisecond.
const HEARD_MAX: usize = 64;

/// What comes from outside.
pub(super) enum Outside {
    Broker(Option<BrokerEvent>),
    Call(Call),
}

/// The next from either side, by chance where both have something: a flood from the one must not drown the other.
pub(super) async fn outside(
    broker: &mut mpsc::Receiver<BrokerEvent>,
    calls: &mut mpsc::Receiver<Call>,
) -> Outside {
    // Cancelling either loses nothing: `recv` is cancel-safe.
    tokio::select! {
        event = broker.recv() => Outside::Broker(event),
        Some(call) = calls.recv() => Outside::Call(call),
    }
}

impl Loop {
    /// One turn: takes in what the broker says, and what lies ready behind that.
    pub(super) fn hear(&mut self, event: BrokerEvent, broker: &mut mpsc::Receiver<BrokerEvent>) {
        let behind = std::iter::from_fn(|| broker.try_recv().ok()).take(HEARD_MAX - 1);
        for event in std::iter::once(event).chain(behind) {
            if let Some(event) = self.heard(event) {
                self.step(event);
            }
            if self.drained || self.failure.is_some() {
                break;
            }
        }
        self.turned();
    }

    fn heard(&mut self, event: BrokerEvent) -> Option<Event> {
        Some(match event {
            BrokerEvent::Waiting {
                attempts,
                cause,
                pause,
            } => {
                warn!(attempts, %cause, pause_ms = pause.as_millis() as u64, "no broker");
                let line = format!(
                    "waiting for the broker at {} · attempt {attempts}: {cause}",
                    self.parts.config.broker.shown()
                );
                self.waiting = Some(line);
                self.start_moves(ATTEMPT_MAX + pause);
                return None;
            }
            BrokerEvent::Up {
                session,
                resumable,
                prefetch,
            } => {
                (self.session, self.resumable) = (session, resumable);
                self.parts.logic.fetches(prefetch.map(usize::from));
                self.waiting = None;
                if self.draining {
                    self.command(Command::StopIntake);
                }
                self.start_moves(ATTEMPT_MAX);
                Event::BrokerUp { resumable }
            }
            BrokerEvent::Down { held_max } => {
                let brokered = |held: &&Held| held.lane != Lane::Probe && held.receipt.is_some();
                for held in self.desk.values().filter(brokered) {
                    self.innocent.remember(&held.id);
                }
                if let Some(limit) = held_max {
                    warn!(
                        limit_ms = limit.as_millis() as u64,
                        "the broker lets no delivery be held for longer than this (consumer_timeout); jobs go on in shorter slices"
                    );
                    self.pending.push(Event::HeldTooLong { limit });
                }
                Event::BrokerDown
            }
            BrokerEvent::Proof => Event::BrokerProof,
            BrokerEvent::QueueSeen {
                lane,
                ready,
                consumers,
            } => Event::QueueSeen {
                lane,
                ready,
                consumers,
            },
            BrokerEvent::Blocked { reason } => {
                warn!(%reason, "the broker blocks publishing");
                Event::BrokerBlocked
            }
            BrokerEvent::Unblocked => {
                info!("the broker takes messages again");
                Event::BrokerUnblocked
            }
            BrokerEvent::Reading { lane } => Event::Reading { lane },
            BrokerEvent::Read { lane } => Event::Read { lane },
            BrokerEvent::Arrived(arrival) => self.arrived(*arrival),
            BrokerEvent::LookedAhead => Event::LookedAhead,
            BrokerEvent::Published { job, outcome, acks } => {
                self.chunk_answered(job, outcome);
                if acks {
                    let now = self.parts.clock.now();
                    self.desk.get_mut(&job)?.enters(Stage::Acked, now);
                }
                let dead = self.desk.get(&job)?.receipt.is_some() && self.parts.logic.is_dead_lettering(job);
                match (dead, outcome) {
                    (true, _) => Event::DeadLettered { job },
                    (false, Published::Routed) => Event::Confirmed {
                        job,
                        outcome: Confirmation::Routed,
                    },
                    (false, Published::Returned) => Event::Confirmed {
                        job,
                        outcome: Confirmation::Returned,
                    },
                    (false, Published::Rejected) => Event::Confirmed {
                        job,
                        outcome: Confirmation::Rejected,
                    },
                    (false, Published::Unconfirmed) => Event::Confirmed {
                        job,
                        outcome: Confirmation::Unconfirmed,
                    },
                }
            }
            BrokerEvent::Acked { job } => Event::Acked { job },
        })
    }

    /// While the service is not ready: tells systemd what is awaited, and buys the start so much time for it.
    pub(super) fn start_moves(&mut self, extend: Duration) {
        if !self.ready && !self.draining {
            let now = self.parts.clock.now();
            let line = self.awaited(now);
            let line = line.unwrap_or_else(|| "broker reached · first canary under way".to_owned());
            self.show.starting(extend, line, now);
        }
    }

    /// What a service that is not ready waits for, other than its first canary.
    pub(super) fn awaited(&self, now: Moment) -> Option<String> {
        let loading = self.loading.as_ref();
        let loading = loading.map(|(line, at)| format!("{line} · {:.1} s ago", now.since(*at).as_secs_f64()));
        let parts: Vec<String> = self.waiting.clone().into_iter().chain(loading).collect();
        (!parts.is_empty()).then(|| parts.join(" · "))
    }

    fn arrived(&mut self, mut arrival: Arrival) -> Event {
        self.quiet = false;
        let now = self.parts.clock.now();
        let (job, lane) = (arrival.key, arrival.lane);
        let unanswerable = reply_to::fault(arrival.properties.reply_to.as_deref());
        let request = std::mem::replace(&mut arrival.request, Err(Refusal::invalid("", "")));
        let planned = request.and_then(|request| {
            let plan = self.parts.catalogue.plan(&request, Way::Broker)?;
            Ok((plan, request))
        });
        let planned = match unanswerable {
            None => planned,
            Some(fault) => planned.and_then(|_| Err(Refusal::invalid("reply_to", fault))),
        };
        let deadline = self.deadline(&arrival.properties, now);
        let bytes = arrival.bytes;
        let caller = CallerId(self.callers.hash_one(arrival.properties.caller()));
        let (redelivered, fetched) = (arrival.redelivered, arrival.fetched);
        let checkpoint = arrival.checkpoint.clone();
        let mut held = Held::new(arrival, Clock::unix_ms(), now);
        held.caller = caller;
        self.follow(&mut held);
        let Checkpoint { lineage, done, .. } = held.checkpoint;
        if lane == Lane::Resumed && self.lineages.is_behind(lineage, done) {
            info!(job = %held.id, trace_id = held.trace_id(), done, "a copy of a slice whose job has gone on; not computed again");
            self.desk.insert(job, held);
            return Event::Superseded { job, lane };
        }
        let innocent = redelivered && self.innocent.is(&held.id);
        let mut died = redelivered && !innocent && lane == Lane::Resumed;
        if innocent {
            held.attempt = checkpoint.as_ref().map_or(1, |it| it.attempt.max(1));
        } else if redelivered && lane != Lane::Resumed {
            // The broker counts for all that a process held, not for what it worked on; the box of the one before this knows that.
            // Without one each may have been tried. A whole batch is: that costs a job one life, and never the last.
            let own = blackbox::own().filter(|_| held.is_named());
            let tried = own.and_then(|own| own.was_at_work(&held.id));
            died = tried == Some(true);
            // Where no job goes on in a message of its own, the broker's count is all that ends one that ends each process.
            let most = self.parts.logic.limits().max_attempts;
            held.attempt = match tried {
                Some(true) if !self.resumable => held.attempt.min(most + 1),
                _ => (1 + u32::from(tried.unwrap_or(true))).min(most),
            };
        }
        let marked = checkpoint.is_some_and(|checkpoint| checkpoint.alone);
        let suspect = marked || redelivered && !innocent;
        let attempt = held.attempt;
        held.spent = attempt > self.parts.logic.limits().max_attempts;
        let arrival = planned.map(|(plan, mut request)| {
            // Another worker that goes on with it may have another default.
            request.model = Some(self.parts.catalogue.entry(plan.model).name.clone());
            let unix_ms = Clock::unix_ms();
            let (inputs, stream) = held.plan(request, plan.clone(), self.resumable, unix_ms);
            plan.ticket(caller, inputs, bytes, deadline, stream)
        });
        if lane == Lane::Resumed && held.checkpoint.lineage != 0 {
            let told = self.lineages.attempts(held.checkpoint.lineage, held.attempts());
            held.checkpoint.most = told.max(held.checkpoint.most);
        }
        died &= !held.spent;
        self.desk.insert(job, held);
        if died {
            self.death_told(job);
        }
        Event::Delivered {
            job,
            lane,
            arrival,
            answerable: unanswerable.is_none(),
            attempt,
            suspect,
            fetched,
        }
    }

    /// When the caller stops waiting: the budget from when the caller sent, as far as that is known.
    pub(super) fn deadline(&self, properties: &Properties, now: Moment) -> Option<Moment> {
        let Number::Value(budget_ms) = properties.budget_ms else {
            return None;
        };
        let now_ms = Clock::unix_ms();
        let sent_ms = properties.sent_ms().unwrap_or(now_ms);
        // A sender whose clock is ahead gets its whole budget, no more.
        let spent = Duration::from_millis(now_ms.saturating_sub(sent_ms));
        Some(now + Duration::from_millis(budget_ms).saturating_sub(spent))
    }
}
