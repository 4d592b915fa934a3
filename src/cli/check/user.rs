//! The user that the service runs as, and what that user may read and write: root sees more than the service.

use super::super::ask::ask;
use super::mend::{Hand, path as shell_path};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A file system that does not answer in this time tells nothing.
const PATIENCE: Duration = Duration::from_secs(5);

/// The service's user, as whom only root can look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reader {
    /// Name.
    pub name: String,
    /// Its own group, which secrets can be given to.
    pub group: String,
}

/// What is wanted of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// To read it, or list it.
    Read,
    /// To write, or put something into it.
    Write,
    /// To go through a folder.
    Enter,
}

impl Reader {
    /// The user of this name, if there is one and this process can look as that user.
    pub fn find(name: &str, own_uid: u32) -> Option<Reader> {
        if own_uid != 0 {
            return None;
        }
        let of = |what: &str| {
            let mut id = Command::new("id");
            id.args([what, "--", name]);
            let output = ask(id, PATIENCE).filter(|output| output.status.success())?;
            let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            (!text.is_empty()).then_some(text)
        };
        // Root itself may do everything.
        let uid = of("-u")?;
        let group = of("-gn")?;
        (uid != "0").then(|| Reader {
            name: name.to_owned(),
            group,
        })
    }

    /// Asks the kernel, with all of the user's groups; `None` where it cannot be known.
    pub fn may(&self, want: Want, path: &Path) -> Option<bool> {
        let flag = match want {
            Want::Read => "-r",
            Want::Write => "-w",
            Want::Enter => "-x",
        };
        let mut command = Command::new("setpriv");
        command
            .args([
                &format!("--reuid={}", self.name),
                &format!("--regid={}", self.group),
            ])
            .args(["--init-groups", "--", "test", flag])
            .arg(path);
        match ask(command, PATIENCE)?.status.code() {
            Some(0) => Some(true),
            Some(1) => Some(false),
            _ => None,
        }
    }

    /// The folders above a path that the user cannot go through.
    pub fn walls(&self, path: &Path) -> Vec<PathBuf> {
        let above: Vec<&Path> = path
            .ancestors()
            .skip(1)
            .filter(|it| !it.as_os_str().is_empty())
            .collect();
        let outermost_first = above.into_iter().rev();
        let mut walls = Vec::new();
        for folder in outermost_first {
            // Behind the first wall nothing can be seen; what stands open in itself is no wall.
            let closed = match walls.is_empty() {
                true => self.may(Want::Enter, folder) == Some(false),
                false => !open_to_all(folder),
            };
            if closed {
                walls.push(folder.to_owned());
            }
        }
        walls
    }

    /// The commands that open a file to this user and to nobody else: its group, and the way there.
    pub fn open(&self, hand: &Hand, file: &Path) -> Vec<String> {
        let mut commands: Vec<String> = self
            .walls(file)
            .iter()
            .map(|wall| hand.root(format!("chmod a+x {}", shell_path(wall))))
            .collect();
        if self.may(Want::Read, file) != Some(true) || !commands.is_empty() {
            commands.push(hand.root(format!("chgrp {} {}", self.group, shell_path(file))));
            commands.push(hand.root(format!("chmod g+r {}", shell_path(file))));
        }
        commands
    }
}

fn open_to_all(folder: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    folder
        .metadata()
        .is_ok_and(|of| of.permissions().mode() & 0o001 != 0)
}

/// Whether everybody on this machine can read a file: it itself, and the way there.
pub fn is_public(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    let readable = file
        .metadata()
        .is_ok_and(|of| of.permissions().mode() & 0o004 != 0);
    let mut above = file.ancestors().skip(1).filter(|it| !it.as_os_str().is_empty());
    readable && above.all(open_to_all)
}
