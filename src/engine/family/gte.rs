//! GTE (Zhang and others, *mGTE*, 2024) as transformers has it: BERT with rotary positions and a gated feed-forward part.
//!
//! Alibaba's own repositories say `new` and stretch the rotary positions in a way that transformers has not;
//! they are refused.

use super::gated::{self, Gated, Names};
use super::rope::Rope;
use super::{Family, Sizes, check};
use crate::engine::LoadError;
use crate::engine::encoder::Encoder;
use crate::engine::folder;
use crate::engine::layers::attention::Heads;
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
    intermediate_size: usize,
    max_position_embeddings: usize,
    /// May be 0.
    #[serde(default = "one")]
    type_vocab_size: usize,
    #[serde(default = "gelu")]
    hidden_act: String,
    #[serde(default = "epsilon")]
    layer_norm_eps: f32,
    layer_norm_type: Option<String>,
    position_embedding_type: Option<String>,
    #[serde(default)]
    logn_attention_scale: bool,
    #[serde(flatten)]
    rope: Rope,
}

fn one() -> usize {
    1
}
fn gelu() -> String {
    "gelu".into()
}
fn epsilon() -> f32 {
    1e-12
}

/// The names of the first publication.
const FIRST: Names = Names {
    layers: "encoder.layer",
    qkv: &["attention.qkv_proj"],
    out: "attention.o_proj",
    attention_norm: "attn_ln",
    up: &["mlp.up_gate_proj"],
    down: "mlp.down_proj",
    norm: "mlp_ln",
};

#[derive(Debug)]
struct Gte {
    config: Config,
    gated: Gated,
    theta: f32,
}

/// Reads and checks `config.json`.
pub fn read(file: &Path, text: &str) -> Result<Box<dyn Family>, LoadError> {
    let config: Config = folder::parse(file, text)?;
    let activation = check::activation(file, "hidden_act", &config.hidden_act)?;
    check::only(
        file,
        "layer_norm_type",
        config.layer_norm_type.as_deref(),
        "layer_norm",
    )?;
    let kind = config.position_embedding_type.as_deref();
    check::only(file, "position_embedding_type", kind, "rope")?;
    check::off(file, "logn_attention_scale", config.logn_attention_scale)?;
    check::usual_sizes(
        file,
        config.vocab_size,
        config.hidden_size,
        config.num_hidden_layers,
        config.intermediate_size,
        config.max_position_embeddings,
    )?;
    let heads = config.num_attention_heads;
    let width = check::even_head_width(file, "num_attention_heads", heads, config.hidden_size)?;
    let gated = Gated {
        hidden: config.hidden_size,
        wide: config.intermediate_size,
        heads: Heads::equal(heads, width),
        activation,
        epsilon: config.layer_norm_eps,
        bias: true,
    };
    let theta = config.rope.theta(file, 160_000.0)?;
    Ok(Box::new(Gte { config, gated, theta }))
}

impl Family for Gte {
    fn sizes(&self) -> Sizes {
        Sizes {
            vocabulary: self.config.vocab_size,
            width: self.config.hidden_size,
            places: self.config.max_position_embeddings,
        }
    }

    fn load(&self, weights: &Weights, places: usize, step: &mut dyn FnMut()) -> Result<Encoder, LoadError> {
        let prefix = if Tensors::new(weights, "new.").has("embeddings.word_embeddings.weight") {
            "new."
        } else {
            "gte."
        };
        let tensors = Tensors::new(weights, prefix);
        let Config {
            vocab_size,
            hidden_size,
            type_vocab_size,
            ..
        } = self.config;
        let name = |part: &str| format!("embeddings.{part}");
        let mut embedding =
            Embedding::words(&tensors, &name("word_embeddings"), vocab_size, hidden_size, 1.0)?;
        if type_vocab_size > 0 {
            embedding = embedding.types(&tensors, &name("token_type_embeddings"), type_vocab_size)?;
        }
        let embedding = embedding.norm(self.gated.norm(&tensors, &name("LayerNorm"))?);
        let rotary = Arc::new(Rotary::new(self.gated.heads.width, places, self.theta));
        let first = tensors.has("encoder.layer.0.attention.qkv_proj.weight");
        let names = if first { &FIRST } else { &gated::NATIVE };
        step();
        let layer = |index| {
            self.gated
                .layer(&tensors, index, names, &rotary)
                .inspect(|_| step())
        };
        Ok(Encoder {
            embedding,
            layers: (0..self.config.num_hidden_layers)
                .map(layer)
                .collect::<Result<_, _>>()?,
            norm: None,
        })
    }
}
