//! Where the output goes. What is there already is never destroyed unless that was asked for.

use super::{EXIT_OUTPUT, EXIT_USAGE};
use crate::args::SubmitArgs;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{File, Metadata, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// An output that may be written to.
#[derive(Debug)]
pub enum Target {
    /// No `--output`.
    Stdout,
    /// A device or a pipe.
    Stream(File),
    /// A file, locked against another submit, and still as it was.
    Regular {
        /// The file.
        file: File,
        /// Its real path, behind all links.
        path: PathBuf,
    },
}

/// Why an output cannot be used, and the exit code for it.
#[derive(Debug)]
pub struct Unusable(pub u8, pub String);

impl Target {
    /// Opens what `--output`, `--resume` and `--force` ask for. A regular file is locked and not yet touched.
    pub fn open(args: &SubmitArgs) -> Result<Target, Unusable> {
        let Some(path) = &args.output else {
            return Ok(Target::Stdout);
        };
        let shown = path.display();
        let usage = |problem: &str| Unusable(EXIT_USAGE, format!("--output {shown} {problem}"));
        let found = std::fs::metadata(path).ok();
        if found.as_ref().is_some_and(Metadata::is_dir) {
            return Err(usage("is a directory"));
        }
        if found.as_ref().is_some_and(|found| !found.is_file()) {
            if args.resume {
                return Err(usage("is no regular file: --resume has nothing to go on with"));
            }
            return match OpenOptions::new().write(true).open(path) {
                Ok(file) => Ok(Target::Stream(file)),
                Err(error) => Err(cannot(path, "opened", &error)),
            };
        }
        if let Some(found) = &found {
            let stdin = args.files.is_empty() || args.files.iter().any(|file| file.as_os_str() == "-");
            let is_stdin = stdin && is_same(Path::new("/dev/stdin"), found);
            if is_stdin || args.files.iter().any(|file| is_same(file, found)) {
                return Err(usage("is one of the files to embed"));
            }
            if found.len() > 0 && !args.resume && !args.force {
                return Err(usage(
                    "exists: --resume goes on with it, --force begins anew and overwrites it",
                ));
            }
        }
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|error| cannot(path, "opened", &error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(usage("is being written by another submit")),
            // Not every file system has locks; that is no reason to write nothing.
            Err(error) => tell!("warning: {} cannot be locked: {error}", path.display()),
        }
        let path = path
            .canonicalize()
            .map_err(|error| cannot(path, "found", &error))?;
        Ok(Target::Regular { file, path })
    }

    /// Where new records go. A regular file must stand where they shall begin.
    pub fn writer(&self) -> std::io::Result<Box<dyn Write + Send>> {
        Ok(match self {
            Target::Stdout => Box::new(std::io::stdout()),
            Target::Stream(file) | Target::Regular { file, .. } => Box::new(file.try_clone()?),
        })
    }

    /// Waits until what was written is on the disk. A file that was mended is another one under the same name by now, and
    /// was waited for before it took that name; that it has it, as that a new file has its, is a matter of the folder.
    pub fn make_durable(&self, warn: impl Fn(&str)) -> std::io::Result<()> {
        let Target::Regular { file, path } = self else {
            return Ok(());
        };
        file.sync_all()?;
        let Some(folder) = path.parent() else {
            return Ok(());
        };
        // Not every file system can, and not every folder that may be written to may be opened.
        if let Err(error) = File::open(folder).and_then(|folder| folder.sync_all()) {
            let shown = folder.display();
            warn(&format!(
                "warning: {shown} cannot be flushed to the disk: {error}"
            ));
        }
        Ok(())
    }

    /// How to go on later with what is there.
    pub fn how_to_go_on(&self) -> &'static str {
        match self {
            Target::Regular { .. } => "the same command with --resume goes on from here",
            _ => "what was written is whole; with --output FILE a later run could go on with --resume",
        }
    }
}

fn is_same(file: &Path, other: &Metadata) -> bool {
    std::fs::metadata(file).is_ok_and(|file| (file.dev(), file.ino()) == (other.dev(), other.ino()))
}

fn cannot(path: &Path, what: &str, error: &std::io::Error) -> Unusable {
    Unusable(
        EXIT_OUTPUT,
        format!("{} cannot be {what}: {error}", path.display()),
    )
}
