//! The dead-letter queue, for the commands that look into it; the service itself only writes there.
//!
//! A queue cannot be read without taking: each letter is got and held unacknowledged, and at the end all that
//! are kept are given back at once. So a look is bounded by what the queue held when it began, and whoever
//! uses this keeps summaries, not bodies.
//!
//! ```text
//!   next() --> Held --> keep()     held until close() gives it back; once it has been looked at often:
//!                                  a copy published and confirmed, then the old one acknowledged
//!                  --> requeue()   published to its lane, mandatory and confirmed, then acknowledged
//!                  --> delete()    acknowledged
//! ```
//! A process that dies anywhere on the way leaves its letters to the broker, which gives them back: a letter may
//! be doubled by that, never lost. Why letters are copied at all stands in `docs/design/0012`.

use super::blocked::Blocked;
use super::copies::copied;
use super::publish;
use super::{BrokerError, Published, session, topology, within};
use crate::clock::Clock;
use crate::config::BrokerConfig;
use crate::job::Names;
use crate::job::checkpoint::{Checkpoint, HEADER_CHECKPOINT, HEADER_ORIGINAL_QUEUE};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicNackOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ErrorKind};
use serde_json::{Map, Value, json};
use std::time::Duration;

/// Longest time for one small question to the broker.
const STEP_MAX: Duration = Duration::from_secs(8);
/// Longest time for one letter to come: bodies may have 128 MiB, and the way may be long.
const GET_MAX: Duration = Duration::from_secs(60);
/// Longest wait for another command that is at the queue.
const TURN_MAX: Duration = Duration::from_secs(15);
/// Pause between attempts to get a turn.
const TURN_PAUSE: Duration = Duration::from_millis(250);
/// Longest wait until what was given back can be seen in the queue again.
const RETURN_MAX: Duration = Duration::from_secs(10);
/// Looks after which a letter is replaced by a fresh copy. RabbitMQ 4 throws away what was given back more than
/// 20 times where nothing else is set ("Quorum queues", poison messages); half of that leaves room for looks
/// that are cut off before they come to the copy.
const LOOKS_MAX: u64 = 10;
/// How deep headers are shown; a message can hold thousands of tables one inside the other.
const DEPTH_MAX: usize = 8;
/// AMQP 0-9-1, reply code `not-found`.
const NOT_FOUND: u16 = 404;
/// AMQP 0-9-1, reply code `resource-locked`.
const RESOURCE_LOCKED: u16 = 405;
/// Headers about deaths, by how they begin; a job that starts anew has none.
const DEATH_HEADERS: [&str; 7] = [
    "x-error-",
    "x-death",
    "x-first-death-",
    "x-last-death-",
    HEADER_ORIGINAL_QUEUE,
    "x-attempt",
    "x-dead-",
];
/// Headers that no copy may have: the broker's own counts, and orders to route it elsewhere, too.
const NEVER_COPIED: [&str; 4] = ["x-delivery-count", "x-acquired-count", "CC", "BCC"];

/// Why a command cannot do what it should with the dead-letter queue.
#[derive(Debug, thiserror::Error)]
pub enum DeadError {
    /// The connection failed, or the broker refused or did not answer in time.
    #[error("{0}; `embeddings check` says what to mend")]
    Broker(#[from] BrokerError),
    /// No service has ever run with this prefix.
    #[error("queue {0} does not exist: no service has run with this broker and prefix")]
    NoQueue(String),
    /// Another process has its turn: it holds letters, which would look like none.
    #[error("another `embeddings dead` is at {0}; try again when it has ended")]
    Busy(String),
    /// The publication came back. The letter stays.
    #[error("queue {0} does not exist, the dead letter stays; start the service once, it declares the queue")]
    Unroutable(String),
    /// The broker would not take the message. The letter stays.
    #[error("queue {0} is full, the dead letter stays")]
    Full(String),
    /// The broker has not said in time whether it took the message. The letter stays.
    #[error(
        "queue {0} has not confirmed the message within {wait} s, the dead letter stays, and the job may be there twice; look for an alarm: rabbitmq-diagnostics alarms",
        wait = publish::CONFIRM_MAX.as_secs()
    )]
    Unconfirmed(String),
}

