//! What the machine allows this process, and where a model may run.

use super::kernel::Kernel;
use crate::config;
use std::path::{Path, PathBuf};

/// Where a model computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    Cpu,
}

/// In which numbers a model computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 32-bit floating point.
    F32,
    /// Products of numbers of eight significant bits, summed in 32 bits.
    Bf16,
    /// Products of bytes with a scale for each token and each output, summed in 32 bits.
    Int8,
}

/// The device or precision asked for needs code that this program does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {wanted} is not supported by this build, it has {have}")]
pub struct ChoiceError {
    kind: &'static str,
    wanted: String,
    have: &'static str,
}

impl Device {
    /// The device for what was asked for.
    ///
    /// # Errors
    /// This build has no such device.
    pub fn choose(wanted: config::Device) -> Result<Device, ChoiceError> {
        match wanted {
            config::Device::Auto | config::Device::Cpu => Ok(Device::Cpu),
            config::Device::Cuda(_) | config::Device::Metal => Err(ChoiceError {
                kind: "device",
                wanted: wanted.to_string(),
                have: "auto, cpu",
            }),
        }
    }

    /// As in metrics and in the status line.
    pub fn name(self) -> &'static str {
        match self {
            Device::Cpu => "cpu",
        }
    }
}

impl Precision {
    /// The number formats that answer what was asked for, the most promising first; where there are two, a
    /// trial of the model decides.
    ///
    /// # Errors
    /// This build does not compute in it.
    pub fn choose(wanted: config::Precision) -> Result<Vec<Precision>, ChoiceError> {
        match wanted {
            // Bytes never come near enough to 32 bits, and rounding without fitting instructions gains nothing.
            config::Precision::Auto if Kernel::choose(Precision::Bf16).is_native() => {
                Ok(vec![Precision::Bf16, Precision::F32])
            }
            config::Precision::Auto | config::Precision::F32 => Ok(vec![Precision::F32]),
            config::Precision::Bf16 => Ok(vec![Precision::Bf16]),
            config::Precision::Int8 => Ok(vec![Precision::Int8]),
            config::Precision::F16 => Err(ChoiceError {
                kind: "precision",
                wanted: wanted.to_string(),
                have: "auto, f32, bf16, int8",
            }),
        }
    }

    /// The setting that asks for just this one.
    pub fn setting(self) -> config::Precision {
        match self {
            Precision::F32 => config::Precision::F32,
            Precision::Bf16 => config::Precision::Bf16,
            Precision::Int8 => config::Precision::Int8,
        }
    }

    /// As in the fingerprint.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::Int8 => "int8",
        }
    }
}

/// Threads that may compute at once: those of the scheduler's affinity mask, and no more than the cgroup's
/// quota pays for; at least one. The machine's own count decides nothing.
pub fn threads() -> usize {
    let affinity = std::thread::available_parallelism().map_or(1, usize::from);
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    match quota(&own, Path::new("/sys/fs/cgroup")) {
        Some(cpus) => affinity.min(cpus),
        None => affinity,
    }
    .max(1)
}

/// Whole processors that the strictest quota on the way from our cgroup up to the root pays for. A part of a
/// processor counts as a whole one: a thread that waits half of the time is better than none.
fn quota(own: &str, root: &Path) -> Option<usize> {
    let mut least: Option<f64> = None;
    for line in own.lines() {
        // hierarchy-ID:controller-list:path, see cgroups(7); version 2 is the line with an empty list.
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let version2 = controllers.is_empty();
        let mount = match (version2, controllers.split(',').any(|name| name == "cpu")) {
            (true, _) => root.to_owned(),
            (false, true) => root.join(controllers),
            _ => continue,
        };
        let path = path.trim_start_matches('/');
        if path.split('/').any(|part| part == "..") {
            continue;
        }
        let mut dir = Some(PathBuf::from(path));
        while let Some(part) = dir {
            let cpus = if version2 {
                quota2(&mount.join(&part))
            } else {
                quota1(&mount.join(&part))
            };
            least = match (least, cpus) {
                (Some(least), Some(cpus)) => Some(least.min(cpus)),
                (least, cpus) => least.or(cpus),
            };
            dir = part.parent().map(Path::to_owned);
        }
    }
    least.map(|cpus| cpus.ceil() as usize)
}

/// `cpu.max`: quota or `max`, and the period, in microseconds.
fn quota2(dir: &Path) -> Option<f64> {
    let text = std::fs::read_to_string(dir.join("cpu.max")).ok()?;
    let mut parts = text.split_whitespace();
    let quota: f64 = parts.next()?.parse().ok()?;
    let period: f64 = parts.next()?.parse().ok()?;
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

/// `cpu.cfs_quota_us`, -1 for none, and `cpu.cfs_period_us`.
fn quota1(dir: &Path) -> Option<f64> {
    let number = |name: &str| {
        std::fs::read_to_string(dir.join(name))
            .ok()?
            .trim()
            .parse::<f64>()
            .ok()
    };
    let (quota, period) = (number("cpu.cfs_quota_us")?, number("cpu.cfs_period_us")?);
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn the_strictest_quota_on_the_way_up_counts() {
        let root = tree(&[
            ("system.slice/cpu.max", "150000 100000\n"),
            ("system.slice/embeddings.service/cpu.max", "max 100000\n"),
        ]);
        assert_eq!(
            quota("0::/system.slice/embeddings.service\n", root.path()),
            Some(2)
        );
        assert_eq!(quota("0::/\n", root.path()), None);
    }

    #[test]
    fn version_1_is_understood() {
        let root = tree(&[
            ("cpu,cpuacct/a/cpu.cfs_quota_us", "50000"),
            ("cpu,cpuacct/a/cpu.cfs_period_us", "100000"),
        ]);
        assert_eq!(quota("4:memory:/b\n3:cpu,cpuacct:/a\n", root.path()), Some(1));
    }

    #[test]
    fn nonsense_is_no_quota() {
        let root = tree(&[("a/cpu.max", "0 0")]);
        assert_eq!(quota("0::/a\nwhat\n0::/../../etc\n", root.path()), None);
        assert!(threads() >= 1);
    }

    #[test]
    fn what_this_build_lacks_is_refused_by_name() {
        assert_eq!(Device::choose(config::Device::Auto), Ok(Device::Cpu));
        let error = Device::choose(config::Device::Cuda(1)).unwrap_err().to_string();
        assert_eq!(
            error,
            "device cuda:1 is not supported by this build, it has auto, cpu"
        );
        let error = Precision::choose(config::Precision::F16).unwrap_err().to_string();
        assert!(error.contains("it has auto, f32, bf16, int8"), "{error}");
    }
}
