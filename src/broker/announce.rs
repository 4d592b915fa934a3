//! Notices out: to the exchange of events, for whoever binds a queue there. They may get lost, and must cost
//! nothing: no confirm is awaited, and no job or session suffers from an exchange that does not take them.

use super::blocked::Blocked;
use super::{BrokerError, session, topology, within};
use crate::job::Names;
use crate::job::reply::APP_ID;
use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Channel, Connection};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::warn;

/// Notices that wait for the publisher; further ones are dropped.
pub(super) const NOTICES: usize = 64;
/// Longest time for handing one to the client library.
const SEND_MAX: Duration = Duration::from_secs(5);
/// Pause before a channel that the broker has closed is opened anew.
const REOPEN_PAUSE: Duration = Duration::from_secs(10);
/// AMQP delivery mode 1: the message need not survive a restart of the broker.
const TRANSIENT: u8 = 1;

/// One notice.
#[derive(Debug)]
pub(super) struct Notice {
    /// AMQP `type`.
    pub kind: &'static str,
    pub routing_key: String,
    pub body: Vec<u8>,
}

/// Publishes what comes until `queue` is closed or the session ends.
pub(super) async fn run(
    mut channel: Channel,
    connection: Arc<Connection>,
    names: Names,
    declare: bool,
    blocked: Blocked,
    mut queue: mpsc::Receiver<Notice>,
) -> Result<(), BrokerError> {
    while let Some(notice) = queue.recv().await {
        // A broker that blocks publishing would only be sent old news afterwards.
        if blocked.is_set() {
            continue;
        }
        let Err(fault) = send(&channel, &names.events, notice).await else {
            continue;
        };
        // A connection that is gone ends the session, and with it this task.
        if connection.status().connected() {
            warn!(exchange = names.events, cause = %fault, "heartbeats and other notices are not published");
        }
        sleep(REOPEN_PAUSE).await;
        while queue.try_recv().is_ok() {}
        // If this fails so does the next notice, and it is tried again.
        if let Ok(opened) = session::channel(&connection).await {
            channel = opened;
            // The exchange may be what was missing.
            let _ = topology::events(&channel, &names, declare).await;
        }
    }
    Ok(())
}

async fn send(channel: &Channel, exchange: &str, notice: Notice) -> Result<(), BrokerError> {
    let properties = BasicProperties::default()
        .with_app_id(APP_ID.into())
        .with_type(notice.kind.into())
        .with_content_type("application/json".into())
        .with_delivery_mode(TRANSIENT);
    let sent = channel.basic_publish(
        exchange.into(),
        notice.routing_key.as_str().into(),
        BasicPublishOptions::default(),
        &notice.body,
        properties,
    );
    within("publishing a notice", SEND_MAX, sent).await.map(drop)
}
