//! The cache in which a model's files lie before they are installed.
//!
//! It is laid out as the Hub's own tools do it, `models--ORG--NAME` with `blobs` by checksum, `snapshots` of links to
//! them by commit, and `refs` from names to commits; `listings` is ours: what a commit holds.

use super::remote::Remote;
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

/// The files of one commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// The commit.
    pub commit: String,
    /// Its files.
    pub files: Vec<Remote>,
}

/// One model's folder in the cache.
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// Makes the folder.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(cache: &Path, id: &str) -> anyhow::Result<Cache> {
        let dir = cache
            .join("hub")
            .join(format!("models--{}", id.replace('/', "--")));
        for part in ["blobs", "snapshots", "refs", "listings"] {
            let part = dir.join(part);
            fs::create_dir_all(&part).with_context(|| format!("failed to create {}", part.display()))?;
        }
        Ok(Cache { dir })
    }

    /// Waits until no other command fetches this model. Held as long as the file lives.
    ///
    /// # Errors
    /// What the system says.
    pub fn lock(&self) -> anyhow::Result<File> {
        let failed = || format!("failed to lock {}", self.dir.display());
        let lock = File::open(&self.dir).with_context(failed)?;
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) => {
                tell!("another command fetches this model already; waiting for it")
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(failed),
        }
        lock.lock().with_context(failed)?;
        Ok(lock)
    }

    /// Where the file of a commit lies in the cache, whether or not it is there.
    pub fn place(&self, commit: &str, file: &Remote) -> PathBuf {
        self.folder(commit).join(&file.name)
    }

    /// Where the content of a file lies, by whatever names and commits.
    pub fn blob(&self, commit: &str, file: &Remote) -> PathBuf {
        self.dir.join("blobs").join(file.key(commit))
    }

    /// Where the content lies while it is fetched.
    pub fn part_path(&self, commit: &str, file: &Remote) -> PathBuf {
        let mut path = self.blob(commit, file).into_os_string();
        path.push(".part");
        path.into()
    }

    /// Has the snapshot's name lead to the blob.
    ///
    /// # Errors
    /// What the system says.
    pub fn link(&self, commit: &str, file: &Remote) -> std::io::Result<()> {
        let place = self.place(commit, file);
        let up = "../".repeat(2 + file.name.matches('/').count());
        let blob = PathBuf::from(format!("{up}blobs/{}", file.key(commit)));
        if fs::read_link(&place).is_ok_and(|old| old == blob) {
            return Ok(());
        }
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut fresh = place.clone().into_os_string();
        fresh.push(".new");
        let _ = fs::remove_file(&fresh);
        std::os::unix::fs::symlink(blob, &fresh)?;
        fs::rename(fresh, place)
    }

    /// Remembers that all files of a commit are in the cache.
    ///
    /// # Errors
    /// What the system says.
    pub fn remember(&self, revision: &str, listing: &Listing) -> std::io::Result<()> {
        put(&self.listing_path(&listing.commit), &serde_json::to_vec(listing)?)?;
        put(&self.dir.join("refs").join(revision), listing.commit.as_bytes())
    }

    /// What an earlier pull of this revision left in the cache, if all of it is there.
    pub fn remembered(&self, revision: &str) -> Option<Listing> {
        let commit = match is_commit(revision) {
            true => revision.to_owned(),
            false => fs::read_to_string(self.dir.join("refs").join(revision)).ok()?,
        };
        let listing: Listing =
            serde_json::from_slice(&fs::read(self.listing_path(commit.trim())).ok()?).ok()?;
        let there = |file: &Remote| self.place(&listing.commit, file).exists();
        listing.files.iter().all(there).then_some(listing)
    }

    /// The folder of a commit in the cache.
    pub fn folder(&self, commit: &str) -> PathBuf {
        self.dir.join("snapshots").join(commit)
    }

    fn listing_path(&self, commit: &str) -> PathBuf {
        self.dir.join("listings").join(format!("{commit}.json"))
    }
}

/// Whether a revision is a commit, which never changes.
pub fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Writes a small file so that nobody sees half of it.
fn put(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut fresh = path.to_owned().into_os_string();
    fresh.push(".new");
    fs::write(&fresh, bytes)?;
    fs::rename(fresh, path)
}
