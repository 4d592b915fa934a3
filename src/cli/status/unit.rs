//! What systemd knows of the unit, by `systemctl show`.

use crate::report::Unit;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const PROPERTIES: &str = "LoadState,ActiveState,SubState,Result,ExecMainStatus,StateChangeTimestamp,\
                          StatusText,NRestarts,UnitFileState,MainPID,WatchdogUSec";
/// systemd that does not answer in this time is left out.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks systemd, where it runs and knows the unit, whose name comes without its ending.
pub fn ask(unit: &str) -> Option<Unit> {
    if !Path::new("/run/systemd/system").is_dir() {
        return None;
    }
    let mut show = Command::new("systemctl");
    let unit = format!("{unit}.service");
    show.args(["show", "--timestamp=utc", "--property", PROPERTIES, "--", &unit]);
    let shown = super::super::ask::ask(show, PATIENCE)?;
    parse(&String::from_utf8_lossy(&shown.stdout))
}

fn parse(shown: &str) -> Option<Unit> {
    let get = |key: &str| {
        let value = |line: &str| line.strip_prefix(key)?.strip_prefix('=').map(str::to_owned);
        shown.lines().find_map(value).unwrap_or_default()
    };
    if get("LoadState") != "loaded" {
        return None;
    }
    Some(Unit {
        active_state: get("ActiveState"),
        sub_state: get("SubState"),
        result: get("Result"),
        exit_status: get("ExecMainStatus").parse().ok(),
        since: get("StateChangeTimestamp"),
        status_text: get("StatusText"),
        restarts: get("NRestarts").parse().ok(),
        unit_file_state: get("UnitFileState"),
        main_pid: get("MainPID").parse().ok().filter(|&pid| pid != 0),
        watchdog_ms: span_ms(&get("WatchdogUSec")).filter(|&ms| ms != 0),
    })
}

/// A span as systemd writes it for people: `40s`, `1min 30s`; without a unit they are microseconds.
pub fn span_ms(text: &str) -> Option<u64> {
    if let Ok(micros) = text.parse::<u64>() {
        return Some(micros / 1000);
    }
    text.split_whitespace().try_fold(0, |sum: u64, part| {
        let digits = part.trim_end_matches(|c: char| !c.is_ascii_digit());
        let ms = match &part[digits.len()..] {
            "us" => return Some(sum),
            "ms" => 1,
            "s" => 1000,
            "min" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        digits
            .parse::<f64>()
            .ok()
            .map(|number| sum + (number * f64::from(ms)) as u64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systemctl_shows_is_understood() {
        let shown = "Result=exit-code\nNRestarts=2\nExecMainStatus=78\nMainPID=0\nWatchdogUSec=1min 40s\n\
                     LoadState=loaded\nActiveState=failed\nSubState=failed\nUnitFileState=enabled\n\
                     StatusText=refused · max_queue = \"x\"\nStateChangeTimestamp=Sun 2026-11-22 04:02:11 UTC\n";
        let unit = parse(shown).unwrap();
        assert_eq!(unit.active_state, "failed");
        assert_eq!(unit.exit_status, Some(78));
        assert_eq!((unit.main_pid, unit.watchdog_ms), (None, Some(100_000)));
        assert_eq!(unit.status_text, "refused · max_queue = \"x\"");
        assert_eq!(parse("LoadState=not-found\nActiveState=inactive\n"), None);
        assert_eq!(span_ms("0"), Some(0));
        assert_eq!(span_ms("infinity"), None);
    }
}
