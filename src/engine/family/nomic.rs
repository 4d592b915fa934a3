//! Nomic-BERT (Nussbaum and others, 2024): BERT with rotary positions, a gated feed-forward part and no biases.
//!
//! Its first configurations are GPT-2's with many switches, of which one setting was ever published; the others are refused.
//! They stretch the rotary positions of texts beyond `max_trained_positions`, so longer texts are cut there.

use super::gated::{self, Gated, Names};
use super::rope::Rope;
use super::{Family, Sizes, check};
use crate::engine::LoadError;
use crate::engine::encoder::Encoder;
use crate::engine::folder::{self, refuse};
use crate::engine::layers::attention::Heads;
use crate::engine::layers::embedding::Embedding;
use crate::engine::layers::rotary::Rotary;
use crate::engine::weights::{Tensors, Weights};
use serde::Deserialize;
use std::path::Path;
use std::sync::Arc;

/// `config.json`, as far as it decides what is computed: transformers' keys, and those of the first publication.
#[derive(Debug, Deserialize)]
struct Config {
    vocab_size: usize,
    #[serde(default = "two")]
    type_vocab_size: usize,
    hidden_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    intermediate_size: Option<usize>,
    max_position_embeddings: Option<usize>,
    head_dim: Option<usize>,
    hidden_act: Option<String>,
    layer_norm_eps: Option<f32>,
    #[serde(flatten)]
    rope: Rope,

    n_embd: Option<usize>,
    n_layer: Option<usize>,
    n_head: Option<usize>,
    n_inner: Option<usize>,
    n_positions: Option<usize>,
    max_trained_positions: Option<usize>,
    layer_norm_epsilon: Option<f32>,
    activation_function: Option<String>,
    rotary_emb_base: Option<f32>,
    rotary_emb_fraction: Option<f32>,
    rotary_emb_scale_base: Option<f32>,
    moe_every_n_layers: Option<usize>,
    #[serde(default)]
    rotary_emb_interleaved: bool,
    #[serde(default)]
    prenorm: bool,
    #[serde(default)]
    causal: bool,
    #[serde(default)]
    parallel_block: bool,
    #[serde(default)]
    use_rms_norm: bool,
    #[serde(default)]
    qkv_proj_bias: bool,
    #[serde(default)]
    mlp_fc1_bias: bool,
    #[serde(default)]
    mlp_fc2_bias: bool,
}

fn two() -> usize {
    2
}

/// Tokens that the published models were trained on at once, where the configuration does not say.
const TRAINED: usize = 2048;

/// The names of the first publication.
const FIRST: Names = Names {
    layers: "encoder.layers",
    qkv: &["attn.Wqkv"],
    out: "attn.out_proj",
    attention_norm: "norm1",
    up: &["mlp.fc12", "mlp.fc11"],
    down: "mlp.fc2",
    norm: "norm2",
};

#[derive(Debug)]
struct Nomic {
    sizes: Sizes,
    types: usize,
    layers: usize,
    gated: Gated,
    theta: f32,
}

