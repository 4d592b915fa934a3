//! The black box: a small file in the runtime directory that outlives the process, however it ends.
//!
//! ```text
//! | figures | figures | suspects | suspects | death | death |      slots of one size
//! ```
//!
//! Each part has two slots, written in turn, so that one is always whole; the reader takes the newest whole
//! one. There is no lock: the thread that finds the process dying must not wait for the one that hangs, so
//! the loop alone writes figures and suspects, and the dying thread alone the death. A box that cannot be
//! written does no harm.

use super::death::Death;
use super::folder::Folder;
use crate::clock::Clock;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tracing::warn;

/// Its name in the runtime directory.
pub const FILE: &str = "blackbox";
/// Ids that are named; of more than these only the number is known.
pub const SUSPECTS_MAX: usize = 16;
/// Marks that are kept: with the named ids they stay below a slot.
pub const MARKS_MAX: usize = 900;
/// Longest id that is named in full.
pub const SUSPECT_BYTES_MAX: usize = 128;
/// Room for one slot; the largest, a death with all its threads, stays below half of it.
const SLOT_BYTES: usize = 16 << 10;
/// Sequence number, length and checksum, little-endian.
const HEADER_BYTES: usize = 24;
const PARTS: usize = 3;
const FIGURES: usize = 0;
const SUSPECTS: usize = 1;
const DEATH: usize = 2;
const BOX_BYTES: usize = 2 * PARTS * SLOT_BYTES;

/// How far the process has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Configuration and models are read.
    #[default]
    Loading,
    /// The loop turns; the broker or the first canary is awaited.
    Starting,
    /// Ready for work.
    Ready,
    /// Told to stop.
    Draining,
}

/// Who writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Identity {
    /// Its process.
    pub pid: u32,
    /// systemd's id of this life of the service; empty without systemd.
    pub invocation_id: String,
    /// Of the program.
    pub version: String,
    /// When it opened its black box, on the clock that all processes share.
    pub since_ms: u64,
}

impl Identity {
    /// This process.
    pub fn own() -> Identity {
        Identity {
            pid: std::process::id(),
            invocation_id: std::env::var("INVOCATION_ID").unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").into(),
            since_ms: Clock::monotonic_ms(),
        }
    }
}

/// One stage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StageFigures {
    /// Its name.
    pub stage: String,
    /// What is inside.
    pub inside: usize,
    /// How long something has been inside without anything leaving.
    pub waiting_ms: u64,
}

/// The service at the moment of writing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// Who writes; filled in when written.
    pub identity: Identity,
    /// When, on the clock that all processes share; filled in when written.
    pub monotonic_ms: u64,
    /// When, for people; filled in when written.
    pub unix_ms: u64,
    /// Resident memory; filled in when written.
    pub rss_bytes: u64,
    /// How far it has come.
    pub phase: Phase,
    /// In a word.
    pub state: String,
    /// The default model.
    pub model: String,
    /// Admitted jobs that no engine has begun.
    pub queue: Option<usize>,
    /// Jobs whose computation has begun and is not finished.
    pub inflight: Option<usize>,
    /// Every stage in the order of a job's life.
    pub stages: Vec<StageFigures>,
    /// The stage that is stalled, or nothing.
    pub stalled: String,
    /// Since something last left a stage.
    pub progress_age_ms: Option<u64>,
    /// Since the broker last answered.
    pub proof_age_ms: Option<u64>,
    /// Whether a session with the broker stands.
    pub connected: bool,
    /// Since systemd was last petted.
    pub pet_age_ms: Option<u64>,
}

/// The jobs that are being worked on: if the process dies now, one of them may be why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Suspects {
    /// How many.
    pub total: usize,
    /// Ids of the oldest.
    pub ids: Vec<String>,
    /// The [`mark`] of each, of the oldest.
    pub marks: Vec<u32>,
}

/// What the next process knows a job again by: its id, made short. Of a thousand jobs that come back and [`MARKS_MAX`] that were at
/// work, two have the same once in some 5000 deaths, which costs one of them an attempt.
pub fn mark(id: &str) -> u32 {
    let sum = checksum(0, id.as_bytes());
    (sum ^ (sum >> 32)) as u32
}

/// What a box holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// The last figures.
    pub figures: Figures,
    /// The last suspects.
    pub suspects: Suspects,
    /// What the process itself said of its death.
    pub death: Option<Death>,
}

