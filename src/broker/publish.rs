//! Answers out: encoded, published `mandatory`, and confirmed by the broker; and the acknowledgement that follows from
//! the confirm of a job's last word, and never comes before it.

use super::blocked::Blocked;
use super::copies::{dead_properties, moved_properties, text, whole};
use super::intake::Receipt;
use super::session::settle;
use super::ways::Ways;
use super::{BrokerError, BrokerEvent, Published, Setup};
use crate::job::checkpoint::Checkpoint;
use crate::job::reply::{
    APP_ID, Answer, HEADER_ATTEMPT, HEADER_FINGERPRINT, TYPE_CHUNK, TYPE_DONE, TYPE_ERROR, TYPE_PROGRESS,
    TYPE_RESULT, error_json,
};
use crate::job::reply_to::DIRECT_REPLY_TO;
use crate::job::trace::{HEADER_TRACEPARENT, TraceParent};
use crate::job::{JobKey, Lane, Refusal};
use futures_util::stream::{FuturesUnordered, StreamExt};
use lapin::options::BasicPublishOptions;
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::{info, warn};

/// Longest time from handing a message to the client library to the broker's confirm, not counting the
/// time during which the broker says that it blocks us.
pub(super) const CONFIRM_MAX: Duration = Duration::from_secs(15);
/// Pause before a queue of ours that does not take a message is tried again.
const PERSIST_PAUSE: Duration = Duration::from_secs(5);
/// Longest wait for its confirm: a third of the time for which RabbitMQ lets a delivery be held.
const PERSIST_MAX: Duration = Duration::from_secs(600);
/// Answers with more numbers than this are written on a thread where that may take its time.
const ENCODE_INLINE_NUMBERS: usize = 32 * 1024;
/// AMQP delivery mode 2: the message survives a restart of the broker if its queue does.
pub(super) const PERSISTENT: u8 = 2;

/// A message to publish for a job.
#[derive(Debug)]
pub struct Publication {
    /// The job.
    pub job: JobKey,
    /// Its delivery; a publication for a lost session is dropped.
    pub receipt: Receipt,
    /// What to publish, and where.
    pub content: Content,
}

/// What to publish, and where.
#[derive(Debug)]
pub enum Content {
    /// To the sender.
    Reply {
        /// The sender's queue.
        to: String,
        /// As in the request.
        correlation_id: Option<String>,
        /// The job's id.
        message_id: String,
        /// Which attempt this answer comes from.
        attempt: u32,
        /// As in the request.
        traceparent: Option<TraceParent>,
        /// What it says.
        body: ReplyBody,
    },
    /// The message, so that it goes on from there: to a queue of ours, until that takes it.
    Move {
        /// The queue.
        to: String,
        /// The job's id.
        message_id: String,
        /// How far it has come; `None` for one that goes back as it came.
        checkpoint: Option<Checkpoint>,
        /// What is left of it; `None` is the message's own body.
        body: Option<Vec<u8>>,
        /// Its place in a trace; `None` leaves it the one with which it came, if any.
        traceparent: Option<TraceParent>,
        /// Its caller's budget goes on to count from here (Unix ms) if the message does not say from when; `None` ends it.
        budget_from_ms: Option<u64>,
    },
    /// A copy of the message to the dead-letter queue.
    DeadLetter {
        /// Why.
        refusal: Refusal,
        /// Which attempt was the last.
        attempt: u32,
    },
}

/// What a sender is told.
#[derive(Debug)]
pub enum ReplyBody {
    /// All vectors, with their fingerprint.
    Result(Answer, String),
    /// Some of a streamed job's, with their fingerprint.
    Chunk(Answer, String),
    /// How far a streamed job is, in JSON. Nobody hears what became of it.
    Progress(Vec<u8>),
    /// The end of a streamed job, in JSON.
    Done(Vec<u8>),
    /// A refusal.
    Refusal(Refusal),
}

