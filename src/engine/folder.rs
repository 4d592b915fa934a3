//! A sentence-transformers folder as written: which modules it chains and how each is set.
//!
//! What this engine does not know is refused by name. A guess would give vectors that look right and are not.

use super::LoadError;
use super::pooling::{Mode, Pooling};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// The chain of modules of a folder.
#[derive(Debug)]
pub(super) struct Folder {
    /// Where the transformer's files lie.
    pub transformer: PathBuf,
    /// How token vectors become one.
    pub pooling: Pooling,
    /// Dense layers behind the pooling, in order.
    pub dense: Vec<DenseSpec>,
    /// Whether the last module normalises.
    pub normalize: bool,
    /// Longest sequence, if the folder says so.
    pub max_seq_length: Option<usize>,
    /// Lower-case the text before tokenising.
    pub lower_case: bool,
    /// Named prompts.
    pub prompts: BTreeMap<String, String>,
    /// The prompt of an input that names none.
    pub default_prompt: Option<String>,
}

/// One Dense module.
#[derive(Debug)]
pub(super) struct DenseSpec {
    pub dir: PathBuf,
    pub input: usize,
    pub output: usize,
    pub bias: bool,
    pub activation: Activation,
}

/// What a Dense module does to its output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    Identity,
    Tanh,
    Relu,
    Sigmoid,
}

/// Reads a file that must be there.
pub(super) fn read(path: &Path) -> Result<String, LoadError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(LoadError::Missing {
            file: path.to_owned(),
        }),
        Err(source) => Err(LoadError::Io {
            file: path.to_owned(),
            source,
        }),
    }
}

/// Parses JSON; the error names file, line and column.
pub(super) fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, LoadError> {
    serde_json::from_str(text).map_err(|error| LoadError::Corrupt {
        file: path.to_owned(),
        why: error.to_string(),
    })
}

fn optional<T: DeserializeOwned + Default>(path: &Path) -> Result<T, LoadError> {
    if path.exists() {
        parse(path, &read(path)?)
    } else {
        Ok(T::default())
    }
}

/// Refuses a value by name.
pub(super) fn refuse(file: &Path, key: &str, value: impl ToString, supported: &str) -> LoadError {
    LoadError::Value {
        file: file.to_owned(),
        key: key.to_owned(),
        value: value.to_string(),
        supported: supported.to_owned(),
    }
}

