//! The caller's side of the wire: jobs out, answers in, each matched by its correlation id. For commands
//! such as `submit`; the service itself never uses it. Every await on the broker has a deadline, a lost
//! connection is an error for all who wait, and nothing reconnects behind the caller's back.

use super::is_not_found;
use super::publish::{self, Blocked};
use super::{BrokerError, Published, session, within};
use crate::clock::Clock;
use crate::config::BrokerConfig;
use crate::job::reply::{HEADER_FINGERPRINT, Received, TYPE_ERROR, TYPE_RESULT};
use crate::job::{Lane, Names};
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicConsumeOptions, BasicQosOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, Consumer, Event};
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::oneshot;

/// Longest time for one step of connecting.
const STEP_MAX: Duration = Duration::from_secs(5);
/// Longest time for saying good-bye.
const CLOSE_MAX: Duration = Duration::from_secs(1);
/// Answers that the broker may send ahead of their being read.
const PREFETCH: u16 = 64;

/// Why a job got no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The connection failed, or the broker did not answer in time.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The connection was lost while the job was on its way.
    #[error("lost the connection to the broker: {0}")]
    Lost(String),
    /// The publication came back: there is no such queue.
    #[error("queue {0} does not exist: no service has ever run with this broker and prefix")]
    NoQueue(String),
    /// The broker would not take the job.
    #[error("queue {0} is full")]
    Full(String),
    /// Nothing came in time.
    #[error("no answer within {:.1} s", .0.as_secs_f64())]
    Silence(Duration),
    /// What came is not what the contract says.
    #[error("the answer cannot be read: {0}")]
    Unreadable(String),
}

/// An answer as it came.
#[derive(Debug)]
pub struct Reply {
    /// Vectors or an error.
    pub received: Received,
    /// `x-model-fingerprint`; equal fingerprints mean comparable vectors.
    pub fingerprint: Option<String>,
}

/// A connection with a reply queue of its own.
pub struct Client {
    connection: Connection,
    channel: Channel,
    queue: String,
    replies: String,
    clock: Clock,
    blocked: Blocked,
    waiting: Arc<Mutex<Waiting>>,
    /// Reads the answers, and what the broker says of the connection.
    tasks: tokio::task::JoinSet<()>,
}

/// Who waits for which answer, or why there will be none.
#[derive(Default)]
struct Waiting {
    by_id: HashMap<String, oneshot::Sender<Result<Reply, String>>>,
    lost: Option<String>,
    answers: u64,
}

impl Client {
    /// Connects, and makes an exclusive queue for the answers.
    pub async fn connect(config: &BrokerConfig, lane: Lane, name: &str) -> Result<Client, BrokerError> {
        let names = Names::new(&config.prefix);
        let queue = match lane {
            Lane::Interactive => names.interactive,
            Lane::Bulk => names.bulk,
            Lane::Probe | Lane::Resumed => unreachable!("this lane belongs to the service"),
        };
        let connection = session::connect(config, name).await?;
        let channel = session::channel(&connection).await?;
        within(
            "selecting confirms",
            STEP_MAX,
            channel.confirm_select(ConfirmSelectOptions::default()),
        )
        .await?;
        let exclusive = QueueDeclareOptions::exclusive().auto_delete();
        let declared = channel.queue_declare("".into(), exclusive, FieldTable::default());
        let declared = within("declaring the reply queue", STEP_MAX, declared).await?;
        let replies = declared.name().to_string();
        within(
            "setting the prefetch",
            STEP_MAX,
            channel.basic_qos(PREFETCH, BasicQosOptions::default()),
        )
        .await?;
        let subscribed = channel.basic_consume(
            replies.as_str().into(),
            "".into(),
            BasicConsumeOptions {
                exclusive: true,
                ..Default::default()
            },
            FieldTable::default(),
        );
        let consumer = within("subscribing", STEP_MAX, subscribed).await?;
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let blocked = Blocked::default();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(listen(consumer, waiting.clone()));
        tasks.spawn(watch(connection.events_listener(), blocked.clone()));
        Ok(Client {
            connection,
            channel,
            queue,
            replies,
            clock: Clock::start(),
            blocked,
            waiting,
            tasks,
        })
    }

    /// The queue that jobs go to.
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// How many answers have come so far, to whatever job.
    pub fn answers(&self) -> u64 {
        self.lock().answers
    }

