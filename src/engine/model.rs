//! A model: a sentence-transformers folder, checked, loaded and ready to be shared by engine threads.

use super::auto;
use super::device::{ChoiceError, Device, Precision};
use super::encoder::Chain;
use super::family::{self, Sizes};
use super::folder::{self, DenseSpec, Folder, refuse};
use super::gpu::{self, Forward, Place};
use super::layers::dense::Dense;
use super::load;
use super::tokenize::{Tokenize, TokenizeError};
use super::weights::Weights;
use super::{Engine, Sequence};
use crate::config;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How to load a model; the default lets the machine decide.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Number format to compute in.
    pub precision: config::Precision,
    /// Where to compute.
    pub device: config::Device,
    /// Computes on the CPU as on a GPU, in Candle's tensors: slower, and a way to test what a GPU is told to do.
    pub by_tensors: bool,
}

/// Progress of loading. Every step means that something was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadStep {
    /// So many more bytes of the weights were read and hashed.
    Read {
        /// In all, so far.
        bytes: u64,
    },
    /// Some more of the weights were made ready, or of the trial that decides between precisions.
    Packed,
}

/// Why a model cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file that every such model has is not there.
    #[error("{} is missing", .file.display())]
    Missing {
        /// The file.
        file: PathBuf,
    },
    /// The file cannot be read.
    #[error("{} cannot be read: {source}", .file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not what its name says.
    #[error("{} is corrupt: {why}", .file.display())]
    Corrupt {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The file says something that this engine does not know; it does not guess.
    #[error("{}: {key} is {value:?}, supported: {supported}", .file.display())]
    Value {
        /// The file.
        file: PathBuf,
        /// The key in it.
        key: String,
        /// As written.
        value: String,
        /// What would do.
        supported: String,
    },
    /// A tensor is missing, misshapen or damaged.
    #[error("{}: tensor {name} {why}", .file.display())]
    Tensor {
        /// The file.
        file: PathBuf,
        /// The tensor's name.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// The device or the precision cannot be had.
    #[error(transparent)]
    Choice(#[from] ChoiceError),
    /// The device cannot be opened, has no room for the weights, or fails.
    #[error("the device failed: {why}")]
    Device {
        /// What it said.
        why: String,
    },
}

impl LoadError {
    /// Whether the next try may find it otherwise: the machine could not read, whatever the file holds.
    pub fn may_pass(&self) -> bool {
        use std::io::ErrorKind as Kind;
        // What stands in the folder, as against what the machine can do at present.
        let settled = |kind| {
            matches!(
                kind,
                Kind::NotFound | Kind::PermissionDenied | Kind::IsADirectory | Kind::NotADirectory
            ) || matches!(kind, Kind::InvalidData | Kind::UnexpectedEof)
        };
        match self {
            LoadError::Io { source, .. } => !settled(source.kind()),
            // Another process may hold its memory, or its driver be late.
            LoadError::Device { .. } => true,
            _ => false,
        }
    }
}

/// What a model is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// Components of a vector.
    pub dimensions: usize,
    /// Longest sequence, in tokens, those that the tokenizer adds included.
    pub max_tokens: usize,
    /// Such as `mean`.
    pub pooling: String,
    /// Whether the model's own chain brings vectors to length one.
    pub normalize: bool,
    /// Named prompts: what is put before a text.
    pub prompts: BTreeMap<String, String>,
    /// The name of the prompt of an input that names none.
    pub default_prompt: Option<String>,
    /// `model_type` of its configuration, such as `bert`.
    pub architecture: String,
    /// In which numbers it computes.
    pub precision: Precision,
    /// Where it computes.
    pub device: Device,
    /// SHA-256 over the weights' files, the transformer's before those of Dense modules in order, in hexadecimal.
    pub weights_sha256: String,
    /// Bytes of the weights' files.
    pub weights_bytes: u64,
}

impl ModelInfo {
    /// As [`Model::fingerprint`].
    pub fn fingerprint(&self, dimensions: usize) -> String {
        let ModelInfo {
            weights_sha256,
            pooling,
            precision,
            ..
        } = self;
        format!(
            "{}:{pooling}:{}:{dimensions}",
            &weights_sha256[..16],
            precision.name()
        )
    }
}

/// What a model will be, as far as its folder tells before its weights are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// Components of a vector.
    pub dimensions: usize,
    /// Whether the model's own chain brings vectors to length one.
    pub normalize: bool,
    /// Named prompts: what is put before a text.
    pub prompts: BTreeMap<String, String>,
    /// The name of the prompt of an input that names none.
    pub default_prompt: Option<String>,
    /// Where it will compute.
    pub device: Device,
    /// Bytes of the weights' files.
    pub weights_bytes: u64,
}

