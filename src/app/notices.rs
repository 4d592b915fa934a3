//! Backpressure told to the world: each change once into the log, and to the exchange of events as soon as the
//! broker takes it. Of changes that nobody could be told meanwhile only the last counts, and none if it is what was
//! told before.

use super::catalogue::Catalogue;
use crate::broker::Command;
use crate::clock::{Clock, millis};
use crate::job::Lane;
use crate::job::backpressure::{Notice, TYPE_BACKPRESSURE, routing_key};
use crate::logic::Logic;
use crate::logic::pressure::Change;
use std::collections::BTreeMap;
use tracing::{info, warn};

/// What is known of one lane.
#[derive(Debug, Default)]
struct Known {
    /// Whether those who listen believe that it is on.
    told: bool,
    /// What they have not been told yet.
    untold: Option<Notice>,
}

/// What has been told, and what not yet.
pub struct Notices {
    host: String,
    models: Vec<String>,
    known: [Known; Lane::COUNT],
}

impl Notices {
    /// Nothing told: every lane is off.
    pub fn new(host: String, catalogue: &Catalogue) -> Notices {
        Notices {
            host,
            models: catalogue.model_names(),
            known: Default::default(),
        }
    }

    /// A lane's backpressure has changed.
    pub fn changed(&mut self, change: &Change, logic: &Logic) {
        let notice = self.notice(change, logic);
        let Notice {
            lane,
            cause,
            queue,
            inflight,
            retry_after_ms,
            ..
        } = &notice;
        let model = notice.model.as_deref();
        if change.on {
            warn!(
                lane,
                model, cause, queue, inflight, retry_after_ms, "backpressure is on"
            );
        } else {
            let lasted_ms = notice.lasted_ms;
            info!(
                lane,
                model, cause, queue, inflight, lasted_ms, "backpressure is off"
            );
        }
        let known = &mut self.known[change.lane as usize];
        known.untold = (known.told != change.on).then_some(notice);
    }

    /// The next notice that the broker would take now. It counts as told.
    pub fn due(&mut self, logic: &Logic) -> Option<Command> {
        let health = logic.health();
        if !health.is_connected() || health.blocked_since().is_some() {
            return None;
        }
        let (lane, notice) = Lane::ALL
            .into_iter()
            .find_map(|lane| Some((lane, self.known[lane as usize].untold.take()?)))?;
        self.known[lane as usize].told = notice.on;
        Some(Command::Event {
            kind: TYPE_BACKPRESSURE,
            routing_key: routing_key(lane),
            body: serde_json::to_vec(&notice).expect("plain data is always JSON"),
        })
    }

    fn notice(&self, change: &Change, logic: &Logic) -> Notice {
        let limits = logic.limits();
        let mut bounds: BTreeMap<String, u64> = [
            ("max_queue", limits.max_queue as u64),
            ("max_inflight", limits.max_inflight as u64),
            ("max_queue_bytes", limits.max_queue_bytes as u64),
            ("slam_limit_ms", millis(limits.slam_limit)),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        bounds.extend(
            change
                .memory
                .map(|memory| ("memory_bytes".to_owned(), memory.limit)),
        );
        Notice {
            lane: change.lane.name().to_owned(),
            on: change.on,
            cause: change.cause.name().to_owned(),
            model: change.model.map(|model| self.models[model.0].clone()),
            queue: change.queue,
            inflight: change.inflight,
            queue_bytes: change.bytes,
            avg_job_ms: change.mean.map(millis),
            memory_bytes: change.memory.map(|memory| memory.in_use),
            limits: bounds,
            retry_after_ms: change.retry_after_ms,
            lasted_ms: (!change.on).then(|| millis(change.lasted)),
            at_unix_ms: Clock::unix_ms(),
            pid: std::process::id(),
            host: self.host.clone(),
        }
    }
}
