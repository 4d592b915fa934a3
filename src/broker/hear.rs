//! Ears at the exchange of events, for `embeddings top`; the service itself only speaks there.
//!
//! Two connections: one hears, the other sends echoes to it by the exchange. An echo that comes back proves the whole
//! way on which heartbeats come; and only who publishes is told when the broker takes no messages.
//! What waits for us at the broker is bounded in number, bytes and age, and what is read and not looked at, too.
//! Nothing reconnects behind the caller's back: a lost connection is told, and the caller opens another.

use super::{BrokerError, OPEN_MAX, is_not_found, session, topology, within};
use crate::config::BrokerConfig;
use crate::job::Names;
use crate::job::reply::APP_ID;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, Consumer, Event};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

/// AMQP `type` of an echo.
const TYPE_ECHO: &str = "embeddings.echo";
/// Longest time for one step of connecting, or for handing a message to the client library.
const STEP_MAX: Duration = Duration::from_secs(5);
/// Longest time for saying good-bye.
const CLOSE_MAX: Duration = Duration::from_secs(1);
/// Messages that the broker may send ahead.
const PREFETCH: u16 = 256;
/// Messages that are read and not yet looked at; while there are so many, no further one is taken.
const NOTES: usize = 64;
/// Messages, and their bytes, that wait at the broker; the oldest are dropped.
const WAITING_MAX: i32 = 10_000;
const WAITING_BYTES_MAX: i32 = 16 << 20;
/// And their age in milliseconds: an old heartbeat proves nothing.
const WAITING_MS_MAX: i32 = 2000;
/// Longest message that is looked at; a heartbeat has a twentieth of it.
const BODY_BYTES_MAX: usize = 16 << 10;
/// How often the consumers of the resumed queue are counted.
const COUNT_INTERVAL: Duration = Duration::from_secs(3);
/// AMQP 0-9-1, reply code `access-refused`.
const ACCESS_REFUSED: u16 = 403;

/// What is heard.
#[derive(Debug)]
pub enum Heard {
    /// A message.
    Message {
        /// Its routing key.
        key: String,
        /// Its body.
        body: Vec<u8>,
    },
    /// Our own echo came back.
    Echo,
    /// We have no right to publish, so no echo will come.
    Mute,
    /// The broker takes no messages (memory or disk alarm), or takes them again.
    Blocked(bool),
    /// So many consume the queue of resumed jobs, each worker once; `None` where there is no such queue.
    Consumers(Option<usize>),
    /// The connection is lost, and nothing more will come.
    Lost(String),
}

/// Why nothing can be heard.
#[derive(Debug, thiserror::Error)]
pub enum HearError {
    /// The connection failed, or the broker refused or did not answer in time.
    #[error("{0}; `embeddings check` says what to mend")]
    Broker(#[from] BrokerError),
    /// No service has ever run with this prefix.
    #[error("exchange {0} does not exist: no service has run with this broker and prefix")]
    NoExchange(String),
}

/// Open ears.
pub struct Ears {
    hearing: Connection,
    speaking: Connection,
    /// They end when the ears are dropped.
    _tasks: JoinSet<()>,
}

impl Ears {
    /// Connects, and hears what comes with one of these routing keys, with an echo at each `beat`.
    pub async fn open(
        config: &BrokerConfig,
        name: &str,
        keys: &[&str],
        beat: Duration,
    ) -> Result<(Ears, mpsc::Receiver<Heard>), HearError> {
        match timeout(OPEN_MAX, Ears::connect(config, name, keys, beat)).await {
            Ok(opened) => opened,
            Err(_) => Err(HearError::Broker(BrokerError::Timeout {
                doing: "opening a session",
                limit: OPEN_MAX,
            })),
        }
    }

    async fn connect(
        config: &BrokerConfig,
        name: &str,
        keys: &[&str],
        beat: Duration,
    ) -> Result<(Ears, mpsc::Receiver<Heard>), HearError> {
        let names = Names::new(&config.prefix);
        let hearing = session::connect(config, &format!("{name} hear")).await?;
        let channel = session::channel(&hearing).await?;
        match topology::events(&channel, &names, false).await {
            Err(BrokerError::Lapin { source, .. }) if is_not_found(&source) => {
                return Err(HearError::NoExchange(names.events));
            }
            looked => looked?,
        }
        let echo = format!("top.{:016x}", rand::random::<u64>());
        let consumer = subscribe(&channel, &names.events, keys, &echo).await?;
        let speaking = session::connect(config, &format!("{name} echo")).await?;
        let speaker = session::channel(&speaking).await?;
        let counter = session::channel(&hearing).await?;
        let (notes, heard) = mpsc::channel(NOTES);
        let mut tasks = JoinSet::new();
        tasks.spawn(listen(consumer, echo.clone(), notes.clone()));
        tasks.spawn(watch(speaking.events_listener(), notes.clone()));
        tasks.spawn(speak(speaker, names.events, echo, beat));
        tasks.spawn(count(counter, names.resumed, notes));
        let ears = Ears {
            hearing,
            speaking,
            _tasks: tasks,
        };
        Ok((ears, heard))
    }

