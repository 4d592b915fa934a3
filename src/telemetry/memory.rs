//! How much memory is in use, and where the kernel steps in: the bounds of our cgroup and of those above it, and of
//! the machine. The one that is nearest counts. Read by a thread of its own: files are nothing for the loop.

use crate::logic::pressure::Memory;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Between two readings. A flood of large bodies takes longer to arrive than this.
const INTERVAL: Duration = Duration::from_millis(250);
/// Version 1 writes "no bound" as the largest number of whole pages that a file offset has room for.
const NO_BOUND: u64 = 1 << 62;

/// Starts the thread. It ends when `tell` says that nobody listens any more.
pub fn watch(tell: impl Fn(Memory) -> bool + Send + 'static) -> io::Result<()> {
    let turn = move || {
        // Looked up each time: a process may be moved, and the bounds of where it was say nothing of it any more.
        while Meter::of_this_process().read().is_none_or(&tell) {
            std::thread::sleep(INTERVAL);
        }
    };
    std::thread::Builder::new().name("memory".into()).spawn(turn)?;
    Ok(())
}

/// Bytes at which the kernel steps in: the least bound of our cgroup, of those above it, and of the machine.
pub fn bound() -> Option<u64> {
    let meter = Meter::of_this_process();
    let groups = meter.groups.iter().filter_map(Group::read);
    groups
        .chain(machine(&meter.root))
        .map(|memory| memory.limit)
        .min()
}

/// Where to look.
#[derive(Debug)]
struct Meter {
    groups: Vec<Group>,
    root: PathBuf,
}

/// One cgroup on the way from ours up to the root.
#[derive(Debug)]
struct Group {
    dir: PathBuf,
    version2: bool,
}

impl Meter {
    fn of_this_process() -> Meter {
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Meter::new(&own, Path::new("/"))
    }

    /// `own` is what `/proc/self/cgroup` says, `root` the root of all files.
    fn new(own: &str, root: &Path) -> Meter {
        let mut groups = Vec::new();
        let cgroups = root.join("sys/fs/cgroup");
        for line in own.lines() {
            // hierarchy-ID:controller-list:path, see cgroups(7); version 2 is the line with an empty list.
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
                continue;
            };
            let version2 = controllers.is_empty();
            let mount = match (version2, controllers.split(',').any(|name| name == "memory")) {
                (true, _) => cgroups.clone(),
                (false, true) => cgroups.join(controllers),
                _ => continue,
            };
            let path = Path::new(path.trim_start_matches('/'));
            if path.components().any(|part| part.as_os_str() == "..") {
                continue;
            }
            // The bounds themselves may come and go while we run, so every level is kept.
            let levels = path.ancestors().map(|level| Group {
                dir: mount.join(level),
                version2,
            });
            groups.extend(levels);
        }
        Meter {
            groups,
            root: root.to_owned(),
        }
    }

    /// The bound that is nearest, measured by what is to be kept free below it.
    fn read(&self) -> Option<Memory> {
        let groups = self.groups.iter().filter_map(Group::read);
        let room = |memory: &Memory| i128::from(memory.bound()) - i128::from(memory.in_use);
        groups.chain(machine(&self.root)).min_by_key(room)
    }
}

impl Group {
    /// `None` where there is no bound.
    fn read(&self) -> Option<Memory> {
        let (bounds, current, stat): (&[&str], _, _) = if self.version2 {
            // Above memory.high the kernel makes everything wait, which is no better than what comes next.
            (&["memory.max", "memory.high"], "memory.current", "inactive_file")
        } else {
            (
                &["memory.limit_in_bytes"],
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        };
        let bounds = bounds.iter().filter_map(|name| self.number(name));
        let limit = bounds.filter(|&bound| bound < NO_BOUND).min()?;
        let current = self.number(current)?;
        // File pages that nobody has looked at lately are what the kernel takes back first.
        let stats = std::fs::read_to_string(self.dir.join("memory.stat")).unwrap_or_default();
        let idle = field(&stats, stat).unwrap_or(0);
        Some(Memory {
            in_use: current.saturating_sub(idle),
            limit,
        })
    }

    fn number(&self, name: &str) -> Option<u64> {
        let text = std::fs::read_to_string(self.dir.join(name)).ok()?;
        text.trim().parse().ok()
    }
}

/// The machine as a whole, for a process without a bound of its own.
fn machine(root: &Path) -> Option<Memory> {
    let text = std::fs::read_to_string(root.join("proc/meminfo"));
    let Ok(text) = text else { return nodes(root) };
    let limit = field(&text, "MemTotal:")?;
    Some(kilobytes(limit, field(&text, "MemAvailable:")?))
}

/// The same from `/sys`, under a unit that hides `/proc/meminfo` (`ProcSubset=pid`): summed over the memory's nodes,
/// and counting what MemAvailable counts for the most part, free pages and those of files.
fn nodes(root: &Path) -> Option<Memory> {
    let (mut limit, mut available) = (0, 0);
    for number in 0.. {
        let file = root.join(format!("sys/devices/system/node/node{number}/meminfo"));
        let Ok(text) = std::fs::read_to_string(file) else {
            break;
        };
        // Each line begins with "Node N".
        let text = text.replace(&format!("Node {number} "), "");
        limit += field(&text, "MemTotal:")?;
        for part in ["MemFree:", "Active(file):", "Inactive(file):"] {
            available += field(&text, part)?;
        }
    }
    (limit > 0).then(|| kilobytes(limit, available))
}

fn kilobytes(limit: u64, available: u64) -> Memory {
    Memory {
        in_use: limit.saturating_sub(available).saturating_mul(1024),
        limit: limit.saturating_mul(1024),
    }
}

/// The number behind a name at the beginning of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some(name)).then(|| words.next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       1000000 kB\nMemFree:         10 kB\nMemAvailable:    700000 kB\n";