/// A dead letter, free of the client library's types.
#[derive(Debug, Clone, Default)]
pub struct Letter {
    /// AMQP properties that are set, by their names, without the headers.
    pub properties: Map<String, Value>,
    /// Its headers.
    pub headers: Map<String, Value>,
    /// The job's body as it was.
    pub body: Vec<u8>,
    /// How often it was taken out and given back before.
    pub looks: u64,
}

/// A letter that is ours until it is settled.
#[derive(Debug)]
pub struct Held {
    /// What it says.
    pub letter: Letter,
    tag: u64,
    properties: BasicProperties,
}

/// A turn at the dead-letter queue; there is one at a time.
pub struct Letters {
    connection: Connection,
    channel: Channel,
    names: Names,
    at_start: u32,
    left: u32,
    kept: u32,
}

impl Letters {
    /// Connects, waits for its turn, and counts what is there.
    pub async fn open(config: &BrokerConfig) -> Result<Letters, DeadError> {
        let names = Names::new(&config.prefix);
        let connection = session::connect(config, "embeddings dead").await?;
        let counted = count(&connection, &names.dead).await;
        if let Err(BrokerError::Lapin { source, .. }) = &counted
            && code(source) == Some(NOT_FOUND)
        {
            return Err(DeadError::NoQueue(names.dead));
        }
        counted?;
        take_turn(&connection, &names.dead).await?;
        let channel = session::channel(&connection).await?;
        let confirms = channel.confirm_select(ConfirmSelectOptions::default());
        within("selecting confirms", STEP_MAX, confirms).await?;
        // Counted again: whoever had the turn before may have held some.
        let at_start = count(&connection, &names.dead).await?;
        Ok(Letters {
            connection,
            channel,
            names,
            at_start,
            left: at_start,
            kept: 0,
        })
    }

    /// The names of the queues.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// How many letters there were at the start.
    pub fn at_start(&self) -> u32 {
        self.at_start
    }

    /// The next letter, each of those that were there at the start once.
    pub async fn next(&mut self) -> Result<Option<Held>, DeadError> {
        if self.left == 0 {
            return Ok(None);
        }
        let get = self
            .channel
            .basic_get(self.names.dead.as_str().into(), BasicGetOptions { no_ack: false });
        let Some(got) = within("reading a dead letter", GET_MAX, get).await? else {
            self.left = 0;
            return Ok(None);
        };
        self.left -= 1;
        let delivery = got.delivery;
        let letter = letter(&delivery.properties, delivery.data);
        Ok(Some(Held {
            letter,
            tag: delivery.delivery_tag,
            properties: delivery.properties,
        }))
    }

    /// Leaves the letter where it is: held until [`Letters::close`], or replaced by a copy at the queue's end.
    pub async fn keep(&mut self, held: Held) -> Result<(), DeadError> {
        if held.letter.looks < LOOKS_MAX {
            self.kept += 1;
            return Ok(());
        }
        let copy = copied(&held.properties, headers(&held.properties, &NEVER_COPIED));
        self.publish(&self.names.dead, &held.letter.body, copy).await?;
        self.ack(held.tag).await
    }

