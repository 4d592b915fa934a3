//! Whether the disk has room for what is to be fetched, asked before the first byte of it.

use anyhow::{Context, anyhow, bail};
use indicatif::HumanBytes;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Is asked whether so many bytes may be fetched.
pub type Room<'a> = &'a dyn Fn(u64) -> anyhow::Result<()>;

/// Whether there is room for `cached` bytes in the cache and `installed` beside the other models.
///
/// # Errors
/// Where there is too little.
pub fn room(cache: &Path, cached: u64, models: &Path, installed: u64) -> anyhow::Result<()> {
    // A folder that is to be made lies where the nearest one above it lies.
    let nearest = |path: &Path| path.ancestors().find(|path| path.is_dir()).map(Path::to_owned);
    let (Some(cache), Some(models)) = (nearest(cache), nearest(models)) else {
        bail!("there is no folder above {}", models.display());
    };
    let device = |path: &Path| fs::metadata(path).map(|of| of.dev());
    let needs = match device(&cache)? == device(&models)? {
        true => vec![(cache, cached.saturating_add(installed))],
        false => vec![(cache, cached), (models, installed)],
    };
    for (dir, bytes) in needs {
        let of =
            rustix::fs::statvfs(&dir).with_context(|| format!("failed to ask about {}", dir.display()))?;
        let free = of.f_bavail.saturating_mul(of.f_frsize);
        if bytes > free {
            let (bytes, free) = (HumanBytes(bytes), HumanBytes(free));
            return Err(anyhow!(
                "not enough room in {}: {bytes} are needed, {free} are free",
                dir.display()
            ));
        }
    }
    Ok(())
}
