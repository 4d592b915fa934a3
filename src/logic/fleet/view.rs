//! How a worker is shown: the judgement on it, the figures with their ages, the order of the rows.

use super::{Fleet, Key, Row};
use crate::clock::Moment;
use crate::job::heartbeat::Heartbeat;
use crate::logic::status::State;
use std::cmp::Reverse;
use std::time::Duration;

/// How a worker is, as seen from here. What is worst comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Health {
    /// It has not been heard for as long as it promised at most.
    Silent,
    /// It says that a stage is stalled.
    Stalled,
    /// It says that it takes no new work.
    Degraded,
    /// It says that it is not ready yet.
    Starting,
    /// Nothing can be said: we do not hear, or have not heard it since we hear again.
    Unknown,
    /// It says that it stops.
    Draining,
    /// At work.
    Working,
    /// Ready, with nothing to do.
    Idle,
    /// It has said good-bye, and is gone.
    Stopped,
}

impl Health {
    /// All of them, the worst first.
    pub const ALL: [Health; 9] = [
        Health::Silent,
        Health::Stalled,
        Health::Degraded,
        Health::Starting,
        Health::Unknown,
        Health::Draining,
        Health::Working,
        Health::Idle,
        Health::Stopped,
    ];

    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Health::Silent => "silent",
            Health::Stalled => "stalled",
            Health::Degraded => "degraded",
            Health::Starting => "starting",
            Health::Unknown => "unknown",
            Health::Draining => "draining",
            Health::Working => "working",
            Health::Idle => "idle",
            Health::Stopped => "stopped",
        }
    }

    /// Whether somebody should look at it.
    pub fn is_bad(self) -> bool {
        self < Health::Draining
    }
}

/// By what the rows are ordered. Equal ones stay in the order of host and process id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The worst first.
    #[default]
    Health,
    /// By machine.
    Host,
    /// The longest queue first.
    Queue,
    /// The most jobs in flight first.
    Inflight,
    /// The fastest first.
    Rate,
    /// Whoever has got on least lately first.
    Progress,
    /// The latest death first.
    Kill,
}

impl Order {
    /// All of them, in the order in which a key goes through them.
    pub const ALL: [Order; 7] = [
        Order::Health,
        Order::Host,
        Order::Queue,
        Order::Inflight,
        Order::Rate,
        Order::Progress,
        Order::Kill,
    ];

    /// The column that it goes by.
    pub fn name(self) -> &'static str {
        match self {
            Order::Health => "state",
            Order::Host => "host",
            Order::Queue => "queue",
            Order::Inflight => "inflight",
            Order::Rate => "rate",
            Order::Progress => "progress",
            Order::Kill => "last kill",
        }
    }

    /// The next one.
    pub fn next(self) -> Order {
        let at = Order::ALL.iter().position(|&order| order == self).unwrap_or(0);
        Order::ALL[(at + 1) % Order::ALL.len()]
    }
}

/// One worker at one moment.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// Which.
    pub key: &'a Key,
    /// The judgement.
    pub health: Health,
    /// What it said last.
    pub beat: &'a Heartbeat,
    /// Since it was heard.
    pub age: Duration,
    /// Since something last left one of its stages; by its own clock up to what it said last, by ours from then on.
    pub progress_age: Option<Duration>,
    /// Since the last death of its instance.
    pub kill_age: Option<Duration>,
    /// Since its process began.
    pub uptime: Option<Duration>,
    /// Processes before this one, seen from here.
    pub restarts: u32,
    /// Since it was heard for the first time.
    pub known: Duration,
    /// Within which time its next heartbeat was promised.
    pub promise: Duration,
    /// Inputs a second, of the last ten minutes, oldest first.
    notes: &'a std::collections::VecDeque<f64>,
}

impl View<'_> {
    /// Inputs a second, of the last ten minutes at most, oldest first.
    pub fn rates(&self) -> impl DoubleEndedIterator<Item = f64> + ExactSizeIterator {
        self.notes.iter().copied()
    }

    /// Whether these words, in small letters, are found in what is said of it.
    pub fn has(&self, words: &str) -> bool {
        let beat = self.beat;
        let pid = beat.pid.to_string();
        let texts = [
            self.health.name(),
            &beat.host,
            &beat.instance,
            &beat.model,
            &beat.device,
            &beat.version,
            &pid,
            beat.not_ready.as_deref().unwrap_or(""),
            beat.last_kill.as_ref().map_or("", |kill| &kill.reason),
        ];
        texts.iter().any(|text| text.to_lowercase().contains(words))
    }
}

/// All workers, counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    /// Workers by [`Health`], in the order of [`Health::ALL`].
    pub of: [usize; Health::ALL.len()],
    /// Those that the broker counts as consumers, and nobody has heard.
    pub unheard: usize,
    /// Rows that had to make room for others.
    pub forgotten: u64,
    /// Heartbeats of workers for which there was no room.
    pub refused: u64,
    /// Waiting jobs of those that are heard.
    pub queue: usize,
    /// Jobs in flight there.
    pub inflight: usize,
    /// Inputs a second there.
    pub rate: f64,
}

