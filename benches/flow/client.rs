//! A program that asks for embeddings and notes when what came back.

use crate::service::Bench;
use embeddings::clock::{Clock, Moment};
use embeddings::job::Names;
use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions, QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Longest wait for an answer: a machine that is busy with other things may be slow, not silent.
const ANSWER_MAX: Duration = Duration::from_secs(120);

/// A connection with a reply queue of its own.
pub struct Client {
    channel: Channel,
    replies: String,
    /// The names of the service it calls.
    pub names: Names,
    answers: mpsc::UnboundedReceiver<Answer>,
    clock: Clock,
    _connection: Connection,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// The number the job was sent under.
    pub id: usize,
    /// AMQP `type`.
    pub kind: String,
    /// The body.
    pub body: Vec<u8>,
    /// When it came.
    pub at: Moment,
}

impl Client {
    /// Connects straight to the node. All clients of a comparison share a clock.
    pub async fn connect(bench: &Bench, clock: Clock) -> Client {
        let connection = Connection::connect(&bench.node.url, ConnectionProperties::default());
        let connection = connection.await.expect("the node is there");
        let channel = connection.create_channel().await.expect("a channel");
        let exclusive = QueueDeclareOptions::exclusive().auto_delete();
        let queue = channel.queue_declare("".into(), exclusive, FieldTable::default());
        let replies = queue.await.expect("a queue").name().to_string();
        let options = BasicConsumeOptions {
            no_ack: true,
            ..Default::default()
        };
        let consumer =
            channel.basic_consume(replies.as_str().into(), "".into(), options, FieldTable::default());
        let mut consumer = consumer.await.expect("a consumer");
        let (arrived, answers) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(delivery)) = consumer.next().await {
                let of = &delivery.properties;
                let id = of
                    .correlation_id()
                    .as_ref()
                    .and_then(|id| id.as_str().parse().ok());
                let kind = of.kind().as_ref().map_or("", |kind| kind.as_str()).to_owned();
                let answer = Answer {
                    id: id.expect("an answer to a job of ours"),
                    kind,
                    body: delivery.data,
                    at: clock.now(),
                };
                if arrived.send(answer).is_err() {
                    return;
                }
            }
        });
        Client {
            channel,
            replies,
            names: Names::new(&bench.prefix),
            answers,
            clock,
            _connection: connection,
        }
    }

    /// Hands a job to the client library, and says when. It has a place in RabbitMQ somewhat later.
    pub async fn send(&self, queue: &str, id: usize, body: &[u8]) -> Moment {
        // A job that was answered before is not computed again, and here each is to be.
        static JOBS: AtomicUsize = AtomicUsize::new(0);
        let job = format!("{}-{}", std::process::id(), JOBS.fetch_add(1, Ordering::Relaxed));
        let properties = BasicProperties::default()
            .with_reply_to(self.replies.as_str().into())
            .with_message_id(job.into())
            .with_delivery_mode(2)
            .with_correlation_id(id.to_string().into());
        let at = self.clock.now();
        let options = BasicPublishOptions::default();
        let sent = self
            .channel
            .basic_publish("".into(), queue.into(), options, body, properties);
        sent.await.expect("the connection stands");
        at
    }

    /// The next answer.
    pub async fn answer(&mut self) -> Answer {
        let next = tokio::time::timeout(ANSWER_MAX, self.answers.recv()).await;
        next.expect("an answer in time").expect("the connection stands")
    }

    /// Answers that have come and were not looked at yet.
    pub fn answers_at_hand(&mut self) -> Vec<Answer> {
        std::iter::from_fn(|| self.answers.try_recv().ok()).collect()
    }

    /// Sends a job and waits for its answer, which must be of this kind.
    pub async fn ask(&mut self, queue: &str, id: usize, body: &[u8], kind: &str) -> Duration {
        let sent = self.send(queue, id, body).await;
        let answer = self.answer().await;
        let is_ours = answer.id == id && answer.kind == kind;
        assert!(
            is_ours,
            "{} for job {}: {}",
            answer.kind,
            answer.id,
            String::from_utf8_lossy(&answer.body)
        );
        answer.at.since(sent)
    }

    /// Messages in a queue that nobody holds.
    pub async fn depth(&self, queue: &str) -> usize {
        let passive = QueueDeclareOptions::durable().passive();
        let state = self
            .channel
            .queue_declare(queue.into(), passive, FieldTable::default());
        state.await.expect("the queue is there").message_count() as usize
    }

    /// Throws away what waits in a queue; how much that was.
    pub async fn purge(&self, queue: &str) -> usize {
        let purged = self
            .channel
            .queue_purge(queue.into(), QueuePurgeOptions::default());
        purged.await.expect("the queue is there") as usize
    }

    /// Declares a queue of the kind that the service has.
    pub async fn declare_quorum(&self, queue: &str) {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let declared = self
            .channel
            .queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments);
        declared.await.expect("a queue");
    }
}

