//! journald's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL), without ever waiting longer than asked.
//!
//! For the records of deaths: [`Entry`] is a datagram in the making, [`send`] tries for a bounded time. Log
//! lines go through tracing-journald, on a thread of their own (`lines.rs`).

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// Where journald listens.
pub const SOCKET: &str = "/run/systemd/journal/socket";
/// Longest value of one field. A datagram holds some 200 KiB, as does our socket's buffer.
const VALUE_BYTES_MAX: usize = 32 << 10;
/// Pause between two tries of a record that the journal does not take.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// `PRIORITY=` as syslog numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// A death, an alarm.
    Critical = 2,
    /// Something failed.
    Error = 3,
    /// Worth a look.
    Warning = 4,
}

/// One entry of the journal.
#[derive(Clone, Debug)]
pub struct Entry(Vec<u8>);

impl Entry {
    /// An entry with its priority, its sender's name and its text.
    pub fn new(priority: Priority, message: &str) -> Entry {
        let mut entry = Entry(Vec::with_capacity(512));
        entry.field("PRIORITY", &(priority as u8).to_string());
        entry.field("SYSLOG_IDENTIFIER", "embeddings");
        entry.field("MESSAGE", message);
        entry
    }

    /// One more field. `name` is upper case; a value may hold anything.
    pub fn field(&mut self, name: &str, value: &str) {
        let value = clip(value, VALUE_BYTES_MAX).as_bytes();
        self.0.extend_from_slice(name.as_bytes());
        if value.contains(&b'\n') {
            self.0.push(b'\n');
            self.0.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            self.0.push(b'=');
        }
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }

    /// The datagram that the journal takes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The longest beginning of `text` of at most `bytes_max` bytes.
pub fn clip(text: &str, bytes_max: usize) -> &str {
    let ends = |&end: &usize| text.is_char_boundary(end);
    &text[..(0..=bytes_max.min(text.len())).rev().find(ends).unwrap_or(0)]
}

/// Hands `entry` to journald at `socket`, trying for about `patience`.
///
/// # Errors
/// Nobody listens there, or it took nothing in all that time.
pub fn send(socket: &Path, entry: &Entry, patience: Duration) -> io::Result<()> {
    let sender = UnixDatagram::unbound()?;
    sender.set_nonblocking(true)?;
    let mut left = patience;
    loop {
        match sender.send_to(entry.bytes(), socket) {
            Ok(_) => return Ok(()),
            Err(error) if left.is_zero() => return Err(error),
            // Its queue is full, or it is just being restarted.
            Err(_) => {
                thread::sleep(RETRY_PAUSE.min(left));
                left = left.saturating_sub(RETRY_PAUSE);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_of_several_lines_carries_its_length() {
        let mut entry = Entry::new(Priority::Critical, "a\nb");
        entry.field("STAGE", "computed");
        assert_eq!(
            entry.bytes(),
            b"PRIORITY=2\nSYSLOG_IDENTIFIER=embeddings\nMESSAGE\n\x03\0\0\0\0\0\0\0a\nb\nSTAGE=computed\n"
        );
        assert_eq!(clip("aä", 2), "a");
    }

    /// Goal: a record waits for a journal that stands still only as long as it may.
    #[test]
    fn a_full_queue_is_an_error_after_the_patience() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let _journald = UnixDatagram::bind(&path).unwrap();
        let record = Entry::new(Priority::Critical, "a death");
        send(&path, &record, Duration::ZERO).unwrap();
        while send(&path, &record, Duration::ZERO).is_ok() {}
        send(&path, &record, Duration::from_millis(20)).unwrap_err();
    }
}
