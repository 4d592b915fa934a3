//! Names of direct reply-to under which a publication may have ended a session.
//!
//! RabbitMQ ends the connection of whoever publishes to one whose node is none of its cluster's (seen on 3.10.8), as a message
//! shovelled from another cluster has it; and nothing in the name says so. What was under way to such names when the broker
//! ended a connection for a fault of its own is suspected: the next goes out on a connection that is opened for it alone.

use super::blocked::Blocked;
use super::publish::{self, CONFIRM_MAX};
use super::{BrokerError, Published, Setup, is_internal, session};
use crate::job::reply_to::DIRECT_REPLY_TO;
use lapin::BasicProperties;
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tracing::warn;

/// Names that are suspected; with more, some are forgotten, and suspected anew when it happens again.
const SUSPECTS_MAX: usize = 1024;
/// Longest time for opening the connection.
const OPEN_MAX: Duration = Duration::from_secs(10);
/// Longest time for saying good-bye.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// What is known of names of direct reply-to, over all sessions.
#[derive(Debug, Default)]
pub struct Direct {
    names: Mutex<Names>,
    /// One at a time, so that its end is nobody else's.
    apart: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Names {
    under_way: BTreeSet<String>,
    suspects: BTreeSet<String>,
}

impl Direct {
    /// A message is about to go out to this queue: whether it should go by [`Direct::publish`].
    pub(super) fn begins(&self, queue: &str) -> bool {
        if !queue.starts_with(DIRECT_REPLY_TO) {
            return false;
        }
        let mut names = self.names();
        let suspect = names.suspects.contains(queue);
        if !suspect {
            names.under_way.insert(queue.to_owned());
        }
        suspect
    }

    /// The broker answered for a message to this queue.
    pub(super) fn answered(&self, queue: &str) {
        if queue.starts_with(DIRECT_REPLY_TO) {
            self.names().under_way.remove(queue);
        }
    }

    /// A session has ended, and with it all that was under way.
    pub(super) fn session_ended(&self, cause: &BrokerError) {
        let mut names = self.names();
        let under_way = std::mem::take(&mut names.under_way);
        if is_internal(cause) {
            names.suspects.extend(under_way);
            while names.suspects.len() > SUSPECTS_MAX {
                names.suspects.pop_first();
            }
        }
    }

    /// Publishes to a name that is suspected, on a connection of its own. If that ends as the session did, there is no such place for
    /// an answer; if the broker takes the message, the name is suspected no longer.
    pub(super) async fn publish(
        &self,
        setup: &Setup,
        blocked: &Blocked,
        queue: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> Published {
        let _alone = self.apart.lock().await;
        let name = format!("{} apart", setup.name);
        let sent = async {
            let opening = session::connect(&setup.config, &name);
            let connection = match tokio::time::timeout(OPEN_MAX, opening).await {
                Ok(connection) => session::Unless::taken_over(connection?),
                Err(_) => return Ok(Published::Unconfirmed),
            };
            let channel = session::confirming(&connection).await?;
            let sent = publish::send(&channel, blocked, queue, body, properties, Some(CONFIRM_MAX)).await;
            let _ = tokio::time::timeout(CLOSE_MAX, connection.take_over().close(200, "bye".into())).await;
            sent
        };
        match sent.await {
            Ok(Published::Routed) => {
                self.names().suspects.remove(queue);
                Published::Routed
            }
            Ok(outcome) => outcome,
            Err(error) if is_internal(&error) => {
                warn!(queue, %error, "the broker knows no such direct reply-to");
                Published::Returned
            }
            Err(error) => {
                warn!(queue, %error, "an answer is not sent");
                Published::Unconfirmed
            }
        }
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(code: u16) -> BrokerError {
        let said = lapin::protocol::AMQPError::new(
            lapin::protocol::AMQPErrorKind::from_id(code).unwrap(),
            "said so".into(),
        );
        BrokerError::lapin("connection")(lapin::ErrorKind::ProtocolError(said).into())
    }

    /// Goal: only what the broker had not answered for is suspected, of direct reply-to alone, and only if it ended the
    /// connection for a fault of its own.
    #[test]
    fn what_was_under_way_is_suspected() {
        let direct = Direct::default();
        let [here, foreign, queue] = [
            "amq.rabbitmq.reply-to.here.1",
            "amq.rabbitmq.reply-to.foreign.1",
            "a queue",
        ];
        let begins = || [here, foreign, queue].map(|name| direct.begins(name));
        for (code, suspected) in [(320, false), (541, true)] {
            assert_eq!(begins(), [false; 3]);
            direct.answered(here);
            direct.session_ended(&ended(code));
            assert_eq!(direct.names().suspects.contains(foreign), suspected);
        }
        assert_eq!(begins(), [false, true, false]);
        // Nothing is left of what was under way before.
        direct.answered(here);
        direct.session_ended(&ended(541));
        assert_eq!(begins(), [false, true, false]);
    }
}
