//! The channels that answers go out on, and which of them an answer takes.
//!
//! RabbitMQ handles the messages of one channel one after the other, and a queue that cannot take its message (a
//! quorum queue without a leader) holds up all that lies behind it: 65 s for each message on 3.10.8. So answers
//! are spread over several channels by the queue they go to; the queue that was found to hold up its channel
//! goes to one apart, where it can only harm its like; and the channel that it held up is left for a new one.

use super::blocked::Blocked;
use super::{BrokerError, session};
use crate::clock::{Clock, Moment};
use lapin::{Channel, Connection};
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Channels for queues that take what they are given. An eighth of the queues waits once for one that does not.
const SOUND: usize = 8;
/// The channel for those that did not.
const APART: usize = SOUND;
/// The channel for queues of ours.
const OURS: usize = SOUND + 1;
/// Pause between looks whether the broker takes messages again.
const BLOCKED_PAUSE: Duration = Duration::from_millis(200);
/// How long a queue that did not take its message stays apart.
const APART_FOR: Duration = Duration::from_secs(60);
/// Queues that are remembered as such; with more, the one that was longest so is forgotten.
const APART_MAX: usize = 256;
/// How long the broker may take to close a channel that is left: it works off what lies in it first.
const CLOSE_MAX: Duration = Duration::from_secs(300);

/// Every channel that answers may take, of one session.
pub(super) struct Ways {
    connection: Arc<Connection>,
    blocked: Blocked,
    ways: [Way; SOUND + 2],
    /// Queues that did not take a message, and when.
    apart: Mutex<HashMap<String, Moment>>,
    clock: Clock,
    /// Answers of the broker on any of them.
    confirms: AtomicU64,
}

struct Way {
    channel: tokio::sync::Mutex<Option<Channel>>,
    /// Counts the channels that were left.
    left: watch::Sender<u64>,
}

/// A channel to publish on, as long as nobody has left it.
pub(super) struct Passage {
    pub channel: Channel,
    way: usize,
    left: watch::Receiver<u64>,
}

impl Passage {
    /// Waits until the channel has been left.
    pub async fn left(&mut self) {
        // The sender lives as long as the session; without it nobody leaves anything.
        if self.left.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Ways {
    /// On this connection; a channel is opened when it is first wanted.
    pub fn on(connection: Arc<Connection>, blocked: Blocked) -> Ways {
        Ways {
            connection,
            blocked,
            ways: std::array::from_fn(|_| Way {
                channel: tokio::sync::Mutex::default(),
                left: watch::Sender::new(0),
            }),
            apart: Mutex::default(),
            clock: Clock::start(),
            confirms: AtomicU64::new(0),
        }
    }

    /// The channel for messages to this queue.
    pub async fn to(&self, queue: &str) -> Result<Passage, BrokerError> {
        let way = if self.is_apart(queue) {
            APART
        } else {
            hash(queue) % SOUND
        };
        self.open(way).await
    }

    /// The channel for messages to queues of ours.
    pub async fn to_ours(&self) -> Result<Passage, BrokerError> {
        self.open(OURS).await
    }

    async fn open(&self, way: usize) -> Result<Passage, BrokerError> {
        let Way { channel, left } = &self.ways[way];
        let mut place = channel.lock().await;
        // Told apart from the next under the lock: who leaves a channel holds it too.
        let left = left.subscribe();
        let channel = match &*place {
            Some(channel) => channel.clone(),
            None => place.insert(self.channel().await?).clone(),
        };
        Ok(Passage { channel, way, left })
    }

    /// A new channel. While the broker blocks us the library writes nothing, and an opening would wait in vain.
    async fn channel(&self) -> Result<Channel, BrokerError> {
        loop {
            while self.blocked.is_set() {
                tokio::time::sleep(BLOCKED_PAUSE).await;
            }
            let changes = self.blocked.changes();
            match session::confirming(&self.connection).await {
                Err(BrokerError::Timeout { .. }) if self.blocked.was_set_since(changes) => {}
                opened => return opened,
            }
        }
    }

    /// `queue` has not taken what came by this passage: the next goes apart, and whoever waits behind it on
    /// the same channel takes another. False if someone before has left the channel already: then the
    /// queue had no chance, and may try again.
    pub async fn leave(&self, passage: &Passage, queue: &str) -> bool {
        let way = &self.ways[passage.way];
        let mut place = way.channel.lock().await;
        if passage.left.has_changed().unwrap_or(true) {
            return false;
        }
        self.set_apart(queue);
        if let Some(channel) = place.take() {
            tokio::spawn(async move {
                let _ = tokio::time::timeout(CLOSE_MAX, channel.close(200, "left".into())).await;
            });
        }
        way.left.send_modify(|left| *left += 1);
        true
    }

    /// The broker answered for a message to this queue.
    pub fn confirmed(&self, queue: &str) {
        self.confirms.fetch_add(1, Ordering::Relaxed);
        let mut apart = self.apart();
        if !apart.is_empty() {
            apart.remove(queue);
        }
    }

    /// How often the broker has answered.
    pub fn confirms(&self) -> u64 {
        self.confirms.load(Ordering::Relaxed)
    }

    /// Whether the queue did not take a message lately.
    pub fn is_apart(&self, queue: &str) -> bool {
        let now = self.clock.now();
        let mut apart = self.apart();
        apart.retain(|_, since| now.since(*since) < APART_FOR);
        apart.contains_key(queue)
    }

    fn set_apart(&self, queue: &str) {
        let mut apart = self.apart();
        if apart.len() >= APART_MAX
            && let Some(longest) = apart
                .iter()
                .min_by_key(|(_, since)| **since)
                .map(|(name, _)| name.clone())
        {
            apart.remove(&longest);
        }
        apart.insert(queue.to_owned(), self.clock.now());
    }

    fn apart(&self) -> std::sync::MutexGuard<'_, HashMap<String, Moment>> {
        self.apart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hash(queue: &str) -> usize {
    let mut hasher = DefaultHasher::new();
    queue.hash(&mut hasher);
    hasher.finish() as usize
}
