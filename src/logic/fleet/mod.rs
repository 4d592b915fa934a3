//! What `embeddings top` knows of a fleet: heartbeats and the present moment in, a row for each worker out. Pure:
//! it knows no broker, no terminal and no clock.
//!
//! A worker is judged by when its heartbeats arrive here, never by the clock of its machine, and by the time that it
//! promises itself. Its silence counts only up to the last proof that this side could hear at all (any message, or
//! our own echo): a broker that is away, or that blocks whoever publishes, makes workers unknown, not silent.

mod view;

pub use view::{Health, Order, Totals, View};

use crate::clock::Moment;
use crate::job::heartbeat::Heartbeat;
use crate::logic::status::State;
use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;
use std::time::Duration;

/// Workers that are kept.
pub const ROWS_MAX: usize = 10_000;
/// How often an echo is sent, so that there is a proof as fresh as this; silence is told so much before the promise
/// is over, and so within it.
pub const ECHO_INTERVAL: Duration = Duration::from_millis(250);
/// Without any proof for this long we hear nothing, and whoever is not heard is not to blame.
pub const DEAF_AFTER: Duration = Duration::from_secs(2);
/// Who looks at a clock less often than this was asleep (stopped, starved, a paused machine).
const SLEEP_MIN: Duration = Duration::from_secs(2);
/// A worker that has said good-bye is shown for so long.
const STOPPED_KEPT: Duration = Duration::from_secs(600);
/// Two clocks that count the same start may differ by this: the way of a heartbeat.
const START_TOLERANCE: Duration = Duration::from_secs(1);
/// How often the rate is noted, and how many notes are kept: ten minutes.
const NOTE_INTERVAL: Duration = Duration::from_secs(5);
const NOTES_MAX: usize = 120;
/// Longest text of a heartbeat that is kept.
const TEXT_CHARS_MAX: usize = 128;

/// Which process: its machine and its id there.
pub type Key = (String, u32);

/// Whether we hear.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    /// There is no connection, since then, and why.
    Down(Moment, String),
    /// There is one.
    Up {
        /// Whether echoes come back. Without them only the end of the connection tells that we hear nothing.
        echoing: bool,
        /// The broker says that it takes no messages, since then.
        blocked: Option<Moment>,
    },
}

/// One worker.
#[derive(Clone, Debug)]
struct Row {
    beat: Heartbeat,
    heard: Moment,
    first: Moment,
    /// Processes before this one, seen from here.
    restarts: u32,
    /// Its last word was that it stops.
    leaving: bool,
    /// It was found silent.
    silent: bool,
    /// Inputs a second, one note each [`NOTE_INTERVAL`].
    notes: VecDeque<f64>,
    noted: Moment,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Fleet {
    rows: BTreeMap<Key, Row>,
    /// Where a heartbeat does not promise anything: versions that do not say it.
    interval: Duration,
    line: Line,
    /// Since when we hear without a gap.
    hearing_since: Moment,
    /// The last proof that we hear.
    proof: Moment,
    ticked: Moment,
    /// Rows that had to make room.
    forgotten: u64,
    /// Heartbeats of workers for which there was no room.
    refused: u64,
    /// Consumers of the queue of resumed jobs, as the broker counts them.
    consumers: Option<usize>,
}

impl Fleet {
    /// Knows nobody, and hears nothing yet. `interval` is what is reckoned for a worker that does not say its own.
    pub fn new(interval: Duration, now: Moment) -> Fleet {
        Fleet {
            rows: BTreeMap::new(),
            interval,
            line: Line::Down(now, "connecting".to_owned()),
            hearing_since: now,
            proof: now,
            ticked: now,
            forgotten: 0,
            refused: 0,
            consumers: None,
        }
    }

    /// There is a connection, and from now on heartbeats come.
    pub fn opened(&mut self, now: Moment) {
        self.line = Line::Up {
            echoing: true,
            blocked: None,
        };
        self.hears_again(now);
    }

    /// The connection is lost, or could not be had.
    pub fn lost(&mut self, cause: &str, now: Moment) {
        let since = match &self.line {
            Line::Down(since, _) => *since,
            Line::Up { .. } => now,
        };
        self.line = Line::Down(since, tidy(cause));
        self.consumers = None;
    }