/// The box of this process.
#[derive(Debug)]
pub struct BlackBox {
    file: File,
    identity: Identity,
    /// Of each part, the number of its last write.
    written: [AtomicU64; PARTS],
    failed: AtomicBool,
    /// Marks of the jobs that were being worked on when the process before this one ended, if there was one.
    before: Option<HashSet<u32>>,
}

static OWN: OnceLock<BlackBox> = OnceLock::new();

/// Makes this process's box, whose first figures say that it is loading.
///
/// # Errors
/// The runtime directory cannot be written. The service runs all the same.
pub fn open(runtime: &Path) -> io::Result<()> {
    let made = BlackBox::create(runtime)?;
    made.figures(Figures::default());
    let _ = OWN.set(made);
    Ok(())
}

/// This process's box, if there is one.
pub fn own() -> Option<&'static BlackBox> {
    OWN.get()
}

/// What the box in a runtime directory holds.
///
/// # Errors
/// There is none, or none that was ever written to.
pub fn read(runtime: &Path) -> io::Result<Contents> {
    contents(&Folder::open(runtime)?.read(FILE, BOX_BYTES)?)
        .ok_or_else(|| io::Error::other("nothing whole is in it"))
}

impl BlackBox {
    /// A new file, so that the box of a process that still dies is left alone.
    fn create(runtime: &Path) -> io::Result<BlackBox> {
        let before = read(runtime).ok();
        // One that names only some of its suspects knows nothing of the others.
        let before = before
            .filter(|known| known.suspects.marks.len() >= known.suspects.total)
            .map(|known| known.suspects.marks.into_iter().collect());
        let size = BOX_BYTES as u64;
        let file = Folder::make(runtime)?.create(FILE, 0o640, |file| file.set_len(size))?;
        Ok(BlackBox {
            file,
            identity: Identity::own(),
            written: Default::default(),
            failed: AtomicBool::new(false),
            before,
        })
    }

    /// Whether the process before this one was working on the job when it ended. `None` if no such process is known.
    pub fn was_at_work(&self, id: &str) -> Option<bool> {
        Some(self.before.as_ref()?.contains(&mark(id)))
    }

    /// Writes the figures of this moment.
    pub fn figures(&self, figures: Figures) {
        let figures = Figures {
            identity: self.identity.clone(),
            monotonic_ms: Clock::monotonic_ms(),
            unix_ms: Clock::unix_ms(),
            rss_bytes: super::rss_bytes().unwrap_or(0),
            ..figures
        };
        self.write(FIGURES, &figures);
    }

    /// Writes the suspects of this moment.
    pub fn suspects(&self, suspects: &Suspects) {
        self.write(SUSPECTS, suspects);
    }

    /// Writes the death of this process. True if it is in the box.
    pub fn death(&self, death: &Death) -> bool {
        self.write(DEATH, death)
    }

    /// What this box holds.
    pub fn contents(&self) -> Option<Contents> {
        let mut bytes = vec![0; BOX_BYTES];
        self.file.read_exact_at(&mut bytes, 0).ok()?;
        contents(&bytes)
    }

    fn write(&self, part: usize, content: &impl Serialize) -> bool {
        let sequence = self.written[part].fetch_add(1, Ordering::Relaxed) + 1;
        let written = encode(sequence, content)
            .and_then(|bytes| self.file.write_all_at(&bytes, place(part, sequence) as u64));
        if let Err(error) = &written
            && !self.failed.swap(true, Ordering::Relaxed)
        {
            warn!(%error, "the black box cannot be written; a sudden death will be told with less detail");
        }
        written.is_ok()
    }
}

/// Where write number `sequence` of a part goes.
fn place(part: usize, sequence: u64) -> usize {
    (2 * part + sequence as usize % 2) * SLOT_BYTES
}

fn encode(sequence: u64, content: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; HEADER_BYTES];
    serde_json::to_writer(&mut bytes, content)?;
    if bytes.len() > SLOT_BYTES {
        return Err(io::Error::other(format!(
            "{} bytes do not fit into a slot of {SLOT_BYTES}",
            bytes.len()
        )));
    }
    let length = (bytes.len() - HEADER_BYTES) as u64;
    let sum = checksum(sequence, &bytes[HEADER_BYTES..]);
    for (at, number) in [sequence, length, sum].into_iter().enumerate() {
        bytes[8 * at..8 * (at + 1)].copy_from_slice(&number.to_le_bytes());
    }
    Ok(bytes)
}

fn contents(bytes: &[u8]) -> Option<Contents> {
    Some(Contents {
        figures: newest(bytes, FIGURES)?,
        suspects: newest(bytes, SUSPECTS).unwrap_or_default(),
        death: newest(bytes, DEATH),
    })
}

