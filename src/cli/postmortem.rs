//! `embeddings postmortem`: systemd's `ExecStopPost=`, the one place that sees every death. Writes the record
//! that the process could not, keeps the history, and warns of deaths that come slowly and do not end.
//!
//! Runs as root, so that the journal believes whose death it was; what the service's user can write is
//! read without following links, and in bounded size. Nothing in here may take long: the next start waits.

use crate::clock::Clock;
use crate::config;
use crate::job::sentence::{self, Sentence};
use crate::telemetry::blackbox::{self, Contents};
use crate::telemetry::classify::{Ending, classify};
use crate::telemetry::death::Death;
use crate::telemetry::folder::Folder;
use crate::telemetry::history::{self, History};
use crate::telemetry::journal::{self, Entry, Priority};
use crate::telemetry::storm::{self, DAY_MS, MESSAGE_ID_CHRONIC};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

/// How long the journal is asked to take the record; after that the history keeps it.
const JOURNAL_MAX: Duration = Duration::from_secs(2);
/// Spread of the restarts, so that a fleet does not come back in lockstep.
const JITTER_MAX_MS: u64 = 2000;
/// Largest sentence that is read.
const SENTENCE_BYTES_MAX: usize = 4096;

/// Runs in systemd's environment of `ExecStopPost=`.
///
/// # Errors
/// There is no such environment.
pub fn run() -> anyhow::Result<ExitCode> {
    let var = |name: &str| std::env::var(name).unwrap_or_default();
    let ending = Ending {
        service_result: var("SERVICE_RESULT"),
        exit_code: var("EXIT_CODE"),
        exit_status: var("EXIT_STATUS"),
    };
    anyhow::ensure!(
        !ending.service_result.is_empty(),
        "this command is systemd's to call (ExecStopPost=): SERVICE_RESULT is not set"
    );
    // Of several directories of one kind the first is the main one.
    let dir = |name: &str| {
        var(name)
            .split(':')
            .next()
            .filter(|dir| !dir.is_empty())
            .map(PathBuf::from)
    };
    let unit = std::fs::read_to_string("/proc/self/cgroup")
        .ok()
        .and_then(|text| unit_of(&text));
    let runtime = dir("RUNTIME_DIRECTORY");
    let known = runtime.as_ref().and_then(|runtime| blackbox::read(runtime).ok());
    let known = known.filter(|known| is_of(known, &var("INVOCATION_ID")));
    let sentence = runtime
        .zip(known.as_ref())
        .and_then(|(runtime, known)| take_sentence(&runtime, known.figures.identity.pid));

    let death = classify(&ending, known.as_ref(), sentence.as_ref(), Clock::monotonic_ms());
    let state = dir("STATE_DIRECTORY");
    keep(death, state.as_deref(), unit.as_deref(), &var("INVOCATION_ID"));
    if ending.is_restarted() || sentence.is_some() {
        thread::sleep(Duration::from_millis(rand::random_range(0..=JITTER_MAX_MS)));
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether the box tells of this life of the service and not of an earlier one.
fn is_of(known: &Contents, invocation_id: &str) -> bool {
    known.figures.identity.invocation_id == invocation_id
}

/// The unit whose death this is, from the cgroup that this process shares with it.
fn unit_of(cgroup: &str) -> Option<String> {
    let parts = |line: &str| {
        let path = line.splitn(3, ':').nth(2).unwrap_or_default();
        let unit = path.rsplit('/').find(|part| part.ends_with(".service"));
        unit.map(str::to_owned)
    };
    cgroup.lines().find_map(parts)
}

/// The monitor's sentence on this process. It is read once: the number will be another process's.
fn take_sentence(runtime: &Path, pid: u32) -> Option<Sentence> {
    let folder = Folder::open(&config::monitor_beside(runtime)).ok()?;
    let name = sentence::file_name(pid);
    let bytes = folder.read(&name, SENTENCE_BYTES_MAX).ok()?;
    let _ = folder.remove(&name);
    let sentence: Sentence = serde_json::from_slice(&bytes).ok()?;
    (sentence.pid == pid).then_some(sentence)
}

/// To the journal and into the history. Whatever fails, the other is still done.
fn keep(death: Option<Death>, state: Option<&Path>, unit: Option<&str>, invocation_id: &str) {
    let now = Clock::unix_ms();
    let history = state.and_then(|state| History::open(state).ok());
    let died = death.is_some();
    let death = death.map(|mut death| {
        if death.invocation_id.is_empty() {
            death.invocation_id = invocation_id.into();
        }
        death.seal(now);
        let sent = journal::send(Path::new(journal::SOCKET), &death.entry(unit), JOURNAL_MAX);
        death.unsent = sent.is_err();
        death
    });
    let Some(mut history) = history else { return };
    let mut changed = died;
    // What could not be sent now is not tried again at once.
    if death.as_ref().is_none_or(|death| !death.unsent) {
        changed |= history.send_the_unsent(Path::new(journal::SOCKET), unit, JOURNAL_MAX);
    }
    if let Some(death) = death {
        history.add(death);
        changed |= warn_of_a_slow_death(&mut history, unit, now);
    }
    if changed && let Err(error) = history.save() {
        tell!("cannot keep the history of deaths: {error}");
    }
}

fn warn_of_a_slow_death(history: &mut History, unit: Option<&str>, now: u64) -> bool {
    if history
        .warned_unix_ms()
        .is_some_and(|last| now.saturating_sub(last) < DAY_MS)
    {
        return false;
    }
    let Some(counts) = storm::chronic(history.deaths(), now) else {
        return false;
    };
    let total: usize = counts.values().sum();
    let deaths: Vec<&Death> = history.deaths().filter(|it| it.unix_ms + DAY_MS > now).collect();
    let hint = storm::hint(storm::dominating(&deaths));
    let words = history::in_words(&counts);
    let text = format!("embeddings dies again and again: {total} times in 24 h ({words}) · {hint}");
    let mut entry = Entry::new(Priority::Warning, &text);
    entry.field("MESSAGE_ID", MESSAGE_ID_CHRONIC);
    entry.field("KILLS", &words);
    entry.field("KILLS_TOTAL", &total.to_string());
    entry.field("HINT", hint);
    if let Some(unit) = unit {
        entry.field("OBJECT_SYSTEMD_UNIT", unit);
    }
    let sent = journal::send(Path::new(journal::SOCKET), &entry, JOURNAL_MAX).is_ok();
    if sent {
        history.warned(now);
    }
    sent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_read_from_the_cgroup() {
        let unit = |text| unit_of(text).unwrap_or_default();
        assert_eq!(
            unit("0::/system.slice/embeddings.service\n"),
            "embeddings.service"
        );
        assert_eq!(
            unit(
                "4:memory:/x\n1:name=systemd:/system.slice/system-embeddings.slice/embeddings@a.service/.control\n"
            ),
            "embeddings@a.service"
        );
        assert_eq!(unit("0::/user.slice/session-1.scope\n"), "");
    }

    #[test]
    fn a_box_of_another_life_is_not_believed() {
        let mut known = Contents::default();
        known.figures.identity.invocation_id = "now".into();
        assert!(is_of(&known, "now"));
        assert!(!is_of(&known, "before"));
    }
}
