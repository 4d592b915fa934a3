//! Why did it die? systemd's view of the end, the black box and the monitor's note go in; the one record
//! comes out, or nothing where nobody died.

use super::blackbox::{Contents, Phase};
use super::death::Death;
use crate::job::sentence::{self, Sentence};

/// How systemd saw the process end: `$SERVICE_RESULT`, `$EXIT_CODE`, `$EXIT_STATUS` of `ExecStopPost=`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ending {
    /// `success`, `exit-code`, `signal`, `core-dump`, `timeout`, `watchdog`, `oom-kill`, `protocol`…
    pub service_result: String,
    /// `exited`, `killed`, `dumped`
    pub exit_code: String,
    /// A number, or a signal's name without its SIG.
    pub exit_status: String,
}

impl Ending {
    /// Whether systemd starts the service again (`Restart=on-failure`, `RestartPreventExitStatus=78`).
    pub fn is_restarted(&self) -> bool {
        self.service_result != "success" && self.exit_status != "78"
    }
}

/// `known` must be of the same life of the service; `now_ms` is on the clock that all processes share.
pub fn classify(
    ending: &Ending,
    known: Option<&Contents>,
    monitor: Option<&Sentence>,
    now_ms: u64,
) -> Option<Death> {
    let own = known.and_then(|known| known.death.clone());
    if own.as_ref().is_some_and(|own| own.recorded) {
        return None;
    }
    let drain = own.as_ref().is_some_and(|own| own.kill_reason == "drain_timeout");
    let mut death = match (own, monitor) {
        (Some(own), _) if !drain => own,
        // A process that the monitor asked to end may run out of its grace period on the way.
        (_, Some(monitor)) if answers_a_signal(ending) => by_the_monitor(monitor),
        // Asked to stop because it took too long to start, and then too long to stop.
        (Some(_), _) if ending.service_result == "timeout" => as_systemd_saw_it(ending, known)?,
        (Some(own), _) => own,
        (None, _) => as_systemd_saw_it(ending, known)?,
    };
    if let Some(known) = known {
        death.learn(known, now_ms);
        if matches!(
            death.kill_reason.as_str(),
            "watchdog_timeout" | "heartbeat_timeout" | "start_timeout"
        ) {
            death.blame_the_longest_wait(known);
        }
    }
    death.exit_code.clone_from(&ending.exit_code);
    death.exit_status.clone_from(&ending.exit_status);
    death.service_result.clone_from(&ending.service_result);
    Some(death)
}

/// Whether this can be the end that the monitor's signals bring.
fn answers_a_signal(ending: &Ending) -> bool {
    // What systemd had begun to end before, it ended.
    if ending.service_result == "watchdog" {
        return false;
    }
    ending.exit_code == "exited" || matches!(ending.exit_status.as_str(), "TERM" | "KILL")
}

fn by_the_monitor(monitor: &Sentence) -> Death {
    let reason = if monitor.reason.is_empty() {
        sentence::REASON
    } else {
        &monitor.reason
    };
    let mut death = Death::of(reason);
    death.detail = if monitor.detail.is_empty() {
        format!("ended by the monitor: silent for {} ms", monitor.silent_ms)
    } else {
        monitor.detail.clone()
    };
    death
}

fn as_systemd_saw_it(ending: &Ending, known: Option<&Contents>) -> Option<Death> {
    let (reason, detail) = match ending.service_result.as_str() {
        // A refused condition starts nothing, so nothing died.
        "success" | "exec-condition" => return None,
        "watchdog" => ("watchdog_timeout", String::new()),
        "oom-kill" => ("oom_killed", String::new()),
        "timeout" => (timeout(ending, known), String::new()),
        "signal" | "core-dump" => ("signal", format!("SIG{}", ending.exit_status)),
        "exit-code" => match ending.exit_status.as_str() {
            "70" => ("broker_disconnected", String::new()),
            "71" => ("no_progress", String::new()),
            "72" => ("engine_corrupt", String::new()),
            "78" => ("config_error", String::new()),
            status => ("failed", format!("exit status {status}")),
        },
        other => ("failed", format!("{other}, exit status {}", ending.exit_status)),
    };
    let mut death = Death::of(reason);
    death.detail = detail;
    Some(death)
}

/// Starting and stopping both have a time-out; the box knows how far the process had come. Without one the
/// signal tells: a start that takes too long is ended politely first.
fn timeout(ending: &Ending, known: Option<&Contents>) -> &'static str {
    let stopping = match known {
        Some(known) => matches!(known.figures.phase, Phase::Ready | Phase::Draining),
        None => ending.exit_status == "KILL",
    };
    if stopping {
        "drain_timeout"
    } else {
        "start_timeout"
    }
}

#[cfg(test)]
mod tests {
    use super::super::blackbox::Figures;
    use super::*;

    fn ending(text: &str) -> Ending {
        let mut words = text.split(' ').map(str::to_owned);
        let mut next = || words.next().unwrap_or_default();
        Ending {
            service_result: next(),
            exit_code: next(),
            exit_status: next(),
        }
    }

