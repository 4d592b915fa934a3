//! The layer that Qwen3 and Gemma 3 share: RMSNorms before the parts, norms of each head of queries and keys, rotary
//! positions, fewer heads of keys than of queries, and a gated feed-forward part.

use crate::engine::LoadError;
use crate::engine::encoder::{Layer, Norms};
use crate::engine::layers::attention::{Heads, Reach, SelfAttention};
use crate::engine::layers::feed_forward::{Activation, FeedForward};
use crate::engine::layers::matrix::{Matrix, Part};
use crate::engine::layers::norm::Norm;
use crate::engine::layers::rotary::Rotary;
use crate::engine::weights::Tensors;
use std::sync::Arc;

/// What is the same in all layers of a model.
#[derive(Debug)]
pub struct Decoder {
    /// Numbers of a row.
    pub hidden: usize,
    /// Numbers of a wide row, counted once.
    pub wide: usize,
    /// See [`Heads`].
    pub heads: Heads,
    /// By what scores are scaled.
    pub scale: f32,
    /// Of the feed-forward part.
    pub activation: Activation,
    /// Of the norms.
    pub epsilon: f32,
    /// What the weights of the norms are counted from.
    pub origin: f32,
    /// Whether attention's layers have biases.
    pub bias: bool,
    /// Whether there are norms on what the parts give, as in Gemma.
    pub result_norms: bool,
}

impl Decoder {
    /// An RMSNorm of the model's width.
    pub fn norm(&self, tensors: &Tensors<'_>, name: &str) -> Result<Norm, LoadError> {
        Norm::rms(tensors, name, self.hidden, self.origin, self.epsilon)
    }

    /// Reads layer `index`.
    pub fn layer(
        &self,
        tensors: &Tensors<'_>,
        index: usize,
        reach: Reach,
        rotary: &Arc<Rotary>,
    ) -> Result<Layer, LoadError> {
        let (hidden, wide, heads) = (self.hidden, self.wide, self.heads);
        let name = |part: &str| format!("layers.{index}.{part}");
        let norm = |part: &str| self.norm(tensors, &name(part));
        let head_norm = |part: &str| Norm::rms(tensors, &name(part), heads.width, self.origin, self.epsilon);
        let single = |part: &str, depth: usize, width: usize, bias: bool| {
            Matrix::load(
                &tensors.careful(),
                depth,
                &[Part::plain(&name(part), width, bias)],
            )
        };
        let [query, key, value, gate, up] = [
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
        ]
        .map(name);
        let qkv = [
            Part::plain(&query, heads.query_width(), self.bias),
            Part::plain(&key, heads.key_width(), self.bias),
            Part::plain(&value, heads.key_width(), self.bias),
        ];
        let gated = [Part::plain(&gate, wide, false), Part::plain(&up, wide, false)];
        // In Gemma the norm before the feed-forward part has another name, and this one stands behind attention.
        let before = if self.result_norms {
            "pre_feedforward_layernorm"
        } else {
            "post_attention_layernorm"
        };
        let result = |part: &str| self.result_norms.then(|| norm(part)).transpose();
        Ok(Layer {
            attention: SelfAttention {
                heads,
                reach,
                qkv: Matrix::load(&tensors.careful(), hidden, &qkv)?,
                // The norm sets the queries' size, so the scale belongs behind it.
                norms: Some((
                    head_norm("self_attn.q_norm")?.times(self.scale),
                    head_norm("self_attn.k_norm")?,
                )),
                rotary: Some(rotary.clone()),
                distances: None,
                out: single("self_attn.o_proj", heads.query_width(), hidden, self.bias)?,
            },
            feed_forward: FeedForward {
                up: Matrix::load(tensors, hidden, &gated)?,
                gated: true,
                activation: self.activation,
                down: single("mlp.down_proj", wide, hidden, false)?,
            },
            norms: Norms::Before {
                attention: Some(norm("input_layernorm")?),
                attention_result: result("post_attention_layernorm")?,
                feed_forward: norm(before)?,
                feed_forward_result: result("post_feedforward_layernorm")?,
            },
        })
    }
}