    /// How many services consume the queue; `None` if there is no such queue.
    pub async fn consumers(&self) -> Result<Option<u32>, BrokerError> {
        // A question about a missing queue costs the channel, so it gets one of its own.
        let channel = session::channel(&self.connection).await?;
        let passive = QueueDeclareOptions::durable().passive();
        let answer = channel.queue_declare(self.queue.as_str().into(), passive, FieldTable::default());
        match within("looking for the service", STEP_MAX, answer).await {
            Ok(queue) => {
                let _ = tokio::time::timeout(CLOSE_MAX, channel.close(200, "done".into())).await;
                Ok(Some(queue.consumer_count()))
            }
            Err(BrokerError::Lapin { source, .. }) if is_not_found(&source) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends a job and waits for its answer. Cancelling is safe: a late answer finds nobody and is dropped.
    pub async fn ask(&self, id: &str, body: &[u8], patience: Duration) -> Result<Reply, AskError> {
        let (sender, answer) = oneshot::channel();
        let _place = self.wait_for(id, sender)?;
        let mut headers = FieldTable::default();
        let patience_ms = i64::try_from(patience.as_millis()).unwrap_or(i64::MAX);
        let sent_at_ms = i64::try_from(self.clock.unix_ms()).unwrap_or(i64::MAX);
        headers.insert("x-budget-ms".into(), AMQPValue::LongLongInt(patience_ms));
        headers.insert("x-sent-at-ms".into(), AMQPValue::LongLongInt(sent_at_ms));
        let properties = BasicProperties::default()
            .with_reply_to(self.replies.as_str().into())
            .with_correlation_id(id.into())
            .with_message_id(id.into())
            .with_content_type("application/json".into())
            .with_delivery_mode(publish::PERSISTENT)
            .with_headers(headers);
        let round = async {
            match publish::send(
                &self.channel,
                &self.blocked,
                &self.queue,
                body,
                properties,
                publish::CONFIRM_MAX,
            )
            .await?
            {
                // Unconfirmed is not lost: the answer may come all the same.
                Published::Routed | Published::Unconfirmed => {}
                Published::Returned => return Err(AskError::NoQueue(self.queue.clone())),
                Published::Rejected => return Err(AskError::Full(self.queue.clone())),
            }
            match answer.await {
                Ok(Ok(reply)) => Ok(reply),
                Ok(Err(unreadable)) => Err(AskError::Unreadable(unreadable)),
                Err(_) => Err(AskError::Lost(self.lost().unwrap_or_default())),
            }
        };
        match tokio::time::timeout(patience, round).await {
            Ok(result) => result,
            Err(_) => Err(AskError::Silence(patience)),
        }
    }

    /// Says good-bye, within a second.
    pub async fn close(mut self) {
        self.tasks.abort_all();
        let _ = tokio::time::timeout(CLOSE_MAX, self.connection.close(200, "bye".into())).await;
    }

    fn wait_for(
        &self,
        id: &str,
        sender: oneshot::Sender<Result<Reply, String>>,
    ) -> Result<Place<'_>, AskError> {
        let mut waiting = self.lock();
        if let Some(cause) = &waiting.lost {
            return Err(AskError::Lost(cause.clone()));
        }
        waiting.by_id.insert(id.to_owned(), sender);
        Ok(Place {
            client: self,
            id: id.to_owned(),
        })
    }

    fn lost(&self) -> Option<String> {
        self.lock().lost.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("nothing panics under this lock")
    }
}

/// A place among those who wait, given up when dropped.
struct Place<'a> {
    client: &'a Client,
    id: String,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.client.lock().by_id.remove(&self.id);
    }
}

/// Hands answers to those who wait, until the connection ends; then nobody waits any longer.
async fn listen(mut consumer: Consumer, waiting: Arc<Mutex<Waiting>>) {
    let cause = loop {
        match consumer.next().await {
            None => break "the reply queue was deleted".to_owned(),
            Some(Err(error)) => break error.to_string(),
            Some(Ok(delivery)) => {
                let acked = tokio::time::timeout(STEP_MAX, delivery.acker.ack(Default::default())).await;
                match acked {
                    Ok(Ok(_)) => hand_over(&delivery, &waiting),
                    Ok(Err(error)) => break error.to_string(),
                    Err(_) => break "no progress in writing".to_owned(),
                }
            }
        }
    };
    let mut waiting = waiting.lock().expect("nothing panics under this lock");
    waiting.lost = Some(cause);
    waiting.by_id.clear();
}

/// A broker that says it blocks publishers is waited for, as long as each job's patience lasts.
async fn watch(events: impl futures_util::Stream<Item = Event>, blocked: Blocked) {
    tokio::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Event::ConnectionBlocked(_) => blocked.store(true, Ordering::Relaxed),
            Event::ConnectionUnblocked => blocked.store(false, Ordering::Relaxed),
            _ => {}
        }
    }
}

fn hand_over(delivery: &Delivery, waiting: &Mutex<Waiting>) {
    let kind = delivery.properties.kind().as_ref().map(ShortString::as_str);
    let id = delivery
        .properties
        .correlation_id()
        .as_ref()
        .map(ShortString::as_str);
    let (Some(TYPE_RESULT | TYPE_ERROR), Some(id)) = (kind, id) else {
        return;
    };
    let reply = serde_json::from_slice(&delivery.data)
        .map_err(|error| error.to_string())
        .map(|received| Reply {
            received,
            fingerprint: fingerprint(&delivery.properties),
        });
    let mut waiting = waiting.lock().expect("nothing panics under this lock");
    waiting.answers += 1;
    if let Some(sender) = waiting.by_id.remove(id) {
        // Whoever waited may have given up a moment ago.
        let _ = sender.send(reply);
    }
}

fn fingerprint(properties: &BasicProperties) -> Option<String> {
    match properties.headers().as_ref()?.inner().get(HEADER_FINGERPRINT)? {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        _ => None,
    }
}
