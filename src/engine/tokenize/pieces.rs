//! Every tokenizer other than BERT's: byte-level BPE, Unigram, BPE of whole texts. The library makes the tokens;
//! what is decided here is where a long text may be cut, so that its first pages are enough.
//!
//! A text is cut before a single blank between two ASCII letters, if all parts of the tokenizer are known to see
//! two words there whatever stands around them. That is read from `tokenizer.json`: a part that is not known
//! leaves the text whole. A text of which no such place is found is cut where so many bytes were seen that
//! the tokens to be kept have long been decided ([`BYTES_A_TOKEN`]).

use super::TokenizeError;
use super::added::Added;
use crate::engine::LoadError;
use crate::engine::folder::parse;
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;
use tokenizers::Tokenizer;
use tokenizers::models::ModelWrapper;

/// Bytes of text looked at at once. Some 2000 tokens of English: most texts are done with the first.
const WINDOW: usize = 8192;
/// Bytes of a text without a place to cut that are looked at for each token wanted. A token of English has 4
/// bytes, and what the longest have (runs of blanks or dashes) is seldom more.
const BYTES_A_TOKEN: usize = 64;

/// The patterns of GPT-2's kin, each of which ends a word before a blank: of GPT-2, of GPT-4 and Llama 3, of Qwen.
const PATTERNS: [&str; 3] = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

/// `tokenizer.json`, as far as it decides where a text may be cut.
#[derive(Deserialize)]
struct Parts {
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
}

/// What is particular about the tokenizer.
#[derive(Debug)]
pub struct Pieces {
    /// Whether a text may be cut before a blank between two letters.
    blanks: bool,
}

impl Pieces {
    /// Reads what the tokenizer is made of.
    pub fn find(file: &Path, text: &str, tokenizer: &Tokenizer, added: &Added) -> Result<Pieces, LoadError> {
        let parts: Parts = parse(file, text)?;
        let normalizers = flat(parts.normalizer.as_ref(), "normalizers");
        let pre_tokenizers = flat(parts.pre_tokenizer.as_ref(), "pretokenizers");
        let known = normalizers.iter().all(|part| normalizer_keeps_blanks(part))
            && pre_tokenizers.iter().all(|part| pre_tokenizer_is_known(part));
        let ends_words =
            pre_tokenizers.iter().any(|part| ends_words(part)) || pieces_begin_with_blanks(tokenizer);
        // A token of the tokenizer's own may hold a blank; then a cut could fall into one that is only seen once
        // the text is normalised.
        let plain = added.contents().all(|token| !token.trim().contains([' ', '▁']));
        Ok(Pieces {
            blanks: known && ends_words && plain,
        })
    }

    /// The first tokens of a text: at least `enough` where there are as many. `step` is called for each window.
    pub fn content(
        &self,
        tokenizer: &Tokenizer,
        added: &Added,
        text: &str,
        enough: usize,
        tokens: &mut Vec<u32>,
        step: &mut dyn FnMut(),
    ) -> Result<(), TokenizeError> {
        let mut rest = text;
        while !rest.is_empty() && tokens.len() < enough {
            let (window, behind) = rest.split_at(self.window(added, rest, enough));
            let encoding = tokenizer
                .encode_fast(window, false)
                .map_err(|error| TokenizeError::Failed(error.to_string()))?;
            tokens.extend_from_slice(encoding.get_ids());
            rest = behind;
            step();
        }
        Ok(())
    }

    /// Bytes of the first window of a text.
    fn window(&self, added: &Added, text: &str, enough: usize) -> usize {
        if text.len() <= WINDOW {
            return text.len();
        }
        let most = (enough * BYTES_A_TOKEN).max(8 * WINDOW);
        if self.blanks {
            let bytes = text.as_bytes();
            let good = |at: &usize| {
                bytes[*at] == b' '
                    && bytes[at - 1].is_ascii_alphabetic()
                    && bytes.get(at + 1).is_some_and(u8::is_ascii_alphabetic)
                    && !added.touches(text, *at, true)
            };
            let near = (WINDOW / 2..WINDOW).rev().find(good);
            if let Some(at) = near.or_else(|| (WINDOW..text.len().min(most)).find(good)) {
                return at;
            }
        }
        (most..text.len())
            .find(|at| text.is_char_boundary(*at))
            .unwrap_or(text.len())
    }
}

/// The parts of a sequence, and of sequences in it, or the part itself.
fn flat<'a>(part: Option<&'a Value>, key: &str) -> Vec<&'a Value> {
    match part.filter(|part| !part.is_null()) {
        None => Vec::new(),
        Some(part) => match part.get(key).and_then(Value::as_array) {
            Some(parts) => parts.iter().flat_map(|part| flat(Some(part), key)).collect(),
            None => vec![part],
        },
    }
}

