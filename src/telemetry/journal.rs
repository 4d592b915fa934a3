//! journald's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL), without ever waiting longer than asked.
//!
//! [`Entry`] is a datagram in the making, [`send`] tries for a bounded time, [`Lines`] carries log lines to a
//! thread of its own. tracing-journald sends in the thread that logs, and stands still with a journal that
//! stands still; the loop must not.

use std::fmt;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Where journald listens.
pub const SOCKET: &str = "/run/systemd/journal/socket";
/// Longest value of one field. A datagram holds some 200 KiB, as does our socket's buffer.
const VALUE_BYTES_MAX: usize = 32 << 10;
/// Log lines that wait for the journal; more are dropped and counted.
const LINES_MAX: usize = 4096;
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
    /// What happens.
    Info = 6,
    /// For developers.
    Debug = 7,
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

    /// The datagram.
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

/// What goes to the thread.
#[derive(Debug)]
enum Message {
    Line(Entry),
    /// All lines before this one have been handed over once it is answered.
    Flush(SyncSender<()>),
}

/// The way to the thread that writes log lines.
#[derive(Clone, Debug)]
pub struct Lines(SyncSender<Message>);

/// Lines that found the channel full, or that the journal refused, since they were last reported.
static DROPPED: AtomicU64 = AtomicU64::new(0);

impl Lines {
    /// Starts the thread.
    ///
    /// # Errors
    /// Nobody listens at `socket`, or no thread can be had.
    pub fn start(socket: &Path) -> io::Result<Lines> {
        let journal = UnixDatagram::unbound()?;
        journal.connect(socket)?;
        let socket = socket.to_owned();
        let (lines, waiting) = sync_channel(LINES_MAX);
        thread::Builder::new()
            .name("journal".into())
            .spawn(move || write(&journal, &socket, &waiting))?;
        Ok(Lines(lines))
    }

    fn line(&self, entry: Entry) {
        if self.0.try_send(Message::Line(entry)).is_err() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until the journal has what was logged so far, but no longer than `patience`.
    pub fn flush(&self, patience: Duration) {
        let (done, wait) = sync_channel(1);
        if self.0.try_send(Message::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(patience);
        }
    }
}

/// The thread: here, and only here, a journal that stands still is waited for.
fn write(journal: &UnixDatagram, socket: &Path, waiting: &Receiver<Message>) {
    let deliver = |entry: &Entry| {
        // A journald that was restarted listens at a new socket of the same name.
        journal
            .send(entry.bytes())
            .or_else(|_| journal.connect(socket).and_then(|()| journal.send(entry.bytes())))
            .is_ok()
    };
    for message in waiting {
        let entry = match message {
            Message::Line(entry) => entry,
            Message::Flush(done) => {
                let _ = done.try_send(());
                continue;
            }
        };
        if !deliver(&entry) {
            DROPPED.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let dropped = DROPPED.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            let text = format!("the journal did not keep up: {dropped} log lines are missing");
            let mut report = Entry::new(Priority::Warning, &text);
            report.field("LINES_DROPPED", &dropped.to_string());
            if !deliver(&report) {
                DROPPED.fetch_add(dropped, Ordering::Relaxed);
            }
        }
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let meta = event.metadata();
        let mut seen = Seen::default();
        event.record(&mut seen);
        let priority = match *meta.level() {
            Level::ERROR => Priority::Error,
            Level::WARN => Priority::Warning,
            Level::INFO => Priority::Info,
            Level::DEBUG | Level::TRACE => Priority::Debug,
        };
        let mut entry = Entry::new(priority, &seen.message);
        entry.field("TARGET", meta.target());
        if let (Some(file), Some(line)) = (meta.file(), meta.line()) {
            entry.field("CODE_FILE", file);
            entry.field("CODE_LINE", &line.to_string());
        }
        for (name, value) in &seen.fields {
            entry.field(name, value);
        }
        self.line(entry);
    }
}

/// What an event holds.
#[derive(Default)]
struct Seen {
    message: String,
    fields: Vec<(String, String)>,
}

impl Seen {
    fn put(&mut self, field: &Field, value: String) {
        if field.name() == "message" {
            self.message = value;
        } else {
            self.fields.push((field_name(field.name()), value));
        }
    }
}

impl Visit for Seen {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.to_owned());
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
}

/// A name as journald takes it: capitals, digits and underscores, a letter first, at most 64.
fn field_name(name: &str) -> String {
    let name = name.replace('.', "_").to_uppercase();
    let plain = |c: &char| c.is_ascii_uppercase() || c.is_ascii_digit() || *c == '_';
    let name: String = name.chars().filter(plain).take(62).collect();
    if name.starts_with(|c: char| c.is_ascii_uppercase()) {
        name
    } else {
        format!("F_{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt;

    #[test]
    fn a_value_of_several_lines_carries_its_length() {
        let mut entry = Entry::new(Priority::Critical, "a\nb");
        entry.field("STAGE", "computed");
        assert_eq!(
            entry.bytes(),
            b"PRIORITY=2\nSYSLOG_IDENTIFIER=embeddings\nMESSAGE\n\x03\0\0\0\0\0\0\0a\nb\nSTAGE=computed\n"
        );
        assert_eq!(field_name("job.id"), "JOB_ID");
        assert_eq!(field_name("_x\u{e4}"), "F__X");
        assert_eq!(clip("aä", 2), "a");
    }

    /// Goal: a journal that stands still holds nobody up, and what it missed is said later. Method: a
    /// socket that nobody reads until the channel is full.
    #[test]
    fn a_journal_that_stands_still_costs_lines_and_no_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journald = UnixDatagram::bind(&path).unwrap();
        let record = Entry::new(Priority::Critical, "a death");
        send(&path, &record, Duration::ZERO).unwrap();
        let lines = Lines::start(&path).unwrap();
        let subscriber = tracing_subscriber::registry().with(lines.clone());
        tracing::subscriber::with_default(subscriber, || {
            for n in 0..3 * LINES_MAX {
                tracing::info!(n, who = "me", "line");
            }
        });
        lines.flush(Duration::from_millis(20));
        send(&path, &record, Duration::from_millis(20)).unwrap_err();
        let mut reader = [0; 4096];
        let mut seen = String::new();
        while !seen.contains("LINES_DROPPED=") {
            let bytes = journald.recv(&mut reader).unwrap();
            seen = String::from_utf8_lossy(&reader[..bytes]).into_owned();
            if seen.contains("WHO=me") {
                assert!(seen.starts_with("PRIORITY=6\nSYSLOG_IDENTIFIER=embeddings\nMESSAGE=line\nTARGET="));
            }
        }
    }
}
