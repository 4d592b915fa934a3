//! Text in, vectors out. The only module that names Candle.
//!
//! [`Model::load`] reads a sentence-transformers folder. [`Model::tokenize`] makes a [`Sequence`] of a text, on
//! any thread. [`Model::engine`] makes an [`Engine`]: shared weights and buffers of its own, for one thread.
//! [`pool::Pool`] keeps a thread for each engine and hands it one batch after another.
//!
//! Nothing here starts a thread except [`pool::Pool`] and [`tokenize::Tokenizers`]. One thread a batch and several batches at
//! once is faster on a CPU than the reverse; an operator is spread over threads only where one of them has no batch: [`team`].
//!
//! A family of models is one file under `family`, which puts the shared `layers` together to one `encoder`; the
//! CPU computes it as it stands, and `gpu` in Candle's tensors, as a second [`Engine`] behind the same [`Model`].

mod auto;
pub mod device;
mod encoder;
mod family;
mod folder;
mod gpu;
mod hands;
mod kernel;
mod layers;
mod load;
mod math;
mod model;
pub mod pool;
pub mod pooling;
pub mod team;
pub mod tokenize;
mod trial;
mod weights;

pub use folder::SENTENCE_CONFIGS;
pub use model::{LoadError, LoadOptions, LoadStep, Model, ModelInfo, Outline};
pub use tokenize::{Sequence, TokenizeError};

use std::sync::Arc;

/// Computes vectors on one thread.
pub trait Engine: Send {
    /// One result for each sequence, in order: the pooled vector, behind the Dense modules and before
    /// normalisation (see [`pooling::finish`]). It is never zero and holds no number that is not finite.
    ///
    /// The sequences are computed together without padding, so what one of them holds does not reach another.
    /// `step` is called whenever a layer is done: progress inside a batch.
    fn embed(
        &mut self,
        batch: &[&Sequence],
        step: &mut dyn FnMut(),
    ) -> Result<Vec<Result<Vec<f32>, VectorFault>>, EngineError>;

    /// Makes its thread the leader of a team: from now on it shares its batches out, if it knows how to and somebody helps.
    fn lead(&mut self, _team: &Arc<team::Team>) {}
}

/// Why an input of a batch has no vector. The other inputs of the batch have theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VectorFault {
    /// The weights lead to infinities on this input.
    #[error("the vector holds a number that is not finite")]
    NotFinite,
    /// The device's memory does not hold what lies between the layers, though nothing else was computed beside it.
    #[error("the device has no room for it, even alone")]
    NoRoom,
    /// Every token was left out of the pooling, or an activation cut all of it away.
    #[error("the vector is zero")]
    Zero,
}

/// Why a whole batch has no vectors: the sequences were not made for this model, or the device failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// A sequence without tokens; tokenising always adds the model's own.
    #[error("sequence {index} of the batch has no tokens")]
    Empty {
        /// Which sequence of the batch.
        index: usize,
    },
    /// More tokens than the model has positions.
    #[error("sequence {index} of the batch has {tokens} tokens, the model has {limit} positions")]
    TooLong {
        /// Which sequence of the batch.
        index: usize,
        /// Its tokens.
        tokens: usize,
        /// Positions of the model.
        limit: usize,
    },
    /// The device failed, and nothing that it gives from now on can be believed: the process has to end.
    #[error("the device failed: {why}")]
    Device {
        /// What it said.
        why: String,
    },
    /// A token that the model does not have.
    #[error("sequence {index} of the batch has token {token}, the model has {limit}")]
    UnknownToken {
        /// Which sequence of the batch.
        index: usize,
        /// The token.
        token: u32,
        /// Tokens of the model.
        limit: usize,
    },
}
