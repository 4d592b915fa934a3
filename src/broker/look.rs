//! Looks ahead in the bulk lane's queue: takes in what stands behind that which the lane's consumer may hold.
//!
//! By further consumers, each of which is cancelled once it has brought enough. A quorum queue hands 47 000 messages a second to
//! a consumer, and 1200 to one who fetches one after the other (`basic.get`, a command of the replicated log each).

use super::intake::{Origin, take};
use super::{BrokerError, BrokerEvent, within};
use crate::clock::{Clock, Moment};
use futures_util::StreamExt;
use lapin::Channel;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// Time after which a look takes no further step.
const LOOK_MAX: Duration = Duration::from_millis(500);
/// Longest time for one question to the broker.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// What the broker has sent is here after this time at most. What it sends behind the end of a step it would have to take back, and that
/// counts as a delivery.
const QUIET: Duration = Duration::from_millis(200);
/// A stop is heard after this time.
const TICK: Duration = Duration::from_millis(20);
/// Messages of the first step, which tells of their size, ...
const FIRST: usize = 16;
/// ... and of any: it may bring so many of a larger size than any before.
const STEP: usize = 256;

/// What is to be taken in beyond what a consumer holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// At most so many messages.
    pub(super) jobs: usize,
    /// And one in so many of those that are there when it begins.
    pub(super) one_in: usize,
    /// No further ones once they may come to need so much memory, in bytes.
    pub(super) memory: u64,
}

/// One of the further consumers. A queue counts it until it is cancelled and the last of its deliveries is settled.
#[derive(Debug)]
pub(super) struct Passing {
    /// Its deliveries that are not settled, and one until it is cancelled.
    open: AtomicUsize,
    /// All that are counted.
    counted: Arc<AtomicUsize>,
}

impl Passing {
    fn counted_in(counted: Arc<AtomicUsize>) -> Arc<Passing> {
        counted.fetch_add(1, Ordering::Relaxed);
        let open = AtomicUsize::new(1);
        Arc::new(Passing { open, counted })
    }

    fn delivers(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    /// One of its deliveries is settled, or it is cancelled.
    pub(super) fn settles(&self) {
        if self.open.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.counted.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Does one look after the other, until nobody asks for any.
pub(super) async fn run(
    origin: Origin,
    stopping: Arc<AtomicBool>,
    mut looks: mpsc::Receiver<Look>,
    events: mpsc::Sender<BrokerEvent>,
) -> Result<(), BrokerError> {
    let mut steps = 0;
    while let Some(look) = looks.recv().await {
        let heard = look_ahead(look, &origin, &stopping, &mut steps, &events).await?;
        if !heard || events.send(BrokerEvent::LookedAhead).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Takes step after step until enough is here, nothing is left, or time is up. False if nobody listens any more.
async fn look_ahead(
    look: Look,
    origin: &Origin,
    stopping: &AtomicBool,
    steps: &mut u64,
    events: &mpsc::Sender<BrokerEvent>,
) -> Result<bool, BrokerError> {
    let clock = Clock::start();
    let Look {
        mut jobs, mut memory, ..
    } = look;
    let (mut largest, mut begins) = (None, true);
    while !stopping.load(Ordering::Relaxed) && clock.now().since(Moment::ZERO) < LOOK_MAX {
        let Some(channel) = origin.channel.upgrade() else {
            break;
        };
        let fitting = largest.map_or(FIRST, |largest: u64| {
            usize::try_from(memory / largest.max(1)).unwrap_or(usize::MAX)
        });
        let ready = ready(&channel, origin).await?;
        if std::mem::take(&mut begins) {
            jobs = jobs.min(ready.div_ceil(look.one_in));
        }
        let most = ready.min(jobs).min(fitting).min(STEP);
        if most == 0 {
            break;
        }
        *steps += 1;
        let Some(came) = step(&channel, most as u16, *steps, origin, stopping, events).await? else {
            return Ok(false);
        };
        jobs = jobs.saturating_sub(came.len());
        memory = memory.saturating_sub(came.iter().sum());
        largest = largest.max(came.iter().max().copied());
        // Somebody else was quicker.
        if came.len() < most {
            break;
        }
    }
    Ok(true)
}

/// How many messages nobody has taken.
async fn ready(channel: &Channel, origin: &Origin) -> Result<usize, BrokerError> {
    let passive = QueueDeclareOptions::default().passive();
    let asked = channel.queue_declare(origin.queue.as_ref().into(), passive, FieldTable::default());
    let state = within("looking ahead", ANSWER_MAX, asked).await?;
    Ok(state.message_count() as usize)
}

/// Takes in `most` messages, or as many as come: what memory each may come to need, in bytes. `None` if nobody listens any more.
async fn step(
    channel: &Channel,
    most: u16,
    number: u64,
    origin: &Origin,
    stopping: &AtomicBool,
    events: &mpsc::Sender<BrokerEvent>,
) -> Result<Option<Vec<u64>>, BrokerError> {
    let tag = format!("{}.ahead-{number}", origin.lane.name());
    // Holds for consumers that begin behind it on this channel.
    let set = channel.basic_qos(most, BasicQosOptions::default());
    within("looking ahead", ANSWER_MAX, set).await?;
    let passing = Passing::counted_in(origin.passing.clone());
    let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
    let subscribed = channel.basic_consume(origin.queue.as_ref().into(), tag.as_str().into(), options, none);
    let mut consumer = within("looking ahead", ANSWER_MAX, subscribed).await?;
    let (mut came, mut quiet, mut cancelled) = (Vec::new(), Duration::ZERO, false);
    loop {
        match tokio::time::timeout(TICK, consumer.next()).await {
            Ok(Some(delivery)) => {
                quiet = Duration::ZERO;
                passing.delivers();
                let delivery = delivery.map_err(BrokerError::lapin("looking ahead"))?;
                let Some(needs) = take(delivery, Some(passing.clone()), origin, events).await? else {
                    return Ok(None);
                };
                came.push(needs);
            }
            // It is cancelled, and all that it was sent is here.
            Ok(None) => break,
            Err(_) => quiet += TICK,
        }
        let enough = came.len() >= usize::from(most) || quiet >= QUIET || stopping.load(Ordering::Relaxed);
        if enough && !cancelled {
            cancelled = true;
            let cancel = channel.basic_cancel(tag.as_str().into(), BasicCancelOptions::default());
            within("looking ahead", ANSWER_MAX, cancel).await?;
        }
    }
    passing.settles();
    Ok(Some(came))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passing_consumer_is_counted_until_all_is_settled() {
        let counted = Arc::new(AtomicUsize::new(0));
        let [one, other] = [(); 2].map(|()| Passing::counted_in(counted.clone()));
        let now = || counted.load(Ordering::Relaxed);
        assert_eq!(now(), 2);
        one.delivers();
        one.settles();
        assert_eq!(now(), 2, "it may be cancelled first");
        one.settles();
        assert_eq!(now(), 1);
        other.settles();
        assert_eq!(now(), 0, "it has brought nothing");
    }
}
