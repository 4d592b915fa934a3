//! The end of a session that is closed and not lost.
//!
//! An acknowledgement that is written is not one that a quorum queue has. While more than 32 commands are under way to the queue, the
//! broker's side of a channel keeps further ones to itself (`rabbit_fifo_client`, `SOFT_LIMIT`), and they are lost with the channel:
//! what was answered or sent anew long before would be delivered once more. A queue counts a consumer that was cancelled, and each message
//! that was fetched, until the last of its deliveries is settled (`rabbit_fifo:query_stat/1`), so its count of consumers tells.

use super::{BrokerError, within};
use crate::job::Lane;
use lapin::Channel;
use lapin::options::{BasicCancelOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Longest time for one question, or for cancelling.
const STEP_MAX: Duration = Duration::from_secs(5);
/// Longest time for a queue to take what is written. It has a thousand in a tenth of that.
const SETTLED_MAX: Duration = Duration::from_secs(1);
/// Where others take from a queue as well, their number may be an old one: what is under way has so long to arrive all the same.
const COMPANY_PAUSE: Duration = Duration::from_millis(300);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(10);
/// How many take from a queue has not been asked yet.
const UNKNOWN: usize = usize::MAX;

/// Consumers of a queue, ours among them, as the broker last counted.
#[derive(Clone, Debug)]
pub(super) struct Seen(Arc<AtomicUsize>);

impl Default for Seen {
    fn default() -> Seen {
        Seen(Arc::new(AtomicUsize::new(UNKNOWN)))
    }
}

impl Seen {
    /// The broker has counted.
    pub(super) fn set(&self, consumers: usize) {
        self.0.store(consumers, Ordering::Relaxed);
    }

    /// Those that are not ours. Nobody, where that is not known: then a farewell takes longer.
    fn beside(&self, ours: usize) -> usize {
        match self.0.load(Ordering::Relaxed) {
            UNKNOWN => 0,
            all => all.saturating_sub(ours),
        }
    }
}

/// A queue that we take from.
pub(super) struct Intake {
    pub(super) lane: Lane,
    queue: Arc<str>,
    /// One for each of our consumers.
    channels: Vec<Arc<Channel>>,
    /// Messages of it that were fetched and are not settled.
    fetched: Arc<AtomicUsize>,
    seen: Seen,
    /// Its consumers that were not ours when we took no more.
    others: AtomicUsize,
}

impl Intake {
    /// From this queue, by no consumer yet.
    pub(super) fn of(lane: Lane, queue: Arc<str>, seen: Seen) -> Intake {
        Intake {
            lane,
            queue,
            channels: Vec::new(),
            fetched: Arc::default(),
            seen,
            others: AtomicUsize::new(0),
        }
    }

    /// Also by a consumer on this channel.
    pub(super) fn add(&mut self, channel: Arc<Channel>) {
        self.channels.push(channel);
    }

    /// Counts messages that are fetched, and not settled.
    pub(super) fn fetched(&self) -> Arc<AtomicUsize> {
        self.fetched.clone()
    }

    /// Takes no further deliveries; what the broker had sent already still comes and is given back. The channels stay open: closing one
    /// would void the deliveries still to be settled on it.
    async fn stop(&self) -> Result<(), BrokerError> {
        let others = self.seen.beside(self.channels.len());
        self.others.store(others, Ordering::Relaxed);
        for channel in &self.channels {
            let cancelled = channel.basic_cancel(self.lane.name().into(), BasicCancelOptions::default());
            within("unsubscribing", STEP_MAX, cancelled).await?;
        }
        Ok(())
    }

    /// Waits until the queue has every acknowledgement of ours.
    async fn settled(&self) -> Result<(), BrokerError> {
        let others = self.others.load(Ordering::Relaxed);
        if others > 0 {
            tokio::time::sleep(COMPANY_PAUSE).await;
        }
        while self.consumers().await? > others {
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    async fn consumers(&self) -> Result<usize, BrokerError> {
        let Some(channel) = self.channels.first() else {
            return Ok(0);
        };
        let passive = QueueDeclareOptions::default().passive();
        let asked = channel.queue_declare(self.queue.as_ref().into(), passive, FieldTable::default());
        let state = within("counting consumers", STEP_MAX, asked).await?;
        Ok(usize::try_from(state.consumer_count()).unwrap_or(usize::MAX))
    }
}

/// Takes no further deliveries from any. What is sent anew is to be published behind that, or it would come back to us.
pub(super) async fn stop(intakes: &[Intake]) -> Result<(), BrokerError> {
    let all = intakes.iter().map(Intake::stop);
    futures_util::future::try_join_all(all).await.map(|_| ())
}

/// Waits until the queues that we have stopped taking from have every acknowledgement of ours, or [`SETTLED_MAX`]. Who comes to a queue
/// meanwhile makes that longer.
pub(super) async fn settled(intakes: &[Intake]) {
    let lasting = intakes.iter().filter(|intake| intake.lane != Lane::Probe);
    let all = futures_util::future::join_all(lasting.map(Intake::settled));
    let _ = tokio::time::timeout(SETTLED_MAX, all).await;
}
