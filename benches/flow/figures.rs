//! Figures: what is read of a process, what is made of measurements, and how both are shown.

use serde_json::Value;
use std::time::Duration;

/// Kernel ticks a second in `/proc/PID/stat`; fixed at 100 in what user space sees on Linux.
const TICKS_PER_S: f64 = 100.0;

/// The value below which this part of all lies; 0 of none.
pub fn percentile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// The middle one; of an even count the lower.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

/// Milliseconds.
pub fn ms(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

/// What a process has used so far.
#[derive(Debug, Clone, Copy)]
pub struct Process {
    pid: u32,
}

impl Process {
    /// The process of this id.
    pub fn of(pid: u32) -> Process {
        Process { pid }
    }

    /// Seconds of processor time, of all its threads.
    pub fn cpu_s(self) -> f64 {
        let stat = self.read("stat");
        // The name in brackets may hold spaces; utime and stime are the 14th and 15th field of all.
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map_or("", |(_, rest)| rest)
            .split_whitespace()
            .collect();
        let ticks = |at: usize| {
            fields
                .get(at)
                .and_then(|it| it.parse::<f64>().ok())
                .unwrap_or(0.0)
        };
        (ticks(11) + ticks(12)) / TICKS_PER_S
    }

    /// Seconds of processor time per thread name.
    pub fn threads_s(self) -> std::collections::BTreeMap<String, f64> {
        let mut of = std::collections::BTreeMap::new();
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid));
        for task in tasks.into_iter().flatten().flatten() {
            let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else {
                continue;
            };
            let Some((head, rest)) = stat.rsplit_once(')') else {
                continue;
            };
            let name = head.split_once('(').map_or("", |(_, name)| name);
            let name = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '-');
            let ticks = rest.split_whitespace().skip(11).take(2);
            let ticks: f64 = ticks.filter_map(|it| it.parse::<f64>().ok()).sum();
            *of.entry(name.to_owned()).or_default() += ticks / TICKS_PER_S;
        }
        of
    }

    /// Forgets the peak of its memory.
    pub fn forget_peak(self) {
        // 5 resets VmHWM, proc(5).
        std::fs::write(format!("/proc/{}/clear_refs", self.pid), "5").expect("our own child");
    }

    /// MB of memory at most since the start or [`Process::forget_peak`].
    pub fn peak_mb(self) -> f64 {
        self.status("VmHWM:")
    }

    /// MB of memory now.
    pub fn rss_mb(self) -> f64 {
        self.status("VmRSS:")
    }

    fn status(self, key: &str) -> f64 {
        let status = self.read("status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .unwrap_or("");
        let kib = line
            .split_whitespace()
            .next()
            .and_then(|it| it.parse::<f64>().ok());
        kib.unwrap_or(0.0) * 1024.0 / 1e6
    }

    fn read(self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.pid)).unwrap_or_default()
    }
}

/// A table, told on stderr as it grows.
pub struct Table {
    columns: usize,
}

impl Table {
    /// Says what follows.
    pub fn new(title: &str, columns: &[&str]) -> Table {
        eprintln!("\n{title}\n");
        eprintln!("| {} |", columns.join(" | "));
        eprintln!("|{}", "---|".repeat(columns.len()));
        Table {
            columns: columns.len(),
        }
    }

    /// One row.
    pub fn row(&self, cells: &[String]) {
        assert_eq!(cells.len(), self.columns);
        eprintln!("| {} |", cells.join(" | "));
    }
}

/// A number with three digits that count.
pub fn short(value: f64) -> String {
    let places = match value.abs() {
        x if x >= 100.0 => 0,
        x if x >= 10.0 => 1,
        x if x >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.places$}")
}

/// One line of JSON on stdout.
pub fn tell(scenario: &str, value: Value) {
    println!("{}", serde_json::json!({ "scenario": scenario, "result": value }));
}
