//! What only CUDA has: its libraries, found at run time, and kernels of our own.
//!
//! Files of this folder are, with those of `kernel`, the only ones with `unsafe` in them: symbols that are filled in at run
//! time, and calls of the driver and launches of kernels, whose arguments no compiler checks.

pub mod attention;
mod libraries;
mod memory;
mod symbols;

pub use libraries::load;
pub use memory::keep;
