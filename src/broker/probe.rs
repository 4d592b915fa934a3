//! Looks at the broker from outside and says what is there: for `embeddings check`, which judges it.
//!
//! ```text
//!   every node: name, address, what it speaks --> login, virtual host --> topology --> rights, alarms
//! ```
//!
//! A step is taken only where the one before it makes sense. Nothing changes on the broker: objects are looked for
//! passively, and declared only where they are there already, which is a comparison; rights are asked for by
//! requests that the broker refuses for another reason once it has found them permitted (see `rights`). Every
//! wait has a limit.

mod address;
mod rights;

pub use address::{Reach, Speaks};
pub use rights::{Right, Use};

use super::session::{channel, connect};
use super::{BrokerError, topology, within};
use crate::config::{BrokerConfig, BrokerUrl, Host};
use crate::job::Names;
use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ErrorKind, ExchangeKind};
use std::time::Duration;

/// Longest time for one step: as long as RabbitMQ's own handshake takes at most, and a little less.
pub const STEP_MAX: Duration = Duration::from_secs(8);

/// What was seen of the broker.
#[derive(Debug, Default)]
pub struct Seen {
    /// Each node of `broker.url`.
    pub hosts: Vec<(Host, Reach)>,
    /// The login; none where no node can be reached.
    pub login: Option<Result<(), Refused>>,
    /// Queues and exchange, in the order in which the service declares them; empty without a login.
    pub objects: Vec<Object>,
    /// What the user may do; empty without a login.
    pub rights: Vec<Right>,
    /// Whether the broker takes messages. `None` where that could not be asked.
    pub blocks: Option<bool>,
    /// A step that was not answered, or was answered by something nobody expected.
    pub odd: Option<Refused>,
}

/// A refusal in the broker's own words, or what went wrong on the way to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// AMQP's reply code, if it was the broker that refused.
    pub code: Option<u16>,
    /// Its words.
    pub text: String,
}

impl Refused {
    fn of(error: &BrokerError) -> Refused {
        if let BrokerError::Lapin { source, .. } = error
            && let ErrorKind::ProtocolError(refusal) = source.kind()
        {
            return Refused {
                code: Some(refusal.get_id()),
                text: refusal.get_message().to_string(),
            };
        }
        Refused {
            code: None,
            text: error.to_string(),
        }
    }
}

/// What kind of thing an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A queue that the service cannot be without.
    Queue,
    /// A queue without which it works, and has no checkpoints.
    Resumed,
    /// The exchange of events.
    Exchange,
}

/// How an object of the topology stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// There, and as the service declares it if that was compared.
    There {
        /// Messages and consumers of a queue.
        holds: Option<(u32, u32)>,
    },
    /// Not there.
    Absent,
    /// There, and otherwise than the service declares it.
    Different(Refused),
    /// The broker does not say.
    Unknown(Refused),
}

/// One object of the topology.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// How it stands.
    pub state: State,
}

/// Looks at everything, in order, and stops where going on makes no sense.
pub async fn look(config: &BrokerConfig) -> Seen {
    let mut seen = Seen::default();
    let url = match BrokerUrl::parse(&config.url) {
        Ok(url) => url,
        Err(text) => {
            seen.odd = Some(Refused { code: None, text });
            return seen;
        }
    };
    seen.hosts = address::reach(&url).await;
    if !seen.hosts.iter().any(|(_, reach)| reach.answers()) {
        return seen;
    }
    let connection = match connect(config, "embeddings check").await {
        Ok(connection) => connection,
        Err(error) => {
            seen.login = Some(Err(Refused::of(&error)));
            return seen;
        }
    };
    seen.login = Some(Ok(()));
    let names = Names::new(&config.prefix);
    seen.objects = objects(&connection, &names, config.declare).await;
    match rights::ask(config, &connection, &names, &seen.objects).await {
        Ok((rights, blocks)) => {
            seen.rights = rights;
            seen.blocks = Some(blocks);
        }
        Err(error) => seen.odd = Some(Refused::of(&error)),
    }
    // A broker that does not answer is left behind without a good-bye.
    let _ = tokio::time::timeout(STEP_MAX, connection.close(200, "bye".into())).await;
    seen
}

/// Looks for queues and exchange, and compares what is there with what the service declares.
async fn objects(connection: &Connection, names: &Names, declare: bool) -> Vec<Object> {
    let mut objects = Vec::new();
    for (queue, arguments, needed) in topology::queues(names) {
        let kind = if needed { Kind::Queue } else { Kind::Resumed };
        let passive = QueueDeclareOptions::durable().passive();
        let mut state = match declared(connection, &queue, passive, FieldTable::default()).await {
            Ok(holds) => State::There { holds: Some(holds) },
            Err(error) => absent(&error),
        };
        // The same declaration as the service's changes nothing where the queue is there.
        if declare
            && matches!(state, State::There { .. })
            && let Err(error) = declared(connection, &queue, QueueDeclareOptions::durable(), arguments).await
        {
            different(&error, &mut state);
        }
        objects.push(Object {
            kind,
            name: queue,
            state,
        });
    }
    let mut state = match exchange(connection, &names.events, true).await {
        Ok(()) => State::There { holds: None },
        Err(error) => absent(&error),
    };
    if declare
        && matches!(state, State::There { .. })
        && let Err(error) = exchange(connection, &names.events, false).await
    {
        different(&error, &mut state);
    }
    objects.push(Object {
        kind: Kind::Exchange,
        name: names.events.clone(),
        state,
    });
    objects
}

/// A refusal closes the channel, so each question has its own.
async fn declared(
    connection: &Connection,
    queue: &str,
    options: QueueDeclareOptions,
    arguments: FieldTable,
) -> Result<(u32, u32), BrokerError> {
    let channel = channel(connection).await?;
    let asked = channel.queue_declare(queue.into(), options, arguments);
    let state = within("looking for a queue", STEP_MAX, asked).await?;
    Ok((state.message_count(), state.consumer_count()))
}

async fn exchange(connection: &Connection, name: &str, passive: bool) -> Result<(), BrokerError> {
    let channel = channel(connection).await?;
    let options = ExchangeDeclareOptions {
        passive,
        durable: true,
        ..Default::default()
    };
    let asked = channel.exchange_declare(name.into(), ExchangeKind::Topic, options, FieldTable::default());
    within("looking for an exchange", STEP_MAX, asked).await
}

fn absent(error: &BrokerError) -> State {
    let refused = Refused::of(error);
    match refused.code {
        Some(404) => State::Absent,
        _ => State::Unknown(refused),
    }
}

/// That the user may not declare is found by the question for rights, and is no difference.
fn different(error: &BrokerError, state: &mut State) {
    let refused = Refused::of(error);
    match refused.code {
        Some(406) => *state = State::Different(refused),
        Some(403) => {}
        _ => *state = State::Unknown(refused),
    }
}
