//! The layer that BERT and its kin share: attention with biases, a plain feed-forward part, a LayerNorm behind
//! each. They differ in the names of the tensors.

use crate::engine::LoadError;
use crate::engine::encoder::{Layer, Norms};
use crate::engine::layers::attention::{Heads, Reach, SelfAttention};
use crate::engine::layers::bias::Distances;
use crate::engine::layers::feed_forward::{Activation, FeedForward};
use crate::engine::layers::matrix::{Matrix, Part};
use crate::engine::layers::norm::Norm;
use crate::engine::weights::Tensors;
use std::sync::Arc;

/// Names of a layer's tensors behind the name of the layer.
#[derive(Debug)]
pub struct Names {
    /// Queries, keys and values.
    pub qkv: [&'static str; 3],
    /// Behind the heads.
    pub out: &'static str,
    /// Behind attention's sum.
    pub attention_norm: &'static str,
    /// The feed-forward part.
    pub up: &'static str,
    /// The feed-forward part.
    pub down: &'static str,
    /// Behind its sum.
    pub norm: &'static str,
}

/// What is the same in all layers of a model.
#[derive(Debug)]
pub struct Plain {
    /// Numbers of a row.
    pub hidden: usize,
    /// Numbers of a wide row.
    pub wide: usize,
    /// See [`Heads`].
    pub heads: Heads,
    /// Between the feed-forward products.
    pub activation: Activation,
    /// Of the norms.
    pub epsilon: f32,
}

impl Plain {
    /// A LayerNorm of the model's width.
    pub fn norm(&self, tensors: &Tensors<'_>, name: &str) -> Result<Norm, LoadError> {
        Norm::layer(tensors, name, self.hidden, true, self.epsilon)
    }

    /// Reads the layer called `name`, with the final dot.
    pub fn layer(
        &self,
        tensors: &Tensors<'_>,
        name: &str,
        names: &Names,
        distances: Option<&Arc<Distances>>,
    ) -> Result<Layer, LoadError> {
        let (hidden, wide) = (self.hidden, self.wide);
        let full = |part: &str| format!("{name}{part}");
        let single = |part: &str, depth: usize, width: usize| {
            Matrix::load(tensors, depth, &[Part::plain(&full(part), width, true)])
        };
        let (up, down) = (full(names.up), full(names.down));
        let [query, key, value] = names.qkv.map(full);
        let qkv = [
            Part::plain(&query, hidden, true).times(hidden, self.heads.scale()),
            Part::plain(&key, hidden, true),
            // Keys and queries in bytes change scores little; what is lost of a value stays in the row.
            Part::plain(&value, hidden, true).careful(),
        ];
        let attention = SelfAttention {
            heads: self.heads,
            reach: Reach::default(),
            qkv: Matrix::load(tensors, hidden, &qkv)?,
            norms: None,
            rotary: None,
            distances: distances.cloned(),
            out: single(names.out, hidden, hidden)?,
        };
        let attention_norm = self.norm(tensors, &full(names.attention_norm))?;
        Ok(Layer {
            attention,
            feed_forward: FeedForward {
                up: Matrix::load_behind(
                    Some(&attention_norm),
                    tensors,
                    hidden,
                    &[Part::plain(&up, wide, true)],
                )?,
                gated: false,
                activation: self.activation,
                down: Matrix::load(tensors, wide, &[Part::plain(&down, hidden, true)])?,
            },
            norms: Norms::Behind {
                attention: attention_norm,
                feed_forward: self.norm(tensors, &full(names.norm))?,
            },
        })
    }
}
