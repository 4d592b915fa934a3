//! ModernBERT (Warner and others, 2024): rotary positions, norms before each part, a gated feed-forward part, and
//! layers that see only near tokens between those that see all.

use super::rope::Rope;
use super::{Family, Sizes, check, sliding};
use crate::engine::LoadError;
use crate::engine::encoder::{Encoder, Layer, Norms};
use crate::engine::folder;
use crate::engine::folder::refuse;
use crate::engine::layers::attention::{Heads, Reach, SelfAttention};
use crate::engine::layers::embedding::Embedding;
use crate::engine::layers::feed_forward::{Activation, FeedForward};
use crate::engine::layers::matrix::{Matrix, Part};
use crate::engine::layers::norm::Norm;
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
    #[serde(default = "gelu")]
    hidden_activation: String,
    #[serde(default = "epsilon")]
    norm_eps: f32,
    #[serde(default)]
    norm_bias: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    /// Both sides of a window together.
    #[serde(default = "window")]
    local_attention: usize,
    /// One side of it, which transformers would take in its place.
    sliding_window: Option<usize>,
    #[serde(default = "every")]
    global_attn_every_n_layers: usize,
    layer_types: Option<Vec<String>>,
    global_rope_theta: Option<f32>,
    local_rope_theta: Option<f32>,
    #[serde(flatten)]
    rope: Rope,
}

fn gelu() -> String {
    "gelu".into()
}
fn epsilon() -> f32 {
    1e-5
}
fn window() -> usize {
    128
}
fn every() -> usize {
    3
}

#[derive(Debug)]
struct ModernBert {
    config: Config,
    heads: Heads,
    activation: Activation,
    /// For each layer, whether it sees only near tokens.
    sliding: Vec<bool>,
    global_theta: f32,
    local_theta: f32,
}

/// Reads and checks `config.json`.
pub fn read(file: &Path, text: &str) -> Result<Box<dyn Family>, LoadError> {
    let config: Config = folder::parse(file, text)?;
    let activation = check::activation(file, "hidden_activation", &config.hidden_activation)?;
    check::usual_sizes(
        file,
        config.vocab_size,
        config.hidden_size,
        config.num_hidden_layers,
        config.intermediate_size,
        config.max_position_embeddings,
    )?;
    let every = config.global_attn_every_n_layers;
    check::sizes(
        file,
        &[
            ("global_attn_every_n_layers", every, 1 << 10),
            ("local_attention", config.local_attention, 1 << 20),
        ],
    )?;
    let (heads, layers) = (config.num_attention_heads, config.num_hidden_layers);
    let width = check::even_head_width(file, "num_attention_heads", heads, config.hidden_size)?;
    let side = config.local_attention / 2;
    if let Some(other) = config.sliding_window.filter(|other| *other != side) {
        let supported = format!("{side}, which local_attention makes it");
        return Err(refuse(file, "sliding_window", other, &supported));
    }
    let sliding = sliding(file, config.layer_types.as_deref(), layers, |index| {
        index % every != 0
    })?;
    let (global, local) = (config.global_rope_theta, config.local_rope_theta);
    Ok(Box::new(ModernBert {
        heads: Heads::equal(heads, width),
        activation,
        sliding,
        global_theta: config.rope.theta_of(file, "full_attention", global, 160_000.0)?,
        local_theta: config.rope.theta_of(file, "sliding_attention", local, 10_000.0)?,
        config,
    }))
}

impl Family for ModernBert {
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
        let embedding = Embedding::words(
            &tensors,
            "embeddings.tok_embeddings",
            vocab_size,
            hidden_size,
            1.0,
        )?
        .norm(self.norm(&tensors, "embeddings.norm")?);
        let norm = Some(self.norm(&tensors, "final_norm")?);
        let [global, local] = [self.global_theta, self.local_theta]
            .map(|theta| Arc::new(Rotary::new(self.heads.width, places, theta)));
        step();
        let layers = self.sliding.iter().enumerate().map(|(index, sliding)| {
            let rotary = if *sliding { &local } else { &global };
            self.layer(&tensors, index, *sliding, rotary).inspect(|_| step())
        });
        let layers = layers.collect::<Result<_, _>>()?;
        Ok(Encoder {
            embedding,
            layers,
            norm,
        })
    }
}

impl ModernBert {
    fn norm(&self, tensors: &Tensors<'_>, name: &str) -> Result<Norm, LoadError> {
        let Config {
            hidden_size,
            norm_bias,
            norm_eps,
            ..
        } = self.config;
        Norm::layer(tensors, name, hidden_size, norm_bias, norm_eps)
    }

    fn layer(
        &self,
        tensors: &Tensors<'_>,
        index: usize,
        sliding: bool,
        rotary: &Arc<Rotary>,
    ) -> Result<Layer, LoadError> {
        let Config {
            hidden_size,
            intermediate_size,
            attention_bias,
            mlp_bias,
            ..
        } = self.config;
        let name = |part: &str| format!("layers.{index}.{part}");
        let single = |part: &str, depth: usize, width: usize, bias: bool| {
            Matrix::load(
                &tensors.careful(),
                depth,
                &[Part::plain(&name(part), width, bias)],
            )
        };
        let qkv = name("attn.Wqkv");
        let qkv = Part::plain(&qkv, 3 * hidden_size, attention_bias).times(hidden_size, self.heads.scale());
        let first = index == 0;
        Ok(Layer {
            attention: SelfAttention {
                heads: self.heads,
                reach: Reach {
                    causal: false,
                    window: sliding.then_some(self.config.local_attention / 2),
                },
                qkv: Matrix::load(&tensors.careful(), hidden_size, &[qkv])?,
                norms: None,
                rotary: Some(rotary.clone()),
                distances: None,
                out: single("attn.Wo", hidden_size, hidden_size, attention_bias)?,
            },
            feed_forward: FeedForward {
                up: Matrix::load(
                    tensors,
                    hidden_size,
                    &[Part::plain(&name("mlp.Wi"), 2 * intermediate_size, mlp_bias)],
                )?,
                gated: true,
                activation: self.activation,
                down: single("mlp.Wo", intermediate_size, hidden_size, mlp_bias)?,
            },
            norms: Norms::Before {
                // The norm of the embeddings stands directly before the first layer.
                attention: (!first)
                    .then(|| self.norm(tensors, &name("attn_norm")))
                    .transpose()?,
                attention_result: None,
                feed_forward: self.norm(tensors, &name("mlp_norm"))?,
                feed_forward_result: None,
            },
        })
    }
}
