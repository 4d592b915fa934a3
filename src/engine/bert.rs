//! The BERT family on the CPU in 32 bits, without padding: all tokens of a batch stand below one another, the
//! linear layers see one matrix, attention sees each sequence alone.

use super::attention::Attention;
use super::dense::Dense;
use super::folder::{self, refuse};
use super::kernel::{self, After, Floats, Kernel, Linear, Panels};
use super::math::LayerNorm;
use super::pooling::{self, Pooling};
use super::weights::Weights;
use super::{Engine, EngineError, LoadError, Sequence, VectorFault};
use pulp::Arch;
use serde::Deserialize;
use std::path::Path;
use std::sync::Arc;

/// What the stored names begin with where a whole model and not only its encoder was saved.
const PREFIX: &str = "bert.";

/// Rows that go through a feed-forward block at once, so that what lies between its two products stays in the
/// second-level cache: 128 rows of 1536 numbers are 768 KiB.
const BLOCK_ROWS: usize = 128;

/// `config.json`, as far as it decides what is computed.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Config {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    pub max_position_embeddings: usize,
    #[serde(default = "two")]
    pub type_vocab_size: usize,
    #[serde(default = "gelu")]
    hidden_act: String,
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
/// The default of BERT in transformers.
fn epsilon() -> f32 {
    1e-12
}

impl Config {
    /// Reads and checks `config.json`.
    pub fn read(file: &Path, text: &str) -> Result<Config, LoadError> {
        let config: Config = folder::parse(file, text)?;
        if config.hidden_act != "gelu" {
            return Err(refuse(file, "hidden_act", &config.hidden_act, "gelu"));
        }
        if let Some(kind) = config
            .position_embedding_type
            .as_deref()
            .filter(|kind| *kind != "absolute")
        {
            return Err(refuse(file, "position_embedding_type", kind, "absolute"));
        }
        if config.is_decoder || config.add_cross_attention {
            return Err(refuse(file, "is_decoder", "true", "an encoder"));
        }
        let sizes = [
            ("vocab_size", config.vocab_size, 1 << 24),
            ("hidden_size", config.hidden_size, 1 << 16),
            ("num_hidden_layers", config.num_hidden_layers, 1 << 10),
            (
                "num_attention_heads",
                config.num_attention_heads,
                config.hidden_size,
            ),
            ("intermediate_size", config.intermediate_size, 1 << 18),
            ("max_position_embeddings", config.max_position_embeddings, 1 << 20),
            ("type_vocab_size", config.type_vocab_size, 1 << 10),
        ];
        for (key, value, most) in sizes {
            if !(1..=most).contains(&value) {
                return Err(refuse(file, key, value, &format!("1 to {most}")));
            }
        }
        if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            let supported = format!("a divisor of hidden_size, which is {}", config.hidden_size);
            return Err(refuse(
                file,
                "num_attention_heads",
                config.num_attention_heads,
                &supported,
            ));
        }
        Ok(config)
    }
}

#[derive(Debug)]
struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Norm {
    fn load(weights: &Weights, name: &str, hidden: usize) -> Result<Norm, LoadError> {
        // The first checkpoints of BERT say gamma and beta.
        let old =
            !weights.has(PREFIX, &format!("{name}.weight")) && weights.has(PREFIX, &format!("{name}.gamma"));
        let (weight, bias) = if old {
            ("gamma", "beta")
        } else {
            ("weight", "bias")
        };
        Ok(Norm {
            weight: weights.vector(PREFIX, &format!("{name}.{weight}"), hidden)?,
            bias: weights.vector(PREFIX, &format!("{name}.{bias}"), hidden)?,
        })
    }
}

#[derive(Debug)]
struct Layer {
    /// Queries, keys and values side by side, the queries scaled by one over the root of the head's width.
    qkv: Panels,
    attention: Panels,
    attention_norm: Norm,
    up: Panels,
    down: Panels,
    norm: Norm,
}

/// Weights ready for the kernels. Shared by all engines of a model.
#[derive(Debug)]
pub(super) struct Bert {
    config: Config,
    words: Vec<f32>,
    /// With the embedding of token type 0 added, the only one a single text has.
    positions: Vec<f32>,
    norm: Norm,
    layers: Vec<Layer>,
    pooling: Pooling,
    dense: Vec<Dense>,
}

