//! The end of a session that is closed and not lost.
//!
//! An acknowledgement that is written is not one that a quorum queue has. While more than 32 commands are under way to the queue, the
//! broker's side of a channel keeps further ones to itself (`rabbit_fifo_client`, `SOFT_LIMIT`), and they are lost with the channel:
//! what was answered or sent anew long before would be delivered once more. A queue counts a consumer that was cancelled
//! until the last of its deliveries is settled (`rabbit_fifo:query_stat/1`), so its count of consumers tells.

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
/// Longest time for a queue to take what is written. Two thousand acknowledgements were there after 30 to 110 ms, beside three busy loops.
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

/// Our consumers of one queue.
pub(super) struct Consumers {
    pub(super) lane: Lane,
    queue: Arc<str>,
    /// One for each of our consumers.
    channels: Vec<Arc<Channel>>,
    /// Consumers of looks ahead, as far as the queue counts them.
    passing: Arc<AtomicUsize>,
    seen: Seen,
    /// Those of others, as they were when ours were cancelled.
    others: usize,
}

impl Consumers {
    /// Of this queue, none yet.
    pub(super) fn of(lane: Lane, queue: Arc<str>, seen: Seen) -> Consumers {
        Consumers {
            lane,
            queue,
            channels: Vec::new(),
            passing: Arc::default(),
            seen,
            others: 0,
        }
    }

    /// One more, on this channel.
    pub(super) fn add(&mut self, channel: Arc<Channel>) {
        self.channels.push(channel);
    }

    /// Counts consumers of looks ahead, as the queue does.
    pub(super) fn passing(&self) -> Arc<AtomicUsize> {
        self.passing.clone()
    }

    /// Takes no further deliveries; what the broker had sent already still comes and is given back. The channels stay open: closing one
    /// would void the deliveries still to be settled on it.
    async fn stop(&mut self) -> Result<(), BrokerError> {
        self.others = self.seen.beside(self.channels.len());
        for channel in &self.channels {
            let cancelled = channel.basic_cancel(self.lane.name().into(), BasicCancelOptions::default());
            within("unsubscribing", STEP_MAX, cancelled).await?;
        }
        Ok(())
    }

    /// Waits until the queue has every acknowledgement of ours.
    async fn settled(&self) -> Result<(), BrokerError> {
        if self.others > 0 {
            tokio::time::sleep(COMPANY_PAUSE).await;
        }
        while self.count().await? > self.others {
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    async fn count(&self) -> Result<usize, BrokerError> {
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
pub(super) async fn stop(ours: &mut [Consumers]) -> Result<(), BrokerError> {
    let all = ours.iter_mut().map(Consumers::stop);
    futures_util::future::try_join_all(all).await.map(|_| ())
}

/// Waits until the queues that we have stopped taking from have every acknowledgement of ours, or [`SETTLED_MAX`]. Who comes to a queue
/// meanwhile makes that longer.
pub(super) async fn settled(ours: &[Consumers]) {
    let lasting = ours.iter().filter(|it| it.lane != Lane::Probe);
    let all = futures_util::future::join_all(lasting.map(Consumers::settled));
    let _ = tokio::time::timeout(SETTLED_MAX, all).await;
}
