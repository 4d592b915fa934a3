//! What an administrator asks by a signal: stop, or read the configuration again.

use super::{Done, Loop};
use crate::app::{bodies_bytes_max, confirm_patience, prefetch, wrong};
use crate::broker::Command;
use crate::config::{self, Config, Loaded};
use crate::http;
use crate::job::Lane;
use crate::logic::event::Event;
use crate::telemetry::blackbox::Phase;
use crate::watchdog::notify;
use signal_hook::consts::signal::SIGHUP;
use tracing::{error, info, warn};

/// How far reading the configuration again is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reload {
    /// Nobody has asked, or all is done.
    #[default]
    Idle,
    /// A thread reads.
    Reading,
    /// It does, and was asked again since: what it has read by then may be older.
    Again,
}

/// What a reload has read.
#[derive(Debug)]
pub struct Fresh {
    loaded: Loaded,
    /// What callers by HTTP must present, if anything.
    token: Option<http::Token>,
}

impl Fresh {
    fn of(loaded: Loaded) -> Result<Fresh, String> {
        let token = wrong::token(&loaded).map_err(|bad| bad.to_string())?;
        let token = token.as_deref().map(http::Token::new);
        Ok(Fresh { loaded, token })
    }
}

impl Loop {
    pub(super) fn signalled(&mut self, signal: i32) -> Option<Event> {
        if signal == SIGHUP {
            self.reload();
            return None;
        }
        if self.draining {
            return None;
        }
        self.draining = true;
        self.trace.phase(Phase::Draining);
        info!("stopping: no new jobs, finishing what is in flight");
        self.show
            .stopping("draining · no new jobs, finishing what is in flight");
        self.command(Command::StopIntake);
        self.pulse.hurry();
        Some(Event::Drain)
    }

    /// Has the configuration read again, on a thread of its own: its files may lie on a disk that hangs.
    fn reload(&mut self) {
        if self.reload != Reload::Idle {
            self.reload = Reload::Again;
            return;
        }
        self.reload = Reload::Reading;
        // READY=1 ends a reload, and must not be said by a service that never was ready, or is stopping.
        if self.ready && !self.draining {
            notify::reloading();
        }
        let (inputs, done) = (self.parts.inputs.clone(), self.parts.work_done.clone());
        let read = move || {
            let read = config::load(&inputs).map_err(|errors| errors.to_string());
            let read = read.and_then(Fresh::of).map(Box::new);
            let _ = done.blocking_send(Done::Configuration(read));
        };
        let started = std::thread::Builder::new().name("reload".into()).spawn(read);
        if let Err(error) = started {
            error!(%error, "configuration kept as it was: no thread to read it");
            self.reloaded();
        }
    }

    /// Takes in what was read. A bad configuration changes nothing and says so.
    pub(super) fn configured(&mut self, read: Result<Box<Fresh>, String>) -> Option<Event> {
        let event = match read {
            Ok(fresh) => Some(self.take_over(*fresh)),
            Err(errors) => {
                // One event for each: a line break in one would be escaped on stderr.
                errors
                    .lines()
                    .for_each(|line| error!("configuration kept as it was: {line}"));
                None
            }
        };
        self.reloaded();
        event
    }

    fn reloaded(&mut self) {
        if self.ready && !self.draining {
            notify::ready(self.show.line());
        }
        if std::mem::take(&mut self.reload) == Reload::Again {
            self.reload();
        }
    }

    fn take_over(&mut self, Fresh { loaded, token }: Fresh) -> Event {
        if let Err(error) = self.parts.logging.set_level(&loaded.config.log.level) {
            error!(%error, "log level kept");
        }
        loaded.warnings.iter().for_each(|warning| warn!("{warning}"));
        info!("limits and log level read again");
        self.name_what_waits(&loaded.config);
        let mut limits = loaded.config.limits;
        // The watchdog thread keeps its own.
        limits.watchdog_interval = self.parts.config.limits.watchdog_interval;
        limits.max_queue = limits.max_queue.min(self.parts.max_queue_max);
        self.parts.disconnect_kill.set(limits.disconnect_kill);
        self.parts.confirm_patience.set(confirm_patience(&limits));
        let fetched = prefetch(self.parts.max_queue_max, limits.max_inflight);
        if self.parts.prefetch.set(fetched) {
            info!(
                jobs = fetched[Lane::Bulk as usize],
                "so many jobs of the bulk lane are fetched ahead from the next connection to the broker on"
            );
        }
        if let Some(http) = &self.parts.http {
            http.reload(bodies_bytes_max(&limits));
            // A token from elsewhere waits for a restart, as all of `http` does.
            let same = loaded.config.http == self.parts.config.http;
            if same && token.is_some_and(|token| http.renew(token)) {
                info!("http.token_file holds another token, which callers must present from now on");
            }
        }
        self.pulse.reload(&limits);
        // Of all else what the process was started with is still in force.
        self.parts.config.limits = limits;
        self.parts.catalogue.reload(&self.parts.config);
        Event::Reloaded(limits)
    }

    /// Says aloud which changes a reload cannot take over.
    fn name_what_waits(&self, new: &Config) {
        let old = &self.parts.config;
        let changed = [
            ("default_model", old.default_model != new.default_model),
            ("models", old.models != new.models),
            ("broker", old.broker != new.broker),
            ("engine", old.engine != new.engine),
            ("http", old.http != new.http),
            ("traces", old.traces != new.traces),
            (
                "watchdog_interval_ms",
                old.limits.watchdog_interval != new.limits.watchdog_interval,
            ),
            ("max_queue", new.limits.max_queue > self.parts.max_queue_max),
        ];
        for (key, _) in changed.iter().filter(|(_, changed)| *changed) {
            warn!(key, "the change of this setting waits for a restart");
        }
    }
}