impl Bert {
    /// Packs the weights; `step` is called after each layer.
    pub fn load(
        config: Config,
        weights: &Weights,
        pooling: Pooling,
        dense: Vec<Dense>,
        kernel: Kernel,
        step: &mut dyn FnMut(),
    ) -> Result<Bert, LoadError> {
        let hidden = config.hidden_size;
        let mut words = Vec::with_capacity(config.vocab_size * hidden);
        let name = "embeddings.word_embeddings.weight";
        weights.rows(PREFIX, name, &[config.vocab_size, hidden], &mut |_, row| {
            words.extend_from_slice(row)
        })?;
        let mut kind = Vec::new();
        let name = "embeddings.token_type_embeddings.weight";
        weights.rows(
            PREFIX,
            name,
            &[config.type_vocab_size, hidden],
            &mut |index, row| {
                if index == 0 {
                    kind.extend_from_slice(row);
                }
            },
        )?;
        let mut positions = Vec::with_capacity(config.max_position_embeddings * hidden);
        let name = "embeddings.position_embeddings.weight";
        weights.rows(
            PREFIX,
            name,
            &[config.max_position_embeddings, hidden],
            &mut |_, row| {
                positions.extend(row.iter().zip(&kind).map(|(position, kind)| position + kind));
            },
        )?;
        let norm = Norm::load(weights, "embeddings.LayerNorm", hidden)?;
        step();
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for index in 0..config.num_hidden_layers {
            layers.push(Layer::load(&config, weights, index, kernel)?);
            step();
        }
        Ok(Bert {
            config,
            words,
            positions,
            norm,
            layers,
            pooling,
            dense,
        })
    }

    /// Components of a vector.
    pub fn dimensions(&self) -> usize {
        let pooled = self.config.hidden_size * self.pooling.modes.len();
        self.dense.last().map_or(pooled, Dense::width)
    }

    /// An engine on these weights.
    pub fn engine(self: &Arc<Self>) -> Box<dyn Engine> {
        Box::new(BertEngine {
            bert: self.clone(),
            arch: kernel::arch(),
            hidden: Floats::default(),
            mixed: Floats::default(),
            context: Floats::default(),
            wide: Floats::default(),
            attention: Attention::default(),
        })
    }
}

impl Layer {
    fn load(config: &Config, weights: &Weights, index: usize, kernel: Kernel) -> Result<Layer, LoadError> {
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        let name = |part: &str| format!("encoder.layer.{index}.{part}");
        let scale = 1.0 / ((hidden / config.num_attention_heads) as f32).sqrt();
        let mut qkv = Panels::packed(kernel, hidden, 3 * hidden);
        let parts = ["query", "key", "value"];
        for (place, (part, scale)) in parts.into_iter().zip([scale, 1.0, 1.0]).enumerate() {
            linear(
                weights,
                &name(&format!("attention.self.{part}")),
                hidden,
                &mut qkv,
                place * hidden,
                scale,
            )?;
        }
        let single = |part: &str, depth: usize, width: usize| {
            let mut panels = Panels::packed(kernel, depth, width);
            linear(weights, &name(part), width, &mut panels, 0, 1.0).map(|()| panels)
        };
        Ok(Layer {
            qkv,
            attention: single("attention.output.dense", hidden, hidden)?,
            attention_norm: Norm::load(weights, &name("attention.output.LayerNorm"), hidden)?,
            up: single("intermediate.dense", hidden, wide)?,
            down: single("output.dense", wide, hidden)?,
            norm: Norm::load(weights, &name("output.LayerNorm"), hidden)?,
        })
    }
}

/// Packs a stored layer (one row for each of its `width` outputs) into the columns from `first` on.
fn linear(
    weights: &Weights,
    name: &str,
    width: usize,
    panels: &mut Panels,
    first: usize,
    scale: f32,
) -> Result<(), LoadError> {
    let shape = [width, panels.depth()];
    weights.rows(PREFIX, &format!("{name}.weight"), &shape, &mut |row, values| {
        panels.set_column(first + row, values.iter().copied(), scale);
    })?;
    let bias = weights.vector(PREFIX, &format!("{name}.bias"), width)?;
    bias.iter()
        .enumerate()
        .for_each(|(row, value)| panels.set_bias(first + row, value * scale));
    Ok(())
}

/// One thread's engine: shared weights, buffers of its own.
struct BertEngine {
    bert: Arc<Bert>,
    arch: Arch,
    hidden: Floats,
    mixed: Floats,
    context: Floats,
    wide: Floats,
    attention: Attention,
}

