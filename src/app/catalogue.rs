//! The loaded models, and what a request means for one of them: name to model, prompt, dimensions.

use crate::clock::Moment;
use crate::config::{Config, ModelDirError};
use crate::engine::{LoadError, LoadOptions, LoadStep, Model, Sequence, TokenizeError, pooling};
use crate::job::reply::result_bytes_max;
use crate::job::request::{Encoding, InputType, Request};
use crate::job::{ErrorType, Refusal};
use crate::logic::event::{CallerId, ModelId, Streaming, Ticket};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a canary says: long enough to reach every layer and kernel, short enough to cost nothing.
const CANARY_TEXT: &str =
    "The canary sings while the air is good; when it falls silent, leave the mine at once.";
/// A canary's vector below this cosine to the one computed at start is wrong (contract, section 5).
const CANARY_COSINE_MIN: f32 = 0.999;

/// Why the models cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// There is no folder for a configured model.
    #[error(transparent)]
    Folder(#[from] ModelDirError),
    /// A folder does not load.
    #[error("model {name}: {source}")]
    Load {
        /// Its configured name.
        name: String,
        /// Why.
        source: LoadError,
    },
    /// A model cannot embed the simplest sentence.
    #[error("model {name} fails on the canary: {why}")]
    Canary {
        /// Its configured name.
        name: String,
        /// Why.
        why: String,
    },
}

/// One loaded model.
#[derive(Debug)]
pub struct Entry {
    /// Its configured name.
    pub name: String,
    /// The model.
    pub model: Arc<Model>,
    /// Its own bound on the inputs of a job.
    max_inputs: usize,
    /// The same of a streamed one.
    max_stream_inputs: usize,
    /// Inputs of one chunk.
    batch_inputs: usize,
    /// Its own bound on the interactive lane, if it has one.
    max_queue: Option<usize>,
    /// Its own bound on jobs in flight, if it has one.
    max_inflight: Option<usize>,
    /// The canary's vector, computed at start.
    reference: Vec<f32>,
}

/// All loaded models.
#[derive(Debug)]
pub struct Catalogue {
    entries: Vec<Entry>,
    names: BTreeMap<String, ModelId>,
    default: ModelId,
    max_message_bytes: usize,
}

/// What a request comes down to.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The model.
    pub model: ModelId,
    /// What is put before each text.
    pub prompt: Option<String>,
    /// Matryoshka truncation.
    pub dimensions: Option<usize>,
    /// Whether vectors are brought to length one.
    pub normalize: bool,
    /// Whether long inputs are cut.
    pub truncate: bool,
    /// How vectors are written.
    pub encoding: Encoding,
    /// Inputs of one chunk, if the job is streamed.
    pub chunk: Option<usize>,
}

impl Catalogue {
    /// Loads every configured model; `progress` is told of each step, with a line for people.
    pub fn load(config: &Config, progress: &mut dyn FnMut(&str)) -> Result<Catalogue, CatalogueError> {
        let mut entries = Vec::new();
        let mut names = BTreeMap::new();
        for (name, settings) in &config.models {
            let id = ModelId(entries.len());
            for alias in settings.aliases.iter().chain([name]) {
                names.insert(alias.clone(), id);
            }
            let dir = config.model_dir(name)?;
            let options = LoadOptions {
                precision: settings.precision,
                device: settings.device,
            };
            let model = Model::load(&dir, &options, &mut |step| match step {
                LoadStep::Read { bytes } => {
                    progress(&format!("loading {name}: {} MB read", bytes / 1_000_000))
                }
                LoadStep::Packed => progress(&format!("loading {name}: packing weights")),
            })
            .map_err(|source| CatalogueError::Load {
                name: name.clone(),
                source,
            })?;
            let reference = canary_vector(name, &model, progress)?;
            let limits = config.limits_of(name);
            entries.push(Entry {
                name: name.clone(),
                model: Arc::new(model),
                max_inputs: limits.max_inputs,
                max_stream_inputs: limits.max_stream_inputs,
                batch_inputs: limits.batch_inputs,
                max_queue: settings.max_queue,
                max_inflight: settings.max_inflight,
                reference,
            });
        }
        let default = names[&config.default_model];
        Ok(Catalogue {
            entries,
            names,
            default,
            max_message_bytes: config.broker.max_message_bytes,
        })
    }

