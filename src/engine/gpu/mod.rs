//! The forward pass in Candle's tensors, for GPUs: the second way to compute what an
//! [`Encoder`](super::encoder::Encoder) describes.
//!
//! | file | what |
//! |---|---|
//! | `place` | a device that was opened, the numbers it computes in, and weights on their way to it |
//! | `forward` | a model on its device |
//! | `parts` | its parts: products, norms, tables |
//! | `attention` | attention of all sequences of a batch |
//! | `layout` | how a batch lies on the device: packed, without padding, the shortest sequence first |
//! | `pooling` | from rows to one vector for each sequence |
//! | `load` | how a model gets there, in which precision |
//! | `budget` | what is done when a batch does not fit into the device's memory |
//! | `fault` | which failures of a device leave it sound |
//! | `engine` | the [`Engine`](super::Engine) made of these |
//! | `cuda` | what only CUDA has: its libraries, found at run time, and kernels of our own |
//!
//! Every step but the kernels in `cuda` runs on any device of Candle's, so the tests run this very code on the CPU
//! (`LoadOptions::by_tensors`). It is slower there than the CPU's own way; nobody else asks for it.

mod attention;
mod budget;
#[cfg(feature = "cuda")]
mod cuda;
mod engine;
mod fault;
mod forward;
mod layout;
pub(super) mod load;
mod parts;
mod place;
mod pooling;

pub use forward::Forward;
pub use place::{Place, Placed, Rows};