    /// Sends the job to `queue` as if it were new, then takes the letter away.
    pub async fn requeue(&mut self, held: Held, queue: &str) -> Result<(), DeadError> {
        let mut kept = headers(&held.properties, &NEVER_COPIED);
        let origin = kept.inner().get(HEADER_ORIGINAL_QUEUE).cloned();
        kept = filtered(&kept, |name| {
            !DEATH_HEADERS.iter().any(|death| name.starts_with(death))
        });
        // Its time has passed while it lay here; what the caller would wait begins anew.
        if kept.contains_key("x-budget-ms") {
            let now_ms = i64::try_from(Clock::unix_ms()).unwrap_or(i64::MAX);
            kept.insert("x-sent-at-ms".into(), AMQPValue::LongLongInt(now_ms));
        }
        // What is left of a streamed job goes on where it stood, with all its attempts; elsewhere it would be read as a
        // job of its own.
        let checkpoint = kept.inner().get(HEADER_CHECKPOINT).and_then(anew);
        kept = filtered(&kept, |name| name != HEADER_CHECKPOINT);
        if let Some(checkpoint) = checkpoint.filter(|_| queue == self.names.resumed) {
            kept.insert(HEADER_CHECKPOINT.into(), AMQPValue::LongString(checkpoint.into()));
            // Should it die again, its lane is still known.
            if let Some(origin) = origin {
                kept.insert(HEADER_ORIGINAL_QUEUE.into(), origin);
            }
        }
        let job = copied(&held.properties, kept);
        self.publish(queue, &held.letter.body, job).await?;
        self.ack(held.tag).await
    }

    /// Deletes the letter.
    pub async fn delete(&mut self, held: Held) -> Result<(), DeadError> {
        self.ack(held.tag).await
    }

    /// Gives back what was kept, and says good-bye. An error means that the broker has not said that it has
    /// done what was asked for last; whatever it has not done, it undoes.
    pub async fn close(self) -> Result<(), DeadError> {
        if self.kept > 0 {
            // All of them, and by a nack: from RabbitMQ 4.3 on that costs a message none of its lives.
            let all = BasicNackOptions {
                multiple: true,
                requeue: true,
            };
            within("giving back", STEP_MAX, self.channel.basic_nack(0, all)).await?;
        }
        // The broker answers this only after it has seen every acknowledgement before it.
        let closed = self.channel.close(200, "done".into());
        within("closing the channel", GET_MAX, closed).await?;
        // The next command should see them all, so the turn ends when they are there.
        let back = async {
            while count(&self.connection, &self.names.dead).await? < self.kept {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok::<(), BrokerError>(())
        };
        let _ = tokio::time::timeout(RETURN_MAX, back).await;
        let _ = tokio::time::timeout(STEP_MAX, self.connection.close(200, "bye".into())).await;
        Ok(())
    }

    async fn publish(&self, queue: &str, body: &[u8], properties: BasicProperties) -> Result<(), DeadError> {
        // Never patient with an alarm: a person waits for this command.
        let blocked = Blocked::default();
        let sent = publish::send(
            &self.channel,
            &blocked,
            queue,
            body,
            properties,
            Some(publish::CONFIRM_MAX),
        );
        match sent.await? {
            Published::Routed => Ok(()),
            Published::Returned => Err(DeadError::Unroutable(queue.to_owned())),
            Published::Rejected => Err(DeadError::Full(queue.to_owned())),
            Published::Unconfirmed => Err(DeadError::Unconfirmed(queue.to_owned())),
        }
    }

    async fn ack(&self, tag: u64) -> Result<(), DeadError> {
        let acked = self.channel.basic_ack(tag, BasicAckOptions::default());
        Ok(within("acknowledging", STEP_MAX, acked).await?)
    }
}

/// Messages in the queue that nobody holds. On a channel of its own: a refusal would cost the channel.
async fn count(connection: &Connection, queue: &str) -> Result<u32, BrokerError> {
    let channel = session::channel(connection).await?;
    let passive = QueueDeclareOptions::durable().passive();
    let asked = channel.queue_declare(queue.into(), passive, FieldTable::default());
    let state = within("looking for the dead-letter queue", STEP_MAX, asked).await?;
    let _ = tokio::time::timeout(STEP_MAX, channel.close(200, "done".into())).await;
    Ok(state.message_count())
}

/// Waits until no other command is at the queue. The turn is an exclusive queue by a name that all know; the
/// broker takes it away with the connection, however the process ends.
async fn take_turn(connection: &Connection, queue: &str) -> Result<(), DeadError> {
    let turn = format!("{queue}.turn");
    let waiting = async {
        loop {
            let channel = session::channel(connection).await?;
            match topology::probe_queue(&channel, &turn).await {
                Ok(()) => return Ok(()),
                Err(BrokerError::Lapin { source, .. }) if code(&source) == Some(RESOURCE_LOCKED) => {}
                Err(error) => return Err(DeadError::Broker(error)),
            }
            tokio::time::sleep(TURN_PAUSE).await;
        }
    };
    match tokio::time::timeout(TURN_MAX, waiting).await {
        Ok(result) => result,
        Err(_) => Err(DeadError::Busy(queue.to_owned())),
    }
}

fn code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(refusal) => Some(refusal.get_id()),
        _ => None,
    }
}