impl Totals {
    /// How many are so.
    pub fn count(&self, health: Health) -> usize {
        self.of[health as usize]
    }

    /// Workers, without those that have said good-bye and are gone.
    pub fn workers(&self) -> usize {
        self.of.iter().sum::<usize>() - self.count(Health::Stopped)
    }

    /// Whether nobody need look at anything.
    pub fn is_well(&self) -> bool {
        self.unheard == 0
            && !Health::ALL
                .iter()
                .any(|&health| health.is_bad() && self.count(health) > 0)
    }
}

impl Fleet {
    /// Every worker, in this order, of which the words (any case) are found in what is said of it.
    pub fn rows(&self, order: Order, words: &str, now: Moment) -> Vec<View<'_>> {
        let words = words.to_lowercase();
        let mut rows: Vec<View<'_>> = self.views(now).filter(|view| view.has(&words)).collect();
        match order {
            Order::Health => rows.sort_by_key(|view| view.health),
            // They are in this order already.
            Order::Host => {}
            Order::Queue => rows.sort_by_key(|view| Reverse(view.beat.queue)),
            Order::Inflight => rows.sort_by_key(|view| Reverse(view.beat.inflight)),
            Order::Rate => {
                rows.sort_by(|a, b| b.beat.inputs_per_second.total_cmp(&a.beat.inputs_per_second));
            }
            Order::Progress => rows.sort_by_key(|view| Reverse(view.progress_age)),
            Order::Kill => rows.sort_by_key(|view| view.kill_age.unwrap_or(Duration::MAX)),
        }
        rows
    }

    /// One worker.
    pub fn row(&self, key: &Key, now: Moment) -> Option<View<'_>> {
        let (key, row) = self.rows.get_key_value(key)?;
        Some(self.view(key, row, now))
    }

    /// All of them, counted.
    pub fn totals(&self, now: Moment) -> Totals {
        let mut totals = Totals {
            forgotten: self.forgotten,
            refused: self.refused,
            ..Totals::default()
        };
        let mut known = 0;
        for view in self.views(now) {
            totals.of[view.health as usize] += 1;
            if matches!(view.health, Health::Silent | Health::Stopped | Health::Unknown) {
                known += usize::from(view.health == Health::Silent);
                continue;
            }
            known += usize::from(view.beat.connected && view.health != Health::Draining);
            totals.queue = totals.queue.saturating_add(view.beat.queue);
            totals.inflight = totals.inflight.saturating_add(view.beat.inflight);
            totals.rate += view.beat.inputs_per_second;
        }
        // Before each had time to be heard, the count says nothing.
        if self.deaf(now).is_none() && self.has_listened(now) {
            totals.unheard = self.consumers.unwrap_or(0).saturating_sub(known);
        }
        totals
    }

    fn views(&self, now: Moment) -> impl Iterator<Item = View<'_>> {
        let deaf = self.deaf(now).is_some();
        self.rows
            .iter()
            .map(move |(key, row)| self.view_of(key, row, deaf, now))
    }

    fn view<'a>(&'a self, key: &'a Key, row: &'a Row, now: Moment) -> View<'a> {
        self.view_of(key, row, self.deaf(now).is_some(), now)
    }

    fn view_of<'a>(&'a self, key: &'a Key, row: &'a Row, deaf: bool, now: Moment) -> View<'a> {
        let (beat, age) = (&row.beat, now.since(row.heard));
        let ago = |unix_ms: u64| {
            let before = Duration::from_millis(beat.sent_ts.saturating_sub(unix_ms));
            (beat.sent_ts > 0 && unix_ms > 0).then(|| before + age)
        };
        View {
            key,
            health: self.health(row, deaf),
            beat,
            age,
            progress_age: ago(beat.last_progress_ts),
            kill_age: beat.last_kill.as_ref().and_then(|kill| ago(kill.at_ts)),
            uptime: beat.uptime_ms.map(|ms| Duration::from_millis(ms) + age),
            restarts: row.restarts,
            known: now.since(row.first),
            promise: self.promise(row),
            notes: &row.notes,
        }
    }

    fn health(&self, row: &Row, deaf: bool) -> Health {
        if row.leaving && row.silent {
            return Health::Stopped;
        }
        if deaf {
            return Health::Unknown;
        }
        if row.silent {
            return Health::Silent;
        }
        if row.heard < self.hearing_since {
            return Health::Unknown;
        }
        let says = |state: State| row.beat.state == state.name();
        if says(State::Draining) {
            Health::Draining
        } else if says(State::Stalled) || row.beat.stalled_stage.is_some() {
            Health::Stalled
        } else if says(State::Starting) {
            Health::Starting
        } else if says(State::Degraded) || !row.beat.ready || !row.beat.connected {
            Health::Degraded
        } else if says(State::Working) {
            Health::Working
        } else {
            Health::Idle
        }
    }
}
