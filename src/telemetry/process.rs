//! What the system knows of this process: processor time and open files.

use std::fs;

/// Processor time of all threads since the start, in seconds.
pub fn cpu_seconds() -> f64 {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    spent.tv_sec as f64 + spent.tv_nsec as f64 / 1e9
}

/// Open file descriptors; `None` where the system does not say.
pub fn open_fds() -> Option<u64> {
    let open = fs::read_dir("/proc/self/fd").ok()?.count();
    // The folder itself is open while it is read.
    u64::try_from(open).ok().map(|open| open.saturating_sub(1))
}

/// Bound on open file descriptors; `None` where the system does not say, or sets none.
pub fn max_fds() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_something() {
        assert!(cpu_seconds() > 0.0);
        let (open, max) = (open_fds().unwrap(), max_fds().unwrap());
        assert!((3..max).contains(&open), "{open} of {max}");
    }
}