impl Engine for BertEngine {
    fn embed(
        &mut self,
        batch: &[&Sequence],
        step: &mut dyn FnMut(),
    ) -> Result<Vec<Result<Vec<f32>, VectorFault>>, EngineError> {
        let bert = self.bert.clone();
        let (config, arch) = (&bert.config, self.arch);
        bert.check(batch)?;
        let (width, wide_width) = (config.hidden_size, config.intermediate_size);
        let tokens: usize = batch.iter().map(|sequence| sequence.ids.len()).sum();
        let hidden = self.hidden.take(tokens * width);
        bert.look_up(batch, hidden);
        let norm = |rows: &mut [f32], added: Option<&[f32]>, norm: &Norm| {
            let epsilon = config.layer_norm_eps;
            LayerNorm {
                rows,
                added,
                weight: &norm.weight,
                bias: &norm.bias,
                epsilon,
            }
            .run(arch);
        };
        norm(hidden, None, &bert.norm);
        step();

        let mixed = self.mixed.take(tokens * 3 * width);
        let context = self.context.take(tokens * width);
        let wide = self.wide.take(BLOCK_ROWS.min(tokens) * wide_width);
        for layer in &bert.layers {
            product(arch, hidden, width, &layer.qkv, mixed, After::Nothing);
            let mut first = 0;
            for sequence in batch {
                let end = first + sequence.ids.len();
                let qkv = &mixed[first * 3 * width..end * 3 * width];
                let heads = config.num_attention_heads;
                self.attention.run(
                    arch,
                    qkv,
                    heads,
                    width / heads,
                    &mut context[first * width..end * width],
                );
                first = end;
            }
            // The queries, keys and values are used up; the same memory takes what comes next.
            let blocks = hidden
                .chunks_mut(BLOCK_ROWS * width)
                .zip(context.chunks(BLOCK_ROWS * width));
            let out = &mut mixed[..BLOCK_ROWS.min(tokens) * width];
            for (hidden, context) in blocks {
                let out = &mut out[..hidden.len()];
                let wide = &mut wide[..hidden.len() / width * wide_width];
                product(arch, context, width, &layer.attention, out, After::Nothing);
                norm(out, Some(hidden), &layer.attention_norm);
                kernel::feed_forward(arch, out, &layer.up, wide, &layer.down, hidden);
                norm(hidden, Some(out), &layer.norm);
            }
            step();
        }

        let mut first = 0;
        let vectors = batch.iter().map(|sequence| {
            let end = first + sequence.ids.len();
            let rows = &hidden[first * width..end * width];
            first = end;
            let mut vector = bert.pooling.pool(rows, width, sequence.prompt_tokens);
            for dense in &bert.dense {
                vector = dense.apply(arch, &vector);
            }
            pooling::check(vector)
        });
        Ok(vectors.collect())
    }
}

/// `output = after(input × weights + bias)` for all rows of `input`, which are `width` wide.
fn product(arch: Arch, input: &[f32], width: usize, weights: &Panels, output: &mut [f32], after: After) {
    let (rows, output_stride) = (input.len() / width, weights.width());
    Linear {
        input,
        input_stride: width,
        rows,
        weights,
        output,
        output_stride,
        after,
    }
    .run(arch);
}

impl Bert {
    fn check(&self, batch: &[&Sequence]) -> Result<(), EngineError> {
        for (index, sequence) in batch.iter().enumerate() {
            let (tokens, limit) = (sequence.ids.len(), self.config.max_position_embeddings);
            if tokens == 0 {
                return Err(EngineError::Empty { index });
            }
            if tokens > limit {
                return Err(EngineError::TooLong { index, tokens, limit });
            }
            let limit = self.config.vocab_size;
            if let Some(token) = sequence.ids.iter().copied().find(|id| *id as usize >= limit) {
                return Err(EngineError::UnknownToken { index, token, limit });
            }
        }
        Ok(())
    }

    /// The sum of word, position and type for each token.
    fn look_up(&self, batch: &[&Sequence], hidden: &mut [f32]) {
        let width = self.config.hidden_size;
        let ids = batch.iter().flat_map(|sequence| sequence.ids.iter().enumerate());
        for (row, (position, id)) in hidden.chunks_exact_mut(width).zip(ids) {
            let word = &self.words[*id as usize * width..][..width];
            let position = &self.positions[position * width..][..width];
            for ((out, word), position) in row.iter_mut().zip(word).zip(position) {
                *out = word + position;
            }
        }
    }
}