/// A loaded model. Cheap to share by `Arc`; weights are held once, however many engines compute with them.
#[derive(Debug)]
pub struct Model {
    info: ModelInfo,
    tokenize: Tokenize,
    ready: Ready,
}

/// A model's weights where they are computed with.
#[derive(Debug)]
enum Ready {
    Packed(Arc<Chain>),
    Placed(Arc<Forward>),
}

#[cfg(test)]
impl Model {
    /// Of a model on the CPU, what its engines compute.
    pub(super) fn chain(&self) -> Arc<Chain> {
        match &self.ready {
            Ready::Packed(chain) => chain.clone(),
            Ready::Placed(_) => unreachable!("small models are loaded for the CPU"),
        }
    }
}

impl Ready {
    fn engine(&self) -> Box<dyn Engine> {
        match self {
            Ready::Packed(chain) => chain.engine(),
            Ready::Placed(forward) => forward.engine(),
        }
    }

    fn dimensions(&self) -> usize {
        match self {
            Ready::Packed(chain) => chain.dimensions(),
            Ready::Placed(forward) => forward.dimensions(),
        }
    }
}

impl Model {
    /// Reads a sentence-transformers folder, all but its tokenizer and its weights: it takes milliseconds, whatever their size.
    ///
    /// # Errors
    /// Whatever is missing, damaged or unknown to this engine, by file and key.
    pub fn outline(dir: &Path, options: &LoadOptions) -> Result<Outline, LoadError> {
        let (device, place) = where_to(options)?;
        Precision::choose(options.precision, device, place.is_some())?;
        let folder = Folder::open(dir)?;
        let file = folder.transformer.join("config.json");
        let (_, family) = family::read(&file, &folder::read(&file)?)?;
        let sizes = family.sizes();
        max_tokens(&folder, sizes)?;
        let weights_bytes = open_weights(&folder)?.bytes();
        Ok(Outline {
            dimensions: dimensions(&folder, sizes)?,
            normalize: folder.normalize,
            prompts: folder.prompts,
            default_prompt: folder.default_prompt,
            device,
            weights_bytes,
        })
    }

    /// How many numbers its vectors have, without reading tokenizer or weights.
    ///
    /// # Errors
    /// As [`Model::outline`].
    pub fn dimensions(dir: &Path) -> Result<usize, LoadError> {
        let folder = Folder::open(dir)?;
        let file = folder.transformer.join("config.json");
        let (_, family) = family::read(&file, &folder::read(&file)?)?;
        dimensions(&folder, family.sizes())
    }

