//! DistilBERT (Sanh and others, 2019): BERT without token types, under names of its own.

use super::plain::{Names, Plain};
use super::{Family, Sizes, check};
use crate::engine::LoadError;
use crate::engine::encoder::Encoder;
use crate::engine::folder;
use crate::engine::layers::attention::Heads;
use crate::engine::layers::embedding::{Embedding, Places};
use crate::engine::weights::{Tensors, Weights};
use serde::Deserialize;
use std::path::Path;

/// `config.json`, as far as it decides what is computed.
#[derive(Debug, Deserialize)]
struct Config {
    vocab_size: usize,
    dim: usize,
    n_layers: usize,
    n_heads: usize,
    hidden_dim: usize,
    max_position_embeddings: usize,
    #[serde(default = "gelu")]
    activation: String,
}

fn gelu() -> String {
    "gelu".into()
}

/// Written into the reference, not into its configuration.
const EPSILON: f32 = 1e-12;

const NAMES: Names = Names {
    qkv: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
    out: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    norm: "output_layer_norm",
};

#[derive(Debug)]
struct DistilBert {
    config: Config,
    plain: Plain,
}

/// Reads and checks `config.json`.
pub fn read(file: &Path, text: &str) -> Result<Box<dyn Family>, LoadError> {
    let config: Config = folder::parse(file, text)?;
    let activation = check::activation(file, "activation", &config.activation)?;
    check::sizes(
        file,
        &[
            ("vocab_size", config.vocab_size, 1 << 24),
            ("dim", config.dim, 1 << 16),
            ("n_layers", config.n_layers, 1 << 10),
            ("hidden_dim", config.hidden_dim, 1 << 18),
            ("max_position_embeddings", config.max_position_embeddings, 1 << 20),
        ],
    )?;
    let width = check::head_width(file, "n_heads", config.n_heads, config.dim)?;
    let plain = Plain {
        hidden: config.dim,
        wide: config.hidden_dim,
        heads: Heads::equal(config.n_heads, width),
        activation,
        epsilon: EPSILON,
    };
    Ok(Box::new(DistilBert { config, plain }))
}

impl Family for DistilBert {
    fn sizes(&self) -> Sizes {
        Sizes {
            vocabulary: self.config.vocab_size,
            width: self.config.dim,
            places: self.config.max_position_embeddings,
        }
    }

    fn load(&self, weights: &Weights, _places: usize, step: &mut dyn FnMut()) -> Result<Encoder, LoadError> {
        let tensors = Tensors::new(weights, "distilbert.");
        let Config {
            vocab_size,
            dim,
            max_position_embeddings,
            ..
        } = self.config;
        let name = |part: &str| format!("embeddings.{part}");
        let embedding = Embedding::words(&tensors, &name("word_embeddings"), vocab_size, dim, 1.0)?
            .positions(
                &tensors,
                &name("position_embeddings"),
                max_position_embeddings,
                Places::FromZero,
            )?
            .norm(self.plain.norm(&tensors, &name("LayerNorm"))?);
        step();
        let layer = |index| {
            self.plain
                .layer(&tensors, &format!("transformer.layer.{index}."), &NAMES, None)
                .inspect(|_| step())
        };
        Ok(Encoder {
            embedding,
            layers: (0..self.config.n_layers).map(layer).collect::<Result<_, _>>()?,
            norm: None,
        })
    }
}