fn headers(of: &BasicProperties, without: &[&str]) -> FieldTable {
    match of.headers() {
        Some(headers) => filtered(headers, |name| !without.contains(&name)),
        None => FieldTable::default(),
    }
}

fn filtered(table: &FieldTable, keep: impl Fn(&str) -> bool) -> FieldTable {
    let mut kept = FieldTable::default();
    for (name, value) in table.inner() {
        if keep(name.as_str()) {
            kept.insert(name.clone(), value.clone());
        }
    }
    kept
}

fn letter(of: &BasicProperties, body: Vec<u8>) -> Letter {
    let mut properties = Map::new();
    let texts: [(&str, &Option<ShortString>); 10] = [
        ("message_id", of.message_id()),
        ("correlation_id", of.correlation_id()),
        ("reply_to", of.reply_to()),
        ("content_type", of.content_type()),
        ("content_encoding", of.content_encoding()),
        ("type", of.kind()),
        ("app_id", of.app_id()),
        ("user_id", of.user_id()),
        ("expiration", of.expiration()),
        ("cluster_id", of.cluster_id()),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            properties.insert(name.to_owned(), json!(text.as_str()));
        }
    }
    for (name, number) in [
        ("timestamp", *of.timestamp()),
        ("priority", of.priority().map(u64::from)),
        ("delivery_mode", of.delivery_mode().map(u64::from)),
    ] {
        if let Some(number) = number {
            properties.insert(name.to_owned(), json!(number));
        }
    }
    let headers = match of.headers() {
        Some(headers) => plain_table(headers, DEPTH_MAX),
        None => Map::new(),
    };
    // Up to 4.2 the limit holds for what `x-delivery-count` tells; where both are told, the higher one is safe.
    let counted = ["x-delivery-count", "x-acquired-count"].map(|name| headers.get(name)?.as_u64());
    Letter {
        looks: counted.into_iter().flatten().max().unwrap_or(0),
        properties,
        headers,
        body,
    }
}

fn plain_table(table: &FieldTable, depth: usize) -> Map<String, Value> {
    let fields = table.inner().iter();
    fields
        .map(|(name, value)| (name.as_str().to_owned(), plain(value, depth)))
        .collect()
}

/// A header as JSON; what is nested deeper than anyone writes on purpose is left out.
fn plain(value: &AMQPValue, depth: usize) -> Value {
    match value {
        AMQPValue::FieldTable(_) | AMQPValue::FieldArray(_) if depth == 0 => json!("…"),
        AMQPValue::FieldTable(table) => Value::Object(plain_table(table, depth - 1)),
        AMQPValue::FieldArray(values) => {
            let values = values.as_slice().iter();
            values.map(|value| plain(value, depth - 1)).collect()
        }
        AMQPValue::LongString(text) => json!(String::from_utf8_lossy(text.as_bytes())),
        AMQPValue::ShortString(text) => json!(text.as_str()),
        AMQPValue::ByteArray(bytes) => json!(STANDARD.encode(bytes.as_slice())),
        AMQPValue::Boolean(flag) => json!(flag),
        AMQPValue::ShortShortInt(n) => json!(n),
        AMQPValue::ShortShortUInt(n) => json!(n),
        AMQPValue::ShortInt(n) => json!(n),
        AMQPValue::ShortUInt(n) => json!(n),
        AMQPValue::LongInt(n) => json!(n),
        AMQPValue::LongUInt(n) => json!(n),
        AMQPValue::LongLongInt(n) => json!(n),
        AMQPValue::Timestamp(n) => json!(n),
        AMQPValue::Float(x) => json!(x),
        AMQPValue::Double(x) => json!(x),
        AMQPValue::DecimalValue(decimal) => {
            json!(f64::from(decimal.value) / 10f64.powi(i32::from(decimal.scale)))
        }
        AMQPValue::Void => Value::Null,
    }
}

