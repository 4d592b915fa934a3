//! The broker's objects of ours: declared, or only looked for.

use super::{BrokerError, is_not_found, within};
use crate::job::Names;
use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, ExchangeKind};
use std::time::Duration;

/// Longest time for one declaration. Quorum queues elect a leader while they are declared.
const DECLARE_MAX: Duration = Duration::from_secs(5);
/// Deliveries after which the broker itself dead-letters a message: the net below our own counting, for
/// a message that ends the process before it can be counted. High, because before RabbitMQ 4.3 each
/// death of a worker costs every message it held one of these lives, guilty or not.
const DELIVERY_LIMIT: i32 = 1000;

/// Pauses before a job that failed is tried again, one queue for each: the first attempt's, the second's, and the last
/// for all that follow. Each is longer than what a passing trouble of an engine or of a reply queue takes to pass.
pub const PAUSES: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(4),
    Duration::from_secs(16),
    Duration::from_secs(60),
];

/// Declares queues and exchange, or checks that they are there.
pub async fn ensure(channel: &Channel, names: &Names, declare: bool) -> Result<(), BrokerError> {
    let options = QueueDeclareOptions {
        passive: !declare,
        ..QueueDeclareOptions::durable()
    };
    for (queue, arguments, _) in queues(names).into_iter().filter(|(.., needed)| *needed) {
        let answer = channel.queue_declare(queue.as_str().into(), options, arguments);
        within("declaring a queue", DECLARE_MAX, answer).await?;
    }
    events(channel, names, declare).await
}

/// Every queue with its arguments, and whether the service needs it, in the order in which they are declared.
pub fn queues(names: &Names) -> Vec<(String, FieldTable, bool)> {
    let mut all = vec![
        (names.dead.clone(), dead_arguments(), true),
        (names.interactive.clone(), lane_arguments(names), true),
        (names.bulk.clone(), lane_arguments(names), true),
        (names.resumed.clone(), lane_arguments(names), false),
    ];
    all.extend(PAUSES.map(|pause| (names.later(pause), later_arguments(names, pause), false)));
    all
}

/// Declares the queues of jobs that go on, or tells whether they are there. Without them each delivery has to be
/// worked off where it came from. Missing ones cost the channel.
pub async fn resuming(channel: &Channel, names: &Names, declare: bool) -> Result<bool, BrokerError> {
    let options = QueueDeclareOptions {
        passive: !declare,
        ..QueueDeclareOptions::durable()
    };
    for (queue, arguments, _) in queues(names).into_iter().filter(|(.., needed)| !*needed) {
        let answer = channel.queue_declare(queue.as_str().into(), options, arguments);
        match within("declaring a queue", DECLARE_MAX, answer).await {
            Ok(_) => {}
            Err(BrokerError::Lapin { source, .. }) if !declare && is_not_found(&source) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Declares the exchange of events, or checks that it is there.
pub async fn events(channel: &Channel, names: &Names, declare: bool) -> Result<(), BrokerError> {
    let options = ExchangeDeclareOptions {
        passive: !declare,
        durable: true,
        ..Default::default()
    };
    let exchange = names.events.as_str().into();
    let answer = channel.exchange_declare(exchange, ExchangeKind::Topic, options, FieldTable::default());
    within("declaring an exchange", DECLARE_MAX, answer).await
}

/// Our own queue for canaries: exclusive, so it goes when the session goes. Not `auto_delete`: a stop takes the consumer away, and
/// the broker is asked for this queue, too, until the end.
pub async fn probe_queue(channel: &Channel, name: &str) -> Result<(), BrokerError> {
    let options = QueueDeclareOptions::exclusive();
    let answer = channel.queue_declare(name.into(), options, FieldTable::default());
    within("declaring the probe queue", DECLARE_MAX, answer)
        .await
        .map(drop)
}

fn lane_arguments(names: &Names) -> FieldTable {
    let mut table = dead_arguments();
    for (key, value) in [
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text(&names.dead)),
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
        ("x-delivery-limit", AMQPValue::LongInt(DELIVERY_LIMIT)),
    ] {
        table.insert(ShortString::from(key), value);
    }
    table
}

/// What lies here for so long goes back to the resumed lane.
fn later_arguments(names: &Names, pause: Duration) -> FieldTable {
    let mut table = dead_arguments();
    let pause_ms = i32::try_from(pause.as_millis()).expect("pauses are short");
    for (key, value) in [
        ("x-message-ttl", AMQPValue::LongInt(pause_ms)),
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text(&names.resumed)),
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
    ] {
        table.insert(ShortString::from(key), value);
    }
    table
}

fn dead_arguments() -> FieldTable {
    let mut table = FieldTable::default();
    table.insert(ShortString::from("x-queue-type"), text("quorum"));
    table
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}
