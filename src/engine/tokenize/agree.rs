//! Where `tokenizer_config.json` speaks of what `tokenizer.json` says, too: transformers lets the former change the latter.
//! Here both must agree.

use super::{parse, read, refuse};
use crate::engine::LoadError;
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;

/// `tokenizer_config.json`, as far as it may change tokens.
#[derive(Deserialize, Default)]
struct Config {
    tokenizer_class: Option<String>,
    truncation_side: Option<String>,
    do_lower_case: Option<bool>,
    strip_accents: Option<bool>,
    tokenize_chinese_chars: Option<bool>,
    add_prefix_space: Option<bool>,
    #[serde(default)]
    split_special_tokens: bool,
}

/// `config.json`, which names the class where the other does not.
#[derive(Deserialize, Default)]
struct Model {
    tokenizer_class: Option<String>,
}

/// Classes that set the normalizer of BERT.
const BERTS: [&str; 3] = ["Bert", "DistilBert", "MPNet"];
/// Classes that set the space in front of a text.
const SPACED: [&str; 3] = ["Roberta", "Qwen2", "GPT2"];

/// The class that a tokenizer is of where nothing names one, by `model_type`.
const CLASSES: [(&str, &str); 6] = [
    ("bert", "BertTokenizer"),
    ("distilbert", "BertTokenizer"),
    ("nomic_bert", "BertTokenizer"),
    ("mpnet", "MPNetTokenizer"),
    ("roberta", "RobertaTokenizer"),
    ("qwen3", "Qwen2Tokenizer"),
];

/// Refuses a tokenizer whose two files do not agree, and one that cuts long texts at their beginning. `text` is that of the
/// `tokenizer.json`, `file`.
pub fn check(dir: &Path, file: &Path, text: &str, model_type: &str) -> Result<(), LoadError> {
    /// The parts of `tokenizer.json` that are looked at; the vocabulary is passed over.
    #[derive(Deserialize)]
    struct Parts {
        #[serde(default)]
        truncation: Value,
        #[serde(default)]
        normalizer: Value,
        #[serde(default)]
        pre_tokenizer: Value,
    }
    let parts: Parts = parse(file, text)?;
    let path = dir.join("tokenizer_config.json");
    let config: Config = match path.exists() {
        true => parse(&path, &read(&path)?)?,
        false => Config::default(),
    };
    match (&config.truncation_side, parts.truncation.get("direction")) {
        (Some(side), _) if side != "right" => return Err(refuse(&path, "truncation_side", side, "right")),
        (None, Some(side)) if side != "Right" => {
            return Err(refuse(file, "truncation.direction", side, "Right"));
        }
        _ => {}
    }
    if config.split_special_tokens {
        return Err(refuse(&path, "split_special_tokens", true, "false"));
    }
    let usual = CLASSES.iter().find(|(kind, _)| *kind == model_type);
    let said = || -> Result<Model, LoadError> {
        let path = dir.join("config.json");
        match path.exists() {
            true => parse(&path, &read(&path)?),
            false => Ok(Model::default()),
        }
    };
    let class = match config.tokenizer_class {
        Some(class) => Some(class),
        None => said()?.tokenizer_class,
    };
    let class = class
        .as_deref()
        .or(usual.map(|(_, class)| *class))
        .unwrap_or_default();
    let class = class.trim_end_matches("Fast").trim_end_matches("Tokenizer");
    let normalizer = &parts.normalizer;
    if BERTS.contains(&class) && normalizer["type"] == "BertNormalizer" {
        // What such a class takes where a key is absent; without a word on accents they go where capitals go.
        let lower = config.do_lower_case.unwrap_or(true);
        let known = |key: &str| normalizer[key].as_bool();
        let lowers = known("lowercase").unwrap_or(true);
        let strips = known("strip_accents").unwrap_or(lowers);
        let chinese = known("handle_chinese_chars").unwrap_or(true);
        for (key, value, known, other) in [
            ("do_lower_case", lower, lowers, "lowercase"),
            (
                "strip_accents",
                config.strip_accents.unwrap_or(lower),
                strips,
                "strip_accents",
            ),
            (
                "tokenize_chinese_chars",
                config.tokenize_chinese_chars.unwrap_or(true),
                chinese,
                "handle_chinese_chars",
            ),
        ] {
            if value != known {
                let supported = format!("{known}, as normalizer.{other} in tokenizer.json");
                return Err(refuse(&path, key, value, &supported));
            }
        }
    }
    // Where the key is absent, all of these classes put none there.
    let space = config.add_prefix_space.unwrap_or(false);
    if SPACED.contains(&class)
        && let Some(known) = prefix_space(&parts.pre_tokenizer)
        && space != known
    {
        let supported = format!("{known}, as add_prefix_space in tokenizer.json");
        return Err(refuse(&path, "add_prefix_space", space, &supported));
    }
    Ok(())
}

/// Whether bytes are counted from a space on that is put in front of a text; nothing if no part makes bytes of it.
fn prefix_space(pre_tokenizer: &Value) -> Option<bool> {
    if pre_tokenizer["type"] == "ByteLevel" {
        return pre_tokenizer["add_prefix_space"].as_bool();
    }
    let parts = pre_tokenizer["pretokenizers"].as_array()?;
    parts.iter().find_map(prefix_space)
}
