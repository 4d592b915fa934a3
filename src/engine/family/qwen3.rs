//! Qwen3 (2025), the family of Qwen3-Embedding: a causal decoder whose last token's row is the vector.

use super::decoder::Decoder;
use super::rope::Rope;
use super::{Family, Sizes, check};
use crate::engine::LoadError;
use crate::engine::encoder::Encoder;
use crate::engine::folder::{self, refuse};
use crate::engine::layers::attention::{Heads, Reach};
use crate::engine::layers::embedding::Embedding;
use crate::engine::layers::rotary::Rotary;
use crate::engine::weights::{Tensors, Weights};
use serde::Deserialize;
use std::path::Path;
use std::sync::Arc;

/// `config.json`, as far as it decides what is computed. The defaults are those of transformers.
#[derive(Debug, Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    #[serde(default = "head_dim")]
    head_dim: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default = "epsilon")]
    rms_norm_eps: f32,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
    layer_types: Option<Vec<String>>,
    #[serde(flatten)]
    rope: Rope,
}

fn head_dim() -> usize {
    128
}
fn silu() -> String {
    "silu".into()
}
fn epsilon() -> f32 {
    1e-6
}

#[derive(Debug)]
struct Qwen3 {
    config: Config,
    decoder: Decoder,
    theta: f32,
}

/// Reads and checks `config.json`.
pub fn read(file: &Path, text: &str) -> Result<Box<dyn Family>, LoadError> {
    let config: Config = folder::parse(file, text)?;
    let activation = check::activation(file, "hidden_act", &config.hidden_act)?;
    check::off(file, "use_sliding_window", config.use_sliding_window)?;
    if let Some(kind) = config
        .layer_types
        .iter()
        .flatten()
        .find(|kind| *kind != "full_attention")
    {
        return Err(refuse(file, "layer_types", kind, "full_attention"));
    }
    check::usual_sizes(
        file,
        config.vocab_size,
        config.hidden_size,
        config.num_hidden_layers,
        config.intermediate_size,
        config.max_position_embeddings,
    )?;
    let keys = config.num_key_value_heads.unwrap_or(config.num_attention_heads);
    let heads = Heads {
        queries: config.num_attention_heads,
        keys,
        width: config.head_dim,
    };
    check::shared_heads(file, heads)?;
    let decoder = Decoder {
        hidden: config.hidden_size,
        wide: config.intermediate_size,
        heads,
        scale: heads.scale(),
        activation,
        epsilon: config.rms_norm_eps,
        origin: 0.0,
        bias: config.attention_bias,
        result_norms: false,
    };
    let theta = config.rope.theta(file, 10_000.0)?;
    Ok(Box::new(Qwen3 {
        config,
        decoder,
        theta,
    }))
}

impl Family for Qwen3 {
    fn sizes(&self) -> Sizes {
        Sizes {
            vocabulary: self.config.vocab_size,
            width: self.config.hidden_size,
            places: self.config.max_position_embeddings,
        }
    }

    fn load(&self, weights: &Weights, places: usize, step: &mut dyn FnMut()) -> Result<Encoder, LoadError> {
        let tensors = Tensors::new(weights, "model.");
        let Config {
            vocab_size,
            hidden_size,
            ..
        } = self.config;
        let embedding = Embedding::words(&tensors, "embed_tokens", vocab_size, hidden_size, 1.0)?;
        let norm = Some(self.decoder.norm(&tensors, "norm")?);
        let rotary = Arc::new(Rotary::new(self.config.head_dim, places, self.theta));
        step();
        let reach = Reach {
            causal: true,
            window: None,
        };
        let layer = |index| {
            self.decoder
                .layer(&tensors, index, reach, &rotary)
                .inspect(|_| step())
        };
        Ok(Encoder {
            embedding,
            layers: (0..self.config.num_hidden_layers)
                .map(layer)
                .collect::<Result<_, _>>()?,
            norm,
        })
    }
}
