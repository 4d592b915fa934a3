//! Deliveries in: lapin's message to an [`Arrival`], read and checked, with the receipt to settle it by.

use super::look::Passing;
use super::{ACK_MAX, BrokerError, BrokerEvent, within};
use crate::job::checkpoint::{Checkpoint, HEADER_CHECKPOINT};
use crate::job::reply::{TYPE_ERROR, TYPE_RESULT};
use crate::job::request::{Number, Properties, Request, RequestLimits, decode};
use crate::job::trace::{HEADER_TRACEPARENT, TraceParent};
use crate::job::{JobKey, Lane, Refusal};
use crate::logic::pressure::memory_of;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicNackOptions};
use lapin::types::{AMQPValue, DeliveryTag, FieldTable, ShortString};
use lapin::{Acker, BasicProperties, Channel, Consumer};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use tokio::sync::mpsc;

/// Bodies above this size are read on a thread where that may take its time.
const DECODE_INLINE_BYTES: usize = 64 * 1024;

/// Numbers for deliveries, unique in the process.
static NEXT_KEY: AtomicU64 = AtomicU64::new(1);

/// A message as it came, and what it asks for.
#[derive(Debug)]
pub struct Arrival {
    /// Its number.
    pub key: JobKey,
    /// The queue it came from.
    pub lane: Lane,
    /// What settles it.
    pub receipt: Receipt,
    /// Its properties and headers.
    pub properties: Properties,
    /// Which attempt this is, as far as can be told; the first is 1.
    pub attempt: u32,
    /// Whether it was delivered before.
    pub redelivered: bool,
    /// Whether a look ahead brought it, and not the lane's own consumer.
    pub fetched: bool,
    /// What a job that goes on has taken along.
    pub checkpoint: Option<Checkpoint>,
    /// Size of the body.
    pub bytes: usize,
    /// Equal for equal bodies, in this process.
    pub digest: u64,
    /// What it asks for, or what is wrong.
    pub request: Result<Request, Refusal>,
}

/// The right to settle one delivery, and its message for the dead-letter queue.
#[derive(Debug, Clone)]
pub struct Receipt {
    pub(super) session: u64,
    pub(super) lane: Lane,
    pub(super) queue: Arc<str>,
    pub(super) message: Arc<Message>,
    acker: Acker,
    /// The session's, gone with it.
    channel: Weak<Channel>,
    tag: DeliveryTag,
}

/// A message as it came.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) properties: BasicProperties,
    pub(super) body: Vec<u8>,
    /// Whether it was acknowledged or given back: to do so twice would end the session.
    settled: AtomicBool,
    /// Whose delivery it was, if a look ahead brought it.
    passing: Option<Arc<Passing>>,
}

impl Receipt {
    /// The message's body.
    pub fn body(&self) -> &[u8] {
        &self.message.body
    }

    /// Writes the acknowledgement. False if the delivery is void.
    pub(super) async fn ack(&self) -> Result<bool, lapin::Error> {
        if self.is_void() {
            return Ok(false);
        }
        let Some(channel) = self.channel.upgrade() else {
            return Ok(false);
        };
        // Not by the acker: on its way to the same frame it passes through a task of the library's, and wakes its thread twice.
        match channel.basic_ack(self.tag, BasicAckOptions::default()).await {
            Err(_) if self.acker.poisoned() => Ok(false),
            written => written.map(|()| true),
        }
    }

    /// Whether there is nothing to settle, any more or from now on.
    fn is_void(&self) -> bool {
        if self.acker.poisoned() || self.message.settled.swap(true, Ordering::Relaxed) {
            return true;
        }
        if let Some(passing) = &self.message.passing {
            passing.settles();
        }
        false
    }

    /// Gives the message back to its queue. False if the delivery is void.
    pub(super) async fn requeue(&self) -> Result<bool, lapin::Error> {
        if self.is_void() {
            return Ok(false);
        }
        self.acker
            .nack(BasicNackOptions {
                requeue: true,
                multiple: false,
            })
            .await
    }
}

/// Where deliveries of one consumer belong.
#[derive(Clone)]
pub(super) struct Origin {
    pub(super) lane: Lane,
    pub(super) queue: Arc<str>,
    pub(super) session: u64,
    /// Message id of the session's canaries, which nobody else can know.
    pub(super) canary: Arc<str>,
    pub(super) limits: RequestLimits,
    /// What bodies are told apart by.
    pub(super) hasher: RandomState,
    /// On which deliveries are acknowledged.
    pub(super) channel: Weak<Channel>,
    /// Counts consumers of looks ahead, as the queue does.
    pub(super) passing: Arc<AtomicUsize>,
}

