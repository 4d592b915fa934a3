//! What the machine allows this process, and where a model may run.

use super::LoadError;
use super::gpu::Place;
use super::kernel::Kernel;
use crate::config;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tracing::warn;

/// Where a model computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    Cpu,
    /// An NVIDIA card by its number.
    Cuda(usize),
    /// Apple's GPU.
    Metal,
}

/// In which numbers a model computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 32-bit floating point.
    F32,
    /// Products of numbers of eight significant bits, summed in 32 bits.
    Bf16,
    /// Products of numbers of eleven significant bits and a small range, summed in 32 bits; only on a GPU.
    F16,
    /// Products of bytes with a scale for each token and each output, summed in 32 bits.
    Int8,
}

/// The device or precision asked for cannot be had here, whatever is tried.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChoiceError {
    /// This program was built without it.
    #[error("device is {wanted}: {why}, or set auto or cpu")]
    Build {
        /// As written.
        wanted: config::Device,
        /// What it has, and where the other is.
        why: &'static str,
    },
    /// The device's libraries are not installed.
    #[error("device is {wanted}, and {why}; device = \"auto\" would compute on the CPU")]
    Libraries {
        /// As written.
        wanted: config::Device,
        /// Which one is missing.
        why: String,
    },
    /// The device does not compute in these numbers.
    #[error("precision is {wanted}, {device} computes in {have}")]
    Precision {
        /// As written.
        wanted: config::Precision,
        /// Where.
        device: Device,
        /// In what instead.
        have: &'static str,
    },
}

/// Why the automatic choice took the CPU although this build has more: found out once, and said but once.
static FALL_BACK: OnceLock<String> = OnceLock::new();

impl Device {
    /// The device for what was asked for, opened if it is not the CPU. The automatic choice takes the GPU of this build
    /// if it can be used and has numbers of this kind, and else the CPU.
    ///
    /// # Errors
    /// This build has no such device, its libraries are missing, or it cannot be opened.
    pub fn choose(
        wanted: config::Device,
        precision: config::Precision,
    ) -> Result<(Device, Option<Place>), LoadError> {
        if let Some(why) = config::missing(wanted) {
            return Err(ChoiceError::Build { wanted, why }.into());
        }
        let open = |device| Place::open(device).map(|place| (device, Some(place)));
        let demand = |device| {
            open(device).map_err(|error| match error {
                OpenError::Libraries(why) => ChoiceError::Libraries { wanted, why }.into(),
                OpenError::Device(why) => LoadError::Device {
                    why: format!("{device} cannot be used: {why}"),
                },
            })
        };
        match wanted {
            config::Device::Cpu => Ok((Device::Cpu, None)),
            config::Device::Cuda(number) => demand(Device::Cuda(number)),
            config::Device::Metal => demand(Device::Metal),
            config::Device::Auto => {
                let usual = Device::of_build().filter(|_| precision != config::Precision::Int8);
                let Some(device) = usual else {
                    return Ok((Device::Cpu, None));
                };
                open(device).or_else(|why| {
                    FALL_BACK.get_or_init(|| {
                        let instead = match precision {
                            config::Precision::F16 => ", precision auto for f16",
                            _ => "",
                        };
                        let why = format!("{device} cannot be used, computing on the CPU{instead}: {why}");
                        warn!("{why}");
                        why
                    });
                    Ok((Device::Cpu, None))
                })
            }
        }
    }

    /// Why the automatic choice has taken the CPU although this build has more, if it has.
    pub fn fallen_back() -> Option<&'static str> {
        FALL_BACK.get().map(String::as_str)
    }

    /// What this build has beside the CPU, if anything.
    fn of_build() -> Option<Device> {
        let all = [
            (config::Device::Cuda(0), Device::Cuda(0)),
            (config::Device::Metal, Device::Metal),
        ];
        let built = all.into_iter().find(|(word, _)| config::missing(*word).is_none());
        built.map(|(_, device)| device)
    }

    /// The setting that asks for just this one.
    pub fn setting(self) -> config::Device {
        match self {
            Device::Cpu => config::Device::Cpu,
            Device::Cuda(number) => config::Device::Cuda(number),
            Device::Metal => config::Device::Metal,
        }
    }

    /// As in metrics and in the status line.
    pub fn name(self) -> String {
        self.setting().to_string()
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.setting().fmt(f)
    }
}

