//! Goal: our kernels compute what Candle's own operators compute. Method: the same encoder, written with
//! `candle_nn` for one sequence at a time, on the real model's weights, against the packed engine's vectors.

#[path = "support/model.rs"]
mod model;

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::{LayerNorm, Linear, Module, VarBuilder, embedding, layer_norm, linear};
use embeddings::config::Precision;
use embeddings::engine::{LoadOptions, Model, Sequence};
use std::path::Path;

/// `config.json` of all-MiniLM-L6-v2.
const HIDDEN: usize = 384;
const LAYERS: usize = 6;
const HEADS: usize = 12;
const INTERMEDIATE: usize = 1536;
const VOCABULARY: usize = 30522;
const POSITIONS: usize = 512;
const EPSILON: f64 = 1e-12;

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    output_norm: LayerNorm,
    up: Linear,
    down: Linear,
    norm: LayerNorm,
}

impl Layer {
    fn load(vb: VarBuilder<'_>) -> Result<Layer> {
        let attention = vb.pp("attention");
        Ok(Layer {
            query: linear(HIDDEN, HIDDEN, attention.pp("self.query"))?,
            key: linear(HIDDEN, HIDDEN, attention.pp("self.key"))?,
            value: linear(HIDDEN, HIDDEN, attention.pp("self.value"))?,
            output: linear(HIDDEN, HIDDEN, attention.pp("output.dense"))?,
            output_norm: layer_norm(HIDDEN, EPSILON, attention.pp("output.LayerNorm"))?,
            up: linear(HIDDEN, INTERMEDIATE, vb.pp("intermediate.dense"))?,
            down: linear(INTERMEDIATE, HIDDEN, vb.pp("output.dense"))?,
            norm: layer_norm(HIDDEN, EPSILON, vb.pp("output.LayerNorm"))?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let tokens = x.dim(0)?;
        let heads = |of: &Linear| {
            of.forward(x)?
                .reshape((tokens, HEADS, HIDDEN / HEADS))?
                .transpose(0, 1)?
                .contiguous()
        };
        let (query, key, value) = (heads(&self.query)?, heads(&self.key)?, heads(&self.value)?);
        let scores = (query.matmul(&key.t()?)? / ((HIDDEN / HEADS) as f64).sqrt())?;
        let mixed = candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&value)?;
        let mixed = mixed.transpose(0, 1)?.reshape((tokens, HIDDEN))?;
        let x = self.output_norm.forward(&(self.output.forward(&mixed)? + x)?)?;
        let wide = self.up.forward(&x)?.gelu_erf()?;
        self.norm.forward(&(self.down.forward(&wide)? + x)?)
    }
}

/// The mean over the last layer's rows.
fn reference(folder: &Path, sequences: &[Sequence]) -> Result<Vec<Vec<f32>>> {
    let bytes = std::fs::read(folder.join("model.safetensors"))?;
    let vb = VarBuilder::from_buffered_safetensors(bytes, DType::F32, &Device::Cpu)?;
    let from = vb.pp("embeddings");
    let words = embedding(VOCABULARY, HIDDEN, from.pp("word_embeddings"))?;
    let positions = embedding(POSITIONS, HIDDEN, from.pp("position_embeddings"))?;
    let types = embedding(2, HIDDEN, from.pp("token_type_embeddings"))?;
    let norm = layer_norm(HIDDEN, EPSILON, from.pp("LayerNorm"))?;
    let layers = (0..LAYERS)
        .map(|n| Layer::load(vb.pp(format!("encoder.layer.{n}"))))
        .collect::<Result<Vec<_>>>()?;
    let vector = |sequence: &Sequence| {
        let ids = Tensor::new(&*sequence.ids, &Device::Cpu)?;
        let places = Tensor::arange(0u32, sequence.ids.len() as u32, &Device::Cpu)?;
        let sum = (words.forward(&ids)? + positions.forward(&places)?)?;
        let mut x = norm.forward(&(sum + types.forward(&ids.zeros_like()?)?)?)?;
        for layer in &layers {
            x = layer.forward(&x)?;
        }
        x.mean(0)?.to_vec1::<f32>()
    };
    sequences.iter().map(vector).collect()
}

#[test]
fn the_packed_engine_equals_candle_s_own_operators() {
    let folder = model::minilm();
    let options = LoadOptions {
        precision: Precision::F32,
        ..LoadOptions::default()
    };
    let model = Model::load(&folder, &options, &mut |_| ()).unwrap();
    let texts = [
        "",
        "a",
        "Schöne Grüße aus Köln 🙂",
        &"one two three ".repeat(20),
        &"word ".repeat(400),
    ];
    let sequences: Vec<Sequence> = texts
        .iter()
        .map(|text| model.tokenize(text, None, true).unwrap())
        .collect();
    let batch: Vec<&Sequence> = sequences.iter().collect();
    let ours = model.engine().embed(&batch, &mut || ()).unwrap();
    for (index, (ours, theirs)) in ours
        .into_iter()
        .zip(reference(&folder, &sequences).unwrap())
        .enumerate()
    {
        let ours = ours.unwrap();
        let apart = ours
            .iter()
            .zip(&theirs)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(apart < 1e-4, "text {index}: {apart} apart");
    }
}