/// Reads one consumer until it ends, which is a fault unless we are `stopping`: a queue that was deleted looks just like that.
pub(super) async fn consume(
    mut consumer: Consumer,
    origin: Origin,
    stopping: Arc<AtomicBool>,
    events: mpsc::Sender<BrokerEvent>,
) -> Result<(), BrokerError> {
    while let Some(delivery) = consumer.next().await {
        let delivery = delivery.map_err(BrokerError::lapin("consuming"))?;
        if take(delivery, None, &origin, &events).await?.is_none() {
            return Ok(());
        }
    }
    if stopping.load(Ordering::Relaxed) {
        Ok(())
    } else {
        Err(BrokerError::Cancelled(origin.queue.to_string()))
    }
}

/// Passes a message on: the memory that it may come to need, in bytes; `None` if nobody listens any more. Answers to our own
/// canaries end here, and so does what others put into the probe queue: only a canary of this process may say anything about its
/// health.
pub(super) async fn take(
    delivery: Delivery,
    passing: Option<Arc<Passing>>,
    origin: &Origin,
    events: &mpsc::Sender<BrokerEvent>,
) -> Result<Option<u64>, BrokerError> {
    if origin.lane == Lane::Probe && !is_canary(&delivery, &origin.canary) {
        let acked = delivery.acker.ack(BasicAckOptions::default());
        within("acknowledging", ACK_MAX, acked).await?;
        return Ok(events.send(BrokerEvent::Proof).await.ok().map(|()| 0));
    }
    let arrival = if delivery.data.len() > DECODE_INLINE_BYTES {
        let lane = origin.lane;
        // From here to its arrival it is in nobody's hands but ours: a thread that hangs must be seen.
        if events.send(BrokerEvent::Reading { lane }).await.is_err() {
            return Ok(None);
        }
        let origin = origin.clone();
        let arrival = tokio::task::spawn_blocking(move || read(delivery, passing, &origin))
            .await
            .expect("reading a request cannot panic");
        if events.send(BrokerEvent::Read { lane }).await.is_err() {
            return Ok(None);
        }
        arrival
    } else {
        read(delivery, passing, origin)
    };
    let inputs = arrival.request.as_ref().map_or(0, |request| request.input.len());
    let needs = memory_of(arrival.bytes, inputs);
    let sent = events.send(BrokerEvent::Arrived(Box::new(arrival))).await;
    Ok(sent.ok().map(|()| needs))
}

fn is_canary(delivery: &Delivery, canary: &str) -> bool {
    let kind = delivery.properties.kind().as_ref().map(ShortString::as_str);
    let id = delivery.properties.message_id().as_ref().map(ShortString::as_str);
    id == Some(canary) && kind != Some(TYPE_RESULT) && kind != Some(TYPE_ERROR)
}

fn read(delivery: Delivery, passing: Option<Arc<Passing>>, origin: &Origin) -> Arrival {
    let properties = plain(&delivery.properties, delivery.redelivered);
    let request = decode(&properties, &delivery.data, origin.limits);
    let bytes = delivery.data.len();
    let digest = origin.hasher.hash_one(&delivery.data);
    let redelivered = properties.delivery_count > 0;
    let checkpoint = (origin.lane == Lane::Resumed).then(|| checkpoint(&delivery.properties));
    let before = checkpoint
        .as_ref()
        .map_or(1, |checkpoint| checkpoint.attempt.max(1));
    let attempt = u32::try_from(properties.delivery_count)
        .unwrap_or(u32::MAX)
        .saturating_add(before);
    let fetched = passing.is_some();
    Arrival {
        key: JobKey(NEXT_KEY.fetch_add(1, Ordering::Relaxed)),
        lane: origin.lane,
        receipt: Receipt {
            session: origin.session,
            lane: origin.lane,
            queue: origin.queue.clone(),
            message: Arc::new(Message {
                properties: delivery.properties,
                body: delivery.data,
                settled: AtomicBool::new(false),
                passing,
            }),
            acker: delivery.acker,
            channel: origin.channel.clone(),
            tag: delivery.delivery_tag,
        },
        properties,
        attempt,
        redelivered,
        fetched,
        checkpoint,
        bytes,
        digest,
        request,
    }
}