/// Whether a normaliser makes of two words with a blank between them what it makes of each, with a blank.
fn normalizer_keeps_blanks(part: &Value) -> bool {
    match part["type"].as_str() {
        Some("NFC" | "NFD" | "NFKC" | "NFKD" | "Nmt" | "Lowercase" | "StripAccents" | "Precompiled") => true,
        Some("Replace") => {
            let pattern = &part["pattern"];
            pattern["String"] == " " || pattern["Regex"] == " {2,}"
        }
        _ => false,
    }
}

/// Whether a pre-tokenizer makes the same of a word wherever its window begins, if that begins with a blank.
fn pre_tokenizer_is_known(part: &Value) -> bool {
    match part["type"].as_str() {
        Some("ByteLevel" | "Metaspace" | "WhitespaceSplit" | "Whitespace" | "Punctuation" | "Digits") => true,
        Some("Split") => {
            let pattern = &part["pattern"];
            pattern["String"] == " " || known_pattern(pattern)
        }
        _ => false,
    }
}

/// Whether a pre-tokenizer ends a word before a blank between letters.
fn ends_words(part: &Value) -> bool {
    match part["type"].as_str() {
        Some("ByteLevel") => part["use_regex"] != false,
        Some("Metaspace") => part["split"] != false,
        Some("WhitespaceSplit" | "Whitespace") => true,
        Some("Split") => {
            part["behavior"] == "Isolated" && part["invert"] != true && known_pattern(&part["pattern"])
        }
        _ => false,
    }
}

fn known_pattern(pattern: &Value) -> bool {
    pattern["Regex"]
        .as_str()
        .is_some_and(|regex| PATTERNS.contains(&regex))
}

/// Whether a BPE's pieces never hold a blank, written `▁`, behind anything but blanks, and all letters are pieces
/// or bytes. Then no merge joins two words, and no unknown letter is fused with what stands beside it.
fn pieces_begin_with_blanks(tokenizer: &Tokenizer) -> bool {
    let ModelWrapper::BPE(model) = tokenizer.get_model() else {
        return false;
    };
    let vocabulary = model.get_vocab();
    let known = |piece: &str| model.byte_fallback || vocabulary.contains_key(piece);
    ('a'..='z')
        .chain('A'..='Z')
        .all(|letter| known(letter.encode_utf8(&mut [0; 4])))
        && known("▁")
        && vocabulary
            .keys()
            .all(|piece| !piece.trim_start_matches('▁').contains('▁'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    // The tests of whole texts (tests/vectors) show little unless texts are cut at all.
    #[test]
    fn each_known_kind_is_cut_at_a_blank() {
        for name in ["roberta", "xlm-roberta", "modernbert", "qwen3", "gemma3"] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("tests/golden")
                .join(name);
            let file = folder.join("tokenizer.json");
            let text = std::fs::read_to_string(&file).unwrap();
            let tokenizer: Tokenizer = text.parse().unwrap();
            let added = Added::of(&tokenizer);
            let pieces = Pieces::find(&file, &text, &tokenizer, &added).unwrap();
            assert!(pieces.blanks, "{name}");
            let long = "so it is; ".repeat(2000);
            let window = pieces.window(&added, &long, 100);
            assert!(window < WINDOW && long[window..].starts_with(" i"), "{name}");
            // Where no letters stand around a blank, a text is looked at further, and not without end.
            assert_eq!(
                pieces.window(&added, &"北 ".repeat(100_000), 2000),
                128_000,
                "{name}"
            );
        }
    }

    #[test]
    fn parts_that_look_across_words_are_not_taken_for_known() {
        assert!(!normalizer_keeps_blanks(
            &json!({"type": "Prepend", "prepend": "▁"})
        ));
        assert!(!normalizer_keeps_blanks(
            &json!({"type": "Strip", "strip_left": true})
        ));
        assert!(!normalizer_keeps_blanks(
            &json!({"type": "Replace", "pattern": {"Regex": "a b"}, "content": ""})
        ));
        assert!(normalizer_keeps_blanks(
            &json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})
        ));
        assert!(!pre_tokenizer_is_known(
            &json!({"type": "Split", "pattern": {"Regex": "x"}})
        ));
        assert!(!ends_words(&json!({"type": "Metaspace", "split": false})));
        assert!(!ends_words(&json!({"type": "ByteLevel", "use_regex": false})));
        let parts = json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Sequence", "normalizers": [{"type": "Strip"}]}]});
        assert_eq!(flat(Some(&parts), "normalizers").len(), 2);
    }
}
