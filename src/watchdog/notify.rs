//! The only writer of systemd's notify socket. Without systemd every call is nothing.

use sd_notify::NotifyState;
use std::time::Duration;

/// Longest text put into one `STATUS=`; systemd takes datagrams of 4096 bytes.
const STATUS_BYTES_MAX: usize = 512;

/// Loading or connecting goes on: the start may take until `span` from now.
pub fn extend_start(span: Duration, status: &str) {
    send(&[
        NotifyState::ExtendTimeoutUsec(micros(span)),
        NotifyState::Status(&one_line(status)),
    ]);
}

/// What `systemctl status` shows.
pub fn status(line: &str) {
    send(&[NotifyState::Status(&one_line(line))]);
}

/// The service is ready.
pub fn ready(line: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(&one_line(line))]);
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
    }
}

/// The service is stopping. No pet may follow: it would arm the watchdog again.
pub fn stopping(line: &str) {
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

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "cannot notify systemd");
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
}
