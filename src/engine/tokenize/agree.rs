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

/// Classes that set the normalizer of BERT.
const BERTS: [&str; 3] = ["Bert", "DistilBert", "MPNet"];
/// Classes that set the space in front of a text.
const SPACED: [&str; 3] = ["Roberta", "Qwen2", "GPT2"];

/// Refuses a tokenizer whose two files do not agree, and one that cuts long texts at their beginning. `text` is that of the
/// `tokenizer.json`, `file`.
pub fn check(dir: &Path, file: &Path, text: &str) -> Result<(), LoadError> {
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
    let class = config.tokenizer_class.as_deref().unwrap_or_default();
    let class = class.trim_end_matches("Fast").trim_end_matches("Tokenizer");
    let normalizer = &parts.normalizer;
    if BERTS.contains(&class) && normalizer["type"] == "BertNormalizer" {
        let pairs = [
            // What such a class takes where the key is absent.
            (
                "do_lower_case",
                Some(config.do_lower_case.unwrap_or(true)),
                "lowercase",
            ),
            ("strip_accents", config.strip_accents, "strip_accents"),
            (
                "tokenize_chinese_chars",
                config.tokenize_chinese_chars,
                "handle_chinese_chars",
            ),
        ];
        for (key, value, other) in pairs {
            if let (Some(value), Some(known)) = (value, normalizer[other].as_bool())
                && value != known
            {
                let supported = format!("{known}, as normalizer.{other} in tokenizer.json");
                return Err(refuse(&path, key, value, &supported));
            }
        }
        // Null there means as lowercase says.
        if let (Some(strips), Value::Null) = (config.strip_accents, &normalizer["strip_accents"])
            && normalizer["lowercase"] != strips
        {
            let supported = "null, as normalizer.strip_accents in tokenizer.json";
            return Err(refuse(&path, "strip_accents", strips, supported));
        }
    }
    if let (true, Some(space)) = (SPACED.contains(&class), config.add_prefix_space)
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
