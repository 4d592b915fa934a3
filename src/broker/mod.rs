//! The way to RabbitMQ and back. The only module that names lapin; it decides nothing about jobs.
//!
//! [`start`] runs one task that keeps a `session` with the broker: two connections (a broker that
//! blocks publishers must not stop acknowledgements), consumers, a publisher and a prober. When any
//! part of a session fails the whole session ends, and a fresh one begins after a pause; nothing of an
//! old session is ever used in a new one. lapin's own recovery stays off: see `docs/design`.

mod announce;
mod blocked;
pub mod client;
mod connect;
mod copies;
pub mod dead;
mod direct;
mod farewell;
pub mod hear;
mod intake;
mod look;
pub mod probe;
mod publish;
mod session;
mod topology;
mod ways;

pub use direct::Direct;
pub use intake::{Arrival, Receipt};
pub use publish::{Content, Publication, ReplyBody};
pub use topology::PAUSES;

use crate::clock::{Clock, millis};
use crate::config::{BrokerConfig, MAX_QUEUE_MAX};
use crate::job::request::RequestLimits;
use crate::job::{JobKey, Lane};
use rand::Rng;
use std::hash::RandomState;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::{info, warn};

/// First pause after a failed attempt; doubles up to [`PAUSE_MAX`], and the real pause is drawn evenly
/// from zero to it, so that a fleet does not come back in lockstep (full jitter).
const PAUSE_FIRST: Duration = Duration::from_millis(200);
/// Longest pause between attempts.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// After a session was lost, pauses are at most this part of `disconnect_kill_ms`: a broker that is back in time must
/// be found in time.
const PAUSE_SHARE: u32 = 8;
/// A session that held this long was a good one: the next pause is a first pause again. One that falls at
/// once, over and over, is retried ever more slowly.
const STABLE: Duration = Duration::from_secs(10);
/// Longest time for writing one acknowledgement.
const ACK_MAX: Duration = Duration::from_secs(5);
/// Longest time for connecting, declaring and subscribing together. RabbitMQ's own handshake limit is 10 s.
const OPEN_MAX: Duration = Duration::from_secs(8);

/// Why there is no session, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The client library failed: the network, a protocol error, or a refusal by the broker.
    #[error("{doing}: {source}")]
    Lapin {
        /// What was under way.
        doing: &'static str,
        /// What the library says.
        source: Box<lapin::Error>,
    },
    /// The broker did not answer in time.
    #[error("{doing}: no answer within {} ms", .limit.as_millis())]
    Timeout {
        /// What was under way.
        doing: &'static str,
        /// The deadline.
        limit: Duration,
    },
    /// The URL does not parse. It is not repeated: it may hold a password.
    #[error("broker.url is not an AMQP URL: {0}")]
    Url(String),
    /// The file with the roots cannot be read.
    #[error("broker.ca_file {path}: {source}")]
    CaFile {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// A consumer ended: its queue was deleted, or the broker cancelled it.
    #[error("consumer of {0} was cancelled by the broker")]
    Cancelled(String),
    /// The broker answers, and knows nothing of a consumer of ours.
    #[error("consumer of lane {0} is missing from its queue")]
    ConsumerMissing(&'static str),
    /// A message to a queue of our own came back.
    #[error("queue {0} is gone")]
    QueueGone(String),
}

impl BrokerError {
    fn lapin(doing: &'static str) -> impl FnOnce(lapin::Error) -> BrokerError {
        move |source| BrokerError::Lapin {
            doing,
            source: Box::new(source),
        }
    }
}

/// Awaits an answer of the broker, but not for ever.
async fn within<T>(
    doing: &'static str,
    limit: Duration,
    answer: impl Future<Output = Result<T, lapin::Error>>,
) -> Result<T, BrokerError> {
    match tokio::time::timeout(limit, answer).await {
        Ok(result) => result.map_err(BrokerError::lapin(doing)),
        Err(_) => Err(BrokerError::Timeout { doing, limit }),
    }
}

/// How long a delivery may be held, as RabbitMQ says when one was held for longer: it closes the channel with "delivery
/// acknowledgement on channel 1 timed out. Timeout value used: 1800000 ms. …". There is no other way to ask for it by AMQP.
fn held_max(cause: &str) -> Option<Duration> {
    let (_, behind) = cause.split_once("acknowledgement on channel")?;
    let (_, value) = behind.split_once("Timeout value used: ")?;
    let digits = value.split_once(' ').map_or(value, |(digits, _)| digits);
    digits.parse().ok().map(Duration::from_millis)
}

fn is_not_found(error: &lapin::Error) -> bool {
    /// AMQP 0-9-1, reply code `not-found`.
    const NOT_FOUND: u16 = 404;
    matches!(error.kind(), lapin::ErrorKind::ProtocolError(error) if error.get_id() == NOT_FOUND)
}

/// Whether the broker ended a connection for a fault that it takes for its own.
fn is_internal(error: &BrokerError) -> bool {
    /// AMQP 0-9-1, reply code `internal-error`.
    const INTERNAL_ERROR: u16 = 541;
    let BrokerError::Lapin { source, .. } = error else {
        return false;
    };
    matches!(source.kind(), lapin::ErrorKind::ProtocolError(error) if error.get_id() == INTERNAL_ERROR)
}

/// What the broker task tells.
#[derive(Debug)]
pub enum BrokerEvent {
    /// No session yet, or none again: this attempt failed, the next follows after `pause`.
    Waiting {
        /// Attempts that failed in a row.
        attempts: u32,
        /// Why the last failed.
        cause: String,
        /// Until the next.
        pause: Duration,
    },
    /// A session stands.
    Up {
        /// Its number.
        session: u64,
        /// Whether the broker has the queues for jobs that go on.
        resumable: bool,
        /// Deliveries that may be unacknowledged in it, per lane.
        prefetch: [u16; Lane::COUNT],
    },
    /// The session is gone; no event of it will follow.
    Down {
        /// For how long the broker lets a delivery be held, if one was held for longer.
        held_max: Option<Duration>,
    },
    /// The broker answered.
    Proof,
    /// The broker told how a queue of ours stands.
    QueueSeen {
        /// Which queue.
        lane: Lane,
        /// Messages in it that nobody holds.
        ready: usize,
        /// Consumers that it has.
        consumers: usize,
    },
    /// The broker says that it takes no messages.
    Blocked {
        /// Its reason.
        reason: String,
    },
    /// It takes messages again.
    Unblocked,
    /// A large message of this lane is being read.
    Reading {
        /// The lane.
        lane: Lane,
    },
    /// It is read; its arrival follows.
    Read {
        /// The lane.
        lane: Lane,
    },
    /// A message came.
    Arrived(Box<Arrival>),
    /// What [`Command::LookAhead`] asked for has come, as far as there was anything.
    LookedAhead,
    /// The broker answered for a publication.
    Published {
        /// The job.
        job: JobKey,
        /// How.
        outcome: Published,
        /// Whether its delivery is being acknowledged: the job's last word is in a queue. [`BrokerEvent::Acked`] follows.
        acks: bool,
    },
    /// The acknowledgement is written.
    Acked {
        /// The job.
        job: JobKey,
    },
}

/// How the broker answered for a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// It is in a queue.
    Routed,
    /// There is no such queue.
    Returned,
    /// The broker would not take it.
    Rejected,
    /// The broker has not said in time.
    Unconfirmed,
}

