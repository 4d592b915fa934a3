//! Logging, and the record of a death. On a terminal readable lines; under systemd structured records in
//! the journal, where `KILL_REASON=` can be asked for.

pub mod kills;

use std::io::IsTerminal;
use std::time::Duration;
use tracing::Level;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

/// Target of the records of deaths; it has a priority of its own in the journal.
pub const TARGET_KILL: &str = "kill";
/// `MESSAGE_ID=` of a death, the same for every reason.
pub const MESSAGE_ID_KILL: &str = "6f8c1727ddbd49cd9cee8f93eafa69e7";
/// How long a dying process stays, so that journald can still read to which unit it belonged.
pub const ATTRIBUTION_PAUSE: Duration = Duration::from_millis(300);

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

/// Starts logging: to the journal if stderr leads there, else to stderr.
pub fn init(level: &str) -> Result<Logging, LevelError> {
    let (filter, handle) = reload::Layer::new(parse(level)?);
    let journal = std::env::var_os("JOURNAL_STREAM").is_some() && !std::io::stderr().is_terminal();
    let registry = tracing_subscriber::registry().with(filter);
    let started = match journal.then(journald) {
        Some(Ok((plain, kill))) => registry.with(plain).with(kill).try_init(),
        _ => {
            let lines = tracing_subscriber::fmt::layer()
                .with_writer(std::io::stderr)
                .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
                .with_target(false);
            registry.with(lines).try_init()
        }
    };
    // A second start in one process (in tests) keeps the first.
    drop(started);
    Ok(Logging { filter: handle })
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

type Journal = Box<
    dyn Layer<tracing_subscriber::layer::Layered<reload::Layer<EnvFilter, Registry>, Registry>> + Send + Sync,
>;
type JournalKill = Box<
    dyn Layer<
            tracing_subscriber::layer::Layered<
                Journal,
                tracing_subscriber::layer::Layered<reload::Layer<EnvFilter, Registry>, Registry>,
            >,
        > + Send
        + Sync,
>;

/// Two layers, since one can give only one priority to all errors: deaths are critical.
fn journald() -> std::io::Result<(Journal, JournalKill)> {
    let layer = |error| -> std::io::Result<_> {
        Ok(tracing_journald::layer()?
            .with_field_prefix(None)
            .with_syslog_identifier("embeddings".into())
            .with_priority_mappings(PriorityMappings {
                error,
                warn: Priority::Warning,
                info: Priority::Informational,
                debug: Priority::Debug,
                trace: Priority::Debug,
            }))
    };
    let plain = layer(Priority::Error)?.with_filter(filter_fn(|meta| meta.target() != TARGET_KILL));
    let kill = layer(Priority::Critical)?
        .with_filter(filter_fn(|meta| meta.is_span() || meta.target() == TARGET_KILL));
    Ok((plain.boxed(), kill.boxed()))
}

/// What a death leaves behind.
#[derive(Debug, Default)]
pub struct Death {
    /// `KILL_REASON=`
    pub reason: &'static str,
    /// `STAGE=`
    pub stage: &'static str,
    /// `LAST_PROGRESS_AGE_MS=`
    pub last_progress_age_ms: u64,
    /// `BROKER_PROOF_AGE_MS=`
    pub broker_proof_age_ms: u64,
    /// What is inside each stage.
    pub inside: String,
    /// `MODEL=`
    pub model: String,
}

/// Records a death and waits until the journal can know whose it was. The caller exits afterwards.
pub fn record_death(death: &Death) {
    // One plain line first: journald learns from it to which unit this process belongs.
    eprintln!("embeddings ends: {}", death.reason);
    tracing::event!(
        target: TARGET_KILL,
        Level::ERROR,
        message_id = MESSAGE_ID_KILL,
        kill_reason = death.reason,
        stage = death.stage,
        last_progress_age_ms = death.last_progress_age_ms,
        broker_proof_age_ms = death.broker_proof_age_ms,
        inside = %death.inside,
        model = %death.model,
        "the service ends itself: {} {}",
        death.reason,
        death.stage,
    );
    std::thread::sleep(ATTRIBUTION_PAUSE);
}

/// A panic in any thread ends the process, with a record: a service with one part missing is a ghost.
pub fn abort_on_panic() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        default(panic);
        let thread = std::thread::current();
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::event!(
            target: TARGET_KILL,
            Level::ERROR,
            message_id = MESSAGE_ID_KILL,
            kill_reason = "panic",
            thread = thread.name().unwrap_or("unnamed"),
            place = %place,
            "the service ends itself: panic at {place}",
        );
        std::thread::sleep(ATTRIBUTION_PAUSE);
        std::process::abort();
    }));
}
