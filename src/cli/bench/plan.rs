//! What a run is to do, from the command line and the configuration; all that can be refused is refused here,
//! before a minute is spent on measuring.

use super::Ended;
use super::compare::Comparison;
use super::quality::TEXTS_MIN;
use super::report::Report;
use super::texts::Texts;
use crate::args::{BenchArgs, THREADS_MAX};
use crate::config::{Config, Device, Precision};
use crate::engine::device;
use std::path::{Path, PathBuf};

/// Bounds of `--seconds`.
const SECONDS: std::ops::RangeInclusive<f64> = 0.05..=3600.0;

/// Which parts are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// The engine alone.
    pub engine: bool,
    /// Through the broker.
    pub broker: bool,
    /// Whether the broker was asked for, so that its absence is a failure.
    pub broker_needed: bool,
    /// Vectors beside those of f32.
    pub quality: bool,
}

/// How a service behind the broker knows the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wire {
    /// By this name; `None` is its default.
    Known(Option<String>),
    /// Not at all, for this reason.
    Unknown(String),
}

/// A model.
#[derive(Debug, Clone)]
pub struct Target {
    /// As it was asked for.
    pub name: String,
    /// Its folder.
    pub dir: PathBuf,
    /// Where it computes.
    pub device: Device,
    /// In which numbers, as configured.
    pub precision: Precision,
    /// As the service knows it.
    pub wire: Wire,
}

/// All of it.
#[derive(Debug)]
pub struct Plan {
    /// What is measured.
    pub parts: Parts,
    /// Of what.
    pub target: Target,
    /// In which numbers: asked for, else as configured.
    pub precisions: Vec<Precision>,
    /// Beside f32, for the part quality: asked for, else all that there are.
    pub qualities: Vec<Precision>,
    /// Threads that compute.
    pub threads: usize,
    /// Token budget of a batch.
    pub batch_tokens: usize,
    /// What is embedded.
    pub texts: Texts,
    /// The earlier run.
    pub before: Option<(PathBuf, Report)>,
}

/// The parts that the flags choose. Without any, what there is: the engine, and the broker if one answers.
pub fn parts(args: &BenchArgs) -> Parts {
    let none = !(args.engine || args.broker || args.quality);
    Parts {
        engine: args.engine || none,
        broker: args.broker || none,
        broker_needed: args.broker,
        quality: args.quality,
    }
}

/// Makes the plan.
///
/// # Errors
/// What makes no sense, with the flag that says it; a model that is not there.
pub fn make(args: &BenchArgs, config: &Config) -> Result<Plan, Ended> {
    let parts = parts(args);
    if !SECONDS.contains(&args.seconds) {
        return Err(Ended::usage(format!(
            "--seconds is {}, must be {} to {}",
            args.seconds,
            SECONDS.start(),
            SECONDS.end()
        )));
    }
    if let Some(threads) = args.threads
        && !(1..=THREADS_MAX).contains(&threads)
    {
        return Err(Ended::usage(format!(
            "--threads is {threads}, must be 1 to {THREADS_MAX}"
        )));
    }
    if let Some(ratio) = args.fail_below
        && !(ratio > 0.0 && ratio.is_finite())
    {
        return Err(Ended::usage(format!(
            "--fail-below is {ratio}, must be above 0, such as 0.95"
        )));
    }
    let asked = precisions(&args.precision)?;
    let before = match &args.compare {
        None => None,
        Some(path) => {
            let report = Report::read(path).map_err(|why| Ended::usage(format!("--compare {why}")))?;
            Some((path.clone(), report))
        }
    };
    if let Some(path) = &args.output {
        writable(path)?;
    }
    let texts = match &args.texts {
        None => Texts::built_in(),
        Some(path) => Texts::open(path)?,
    };
    if parts.quality && texts.lines.len() < TEXTS_MIN {
        return Err(Ended::usage(format!(
            "--texts {} holds {} distinct texts, --quality needs at least {TEXTS_MIN}",
            texts.source,
            texts.lines.len()
        )));
    }
    let target = find(args.model.as_deref(), config)?;
    let configured = match config.engine.threads {
        0 => device::threads(),
        threads => threads,
    };
    Ok(Plan {
        precisions: if asked.is_empty() {
            vec![target.precision]
        } else {
            asked.clone()
        },
        qualities: asked,
        parts,
        target,
        threads: args.threads.unwrap_or(configured),
        batch_tokens: config.engine.batch_tokens,
        texts,
        before,
    })
}

fn precisions(words: &[String]) -> Result<Vec<Precision>, Ended> {
    let mut all = Vec::new();
    for word in words {
        let precision = word
            .trim()
            .parse()
            .map_err(|error| Ended::usage(format!("--precision: {error}")))?;
        if !all.contains(&precision) {
            all.push(precision);
        }
    }
    Ok(all)
}

/// Whether a file can be written there; it is not touched yet.
fn writable(path: &Path) -> Result<(), Ended> {
    let refuse = |why: &str| Err(Ended::output(format!("--output {} {why}", path.display())));
    if path.is_dir() {
        return refuse("is a directory");
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if folder.is_dir() {
        Ok(())
    } else {
        refuse("cannot be written: its folder does not exist")
    }
}

/// A configured model, an installed one, or a folder, in this order; without a name the default.
fn find(name: Option<&str>, config: &Config) -> Result<Target, Ended> {
    let asked = name.unwrap_or(&config.default_model);
    if let Some(own) = config.model_name(asked) {
        let model = &config.models[own];
        let dir = config.model_dir(own).map_err(|absent| {
            Ended::failed(format!(
                "{absent}; `embeddings model list` lists what there is, --model takes a folder too"
            ))
        })?;
        return Ok(Target {
            name: own.to_owned(),
            dir,
            device: model.device,
            precision: model.precision,
            wire: Wire::Known(name.map(|_| own.to_owned())),
        });
    }
    let unknown = format!("{asked} is not in the configuration, so no service knows it");
    let target = |dir: PathBuf, name: String| Target {
        name,
        dir,
        device: Device::Auto,
        precision: Precision::Auto,
        wire: Wire::Unknown(unknown.clone()),
    };
    let absent = match config.installed_dir(asked) {
        Ok(dir) => return Ok(target(dir, asked.to_owned())),
        Err(absent) => absent,
    };
    let dir = Path::new(asked);
    if dir.is_dir() {
        // So that the same model has one name, however the way to it was written.
        let whole = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
        let last = whole.file_name().map(|last| last.to_string_lossy().into_owned());
        return Ok(target(dir.to_owned(), last.unwrap_or_else(|| asked.to_owned())));
    }
    Err(Ended::failed(format!(
        "{absent}, and {asked} is no folder; `embeddings model list` lists what there is"
    )))
}

/// Whether a comparison fails what was asked of it; then why.
///
/// # Errors
/// Nothing to compare, where a comparison was to decide.
pub fn judged(comparison: &Comparison, below: f64) -> Result<Option<String>, Ended> {
    if comparison.measures.is_empty() {
        return Err(Ended::usage(format!(
            "--compare {} has no measure in common with this run",
            comparison.file
        )));
    }
    let failed: Vec<String> = comparison
        .below(below)
        .iter()
        .map(|measure| {
            let ratio = measure.ratio.unwrap_or(0.0);
            format!("{} in {} at {ratio:.3}", measure.name, measure.precision)
        })
        .collect();
    Ok((!failed.is_empty()).then(|| format!("below {below} of {}: {}", comparison.file, failed.join(", "))))
}
