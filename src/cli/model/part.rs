//! A file that is not all there yet: its bytes, and beside them a note of which pieces are there.
//!
//! Bytes are written before the note tells of them, and the whole is checked against its checksum at the end: a
//! note that says too little costs a few bytes, one that says too much costs the file, and neither is believed.

use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Files are cut into some eight pieces, none smaller or larger than this: a request costs a round trip or two.
const PIECE_BYTES: std::ops::RangeInclusive<u64> = 8 << 20..=128 << 20;
/// Bytes after which the note is written anew. So much is fetched again after a kill.
const NOTE_EVERY: u64 = 4 << 20;
/// Fresh starts of one file, because it is another than before, until it is given up.
const RESTARTS_MAX: u32 = 3;

/// A file that is being fetched.
pub struct Part {
    path: PathBuf,
    file: File,
    state: Mutex<State>,
}

#[derive(Debug, Serialize, Deserialize)]
struct State {
    size: u64,
    /// What the host calls this content, if it says so.
    etag: Option<String>,
    pieces: Vec<Piece>,
    /// Counts fresh starts, so that who fetches for an earlier one notices.
    #[serde(skip)]
    restarts: u32,
    /// The host gives no slices: the file is one piece and comes from its beginning.
    #[serde(skip)]
    whole: bool,
    /// Written since the last note.
    #[serde(skip)]
    unnoted: u64,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Piece {
    from: u64,
    to: u64,
    done: u64,
}

/// What is to be fetched of a piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// See [`Part::write`].
    pub start: u32,
    /// From the first byte that is missing.
    pub bytes: std::ops::Range<u64>,
    /// All of the file, which so can be asked for without naming a slice.
    pub whole: bool,
    /// As the last answer called the content.
    pub etag: Option<String>,
}

/// What became of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// It is of the content that is being fetched.
    Same,
    /// The file was begun anew since the question, by another answer.
    Stale,
    /// The file is begun anew now: its pieces are other ones.
    Restarted {
        /// Bytes that are thrown away.
        lost: u64,
    },
    /// It is another one each time.
    Unsteady,
}

impl State {
    fn fresh(size: u64, whole: bool) -> State {
        let bytes = match whole {
            true => size.max(1),
            false => (size / 8).clamp(*PIECE_BYTES.start(), *PIECE_BYTES.end()),
        };
        let piece = |from| Piece {
            from,
            to: size.min(from + bytes),
            done: 0,
        };
        State {
            size,
            etag: None,
            pieces: (0..size).step_by(bytes as usize).map(piece).collect(),
            restarts: 0,
            whole,
            unnoted: 0,
        }
    }

    fn done(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.done).sum()
    }

    /// Whether the pieces lie side by side and make up the file.
    fn is_sound(&self, size: u64) -> bool {
        let mut at = 0;
        let whole = self.pieces.iter().all(|piece| {
            let fits = piece.from == at && piece.to > at && piece.done <= piece.to - at;
            at = piece.to;
            fits
        });
        whole && at == size && self.size == size
    }

    fn restart(&mut self, whole: bool) -> Said {
        let lost = self.done();
        let restarts = self.restarts + 1;
        *self = State {
            restarts,
            ..State::fresh(self.size, self.whole || whole)
        };
        match restarts > RESTARTS_MAX {
            true => Said::Unsteady,
            false => Said::Restarted { lost },
        }
    }
}

