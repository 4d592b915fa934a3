//! A program that asks for embeddings: publishes jobs, reads answers, looks into queues.

use crate::service::{Bench, SOON};
use embeddings::clock::{Clock, Moment};
use embeddings::job::Names;
use embeddings::job::received::{self, Heard};
use embeddings::job::reply::TYPE_RESULT;
use futures_util::StreamExt;
use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer};
use serde_json::Value;
use std::time::Duration;

/// A connection with a reply queue of its own.
pub struct Caller {
    /// For whatever a test wants to do itself.
    pub channel: Channel,
    /// Its reply queue.
    pub replies: String,
    /// The names of the service it calls.
    pub names: Names,
    consumer: Consumer,
    connection: Connection,
    next: u64,
}

/// An answer as it came.
#[derive(Debug)]
pub struct Reply {
    /// Its properties.
    pub properties: BasicProperties,
    /// Its body.
    pub json: Value,
}

impl Caller {
    /// Connects straight to the node.
    pub async fn connect(bench: &Bench) -> Caller {
        let connection = Connection::connect(&bench.node.url, ConnectionProperties::default())
            .await
            .unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .unwrap();
        let exclusive = QueueDeclareOptions::exclusive().auto_delete();
        let queue = channel
            .queue_declare("".into(), exclusive, FieldTable::default())
            .await
            .unwrap();
        let replies = queue.name().to_string();
        let options = BasicConsumeOptions {
            no_ack: true,
            ..Default::default()
        };
        let consumer = channel
            .basic_consume(replies.as_str().into(), "".into(), options, FieldTable::default())
            .await
            .unwrap();
        Caller {
            channel,
            replies,
            names: Names::new(&bench.prefix),
            consumer,
            connection,
            next: 0,
        }
    }

    /// Properties with this caller's reply queue and a fresh correlation id, and that id.
    pub fn properties(&mut self) -> (BasicProperties, String) {
        self.next += 1;
        let id = format!("job-{}", self.next);
        let properties = BasicProperties::default()
            .with_reply_to(self.replies.as_str().into())
            .with_correlation_id(id.as_str().into());
        (properties, id)
    }

    /// Publishes, and waits until the broker has put it into the queue.
    pub async fn publish(&self, queue: &str, body: &[u8], properties: BasicProperties) {
        let options = BasicPublishOptions {
            mandatory: true,
            ..Default::default()
        };
        let published = self
            .channel
            .basic_publish("".into(), queue.into(), options, body, properties)
            .await
            .unwrap();
        let confirmation = tokio::time::timeout(SOON, published).await.unwrap().unwrap();
        assert_eq!(confirmation, Confirmation::Ack(None), "a message to {queue}");
    }

    /// Sends a job to the interactive lane; its correlation id.
    pub async fn send(&mut self, body: &Value) -> String {
        let (properties, id) = self.properties();
        let queue = self.names.interactive.clone();
        self.publish(&queue, body.to_string().as_bytes(), properties)
            .await;
        id
    }

    /// The next answer, within [`SOON`].
    pub async fn reply(&mut self) -> Reply {
        self.reply_within(SOON).await.expect("an answer in time")
    }

    /// The next answer, if one comes in time.
    pub async fn reply_within(&mut self, limit: Duration) -> Option<Reply> {
        let next = tokio::time::timeout(limit, self.consumer.next()).await.ok()?;
        let delivery = next.expect("the reply queue lives").unwrap();
        let json = serde_json::from_slice(&delivery.data).unwrap();
        Some(Reply {
            properties: delivery.properties,
            json,
        })
    }

    /// Sends a job to the interactive lane and waits for its answer.
    pub async fn ask(&mut self, body: &Value) -> Reply {
        let id = self.send(body).await;
        let reply = self.reply().await;
        assert_eq!(reply.correlation_id(), Some(id.as_str()), "the answer to {body}");
        reply
    }

    /// Sends bytes to a queue and waits for the answer.
    pub async fn ask_raw(&mut self, queue: &str, body: &[u8], properties: BasicProperties) -> Reply {
        self.publish(queue, body, properties).await;
        self.reply().await
    }

