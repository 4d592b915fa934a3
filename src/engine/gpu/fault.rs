//! Which failures of a device leave it sound.
//!
//! Out of memory is a refusal: nothing was computed, and less may fit. Any other failure in the middle of a batch is
//! taken for the end of the device in this process: an illegal address, a failed launch or a memory error of CUDA
//! stays with the process (CUDA calls such errors sticky), and after one that is unknown nothing is to be believed.

use crate::engine::LoadError;
use candle_core::Error;

/// What a device says when it has no room: CUDA's driver, cuBLAS, and Metal.
const NO_ROOM: [&str; 4] = [
    "CUDA_ERROR_OUT_OF_MEMORY",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "out of memory",
    "FailedToCreateResource",
];

/// A failure of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It has no room for this.
    NoRoom,
    /// It must not be used any more.
    Broken(String),
}

/// What an error is. The kinds of the libraries below differ from build to build, their words do not.
pub fn of(error: &Error) -> Fault {
    judge(&format!("{error} {error:?}")).unwrap_or_else(|| Fault::Broken(words(error)))
}

/// The same while a model is loaded.
pub fn at_load(error: Error) -> LoadError {
    let why = match of(&error) {
        Fault::NoRoom => "it has no room for the weights".into(),
        Fault::Broken(why) => why,
    };
    LoadError::Device { why }
}

fn judge(words: &str) -> Option<Fault> {
    let no_room = NO_ROOM.iter().any(|said| words.contains(said));
    no_room.then_some(Fault::NoRoom)
}

/// What an error says, without the trace of calls that Candle may append.
pub fn words(error: &Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_words(words: &str) -> Fault {
        of(&Error::Msg(words.to_owned()).bt())
    }

    #[test]
    fn only_a_full_memory_may_be_tried_again() {
        let memory = "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")";
        assert_eq!(of_words(memory), Fault::NoRoom);
        assert_eq!(of_words("CublasError(CUBLAS_STATUS_ALLOC_FAILED)"), Fault::NoRoom);
        for sticky in [
            "DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access was encountered\")",
            "DriverError(CUDA_ERROR_LAUNCH_FAILED, \"unspecified launch failure\")",
            "DriverError(CUDA_ERROR_ECC_UNCORRECTABLE, \"uncorrectable ECC error encountered\")",
            "DriverError(CUDA_ERROR_DEVICE_UNAVAILABLE, \"device is unavailable\")",
            "something that nobody has seen",
        ] {
            assert_eq!(of_words(sticky), Fault::Broken(sticky.into()));
        }
    }
}