    fn known(phase: Phase, death: Option<Death>) -> Contents {
        Contents {
            figures: Figures {
                phase,
                ..Figures::default()
            },
            death,
            ..Contents::default()
        }
    }

    /// Each row as systemd 252 was seen to report it.
    #[test]
    fn without_a_box_systemd_is_believed() {
        for (seen, reason) in [
            ("watchdog killed ABRT", Some("watchdog_timeout")),
            ("watchdog dumped ABRT", Some("watchdog_timeout")),
            ("watchdog killed KILL", Some("watchdog_timeout")),
            ("timeout killed TERM", Some("start_timeout")),
            ("timeout killed ABRT", Some("start_timeout")),
            ("timeout killed KILL", Some("drain_timeout")),
            ("exit-code exited 70", Some("broker_disconnected")),
            ("exit-code exited 71", Some("no_progress")),
            ("exit-code exited 72", Some("engine_corrupt")),
            ("exit-code exited 78", Some("config_error")),
            ("exit-code exited 1", Some("failed")),
            ("exit-code exited 203", Some("failed")),
            ("protocol exited 0", Some("failed")),
            ("resources  ", Some("failed")),
            ("signal killed KILL", Some("signal")),
            ("signal killed SEGV", Some("signal")),
            ("signal killed ABRT", Some("signal")),
            ("core-dump killed SYS", Some("signal")),
            ("oom-kill killed KILL", Some("oom_killed")),
            ("oom-kill killed TERM", Some("oom_killed")),
            ("success killed TERM", None),
            ("success exited 0", None),
            ("exec-condition  ", None),
        ] {
            let death = classify(&ending(seen), None, None, 0);
            assert_eq!(
                death.as_ref().map(|death| death.kill_reason.as_str()),
                reason,
                "{seen}"
            );
            if let Some(death) = death {
                assert_eq!(death.service_result, ending(seen).service_result);
            }
        }
        let death = classify(&ending("signal killed SEGV"), None, None, 0).unwrap();
        assert_eq!(death.detail, "SIGSEGV");
    }

    #[test]
    fn what_the_process_said_of_itself_comes_first_and_is_not_said_twice() {
        for (own, seen) in [
            ("panic", "signal killed ABRT"),
            ("no_progress", "exit-code exited 71"),
            ("no_progress", "watchdog killed KILL"),
            ("config_error", "exit-code exited 78"),
            ("drain_timeout", "success exited 0"),
        ] {
            let mut said = Death::of(own);
            said.kill_id = "an id".into();
            let death = classify(
                &ending(seen),
                Some(&known(Phase::Ready, Some(said.clone()))),
                None,
                0,
            );
            let death = death.unwrap();
            assert_eq!(
                (death.kill_reason.as_str(), death.kill_id.as_str()),
                (own, "an id")
            );
            said.recorded = true;
            let again = classify(&ending(seen), Some(&known(Phase::Ready, Some(said))), None, 0);
            assert_eq!(again, None);
        }
    }

    #[test]
    fn the_box_tells_a_start_from_a_stop() {
        let seen = ending("timeout killed KILL");
        for (phase, reason) in [
            (Phase::Loading, "start_timeout"),
            (Phase::Starting, "start_timeout"),
            (Phase::Ready, "drain_timeout"),
            (Phase::Draining, "drain_timeout"),
        ] {
            let death = classify(&seen, Some(&known(phase, None)), None, 0).unwrap();
            assert_eq!(death.kill_reason, reason, "{phase:?}");
        }
    }

    #[test]
    fn the_monitors_note_explains_the_end_that_follows_it() {
        let note = Sentence {
            pid: 7,
            silent_ms: 45_000,
            ..Sentence::default()
        };
        for seen in ["success exited 0", "success killed TERM", "signal killed KILL"] {
            let death = classify(&ending(seen), None, Some(&note), 0).unwrap();
            assert_eq!(death.kill_reason, "heartbeat_timeout", "{seen}");
            assert!(death.detail.contains("45000 ms"));
        }
        let drained = known(Phase::Draining, Some(Death::of("drain_timeout")));
        let death = classify(&ending("success exited 0"), Some(&drained), Some(&note), 0).unwrap();
        assert_eq!(death.kill_reason, "heartbeat_timeout");
        let stalled = known(Phase::Ready, Some(Death::of("no_progress")));
        let death = classify(&ending("exit-code exited 71"), Some(&stalled), Some(&note), 0).unwrap();
        assert_eq!(death.kill_reason, "no_progress", "it was dying already");
        let death = classify(&ending("watchdog killed ABRT"), None, Some(&note), 0).unwrap();
        assert_eq!(death.kill_reason, "watchdog_timeout");
        let named = Sentence {
            reason: "broker_disconnected".into(),
            ..note
        };
        let death = classify(&ending("signal killed KILL"), None, Some(&named), 0).unwrap();
        assert_eq!(death.kill_reason, "broker_disconnected");
    }

    #[test]
    fn only_failures_that_a_restart_may_mend_are_restarted() {
        assert!(ending("signal killed KILL").is_restarted());
        assert!(!ending("exit-code exited 78").is_restarted());
        assert!(!ending("success exited 0").is_restarted());
    }
}
