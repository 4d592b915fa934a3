//! The only writer of systemd's notify socket. Without systemd every call is nothing.
//!
//! No call ever waits: a systemd that does not read its messages must not hold up the loop. A message that
//! finds the queue full is not sent, and the next one comes soon; only `READY=1`, which is said once, is
//! remembered.

use sd_notify::NotifyState;
use std::io;
#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Longest text put into one `STATUS=`; systemd takes datagrams of 4096 bytes.
const STATUS_BYTES_MAX: usize = 512;

/// Loading or connecting goes on: the start may take until `span` from now. Without a status the one before stays.
pub fn extend_start(span: Duration, status: Option<&str>) {
    let extend = NotifyState::ExtendTimeoutUsec(micros(span));
    match status {
        Some(status) => send(&[extend, NotifyState::Status(&one_line(status))]),
        None => send(&[extend]),
    };
}

/// What `systemctl status` shows.
pub fn status(line: &str) {
    if READY_UNSAID.swap(false, Ordering::Relaxed) {
        ready(line);
    } else {
        send(&[NotifyState::Status(&one_line(line))]);
    }
}

/// `READY=1` is still to be said.
static READY_UNSAID: AtomicBool = AtomicBool::new(false);

/// The service is ready.
pub fn ready(line: &str) {
    let said = send(&[NotifyState::Ready, NotifyState::Status(&one_line(line))]);
    READY_UNSAID.store(!said, Ordering::Relaxed);
}

/// Real work went all the way round, and the broker is proven; or, of the monitor, what it sent to itself
/// arrived. Must never be called for any other reason.
pub fn pet() {
    send(&[NotifyState::Watchdog]);
}

/// The configuration is read again; [`ready`] follows.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(_) => send(&[NotifyState::Reloading]),
    };
}

/// The service is stopping. No pet may follow: it would arm the watchdog again.
pub fn stopping(line: &str) {
    READY_UNSAID.store(false, Ordering::Relaxed);
    send(&[NotifyState::Stopping, NotifyState::Status(&one_line(line))]);
}

/// Whether systemd, or whoever plays its part, listens.
pub fn is_service() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// systemd's watchdog period, if it watches us.
pub fn period() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// False if systemd did not take it.
fn send(states: &[NotifyState<'_>]) -> bool {
    static SYSTEMD: OnceLock<Option<Socket>> = OnceLock::new();
    let open = || Socket::to(&std::env::var("NOTIFY_SOCKET").ok()?).ok();
    let Some(systemd) = SYSTEMD.get_or_init(open) else {
        return true;
    };
    let sent = systemd.send(states);
    if let Err(error) = &sent {
        tracing::debug!(%error, "cannot notify systemd");
    }
    sent.is_ok()
}

/// A socket to a service manager, that never waits.
struct Socket {
    own: UnixDatagram,
    manager: SocketAddr,
}

impl Socket {
    /// `address` is a path, or a name behind an `@`.
    fn to(address: &str) -> io::Result<Socket> {
        let own = UnixDatagram::unbound()?;
        own.set_nonblocking(true)?;
        let manager = match address.strip_prefix('@') {
            #[cfg(target_os = "linux")]
            Some(name) => SocketAddr::from_abstract_name(name)?,
            // Only Linux has such names, as only Linux has systemd.
            #[cfg(not(target_os = "linux"))]
            Some(_) => return Err(io::ErrorKind::Unsupported.into()),
            None => SocketAddr::from_pathname(address)?,
        };
        Ok(Socket { own, manager })
    }

    fn send(&self, states: &[NotifyState<'_>]) -> io::Result<()> {
        let message: String = states.iter().map(|state| format!("{state}\n")).collect();
        self.own.send_to_addr(message.as_bytes(), &self.manager).map(drop)
    }
}

fn micros(span: Duration) -> u32 {
    u32::try_from(span.as_micros()).unwrap_or(u32::MAX)
}

/// A line that cannot smuggle in another state: the socket's messages are lines of `KEY=value`.
fn one_line(text: &str) -> String {
    let mut line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    while line.len() > STATUS_BYTES_MAX {
        line.pop();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_one_short_line() {
        assert_eq!(one_line("lost\nWATCHDOG=1\r"), "lost WATCHDOG=1 ");
        assert!(one_line(&"ä".repeat(1000)).len() <= STATUS_BYTES_MAX);
    }

    /// Goal: a systemd that does not read holds nobody up. Method: sockets that nobody reads.
    #[test]
    fn a_full_queue_is_a_skipped_message_and_no_wait() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("embeddings-test-{}", std::process::id());
        let readers = [
            UnixDatagram::bind(&path).unwrap(),
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap(),
        ];
        for (address, reader) in [path.to_str().unwrap(), &format!("@{name}")].iter().zip(readers) {
            let socket = Socket::to(address).unwrap();
            let states = [NotifyState::Watchdog, NotifyState::Status("well")];
            let sent = (0..10_000).take_while(|_| socket.send(&states).is_ok()).count();
            assert!((1..10_000).contains(&sent), "{sent} messages fit");
            let mut message = [0; 100];
            let bytes = reader.recv(&mut message).unwrap();
            assert_eq!(&message[..bytes], b"WATCHDOG=1\nSTATUS=well\n");
            socket.send(&states).unwrap();
        }
    }
}
