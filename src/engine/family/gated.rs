//! The layer that Nomic-BERT and GTE share: BERT's, with rotary positions and a gated feed-forward part. Both have
//! two sets of names: those of their first publication and those of transformers.

use crate::engine::LoadError;
use crate::engine::encoder::{Layer, Norms};
use crate::engine::layers::attention::{Heads, Reach, SelfAttention};
use crate::engine::layers::feed_forward::{Activation, FeedForward};
use crate::engine::layers::matrix::{Matrix, Part};
use crate::engine::layers::norm::Norm;
use crate::engine::layers::rotary::Rotary;
use crate::engine::weights::Tensors;
use std::sync::Arc;

/// Names of a layer's tensors.
#[derive(Debug)]
pub struct Names {
    /// What stands before the number of a layer.
    pub layers: &'static str,
    /// Queries, keys and values, in one tensor or in three.
    pub qkv: &'static [&'static str],
    /// Behind the heads.
    pub out: &'static str,
    /// Behind attention's sum.
    pub attention_norm: &'static str,
    /// What is activated, and what it is multiplied with; or both in one tensor, the other way round.
    pub up: &'static [&'static str],
    /// The feed-forward part.
    pub down: &'static str,
    /// Behind its sum.
    pub norm: &'static str,
}

/// The names that transformers uses for both.
pub const NATIVE: Names = Names {
    layers: "layers",
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    out: "self_attn.o_proj",
    attention_norm: "post_attention_layernorm",
    up: &["mlp.gate_proj", "mlp.up_proj"],
    down: "mlp.down_proj",
    norm: "post_mlp_layernorm",
};

/// What is the same in all layers of a model.
#[derive(Debug)]
pub struct Gated {
    /// Numbers of a row.
    pub hidden: usize,
    /// Numbers of a wide row, counted once.
    pub wide: usize,
    /// See [`Heads`].
    pub heads: Heads,
    /// Of the feed-forward part.
    pub activation: Activation,
    /// Of the norms.
    pub epsilon: f32,
    /// Whether attention's layers, and the last of the feed-forward part, have biases.
    pub bias: bool,
}

impl Gated {
    /// A LayerNorm of the model's width.
    pub fn norm(&self, tensors: &Tensors<'_>, name: &str) -> Result<Norm, LoadError> {
        Norm::layer(tensors, name, self.hidden, true, self.epsilon)
    }

    /// Reads layer `index`.
    pub fn layer(
        &self,
        tensors: &Tensors<'_>,
        index: usize,
        names: &Names,
        rotary: &Arc<Rotary>,
    ) -> Result<Layer, LoadError> {
        let (hidden, wide, bias) = (self.hidden, self.wide, self.bias);
        let full = |part: &str| format!("{}.{index}.{part}", names.layers);
        let single = |part: &str, depth: usize, width: usize| {
            Matrix::load(
                &tensors.careful(),
                depth,
                &[Part::plain(&full(part), width, bias)],
            )
        };
        let parts = names.qkv.iter().map(|part| full(part)).collect::<Vec<_>>();
        let parts = parts.iter().enumerate().map(|(place, name)| {
            let queries = if place == 0 { hidden } else { 0 };
            Part::plain(name, 3 * hidden / parts.len(), bias).times(queries, self.heads.scale())
        });
        let qkv = Matrix::load(&tensors.careful(), hidden, &parts.collect::<Vec<_>>())?;
        let parts = names.up.iter().map(|part| full(part)).collect::<Vec<_>>();
        let turned = if parts.len() == 1 { wide } else { 0 };
        let parts = parts
            .iter()
            .map(|name| Part::plain(name, 2 * wide / parts.len(), false).turned(turned));
        let up = Matrix::load(tensors, hidden, &parts.collect::<Vec<_>>())?;
        Ok(Layer {
            attention: SelfAttention {
                heads: self.heads,
                reach: Reach::default(),
                qkv,
                norms: None,
                rotary: Some(rotary.clone()),
                distances: None,
                out: single(names.out, hidden, hidden)?,
            },
            feed_forward: FeedForward {
                up,
                gated: true,
                activation: self.activation,
                down: single(names.down, wide, hidden)?,
            },
            norms: Norms::Behind {
                attention: self.norm(tensors, &full(names.attention_norm))?,
                feed_forward: self.norm(tensors, &full(names.norm))?,
            },
        })
    }
}
