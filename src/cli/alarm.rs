//! `embeddings alarm UNIT`: what `OnFailure=` starts when systemd has given up on the service. Says so once,
//! loudly and with a hint, waits out a cool-down that grows, and tries again, unless somebody else did.
//!
//! From systemd 254 on `OnFailure=` fires at every death, before that only at the last: so the unit is asked,
//! and unless it is `failed` there is nothing to say.

use crate::clock::{Clock, millis};
use crate::telemetry::death::Death;
use crate::telemetry::folder::Folder;
use crate::telemetry::history;
use crate::telemetry::journal::{self, Entry, Priority};
use crate::telemetry::storm::{
    self, COOLDOWN_FIRST, COOLDOWN_MAX, DAY_MS, MESSAGE_ID_ALARM, OUTAGE_FIRST, OUTAGE_MAX, STORM,
};
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

/// How long the journal is asked to take the alarm.
const JOURNAL_MAX: Duration = Duration::from_secs(10);
/// Exit status of a configuration that cannot work, and of a command line that cannot, such as an instance with an
/// impossible name: a new try would end in the same.
const FINAL: [&str; 2] = ["78", "2"];
/// Tries to start the unit again, and the pause between them: systemd itself may be busy starting anew.
const TRIES: u32 = 30;
/// How often the unit is looked at while the alarm waits.
const POLL: Duration = Duration::from_secs(2);
/// The count of alarms, a few numbers.
const COUNT_BYTES_MAX: usize = 4096;

/// What systemd says of the unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Unit {
    active_state: String,
    /// `enabled`, `disabled`, `masked`…
    file_state: String,
    invocation_id: String,
    result: String,
    exit_status: String,
    restarts: String,
    state_directory: String,
}

/// The alarms so far, kept between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Count {
    alarms: u32,
    last_unix_ms: u64,
}

