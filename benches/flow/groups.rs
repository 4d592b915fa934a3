//! Node and service in cgroups of their own, as two units of systemd are where it shares the processors out by weight.

use crate::knob;
use crate::service::{Bench, Service};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A unit's `CPUWeight=` unless it says otherwise, and what is the node's here.
const WEIGHT: usize = 100;
/// The same in version 1 of cgroups, `cpu.shares`.
const SHARES: usize = 1024;

/// The node and the service are parted for as long as this lives, if `BENCH_FLOW_WEIGHT` gives the service's `CPUWeight=`.
pub struct Groups(Vec<(PathBuf, String)>);

impl Groups {
    /// Parts them.
    pub fn part(bench: &Bench, service: &Service) -> Groups {
        let weight = knob("WEIGHT", 0);
        if weight == 0 {
            return Groups(Vec::new());
        }
        let read = format!("{} && cat \"$RABBITMQ_PID_FILE\"", bench.node.shell());
        let node = Command::new("sh").args(["-c", &read]).output().expect("a shell");
        let node = String::from_utf8(node.stdout).expect("the node's number");
        let members = [
            ("node", node.trim().to_owned(), WEIGHT),
            ("service", service.pid().to_string(), weight),
        ];
        let parted = members.map(|(name, process, weight)| (group(name, weight), process));
        for (group, process) in &parted {
            write(&group.join("cgroup.procs"), process);
        }
        Groups(parted.into())
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for (group, process) in &self.0 {
            // One that is gone has left already.
            let _ = std::fs::write(group.with_file_name("cgroup.procs"), process);
            let _ = std::fs::remove_dir(group);
        }
    }
}

/// Makes a cgroup of this weight.
fn group(name: &str, weight: usize) -> PathBuf {
    let (one, two) = (Path::new("/sys/fs/cgroup/cpu"), Path::new("/sys/fs/cgroup"));
    let first = one.join("cpu.shares").exists();
    let group = if first { one } else { two }.join(format!("bench-flow-{name}"));
    if !first {
        write(&two.join("cgroup.subtree_control"), "+cpu");
    }
    let _ = std::fs::create_dir(&group);
    if first {
        write(&group.join("cpu.shares"), &(weight * SHARES / WEIGHT).to_string());
    } else {
        write(&group.join("cpu.weight"), &weight.to_string());
    }
    group
}

fn write(file: &Path, text: &str) {
    std::fs::write(file, text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}