    /// A loaded model.
    pub fn entry(&self, id: ModelId) -> &Entry {
        &self.entries[id.0]
    }

    /// The model of a job that names none.
    pub fn default_entry(&self) -> &Entry {
        self.entry(self.default)
    }

    /// Names of all models, in the order of their numbers.
    pub fn model_names(&self) -> Vec<String> {
        self.entries.iter().map(|entry| entry.name.clone()).collect()
    }

    /// Per model, its own bound on the interactive lane.
    pub fn max_queues(&self) -> Vec<Option<usize>> {
        self.entries.iter().map(|entry| entry.max_queue).collect()
    }

    /// Per model, its own bound on jobs in flight.
    pub fn max_inflights(&self) -> Vec<Option<usize>> {
        self.entries.iter().map(|entry| entry.max_inflight).collect()
    }

    /// Largest number of inputs that any model allows.
    pub fn max_inputs(&self) -> usize {
        self.entries
            .iter()
            .map(|entry| entry.max_inputs)
            .max()
            .unwrap_or(1)
    }

    /// What a request means here, or what is wrong with it.
    pub fn plan(&self, request: &Request) -> Result<Plan, Refusal> {
        let model = match &request.model {
            None => self.default,
            Some(name) => *self.names.get(name).ok_or_else(|| {
                let known: Vec<&str> = self.names.keys().map(String::as_str).collect();
                let message = format!("model {name:?} is not one of {}", known.join(", "));
                Refusal::new(ErrorType::ModelNotFound, message).on("model")
            })?,
        };
        let entry = self.entry(model);
        let inputs = request.input.len();
        let inputs_max = if request.stream {
            entry.max_stream_inputs
        } else {
            entry.max_inputs
        };
        if inputs > inputs_max {
            let message = format!("input has {inputs} texts, limit is {inputs_max}");
            return Err(Refusal::new(ErrorType::TooManyInputs, message).on("input"));
        }
        let info = entry.model.info();
        if let Some(dimensions) = request.dimensions.filter(|&n| n > info.dimensions) {
            let message = format!("dimensions is {dimensions}, the model has {}", info.dimensions);
            return Err(Refusal::invalid("dimensions", message));
        }
        let dimensions = request.dimensions.unwrap_or(info.dimensions);
        let bytes = |inputs| result_bytes_max(inputs, dimensions, request.encoding);
        let chunk = request.stream.then(|| {
            let fits = |chunk: &usize| bytes(*chunk) <= self.max_message_bytes;
            let halves = std::iter::successors(Some(entry.batch_inputs), |chunk| Some(chunk / 2));
            halves.take_while(|chunk| *chunk > 0).find(fits).unwrap_or(1)
        });
        let answer = bytes(chunk.unwrap_or(inputs));
        if answer > self.max_message_bytes {
            let message = format!(
                "the answer may need {answer} bytes, the broker takes {}: send fewer texts per job, or ask for base64",
                self.max_message_bytes
            );
            return Err(Refusal::new(ErrorType::TooManyInputs, message).on("input"));
        }
        Ok(Plan {
            model,
            prompt: prompt(request, &info.prompts, info.default_prompt.as_deref())?,
            dimensions: request.dimensions,
            normalize: request
                .normalize
                .unwrap_or(info.normalize || request.dimensions.is_some()),
            truncate: request.truncate,
            encoding: request.encoding,
            chunk,
        })
    }

    /// The request of a canary for one model.
    pub fn canary(&self, model: ModelId) -> Vec<u8> {
        let body = serde_json::json!({ "model": self.entry(model).name, "input": CANARY_TEXT });
        body.to_string().into_bytes()
    }