    /// Loads a sentence-transformers folder. `step` is told of all progress.
    ///
    /// # Errors
    /// Whatever is missing, damaged or unknown to this engine, by file and key.
    pub fn load(
        dir: &Path,
        options: &LoadOptions,
        step: &mut dyn FnMut(LoadStep),
    ) -> Result<Model, LoadError> {
        let (device, place) = where_to(options)?;
        let precisions = Precision::choose(options.precision, device, place.is_some())?;
        let folder = Folder::open(dir)?;
        let file = folder.transformer.join("config.json");
        let text = folder::read(&file)?;
        let (architecture, family) = family::read(&file, &text)?;
        let sizes = family.sizes();
        let precisions = auto::to_try(precisions, sizes.width);
        let max_tokens = max_tokens(&folder, sizes)?;
        let dense = dense_chain(&folder, sizes, place.as_ref())?;
        let weights = open_weights(&folder)?;
        let weights_bytes = weights.bytes();
        let tokens = || {
            Tokenize::load(
                &folder.transformer,
                &architecture,
                &max_tokens,
                folder.lower_case,
                sizes.vocabulary,
            )
        };
        let pack = |weights: &Weights, step: &mut dyn FnMut()| {
            Ok(Chain {
                encoder: family.load(weights, sizes.places, step)?,
                places: sizes.places,
                pooling: folder.pooling.clone(),
                dense: dense.clone(),
            })
        };
        let (tokenize, ready, precision, sha256) = match &place {
            Some(place) => {
                let parts = gpu::load::run(weights, place, &precisions, &tokens, &pack, step)?;
                (
                    parts.tokenize,
                    Ready::Placed(parts.forward),
                    parts.precision,
                    parts.sha256,
                )
            }
            None => {
                let parts = load::run(dir, weights, &precisions, &tokens, &pack, step)?;
                (
                    parts.tokenize,
                    Ready::Packed(parts.chain),
                    parts.precision,
                    parts.sha256,
                )
            }
        };
        let info = ModelInfo {
            dimensions: ready.dimensions(),
            max_tokens: max_tokens.count,
            pooling: folder.pooling.name(),
            normalize: folder.normalize,
            prompts: folder.prompts,
            default_prompt: folder.default_prompt,
            architecture,
            precision,
            device,
            weights_sha256: sha256,
            weights_bytes,
        };
        Ok(Model {
            info,
            tokenize,
            ready,
        })
    }

    /// Checks all of a folder but its weights: whether this engine knows what its files ask for.
    ///
    /// # Errors
    /// Whatever is missing, damaged or unknown to this engine, by file and key.
    pub fn vet(dir: &Path) -> Result<(), LoadError> {
        let folder = Folder::open(dir)?;
        let file = folder.transformer.join("config.json");
        let (architecture, family) = family::read(&file, &folder::read(&file)?)?;
        let sizes = family.sizes();
        let max_tokens = max_tokens(&folder, sizes)?;
        Tokenize::load(
            &folder.transformer,
            &architecture,
            &max_tokens,
            folder.lower_case,
            sizes.vocabulary,
        )?;
        dimensions(&folder, sizes).map(drop)
    }

    /// What it is.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Names how vectors are made; equal fingerprints mean comparable vectors. `dimensions` is what a caller
    /// asked for, or [`ModelInfo::dimensions`].
    pub fn fingerprint(&self, dimensions: usize) -> String {
        self.info.fingerprint(dimensions)
    }

    /// Makes tokens of a text. `prompt` is the prompt's text, one of [`ModelInfo::prompts`]' values.
    ///
    /// # Errors
    /// A text over the limit, if it is not to be cut.
    pub fn tokenize(
        &self,
        text: &str,
        prompt: Option<&str>,
        truncate: bool,
    ) -> Result<Sequence, TokenizeError> {
        self.tokenize_in_steps(text, prompt, truncate, &mut || ())
    }

    /// As [`Model::tokenize`]; `step` is called at every few pages of a long text, and at least once.
    ///
    /// # Errors
    /// A text over the limit, if it is not to be cut.
    pub fn tokenize_in_steps(
        &self,
        text: &str,
        prompt: Option<&str>,
        truncate: bool,
        step: &mut dyn FnMut(),
    ) -> Result<Sequence, TokenizeError> {
        self.tokenize.sequence(text, prompt, truncate, step)
    }

    /// An engine for one thread.
    pub fn engine(&self) -> Box<dyn Engine> {
        self.ready.engine()
    }

    /// The device that it was put on, unless that is the CPU.
    pub(super) fn place(&self) -> Option<&Place> {
        match &self.ready {
            Ready::Packed(_) => None,
            Ready::Placed(forward) => Some(forward.whereabouts()),
        }
    }
}

/// The transformer's weights, whose checksum is that of all modules.
fn open_weights(folder: &Folder) -> Result<Weights, LoadError> {
    let besides = folder.dense.iter().map(|spec| spec.dir.as_path());
    Weights::open_with(&folder.transformer, besides)
}

