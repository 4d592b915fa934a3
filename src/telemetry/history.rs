//! The last deaths, kept in the state directory as one JSON line each: what `embeddings status` shows, what
//! the alarm counts, and what the journal did not take yet.
//!
//! One writer at a time: a process while it dies, then its postmortem, then the next start. The file is
//! replaced as a whole, so a full disk leaves the old one.

use super::death::Death;
use super::folder::Folder;
use super::journal;
use crate::report::Kill;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

/// Its name in the state directory.
pub const FILE: &str = "kills.jsonl";
/// Deaths that are kept.
pub const KEPT_MAX: usize = 200;
/// So many of them are told of where people look.
pub const SHOWN_MAX: usize = 5;
/// More than the kept deaths can need; what comes after is not read.
const FILE_BYTES_MAX: usize = 4 << 20;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    /// The warning of a slow death was written.
    Warned {
        chronic_warned_unix_ms: u64,
    },
    Death(Box<Death>),
}

/// The open history.
#[derive(Debug)]
pub struct History {
    folder: Folder,
    lines: Vec<Line>,
}

impl History {
    /// Opens it, and makes its folder where that is missing. Lines that do not parse are left behind.
    ///
    /// # Errors
    /// The folder cannot be opened.
    pub fn open(state: &Path) -> io::Result<History> {
        Ok(History::of(Folder::make(state)?))
    }

    fn of(folder: Folder) -> History {
        let bytes = folder.read(FILE, FILE_BYTES_MAX).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines = text.lines().filter_map(|line| serde_json::from_str(line).ok());
        History {
            lines: lines.collect(),
            folder,
        }
    }

    /// The deaths, oldest first.
    pub fn deaths(&self) -> impl DoubleEndedIterator<Item = &Death> {
        self.lines.iter().filter_map(|line| match line {
            Line::Death(death) => Some(&**death),
            Line::Warned { .. } => None,
        })
    }

    /// Adds a death.
    pub fn add(&mut self, death: Death) {
        self.lines.push(Line::Death(Box::new(death)));
    }

    /// When the warning of a slow death was last written.
    pub fn warned_unix_ms(&self) -> Option<u64> {
        let warned = |line: &Line| match line {
            Line::Warned {
                chronic_warned_unix_ms,
            } => Some(*chronic_warned_unix_ms),
            Line::Death(_) => None,
        };
        self.lines.iter().filter_map(warned).next_back()
    }

    /// Remembers that it is written now.
    pub fn warned(&mut self, unix_ms: u64) {
        self.lines.retain(|line| matches!(line, Line::Death(_)));
        self.lines.push(Line::Warned {
            chronic_warned_unix_ms: unix_ms,
        });
    }

    /// Sends what the journal (at `socket`) did not take before. True if there was any that it took now.
    pub fn send_the_unsent(&mut self, socket: &Path, unit: Option<&str>, patience: Duration) -> bool {
        let mut sent = false;
        for line in &mut self.lines {
            let Line::Death(death) = line else { continue };
            if !death.unsent {
                continue;
            }
            if journal::send(socket, &death.entry(unit), patience).is_err() {
                break;
            }
            death.unsent = false;
            sent = true;
        }
        sent
    }

    /// Writes the last [`KEPT_MAX`] lines.
    ///
    /// # Errors
    /// The disk is full, or not to be written; the file is then as it was.
    pub fn save(&self) -> io::Result<()> {
        let mut text = Vec::new();
        for line in &self.lines[self.lines.len().saturating_sub(KEPT_MAX)..] {
            serde_json::to_writer(&mut text, line)?;
            text.push(b'\n');
        }
        self.folder.replace(FILE, 0o640, &text)
    }
}

/// The last `n` deaths of a state directory, newest first; none where nobody died or nothing can be read.
pub fn last(state: &Path, n: usize) -> Vec<Death> {
    Folder::open(state).map_or(Vec::new(), |folder| {
        History::of(folder).deaths().rev().take(n).cloned().collect()
    })
}

/// As [`last`], for people.
///
/// # Errors
/// What stands in the way, in words.
pub fn kills(state: &Path, n: usize) -> Result<Vec<Kill>, String> {
    let opened = Folder::open(state).and_then(|folder| {
        // A history that is not there is one without deaths; one that cannot be read is not.
        match folder.read(FILE, 0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(folder),
        }
    });
    match opened {
        Ok(folder) => {
            let history = History::of(folder);
            Ok(history.deaths().rev().take(n).cloned().map(Kill::from).collect())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err("not readable: run as root or as embeddings".into())
        }
        Err(error) => Err(format!("not readable: {error}")),
    }
}

/// How many died of what since `since_unix_ms`.
pub fn counts_by_reason<'a>(
    deaths: impl IntoIterator<Item = &'a Death>,
    since_unix_ms: u64,
) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for death in deaths.into_iter().filter(|death| death.unix_ms >= since_unix_ms) {
        *counts.entry(death.kill_reason.clone()).or_default() += 1;
    }
    counts
}

/// The counts for people: `signal=4 oom_killed=1`, the most frequent first.
pub fn in_words(counts: &BTreeMap<String, usize>) -> String {
    let mut counts: Vec<_> = counts.iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let words: Vec<String> = counts
        .iter()
        .map(|(reason, count)| format!("{reason}={count}"))
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn death(n: u64) -> Death {
        Death {
            unix_ms: n,
            ..Death::of(if n.is_multiple_of(2) { "signal" } else { "panic" })
        }
    }

    #[test]
    fn the_last_deaths_are_kept_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        assert_eq!(last(&state, 5), []);
        let mut history = History::open(&state).unwrap();
        for n in 0..KEPT_MAX as u64 + 50 {
            history.add(death(n));
            history.save().unwrap();
        }
        let path = state.join(FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), KEPT_MAX);
        std::fs::write(&path, format!("{text}half a li")).unwrap();
        let newest: Vec<u64> = last(&state, 3).iter().map(|death| death.unix_ms).collect();
        assert_eq!(newest, [249, 248, 247]);
        let all = last(&state, KEPT_MAX);
        let counts = counts_by_reason(&all, 245);
        assert_eq!(in_words(&counts), "panic=3 signal=2");
    }

    #[test]
    fn what_the_journal_did_not_take_is_sent_once_later() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("journal");
        let mut history = History::open(dir.path()).unwrap();
        history.add(death(1));
        history.add(Death {
            unsent: true,
            ..death(2)
        });
        assert!(!history.send_the_unsent(&socket, None, Duration::ZERO));
        let journald = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
        assert!(history.send_the_unsent(&socket, None, Duration::ZERO));
        assert!(!history.send_the_unsent(&socket, None, Duration::ZERO));
        let mut record = [0; 4096];
        let bytes = journald.recv(&mut record).unwrap();
        assert!(String::from_utf8_lossy(&record[..bytes]).contains("KILLED_UNIX_MS=2\n"));
        journald.set_nonblocking(true).unwrap();
        journald.recv(&mut record).unwrap_err();
    }

    #[test]
    fn a_warning_is_remembered_among_the_deaths() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = History::open(dir.path()).unwrap();
        history.add(death(1));
        assert_eq!(history.warned_unix_ms(), None);
        history.warned(7);
        history.warned(8);
        history.save().unwrap();
        let history = History::open(dir.path()).unwrap();
        assert_eq!(history.warned_unix_ms(), Some(8));
        assert_eq!(history.deaths().count(), 1);
    }
}
