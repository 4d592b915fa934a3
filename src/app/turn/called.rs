//! What callers on connections of their own ask, put into the logic's terms, and what they are given.

use super::super::catalogue::Way;
use super::super::desk::Held;
use super::Loop;
use crate::clock::Clock;
use crate::http::{Ask, Call, Given};
use crate::job::{JobKey, Refusal};
use crate::logic::event::{CallerId, Event};
use std::hash::BuildHasher;
use tracing::debug;

impl Loop {
    pub(super) fn called(&mut self, call: Call) -> Option<Event> {
        match call {
            Call::Ask(ask) => Some(self.asked(*ask)),
            Call::Gone(job, told) => {
                // Who is told nothing any more: the job may have been answered in the same moment.
                let held = self.desk.get_mut(&job)?;
                held.connection = None;
                if let Some(error) = told {
                    held.fails(&Refusal::new(error, "no answer in time"));
                }
                debug!(job = %held.id, trace_id = held.trace_id(), "its caller has gone away");
                Some(Event::CallerGone { job })
            }
        }
    }

    fn asked(&mut self, ask: Ask) -> Event {
        self.quiet = false;
        let now = self.parts.clock.now();
        let unix_ms = Clock::unix_ms();
        let deadline = self.deadline(&ask.properties, now);
        let caller = CallerId(self.callers.hash_one(ask.caller));
        let (job, bytes) = (ask.job, ask.bytes);
        let planned = ask.request.and_then(|request| {
            let plan = self.parts.catalogue.plan(&request, Way::Connection)?;
            Ok((plan, request))
        });
        let mut held = Held::called(ask.id, ask.properties.traceparent, ask.reply, unix_ms, now);
        held.caller = caller;
        self.follow(&mut held);
        let arrival = planned.map(|(plan, request)| {
            let (inputs, _) = held.plan(request, plan.clone(), false, unix_ms);
            plan.ticket(caller, inputs, bytes, deadline, None)
        });
        self.desk.insert(job, held);
        Event::Called { job, arrival }
    }

    /// Gives a caller on a connection its vectors, or the refusal. Never waits: there is room for the one answer.
    pub(super) fn hand_over(&mut self, job: JobKey, refusal: Option<Refusal>) -> Option<Event> {
        let held = self.desk.get_mut(&job)?;
        let connection = held.connection.take();
        let reply = match refusal {
            Some(refusal) => Some(held.given(Given::Refused(refusal))),
            None => held.vectors(&self.parts.catalogue),
        };
        let handed = connection.zip(reply);
        let taken = handed.is_some_and(|(connection, reply)| connection.send(reply).is_ok());
        Some(Event::HandedOver { job, taken })
    }
}
