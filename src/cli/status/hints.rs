//! What a state means, and what to do next: one line of advice each.

use super::{Around, text};
use crate::clock::millis;
pub use crate::report::advice::advice as of_answer;
use crate::report::{Report, State, Unit};

const JOURNAL: &str = "journalctl -u embeddings -n 30 says more";

/// What is to be done to an instance is done to its unit, and its files are its own. (`restart` ends like `start`.)
pub fn name_instance(hints: &mut [String], instance: Option<&str>) {
    let Some(name) = instance else { return };
    for hint in hints {
        for before in ["start", "enable", "reset-failed", "-u"] {
            *hint = hint.replace(
                &format!("{before} embeddings"),
                &format!("{before} embeddings@{name}"),
            );
        }
        for command in ["embeddings check", "embeddings serve"] {
            *hint = hint.replace(command, &format!("{command} --instance {name}"));
        }
    }
}

/// For one that does not answer.
pub fn of_silence(report: &Report, around: &Around) -> Vec<String> {
    match report.state {
        State::Stopped => stopped(report.systemd.as_ref(), around),
        _ => hung(report, around),
    }
}

fn hung(report: &Report, around: &Around) -> Vec<String> {
    let mut hints = Vec::new();
    if let (Some(pid), Some(state)) = (report.pid, &around.process) {
        hints.push(format!("the kernel says of process {pid}: {state}"));
    }
    if report.line.starts_with("no process answers") {
        hints.push(format!(
            "systemd has it running, and nobody listens at {}: its log says why",
            around.socket.display()
        ));
        hints.push(JOURNAL.into());
        return hints;
    }
    let watched = report.systemd.as_ref().and_then(|unit| unit.watchdog_ms);
    let watchdog = watched.map(|ms| {
        format!(
            "systemd's watchdog ends it {} after its last completed round (ring 2)",
            text::span(ms)
        )
    });
    let own = around.limits.map(|limits| {
        format!(
            "its own watchdog thread ends it {} after the last turn of its loop (ring 1, no_progress, exit 71)",
            text::span(millis(limits.liveness_max_stall))
        )
    });
    let frozen = report.line.starts_with("not a word");
    hints.extend(own.filter(|_| !frozen));
    match (watchdog, report.pid) {
        (Some(watchdog), _) => hints.push(watchdog),
        (None, Some(pid)) if frozen => hints.push(format!(
            "no systemd watches it: only the monitor would end it (ring 3), or `kill -KILL {pid}`"
        )),
        _ => {}
    }
    hints
}

fn stopped(unit: Option<&Unit>, around: &Around) -> Vec<String> {
    let Some(unit) = unit else {
        let mut hints = vec![format!("nobody listens at {}", around.socket.display())];
        hints.extend(around.wrong.iter().map(|error| format!("configuration: {error}")));
        hints.push(
            "`sudo systemctl start embeddings` starts the installed service, `embeddings serve` one by hand"
                .into(),
        );
        return hints;
    };
    let mut hints: Vec<String> = match (unit.active_state.as_str(), unit.result.as_str()) {
        ("activating", _) => vec!["systemd starts it again by itself".into(), JOURNAL.into()],
        ("deactivating", _) => vec!["systemd is stopping it".into()],
        ("failed", _) if unit.exit_status == Some(78) => {
            let mut hints: Vec<String> = around
                .wrong
                .iter()
                .map(|error| format!("configuration: {error}"))
                .collect();
            hints.push("mend it (`sudo embeddings check`), then `sudo systemctl restart embeddings`".into());
            hints
        }
        // systemd keeps the result of the last death, and counts the restarts before it.
        ("failed", _) if unit.restarts.is_some_and(|restarts| restarts > 0) => vec![
            "it died so often that systemd gave up; the deaths below say of what".into(),
            "then `sudo systemctl reset-failed embeddings; sudo systemctl start embeddings`".into(),
        ],
        ("failed", _) => vec![
            JOURNAL.into(),
            "`sudo systemctl restart embeddings` starts it".into(),
        ],
        _ => vec!["it was stopped; `sudo systemctl start embeddings` starts it".into()],
    };
    if unit.unit_file_state == "disabled" {
        hints.push("it does not start at boot: `sudo systemctl enable embeddings`".into());
    }
    hints
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn unit(active: &str, result: &str, exit: u64) -> Unit {
        Unit {
            active_state: active.into(),
            result: result.into(),
            exit_status: Some(exit),
            watchdog_ms: Some(40_000),
            ..Unit::default()
        }
    }

    fn around() -> Around {
        Around {
            socket: PathBuf::from("/run/x"),
            limits: Some(crate::config::Limits::default()),
            wrong: vec!["max_queue: wrong".into()],
            process: Some("T (stopped)".into()),
        }
    }

    #[test]
    fn whoever_finds_it_stopped_is_told_what_to_do() {
        let said = |unit: Unit| stopped(Some(&unit), &around()).join("\n");
        assert!(said(unit("failed", "exit-code", 78)).contains("max_queue: wrong\nmend it"));
        let mut storm = unit("failed", "exit-code", 71);
        storm.restarts = Some(5);
        assert!(said(storm).contains("reset-failed"));
        assert!(said(unit("failed", "signal", 9)).contains("journalctl"));
        assert!(said(unit("activating", "success", 70)).contains("starts it again by itself"));
        let mut off = unit("inactive", "success", 0);
        off.unit_file_state = "disabled".into();
        assert!(said(off).contains("systemctl start embeddings` starts it\nit does not start at boot"));
        assert!(stopped(None, &around())[0].contains("/run/x"));
    }

    /// A loop that hangs is ended by the process itself, a frozen process only from outside.
    #[test]
    fn an_instance_is_told_of_by_its_unit() {
        let mut hints = stopped(Some(&unit("failed", "exit-code", 78)), &around());
        hints.extend(stopped(Some(&unit("failed", "signal", 0)), &around()));
        name_instance(&mut hints, Some("gpu0"));
        let said = hints.join("\n");
        for part in [
            "`sudo embeddings check --instance gpu0`",
            "restart embeddings@gpu0`",
            "-u embeddings@gpu0 -n",
        ] {
            assert!(said.contains(part), "{part} in {said}");
        }
        assert!(!said.contains("embeddings@gpu0@gpu0"), "{said}");
    }

    #[test]
    fn whoever_finds_it_hung_is_told_which_ring_ends_it() {
        let report = |line: &str, systemd| Report {
            state: State::Degraded,
            line: line.into(),
            pid: Some(7),
            systemd,
            ..Report::default()
        };
        let said = |line, unit| of_silence(&report(line, unit), &around()).join("\n");
        let frozen = said("not a word in 3 s", Some(unit("active", "success", 0)));
        assert!(
            frozen.contains("T (stopped)") && frozen.contains("40 s after"),
            "{frozen}"
        );
        assert!(!frozen.contains("ring 1"), "{frozen}");
        assert!(said("not a word in 3 s", None).contains("kill -KILL 7"));
        assert!(said("takes questions", None).contains("30 s after the last turn"));
    }
}
