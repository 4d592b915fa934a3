//! The families of architectures: one small file each, which reads and checks `config.json`, knows the names of
//! the tensors, and puts the shared layers together.
//!
//! What a file asks for and a family does not have is refused by name. A family stands here only after its
//! vectors were compared with those of a reference implementation (`tests/golden`).

mod bert;
mod check;
mod decoder;
mod distilbert;
mod gated;
mod gemma3;
mod gte;
mod modernbert;
mod mpnet;
mod nomic;
mod plain;
mod qwen3;
mod roberta;
mod rope;

use super::LoadError;
use super::encoder::Encoder;
use super::folder::{self, refuse};
use super::weights::Weights;
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

/// One family: the checked configuration of one model of it.
pub(super) trait Family: std::fmt::Debug + Sync {
    /// See [`Sizes`].
    fn sizes(&self) -> Sizes;

    /// Reads the weights for sequences of at most `places` tokens. `step` is called after the embeddings and
    /// after each layer.
    fn load(&self, weights: &Weights, places: usize, step: &mut dyn FnMut()) -> Result<Encoder, LoadError>;
}

/// What is to be known of a model before its weights are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    /// Tokens of the model.
    pub vocabulary: usize,
    /// Numbers of a token's row behind the last layer.
    pub width: usize,
    /// Longest sequence that the model has places for.
    pub places: usize,
}

type Read = fn(&Path, &str) -> Result<Box<dyn Family>, LoadError>;

/// A `model_type`, what the names of its classes begin with, and its file.
const FAMILIES: &[(&str, &str, Read)] = &[
    ("bert", "Bert", bert::read),
    ("roberta", "Roberta", roberta::read),
    ("xlm-roberta", "XLMRoberta", roberta::read),
    ("camembert", "Camembert", roberta::read),
    ("distilbert", "DistilBert", distilbert::read),
    ("mpnet", "MPNet", mpnet::read),
    ("modernbert", "ModernBert", modernbert::read),
    ("nomic_bert", "NomicBert", nomic::read),
    ("gte", "Gte", gte::read),
    ("qwen3", "Qwen3", qwen3::read),
    ("gemma3_text", "Gemma3", gemma3::read),
];

/// Those whose tokens see only what stands before them, as long as nothing says otherwise.
const CAUSAL: [&str; 2] = ["qwen3", "gemma3_text"];

/// Reads `config.json`: the name of the family, and the family.
pub(super) fn read(file: &Path, text: &str) -> Result<(String, Box<dyn Family>), LoadError> {
    #[derive(Deserialize)]
    struct Kind {
        model_type: Option<String>,
        architectures: Option<Vec<String>>,
        is_causal: Option<bool>,
        /// Even where the numbers are floats, what reads them then multiplies otherwise.
        quantization_config: Option<Value>,
    }
    let kind: Kind = folder::parse(file, text)?;
    let known = || {
        FAMILIES
            .iter()
            .map(|(name, ..)| *name)
            .collect::<Vec<_>>()
            .join(", ")
    };
    let Some(name) = kind.model_type else {
        return Err(refuse(file, "model_type", "absent", &known()));
    };
    let Some((_, class, read)) = FAMILIES.iter().find(|(known, ..)| *known == name) else {
        return Err(refuse(file, "model_type", name, &known()));
    };
    // A model of other code may bear the name of a known type, as JinaBert does.
    for architecture in kind.architectures.iter().flatten() {
        let rest = architecture.strip_prefix(class);
        if !rest.is_some_and(|rest| rest == "Model" || rest == "TextModel" || rest.starts_with("For")) {
            let supported = format!("{class}Model or {class}For…");
            return Err(refuse(file, "architectures", architecture, &supported));
        }
    }
    if let Some(how) = &kind.quantization_config {
        let method = how["quant_method"].as_str().unwrap_or("there");
        return Err(refuse(
            file,
            "quantization_config",
            method,
            "null: weights in floats",
        ));
    }
    let causal = CAUSAL.contains(&name.as_str());
    if let Some(other) = kind.is_causal.filter(|other| *other != causal) {
        return Err(refuse(file, "is_causal", other, &causal.to_string()));
    }
    Ok((name, read(file, text)?))
}

/// For each layer, whether it sees only near tokens: by `types` where there are any, else by `usual`.
fn sliding(
    file: &Path,
    types: Option<&[String]>,
    layers: usize,
    usual: impl Fn(usize) -> bool,
) -> Result<Vec<bool>, LoadError> {
    let Some(types) = types else {
        return Ok((0..layers).map(usual).collect());
    };
    if types.len() != layers {
        let supported = format!("as many as num_hidden_layers, which is {layers}");
        return Err(refuse(file, "layer_types", types.len(), &supported));
    }
    let known = |kind: &String| match kind.as_str() {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        other => Err(refuse(
            file,
            "layer_types",
            other,
            "full_attention, sliding_attention",
        )),
    };
    types.iter().map(known).collect()
}