/// What a plain consumer does with what it is delivered.
#[derive(Debug, Clone)]
pub enum Plain {
    /// It acknowledges, and reports the moments of delivery.
    Deliver(mpsc::UnboundedSender<Moment>),
    /// It sends so many bytes back, and acknowledges.
    Echo(usize),
    /// It sends so many bytes back, mandatory, and acknowledges each once the broker has confirmed it: what nobody can do
    /// without who may lose no answer.
    ConfirmedEcho(usize),
}

/// The yardstick: a consumer that does nothing but that, with a prefetch as the service has it.
pub async fn plain_consumer(
    url: &str,
    queue: &str,
    prefetch: u16,
    plain: Plain,
    clock: Clock,
) -> JoinHandle<()> {
    let connection = Connection::connect(url, ConnectionProperties::default())
        .await
        .expect("the node is there");
    // As the service does: what blocks publishers must not stop acknowledgements.
    let publishing = Connection::connect(url, ConnectionProperties::default())
        .await
        .expect("the node is there");
    let channel = connection.create_channel().await.expect("a channel");
    let out = publishing.create_channel().await.expect("a channel");
    channel
        .basic_qos(prefetch, BasicQosOptions::default())
        .await
        .expect("a prefetch");
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume(queue.into(), "".into(), options, FieldTable::default());
    let mut consumer = consumer.await.expect("a consumer");
    tokio::spawn(async move {
        let _kept = (connection, publishing);
        if let Plain::ConfirmedEcho(_) = plain {
            let chosen = out.confirm_select(ConfirmSelectOptions::default());
            chosen.await.expect("confirms");
        }
        while let Some(Ok(delivery)) = consumer.next().await {
            let confirmed = matches!(plain, Plain::ConfirmedEcho(_));
            match &plain {
                Plain::Deliver(delivered) => {
                    let _ = delivered.send(clock.now());
                }
                Plain::Echo(bytes) | Plain::ConfirmedEcho(bytes) => {
                    let to = delivery.properties.reply_to().clone().expect("a reply queue");
                    let id = delivery.properties.correlation_id().clone().expect("an id");
                    let properties = BasicProperties::default()
                        .with_delivery_mode(2)
                        .with_type("echo".into())
                        .with_correlation_id(id);
                    let body = vec![b' '; *bytes];
                    let options = BasicPublishOptions {
                        mandatory: confirmed,
                        ..BasicPublishOptions::default()
                    };
                    let sent = out.basic_publish("".into(), to, options, &body, properties);
                    let confirm = sent.await.expect("the connection stands");
                    if confirmed {
                        tokio::spawn(async move {
                            confirm.await.expect("a confirm");
                            let acked = delivery.acker.ack(BasicAckOptions::default()).await;
                            acked.expect("the connection stands");
                        });
                        continue;
                    }
                }
            }
            let acked = delivery.acker.ack(BasicAckOptions::default()).await;
            acked.expect("the connection stands");
        }
    })
}
