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
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(10);
/// Nothing is known of who else takes from a queue.
const UNKNOWN: usize = usize::MAX;

/// A queue that we take from.
#[derive(Clone)]
pub(super) struct Intake {
    pub(super) lane: Lane,
    queue: Arc<str>,
    /// One for each of our consumers.
    channels: Vec<Arc<Channel>>,
    /// Messages of it that were fetched and are not settled.
    fetched: Arc<AtomicUsize>,
    /// Its consumers that are not ours, when we took no more.
    others: Arc<AtomicUsize>,
}

impl Intake {
    /// From this queue, by no consumer yet.
    pub(super) fn of(lane: Lane, queue: Arc<str>) -> Intake {
        Intake {
            lane,
            queue,
            channels: Vec::new(),
            fetched: Arc::default(),
            others: Arc::new(AtomicUsize::new(UNKNOWN)),
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
    pub(super) async fn stop(self) -> Result<(), BrokerError> {
        let ours = self.channels.len() + self.fetched.load(Ordering::Relaxed);
        let all = self.consumers().await?;
        self.others.store(all.saturating_sub(ours), Ordering::Relaxed);
        for channel in &self.channels {
            let cancelled = channel.basic_cancel(self.lane.name().into(), BasicCancelOptions::default());
            within("unsubscribing", STEP_MAX, cancelled).await?;
        }
        Ok(())
    }

    /// Waits until the queue has every acknowledgement of ours.
    async fn settled(&self) -> Result<(), BrokerError> {
        let others = || self.others.load(Ordering::Relaxed);
        // What is unknown as yet is larger than any number.
        while others() == UNKNOWN || self.consumers().await? > others() {
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

/// Waits until the queues that we have stopped taking from have every acknowledgement of ours, or [`SETTLED_MAX`]. Who comes to a queue
/// meanwhile makes that longer.
pub(super) async fn settled(intakes: &[Intake]) {
    let lasting = intakes.iter().filter(|intake| intake.lane != Lane::Probe);
    let all = futures_util::future::join_all(lasting.map(Intake::settled));
    let _ = tokio::time::timeout(SETTLED_MAX, all).await;
}
