//! A file as the Hub describes it, and whether the one at hand is that file.

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// One file of a model on the Hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remote {
    /// Path in the model.
    pub name: String,
    /// Bytes, where the Hub says so.
    pub size: Option<u64>,
    /// Checksum in hexadecimal; the Hub has it for large files only.
    pub sha256: Option<String>,
    /// The name that Git has for the content, for the other files: a SHA-1 in hexadecimal over its length and itself.
    #[serde(default)]
    pub git_sha1: Option<String>,
}

impl Remote {
    /// What the content is called in the cache: its checksum, as in the Hub's own cache; else commit and name.
    pub fn key(&self, commit: &str) -> String {
        match (&self.sha256, &self.git_sha1) {
            (Some(sum), _) | (None, Some(sum)) => sum.clone(),
            (None, None) => format!("{commit}-{}", self.name.replace('/', "--")),
        }
    }
}

/// Checks size and checksum of a file, as far as they are known.
///
/// # Errors
/// What it is and what it should be.
pub fn verify(path: &Path, file: &Remote) -> anyhow::Result<()> {
    let size = std::fs::metadata(path)
        .with_context(|| format!("failed to read {}", path.display()))?
        .len();
    if let Some(expected) = file.size.filter(|expected| *expected != size) {
        bail!("{} has {size} bytes, the Hub says {expected}", file.name);
    }
    let (kind, expected, found) = match (&file.sha256, &file.git_sha1) {
        (Some(expected), _) => ("sha256", expected, sha256(path)?),
        (None, Some(expected)) => ("git sha1", expected, git_sha1(path, size)?),
        (None, None) => return Ok(()),
    };
    ensure!(
        found == *expected,
        "{} has {kind} {found}, the Hub says {expected}",
        file.name
    );
    Ok(())
}

/// The checksum of a file.
///
/// # Errors
/// What the system says.
pub fn sha256(path: &Path) -> anyhow::Result<String> {
    let mut hash = Sha256::new();
    pieces(path, &mut |piece| hash.update(piece))?;
    Ok(hex(&hash.finalize()))
}

/// What Git calls a file of this content.
fn git_sha1(path: &Path, size: u64) -> anyhow::Result<String> {
    let mut hash = Sha1::new();
    hash.update(format!("blob {size}\0"));
    pieces(path, &mut |piece| hash.update(piece))?;
    Ok(hex(&hash.finalize()))
}

fn pieces(path: &Path, each: &mut dyn FnMut(&[u8])) -> anyhow::Result<()> {
    let failed = || format!("failed to read {}", path.display());
    let mut file = File::open(path).with_context(failed)?;
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        match file.read(&mut buffer).with_context(failed)? {
            0 => return Ok(()),
            n => each(&buffer[..n]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_file_is_known_by_its_name_in_git() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hello");
        std::fs::write(&path, "hello\n").unwrap();
        let mut file = Remote {
            name: "hello".into(),
            size: Some(6),
            sha256: None,
            // As `git hash-object` says.
            git_sha1: Some("ce013625030ba8dba906f756967f9e9ca394464a".into()),
        };
        verify(&path, &file).unwrap();
        std::fs::write(&path, "hallo\n").unwrap();
        let error = verify(&path, &file).unwrap_err().to_string();
        assert!(
            error.starts_with("hello has git sha1 ") && error.contains("the Hub says ce01"),
            "{error}"
        );
        file.size = Some(7);
        assert_eq!(
            verify(&path, &file).unwrap_err().to_string(),
            "hello has 6 bytes, the Hub says 7"
        );
    }
}