impl Part {
    /// Goes on with what lies at `path`, or begins.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &Path, size: u64) -> std::io::Result<Part> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let noted = fs::read(notes(path)).ok();
        let noted = noted.and_then(|text| serde_json::from_slice::<State>(&text).ok());
        let state = match noted.filter(|state| state.is_sound(size)) {
            Some(state) => state,
            None => {
                file.set_len(0)?;
                State::fresh(size, false)
            }
        };
        Ok(Part {
            path: path.to_owned(),
            file,
            state: Mutex::new(state),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that panics runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that are there.
    pub fn done(&self) -> u64 {
        self.lock().done()
    }

    /// Numbers of the pieces that are not all there.
    pub fn missing(&self) -> Vec<usize> {
        let state = self.lock();
        let missing = |index: &usize| {
            let piece = &state.pieces[*index];
            piece.done < piece.to - piece.from
        };
        (0..state.pieces.len()).filter(missing).collect()
    }

    /// What a piece lacks; nothing if it is all there, or no longer a piece.
    pub fn wanted(&self, index: usize) -> Option<Wanted> {
        let state = self.lock();
        let piece = state.pieces.get(index)?;
        let bytes = piece.from + piece.done..piece.to;
        (!bytes.is_empty()).then(|| Wanted {
            start: state.restarts,
            whole: bytes == (0..state.size),
            bytes,
            etag: state.etag.clone(),
        })
    }

    /// Hears how an answer calls the content, and begins anew if that is another one.
    pub fn hear(&self, start: u32, etag: Option<String>) -> Said {
        let mut state = self.lock();
        if state.restarts != start {
            return Said::Stale;
        }
        match (&state.etag, &etag) {
            (Some(known), Some(told)) if known != told => state.restart(false),
            _ => {
                state.etag = etag.or(state.etag.take());
                Said::Same
            }
        }
    }

    /// Begins anew because a slice was asked for and something else came: `whole` if the host gives no slices.
    pub fn restart(&self, start: u32, whole: bool) -> Said {
        let mut state = self.lock();
        match state.restarts == start {
            true => state.restart(whole),
            false => Said::Stale,
        }
    }

    /// Appends to a piece what was fetched from `offset` of the file since the fresh start `start`; false if it belongs
    /// elsewhere by now.
    ///
    /// # Errors
    /// What the system says, such as a full disk.
    pub fn write(&self, index: usize, start: u32, offset: u64, bytes: &[u8]) -> std::io::Result<bool> {
        let mut state = self.lock();
        if state.restarts != start {
            return Ok(false);
        }
        let piece = &mut state.pieces[index];
        let at = piece.from + piece.done;
        if at != offset {
            return Ok(false);
        }
        if bytes.len() as u64 > piece.to - at {
            return Err(std::io::Error::other("more came than was asked for"));
        }
        self.file.write_all_at(bytes, at)?;
        piece.done += bytes.len() as u64;
        state.unnoted += bytes.len() as u64;
        if state.unnoted >= NOTE_EVERY {
            self.note(&mut state)?;
        }
        Ok(true)
    }

    /// Notes what is there, for a later command.
    ///
    /// # Errors
    /// What the system says.
    pub fn save(&self) -> std::io::Result<()> {
        self.note(&mut self.lock())
    }

    fn note(&self, state: &mut State) -> std::io::Result<()> {
        state.unnoted = 0;
        let notes = notes(&self.path);
        let fresh = notes.with_extension("new");
        fs::write(&fresh, serde_json::to_vec(state)?)?;
        fs::rename(fresh, notes)
    }

    /// Makes the file, now whole, the one at `target`, and forgets the note.
    ///
    /// # Errors
    /// What the system says.
    pub fn publish(&self, target: &Path) -> std::io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, target)?;
        let _ = fs::remove_file(notes(&self.path));
        Ok(())
    }

    /// Throws away all of it.
    pub fn discard(&self) {
        let _ = fs::remove_file(notes(&self.path));
        let _ = fs::remove_file(&self.path);
    }

    /// Where the bytes lie.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn notes(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".json");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 20 << 20;

    fn part(dir: &tempfile::TempDir) -> Part {
        Part::open(&dir.path().join("blob.part"), SIZE).unwrap()
    }

    #[test]
    fn a_later_command_goes_on_where_this_one_ended() {
        let dir = tempfile::tempdir().unwrap();
        let first = part(&dir);
        assert_eq!(first.missing(), [0, 1, 2]);
        assert!(first.write(1, 0, 8 << 20, &[7; 1000]).unwrap());
        assert_eq!(first.hear(0, Some("\"a\"".into())), Said::Same);
        first.save().unwrap();
        let second = part(&dir);
        assert_eq!(second.done(), 1000);
        let wanted = second.wanted(1).unwrap();
        assert_eq!(wanted.bytes, (8 << 20) + 1000..16 << 20);
        assert_eq!(wanted.etag.as_deref(), Some("\"a\""));
        assert!(
            second.write(2, 0, 16 << 20, &vec![0; (4 << 20) + 1]).is_err(),
            "more than the piece"
        );
    }

    #[test]
    fn a_note_that_does_not_fit_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let first = part(&dir);
        first.write(0, 0, 0, &[1; 10]).unwrap();
        first.save().unwrap();
        let other = Part::open(&dir.path().join("blob.part"), SIZE + 1).unwrap();
        assert_eq!(other.done(), 0);
        std::fs::write(dir.path().join("blob.part.json"), "{\"size\":").unwrap();
        assert_eq!(part(&dir).done(), 0);
    }

    #[test]
    fn content_that_changes_is_begun_anew_and_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let part = part(&dir);
        assert_eq!(part.hear(0, Some("a".into())), Said::Same);
        assert!(part.write(0, 0, 0, &[1; 10]).unwrap());
        assert_eq!(part.hear(0, Some("b".into())), Said::Restarted { lost: 10 });
        assert!(!part.write(0, 0, 10, &[1; 10]).unwrap(), "of the old content");
        assert_eq!(part.hear(0, Some("c".into())), Said::Stale);
        assert!(part.write(0, 1, 0, &[1; 10]).unwrap());
        assert!(!part.write(0, 1, 0, &[1; 10]).unwrap(), "there already");
        assert_eq!(part.restart(1, true), Said::Restarted { lost: 10 });
        assert_eq!(part.missing(), [0], "one piece, from its beginning");
        assert!(part.wanted(0).unwrap().whole);
        assert_eq!(part.restart(2, false), Said::Restarted { lost: 0 });
        assert_eq!(part.restart(3, false), Said::Unsteady);
    }

    #[test]
    fn an_empty_file_has_no_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let part = Part::open(&dir.path().join("blob.part"), 0).unwrap();
        assert!(part.missing().is_empty());
    }
}
