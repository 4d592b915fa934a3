//! Where a run is made.

use super::report::Machine;
use crate::engine::device;

/// Instructions that this program's kernels are chosen by, or that others' are, as Linux calls them.
const FLAGS: [&str; 18] = [
    "sse4_2",
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "bf16",
    "i8mm",
];

/// This machine, as far as it can be known.
pub fn look() -> Machine {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let uname = rustix::system::uname();
    let processors = read("/proc/cpuinfo");
    let (cpu, flags, cores) = processor(&processors);
    Machine {
        host: uname.nodename().to_string_lossy().into_owned(),
        arch: std::env::consts::ARCH.to_owned(),
        cpu,
        flags,
        cores: cores.max(1),
        allowed: device::threads(),
        memory_bytes: memory(&read("/proc/meminfo")),
        kernel: format!(
            "{} {}",
            uname.sysname().to_string_lossy(),
            uname.release().to_string_lossy()
        ),
        load_average: read("/proc/loadavg")
            .split(' ')
            .next()
            .and_then(|first| first.parse().ok()),
        masked: std::env::var("EMBEDDINGS_CPU_MAX")
            .ok()
            .filter(|value| !value.is_empty()),
    }
}

/// Name, instructions and number of the processors that `/proc/cpuinfo` lists.
fn processor(text: &str) -> (String, Vec<String>, usize) {
    let values = |key: &'static str| {
        text.lines().filter_map(move |line| {
            let (own, value) = line.split_once(':')?;
            (own.trim() == key).then(|| value.trim())
        })
    };
    // Arm's kernels name no model, only its numbers.
    let numbers = || {
        let implementer = values("CPU implementer").next()?;
        Some(format!(
            "implementer {implementer} part {}",
            values("CPU part").next()?
        ))
    };
    let name = values("model name").next().map(str::to_owned);
    let name = name.or_else(numbers).unwrap_or_else(|| "unknown".to_owned());
    let own = values("flags").chain(values("Features")).next().unwrap_or("");
    let own: Vec<&str> = own.split_whitespace().collect();
    let flags = FLAGS.iter().filter(|flag| own.contains(*flag));
    (
        name,
        flags.map(|flag| (*flag).to_owned()).collect(),
        values("processor").count(),
    )
}

/// Bytes, from `/proc/meminfo`.
fn memory(text: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_kernel_are_understood() {
        let intel = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: fpu avx2 fma amx_tile sse4_2\n\n\
                     processor\t: 1\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: fpu\n";
        let (name, flags, cores) = processor(intel);
        assert_eq!((name.as_str(), cores), ("Intel(R) Xeon(R)", 2));
        assert_eq!(flags, ["sse4_2", "avx2", "fma", "amx_tile"]);
        let arm = "processor\t: 0\nFeatures\t: fp asimd bf16\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n";
        let (name, flags, cores) = processor(arm);
        assert_eq!((name.as_str(), cores), ("implementer 0x41 part 0xd40", 1));
        assert_eq!(flags, ["asimd", "bf16"]);
        assert_eq!(processor("").0, "unknown");
        assert_eq!(memory("MemFree: 1 kB\nMemTotal:       2048 kB\n"), 2 << 20);
        let here = look();
        assert!(here.allowed >= 1 && !here.kernel.is_empty());
    }
}