    /// The broker blocks whoever publishes (memory or disk alarm), or does so no longer.
    pub fn blocked(&mut self, on: bool, now: Moment) {
        let Line::Up { blocked, .. } = &mut self.line else {
            return;
        };
        let was = blocked.is_some();
        *blocked = on.then(|| blocked.unwrap_or(now));
        if was && !on {
            self.hears_again(now);
        }
    }

    /// Echoes will not come back: we may not publish.
    pub fn muted(&mut self) {
        if let Line::Up { echoing, .. } = &mut self.line {
            *echoing = false;
        }
    }

    /// Our own echo came back.
    pub fn echoed(&mut self, now: Moment) {
        self.proven(now);
    }

    /// The broker has counted the consumers of the queue of resumed jobs: each worker in health is one.
    pub fn counted(&mut self, consumers: Option<usize>) {
        self.consumers = consumers;
    }

    /// A heartbeat came.
    pub fn heard(&mut self, mut beat: Heartbeat, now: Moment) {
        self.proven(now);
        for text in [
            &mut beat.host,
            &mut beat.name,
            &mut beat.state,
            &mut beat.model,
            &mut beat.device,
            &mut beat.version,
            &mut beat.instance,
        ] {
            *text = tidy(text);
        }
        beat.stalled_stage = beat.stalled_stage.map(|stage| tidy(&stage));
        beat.not_ready = beat.not_ready.map(|why| tidy(&why));
        if let Some(kill) = &mut beat.last_kill {
            kill.reason = tidy(&kill.reason);
            kill.stage = tidy(&kill.stage);
        }
        let key = (beat.host.clone(), beat.pid);
        let before = self.before(&key, &beat, now);
        let mut restarts = 0;
        let mut notes = VecDeque::new();
        if let Some(row) = before.and_then(|key| self.rows.remove(&key)) {
            restarts = row.restarts.saturating_add(1);
            notes = row.notes;
        }
        if !self.rows.contains_key(&key) && !self.has_room() {
            self.refused += 1;
            return;
        }
        let row = self.rows.entry(key).or_insert_with(|| Row {
            beat: Heartbeat::default(),
            heard: now,
            first: now,
            restarts,
            leaving: false,
            silent: false,
            notes,
            noted: now,
        });
        row.leaving = beat.state == State::Draining.name();
        row.silent = false;
        row.heard = now;
        if row.notes.is_empty() || now.since(row.noted) >= NOTE_INTERVAL {
            row.note(beat.inputs_per_second, now);
        }
        row.beat = beat;
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Moment) {
        let asleep = now.since(self.ticked) >= SLEEP_MIN;
        self.ticked = now;
        let Line::Up { echoing, blocked } = &self.line else {
            return;
        };
        if blocked.is_some() {
            return;
        }
        // What came meanwhile is still to be read, and nobody is silent for our sleep.
        if asleep {
            self.hearing_since = now;
        }
        if !echoing {
            self.proof = now;
        }
        self.find_the_silent();
        self.rows
            .retain(|_, row| !(row.leaving && now.since(row.heard) >= STOPPED_KEPT));
    }

    /// Takes a worker out of the list; it is back with its next heartbeat.
    pub fn forget(&mut self, key: &Key) {
        self.rows.remove(key);
    }

    /// Whether nothing can be said of any worker now, since when, and why.
    pub fn deaf(&self, now: Moment) -> Option<(Duration, String)> {
        match &self.line {
            Line::Down(since, cause) => Some((now.since(*since), cause.clone())),
            Line::Up {
                blocked: Some(since), ..
            } => Some((
                now.since(*since),
                "the broker takes no messages (memory or disk alarm)".to_owned(),
            )),
            Line::Up { .. } => {
                let age = now.since(self.proof);
                (age >= DEAF_AFTER).then(|| (age, "nothing comes from the broker".to_owned()))
            }
        }
    }

    /// Whether our echoes come back; without them an alarm of the broker looks like silence.
    pub fn is_echoing(&self) -> bool {
        matches!(self.line, Line::Up { echoing: true, .. })
    }

    /// Whether there is a connection.
    pub fn is_up(&self) -> bool {
        matches!(self.line, Line::Up { .. })
    }

    /// Whether we have listened, without a gap, for as long as any worker promises at most: each one that sends
    /// heartbeats was heard by now.
    pub fn has_listened(&self, now: Moment) -> bool {
        let promises = self.rows.values().map(|row| self.promise(row));
        now.since(self.hearing_since) >= promises.max().unwrap_or(self.interval)
    }

