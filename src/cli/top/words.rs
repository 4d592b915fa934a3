//! The words of `embeddings top`, the same on a terminal and in plain text: the answer in a line, and the columns.

use crate::cli::Colour;
use crate::cli::count;
use crate::cli::status::span;
use crate::clock::{Moment, millis};
use crate::logic::fleet::{Fleet, Health, Totals, View};
use std::time::Duration;

/// One column of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// A sign and a word.
    State,
    /// The machine.
    Host,
    /// The process.
    Pid,
    /// Whether a session with the broker stands.
    Broker,
    /// Waiting interactive jobs, and their bound.
    Queue,
    /// Jobs in flight.
    Inflight,
    /// Inputs a second.
    Rate,
    /// Why it takes no new work, or which stage is stalled.
    Why,
    /// Since something last left a stage.
    Progress,
    /// Since the last heartbeat.
    Heard,
    /// The last death and its age.
    Kill,
    /// Processes before this one, seen from here.
    Restarts,
    /// The runtime directory.
    Instance,
    /// The default model.
    Model,
    /// Since its start.
    Uptime,
    /// Resident memory.
    Memory,
    /// What computes.
    Device,
    /// Of the program.
    Version,
}

impl Column {
    /// All of them from left to right.
    pub const ALL: [Column; 18] = [
        Column::State,
        Column::Host,
        Column::Pid,
        Column::Why,
        Column::Broker,
        Column::Queue,
        Column::Inflight,
        Column::Rate,
        Column::Progress,
        Column::Heard,
        Column::Kill,
        Column::Restarts,
        Column::Instance,
        Column::Model,
        Column::Uptime,
        Column::Memory,
        Column::Device,
        Column::Version,
    ];

    /// How soon it goes where there is no room: the highest first.
    pub fn rank(self) -> usize {
        const RANKED: [Column; 18] = [
            Column::State,
            Column::Host,
            Column::Queue,
            Column::Inflight,
            Column::Rate,
            Column::Progress,
            Column::Kill,
            Column::Broker,
            Column::Why,
            Column::Heard,
            Column::Pid,
            Column::Restarts,
            Column::Instance,
            Column::Model,
            Column::Uptime,
            Column::Memory,
            Column::Device,
            Column::Version,
        ];
        RANKED
            .iter()
            .position(|&column| column == self)
            .unwrap_or(RANKED.len())
    }

    /// Its title.
    pub fn title(self) -> &'static str {
        match self {
            Column::State => "STATE",
            Column::Host => "HOST",
            Column::Pid => "PID",
            Column::Broker => "BROKER",
            Column::Queue => "QUEUE",
            Column::Inflight => "INFLIGHT",
            Column::Rate => "RATE/S",
            Column::Why => "WHY",
            Column::Progress => "PROGRESS",
            Column::Heard => "HEARD",
            Column::Kill => "LAST KILL",
            Column::Restarts => "RESTARTS",
            Column::Instance => "INSTANCE",
            Column::Model => "MODEL",
            Column::Uptime => "UPTIME",
            Column::Memory => "MEMORY",
            Column::Device => "DEVICE",
            Column::Version => "VERSION",
        }
    }

    /// Whether it is aligned to the right.
    pub fn is_number(self) -> bool {
        matches!(
            self,
            Column::Pid
                | Column::Queue
                | Column::Inflight
                | Column::Rate
                | Column::Progress
                | Column::Heard
                | Column::Restarts
                | Column::Uptime
                | Column::Memory
        )
    }

    /// What it says of a worker.
    pub fn cell(self, view: &View<'_>) -> String {
        let beat = view.beat;
        match self {
            Column::State => format!("{} {}", sign(view.health), view.health.name()),
            Column::Host => beat.host.clone(),
            Column::Pid => beat.pid.to_string(),
            Column::Broker => if beat.connected { "yes" } else { "no" }.to_owned(),
            Column::Queue if beat.queue_max == 0 => beat.queue.to_string(),
            Column::Queue => format!("{}/{}", beat.queue, beat.queue_max),
            Column::Inflight => beat.inflight.to_string(),
            Column::Rate => rate(beat.inputs_per_second),
            Column::Why => why(view),
            Column::Progress => view.progress_age.map_or("?".to_owned(), age),
            Column::Heard => age(view.age),
            Column::Kill => match (&beat.last_kill, view.kill_age) {
                (Some(kill), Some(since)) => format!("{} {}", age(since), kill.reason),
                (Some(kill), None) => kill.reason.clone(),
                (None, _) => "-".to_owned(),
            },
            Column::Restarts => view.restarts.to_string(),
            Column::Instance => instance(&beat.instance).to_owned(),
            Column::Model => beat.model.clone(),
            Column::Uptime => view.uptime.map_or("?".to_owned(), age),
            Column::Memory => mebibytes(beat.rss_bytes),
            Column::Device => beat.device.clone(),
            Column::Version => beat.version.clone(),
        }
    }
}