fn newest<T: DeserializeOwned>(bytes: &[u8], part: usize) -> Option<T> {
    let whole = [0, 1].into_iter().filter_map(|turn| {
        let slot = bytes.get(place(part, turn)..place(part, turn) + SLOT_BYTES)?;
        let number = |at: usize| {
            Some(u64::from_le_bytes(
                slot.get(8 * at..8 * (at + 1))?.try_into().ok()?,
            ))
        };
        let (sequence, length, sum) = (number(0)?, usize::try_from(number(1)?).ok()?, number(2)?);
        let body = slot.get(HEADER_BYTES..HEADER_BYTES.checked_add(length)?)?;
        (sequence > 0 && checksum(sequence, body) == sum).then_some((sequence, body))
    });
    let (_, body) = whole.max_by_key(|(sequence, _)| *sequence)?;
    serde_json::from_slice(body).ok()
}

/// FNV-1a: tells a slot that was written halfway, and nothing more.
fn checksum(sequence: u64, body: &[u8]) -> u64 {
    let step = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let sum = sequence.to_le_bytes().iter().fold(0xcbf2_9ce4_8422_2325, step);
    body.iter().fold(sum, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_queue(queue: usize) -> Figures {
        Figures {
            queue: Some(queue),
            ..Figures::default()
        }
    }

    /// Goal: a kill in the middle of a write costs nothing. Method: each byte of the newest slot is spoilt.
    #[test]
    fn the_newest_whole_slot_is_believed() {
        let dir = tempfile::tempdir().unwrap();
        read(dir.path()).unwrap_err();
        let written = BlackBox::create(dir.path()).unwrap();
        assert_eq!(written.contents(), None);
        written.figures(with_queue(1));
        written.suspects(&Suspects {
            total: 1,
            ids: vec!["job".into()],
            marks: vec![mark("job")],
        });
        written.figures(with_queue(2));
        assert_eq!(read(dir.path()).unwrap().figures.queue, Some(2));
        assert_eq!(read(dir.path()).unwrap().suspects.ids, ["job"]);
        assert!(read(dir.path()).unwrap().figures.rss_bytes > 0);
        assert_eq!(written.contents(), read(dir.path()).ok());

        let whole = std::fs::read(dir.path().join(FILE)).unwrap();
        let slot = place(FIGURES, 2);
        let length = u64::from_le_bytes(whole[slot + 8..slot + 16].try_into().unwrap()) as usize;
        for at in 0..HEADER_BYTES + length {
            let mut spoilt = whole.clone();
            spoilt[slot + at] ^= 0x55;
            let queue = contents(&spoilt).unwrap().figures.queue;
            assert!(queue == Some(1), "byte {at}: {queue:?}");
        }
    }

    #[test]
    fn the_next_process_knows_what_was_at_work() {
        let dir = tempfile::tempdir().unwrap();
        let ids: Vec<String> = (0..MARKS_MAX)
            .map(|n| format!("{n:\"<SUSPECT_BYTES_MAX$}"))
            .collect();
        let first = BlackBox::create(dir.path()).unwrap();
        assert_eq!(first.was_at_work(&ids[0]), None);
        let written = first.write(
            SUSPECTS,
            &Suspects {
                total: MARKS_MAX,
                ids: ids[..SUSPECTS_MAX].to_vec(),
                marks: ids.iter().map(|id| mark(id)).collect(),
            },
        );
        assert!(written, "the most that is ever told fits into a slot");
        first.figures(Figures::default());
        let second = BlackBox::create(dir.path()).unwrap();
        assert!(ids.iter().all(|id| second.was_at_work(id) == Some(true)));
        assert_eq!(second.was_at_work("another"), Some(false));
        second.figures(Figures::default());
        let third = BlackBox::create(dir.path()).unwrap();
        assert_eq!(third.was_at_work(&ids[0]), Some(false));
    }

    #[test]
    fn what_does_not_fit_leaves_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let written = BlackBox::create(dir.path()).unwrap();
        written.figures(with_queue(0));
        let mut death = Death {
            kill_reason: "panic".into(),
            ..Death::default()
        };
        assert!(written.death(&death));
        assert_eq!(written.contents().unwrap().death, Some(death.clone()));
        death.detail = "x".repeat(SLOT_BYTES);
        assert!(!written.death(&death));
        assert_eq!(read(dir.path()).unwrap().death.unwrap().detail, "");
    }
}
