//! `embeddings model check`: loads a model, embeds a sentence, says what it is.

use crate::args::ConfigFlags;
use crate::cli::{configuration, print, table};
use crate::clock::{Clock, millis};
use crate::config::{Config, Device, Precision};
use crate::engine::{LoadOptions, Model, device, pooling};
use anyhow::{Context, bail, ensure};
use indicatif::HumanBytes;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What is embedded. Any sentence would do; this one says what it is for.
const SENTENCE: &str = "This sentence finds out whether the model works.";

/// What a trial found.
#[derive(Debug)]
pub struct Trial {
    /// The loaded model.
    pub model: Model,
    /// Time to load it, in milliseconds.
    pub load_ms: u64,
    /// Time to embed one sentence, in milliseconds.
    pub embed_ms: u64,
    /// Tokens of that sentence.
    pub tokens: usize,
    /// Its vector.
    pub vector: Vec<f32>,
}

/// Loads a model and embeds one sentence.
///
/// # Errors
/// What the engine says, with the folder.
pub fn attempt(dir: &Path, device: Device, precision: Precision) -> anyhow::Result<Trial> {
    attempt_telling(dir, device, precision, &mut || ())
}

/// The same; `moved` is called at every step of it.
///
/// # Errors
/// As [`attempt`].
pub fn attempt_telling(
    dir: &Path,
    device: Device,
    precision: Precision,
    moved: &mut dyn FnMut(),
) -> anyhow::Result<Trial> {
    let clock = Clock::start();
    let options = LoadOptions {
        device,
        precision,
        ..LoadOptions::default()
    };
    let model = Model::load(dir, &options, &mut |_| moved())
        .with_context(|| format!("failed to load the model in {}", dir.display()))?;
    let loaded = clock.now();
    let sequence = model
        .tokenize(SENTENCE, None, true)
        .context("failed to make tokens of a sentence")?;
    let mut results = model
        .engine()
        .embed(&[&sequence], moved)
        .context("failed to embed a sentence")?;
    ensure!(results.len() == 1, "one sentence gave {} vectors", results.len());
    let vector = results
        .remove(0)
        .context("the vector of a plain sentence is unusable")?;
    let info = model.info();
    let vector = pooling::finish(vector, None, info.normalize);
    ensure!(
        vector.len() == info.dimensions,
        "the vector has {} dimensions, the model says {}",
        vector.len(),
        info.dimensions
    );
    let embed_ms = millis(clock.now().since(loaded));
    Ok(Trial {
        load_ms: loaded.as_millis(),
        embed_ms,
        tokens: sequence.ids.len(),
        vector,
        model,
    })
}

/// Runs the command.
///
/// # Errors
/// A bad configuration, a model that is not there, or one that does not work.
pub fn run(name: &str, as_json: bool, flags: &ConfigFlags) -> anyhow::Result<ExitCode> {
    let config = configuration(flags)?.config;
    let (dir, device, precision) = find(&config, name)?;
    let trial = attempt(&dir, device, precision)?;
    let text = if as_json {
        format!("{:#}\n", machine(name, &dir, &trial))
    } else {
        people(name, &dir, &trial)
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// A configured model, an installed one, or a folder, in this order.
fn find(config: &Config, name: &str) -> anyhow::Result<(PathBuf, Device, Precision)> {
    if let Some(own) = config.model_name(name) {
        let model = &config.models[own];
        return Ok((config.model_dir(own)?, model.device, model.precision));
    }
    let absent = match config.installed_dir(name) {
        Ok(dir) => return Ok((dir, Device::Auto, Precision::Auto)),
        Err(absent) => absent,
    };
    if Path::new(name).is_dir() {
        return Ok((PathBuf::from(name), Device::Auto, Precision::Auto));
    }
    bail!("{absent}, and {name} is no folder; `embeddings model list` lists what there is")
}

fn people(name: &str, dir: &Path, trial: &Trial) -> String {
    let info = trial.model.info();
    let row = |what: &str, value: String| vec![what.to_owned(), value];
    let prompts = info
        .prompts
        .keys()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    let numbers = trial
        .vector
        .iter()
        .take(4)
        .map(|v| format!("{v:.4}"))
        .collect::<Vec<_>>()
        .join(", ");
    let rows = [
        row("folder", dir.display().to_string()),
        row("architecture", info.architecture.clone()),
        row("dimensions", info.dimensions.to_string()),
        row("longest input", format!("{} tokens", info.max_tokens)),
        row("pooling", info.pooling.clone()),
        row("normalised", if info.normalize { "yes" } else { "no" }.to_owned()),
        row(
            "prompts",
            if prompts.is_empty() {
                "none".to_owned()
            } else {
                prompts
            },
        ),
        row(
            "device",
            match device::Device::fallen_back() {
                Some(why) => format!("{}: {why}", info.device.name()),
                None => info.device.name(),
            },
        ),
        row("precision", info.precision.name().to_owned()),
        row(
            "weights",
            format!(
                "{}, sha256 {}",
                HumanBytes(info.weights_bytes),
                info.weights_sha256
            ),
        ),
        row("fingerprint", trial.model.fingerprint(info.dimensions)),
        row("loaded in", format!("{} ms", trial.load_ms)),
        row(
            "one sentence",
            format!("{} tokens in {} ms: [{numbers}, …]", trial.tokens, trial.embed_ms),
        ),
    ];
    format!("{name} works\n\n{}", table(&rows))
}

fn machine(name: &str, dir: &Path, trial: &Trial) -> serde_json::Value {
    let info = trial.model.info();
    json!({
        "name": name,
        "works": true,
        "path": dir,
        "architecture": info.architecture,
        "dimensions": info.dimensions,
        "max_tokens": info.max_tokens,
        "pooling": info.pooling,
        "normalize": info.normalize,
        "prompts": info.prompts,
        "device": info.device.name(),
        "device_fallback": device::Device::fallen_back(),
        "precision": info.precision.name(),
        "weights_bytes": info.weights_bytes,
        "weights_sha256": info.weights_sha256,
        "fingerprint": trial.model.fingerprint(info.dimensions),
        "load_ms": trial.load_ms,
        "embed_ms": trial.embed_ms,
        "tokens": trial.tokens,
    })
}
