//! MPNet (Song and others, 2020): RoBERTa's places, no token types, and a number for each distance of two tokens
//! that is added to their score, the same in all layers.

use super::plain::{Names, Plain};
use super::{Family, Sizes, check};
use crate::engine::LoadError;
use crate::engine::encoder::Encoder;
use crate::engine::folder::{self, refuse};
use crate::engine::layers::attention::Heads;
use crate::engine::layers::bias::{BUCKETS, Distances};
use crate::engine::layers::embedding::{Embedding, Places};
use crate::engine::weights::{Tensors, Weights};
use serde::Deserialize;
use std::path::Path;
use std::sync::Arc;

/// `config.json`, as far as it decides what is computed.
#[derive(Debug, Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    relative_attention_num_buckets: Option<usize>,
    #[serde(default = "gelu")]
    hidden_act: String,
    #[serde(default = "epsilon")]
    layer_norm_eps: f32,
}

fn gelu() -> String {
    "gelu".into()
}
/// The default of MPNet in transformers.
fn epsilon() -> f32 {
    1e-12
}

/// Places are counted from behind this number, whatever the configuration says of padding.
const PLACES: Places = Places::Behind { pad: 1 };

const NAMES: Names = Names {
    qkv: ["attention.attn.q", "attention.attn.k", "attention.attn.v"],
    out: "attention.attn.o",
    attention_norm: "attention.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    norm: "output.LayerNorm",
};

#[derive(Debug)]
struct MpNet {
    config: Config,
    plain: Plain,
}

/// Reads and checks `config.json`.
pub fn read(file: &Path, text: &str) -> Result<Box<dyn Family>, LoadError> {
    let config: Config = folder::parse(file, text)?;
    let activation = check::activation(file, "hidden_act", &config.hidden_act)?;
    let positions = config.max_position_embeddings;
    check::usual_sizes(
        file,
        config.vocab_size,
        config.hidden_size,
        config.num_hidden_layers,
        config.intermediate_size,
        positions,
    )?;
    if PLACES.of(positions) == 0 {
        return Err(refuse(file, "max_position_embeddings", positions, "more than 2"));
    }
    let buckets = config.relative_attention_num_buckets.unwrap_or(BUCKETS);
    if buckets != BUCKETS {
        // The reference puts distances into 32 buckets whatever stands here.
        let key = "relative_attention_num_buckets";
        return Err(refuse(file, key, buckets, &BUCKETS.to_string()));
    }
    let heads = config.num_attention_heads;
    let width = check::head_width(file, "num_attention_heads", heads, config.hidden_size)?;
    let plain = Plain {
        hidden: config.hidden_size,
        wide: config.intermediate_size,
        heads: Heads::equal(heads, width),
        activation,
        epsilon: config.layer_norm_eps,
    };
    Ok(Box::new(MpNet { config, plain }))
}

impl Family for MpNet {
    fn sizes(&self) -> Sizes {
        Sizes {
            vocabulary: self.config.vocab_size,
            width: self.config.hidden_size,
            places: PLACES.of(self.config.max_position_embeddings),
        }
    }

    fn load(&self, weights: &Weights, places: usize, step: &mut dyn FnMut()) -> Result<Encoder, LoadError> {
        let tensors = Tensors::new(weights, "mpnet.");
        let Config {
            vocab_size,
            hidden_size,
            max_position_embeddings,
            num_attention_heads,
            ..
        } = self.config;
        let name = |part: &str| format!("embeddings.{part}");
        let embedding = Embedding::words(&tensors, &name("word_embeddings"), vocab_size, hidden_size, 1.0)?
            .positions(
                &tensors,
                &name("position_embeddings"),
                max_position_embeddings,
                PLACES,
            )?
            .norm(self.plain.norm(&tensors, &name("LayerNorm"))?);
        let table = "encoder.relative_attention_bias";
        let distances = Arc::new(Distances::load(&tensors, table, num_attention_heads, places)?);
        step();
        let layer = |index| {
            self.plain
                .layer(
                    &tensors,
                    &format!("encoder.layer.{index}."),
                    &NAMES,
                    Some(&distances),
                )
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
