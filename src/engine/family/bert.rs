//! BERT (Devlin and others, 2018): learned positions, norms behind each part, a plain feed-forward part.

use super::{Family, Sizes, check};
use crate::engine::LoadError;
use crate::engine::encoder::{Encoder, Layer, Norms};
use crate::engine::folder;
use crate::engine::layers::attention::{Heads, Reach, SelfAttention};
use crate::engine::layers::embedding::{Embedding, Places};
use crate::engine::layers::feed_forward::{Activation, FeedForward};
use crate::engine::layers::matrix::{Matrix, Part};
use crate::engine::layers::norm::Norm;
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
    /// The default of BERT in transformers.
    #[serde(default = "epsilon")]
    layer_norm_eps: f32,
    position_embedding_type: Option<String>,
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

#[derive(Debug)]
struct Bert {
    config: Config,
    heads: Heads,
    activation: Activation,
}

/// Reads and checks `config.json`.
pub fn read(file: &Path, text: &str) -> Result<Box<dyn Family>, LoadError> {
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
    let heads = config.num_attention_heads;
    let width = check::head_width(file, "num_attention_heads", heads, config.hidden_size)?;
    Ok(Box::new(Bert {
        heads: Heads::equal(heads, width),
        activation,
        config,
    }))
}

impl Family for Bert {
    fn sizes(&self) -> Sizes {
        Sizes {
            vocabulary: self.config.vocab_size,
            width: self.config.hidden_size,
            places: self.config.max_position_embeddings,
        }
    }

    fn load(&self, weights: &Weights, _places: usize, step: &mut dyn FnMut()) -> Result<Encoder, LoadError> {
        let tensors = Tensors::new(weights, "bert.");
        let Config {
            vocab_size,
            hidden_size,
            max_position_embeddings,
            type_vocab_size,
            layer_norm_eps,
            ..
        } = self.config;
        let name = |part: &str| format!("embeddings.{part}");
        let norm = Norm::layer(&tensors, &name("LayerNorm"), hidden_size, true, layer_norm_eps)?;
        let embedding = Embedding::words(&tensors, &name("word_embeddings"), vocab_size, hidden_size, 1.0)?
            .positions(
                &tensors,
                &name("position_embeddings"),
                max_position_embeddings,
                Places::FromZero,
            )?
            .types(&tensors, &name("token_type_embeddings"), type_vocab_size)?
            .norm(norm);
        step();
        let layers = (0..self.config.num_hidden_layers)
            .map(|index| self.layer(&tensors, index).inspect(|_| step()))
            .collect::<Result<_, _>>()?;
        Ok(Encoder {
            embedding,
            layers,
            norm: None,
        })
    }
}

impl Bert {
    fn layer(&self, tensors: &Tensors<'_>, index: usize) -> Result<Layer, LoadError> {
        let (hidden, wide) = (self.config.hidden_size, self.config.intermediate_size);
        let name = |part: &str| format!("encoder.layer.{index}.{part}");
        let single = |part: &str, depth: usize, width: usize| {
            Matrix::load(tensors, depth, &[Part::plain(&name(part), width, true)])
        };
        let norm = |part: &str| Norm::layer(tensors, &name(part), hidden, true, self.config.layer_norm_eps);
        let (up, down) = (name("intermediate.dense"), name("output.dense"));
        let attention_norm = norm("attention.output.LayerNorm")?;
        let [query, key, value] =
            ["query", "key", "value"].map(|part| name(&format!("attention.self.{part}")));
        let qkv = [
            Part::plain(&query, hidden, true).times(hidden, self.heads.scale()),
            Part::plain(&key, hidden, true),
            Part::plain(&value, hidden, true),
        ];
        Ok(Layer {
            attention: SelfAttention {
                heads: self.heads,
                reach: Reach::default(),
                qkv: Matrix::load(&tensors.careful(), hidden, &qkv)?,
                norms: None,
                rotary: None,
                distances: None,
                out: single("attention.output.dense", hidden, hidden)?,
            },
            feed_forward: FeedForward {
                up: Matrix::load_behind(
                    Some(&attention_norm),
                    tensors,
                    hidden,
                    &[Part::plain(&up, wide, true)],
                )?,
                gated: false,
                activation: self.activation,
                down: Matrix::load(&tensors.careful(), wide, &[Part::plain(&down, hidden, true)])?,
            },
            norms: Norms::Behind {
                attention: attention_norm,
                feed_forward: norm("output.LayerNorm")?,
            },
        })
    }
}
