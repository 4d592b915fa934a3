//! The nodes of `broker.url` as the network sees them: name, address, and what is spoken there.

use super::STEP_MAX;
use crate::config::{BrokerUrl, Host};
use std::io::ErrorKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// What AMQP 0-9-1 begins with.
const HELLO: [u8; 8] = *b"AMQP\0\0\x09\x01";
/// The broker's first frame is some 500 bytes; what is asked of it stands at its beginning.
const ANSWER_BYTES: usize = 4096;

/// How far one comes to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// It takes connections.
    Answers(Speaks),
    /// Its name leads nowhere.
    Unresolved(String),
    /// Its machine says that nobody listens.
    Refused,
    /// Nothing comes back.
    Silent,
    /// What the system says.
    Failed(String),
}

impl Reach {
    /// Whether a login makes sense.
    pub fn answers(&self) -> bool {
        matches!(self, Reach::Answers(_))
    }
}

/// What a node that takes connections speaks, asked in plain text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Speaks {
    /// AMQP 0-9-1, and what it calls itself.
    Amqp {
        /// Such as `RabbitMQ`.
        product: String,
        /// Such as `3.10.8`.
        version: String,
    },
    /// TLS: plain text is answered by an alert, or not at all.
    Tls,
    /// Something else.
    Else,
}

/// Goes to all nodes at once.
pub(super) async fn reach(url: &BrokerUrl) -> Vec<(Host, Reach)> {
    let mut tasks = JoinSet::new();
    for (at, host) in url.hosts.iter().cloned().enumerate() {
        let tls = url.tls;
        tasks.spawn(async move {
            let reach = one(&host, tls).await;
            (at, host, reach)
        });
    }
    let mut all: Vec<_> = tasks.join_all().await;
    all.sort_by_key(|(at, _, _)| *at);
    all.into_iter().map(|(_, host, reach)| (host, reach)).collect()
}

async fn one(host: &Host, tls: bool) -> Reach {
    let name = host.name.as_str();
    let addresses = match timeout(STEP_MAX, lookup_host((name, host.port))).await {
        Err(_) => {
            return Reach::Unresolved(format!(
                "no answer from the resolver within {} s",
                STEP_MAX.as_secs()
            ));
        }
        Ok(Err(error)) => return Reach::Unresolved(error.to_string()),
        Ok(Ok(addresses)) => addresses.collect::<Vec<_>>(),
    };
    match timeout(STEP_MAX, TcpStream::connect(addresses.as_slice())).await {
        Err(_) => Reach::Silent,
        Ok(Err(error)) => match error.kind() {
            ErrorKind::ConnectionRefused => Reach::Refused,
            ErrorKind::TimedOut => Reach::Silent,
            _ => Reach::Failed(error.to_string()),
        },
        Ok(Ok(stream)) => Reach::Answers(timeout(STEP_MAX, greet(stream)).await.unwrap_or(if tls {
            // Whoever speaks TLS waits for a hello of its own kind.
            Speaks::Tls
        } else {
            Speaks::Else
        })),
    }
}

async fn greet(mut stream: TcpStream) -> Speaks {
    let mut answer = Vec::new();
    if stream.write_all(&HELLO).await.is_err() {
        return Speaks::Else;
    }
    let mut buffer = [0; ANSWER_BYTES];
    while answer.len() < ANSWER_BYTES {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(bytes) => answer.extend_from_slice(&buffer[..bytes]),
        }
        if answer.first() != Some(&1) || is_whole(&answer) {
            break;
        }
    }
    understand(&answer)
}

/// A frame is type, channel, length, payload and an end of one byte.
fn is_whole(answer: &[u8]) -> bool {
    let length = answer
        .get(3..7)
        .map(|bytes| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    length.is_some_and(|length| answer.len() >= length as usize + 8)
}

fn understand(answer: &[u8]) -> Speaks {
    /// A TLS record of the type alert.
    const ALERT: u8 = 21;
    match answer {
        // A method frame: class 10 (connection), method 10 (start).
        [1, _, _, _, _, _, _, 0, 10, 0, 10, ..] => Speaks::Amqp {
            product: property(answer, "product").unwrap_or_default(),
            version: property(answer, "version").unwrap_or_default(),
        },
        [ALERT, 3, ..] => Speaks::Tls,
        // RabbitMQ's listener for TLS closes a connection on which plain text comes, in some versions without an alert.
        _ => Speaks::Else,
    }
}

/// A long string of the server's properties: length and name, `S`, length and text.
fn property(answer: &[u8], name: &str) -> Option<String> {
    let mut needle = vec![u8::try_from(name.len()).ok()?];
    needle.extend_from_slice(name.as_bytes());
    needle.push(b'S');
    let at = answer.windows(needle.len()).position(|window| window == needle)? + needle.len();
    let length: [u8; 4] = answer.get(at..at + 4)?.try_into().ok()?;
    let text = answer.get(at + 4..at + 4 + u32::from_be_bytes(length) as usize)?;
    Some(String::from_utf8_lossy(text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(properties: &[(&str, &str)]) -> Vec<u8> {
        let mut table = Vec::new();
        for (name, text) in properties {
            table.push(name.len() as u8);
            table.extend_from_slice(name.as_bytes());
            table.push(b'S');
            table.extend_from_slice(&(text.len() as u32).to_be_bytes());
            table.extend_from_slice(text.as_bytes());
        }
        let mut payload = vec![0, 10, 0, 10, 0, 9];
        payload.extend_from_slice(&(table.len() as u32).to_be_bytes());
        payload.extend_from_slice(&table);
        let mut frame = vec![1, 0, 0];
        frame.extend_from_slice(&(payload.len() as u32).to_be_bytes());
        frame.extend_from_slice(&payload);
        frame.push(0xce);
        frame
    }

    #[test]
    fn the_first_frame_says_who_it_is() {
        let frame = start(&[("product", "RabbitMQ"), ("version", "3.8.9")]);
        assert!(is_whole(&frame) && !is_whole(&frame[..20]));
        let expected = Speaks::Amqp {
            product: "RabbitMQ".into(),
            version: "3.8.9".into(),
        };
        assert_eq!(understand(&frame), expected);
        // Whatever is cut off or claims a length that it has not leads out of nothing.
        for end in 0..frame.len() {
            let _ = understand(&frame[..end]);
        }
        assert_eq!(understand(b"\x15\x03\x03\0\x02\x02\x46"), Speaks::Tls);
        assert_eq!(understand(b"HTTP/1.1 400 Bad Request"), Speaks::Else);
        assert_eq!(understand(b""), Speaks::Else);
    }
}