impl Folder {
    /// Reads the chain of modules.
    pub fn open(dir: &Path) -> Result<Folder, LoadError> {
        let file = dir.join("modules.json");
        // They are chained as they are listed, whatever their numbers.
        let modules: Vec<Module> = parse(&file, &read(&file)?)?;
        let inside = |path: &str| {
            Path::new(path)
                .components()
                .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
        };
        if let Some(module) = modules.iter().find(|module| !inside(&module.path)) {
            let key = format!("path of module {}", module.idx);
            return Err(refuse(&file, &key, &module.path, "a folder inside the model's"));
        }
        let mut modules = modules
            .into_iter()
            .map(|module| (kind(&module.r#type), module))
            .peekable();
        let wrong = |module: &Module, supported: &str| {
            refuse(
                &file,
                &format!("type of module {}", module.idx),
                &module.r#type,
                supported,
            )
        };
        let order = "Transformer, Pooling, any Dense, then Normalize";

        let transformer = match modules.next() {
            Some((Some("Transformer"), module)) => dir.join(module.path),
            Some((_, module)) => return Err(wrong(&module, "Transformer as the first module")),
            None => return Err(refuse(&file, "modules", "[]", order)),
        };
        let pooling = match modules.next() {
            Some((Some("Pooling"), module)) => read_pooling(&dir.join(module.path).join("config.json"))?,
            Some((_, module)) => return Err(wrong(&module, "Pooling as the second module")),
            None => return Err(refuse(&file, "modules", "a Transformer alone", order)),
        };
        let mut dense = Vec::new();
        while let Some((_, module)) = modules.next_if(|(kind, _)| *kind == Some("Dense")) {
            dense.push(read_dense(&dir.join(module.path))?);
        }
        let normalize = modules.next_if(|(kind, _)| *kind == Some("Normalize"));
        if let Some((_, module)) = &normalize {
            let file = dir.join(&module.path).join("config.json");
            // A module without a folder of its own has no settings either.
            let names: Names = match module.path.is_empty() {
                true => Names::default(),
                false => optional(&file)?,
            };
            names.check(&file)?;
        }
        if let Some((_, module)) = modules.next() {
            return Err(wrong(&module, order));
        }

        let adapter = transformer.join("adapter_config.json");
        if adapter.exists() {
            let supported = "weights with the adapter merged into them";
            return Err(refuse(&adapter, "peft_type", "an adapter", supported));
        }
        let file = sentence_config(&transformer);
        let sentence: SentenceBert = optional(&file)?;
        sentence.check(&file)?;
        let file = dir.join("config_sentence_transformers.json");
        let settings: Settings = optional(&file)?;
        if let Some(kind) = settings
            .model_type
            .as_ref()
            .filter(|kind| *kind != "SentenceTransformer")
        {
            return Err(refuse(&file, "model_type", kind, "SentenceTransformer"));
        }
        if let Some(dimensions) = settings.truncate_dim {
            let supported = "null: who wants fewer dimensions asks for them";
            return Err(refuse(&file, "truncate_dim", dimensions, supported));
        }
        if let Some(name) = &settings.default_prompt_name
            && !settings.prompts.contains_key(name)
            // Every model has these two, as empty ones, since version 5 of sentence-transformers.
            && !["query", "document"].contains(&name.as_str())
        {
            return Err(refuse(&file, "default_prompt_name", name, "a name from prompts"));
        }
        Ok(Folder {
            transformer,
            pooling,
            dense,
            normalize: normalize.is_some(),
            max_seq_length: sentence.max_seq_length,
            lower_case: sentence.do_lower_case,
            default_prompt: settings
                .default_prompt_name
                .filter(|name| settings.prompts.contains_key(name)),
            prompts: settings
                .prompts
                .into_iter()
                .map(|(name, prompt)| (name, prompt.unwrap_or_default()))
                .collect(),
        })
    }
}

#[derive(Deserialize)]
struct Module {
    /// Only told.
    #[serde(default)]
    idx: usize,
    #[serde(default)]
    path: String,
    r#type: String,
}

/// `sentence_transformers.models.Pooling` and its newer places are all `Pooling`; other packages are unknown.
fn kind(name: &str) -> Option<&'static str> {
    let name = name.strip_prefix("sentence_transformers.")?;
    let last = name.rsplit('.').next()?;
    ["Transformer", "Pooling", "Dense", "Normalize"]
        .into_iter()
        .find(|known| *known == last)
}

/// The names that the Transformer module's own settings have had, in the order in which they are looked for.
pub const SENTENCE_CONFIGS: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];

/// The file of those settings, be it there or not.
pub(super) fn sentence_config(transformer: &Path) -> PathBuf {
    let there = SENTENCE_CONFIGS.iter().map(|name| transformer.join(name));
    let mut there = there.filter(|file| file.exists());
    there
        .next()
        .unwrap_or_else(|| transformer.join(SENTENCE_CONFIGS[0]))
}

#[derive(Deserialize, Default)]
struct SentenceBert {
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
    /// Written since version 6 of sentence-transformers, as are the next two.
    transformer_task: Option<String>,
    module_output_name: Option<String>,
    #[serde(default)]
    modality_config: BTreeMap<String, Value>,
    /// Limits and padding for queries and documents apart, which models of many vectors have.
    query_length: Option<Value>,
    document_length: Option<Value>,
    query_expansion: Option<Value>,
    /// Among them what is handed on to the configuration, the weights and the tokenizer.
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// What else would change vectors: settings for others, under the names they have had.
const HANDED_ON: [&str; 8] = [
    "config_args",
    "config_kwargs",
    "model_args",
    "model_kwargs",
    "tokenizer_args",
    "tokenizer_kwargs",
    "processor_kwargs",
    "processing_kwargs",
];
/// What of that changes no vector.
const HARMLESS: [&str; 9] = [
    "trust_remote_code",
    "torch_dtype",
    "dtype",
    "attn_implementation",
    "add_pooling_layer",
    "use_fast",
    "revision",
    "cache_dir",
    "token",
];

impl SentenceBert {
    fn check(&self, file: &Path) -> Result<(), LoadError> {
        let known = [
            ("transformer_task", &self.transformer_task, "feature-extraction"),
            ("module_output_name", &self.module_output_name, "token_embeddings"),
        ];
        for (key, value, known) in known {
            if let Some(value) = value.as_ref().filter(|value| *value != known) {
                return Err(refuse(file, key, value, known));
            }
        }
        let apart = [
            ("query_length", &self.query_length),
            ("document_length", &self.document_length),
            ("query_expansion", &self.query_expansion),
        ];
        for (key, value) in apart {
            if let Some(value) = value {
                return Err(refuse(
                    file,
                    key,
                    value,
                    "null: queries and documents have one limit",
                ));
            }
        }
        for (modality, config) in &self.modality_config {
            // A `message` would be put into the tokenizer's chat template first.
            if modality != "text" {
                return Err(refuse(file, "modality_config", modality, "text"));
            }
            for (key, known) in [("method", "forward"), ("method_output_name", "last_hidden_state")] {
                if let Some(value) = config.get(key).filter(|value| *value != known) {
                    let key = format!("modality_config.text.{key}");
                    return Err(refuse(file, &key, value, known));
                }
            }
        }
        for key in HANDED_ON {
            let Some(value) = self.others.get(key).filter(|value| !value.is_null()) else {
                continue;
            };
            let Some(settings) = value.as_object() else {
                return Err(refuse(file, key, value, "an object"));
            };
            let telling = |(key, value): &(&String, &Value)| {
                let empty = value.is_null() || value.as_object().is_some_and(|inner| inner.is_empty());
                !empty && !HARMLESS.contains(&key.as_str())
            };
            if let Some((name, value)) = settings.iter().find(telling) {
                return Err(refuse(file, &format!("{key}.{name}"), value, "none here"));
            }
        }
        Ok(())
    }
}

#[derive(Deserialize, Default)]
struct Settings {
    /// Absent before version 5 of sentence-transformers.
    model_type: Option<String>,
    /// Whoever loads it in Python gets vectors of so many numbers.
    truncate_dim: Option<usize>,
    /// None is an empty one there, too.
    #[serde(default)]
    prompts: BTreeMap<String, Option<String>>,
    default_prompt_name: Option<String>,
}

fn read_pooling(file: &Path) -> Result<Pooling, LoadError> {
    let config: BTreeMap<String, Value> = parse(file, &read(file)?)?;
    let mut modes = Vec::new();
    let named = match config.get("pooling_mode") {
        Some(Value::Array(names)) => names.as_slice(),
        Some(name) => std::slice::from_ref(name),
        None => &[],
    };
    for name in named {
        let mode = name.as_str().and_then(Mode::from_name);
        modes.push(mode.ok_or_else(|| refuse(file, "pooling_mode", name, Mode::NAMES))?);
    }
    if !config.contains_key("pooling_mode") {
        // The older form: a switch for each mode, joined in the order of the modes. Where none is on, the reference
        // takes the mean.
        for (key, value) in config
            .iter()
            .filter(|(key, on)| key.starts_with("pooling_mode_") && **on == true)
        {
            modes.push(Mode::from_key(key).ok_or_else(|| refuse(file, key, value, Mode::NAMES))?);
        }
        modes.sort();
        if modes.is_empty() {
            modes.push(Mode::Mean);
        }
    }
    if modes.is_empty() {
        return Err(refuse(file, "pooling_mode", "[]", Mode::NAMES));
    }
    let include_prompt = config.get("include_prompt").is_none_or(|value| *value != false);
    Ok(Pooling {
        modes,
        include_prompt,
    })
}

/// Which of the vectors a module changes; written since version 5 of sentence-transformers.
#[derive(Deserialize, Default)]
struct Names {
    module_input_name: Option<String>,
    module_output_name: Option<String>,
}

impl Names {
    fn check(&self, file: &Path) -> Result<(), LoadError> {
        let known = "sentence_embedding";
        for (key, name) in [
            ("module_input_name", &self.module_input_name),
            ("module_output_name", &self.module_output_name),
        ] {
            if let Some(name) = name.as_ref().filter(|name| *name != known) {
                return Err(refuse(file, key, name, known));
            }
        }
        Ok(())
    }
}

fn read_dense(dir: &Path) -> Result<DenseSpec, LoadError> {
    #[derive(Deserialize)]
    struct Config {
        in_features: usize,
        out_features: usize,
        #[serde(default = "yes")]
        bias: bool,
        #[serde(default = "tanh")]
        activation_function: String,
        #[serde(default)]
        use_residual: bool,
        #[serde(flatten)]
        names: Names,
    }
    fn yes() -> bool {
        true
    }
    /// What the reference takes where the key is absent.
    fn tanh() -> String {
        "torch.nn.modules.activation.Tanh".to_owned()
    }
    let file = dir.join("config.json");
    let config: Config = parse(&file, &read(&file)?)?;
    config.names.check(&file)?;
    if config.use_residual {
        return Err(refuse(&file, "use_residual", true, "false"));
    }
    let activation = match config.activation_function.as_str() {
        "torch.nn.modules.linear.Identity" => Activation::Identity,
        "torch.nn.modules.activation.Tanh" => Activation::Tanh,
        "torch.nn.modules.activation.ReLU" => Activation::Relu,
        "torch.nn.modules.activation.Sigmoid" => Activation::Sigmoid,
        other => {
            return Err(refuse(
                &file,
                "activation_function",
                other,
                "Identity, Tanh, ReLU, Sigmoid",
            ));
        }
    };
    Ok(DenseSpec {
        dir: dir.to_owned(),
        input: config.in_features,
        output: config.out_features,
        bias: config.bias,
        activation,
    })
}
