//! The configured models, and what a request means for one of them: name to model, prompt, dimensions.

use super::loader::Order;
use crate::clock::Moment;
use crate::config::{Config, ModelDirError};
use crate::engine::{LoadError, LoadOptions, LoadStep, Model, ModelInfo, Outline, pooling};
use crate::job::reply::result_bytes_max;
use crate::job::request::{Encoding, InputType, Request};
use crate::job::{ErrorType, Refusal};
use crate::logic::ModelSetup;
use crate::logic::event::{CallerId, ModelId, Streaming, Ticket};
use crate::telemetry;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a canary says: long enough to reach every layer and kernel, short enough to cost nothing.
const CANARY_TEXT: &str =
    "The canary sings while the air is good; when it falls silent, leave the mine at once.";
/// A canary's vector below this cosine to the one computed at start is wrong (contract, section 5).
const CANARY_COSINE_MIN: f64 = 0.999;

/// Largest answer by HTTP, in bytes: what a message may have where RabbitMQ takes the largest. It is there twice while it is
/// written, and below it the watch over memory turns new jobs away.
const HTTP_ANSWER_BYTES_MAX: usize = 128 << 20;

/// By which way a job came, and its answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As messages of the broker.
    Broker,
    /// On a connection of its caller's own.
    Connection,
}

