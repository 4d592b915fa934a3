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
        let mut name = path.as_os_str().to_owned();
        name.push(".mend");
        let beside = PathBuf::from(name);
        let mut old = Kept::open(path)?;
        let at_record = old.advance().map_err(io::Error::other)?;
        let new = File::create(&beside)?;
        new.set_permissions(std::fs::metadata(path)?.permissions())?;
        Ok(Mend {
            old,
            at_record,
            new: BufWriter::with_capacity(1 << 17, new),
            beside,
            path: path.to_owned(),
            added: 0,
        })
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

    /// Puts the new file in the old one's place, if anything was added.
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