impl Content {
    /// Whether nothing is left to decide once it is in a queue: then the delivery is acknowledged at once.
    fn settles(&self) -> bool {
        use ReplyBody::{Chunk, Done, Progress, Refusal, Result};
        match self {
            Content::Reply { body, .. } => match body {
                Result(..) | Done(_) | Refusal(_) => true,
                Chunk(..) | Progress(_) => false,
            },
            Content::Move { .. } | Content::DeadLetter { .. } => false,
        }
    }
}

/// Publishes what comes, many at a time; ends with the first fault. `queue` is bounded, and so is what
/// is under way: each publication belongs to an unacknowledged delivery, and the prefetch bounds those.
pub(super) async fn run(
    press: Press,
    mut queue: mpsc::Receiver<Box<Publication>>,
    events: mpsc::Sender<BrokerEvent>,
) -> Result<(), BrokerError> {
    let mut under_way = FuturesUnordered::new();
    let mut acknowledging = FuturesUnordered::new();
    let mut open = true;
    while open || !under_way.is_empty() || !acknowledging.is_empty() {
        tokio::select! {
            publication = queue.recv(), if open => match publication {
                Some(publication) => under_way.push(press.publish(*publication)),
                None => open = false,
            },
            Some(done) = under_way.next(), if !under_way.is_empty() => {
                let Answered { job, outcome, receipt } = done?;
                let Some(job) = job else { continue };
                let receipt = receipt.filter(|_| outcome == Published::Routed);
                let acks = receipt.is_some();
                if events.send(BrokerEvent::Published { job, outcome, acks }).await.is_err() {
                    return Ok(());
                }
                acknowledging.extend(receipt.map(|receipt| settle(Some(job), receipt)));
            }
            Some(acknowledged) = acknowledging.next(), if !acknowledging.is_empty() => {
                let Some(job) = acknowledged? else { continue };
                if events.send(BrokerEvent::Acked { job }).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// The broker's answer for a publication.
struct Answered {
    /// The job, if somebody waits to hear of it.
    job: Option<JobKey>,
    outcome: Published,
    /// The delivery that it settles, if it does.
    receipt: Option<Receipt>,
}

/// What publishing needs.
pub(super) struct Press {
    /// For canaries' answers, so that nobody's queue can hold them up.
    pub own: Channel,
    /// For all others.
    pub ways: Arc<Ways>,
    /// Name of the dead-letter queue.
    pub dead: Arc<str>,
    pub blocked: Blocked,
    /// Queues of ours that take nothing at present.
    pub full: Full,
    pub setup: Setup,
}

/// Queues of ours that have refused what they were given, and have taken nothing since: each is told of once, however many
/// jobs wait for it.
#[derive(Debug, Default)]
pub(super) struct Full(Mutex<BTreeSet<String>>);

impl Full {
    /// The queue refused a message. True if it was not known to be full.
    fn refused(&self, queue: &str) -> bool {
        self.queues().insert(queue.to_owned())
    }

    /// The queue took a message. True if it was known to be full.
    fn took(&self, queue: &str) -> bool {
        self.queues().remove(queue)
    }

    fn queues(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Press {
    /// Publishes, and waits for the broker's answer.
    async fn publish(&self, publication: Publication) -> Result<Answered, BrokerError> {
        let Publication {
            job,
            receipt,
            content,
        } = publication;
        let unheard = matches!(
            &content,
            Content::Reply {
                body: ReplyBody::Progress(_),
                ..
            }
        );
        let job = (!unheard).then_some(job);
        let settled = content.settles().then(|| receipt.clone());
        let outcome = match content {
            Content::Reply {
                to,
                correlation_id,
                message_id,
                attempt,
                traceparent,
                body,
            } => {
                let mut headers = FieldTable::default();
                headers.insert(HEADER_ATTEMPT.into(), whole(u64::from(attempt)));
                if let Some(parent) = traceparent {
                    headers.insert(HEADER_TRACEPARENT.into(), text(parent.as_str()));
                }
                let (kind, bytes) = match body {
                    ReplyBody::Result(answer, fingerprint) => {
                        headers.insert(HEADER_FINGERPRINT.into(), text(&fingerprint));
                        (TYPE_RESULT, encode(answer).await?)
                    }
                    ReplyBody::Chunk(answer, fingerprint) => {
                        headers.insert(HEADER_FINGERPRINT.into(), text(&fingerprint));
                        (TYPE_CHUNK, encode(answer).await?)
                    }
                    ReplyBody::Progress(json) => (TYPE_PROGRESS, json),
                    ReplyBody::Done(json) => (TYPE_DONE, json),
                    ReplyBody::Refusal(refusal) => (TYPE_ERROR, error_json(&refusal)),
                };
                let mut properties = BasicProperties::default()
                    .with_app_id(APP_ID.into())
                    .with_type(kind.into())
                    .with_message_id(message_id.into())
                    .with_content_type("application/json".into())
                    .with_delivery_mode(PERSISTENT)
                    .with_headers(headers);
                if let Some(id) = correlation_id {
                    properties = properties.with_correlation_id(id.into());
                }
                // A canary's answer goes to the queue it came from, and is waited for as long as it takes: the
                // ledger judges how long that may be.
                if receipt.lane == Lane::Probe {
                    let outcome = send(&self.own, &self.blocked, &to, &bytes, properties, None).await?;
                    self.ways.confirmed(&to);
                    outcome
                } else {
                    self.deliver(&to, &bytes, properties).await?
                }
            }
            Content::Move {
                to,
                message_id,
                checkpoint,
                body,
                traceparent,
                budget_from_ms,
            } => {
                let mut properties =
                    moved_properties(&receipt, &message_id, checkpoint.as_ref(), budget_from_ms);
                if let Some(parent) = traceparent {
                    let mut headers = properties.headers().clone().unwrap_or_default();
                    headers.insert(HEADER_TRACEPARENT.into(), text(parent.as_str()));
                    properties = properties.with_headers(headers);
                }
                let body = body.as_ref().unwrap_or(&receipt.message.body);
                self.persist(&to, body, properties).await?;
                Published::Routed
            }
            Content::DeadLetter { refusal, attempt } => {
                let properties = dead_properties(&receipt, &refusal, attempt);
                self.persist(&self.dead, &receipt.message.body, properties)
                    .await?;
                Published::Routed
            }
        };
        Ok(Answered {
            job,
            outcome,
            receipt: settled,
        })
    }

    /// Publishes to a caller's queue. One that does not confirm although the broker confirms otherwise is
    /// given up; while the broker confirms nothing at all, nobody's queue is to blame, and the ledger judges.
    async fn deliver(
        &self,
        queue: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<Published, BrokerError> {
        let direct = &self.setup.direct;
        if direct.begins(queue) {
            let apart = direct.publish(&self.setup, &self.blocked, queue, body, properties);
            return Ok(apart.await);
        }
        loop {
            let mut passage = self.ways.to(queue).await?;
            let channel = passage.channel.clone();
            let patience = self.setup.confirm_patience.get().min(CONFIRM_MAX);
            let sent = send(&channel, &self.blocked, queue, body, properties.clone(), None);
            tokio::pin!(sent);
            loop {
                let (confirms, changes) = (self.ways.confirms(), self.blocked.changes());
                tokio::select! {
                    outcome = &mut sent => {
                        self.ways.confirmed(queue);
                        if outcome.is_ok() {
                            direct.answered(queue);
                        }
                        return outcome;
                    }
                    // It lay behind another message. What the broker has of it may yet arrive as well.
                    () = passage.left() => match self.ways.is_apart(queue) {
                        true => return Ok(Published::Unconfirmed),
                        false => break,
                    },
                    () = tokio::time::sleep(patience) => {}
                }
                if self.ways.confirms() == confirms || self.blocked.was_set_since(changes) {
                    continue;
                }
                if self.ways.leave(&passage, queue).await {
                    warn!(
                        queue,
                        waited_ms = patience.as_millis() as u64,
                        "a reply queue confirms nothing"
                    );
                    return Ok(Published::Unconfirmed);
                }
            }
        }
    }

    /// Publishes to a queue of ours. What it refuses is tried again; what it does not confirm might still arrive, and
    /// is not sent twice: after a long wait the session ends, and the delivery goes back.
    async fn persist(
        &self,
        queue: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<(), BrokerError> {
        loop {
            let channel = self.ways.to_ours().await?.channel;
            let sent = send(
                &channel,
                &self.blocked,
                queue,
                body,
                properties.clone(),
                Some(PERSIST_MAX),
            );
            match sent.await? {
                Published::Routed => {
                    self.ways.confirmed(queue);
                    if self.full.took(queue) {
                        info!(queue, "a queue of ours takes messages again");
                    }
                    return Ok(());
                }
                Published::Rejected => {
                    if self.full.refused(queue) {
                        let pause_s = PERSIST_PAUSE.as_secs();
                        warn!(
                            queue,
                            "a queue of ours takes nothing; trying again every {pause_s} s, for each job"
                        );
                    }
                    tokio::time::sleep(PERSIST_PAUSE).await;
                }
                // Gone: opening another session declares it again.
                Published::Returned | Published::Unconfirmed => {
                    return Err(BrokerError::QueueGone(queue.to_owned()));
                }
            }
        }
    }
}

/// Publishes to a queue by its name, and waits for the broker's answer; without a `patience`, for as long as it takes.
///
/// Direct reply-to is no queue: the broker hands such a message over and nonetheless returns it as
/// unroutable if it is `mandatory` (seen on 3.10.8). There the flag says nothing, and is left away.
pub(super) async fn send(
    channel: &Channel,
    blocked: &Blocked,
    queue: &str,
    body: &[u8],
    properties: BasicProperties,
    patience: Option<Duration>,
) -> Result<Published, BrokerError> {
    let options = BasicPublishOptions {
        mandatory: !queue.starts_with(DIRECT_REPLY_TO),
        immediate: false,
    };
    let confirmed = async {
        channel
            .basic_publish("".into(), queue.into(), options, body, properties)
            .await?
            .await
    };
    let confirmed = match patience {
        None => confirmed.await,
        Some(patience) => tokio::select! {
            confirmed = confirmed => confirmed,
            () = blocked.clear_for(patience) => return Ok(Published::Unconfirmed),
        },
    };
    Ok(match confirmed.map_err(BrokerError::lapin("publishing"))? {
        Confirmation::Ack(None) => Published::Routed,
        Confirmation::Ack(Some(_)) => Published::Returned,
        Confirmation::Nack(_) | Confirmation::NotRequested => Published::Rejected,
    })
}

async fn encode(answer: Answer) -> Result<Vec<u8>, BrokerError> {
    let numbers: usize = answer.vectors.iter().map(Vec::len).sum();
    if numbers <= ENCODE_INLINE_NUMBERS {
        return Ok(answer.to_json());
    }
    let writing = tokio::task::spawn_blocking(move || answer.to_json());
    match tokio::time::timeout(CONFIRM_MAX, writing).await {
        Ok(written) => Ok(written.expect("writing JSON cannot panic")),
        // The thread hangs; the job goes back to its queue with the session, and to another thread.
        Err(_) => Err(BrokerError::Timeout {
            doing: "writing an answer",
            limit: CONFIRM_MAX,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_is_told_of_once_until_it_takes_something() {
        let full = Full::default();
        assert!(!full.took("dead"), "never known to be full");
        assert_eq!([(); 3].map(|()| full.refused("dead")), [true, false, false]);
        assert!(full.refused("resumed"), "each by itself");
        assert_eq!([(); 2].map(|()| full.took("dead")), [true, false]);
        assert!(full.refused("dead"), "anew");
    }
}