/// What stands in a resumed job's header. One that is not ours has gone nowhere yet, and is not to be trusted.
fn checkpoint(properties: &BasicProperties) -> Checkpoint {
    let headers = properties.headers().as_ref();
    let header = headers.and_then(|headers| headers.inner().get(HEADER_CHECKPOINT));
    let text = match header {
        Some(AMQPValue::LongString(text)) => std::str::from_utf8(text.as_bytes()).ok(),
        _ => None,
    };
    text.and_then(Checkpoint::parse).unwrap_or(Checkpoint {
        alone: true,
        ..Checkpoint::default()
    })
}

fn plain(properties: &BasicProperties, redelivered: bool) -> Properties {
    let text = |value: &Option<ShortString>| value.as_ref().map(|text| text.as_str().to_owned());
    let empty = FieldTable::default();
    let headers = properties.headers().as_ref().unwrap_or(&empty);
    let count = |name| match number(headers, name) {
        Number::Value(n) => n,
        Number::Absent | Number::Wrong => 0,
    };
    Properties {
        reply_to: text(properties.reply_to()).filter(|queue| !queue.is_empty()),
        correlation_id: text(properties.correlation_id()),
        message_id: text(properties.message_id()).filter(|id| !id.is_empty()),
        content_type: text(properties.content_type()),
        content_encoding: text(properties.content_encoding()),
        timestamp_s: *properties.timestamp(),
        traceparent: words(headers, HEADER_TRACEPARENT).and_then(TraceParent::parse),
        budget_ms: number(headers, "x-budget-ms"),
        sent_at_ms: number(headers, "x-sent-at-ms"),
        // Without the broker's own flag the header is a sender's invention.
        delivery_count: if redelivered {
            count("x-delivery-count").max(1)
        } else {
            0
        },
    }
}

/// A header that is a text.
fn words<'a>(headers: &'a FieldTable, name: &str) -> Option<&'a str> {
    match headers.inner().get(name)? {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str()),
        _ => None,
    }
}

/// A header as a number, in whatever AMQP type the sender's library chose for it.
fn number(headers: &FieldTable, name: &str) -> Number {
    let Some(value) = headers.inner().get(name) else {
        return Number::Absent;
    };
    let signed = match value {
        AMQPValue::ShortShortInt(n) => i128::from(*n),
        AMQPValue::ShortShortUInt(n) => i128::from(*n),
        AMQPValue::ShortInt(n) => i128::from(*n),
        AMQPValue::ShortUInt(n) => i128::from(*n),
        AMQPValue::LongInt(n) => i128::from(*n),
        AMQPValue::LongUInt(n) => i128::from(*n),
        AMQPValue::LongLongInt(n) => i128::from(*n),
        // AMQP's own kind of time counts seconds.
        AMQPValue::Timestamp(n) => i128::from(*n) * 1000,
        AMQPValue::Float(x) if x.is_finite() => *x as i128,
        AMQPValue::Double(x) if x.is_finite() => *x as i128,
        AMQPValue::LongString(text) => {
            match std::str::from_utf8(text.as_bytes()).map(|text| text.trim().parse()) {
                Ok(Ok(n)) => n,
                _ => return Number::Wrong,
            }
        }
        AMQPValue::ShortString(text) => match text.as_str().trim().parse() {
            Ok(n) => n,
            Err(_) => return Number::Wrong,
        },
        AMQPValue::Void => return Number::Absent,
        _ => return Number::Wrong,
    };
    u64::try_from(signed).map_or(Number::Wrong, Number::Value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_in_many_types() {
        let mut headers = FieldTable::default();
        for (value, expected) in [
            (AMQPValue::LongInt(5), Number::Value(5)),
            (AMQPValue::LongLongInt(-1), Number::Wrong),
            (AMQPValue::LongString(" 70 ".into()), Number::Value(70)),
            (AMQPValue::LongString("soon".into()), Number::Wrong),
            (AMQPValue::Timestamp(7), Number::Value(7000)),
            (AMQPValue::Double(1.5), Number::Value(1)),
            (AMQPValue::Double(f64::NAN), Number::Wrong),
            (AMQPValue::Boolean(true), Number::Wrong),
            (AMQPValue::Void, Number::Absent),
        ] {
            headers.insert("x".into(), value.clone());
            assert_eq!(number(&headers, "x"), expected, "{value:?}");
        }
        assert_eq!(number(&headers, "y"), Number::Absent);
    }
}