/// The device, and the place on it unless that is the CPU.
fn where_to(options: &LoadOptions) -> Result<(Device, Option<Place>), LoadError> {
    if !options.by_tensors {
        return Device::choose(options.device, options.precision);
    }
    let place = Place::open(Device::Cpu).map_err(|error| LoadError::Device {
        why: error.to_string(),
    })?;
    Ok((Device::Cpu, Some(place)))
}

/// The longest sequence, and what says so.
pub(super) struct MaxTokens {
    /// Tokens, those that the tokenizer adds included.
    pub count: usize,
    /// The file that sets it.
    pub file: PathBuf,
    /// The key in that file.
    pub key: &'static str,
}

impl MaxTokens {
    /// Refuses it, as it is less than what is `supported`.
    pub fn refuse(&self, supported: &str) -> LoadError {
        refuse(&self.file, self.key, self.count, supported)
    }
}

/// The folder's own limit, else the tokenizer's, and never more than there are positions.
fn max_tokens(folder: &Folder, sizes: Sizes) -> Result<MaxTokens, LoadError> {
    #[derive(serde::Deserialize, Default)]
    struct Limits {
        model_max_length: Option<f64>,
        /// What that was called before version 2 of transformers; some folders have both.
        max_len: Option<f64>,
    }
    let said = match folder.max_seq_length {
        Some(count) => Some(MaxTokens {
            count,
            file: folder::sentence_config(&folder.transformer),
            key: "max_seq_length",
        }),
        None => {
            let file = folder.transformer.join("tokenizer_config.json");
            let limits: Limits = if file.exists() {
                folder::parse(&file, &folder::read(&file)?)?
            } else {
                Limits::default()
            };
            let newer = limits.model_max_length.map(|limit| (limit, "model_max_length"));
            // Without a limit, transformers writes a number that no machine holds.
            newer
                .or(limits.max_len.map(|limit| (limit, "max_len")))
                .filter(|(limit, _)| *limit >= 1.0)
                .map(|(limit, key)| MaxTokens {
                    count: limit as usize,
                    file,
                    key,
                })
        }
    };
    let said = said.filter(|said| said.count <= sizes.places);
    let limit = said.unwrap_or_else(|| MaxTokens {
        count: sizes.places,
        file: folder.transformer.join("config.json"),
        key: "max_position_embeddings",
    });
    match limit.count {
        0 => Err(limit.refuse("at least 1")),
        _ => Ok(limit),
    }
}

/// How many numbers a vector has after all modules.
fn dimensions(folder: &Folder, sizes: Sizes) -> Result<usize, LoadError> {
    let width = sizes.width * folder.pooling.modes.len();
    folder.dense.iter().try_fold(width, check_dense)
}

/// Loads the Dense modules, for the CPU or a `place` on a device, and checks that each takes what the one before it gives.
fn dense_chain(folder: &Folder, sizes: Sizes, place: Option<&Place>) -> Result<Vec<Arc<Dense>>, LoadError> {
    let mut width = sizes.width * folder.pooling.modes.len();
    let mut chain = Vec::new();
    for spec in &folder.dense {
        width = check_dense(width, spec)?;
        chain.push(Arc::new(Dense::load(spec, place)?));
    }
    Ok(chain)
}

/// Refuses a Dense module that does not take `width` numbers, and says how many it gives.
fn check_dense(width: usize, spec: &DenseSpec) -> Result<usize, LoadError> {
    if spec.input != width {
        let file = spec.dir.join("config.json");
        let supported = format!("{width}, what comes before it");
        return Err(refuse(&file, "in_features", spec.input, &supported));
    }
    Ok(spec.output)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine that has no file descriptor or no medium for a moment is no fault of the configuration.
    #[test]
    fn what_the_machine_cannot_do_now_may_pass() {
        let failed = |code| LoadError::Io {
            file: "model.safetensors".into(),
            source: std::io::Error::from_raw_os_error(code),
        };
        for code in [libc::EIO, libc::EMFILE, libc::ENOMEM, libc::ESTALE] {
            assert!(failed(code).may_pass(), "{code}");
        }
        for code in [libc::ENOENT, libc::EACCES, libc::EISDIR] {
            assert!(!failed(code).may_pass(), "{code}");
        }
        let file = "model.safetensors".into();
        assert!(!LoadError::Missing { file }.may_pass());
    }
}
