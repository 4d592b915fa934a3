//! Puts a model's files into the service's model folder: all of it or nothing.

use crate::config::plain_name;
use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// File in an installed model that remembers where it came from.
const SOURCE_FILE: &str = ".source.json";

/// Where an installed model came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// ID on the Hub, or the folder it was copied from.
    pub from: String,
    /// Commit on the Hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
}

impl Source {
    /// Reads what an installed model remembers.
    pub fn read(dir: &Path) -> Option<Source> {
        serde_json::from_slice(&fs::read(dir.join(SOURCE_FILE)).ok()?).ok()
    }
}

/// The place of a model, or why it cannot be installed there.
///
/// # Errors
/// A name that is no plain folder name, or one that is taken.
pub fn place(models: &Path, name: &str, replace: bool) -> anyhow::Result<PathBuf> {
    ensure!(
        plain_name(name),
        "model name {name:?} must be 1 to 100 of the characters a-z A-Z 0-9 . _ -, not starting with . or -"
    );
    let target = models.join(name);
    ensure!(
        replace || !target.exists(),
        "model {name} is installed already in {}; --replace replaces it",
        target.display()
    );
    Ok(target)
}

/// Copies `files` of the folder `from` to `models`/`name`: beside it first, then by renaming.
///
/// # Errors
/// What the system says; nothing is left behind.
pub fn install(
    from: &Path,
    files: &[String],
    models: &Path,
    name: &str,
    replace: bool,
    source: &Source,
) -> anyhow::Result<PathBuf> {
    let target = place(models, name, replace)?;
    fs::create_dir_all(models).with_context(|| {
        format!(
            "failed to create {} (as root: sudo embeddings model …)",
            models.display()
        )
    })?;
    // One at a time, so that nobody takes away or overtakes what another is about to put there.
    let _lock = lock(models)?;
    place(models, name, replace)?;
    clean(models, name);
    let pid = std::process::id();
    let fresh = models.join(format!(".{name}.{pid}.new"));
    let done = copy(from, files, &fresh, source).and_then(|()| swap(&fresh, &target, models, name, pid));
    if done.is_err() {
        let _ = fs::remove_dir_all(&fresh);
    }
    done.map(|()| target)
}

fn copy(from: &Path, files: &[String], fresh: &Path, source: &Source) -> anyhow::Result<()> {
    let make = |dir: &Path| {
        fs::create_dir_all(dir)?;
        // Readable by the service's own user whatever the umask of the one who installs.
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
    };
    make(fresh).with_context(|| format!("failed to create {}", fresh.display()))?;
    for file in files {
        let (here, there) = (from.join(file), fresh.join(file));
        let step = || -> std::io::Result<()> {
            if let Some(parent) = there.parent() {
                make(parent)?;
            }
            fs::copy(&here, &there)?;
            fs::set_permissions(&there, fs::Permissions::from_mode(0o644))?;
            fs::File::open(&there)?.sync_all()
        };
        step().with_context(|| format!("failed to copy {} to {}", here.display(), there.display()))?;
    }
    let text = serde_json::to_string(source)?;
    let marker = fresh.join(SOURCE_FILE);
    fs::write(&marker, text)
        .and_then(|()| fs::set_permissions(&marker, fs::Permissions::from_mode(0o644)))?;
    fs::File::open(fresh)?.sync_all()?;
    Ok(())
}

/// Puts the fresh folder into its place. An old one changes places with it in one step, so that there is a whole
/// model under the name at every moment; where the file system cannot do that, it steps aside first.
fn swap(fresh: &Path, target: &Path, models: &Path, name: &str, pid: u32) -> anyhow::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let old = models.join(format!(".{name}.{pid}.old"));
    let failed = || format!("failed to rename {} to {}", fresh.display(), target.display());
    if !target.exists() {
        fs::rename(fresh, target).with_context(failed)?;
    } else if renameat_with(CWD, fresh, CWD, target, RenameFlags::EXCHANGE).is_ok() {
        // What was under the name has the fresh one's now. A rename keeps it from being taken for a half-done one.
        fs::rename(fresh, &old).with_context(failed)?;
    } else {
        fs::rename(target, &old).with_context(|| format!("failed to move {} aside", target.display()))?;
        if let Err(error) = fs::rename(fresh, target) {
            let _ = fs::rename(&old, target);
            return Err(error).with_context(failed);
        }
    }
    let _ = fs::remove_dir_all(&old);
    fs::File::open(models)?.sync_all()?;
    Ok(())
}

/// Removes an installed model: out of sight first, then gone.
///
/// # Errors
/// What the system says.
pub fn remove(models: &Path, name: &str) -> anyhow::Result<()> {
    let (target, old) = (
        models.join(name),
        models.join(format!(".{name}.{}.old", std::process::id())),
    );
    let _lock = lock(models)?;
    clean(models, name);
    fs::rename(&target, &old)
        .and_then(|()| fs::remove_dir_all(&old))
        .with_context(|| format!("failed to remove {}", target.display()))
}

/// One command at a time, until the file is dropped.
fn lock(models: &Path) -> anyhow::Result<fs::File> {
    let folder = fs::File::open(models).with_context(|| format!("failed to open {}", models.display()))?;
    folder
        .lock()
        .with_context(|| format!("failed to lock {}", models.display()))?;
    Ok(folder)
}

/// Removes what a process that died in the middle left behind for this name.
fn clean(models: &Path, name: &str) {
    for entry in fs::read_dir(models).into_iter().flatten().flatten() {
        let file = entry.file_name().to_string_lossy().into_owned();
        let rest = file
            .strip_prefix('.')
            .and_then(|rest| rest.strip_prefix(name))
            .and_then(|rest| rest.strip_prefix('.'));
        let Some((pid, end)) = rest.and_then(|rest| rest.split_once('.')) else {
            continue;
        };
        let ours = matches!(end, "new" | "old") && pid.bytes().all(|b| b.is_ascii_digit());
        if ours && !Path::new("/proc").join(pid).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
