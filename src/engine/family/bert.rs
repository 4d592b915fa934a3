//! BERT (Devlin and others, 2018): learned positions and token types before plain layers. RoBERTa is the same but
//! for the places that it counts, see `roberta`.

use super::plain::{Names, Plain};
use super::{Family, Sizes, check};
use crate::engine::LoadError;
use crate::engine::encoder::Encoder;
use crate::engine::folder::{self, refuse};
use crate::engine::layers::attention::Heads;
use crate::engine::layers::embedding::{Embedding, Places};
use crate::engine::weights::{Tensors, Weights};
use serde::Deserialize;
use std::path::Path;

/// `config.json`, as far as it decides what is computed.
#[derive(Debug, Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "two")]
    type_vocab_size: usize,
    #[serde(default = "gelu")]
    hidden_act: String,
    /// The default of BERT and of RoBERTa in transformers.
    #[serde(default = "epsilon")]
    layer_norm_eps: f32,
    position_embedding_type: Option<String>,
    pad_token_id: Option<u32>,
    #[serde(default)]
    is_decoder: bool,
    #[serde(default)]
    add_cross_attention: bool,
}

fn two() -> usize {
    2
}
fn gelu() -> String {
    "gelu".into()
}
fn epsilon() -> f32 {
    1e-12
}

const NAMES: Names = Names {
    qkv: [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
    ],
    out: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    norm: "output.LayerNorm",
};

#[derive(Debug)]
struct Bert {
    config: Config,
    plain: Plain,
    places: Places,
    prefix: &'static str,
}

/// Reads and checks `config.json`.
pub fn read(file: &Path, text: &str) -> Result<Box<dyn Family>, LoadError> {
    read_as(file, text, "bert.", false)
}

/// As [`read`], for a model whose stored names may begin with `prefix`, and whose places are counted from behind
/// the padding token's number if `behind_pad`.
pub fn read_as(
    file: &Path,
    text: &str,
    prefix: &'static str,
    behind_pad: bool,
) -> Result<Box<dyn Family>, LoadError> {
    let config: Config = folder::parse(file, text)?;
    let activation = check::activation(file, "hidden_act", &config.hidden_act)?;
    let kind = config.position_embedding_type.as_deref();
    check::only(file, "position_embedding_type", kind, "absolute")?;
    check::off(file, "is_decoder", config.is_decoder)?;
    check::off(file, "add_cross_attention", config.add_cross_attention)?;
    check::usual_sizes(
        file,
        config.vocab_size,
        config.hidden_size,
        config.num_hidden_layers,
        config.intermediate_size,
        config.max_position_embeddings,
    )?;
    check::sizes(file, &[("type_vocab_size", config.type_vocab_size, 1 << 10)])?;
    let width = check::head_width(
        file,
        "num_attention_heads",
        config.num_attention_heads,
        config.hidden_size,
    )?;
    let places = match (behind_pad, config.pad_token_id) {
        (false, _) => Places::FromZero,
        (true, Some(pad)) if (pad as usize) < config.max_position_embeddings - 1 => Places::Behind { pad },
        (true, pad) => {
            let value = pad.map_or("absent".into(), |pad| pad.to_string());
            let supported = "a number below max_position_embeddings - 1";
            return Err(refuse(file, "pad_token_id", value, supported));
        }
    };
    let plain = Plain {
        hidden: config.hidden_size,
        wide: config.intermediate_size,
        heads: Heads::equal(config.num_attention_heads, width),
        activation,
        epsilon: config.layer_norm_eps,
    };
    Ok(Box::new(Bert {
        config,
        plain,
        places,
        prefix,
    }))
}

impl Family for Bert {
    fn sizes(&self) -> Sizes {
        Sizes {
            vocabulary: self.config.vocab_size,
            width: self.config.hidden_size,
            places: self.places.of(self.config.max_position_embeddings),
        }
    }

    fn load(&self, weights: &Weights, _places: usize, step: &mut dyn FnMut()) -> Result<Encoder, LoadError> {
        let tensors = Tensors::new(weights, self.prefix);
        let Config {
            vocab_size,
            hidden_size,
            max_position_embeddings,
            type_vocab_size,
            ..
        } = self.config;
        let name = |part: &str| format!("embeddings.{part}");
        let embedding = Embedding::words(&tensors, &name("word_embeddings"), vocab_size, hidden_size, 1.0)?
            .positions(
                &tensors,
                &name("position_embeddings"),
                max_position_embeddings,
                self.places,
            )?
            .types(&tensors, &name("token_type_embeddings"), type_vocab_size)?
            .norm(self.plain.norm(&tensors, &name("LayerNorm"))?);
        step();
        let layer = |index| {
            self.plain
                .layer(&tensors, &format!("encoder.layer.{index}."), &NAMES, None)
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