/// Raises the alarm for `name` and sees it through.
///
/// # Errors
/// systemd does not answer.
pub fn run(name: &str) -> anyhow::Result<ExitCode> {
    let first = std::env::var("EMBEDDINGS_ALARM_COOLDOWN_S").ok();
    let first = first
        .and_then(|text| text.parse().ok())
        .map_or(COOLDOWN_FIRST, Duration::from_secs);
    let mut unit = show(name)?;
    while unit.active_state == "failed" {
        let deaths = recent_deaths(&unit);
        let deaths: Vec<&Death> = deaths.iter().collect();
        // The newest comes first; what ended it last is why systemd gave up.
        let final_end = unit.result == "exit-code" && FINAL.contains(&unit.exit_status.as_str());
        let pause = (!final_end).then(|| {
            let count = count_alarm(Clock::unix_ms());
            if storm::is_outage(&deaths) {
                return storm::cooldown(OUTAGE_FIRST.min(first), OUTAGE_MAX, count, rand::random());
            }
            storm::cooldown(first, COOLDOWN_MAX, count, rand::random())
        });
        raise(name, &unit, &deaths, pause);
        let Some(pause) = pause else { break };
        match wait(name, &unit, pause)? {
            Some(now) => unit = now,
            None => {
                start(name)?;
                break;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits. Returns the unit as soon as somebody has started or stopped it meanwhile.
fn wait(name: &str, failed: &Unit, pause: Duration) -> anyhow::Result<Option<Unit>> {
    let clock = Clock::start();
    let end = clock.now() + pause;
    loop {
        let left = end.since(clock.now());
        thread::sleep(POLL.min(left));
        // systemd may be executing itself anew just now; the promise to try again stands.
        let Ok(unit) = show(name) else {
            if left.is_zero() {
                return Ok(None);
            }
            continue;
        };
        // Disabled or masked meanwhile: whoever did that does not want it started.
        anyhow::ensure!(
            unit.file_state == failed.file_state,
            "{name} is {} now and was {} before: it is left alone",
            unit.file_state,
            failed.file_state
        );
        if (&unit.active_state, &unit.invocation_id) != (&failed.active_state, &failed.invocation_id) {
            return Ok(Some(unit));
        }
        if left.is_zero() {
            return Ok(None);
        }
    }
}

/// Starts the unit, with patience for a systemd that does not answer.
fn start(name: &str) -> anyhow::Result<()> {
    let once = || {
        systemctl(&["reset-failed", name])?;
        systemctl(&["start", "--no-block", name]).map(drop)
    };
    for _ in 1..TRIES {
        if once().is_ok() {
            return Ok(());
        }
        thread::sleep(POLL);
    }
    once()
}

/// The alarm itself.
fn raise(name: &str, unit: &Unit, deaths: &[&Death], pause: Option<Duration>) {
    let counts = history::counts_by_reason(deaths.iter().copied(), 0);
    let words = history::in_words(&counts);
    let dominating = storm::dominating(deaths);
    let hint = storm::hint(dominating);
    let next = match pause {
        Some(pause) => format!("next try in {} s", pause.as_secs()),
        None => "it will not be started again".into(),
    };
    let kills = if words.is_empty() { &unit.result } else { &words };
    let minutes = STORM.0.as_secs() / 60;
    let text =
        format!("{name} has failed, systemd has given up: {kills} within {minutes} min · {next} · {hint}");
    let mut entry = Entry::new(Priority::Critical, &text);
    for (field, value) in [
        ("MESSAGE_ID", MESSAGE_ID_ALARM),
        ("OBJECT_SYSTEMD_UNIT", name),
        ("KILLS", &words),
        ("KILLS_TOTAL", &deaths.len().to_string()),
        (
            "DOMINATING_REASON",
            dominating.map_or("", |death| &death.kill_reason),
        ),
        ("HINT", hint),
        ("COOLDOWN_S", &pause.unwrap_or_default().as_secs().to_string()),
        ("SERVICE_RESULT", &unit.result),
        ("RESTARTS", &unit.restarts),
    ] {
        entry.field(field, value);
    }
    if let Err(error) = journal::send(Path::new(journal::SOCKET), &entry, JOURNAL_MAX) {
        tell!("the journal does not take the alarm ({error}): {text}");
    }
}

/// Deaths of the window in which systemd counts, newest first.
fn recent_deaths(unit: &Unit) -> Vec<Death> {
    let window = millis(STORM.0);
    let since = Clock::unix_ms().saturating_sub(window);
    let name = unit.state_directory.split(' ').next().unwrap_or_default();
    let state = Path::new("/var/lib").join(name);
    let mut deaths = history::last(&state, history::KEPT_MAX);
    deaths.retain(|death| death.unix_ms >= since);
    deaths
}

/// Counts this alarm. A count that cannot be kept is one.
fn count_alarm(now_unix_ms: u64) -> u32 {
    let Some(state) = std::env::var_os("STATE_DIRECTORY").map(PathBuf::from) else {
        return 1;
    };
    let Ok(folder) = Folder::make(&state) else {
        return 1;
    };
    let before = folder
        .read("alarms.json", COUNT_BYTES_MAX)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let count = next_count(before.unwrap_or_default(), now_unix_ms);
    if let Ok(bytes) = serde_json::to_vec(&count) {
        let _ = folder.replace("alarms.json", 0o640, &bytes);
    }
    count.alarms
}

/// A day without an alarm makes up for those before.
fn next_count(before: Count, now_unix_ms: u64) -> Count {
    let forgotten = now_unix_ms.saturating_sub(before.last_unix_ms) >= DAY_MS;
    Count {
        alarms: if forgotten {
            1
        } else {
            before.alarms.saturating_add(1)
        },
        last_unix_ms: now_unix_ms,
    }
}

fn show(name: &str) -> anyhow::Result<Unit> {
    let properties =
        "--property=ActiveState,UnitFileState,InvocationID,Result,ExecMainStatus,NRestarts,StateDirectory";
    Ok(parse(&systemctl(&["show", properties, "--", name])?))
}

fn parse(text: &str) -> Unit {
    let value = |key: &str| {
        let lines = text.lines().filter_map(|line| line.split_once('='));
        lines
            .filter(|(name, _)| *name == key)
            .map(|(_, value)| value.to_owned())
            .next()
            .unwrap_or_default()
    };
    Unit {
        active_state: value("ActiveState"),
        file_state: value("UnitFileState"),
        invocation_id: value("InvocationID"),
        result: value("Result"),
        exit_status: value("ExecMainStatus"),
        restarts: value("NRestarts"),
        state_directory: value("StateDirectory"),
    }
}

fn systemctl(args: &[&str]) -> anyhow::Result<String> {
    let shown = args.join(" ");
    let output = Command::new("systemctl")
        .args(args)
        .output()
        .with_context(|| format!("failed to run systemctl {shown}"))?;
    anyhow::ensure!(
        output.status.success(),
        "systemctl {shown}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemds_answer_is_read() {
        let unit = parse(
            "ActiveState=failed\nNRestarts=5\nResult=signal\nInvocationID=\nStateDirectory=embeddings\n",
        );
        assert_eq!(
            (unit.active_state.as_str(), unit.state_directory.as_str()),
            ("failed", "embeddings")
        );
        assert_eq!((unit.result.as_str(), unit.restarts.as_str()), ("signal", "5"));
    }

    #[test]
    fn a_quiet_day_makes_the_next_alarm_the_first() {
        let first = next_count(Count::default(), 50 * DAY_MS);
        assert_eq!(first.alarms, 1);
        let second = next_count(first, 51 * DAY_MS - 1);
        assert_eq!(second.alarms, 2);
        assert_eq!(next_count(second, 52 * DAY_MS).alarms, 1);
    }
}
