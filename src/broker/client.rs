//! The caller's side of the wire: jobs out, answers in. For commands such as `submit`; the service itself never
//! uses it. Every await on the broker has a deadline, and nothing reconnects behind the caller's back: when a
//! connection is lost its channel of notes says so and ends, and the caller opens another.

use super::blocked::Blocked;
use super::publish;
use super::{BrokerError, OPEN_MAX, Published, is_not_found, session, within};
use crate::clock::Clock;
use crate::config::BrokerConfig;
use crate::job::received::{self, Heard};
use crate::job::reply::HEADER_FINGERPRINT;
use crate::job::{Lane, Names};
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, Consumer, Event};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Longest time for one step of connecting.
const STEP_MAX: Duration = Duration::from_secs(5);
/// Longest time for saying good-bye.
const CLOSE_MAX: Duration = Duration::from_secs(1);
/// Answers that the broker may send ahead of their being read.
const PREFETCH: u16 = 64;
/// Answers that are read and not yet looked at; while there are so many, no further one is taken from the broker.
const NOTES: usize = 16;

/// What comes over a connection.
#[derive(Debug)]
pub enum Note {
    /// A message for a job.
    Heard {
        /// The job.
        id: String,
        /// `x-model-fingerprint`; equal fingerprints mean comparable vectors.
        fingerprint: Option<Arc<str>>,
        /// What it says, or why it cannot be read.
        heard: Result<Heard, String>,
    },
    /// The connection is lost, and no further note will come.
    Lost(String),
}

/// A connection with a reply queue of its own.
pub struct Client {
    connection: Connection,
    channel: Channel,
    queue: String,
    replies: String,
    blocked: Blocked,
    /// Reads the answers, and what the broker says of the connection. They end when the client is dropped.
    _tasks: tokio::task::JoinSet<()>,
}

impl Client {
    /// Connects, and makes an exclusive queue for the answers.
    pub async fn connect(
        config: &BrokerConfig,
        lane: Lane,
        name: &str,
    ) -> Result<(Client, mpsc::Receiver<Note>), BrokerError> {
        match tokio::time::timeout(OPEN_MAX, Client::open(config, lane, name)).await {
            Ok(opened) => opened,
            Err(_) => Err(BrokerError::Timeout {
                doing: "opening a session",
                limit: OPEN_MAX,
            }),
        }
    }

    async fn open(
        config: &BrokerConfig,
        lane: Lane,
        name: &str,
    ) -> Result<(Client, mpsc::Receiver<Note>), BrokerError> {
        let names = Names::new(&config.prefix);
        let queue = match lane {
            Lane::Interactive => names.interactive,
            Lane::Bulk => names.bulk,
            Lane::Probe | Lane::Resumed => unreachable!("this lane belongs to the service"),
        };
        let connection = session::connect(config, name).await?;
        let channel = session::confirming(&connection).await?;
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
        let (sender, notes) = mpsc::channel(NOTES);
        let blocked = Blocked::default();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(listen(consumer, sender));
        tasks.spawn(watch(connection.events_listener(), blocked.clone()));
        let client = Client {
            connection,
            channel,
            queue,
            replies,
            blocked,
            _tasks: tasks,
        };
        Ok((client, notes))
    }

    /// The queue that jobs go to.
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// Whether the broker says that it takes no messages (memory or disk alarm).
    pub fn is_blocked(&self) -> bool {
        self.blocked.is_set()
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

    /// Sends a job, and waits until the broker has it. Its answers come as notes. With a `budget` the service does
    /// not begin it later than that.
    pub async fn send(
        &self,
        id: &str,
        body: &[u8],
        budget: Option<Duration>,
    ) -> Result<Published, BrokerError> {
        let whole = |value: u128| AMQPValue::LongLongInt(i64::try_from(value).unwrap_or(i64::MAX));
        let mut headers = FieldTable::default();
        if let Some(budget) = budget {
            headers.insert("x-budget-ms".into(), whole(budget.as_millis()));
            headers.insert("x-sent-at-ms".into(), whole(Clock::unix_ms().into()));
        }
        let properties = BasicProperties::default()
            .with_reply_to(self.replies.as_str().into())
            .with_correlation_id(id.into())
            .with_message_id(id.into())
            .with_content_type("application/json".into())
            .with_delivery_mode(publish::PERSISTENT)
            .with_headers(headers);
        let (channel, limit) = (&self.channel, publish::CONFIRM_MAX);
        publish::send(channel, &self.blocked, &self.queue, body, properties, Some(limit)).await
    }

    /// Says good-bye, within a second.
    pub async fn close(&self) {
        let _ = tokio::time::timeout(CLOSE_MAX, self.connection.close(200, "bye".into())).await;
    }
}

/// Hands on what comes, until the connection ends.
async fn listen(mut consumer: Consumer, notes: mpsc::Sender<Note>) {
    let cause = loop {
        match consumer.next().await {
            None => break "the reply queue was deleted".to_owned(),
            Some(Err(error)) => break error.to_string(),
            Some(Ok(delivery)) => {
                let acked = tokio::time::timeout(STEP_MAX, delivery.acker.ack(Default::default())).await;
                match acked {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => break error.to_string(),
                    Err(_) => break "no progress in writing".to_owned(),
                }
                if let Some(note) = note(&delivery)
                    && notes.send(note).await.is_err()
                {
                    return;
                }
            }
        }
    };
    let _ = notes.send(Note::Lost(cause)).await;
}

/// A broker that says it blocks publishers is waited for, as long as the caller's patience lasts.
async fn watch(events: impl futures_util::Stream<Item = Event>, blocked: Blocked) {
    tokio::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Event::ConnectionBlocked(_) => blocked.set(true),
            Event::ConnectionUnblocked => blocked.set(false),
            _ => {}
        }
    }
}

/// What a delivery says; `None` if it is none of ours.
fn note(delivery: &Delivery) -> Option<Note> {
    let text = |value: &Option<ShortString>| value.as_ref().map(|text| text.as_str().to_owned());
    let kind = text(delivery.properties.kind())?;
    let id = text(delivery.properties.correlation_id())?;
    let heard = received::read(&kind, &delivery.data)?;
    let fingerprint = fingerprint(&delivery.properties);
    Some(Note::Heard {
        id,
        fingerprint,
        heard,
    })
}

fn fingerprint(properties: &BasicProperties) -> Option<Arc<str>> {
    match properties.headers().as_ref()?.inner().get(HEADER_FINGERPRINT)? {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into()),
        _ => None,
    }
}
