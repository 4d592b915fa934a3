//! What the broker lets this user do, found without doing it.
//!
//! RabbitMQ looks at rights before it looks at anything else of a request. So each right is asked for by a request that
//! must fail behind that look (`rabbit_channel.erl`, 3.8 to 4.x):
//!
//! | right | request | without it | with it |
//! |---|---|---|---|
//! | configure | delete a queue that is not there | 403 | done, and nothing was deleted |
//! | write | publish with an `expiration` that is no number | 403 | 406, and nothing was published |
//! | read | consume with an `x-priority` that is no number | 403 | 404 or 406, and nothing is consumed |
//!
//! A broker that blocks publishers says so behind the first publication of a connection, also of one that it refuses.

use super::{Kind, Object, STEP_MAX, State};
use crate::broker::session::{channel, connect};
use crate::broker::{BrokerError, within};
use crate::config::BrokerConfig;
use crate::job::Names;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ErrorKind};
use std::time::Duration;

/// How long a broker that blocks gets to say so; its word is sent behind the answer that was waited for.
const WORD_MAX: Duration = Duration::from_millis(500);
/// Between two looks for it.
const LOOK: Duration = Duration::from_millis(20);

/// Which right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// To declare and delete.
    Configure,
    /// To publish.
    Write,
    /// To consume.
    Read,
}

/// One right on one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Right {
    /// Which.
    pub right: Use,
    /// On what: a queue, an exchange, or the default exchange (`amq.default`).
    pub on: String,
    /// The broker's words where it is refused.
    pub refused: Option<String>,
}

/// Asks for all of them, and whether the broker takes messages.
pub(super) async fn ask(
    config: &BrokerConfig,
    connection: &Connection,
    names: &Names,
    objects: &[Object],
) -> Result<(Vec<Right>, bool), BrokerError> {
    // As the queues for canaries are called, and so that nobody has it.
    let own = format!("{}.probe.check.{:016x}", config.prefix, rand::random::<u64>());
    let mut rights = vec![configure(connection, &own).await?, read(connection, &own).await?];
    let there = |object: &&Object| matches!(object.state, State::There { .. } | State::Different(_));
    let queues = objects.iter().filter(|object| object.kind != Kind::Exchange);
    for object in queues.filter(there) {
        // Nobody but the broker reads what waits to be tried again.
        if [&names.interactive, &names.bulk, &names.resumed].contains(&&object.name) {
            rights.push(read(connection, &object.name).await?);
        }
    }
    // A connection of its own: one that is blocked is not read from any more.
    let publishing = connect(config, "embeddings check publish").await?;
    let write = async {
        rights.push(write(&publishing, "", &own).await?);
        let events = objects.iter().find(|object| object.kind == Kind::Exchange);
        if events.filter(there).is_some() && !publishing.status().blocked() {
            rights.push(write(&publishing, &names.events, "heartbeat.check").await?);
        }
        Ok::<bool, BrokerError>(blocks(&publishing).await)
    };
    let blocks = write.await;
    let _ = tokio::time::timeout(Duration::from_secs(1), publishing.close(200, "bye".into())).await;
    Ok((rights, blocks?))
}

async fn blocks(connection: &Connection) -> bool {
    let word = async {
        while !connection.status().blocked() {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(WORD_MAX, word).await.is_ok()
}

async fn configure(connection: &Connection, queue: &str) -> Result<Right, BrokerError> {
    let channel = channel(connection).await?;
    let options = QueueDeleteOptions {
        if_unused: true,
        if_empty: true,
        nowait: false,
    };
    let asked = channel.queue_delete(queue.into(), options);
    let answer = within("asking for the right to configure", STEP_MAX, asked).await;
    judged(Use::Configure, queue, answer.map(drop))
}

async fn read(connection: &Connection, queue: &str) -> Result<Right, BrokerError> {
    let channel = channel(connection).await?;
    let mut arguments = FieldTable::default();
    arguments.insert(
        ShortString::from("x-priority"),
        AMQPValue::LongString("none".into()),
    );
    let asked = channel.basic_consume(
        queue.into(),
        ShortString::from("check"),
        BasicConsumeOptions::default(),
        arguments,
    );
    let answer = within("asking for the right to read", STEP_MAX, asked).await;
    judged(Use::Read, queue, answer.map(drop))
}

async fn write(connection: &Connection, exchange: &str, key: &str) -> Result<Right, BrokerError> {
    let channel = channel(connection).await?;
    let answer = within(
        "asking for the right to write",
        STEP_MAX,
        published(&channel, exchange, key),
    )
    .await;
    let on = if exchange.is_empty() {
        "amq.default"
    } else {
        exchange
    };
    judged(Use::Write, on, answer)
}

async fn published(channel: &Channel, exchange: &str, key: &str) -> Result<(), lapin::Error> {
    let confirms = lapin::options::ConfirmSelectOptions::default();
    channel.confirm_select(confirms).await?;
    let properties = BasicProperties::default().with_expiration("none".into());
    let options = BasicPublishOptions::default();
    let confirm = channel.basic_publish(exchange.into(), key.into(), options, b"", properties);
    confirm.await?.await.map(drop)
}

/// A refusal for another reason is a right.
fn judged(right: Use, on: &str, answer: Result<(), BrokerError>) -> Result<Right, BrokerError> {
    let refused = match answer {
        Ok(()) => None,
        Err(BrokerError::Lapin { doing, source }) => match source.kind() {
            ErrorKind::ProtocolError(refusal) if refusal.get_id() == 403 => {
                Some(refusal.get_message().to_string())
            }
            ErrorKind::ProtocolError(refusal) if matches!(refusal.get_id(), 404 | 406) => None,
            _ => return Err(BrokerError::Lapin { doing, source }),
        },
        Err(error) => return Err(error),
    };
    Ok(Right {
        right,
        on: on.to_owned(),
        refused,
    })
}
