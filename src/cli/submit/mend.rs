//! Records for lines that had failed in an earlier run, put where they belong: the whole file is written anew beside
//! the old one, which it replaces in one step at the end. Until then the old one stays as it is.

use super::kept::Kept;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// A file being mended.
#[derive(Debug)]
pub struct Mend {
    old: Kept,
    /// Whether the old file stands at a record.
    at_record: bool,
    new: BufWriter<File>,
    beside: PathBuf,
    path: PathBuf,
    added: u64,
}

impl Mend {
    /// Begins. `path` is the file's real path.
    pub fn begin(path: &Path) -> io::Result<Mend> {
        let mut old = Kept::open(path)?;
        let at_record = old.advance().map_err(io::Error::other)?;
        // Any name that can be known beforehand may be somebody's, or what a kill has left of an earlier try.
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".mend-{:08x}", rand::random::<u32>()));
        let beside = PathBuf::from(name);
        let new = File::create_new(&beside)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", beside.display())))?;
        let mend = Mend {
            old,
            at_record,
            new: BufWriter::with_capacity(1 << 17, new),
            beside,
            path: path.to_owned(),
            added: 0,
        };
        let permissions = std::fs::metadata(path)?.permissions();
        mend.new.get_ref().set_permissions(permissions)?;
        Ok(mend)
    }

    /// Puts a record in its place. They come in the order of the input.
    pub fn put(&mut self, index: u64, record: &[u8]) -> io::Result<()> {
        self.copy_until(index)?;
        self.added += 1;
        self.new.write_all(record)
    }

    fn copy_until(&mut self, index: u64) -> io::Result<()> {
        while self.at_record && self.old.index() < index {
            self.new.write_all(self.old.record())?;
            self.at_record = self.old.advance().map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Puts the new file in the old one's place, if anything was added. That this outlasts a loss of power is left to
    /// whoever makes the folder durable.
    pub fn finish(mut self) -> io::Result<()> {
        if self.added == 0 {
            return Ok(());
        }
        self.copy_until(u64::MAX)?;
        self.new.flush()?;
        self.new.get_ref().sync_all()?;
        std::fs::rename(&self.beside, &self.path)
    }
}

impl Drop for Mend {
    fn drop(&mut self) {
        // Not there any more if it took the old one's place.
        let _ = std::fs::remove_file(&self.beside);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(index: u64) -> String {
        let line = index + 1;
        format!("{{\"file\":\"f\",\"line\":{line},\"index\":{index},\"text\":\"t\",\"embedding\":[0.5]}}\n")
    }

    /// Goal: only the output itself is touched, whatever its neighbours are called and however mending ends. Method: a
    /// file of the name that a half-made one once had; a mend that is finished, one that is given up, one that cannot begin.
    #[test]
    fn neighbours_stay_and_nothing_half_made_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let (path, neighbour) = (folder.path().join("out"), folder.path().join("out.mend"));
        std::fs::write(&path, [record(0), record(2)].concat()).unwrap();
        std::fs::write(&neighbour, "mine").unwrap();

        let mut given_up = Mend::begin(&path).unwrap();
        given_up.put(1, record(1).as_bytes()).unwrap();
        drop(given_up);
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            [record(0), record(2)].concat()
        );

        let mut mend = Mend::begin(&path).unwrap();
        mend.put(1, record(1).as_bytes()).unwrap();
        mend.finish().unwrap();
        let whole = [record(0), record(1), record(2)].concat();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), whole);

        std::fs::write(&path, "no record\n").unwrap();
        assert!(Mend::begin(&path).is_err());
        assert_eq!(std::fs::read_to_string(&neighbour).unwrap(), "mine");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
