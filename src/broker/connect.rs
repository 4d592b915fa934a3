//! One connection to the broker, to whichever of its nodes answers.
//!
//! `broker.url` may name several nodes of a cluster. A node that dies so costs a reconnect to another one, and
//! none waits for a node that is gone: the one that was taken last is the last to be tried again.

use super::{BrokerError, within};
use crate::config::{BrokerConfig, BrokerUrl, Host};
use lapin::tcp::OwnedTLSConfig;
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties, DefaultConnectionBuilder};
use rand::seq::SliceRandom;
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::task::{JoinHandle, spawn_blocking};
use tracing::warn;

/// Heartbeat asked for where the URL asks for none: RabbitMQ advises 5 to 20 s, and a peer counts as
/// dead after twice the time.
const HEARTBEAT_S: u16 = 10;
/// Longest time for connecting, shared by all nodes that are tried.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Longest time for connecting to one of several nodes, at least: a handshake with TLS over a long way.
const NODE_MIN: Duration = Duration::from_secs(1);

/// Longest time for reading `broker.ca_file`.
const READ_MAX: Duration = Duration::from_secs(2);

/// The order in which nodes are tried. It begins at random, so that many workers spread over the nodes.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    /// Their places in the URL; the one that was tried last is at the back.
    order: VecDeque<usize>,
    ca_file: Aside,
}

/// A file that is read for each connection, so that a renewed one counts; on a thread of its own kind, for a disk may hang, and
/// on one at most, for it may hang for long and such threads are few.
#[derive(Debug, Default)]
struct Aside(Option<JoinHandle<io::Result<String>>>);

impl Aside {
    /// What the file holds. Cancelling is safe: who reads next waits for the read that is under way.
    async fn read(&mut self, path: &Path, patience: Duration) -> io::Result<String> {
        let path = path.to_owned();
        let reading = (self.0).get_or_insert_with(|| spawn_blocking(move || std::fs::read_to_string(path)));
        let Ok(read) = tokio::time::timeout(patience, reading).await else {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the disk does not answer",
            ));
        };
        self.0 = None;
        read.unwrap_or_else(|stopped| Err(io::Error::other(stopped)))
    }
}

impl Nodes {
    /// Connects to the first node that answers, each being tried once. Cancelling is safe: the next attempt goes on
    /// with the next node.
    pub async fn connect(&mut self, config: &BrokerConfig, name: &str) -> Result<Connection, BrokerError> {
        let url = BrokerUrl::parse(&config.url).map_err(BrokerError::Url)?;
        let count = url.hosts.len();
        if self.order.len() != count {
            self.order = (0..count).collect();
            self.order.make_contiguous().shuffle(&mut rand::rng());
        }
        let mut tried = 0;
        loop {
            self.order.rotate_left(1);
            tried += 1;
            match self.again(config, name).await {
                Err(cause) if tried < count => {
                    warn!(node = %self.last(&url), %cause, "a node of the broker does not answer, trying the next");
                }
                result => return result,
            }
        }
    }

    /// Connects to the node that was connected to last, and to no other.
    pub async fn again(&mut self, config: &BrokerConfig, name: &str) -> Result<Connection, BrokerError> {
        let url = BrokerUrl::parse(&config.url).map_err(BrokerError::Url)?;
        let uri = url.secret_of(self.last(&url));
        let mut uri: AMQPUri = uri.parse().map_err(BrokerError::Url)?;
        uri.query.heartbeat.get_or_insert(HEARTBEAT_S);
        let mut tls = OwnedTLSConfig::default();
        if let Some(path) = &config.ca_file {
            let shown = path.display().to_string();
            let read = self.ca_file.read(path, READ_MAX).await;
            let pem = read.map_err(|source| BrokerError::CaFile { path: shown, source })?;
            tls.cert_chain = Some(pem);
        }
        let builder = DefaultConnectionBuilder::new()
            .map_err(BrokerError::lapin("connecting"))?
            .with_uri(uri)
            .with_tls_config(tls)
            .with_properties(ConnectionProperties::default().with_connection_name(name.into()));
        within("connecting", patience(url.hosts.len()), builder.connect()).await
    }

    fn last<'a>(&self, url: &'a BrokerUrl) -> &'a Host {
        let place = self.order.back().copied().unwrap_or(0);
        &url.hosts[place]
    }
}

/// Connects to any node. For who needs one connection, once.
pub(super) async fn connect(config: &BrokerConfig, name: &str) -> Result<Connection, BrokerError> {
    Nodes::default().connect(config, name).await
}

/// How long one of so many nodes may take. One that swallows packets must leave time to try another.
fn patience(count: usize) -> Duration {
    let share = CONNECT_MAX / u32::try_from(count).unwrap_or(u32::MAX);
    share.clamp(NODE_MIN, CONNECT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a file on a disk that hangs is waited for by one thread, however often a connection is tried, and what it holds is
    /// had when the disk answers; then the file is read anew. Method: a pipe that nobody writes to.
    #[tokio::test]
    async fn a_disk_that_hangs_holds_one_thread() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("ca.pem");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, mode).unwrap();
        let mut file = Aside::default();
        let short = Duration::from_millis(20);
        for _ in 0..20 {
            let error = file.read(&pipe, short).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
        let writes = pipe.clone();
        // With two readers the one that is waited for might not be the one that hears it.
        let writer = std::thread::spawn(move || std::fs::write(writes, "roots").unwrap());
        let long = Duration::from_secs(40);
        assert_eq!(file.read(&pipe, long).await.unwrap(), "roots");
        writer.join().unwrap();
        std::fs::remove_file(&pipe).unwrap();
        std::fs::write(&pipe, "renewed").unwrap();
        assert_eq!(file.read(&pipe, long).await.unwrap(), "renewed");
    }
}
