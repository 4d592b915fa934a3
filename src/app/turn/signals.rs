//! What an administrator asks by a signal: stop, or read the configuration again.

use super::Loop;
use crate::app::confirm_patience;
use crate::broker::Command;
use crate::config::{self, Config};
use crate::logic::event::Event;
use crate::telemetry::blackbox::Phase;
use crate::watchdog::notify;
use signal_hook::consts::signal::SIGHUP;
use tracing::{error, info, warn};

impl Loop {
    pub(super) fn signalled(&mut self, signal: i32) -> Option<Event> {
        if signal == SIGHUP {
            return self.reload();
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

    /// Reads the configuration again. A bad one changes nothing and says so.
    fn reload(&mut self) -> Option<Event> {
        // READY=1 ends a reload, and must not be said by a service that never was ready, or is stopping.
        let told = self.ready && !self.draining;
        if told {
            notify::reloading();
        }
        let event = match config::load(&self.parts.inputs) {
            Ok(loaded) => {
                if let Err(error) = self.parts.logging.set_level(&loaded.config.log.level) {
                    error!(%error, "log level kept");
                }
                loaded.warnings.iter().for_each(|warning| warn!("{warning}"));
                info!("limits and log level read again");
                let mut limits = loaded.config.limits;
                // The watchdog thread keeps its own.
                limits.watchdog_interval = self.parts.config.limits.watchdog_interval;
                self.name_what_waits(&loaded.config);
                limits.max_queue = limits.max_queue.min(self.parts.max_queue_max);
                self.parts.disconnect_kill.set(limits.disconnect_kill);
                self.parts.confirm_patience.set(confirm_patience(&limits));
                self.pulse.reload(&limits);
                Some(Event::Reloaded(limits))
            }
            Err(errors) => {
                error!("configuration kept as it was: {errors}");
                None
            }
        };
        if told {
            notify::ready(self.show.line());
        }
        event
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
            ("max_inputs", old.limits.max_inputs != new.limits.max_inputs),
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
