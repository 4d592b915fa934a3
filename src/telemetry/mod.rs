//! Logging, and the records of deaths. On a terminal readable lines; under systemd structured records in
//! the journal, where `KILL_REASON=` can be asked for.
//!
//! `lines` carries log lines to journald, `printable` keeps those on stderr to one line each, [`journal`] single records, [`blackbox`] outlives the process, [`death`] is the record, [`dying`]
//! the last acts, [`classify`] finds the reason afterwards, [`history`] keeps the last deaths, [`storm`]
//! makes something of many; [`folder`] reads and writes where someone else rules.

pub mod blackbox;
pub mod classify;
pub mod death;
pub mod dying;
pub mod folder;
pub mod history;
pub mod journal;
mod lines;
pub mod memory;
mod printable;
pub mod process;
pub mod storm;

use lines::Lines;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;
use tracing::Subscriber;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

/// Sets the level while the service runs.
#[derive(Clone, Debug)]
pub struct Logging {
    filter: reload::Handle<EnvFilter, Registry>,
}

/// The level does not parse.
#[derive(Debug, thiserror::Error)]
#[error("log.level {level:?}: {reason}")]
pub struct LevelError {
    level: String,
    reason: String,
}

/// The way to the journal, once logging goes there.
static LINES: OnceLock<Lines> = OnceLock::new();

/// Starts logging: to the journal if stderr leads there, else to stderr.
pub fn init(level: &str) -> Result<Logging, LevelError> {
    let (filter, handle) = reload::Layer::new(parse(level)?);
    let registry = tracing_subscriber::registry().with(filter);
    let journal = to_journal().then(to_journald);
    let started = match journal {
        Some(Ok(lines)) => {
            let _ = LINES.set(lines.clone());
            registry.with(lines).try_init()
        }
        _ => {
            let ansi = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            on_stderr(registry, ansi, std::io::stderr).try_init()
        }
    };
    // A second start in one process (in tests) keeps the first.
    drop(started);
    Ok(Logging { filter: handle })
}

/// Readable lines behind `registry`.
fn on_stderr<S, W>(registry: S, ansi: bool, writer: W) -> impl Subscriber + Send + Sync
where
    S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        // It would say on stderr that it cannot write there, and panic.
        .log_internal_errors(false)
        .with_ansi(ansi)
        .with_target(false)
        .fmt_fields(printable::fields());
    registry.with(lines)
}

/// Lines to journald, named and graded as syslog does it.
fn to_journald() -> io::Result<Lines> {
    let layer = tracing_journald::layer()?
        .with_field_prefix(None)
        .with_syslog_identifier("embeddings".into())
        .with_priority_mappings(PriorityMappings {
            error: Priority::Error,
            warn: Priority::Warning,
            info: Priority::Informational,
            debug: Priority::Debug,
            trace: Priority::Debug,
        });
    Lines::start(tracing_subscriber::registry().with(layer), |dropped| {
        let text = format!("the journal did not keep up: {dropped} log lines are missing");
        let mut report = journal::Entry::new(journal::Priority::Warning, &text);
        report.field("LINES_DROPPED", &dropped.to_string());
        let _ = journal::send(Path::new(journal::SOCKET), &report, Duration::ZERO);
    })
}

/// Whether stderr leads to the journal.
fn to_journal() -> bool {
    std::env::var_os("JOURNAL_STREAM").is_some() && !std::io::stderr().is_terminal()
}

/// Waits until the journal has what was logged so far, but no longer than `patience`.
pub fn flush(patience: Duration) {
    if let Some(lines) = LINES.get() {
        lines.flush(patience);
    }
}

/// Memory that this process holds; `None` where the system does not say.
pub fn rss_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

impl Logging {
    /// A new level holds from now on.
    pub fn set_level(&self, level: &str) -> Result<(), LevelError> {
        let filter = parse(level)?;
        self.filter.reload(filter).map_err(|error| LevelError {
            level: level.into(),
            reason: error.to_string(),
        })
    }
}

/// The level or filter as configured; the AMQP library is kept quiet unless it is named: its warnings
/// hold whole messages.
fn parse(level: &str) -> Result<EnvFilter, LevelError> {
    let wrong = |error: tracing_subscriber::filter::ParseError| LevelError {
        level: level.into(),
        reason: error.to_string(),
    };
    let full = if level.contains("lapin") {
        level.to_owned()
    } else {
        format!("{level},lapin=error,async_rs=error")
    };
    EnvFilter::builder().parse(full).map_err(wrong)
}