/// Why it is not as it should be, in a word of its own.
fn why(view: &View<'_>) -> String {
    let beat = view.beat;
    let why = match (&beat.stalled_stage, &beat.not_ready) {
        _ if view.health == Health::Silent => None,
        (Some(stage), _) => Some(stage),
        (None, why) => why.as_ref().filter(|why| **why != beat.state),
    };
    why.map_or("-".to_owned(), |why| (*why).clone())
}

/// The shape that goes with a state: whoever sees no colours sees this.
pub fn sign(health: Health) -> &'static str {
    match health {
        Health::Working | Health::Idle => "●",
        Health::Stalled | Health::Degraded | Health::Starting | Health::Draining => "◐",
        Health::Silent => "✗",
        Health::Unknown => "?",
        Health::Stopped => "○",
    }
}

/// The colour that goes with it.
pub fn colour(health: Health) -> Colour {
    match health {
        Health::Working | Health::Idle => Colour::Green,
        Health::Degraded | Health::Starting | Health::Draining | Health::Unknown => Colour::Yellow,
        Health::Silent | Health::Stalled => Colour::Red,
        Health::Stopped => Colour::Dim,
    }
}

/// The answer: how many there are, and how they are.
pub fn answer(fleet: &Fleet, totals: &Totals, now: Moment) -> (Colour, String) {
    let workers = totals.workers();
    if let Some((since, cause)) = fleet.deaf(now) {
        let line = format!(
            "◐ {}, nothing known of them for {}: {cause}",
            count(workers, "worker"),
            age(since)
        );
        return (Colour::Red, line);
    }
    let mut parts = Vec::new();
    for health in Health::ALL {
        let number = totals.count(health);
        if number > 0 && (health.is_bad() || matches!(health, Health::Draining | Health::Stopped)) {
            parts.push(format!("{number} {}", health.name()));
        }
    }
    if totals.unheard > 0 {
        let more = if workers > 0 { " more" } else { "" };
        parts.push(match totals.unheard {
            1 => format!("1{more} takes jobs and is not heard"),
            number => format!("{number}{more} take jobs and are not heard"),
        });
    }
    let (sign, colour) = match (totals.is_well(), workers) {
        (true, 0) => ("○", Colour::Yellow),
        (true, _) => ("●", Colour::Green),
        (false, _) => ("◐", Colour::Red),
    };
    if totals.is_well() && workers > 0 {
        parts.insert(0, if workers == 1 { "well" } else { "all well" }.to_owned());
    }
    let mut line = match workers {
        0 => format!("{sign} no worker"),
        _ => format!("{sign} {}", count(workers, "worker")),
    };
    for part in parts {
        line.push_str(", ");
        line.push_str(&part);
    }
    if workers > 0 {
        line.push_str(&format!(
            " · queue {} · inflight {} · {}/s",
            totals.queue,
            totals.inflight,
            rate(totals.rate)
        ));
    }
    (colour, line)
}

/// What else is to be known of the list itself; nothing where all is as it should be.
pub fn remarks(fleet: &Fleet, totals: &Totals) -> Vec<String> {
    let mut said = Vec::new();
    if fleet.is_up() && !fleet.is_echoing() {
        said.push(
            "no right to publish on the exchange of events: while the broker has an alarm, workers look silent".to_owned(),
        );
    }
    if totals.forgotten > 0 {
        said.push(format!(
            "{} forgotten, those silent longest: no more than {} are kept",
            count_of(totals.forgotten, "worker"),
            crate::logic::fleet::ROWS_MAX
        ));
    }
    if totals.refused > 0 {
        said.push(format!(
            "{} of workers beyond {} not shown",
            count_of(totals.refused, "heartbeat"),
            crate::logic::fleet::ROWS_MAX
        ));
    }
    said
}

fn count_of(number: u64, thing: &str) -> String {
    count(usize::try_from(number).unwrap_or(usize::MAX), thing)
}

/// An age for people.
pub fn age(age: Duration) -> String {
    span(millis(age))
}

/// Inputs a second for people.
pub fn rate(rate: f64) -> String {
    if rate > 0.0 && rate < 10.0 {
        format!("{rate:.1}")
    } else {
        format!("{rate:.0}")
    }
}

/// Memory for people.
pub fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// The name of a runtime directory: what comes last in it.
pub fn instance(path: &str) -> &str {
    match path.trim_end_matches('/').rsplit('/').next() {
        Some(name) if !name.is_empty() => name,
        _ => "-",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_unlike_and_figures_are_short() {
        let mut ranks: Vec<_> = Column::ALL.map(Column::rank).to_vec();
        ranks.sort_unstable();
        assert_eq!(ranks, (0..Column::ALL.len()).collect::<Vec<_>>());
        assert_eq!(
            (rate(0.0), rate(0.26), rate(812.4)),
            ("0".into(), "0.3".into(), "812".into())
        );
        assert_eq!(instance("/run/embeddings@gpu0/"), "embeddings@gpu0");
        assert_eq!((instance(""), instance("/")), ("-", "-"));
        assert_eq!(mebibytes(200 << 20), "200 MiB");
    }
}