/// Reads and checks `config.json`.
pub fn read(file: &Path, text: &str) -> Result<Box<dyn Family>, LoadError> {
    let config: Config = folder::parse(file, text)?;
    switches(file, &config)?;
    let named = |new: Option<usize>, old: Option<usize>, key: &str| {
        new.or(old).ok_or_else(|| refuse(file, key, "absent", "a number"))
    };
    let hidden = named(config.hidden_size, config.n_embd, "hidden_size")?;
    let layers = named(config.num_hidden_layers, config.n_layer, "num_hidden_layers")?;
    let heads = named(config.num_attention_heads, config.n_head, "num_attention_heads")?;
    let wide = named(config.intermediate_size, config.n_inner, "intermediate_size")?;
    let trained = config.max_trained_positions.unwrap_or(TRAINED);
    let places = match config.max_position_embeddings {
        Some(places) => places,
        None => named(config.n_positions, None, "max_position_embeddings")?.min(trained),
    };
    check::usual_sizes(file, config.vocab_size, hidden, layers, wide, places)?;
    check::sizes(file, &[("type_vocab_size", config.type_vocab_size, 1 << 10)])?;
    let width = check::even_head_width(file, "num_attention_heads", heads, hidden)?;
    if let Some(other) = config.head_dim.filter(|other| *other != width) {
        return Err(refuse(file, "head_dim", other, &width.to_string()));
    }
    let activation = match (&config.hidden_act, &config.activation_function) {
        (None, Some(name)) if name == "swiglu" => check::activation(file, "activation_function", "silu")?,
        (None, Some(name)) => return Err(refuse(file, "activation_function", name, "swiglu")),
        (name, _) => check::activation(file, "hidden_act", name.as_deref().unwrap_or("silu"))?,
    };
    let gated = Gated {
        hidden,
        wide,
        heads: Heads::equal(heads, width),
        activation,
        epsilon: config
            .layer_norm_eps
            .or(config.layer_norm_epsilon)
            .unwrap_or(1e-12),
        bias: false,
    };
    let theta = config
        .rope
        .theta(file, config.rotary_emb_base.unwrap_or(1000.0))?;
    Ok(Box::new(Nomic {
        sizes: Sizes {
            vocabulary: config.vocab_size,
            width: hidden,
            places,
        },
        types: config.type_vocab_size,
        layers,
        gated,
        theta,
    }))
}

/// Refuses what the published models do not have.
fn switches(file: &Path, config: &Config) -> Result<(), LoadError> {
    check::off(file, "rotary_emb_interleaved", config.rotary_emb_interleaved)?;
    check::off(file, "prenorm", config.prenorm)?;
    check::off(file, "causal", config.causal)?;
    check::off(file, "parallel_block", config.parallel_block)?;
    check::off(file, "use_rms_norm", config.use_rms_norm)?;
    check::off(file, "qkv_proj_bias", config.qkv_proj_bias)?;
    check::off(file, "mlp_fc1_bias", config.mlp_fc1_bias)?;
    check::off(file, "mlp_fc2_bias", config.mlp_fc2_bias)?;
    if let Some(part) = config.rotary_emb_fraction.filter(|part| *part != 1.0) {
        return Err(refuse(file, "rotary_emb_fraction", part, "1"));
    }
    if let Some(base) = config.rotary_emb_scale_base {
        return Err(refuse(file, "rotary_emb_scale_base", base, "null"));
    }
    if let Some(every) = config.moe_every_n_layers.filter(|every| *every > 0) {
        return Err(refuse(
            file,
            "moe_every_n_layers",
            every,
            "0: layers without experts",
        ));
    }
    Ok(())
}

impl Family for Nomic {
    fn sizes(&self) -> Sizes {
        self.sizes
    }

    fn load(&self, weights: &Weights, places: usize, step: &mut dyn FnMut()) -> Result<Encoder, LoadError> {
        let tensors = Tensors::new(weights, "nomic_bert.");
        let Sizes {
            vocabulary, width, ..
        } = self.sizes;
        let first = tensors.has("encoder.layers.0.attn.Wqkv.weight");
        let (names, norm) = if first {
            (&FIRST, "emb_ln")
        } else {
            (&gated::NATIVE, "embeddings.LayerNorm")
        };
        let embedding = Embedding::words(&tensors, "embeddings.word_embeddings", vocabulary, width, 1.0)?
            .types(&tensors, "embeddings.token_type_embeddings", self.types)?
            .norm(self.gated.norm(&tensors, norm)?);
        let rotary = Arc::new(Rotary::new(self.gated.heads.width, places, self.theta));
        step();
        let layer = |index| {
            self.gated
                .layer(&tensors, index, names, &rotary)
                .inspect(|_| step())
        };
        Ok(Encoder {
            embedding,
            layers: (0..self.layers).map(layer).collect::<Result<_, _>>()?,
            norm: None,
        })
    }
}