    /// Takes the next message out of a queue, waiting for it.
    pub async fn take(&self, queue: &str) -> lapin::message::Delivery {
        let clock = Clock::start();
        while clock.now().since(Moment::ZERO) < SOON {
            let options = BasicGetOptions { no_ack: true };
            let got = self.channel.basic_get(queue.into(), options).await.unwrap();
            if let Some(message) = got {
                return message.delivery;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("nothing came into {queue}");
    }

    /// A queue of its own on the exchange of events.
    pub async fn listen(&self, topic: &str) -> String {
        let options = QueueDeclareOptions::exclusive();
        let queue = self
            .channel
            .queue_declare("".into(), options, FieldTable::default())
            .await
            .unwrap();
        let name = queue.name().to_string();
        self.channel
            .queue_bind(
                name.as_str().into(),
                self.names.events.as_str().into(),
                topic.into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .unwrap();
        name
    }

    /// Messages that are ready in a queue, and its consumers.
    pub async fn depth(&self, queue: &str) -> (u32, u32) {
        let passive = QueueDeclareOptions::durable().passive();
        let answer = self
            .channel
            .queue_declare(queue.into(), passive, FieldTable::default())
            .await
            .unwrap();
        (answer.message_count(), answer.consumer_count())
    }

    /// Waits until a queue has that many messages ready and that many consumers.
    pub async fn settles_at(&self, queue: &str, expected: (u32, u32)) {
        let clock = Clock::start();
        let mut depth = (u32::MAX, u32::MAX);
        while clock.now().since(Moment::ZERO) < SOON {
            depth = self.depth(queue).await;
            if depth == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{queue} has {depth:?} messages and consumers, expected {expected:?}");
    }

    /// Declares a replicated queue.
    pub async fn declare_quorum(&self, queue: &str) {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let declared = self
            .channel
            .queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments);
        declared.await.unwrap();
    }

    /// A second channel, for what may cost one.
    pub async fn another_channel(&self) -> Channel {
        self.connection.create_channel().await.unwrap()
    }
}

impl Reply {
    /// As in the request.
    pub fn correlation_id(&self) -> Option<&str> {
        text(self.properties.correlation_id())
    }

    /// The job's id.
    pub fn message_id(&self) -> Option<&str> {
        text(self.properties.message_id())
    }

    /// AMQP `type`.
    pub fn kind(&self) -> Option<&str> {
        text(self.properties.kind())
    }

    /// A header as JSON would show it.
    pub fn header(&self, name: &str) -> Option<String> {
        header(&self.properties, name)
    }

    /// Type, code and param of an error.
    pub fn error(&self) -> (&str, u64, Option<&str>) {
        assert_eq!(
            self.kind(),
            Some("embeddings.error"),
            "{:?}",
            self.json.to_string().get(..300)
        );
        let error = &self.json["error"];
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()));
        (
            error["type"].as_str().unwrap(),
            error["code"].as_u64().unwrap(),
            error["param"].as_str(),
        )
    }

    /// The vectors of a result, whatever their encoding.
    pub fn vectors(&self) -> Vec<Vec<f32>> {
        assert_eq!(self.kind(), Some("embeddings.result"), "{}", self.json);
        match received::read(TYPE_RESULT, self.json.to_string().as_bytes()) {
            Some(Ok(Heard::Result(read))) => read.data.into_iter().map(|item| item.embedding).collect(),
            other => panic!("{other:?}"),
        }
    }
}

/// A header as text.
pub fn header(properties: &BasicProperties, name: &str) -> Option<String> {
    let headers = properties.headers().as_ref()?;
    Some(match headers.inner().get(name)? {
        AMQPValue::LongString(text) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
        AMQPValue::LongLongInt(n) => n.to_string(),
        AMQPValue::LongInt(n) => n.to_string(),
        other => format!("{other:?}"),
    })
}

/// Headers from numbers.
pub fn headers(of: &[(&str, i64)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in of {
        table.insert((*name).into(), AMQPValue::LongLongInt(*value));
    }
    table
}

/// Cosine of two vectors.
pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(p, q)| p * q).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn text(value: &Option<ShortString>) -> Option<&str> {
    value.as_ref().map(ShortString::as_str)
}
