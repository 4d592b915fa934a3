//! Files in a folder that may belong to someone else: root reads and replaces what the service's user owns,
//! and must not be led astray there. Links are never followed, sizes are bounded, and a file is replaced as
//! a whole or not at all.

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// An open folder.
#[derive(Debug)]
pub struct Folder(OwnedFd);

impl Folder {
    /// Opens it. The way to the folder itself is the system's, and may lead over links.
    pub fn open(path: &Path) -> io::Result<Folder> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Folder(fs::open(path, flags, Mode::empty())?))
    }

    /// Opens it, and makes it where it is missing.
    pub fn make(path: &Path) -> io::Result<Folder> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(path)?;
        Folder::open(path)
    }

    /// The first `bytes_max` bytes of a regular file.
    pub fn read(&self, name: &str, bytes_max: usize) -> io::Result<Vec<u8>> {
        // NONBLOCK, or a named pipe in the file's place would hold us up for ever.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = fs::openat(&self.0, name, flags, Mode::empty())?;
        if FileType::from_raw_mode(fs::fstat(&file)?.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("not a regular file"));
        }
        let mut bytes = Vec::new();
        File::from(file).take(bytes_max as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// A new file under this name, whatever was there; it belongs to the owner of the folder.
    pub fn create(
        &self,
        name: &str,
        mode: fs::RawMode,
        fill: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> io::Result<File> {
        let making = format!(".{name}.{}", std::process::id());
        // What a process with this number left when it was ended halfway.
        let _ = fs::unlinkat(&self.0, &*making, AtFlags::empty());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(fs::openat(&self.0, &*making, flags, Mode::from_raw_mode(mode))?);
        let made = (|| {
            let (folder, own) = (fs::fstat(&self.0)?, fs::fstat(&file)?);
            if (folder.st_uid, folder.st_gid) != (own.st_uid, own.st_gid) {
                let (user, group) = (fs::Uid::from_raw(folder.st_uid), fs::Gid::from_raw(folder.st_gid));
                fs::fchown(&file, Some(user), Some(group))?;
            }
            fill(&mut file)?;
            fs::renameat(&self.0, &*making, &self.0, name)?;
            Ok(())
        })();
        match made {
            Ok(()) => Ok(file),
            Err(error) => {
                let _ = fs::unlinkat(&self.0, &*making, AtFlags::empty());
                Err(error)
            }
        }
    }

    /// Replaces a small file as a whole.
    pub fn replace(&self, name: &str, mode: fs::RawMode, bytes: &[u8]) -> io::Result<()> {
        self.create(name, mode, |file| file.write_all(bytes)).map(drop)
    }

    /// Removes a file.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        Ok(fs::unlinkat(&self.0, name, AtFlags::empty())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what a folder's owner can put there leads root nowhere. Method: a link, a pipe, a large file.
    #[test]
    fn links_and_pipes_are_refused_and_sizes_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "secret").unwrap();
        std::os::unix::fs::symlink(&secret, dir.path().join("link")).unwrap();
        fs::mkfifoat(fs::CWD, dir.path().join("pipe"), Mode::from_raw_mode(0o600)).unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        folder.read("link", 100).unwrap_err();
        folder.read("pipe", 100).unwrap_err();
        assert_eq!(folder.read("secret", 3).unwrap(), b"sec");
        folder.replace("link", 0o640, b"mine").unwrap();
        assert_eq!(folder.read("link", 100).unwrap(), b"mine");
        assert_eq!(std::fs::read(&secret).unwrap(), b"secret");
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            3,
            "nothing half made is left"
        );
    }
}