    /// Says good-bye, within a second.
    pub async fn close(&self) {
        let both = async {
            let _ = self.hearing.close(200, "bye".into()).await;
            let _ = self.speaking.close(200, "bye".into()).await;
        };
        let _ = timeout(CLOSE_MAX, both).await;
    }
}

/// A queue of our own that goes with the connection, bound to the keys.
async fn subscribe(
    channel: &Channel,
    exchange: &str,
    keys: &[&str],
    echo: &str,
) -> Result<Consumer, BrokerError> {
    let mut bounds = FieldTable::default();
    for (name, value) in [
        ("x-max-length", WAITING_MAX),
        ("x-max-length-bytes", WAITING_BYTES_MAX),
        ("x-message-ttl", WAITING_MS_MAX),
    ] {
        bounds.insert(name.into(), AMQPValue::LongInt(value));
    }
    let exclusive = QueueDeclareOptions::exclusive().auto_delete();
    let declared = channel.queue_declare("".into(), exclusive, bounds);
    let declared = within("declaring our queue", STEP_MAX, declared).await?;
    let queue = declared.name().as_str();
    for key in keys.iter().copied().chain([echo]) {
        let bound = channel.queue_bind(
            queue.into(),
            exchange.into(),
            key.into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        within("binding our queue", STEP_MAX, bound).await?;
    }
    let prefetch = channel.basic_qos(PREFETCH, BasicQosOptions::default());
    within("setting the prefetch", STEP_MAX, prefetch).await?;
    let options = BasicConsumeOptions {
        exclusive: true,
        ..Default::default()
    };
    let subscribed = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default());
    within("subscribing", STEP_MAX, subscribed).await
}

/// Hands on what comes, until the connection ends.
async fn listen(mut consumer: Consumer, echo: String, notes: mpsc::Sender<Heard>) {
    let cause = loop {
        match consumer.next().await {
            None => break "our queue was deleted".to_owned(),
            Some(Err(error)) => break error.to_string(),
            Some(Ok(delivery)) => {
                match timeout(STEP_MAX, delivery.acker.ack(Default::default())).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => break error.to_string(),
                    Err(_) => break "no progress in writing".to_owned(),
                }
                if let Some(note) = note(delivery, &echo)
                    && notes.send(note).await.is_err()
                {
                    return;
                }
            }
        }
    };
    let _ = notes.send(Heard::Lost(cause)).await;
}

fn note(delivery: Delivery, echo: &str) -> Option<Heard> {
    let key = delivery.routing_key.as_str();
    if key == echo {
        return Some(Heard::Echo);
    }
    (delivery.data.len() <= BODY_BYTES_MAX).then(|| Heard::Message {
        key: key.to_owned(),
        body: delivery.data,
    })
}

/// Tells when the broker blocks us, and when the connection for echoes ends.
async fn watch(events: impl futures_util::Stream<Item = Event>, notes: mpsc::Sender<Heard>) {
    tokio::pin!(events);
    while let Some(event) = events.next().await {
        let note = match event {
            Event::ConnectionBlocked(_) => Heard::Blocked(true),
            Event::ConnectionUnblocked => Heard::Blocked(false),
            Event::Error(error) if is_refused(&error) => Heard::Mute,
            // Also if it is only the channel: the exchange is gone, and with it what binds us to it.
            Event::Error(error) => Heard::Lost(error.to_string()),
            _ => continue,
        };
        if notes.send(note).await.is_err() {
            return;
        }
    }
}

/// Sends an echo at each beat, for as long as we may.
async fn speak(channel: Channel, exchange: String, echo: String, beat: Duration) {
    let mut beats = interval(beat);
    beats.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        beats.tick().await;
        let properties = BasicProperties::default()
            .with_app_id(APP_ID.into())
            .with_type(TYPE_ECHO.into())
            .with_delivery_mode(1);
        let sent = channel.basic_publish(
            exchange.as_str().into(),
            echo.as_str().into(),
            BasicPublishOptions::default(),
            b"",
            properties,
        );
        // While the broker blocks us nothing is written, and what is not written need not be sent later.
        // Why a channel or a connection ended is told by the connection's events.
        if let Ok(Err(_)) = timeout(STEP_MAX, sent).await {
            return;
        }
    }
}

fn is_refused(error: &lapin::Error) -> bool {
    matches!(error.kind(), lapin::ErrorKind::ProtocolError(refusal) if refusal.get_id() == ACCESS_REFUSED)
}

/// Counts who takes resumed jobs. Of the interactive queue a worker may have several consumers, and in the bulk queue what it has fetched
/// counts as well. A count that cannot be had is no fault.
async fn count(channel: Channel, queue: String, notes: mpsc::Sender<Heard>) {
    loop {
        let passive = QueueDeclareOptions::durable().passive();
        let asked = channel.queue_declare(queue.as_str().into(), passive, FieldTable::default());
        let (counted, ends) = match within("counting consumers", STEP_MAX, asked).await {
            Ok(state) => {
                let consumers = usize::try_from(state.consumer_count()).unwrap_or(usize::MAX);
                (Some(consumers), false)
            }
            // A queue that is not there, or not for our eyes, costs the channel.
            Err(error) => (None, !matches!(error, BrokerError::Timeout { .. })),
        };
        if notes.send(Heard::Consumers(counted)).await.is_err() || ends {
            return;
        }
        sleep(COUNT_INTERVAL).await;
    }
}
