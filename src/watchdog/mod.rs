//! The watchdog: what systemd is told, and the thread that ends a process which is of no use any more.
//!
//! [`notify`] is the only writer of the notify socket. [`thread`] only kills: it can never pet, so it
//! cannot keep a zombie alive. Between a worker and the monitor, the ring outside of it, lie the socket of
//! [`heartbeat`] and `listener`, the hold on a `process`, and the [`sentence`].

use crate::config::Limits;
use std::time::Duration;

pub mod heartbeat;
#[cfg(target_os = "linux")]
pub mod listener;
pub mod notify;
#[cfg(target_os = "linux")]
pub mod process;
pub mod sentence;
pub mod thread;

/// What is wrong with the order of the three rings, in words for the log. Each ring must have the time to
/// act and to say why before the next one does: the service itself, then systemd (`period` is its
/// `WATCHDOG_USEC`), then the monitor.
pub fn disorder(limits: &Limits, period: Option<Duration>) -> Vec<String> {
    let Some(period) = period else {
        return vec!["systemd does not watch this service (no WatchdogSec=): one ring less".to_owned()];
    };
    let ms = |span: Duration| span.as_millis();
    let own = limits.liveness_max_stall + limits.watchdog_interval;
    let mut faults = Vec::new();
    if period <= own {
        faults.push(format!(
            "WatchdogSec= is {} ms, not above liveness_max_stall_ms + watchdog_interval_ms = {}: systemd kills before the service can say why",
            ms(period),
            ms(own)
        ));
    }
    if limits.canary_interval > period / 2 {
        faults.push(format!(
            "canary_interval_ms = {} is over half of WatchdogSec= ({} ms): an idle service may be killed for one late canary",
            ms(limits.canary_interval),
            ms(period)
        ));
    }
    if limits.disconnect_kill >= period {
        faults.push(format!(
            "disconnect_kill_ms = {} is not below WatchdogSec= ({} ms): systemd kills before the loss of the broker is said",
            ms(limits.disconnect_kill),
            ms(period)
        ));
    }
    if limits.heartbeat_timeout <= period {
        faults.push(format!(
            "heartbeat_timeout_ms = {} is not above WatchdogSec= ({} ms): the monitor kills before systemd does",
            ms(limits.heartbeat_timeout),
            ms(period)
        ));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_rings_are_in_order() {
        assert_eq!(
            disorder(&Limits::shipped(), Some(Duration::from_secs(40))),
            Vec::<String>::new()
        );
    }

    #[test]
    fn every_disorder_is_named() {
        let faults = |period| disorder(&Limits::shipped(), Some(Duration::from_millis(period)));
        assert!(faults(31_000)[0].contains("liveness_max_stall_ms"));
        assert!(
            faults(9_000)
                .iter()
                .any(|fault| fault.contains("canary_interval_ms"))
        );
        assert!(
            faults(9_000)
                .iter()
                .any(|fault| fault.contains("disconnect_kill_ms"))
        );
        assert!(faults(45_000)[0].contains("heartbeat_timeout_ms"));
        assert!(disorder(&Limits::shipped(), None)[0].contains("WatchdogSec="));
    }
}