    fn promise(&self, row: &Row) -> Duration {
        match row.beat.interval_ms {
            0 => self.interval,
            ms => Duration::from_millis(ms),
        }
    }

    fn proven(&mut self, now: Moment) {
        if now.since(self.proof) >= DEAF_AFTER {
            self.hears_again(now);
        }
        self.proof = now;
    }

    fn hears_again(&mut self, now: Moment) {
        self.hearing_since = now;
        self.proof = now;
    }

    /// The row that a process not known yet goes on with: that of the process whose place it has taken.
    fn before(&self, key: &Key, beat: &Heartbeat, now: Moment) -> Option<Key> {
        if let Some(row) = self.rows.get(key) {
            // The same number again: another process if it is younger than the one before was. By its own account alone,
            // because a heartbeat may have been held up on its way.
            let younger = beat.uptime_ms < row.beat.uptime_ms && beat.uptime_ms.is_some();
            return younger.then(|| key.clone());
        }
        let fits = |(_, row): &(&Key, &Row)| self.is_before(row, beat, now);
        let fitting = self.rows.range(of_host(key)).filter(fits);
        fitting
            .max_by_key(|(_, row)| row.heard)
            .map(|(key, _)| key.clone())
    }

    /// Whether this row is of a process that has ended, and of the instance that speaks now.
    fn is_before(&self, row: &Row, beat: &Heartbeat, now: Moment) -> bool {
        let killed = beat
            .last_kill
            .as_ref()
            .is_some_and(|kill| kill.pid == row.beat.pid);
        (killed || row.leaving || row.silent) && may_follow(row, beat, now)
    }

    /// Whoever was to be heard by now and was not. One whose place has been taken makes room for the other.
    fn find_the_silent(&mut self) {
        let mut found = Vec::new();
        for (key, row) in &self.rows {
            let from = row.heard.max(self.hearing_since);
            let promise = self.promise(row);
            // What is promised to be sooner than we can judge is judged as soon as we can.
            let limit = promise.saturating_sub(ECHO_INTERVAL).max(promise / 2);
            if !row.silent && self.proof.since(from) >= limit {
                found.push(key.clone());
            }
        }
        for key in found {
            let Some(mut row) = self.rows.remove(&key) else {
                continue;
            };
            row.silent = true;
            let mut others = self.rows.range_mut(of_host(&key));
            match others.find(|(_, other)| !other.silent && may_follow(&row, &other.beat, other.heard)) {
                Some((_, other)) => {
                    other.restarts = other.restarts.saturating_add(row.restarts.saturating_add(1));
                }
                None => {
                    self.rows.insert(key, row);
                }
            }
        }
    }

    /// Makes room for one more, at the cost of whoever has been gone longest. No worker that is heard is forgotten.
    fn has_room(&mut self) -> bool {
        if self.rows.len() < ROWS_MAX {
            return true;
        }
        let gone = self.rows.iter().filter(|(_, row)| row.silent || row.leaving);
        let Some(oldest) = gone.min_by_key(|(_, row)| row.heard).map(|(key, _)| key.clone()) else {
            return false;
        };
        self.rows.remove(&oldest);
        self.forgotten += 1;
        true
    }
}

impl Row {
    fn note(&mut self, rate: f64, now: Moment) {
        self.noted = now;
        if self.notes.len() == NOTES_MAX {
            self.notes.pop_front();
        }
        self.notes
            .push_back(if rate.is_finite() { rate.max(0.0) } else { 0.0 });
    }
}

/// Whether a process may be the one that came after that of the row: of the same instance, of which there is one at a
/// time, and begun when the other was heard for the last time.
fn may_follow(row: &Row, beat: &Heartbeat, heard: Moment) -> bool {
    !beat.instance.is_empty()
        && row.beat.instance == beat.instance
        && began(beat, heard).is_some_and(|began| row.heard <= began + START_TOLERANCE)
}

/// All keys of a machine.
fn of_host(key: &Key) -> RangeInclusive<Key> {
    (key.0.clone(), 0)..=(key.0.clone(), u32::MAX)
}

/// When the process began, on our clock; `None` where it does not say, or that was before we did.
fn began(beat: &Heartbeat, heard: Moment) -> Option<Moment> {
    let uptime_ms = beat.uptime_ms?;
    heard.as_millis().checked_sub(uptime_ms).map(Moment::from_millis)
}

/// Text from elsewhere: nothing that steers a terminal, and not for ever.
fn tidy(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(TEXT_CHARS_MAX).collect()
}