/// Why a device cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// A library that it needs is not there.
    #[error("{0}")]
    Libraries(String),
    /// Its driver refuses, or it computes wrong.
    #[error("{0}")]
    Device(String),
}

impl Precision {
    /// The number formats that answer what was asked for, the most promising first; where there are several, a
    /// trial of the model decides. `placed` if the model is put on a device rather than packed for the CPU.
    ///
    /// # Errors
    /// The device does not compute in it.
    pub fn choose(
        wanted: config::Precision,
        device: Device,
        placed: bool,
    ) -> Result<Vec<Precision>, ChoiceError> {
        let refused = |have| ChoiceError::Precision { wanted, device, have };
        match wanted {
            // Both halve what is read and moved; the one has more digits, the other the range that some models need.
            config::Precision::Auto if placed => Ok(vec![Precision::F16, Precision::Bf16, Precision::F32]),
            config::Precision::F16 if placed => Ok(vec![Precision::F16]),
            config::Precision::Int8 if placed => Err(refused("auto, f32, bf16, f16")),
            // Bytes never come near enough to 32 bits, and rounding without fitting instructions gains nothing.
            config::Precision::Auto if Kernel::choose(Precision::Bf16).is_native() => {
                Ok(vec![Precision::Bf16, Precision::F32])
            }
            config::Precision::Auto | config::Precision::F32 => Ok(vec![Precision::F32]),
            config::Precision::Bf16 => Ok(vec![Precision::Bf16]),
            config::Precision::Int8 => Ok(vec![Precision::Int8]),
            config::Precision::F16 if Device::fallen_back().is_some() => {
                Precision::choose(config::Precision::Auto, device, placed)
            }
            config::Precision::F16 => Err(refused("auto, f32, bf16, int8")),
        }
    }

    /// The setting that asks for just this one.
    pub fn setting(self) -> config::Precision {
        match self {
            Precision::F32 => config::Precision::F32,
            Precision::Bf16 => config::Precision::Bf16,
            Precision::F16 => config::Precision::F16,
            Precision::Int8 => config::Precision::Int8,
        }
    }

    /// As in the fingerprint.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::F16 => "f16",
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

    #[cfg(not(any(feature = "cuda", feature = "metal")))]
    #[test]
    fn what_this_build_lacks_is_refused_by_name() {
        let choose = |device| Device::choose(device, config::Precision::Auto);
        let (device, place) = choose(config::Device::Auto).unwrap();
        assert!(device == Device::Cpu && place.is_none());
        let error = choose(config::Device::Cuda(1)).unwrap_err();
        assert!(!error.may_pass(), "a restart installs nothing");
        let text = error.to_string();
        assert!(
            text.starts_with("device is cuda:1: this build has no CUDA"),
            "{text}"
        );
        assert!(text.contains("install embeddings-cuda"), "{text}");
    }

    #[test]
    fn numbers_that_a_device_lacks_are_refused_by_name() {
        let refused = |precision, device, placed| {
            let refused = Precision::choose(precision, device, placed);
            refused.unwrap_err().to_string()
        };
        assert_eq!(
            refused(config::Precision::F16, Device::Cpu, false),
            "precision is f16, cpu computes in auto, f32, bf16, int8"
        );
        assert_eq!(
            refused(config::Precision::Int8, Device::Cuda(0), true),
            "precision is int8, cuda:0 computes in auto, f32, bf16, f16"
        );
        let automatic = Precision::choose(config::Precision::Auto, Device::Cuda(0), true);
        assert_eq!(
            automatic.unwrap().last(),
            Some(&Precision::F32),
            "what the others are compared with"
        );
    }
}
