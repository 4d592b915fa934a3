//! Gemma 3 for text (2025), the family of EmbeddingGemma: layers that see only near tokens between those that see
//! all, causal or, as for embeddings, in both directions.

use super::decoder::Decoder;
use super::rope::Rope;
use super::{Family, Sizes, check, sliding};
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
    num_key_value_heads: usize,
    #[serde(default = "head_dim")]
    head_dim: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "gelu")]
    hidden_activation: String,
    #[serde(default = "epsilon")]
    rms_norm_eps: f32,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default = "scalar")]
    query_pre_attn_scalar: f32,
    attn_logit_softcapping: Option<f32>,
    #[serde(default)]
    use_bidirectional_attention: Option<bool>,
    #[serde(default = "window")]
    sliding_window: usize,
    #[serde(default = "pattern")]
    sliding_window_pattern: usize,
    layer_types: Option<Vec<String>>,
    rope_local_base_freq: Option<f32>,
    #[serde(flatten)]
    rope: Rope,
}

fn head_dim() -> usize {
    256
}
fn gelu() -> String {
    "gelu_pytorch_tanh".into()
}
fn epsilon() -> f32 {
    1e-6
}
fn scalar() -> f32 {
    256.0
}
fn window() -> usize {
    4096
}
fn pattern() -> usize {
    6
}

#[derive(Debug)]
struct Gemma3 {
    config: Config,
    decoder: Decoder,
    /// For each layer, whether it sees only near tokens.
    sliding: Vec<bool>,
    global_theta: f32,
    local_theta: f32,
}

/// Reads and checks `config.json`.
pub fn read(file: &Path, text: &str) -> Result<Box<dyn Family>, LoadError> {
    let config: Config = folder::parse(file, text)?;
    let activation = check::activation(file, "hidden_activation", &config.hidden_activation)?;
    if let Some(cap) = config.attn_logit_softcapping {
        return Err(refuse(file, "attn_logit_softcapping", cap, "null"));
    }
    check::usual_sizes(
        file,
        config.vocab_size,
        config.hidden_size,
        config.num_hidden_layers,
        config.intermediate_size,
        config.max_position_embeddings,
    )?;
    let pattern = config.sliding_window_pattern;
    check::sizes(
        file,
        &[
            ("sliding_window", config.sliding_window, 1 << 20),
            ("sliding_window_pattern", pattern, 1 << 10),
        ],
    )?;
    if config.query_pre_attn_scalar.is_nan() || config.query_pre_attn_scalar <= 0.0 {
        let value = config.query_pre_attn_scalar;
        return Err(refuse(file, "query_pre_attn_scalar", value, "more than 0"));
    }
    let heads = Heads {
        queries: config.num_attention_heads,
        keys: config.num_key_value_heads,
        width: config.head_dim,
    };
    check::shared_heads(file, heads)?;
    let types = config.layer_types.as_deref();
    let sliding = sliding(file, types, config.num_hidden_layers, |index| {
        (index + 1) % pattern != 0
    })?;
    let decoder = Decoder {
        hidden: config.hidden_size,
        wide: config.intermediate_size,
        heads,
        scale: 1.0 / config.query_pre_attn_scalar.sqrt(),
        activation,
        epsilon: config.rms_norm_eps,
        origin: 1.0,
        bias: config.attention_bias,
        result_norms: true,
    };
    let (global, local) = (config.rope.old_theta(), config.rope_local_base_freq);
    Ok(Box::new(Gemma3 {
        decoder,
        sliding,
        global_theta: config
            .rope
            .theta_of(file, "full_attention", global, 1_000_000.0)?,
        local_theta: config.rope.theta_of(file, "sliding_attention", local, 10_000.0)?,
        config,
    }))
}

impl Family for Gemma3 {
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
        let scale = (hidden_size as f32).sqrt();
        let embedding = Embedding::words(&tensors, "embed_tokens", vocab_size, hidden_size, scale)?;
        let norm = Some(self.decoder.norm(&tensors, "norm")?);
        let [global, local] = [self.global_theta, self.local_theta]
            .map(|theta| Arc::new(Rotary::new(self.config.head_dim, places, theta)));
        step();
        let layers = self.sliding.iter().enumerate().map(|(index, sliding)| {
            let rotary = if *sliding { &local } else { &global };
            self.decoder
                .layer(&tensors, index, self.reach(*sliding), rotary)
                .inspect(|_| step())
        });
        let layers = layers.collect::<Result<_, _>>()?;
        Ok(Encoder {
            embedding,
            layers,
            norm,
        })
    }
}

impl Gemma3 {
    /// A window is both sides together where tokens see in both directions, else it counts the token itself.
    fn reach(&self, sliding: bool) -> Reach {
        let causal = !self.config.use_bidirectional_attention.unwrap_or(false);
        let window = self.config.sliding_window;
        let window = if causal { window - 1 } else { window / 2 };
        Reach {
            causal,
            window: sliding.then_some(window),
        }
    }
}