/// Why the models cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// There is no folder for a configured model.
    #[error(transparent)]
    Folder(#[from] ModelDirError),
    /// A folder does not load.
    #[error("model {name}: {why}")]
    Load {
        /// Its configured name.
        name: String,
        /// Why.
        why: LoadError,
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

impl CatalogueError {
    /// Whether it is found again however often it is tried: then a start ends as with any other wrong configuration.
    pub fn is_settled(&self) -> bool {
        match self {
            CatalogueError::Folder(_) => true,
            CatalogueError::Load { why, .. } => !why.may_pass(),
            CatalogueError::Canary { .. } => false,
        }
    }
}

/// How a model is loaded for the first time.
#[derive(Debug, Clone)]
pub struct Unproven {
    name: String,
    dir: PathBuf,
    options: LoadOptions,
}

impl Unproven {
    /// Loads the model and has it embed the simplest sentence; `progress` is told of each step, with a line for people.
    ///
    /// # Errors
    /// The folder does not load, or the model cannot embed.
    pub fn load(&self, progress: &mut dyn FnMut(String)) -> Result<Proven, CatalogueError> {
        let name = &self.name;
        let before = telemetry::rss_bytes().unwrap_or(0);
        let model = Model::load(&self.dir, &self.options, &mut |step| {
            progress(match step {
                LoadStep::Read { bytes } => format!("loading {name}: {} MB read", bytes / 1_000_000),
                LoadStep::Packed => format!("loading {name}: packing weights"),
            });
        })
        .map_err(|why| CatalogueError::Load {
            name: name.clone(),
            why,
        })?;
        let mut step = || progress(format!("loading {name}: first canary"));
        let reference = canary_vector(name, &model, &mut step)?;
        let info = model.info().clone();
        let grown = telemetry::rss_bytes().unwrap_or(0).saturating_sub(before);
        Ok(Proven {
            bytes: grown.max(info.weights_bytes),
            recipe: Recipe {
                name: name.clone(),
                // A trial decides but once: a model that comes back must be the one that went.
                options: LoadOptions {
                    precision: info.precision.setting(),
                    device: info.device.setting(),
                    ..self.options.clone()
                },
                info,
                reference,
            },
            model: Arc::new(model),
        })
    }
}

/// A model that has embedded its first sentence.
#[derive(Debug)]
pub struct Proven {
    /// The model, in memory from now on.
    pub model: Arc<Model>,
    /// Memory that it takes, in bytes.
    pub bytes: u64,
    recipe: Recipe,
}

/// How a model is loaded once more, and by what it is known again.
#[derive(Debug)]
pub struct Recipe {
    name: String,
    options: LoadOptions,
    /// What it was at the start.
    info: ModelInfo,
    /// The canary's vector, computed at start.
    reference: Vec<f32>,
}

impl Recipe {
    /// Loads the model once more; `step` is called at all progress.
    ///
    /// # Errors
    /// In words: it does not load, or it is another model than the one of the start, whose vectors cannot be compared.
    pub fn load_again(&self, dir: &Path, step: &mut dyn FnMut()) -> Result<Model, String> {
        let model = Model::load(dir, &self.options, &mut |_| step()).map_err(|error| error.to_string())?;
        let vector = canary_vector(&self.name, &model, step).map_err(|error| error.to_string())?;
        if model.info() != &self.info || !is_near(&self.reference, &vector) {
            return Err("its folder has changed since the service was started; restart the service".into());
        }
        Ok(model)
    }
}

/// One model.
#[derive(Debug)]
pub struct Entry {
    /// Its configured name.
    pub name: String,
    /// What its folder says of it.
    pub outline: Outline,
    /// How it was loaded first.
    unproven: Unproven,
    /// What it is, once it has been loaded, and whether or not it is in memory.
    recipe: Option<Arc<Recipe>>,
    /// The model, while it is in memory.
    model: Option<Arc<Model>>,
    /// What the logic has to know of it.
    setup: ModelSetup,
    /// Its own bound on the inputs of a job.
    max_inputs: usize,
    /// The same of a streamed one.
    max_stream_inputs: usize,
    /// Inputs of one chunk.
    batch_inputs: usize,
}

/// All models.
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

/// Looks at a configured model before its weights are read: where it is, and what its folder says of it.
pub fn look(config: &Config, name: &str) -> Result<(Unproven, Outline), CatalogueError> {
    let dir = config.model_dir(name)?;
    let settings = &config.models[name];
    let options = LoadOptions {
        precision: settings.precision,
        device: settings.device,
        ..LoadOptions::default()
    };
    let name = name.to_owned();
    match Model::outline(&dir, &options) {
        Ok(outline) => Ok((Unproven { name, dir, options }, outline)),
        Err(why) => Err(CatalogueError::Load { name, why }),
    }
}

impl Catalogue {
    /// Looks at every configured model, and loads none: what a request means can be told before.
    ///
    /// # Errors
    /// Whatever can be seen to be wrong with a folder before its weights are read.
    pub fn survey(config: &Config) -> Result<Catalogue, CatalogueError> {
        let mut entries = Vec::new();
        let mut names = BTreeMap::new();
        for (name, settings) in &config.models {
            let id = ModelId(entries.len());
            for alias in settings.aliases.iter().chain([name]) {
                names.insert(alias.clone(), id);
            }
            let (unproven, outline) = look(config, name)?;
            let limits = config.limits_of(name);
            entries.push(Entry {
                name: name.clone(),
                model: None,
                setup: ModelSetup {
                    max_queue: settings.max_queue,
                    max_inflight: settings.max_inflight,
                    idle_unload: settings.idle_unload,
                    kept: limits.idle_unload.is_zero() || *name == config.default_model,
                    bytes: outline.weights_bytes,
                },
                outline,
                unproven,
                recipe: None,
                max_inputs: limits.max_inputs,
                max_stream_inputs: limits.max_stream_inputs,
                batch_inputs: limits.batch_inputs,
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

    /// New limits hold for what comes from now on; a model's own go before them as they did.
    pub fn reload(&mut self, config: &Config) {
        for entry in &mut self.entries {
            let limits = config.limits_of(&entry.name);
            entry.max_inputs = limits.max_inputs;
            entry.max_stream_inputs = limits.max_stream_inputs;
            entry.batch_inputs = limits.batch_inputs;
        }
    }

    /// The orders to load every model for the first time, the default one first.
    pub fn first_orders(&self) -> VecDeque<Order> {
        let others = (0..self.entries.len())
            .map(ModelId)
            .filter(|id| *id != self.default);
        let order = |id| Order::First(id, self.entry(id).unproven.clone());
        [self.default].into_iter().chain(others).map(order).collect()
    }

    /// The model is in memory for the first time.
    pub fn prove(&mut self, id: ModelId, proven: Proven) {
        let entry = &mut self.entries[id.0];
        (entry.recipe, entry.model) = (Some(Arc::new(proven.recipe)), Some(proven.model));
    }

    /// A model.
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

    /// The number of the default model.
    pub fn default_id(&self) -> ModelId {
        self.default
    }

    /// What the logic has to know of each model.
    pub fn setups(&self) -> Vec<ModelSetup> {
        self.entries.iter().map(|entry| entry.setup).collect()
    }

    /// The model itself, if it is in memory.
    pub fn model(&self, id: ModelId) -> Option<Arc<Model>> {
        self.entry(id).model.clone()
    }

    /// The model is in memory from now on.
    pub fn put(&mut self, id: ModelId, model: Arc<Model>) {
        self.entries[id.0].model = Some(model);
    }

    /// The order to load a model again.
    pub fn load_order(&self, id: ModelId) -> Order {
        let entry = self.entry(id);
        Order::Load(id, entry.unproven.dir.clone(), entry.known().clone())
    }

    /// The order to let go of a model, which the catalogue has done then.
    pub fn unload_order(&mut self, id: ModelId) -> Option<Order> {
        let model = self.entries[id.0].model.take()?;
        Some(Order::Unload(id, model))
    }

    /// What a request means here, or what is wrong with it.
    pub fn plan(&self, request: &Request, way: Way) -> Result<Plan, Refusal> {
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
        let info = &entry.outline;
        if let Some(dimensions) = request.dimensions.filter(|&n| n > info.dimensions) {
            let message = format!("dimensions is {dimensions}, the model has {}", info.dimensions);
            return Err(Refusal::invalid("dimensions", message));
        }
        let dimensions = request.dimensions.unwrap_or(info.dimensions);
        let bytes = |inputs| result_bytes_max(inputs, dimensions, request.encoding);
        let (answer_max, takes) = match way {
            Way::Broker => (self.max_message_bytes, "the broker takes"),
            Way::Connection => (HTTP_ANSWER_BYTES_MAX, "one by HTTP may have"),
        };
        let chunk = request.stream.then(|| {
            let fits = |chunk: &usize| bytes(*chunk) <= answer_max;
            let halves = std::iter::successors(Some(entry.batch_inputs), |chunk| Some(chunk / 2));
            halves.take_while(|chunk| *chunk > 0).find(fits).unwrap_or(1)
        });
        let answer = bytes(chunk.unwrap_or(inputs));
        if answer > answer_max {
            let message = format!(
                "the answer may need {answer} bytes, {takes} {answer_max}: send fewer texts per job, or ask for base64"
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
        is_near(&self.entry(model).known().reference, vector)
    }
}

impl Entry {
    /// Names how its vectors are made: see [`ModelInfo::fingerprint`]. There are some, so it has been loaded.
    pub fn fingerprint(&self, dimensions: usize) -> String {
        self.known().info.fingerprint(dimensions)
    }

    fn known(&self) -> &Arc<Recipe> {
        self.recipe
            .as_ref()
            .expect("the logic asks nothing of a model that has not been loaded once")
    }
}

/// Whether a canary's vector is the one computed at start, as near as rounding allows. By the angle alone: whether a model's
/// vectors have length one is its own affair, and a canary goes the way that its own setting says.
fn is_near(reference: &[f32], vector: &[f32]) -> bool {
    // In 64 bits: squares of large components leave the range of 32.
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
        products.sum()
    };
    let cosine = dot(reference, vector) / (dot(reference, reference) * dot(vector, vector)).sqrt();
    // A comparison with NaN is false, as it should be.
    cosine >= CANARY_COSINE_MIN
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
    // The names that sentence-transformers' encode_query and encode_document look for. To either a default is none of theirs.
    let names: &[&str] = match request.input_type {
        Some(InputType::Query) => &["query"],
        Some(InputType::Document) => &["document", "passage", "corpus"],
        None => &[],
    };
    let default = default.filter(|_| request.input_type.is_none());
    let found = names
        .iter()
        .copied()
        .chain(default)
        .find_map(|name| prompts.get(name));
    Ok(found.filter(|text| !text.is_empty()).cloned())
}

fn canary_vector(name: &str, model: &Model, step: &mut dyn FnMut()) -> Result<Vec<f32>, CatalogueError> {
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
    let mut results = model
        .engine()
        .embed(&[&sequence], step)
        .map_err(|error| fails(error.to_string()))?;
    let vector = results
        .pop()
        .expect("one result for one sequence")
        .map_err(|fault| fails(fault.to_string()))?;
    Ok(pooling::finish(vector, None, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: an input takes the prompt that sentence-transformers would give it. Method: a folder with one prompt that is the default
    /// one, which that gives to neither a document nor, where it is the document's, to a query.
    #[test]
    fn a_default_prompt_is_for_inputs_of_no_type() {
        let limits = crate::job::request::RequestLimits {
            inputs_max: 1,
            stream_inputs_max: 1,
            body_bytes_max: 1 << 10,
        };
        let given = |kind: Option<&str>, own: &str| {
            let mut body = serde_json::json!({"input": "x"});
            if let Some(kind) = kind {
                body["input_type"] = kind.into();
            }
            let body = serde_json::to_vec(&body).unwrap();
            let request = crate::job::request::decode(&Default::default(), &body, limits).unwrap();
            let prompts = BTreeMap::from([(own.to_owned(), format!("{own}: "))]);
            prompt(&request, &prompts, Some(own)).unwrap()
        };
        assert_eq!(given(None, "query").as_deref(), Some("query: "));
        assert_eq!(given(Some("query"), "query").as_deref(), Some("query: "));
        assert_eq!(given(Some("document"), "query"), None);
        assert_eq!(given(Some("query"), "document"), None);
        assert_eq!(given(Some("document"), "passage").as_deref(), Some("passage: "));
    }

    /// Goal: a canary is judged by its direction alone, however long the model's vectors are.
    #[test]
    fn a_canary_is_judged_by_its_direction() {
        let reference = [0.6, 0.8];
        let turned = |degrees: f32, length: f32| {
            let angle = 0.8_f32.atan2(0.6) + degrees.to_radians();
            [length * angle.cos(), length * angle.sin()]
        };
        // The cosine of 2.5 degrees is 0.99905, that of 2.6 degrees 0.99897.
        for length in [1e-20, 0.5, 1.0, 7.0, 1e30] {
            assert!(is_near(&reference, &turned(0.0, length)), "length {length}");
            assert!(is_near(&reference, &turned(2.5, length)), "length {length}");
            assert!(!is_near(&reference, &turned(2.6, length)), "length {length}");
            assert!(!is_near(&reference, &turned(180.0, length)), "length {length}");
        }
        for nothing in [0.0, f32::NAN, f32::INFINITY] {
            assert!(!is_near(&reference, &[nothing; 2]), "{nothing}");
        }
    }
}
