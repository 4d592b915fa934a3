//! A file as the Hub describes it, and whether the one at hand is that file.

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
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
    if let Some(expected) = &file.sha256 {
        let found = sha256(path)?;
        ensure!(
            found == *expected,
            "{} has sha256 {found}, the Hub says {expected}",
            file.name
        );
    }
    Ok(())
}

/// The checksum of a file.
///
/// # Errors
/// What the system says.
pub fn sha256(path: &Path) -> anyhow::Result<String> {
    let mut file = std::fs::File::open(path).with_context(|| format!("failed to read {}", path.display()))?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0u8; 1 << 20]);
    loop {
        match file
            .read(&mut buffer)
            .with_context(|| format!("failed to read {}", path.display()))?
        {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Takes a damaged file out of the cache: the link and what it points to.
pub fn discard(path: &Path) {
    if let Ok(blob) = path.canonicalize() {
        let _ = std::fs::remove_file(blob);
    }
    let _ = std::fs::remove_file(path);
}