/// What the broker task is asked.
#[derive(Debug)]
pub enum Command {
    /// Publish and report the broker's answer.
    Publish(Box<Publication>),
    /// Acknowledge.
    Ack {
        /// The job.
        job: JobKey,
        /// Its delivery.
        receipt: Receipt,
    },
    /// Give back to the queue.
    Requeue {
        /// Its delivery.
        receipt: Receipt,
    },
    /// Publish a canary to our own probe queue.
    SendCanary {
        /// Its body.
        body: Vec<u8>,
    },
    /// Publish to the exchange of events, as far as that costs nothing: nobody hears whether it arrived.
    Event {
        /// AMQP `type`.
        kind: &'static str,
        /// Where to.
        routing_key: String,
        /// Its body, JSON.
        body: Vec<u8>,
    },
    /// Take jobs that go on, if [`Setup::resume`] was set after the consumers were started.
    Resume,
    /// Take in messages of the bulk lane beyond what its consumer holds.
    LookAhead {
        /// The session that is meant.
        session: u64,
        /// At most so many.
        jobs: usize,
        /// And one in so many of those that are there.
        one_in: usize,
        /// No further one once they may come to need so much memory, in bytes.
        memory: u64,
    },
    /// Take no further deliveries.
    StopIntake,
    /// Give up the session with the broker and begin a new one.
    Reconnect {
        /// The session that is meant.
        session: u64,
        /// Whose consumer is missing.
        lane: Lane,
    },
}

/// What a session needs to know.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where.
    pub config: BrokerConfig,
    /// Deliveries that may be unacknowledged on the next connection.
    pub prefetch: Prefetch,
    /// Bounds on one request.
    pub request: RequestLimits,
    /// Age of the last proof at which the process ends; the prober is fast enough to be heard within it.
    pub disconnect_kill: Span,
    /// How long a reply queue may leave an answer unconfirmed while others confirm theirs.
    pub confirm_patience: Span,
    /// Whether jobs that go on are taken: what is delivered of them is charged with the death of the process, which at its
    /// start may have nothing to do with them.
    pub resume: Arc<AtomicBool>,
    /// What bodies are told apart by, over all sessions.
    pub hasher: RandomState,
    /// Names of direct reply-to that may have ended a session.
    pub direct: Arc<Direct>,
    /// Name of this connection, as shown by the broker's tools.
    pub name: String,
}

/// A limit as it is now: a reload may change it while a session runs.
#[derive(Clone, Debug)]
pub struct Span(Arc<AtomicU64>);

impl Span {
    /// Starts with `limit`.
    pub fn new(limit: Duration) -> Span {
        Span(Arc::new(AtomicU64::new(millis(limit))))
    }

