//! Log lines on their way to the journal. tracing-journald sends in the thread that logs, and stands still
//! with a journal that stands still; the loop must not. So whoever logs only copies the line into a bounded
//! channel, and one thread, named `journal`, hands the copies to tracing-journald.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;
use tracing::field::{Field, Value, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Lines that wait for the journal; more are dropped and counted.
const LINES_MAX: usize = 4096;
/// Most fields of an event; `tracing` has no more.
const FIELDS_MAX: usize = 32;

/// A copy of an event.
struct Line {
    metadata: &'static Metadata<'static>,
    values: Vec<(Field, String)>,
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.values.push((field.clone(), value.to_owned()));
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.values.push((field.clone(), format!("{value:?}")));
    }
}

/// What goes to the thread.
enum Message {
    Line(Line),
    /// All lines before this one have been handed over once it is answered.
    Flush(SyncSender<()>),
}

/// The way to the thread that writes log lines.
#[derive(Clone)]
pub struct Lines(SyncSender<Message>);

/// Lines that found the channel full since that was last reported.
static DROPPED: AtomicU64 = AtomicU64::new(0);

impl Lines {
    /// Starts the thread. It hands the lines to `journal`, and the number of those that were dropped to
    /// `report`.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(
        journal: impl Subscriber + Send + 'static,
        report: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Lines> {
        let (lines, waiting) = sync_channel(LINES_MAX);
        thread::Builder::new()
            .name("journal".into())
            .spawn(move || write(&journal, &report, &waiting))?;
        Ok(Lines(lines))
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
fn write(journal: &impl Subscriber, report: &impl Fn(u64), waiting: &Receiver<Message>) {
    for message in waiting {
        match message {
            Message::Line(line) => hand_over(journal, &line),
            Message::Flush(done) => {
                let _ = done.try_send(());
            }
        }
        let dropped = DROPPED.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            report(dropped);
        }
    }
}

/// The event once more, for a subscriber that nobody else knows of.
fn hand_over(journal: &impl Subscriber, line: &Line) {
    let fields = line.metadata.fields();
    let Some(first) = fields.iter().next() else { return };
    let mut values: [(&Field, Option<&dyn Value>); FIELDS_MAX] = [(&first, None); FIELDS_MAX];
    let texts: Vec<&str> = line.values.iter().map(|(_, text)| text.as_str()).collect();
    for ((place, (field, _)), text) in values.iter_mut().zip(&line.values).zip(&texts) {
        *place = (field, Some(text));
    }
    journal.event(&Event::new(line.metadata, &fields.value_set(&values)));
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = Line {
            metadata: event.metadata(),
            values: Vec::new(),
        };
        event.record(&mut line);
        if self.0.try_send(Message::Line(line)).is_err() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use tracing_subscriber::layer::SubscriberExt;

    /// A journal that takes a line only when it is told to, and says what it took.
    struct Gate(
        std::sync::Mutex<Receiver<()>>,
        std::sync::Mutex<std::sync::mpsc::Sender<String>>,
    );

    impl<S: Subscriber> Layer<S> for Gate {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let _ = self.0.lock().unwrap().recv();
            let mut line = Line {
                metadata: event.metadata(),
                values: Vec::new(),
            };
            event.record(&mut line);
            let fields: Vec<String> = (line.values.iter())
                .map(|(field, text)| format!("{}={text}", field.name()))
                .collect();
            let _ = self.1.lock().unwrap().send(fields.join(" "));
        }
    }

    /// Goal: a journal that stands still holds nobody up, what it can take comes whole, and what it missed is
    /// said. Method: a journal behind a gate, and more lines than the channel holds.
    #[test]
    fn a_journal_that_stands_still_costs_lines_and_no_time() {
        let (open, gate) = channel();
        let (told, hears) = channel();
        let (missed, misses) = channel();
        let journal = tracing_subscriber::registry().with(Gate(gate.into(), told.into()));
        let lines = Lines::start(journal, move |dropped| {
            let _ = missed.send(dropped);
        })
        .unwrap();
        let subscriber = tracing_subscriber::registry().with(lines.clone());
        tracing::subscriber::with_default(subscriber, || {
            for n in 0..3 * LINES_MAX {
                tracing::info!(n, who = "me", how = ?Some(1), "line {n}");
            }
        });
        lines.flush(Duration::from_millis(20));
        drop(open);
        assert_eq!(hears.recv().unwrap(), "message=line 0 n=0 who=me how=Some(1)");
        let dropped = misses.recv().unwrap();
        assert!(dropped >= LINES_MAX as u64 * 2 - 2, "{dropped}");
    }
}