    /// Whether a canary's vector is the one computed at start.
    pub fn canary_is_right(&self, model: ModelId, vector: &[f32]) -> bool {
        // Both are of length one; a comparison with NaN is false, as it should be.
        let cosine: f32 = self
            .entry(model)
            .reference
            .iter()
            .zip(vector)
            .map(|(a, b)| a * b)
            .sum();
        cosine >= CANARY_COSINE_MIN
    }
}

impl Plan {
    /// What the logic needs to know.
    pub fn ticket(
        &self,
        caller: CallerId,
        inputs: usize,
        bytes: usize,
        deadline: Option<Moment>,
        stream: Option<Streaming>,
    ) -> Ticket {
        Ticket {
            model: self.model,
            caller,
            inputs,
            bytes,
            deadline,
            stream,
        }
    }
}

/// The prompt's text. A request that names a prompt gets that one or an error; `input_type` and the model's
/// default apply only where the model has them, as in sentence-transformers.
fn prompt(
    request: &Request,
    prompts: &BTreeMap<String, String>,
    default: Option<&str>,
) -> Result<Option<String>, Refusal> {
    if let Some(name) = &request.prompt_name {
        return prompts.get(name).cloned().map(Some).ok_or_else(|| {
            let known: Vec<&str> = prompts.keys().map(String::as_str).collect();
            let known = if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            };
            Refusal::invalid(
                "prompt_name",
                format!("prompt_name is {name:?}, the model has: {known}"),
            )
        });
    }
    // The names that sentence-transformers' encode_query and encode_document look for.
    let names: &[&str] = match request.input_type {
        Some(InputType::Query) => &["query"],
        Some(InputType::Document) => &["document", "passage", "corpus"],
        None => &[],
    };
    let found = names
        .iter()
        .copied()
        .chain(default)
        .find_map(|name| prompts.get(name));
    Ok(found.filter(|text| !text.is_empty()).cloned())
}

/// Tokenizes all texts of a job; `step` is called at least once for each.
pub fn tokenize(
    model: &Model,
    texts: &[String],
    plan: &Plan,
    step: &mut dyn FnMut(),
) -> Result<Vec<Sequence>, Refusal> {
    let prompt = plan.prompt.as_deref();
    let sequence = |(index, text): (usize, &String)| {
        model
            .tokenize_in_steps(text, prompt, plan.truncate, step)
            .map_err(|error| match error {
                TokenizeError::TooLong { .. } => {
                    Refusal::new(ErrorType::InputTooLong, format!("input[{index}]: {error}")).on("input")
                }
                TokenizeError::Unknown { .. } | TokenizeError::Empty => {
                    Refusal::new(ErrorType::InvalidRequest, format!("input[{index}]: {error}")).on("input")
                }
                TokenizeError::Failed(_) => {
                    Refusal::new(ErrorType::Internal, format!("input[{index}]: {error}"))
                }
            })
    };
    texts.iter().enumerate().map(sequence).collect()
}

fn canary_vector(
    name: &str,
    model: &Model,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<f32>, CatalogueError> {
    let fails = |why: String| CatalogueError::Canary {
        name: name.to_owned(),
        why,
    };
    // The same way as a canary's job takes, with the model's own default prompt.
    let info = model.info();
    let prompt = info
        .default_prompt
        .as_ref()
        .and_then(|default| info.prompts.get(default))
        .map(String::as_str);
    let sequence = model
        .tokenize(CANARY_TEXT, prompt, true)
        .map_err(|error| fails(error.to_string()))?;
    let mut step = || progress(&format!("loading {name}: first canary"));
    let mut results = model
        .engine()
        .embed(&[&sequence], &mut step)
        .map_err(|error| fails(error.to_string()))?;
    let vector = results
        .pop()
        .expect("one result for one sequence")
        .map_err(|fault| fails(fault.to_string()))?;
    Ok(pooling::finish(vector, None, true))
}
