//! Values that cannot be wrong: what computes, and in which number format.

use std::fmt;
use std::str::FromStr;

/// What computes a model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Device {
    /// The fastest that this build and this machine have.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA card by its number.
    Cuda(usize),
    /// Apple's GPU.
    Metal,
}

/// Why this build cannot compute on a device, if it cannot, and where there is one that can.
pub fn missing(device: Device) -> Option<&'static str> {
    match device {
        Device::Auto | Device::Cpu => None,
        Device::Cuda(_) if cfg!(feature = "cuda") => None,
        Device::Metal if cfg!(feature = "metal") => None,
        Device::Cuda(_) => Some("this build has no CUDA; install embeddings-cuda in place of embeddings"),
        Device::Metal => Some("this build has no Metal; build it with the feature metal on a Mac"),
    }
}

/// Number format of a model's weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// The fastest that keeps a cosine of 0.9999 to `f32` on this machine.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits with the exponent of `f32`.
    Bf16,
    /// 16 bits; only on a GPU.
    F16,
    /// 8 bits, with scales.
    Int8,
}

/// A word that names no device or no precision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {value:?}; must be {range}")]
pub struct UnknownWord {
    what: &'static str,
    value: String,
    range: &'static str,
}

impl FromStr for Device {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Device, UnknownWord> {
        let unknown = || UnknownWord {
            what: "device",
            value: text.to_owned(),
            range: super::Rule::Device.range(),
        };
        match text {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            "metal" => Ok(Device::Metal),
            other => {
                let number = other.strip_prefix("cuda:").ok_or_else(unknown)?;
                // Cards are numbered from 0; no machine has a thousand.
                let number = number.parse().ok().filter(|number| *number < 1000);
                number.map(Device::Cuda).ok_or_else(unknown)
            }
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.pad("auto"),
            Device::Cpu => f.pad("cpu"),
            Device::Cuda(number) => f.pad(&format!("cuda:{number}")),
            Device::Metal => f.pad("metal"),
        }
    }
}

impl FromStr for Precision {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Precision, UnknownWord> {
        match text {
            "auto" => Ok(Precision::Auto),
            "f32" => Ok(Precision::F32),
            "bf16" => Ok(Precision::Bf16),
            "f16" => Ok(Precision::F16),
            "int8" => Ok(Precision::Int8),
            _ => Err(UnknownWord {
                what: "precision",
                value: text.to_owned(),
                range: super::Rule::Precision.range(),
            }),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Precision::Auto => "auto",
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::F16 => "f16",
            Precision::Int8 => "int8",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_read_and_write_alike() {
        for word in ["auto", "cpu", "cuda:0", "cuda:3", "metal"] {
            assert_eq!(word.parse::<Device>().unwrap().to_string(), word);
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for word in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert!(word.parse::<Device>().is_err(), "{word}");
        }
        for word in ["auto", "f32", "bf16", "f16", "int8"] {
            assert_eq!(word.parse::<Precision>().unwrap().to_string(), word);
        }
        assert!("fp16".parse::<Precision>().is_err());
    }
}