/// The checkpoint of a job whose attempts begin anew.
fn anew(header: &AMQPValue) -> Option<String> {
    let AMQPValue::LongString(text) = header else {
        return None;
    };
    let checkpoint = Checkpoint::parse(std::str::from_utf8(text.as_bytes()).ok()?)?;
    let anew = Checkpoint {
        attempt: 1,
        most: 0,
        // Workers remember the attempts of the old one.
        lineage: 0,
        alone: true,
        last_error: None,
        ..checkpoint
    };
    Some(anew.to_header())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapin::types::FieldArray;

    fn table(of: &[(&str, AMQPValue)]) -> FieldTable {
        let mut table = FieldTable::default();
        for (name, value) in of {
            table.insert((*name).into(), value.clone());
        }
        table
    }

    #[test]
    fn a_job_that_starts_anew_has_no_past_and_a_copy_keeps_it() {
        let past = [
            "x-error-type",
            "x-error-code",
            "x-original-queue",
            "x-attempt",
            "x-death",
            "x-first-death-queue",
            "x-last-death-reason",
            "x-dead-at-ms",
        ];
        let own = ["x-budget-ms", "traceparent"];
        let all: Vec<(&str, AMQPValue)> = [&past[..], &own, &NEVER_COPIED]
            .concat()
            .into_iter()
            .map(|name| (name, AMQPValue::LongInt(1)))
            .collect();
        let original = BasicProperties::default()
            .with_headers(table(&all))
            .with_user_id("somebody".into())
            .with_expiration("1".into())
            .with_message_id("7".into());
        let kept = headers(&original, &NEVER_COPIED);
        assert_eq!(kept.inner().len(), past.len() + own.len());
        let anew = filtered(&kept, |name| {
            !DEATH_HEADERS.iter().any(|death| name.starts_with(death))
        });
        let left: Vec<&str> = anew.inner().keys().map(ShortString::as_str).collect();
        assert_eq!(left, ["traceparent", "x-budget-ms"]);
        let copy = copied(&original, anew);
        assert_eq!(copy.message_id(), &Some("7".into()));
        assert_eq!((copy.user_id(), copy.expiration()), (&None, &None));
        assert_eq!(copy.delivery_mode(), &Some(publish::PERSISTENT));
    }

    #[test]
    fn headers_are_plain_and_bounded_in_depth() {
        let mut deep = AMQPValue::LongInt(1);
        for _ in 0..1000 {
            deep = AMQPValue::FieldArray(FieldArray::from(vec![deep]));
        }
        let headers = table(&[
            ("deep", deep),
            ("x-delivery-count", AMQPValue::LongLongInt(3)),
            ("x-acquired-count", AMQPValue::LongUInt(12)),
            ("at", AMQPValue::Timestamp(1_700_000_000)),
        ]);
        let of = BasicProperties::default().with_headers(headers).with_timestamp(5);
        let letter = letter(&of, b"{}".to_vec());
        assert_eq!(letter.looks, 12);
        assert_eq!(letter.headers["at"], 1_700_000_000);
        assert_eq!(letter.headers["deep"].to_string(), r#"[[[[[[[["…"]]]]]]]]"#);
        assert_eq!(letter.properties["timestamp"], 5);
    }
}