    /// The limit is `limit` from now on.
    pub fn set(&self, limit: Duration) {
        self.0.store(millis(limit), Ordering::Relaxed);
    }

    fn get(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// Largest prefetch that a quorum queue honours (RabbitMQ, "Quorum queues", consumer prefetch). Where a lane is to have
/// more, it has several consumers, each on a channel of its own.
pub const CONSUMER_PREFETCH_MAX: usize = 2000;
/// Most consumers of the interactive queue. Each is some round trips before a session stands, and ten thousand jobs are as
/// many as can be handed back at a stop, or remembered over a cut.
const CONSUMERS_MAX: usize = 5;
/// Unacknowledged interactive jobs above `max_queue`, so that a flood meets refusals and not a wall: what is refused in the
/// time in which a refusal is confirmed and its delivery acknowledged.
pub const REFUSE_ROOM: usize = 256;
// A job above the largest `max_queue` must still be delivered, to be refused.
const _: () = assert!(MAX_QUEUE_MAX + REFUSE_ROOM <= CONSUMERS_MAX * CONSUMER_PREFETCH_MAX);

/// Deliveries that may be unacknowledged, per lane in the order of [`Lane::ALL`]. A reload may change it for the connections that
/// are yet to come: RabbitMQ goes by what held when a consumer began.
#[derive(Clone, Debug)]
pub struct Prefetch(Arc<Mutex<[u16; Lane::COUNT]>>);

impl Prefetch {
    /// Starts with so many.
    pub fn new(prefetch: [u16; Lane::COUNT]) -> Prefetch {
        Prefetch(Arc::new(Mutex::new(prefetch)))
    }

    /// So many from the next connection on. True if that is a change.
    pub fn set(&self, prefetch: [u16; Lane::COUNT]) -> bool {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *kept, prefetch) != prefetch
    }

    fn get(&self) -> [u16; Lane::COUNT] {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the broker task on the current runtime. It ends when `commands` is closed, and then has
/// closed its connections. `events` is bounded: a service that is slow to listen slows its own intake.
pub fn start(
    setup: Setup,
    events: mpsc::Sender<BrokerEvent>,
    mut commands: mpsc::Receiver<Command>,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let clock = Clock::start();
        let (mut attempts, mut had_one) = (0u32, false);
        let mut nodes = connect::Nodes::default();
        for number in 1u64.. {
            let cause = match tokio::time::timeout(OPEN_MAX, session::open(&setup, number, &mut nodes)).await
            {
                Ok(Ok(session)) => {
                    info!(session = number, "connected to the broker");
                    let opened = clock.now();
                    had_one = true;
                    let up = BrokerEvent::Up {
                        session: number,
                        resumable: session.resumable,
                        prefetch: session.prefetch,
                    };
                    if events.send(up).await.is_err() {
                        return;
                    }
                    let end = session.run(&events, &mut commands).await;
                    let Err(cause) = end else { return };
                    warn!(session = number, cause = %cause, "lost the broker");
                    setup.direct.session_ended(&cause);
                    if clock.now().since(opened) >= STABLE {
                        attempts = 0;
                    }
                    if events
                        .send(BrokerEvent::Down {
                            held_max: held_max(&cause.to_string()),
                        })
                        .await
                        .is_err()
                    {
                        return;
                    }
                    cause
                }
                Ok(Err(cause)) => cause,
                Err(_) => BrokerError::Timeout {
                    doing: "opening a session",
                    limit: OPEN_MAX,
                },
            };
            let longest = if had_one {
                PAUSE_MAX.min(setup.disconnect_kill.get() / PAUSE_SHARE)
            } else {
                PAUSE_MAX
            };
            let ceiling = PAUSE_FIRST.saturating_mul(1 << attempts.min(8)).min(longest);
            let pause = rand::rng().random_range(Duration::ZERO..=ceiling);
            attempts += 1;
            let cause = cause.to_string();
            if events
                .send(BrokerEvent::Waiting {
                    attempts,
                    cause,
                    pause,
                })
                .await
                .is_err()
            {
                return;
            }
            if wait(pause, &mut commands).await.is_none() {
                return;
            }
        }
    })
}

/// Waits, throwing away what concerns sessions that are gone. `None` if the service is stopping.
async fn wait(pause: Duration, commands: &mut mpsc::Receiver<Command>) -> Option<()> {
    let pause = sleep(pause);
    tokio::pin!(pause);
    loop {
        tokio::select! {
            () = &mut pause => return Some(()),
            command = commands.recv() => drop(command?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_broker_says_how_long_a_delivery_may_be_held() {
        let said = "consuming embeddings.bulk: protocol error: AMQP soft error: PRECONDITION-FAILED: delivery acknowledgement on \
                    channel 3 timed out. Timeout value used: 60000 ms. This timeout value can be configured";
        assert_eq!(held_max(said), Some(Duration::from_secs(60)));
        assert_eq!(held_max("subscribing: no answer within 5000 ms"), None);
    }
}