    fn read(own: &str, files: &[(&str, &str)]) -> Option<Memory> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Meter::new(own, root.path()).read()
    }

    #[test]
    fn the_nearest_bound_on_the_way_up_counts() {
        let own = "0::/a.slice/b.service\n";
        let files = [
            ("proc/meminfo", MEMINFO),
            ("sys/fs/cgroup/a.slice/memory.max", "500000000\n"),
            ("sys/fs/cgroup/a.slice/memory.current", "480000000\n"),
            (
                "sys/fs/cgroup/a.slice/memory.stat",
                "anon 5\ninactive_file 30000000\nslab 7\n",
            ),
            ("sys/fs/cgroup/a.slice/b.service/memory.max", "max\n"),
            ("sys/fs/cgroup/a.slice/b.service/memory.high", "700000000\n"),
            ("sys/fs/cgroup/a.slice/b.service/memory.current", "450000000\n"),
        ];
        assert_eq!(
            read(own, &files),
            Some(Memory {
                in_use: 450_000_000,
                limit: 500_000_000
            })
        );
        // Without the one above, its own memory.high is the nearest.
        let high = Memory {
            in_use: 450_000_000,
            limit: 700_000_000,
        };
        assert_eq!(read(own, &files[4..]), Some(high));
    }

    #[test]
    fn version_1_is_understood() {
        let files = [
            ("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "400000000\n"),
            ("sys/fs/cgroup/memory/x/memory.usage_in_bytes", "390000000\n"),
            (
                "sys/fs/cgroup/memory/x/memory.stat",
                "inactive_file 1\ntotal_inactive_file 90000000\n",
            ),
            (
                "sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "999999999\n"),
            ("proc/meminfo", MEMINFO),
        ];
        let own = "9:name=systemd:/\n4:memory:/x\n0::/\n";
        let group = Memory {
            in_use: 300_000_000,
            limit: 400_000_000,
        };
        assert_eq!(read(own, &files), Some(group));
    }

    #[test]
    fn a_hidden_meminfo_is_made_up_for() {
        let node = |n: u32| {
            format!(
                "Node {n} MemTotal:       1000 kB\nNode {n} MemFree:        100 kB\n\
                 Node {n} Active(file):   50 kB\nNode {n} Inactive(file): 150 kB\n"
            )
        };
        let (first, second) = (node(0), node(1));
        let files = [
            ("sys/devices/system/node/node0/meminfo", first.as_str()),
            ("sys/devices/system/node/node1/meminfo", second.as_str()),
        ];
        let both = Memory {
            in_use: 1400 << 10,
            limit: 2000 << 10,
        };
        assert_eq!(read("", &files), Some(both));
    }

    /// No bound of our own: the machine's. Nothing at all: nothing is said.
    #[test]
    fn the_machine_is_the_last_bound() {
        let machine = Memory {
            in_use: 300_000 << 10,
            limit: 1_000_000 << 10,
        };
        let nonsense = "0::/../../etc\nwhat\n4:memory:/gone\n";
        assert_eq!(read(nonsense, &[("proc/meminfo", MEMINFO)]), Some(machine));
        assert_eq!(read("0::/\n", &[("sys/fs/cgroup/memory.max", "soon\n")]), None);
        assert_eq!(read("", &[("proc/meminfo", "MemTotal: x kB\n")]), None);
    }
}
