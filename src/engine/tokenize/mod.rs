//! Text to tokens, for texts of any size and content.
//!
//! A text is worked off window by window until there are enough tokens, so a text of megabytes costs no more
//! than its first pages. Where a window may end depends on the tokenizer: see `words` for WordPiece and `pieces`
//! for all others.

mod added;
mod agree;
mod pieces;
mod threads;
mod words;

pub use threads::{Progress, Report, Slices, Task, Tokenizers};

use super::LoadError;
use super::folder::{parse, read, refuse};
use super::model::MaxTokens;
use added::Added;
use pieces::Pieces;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use tokenizers::Tokenizer;
use tokenizers::normalizers::{Lowercase, NormalizerWrapper, Sequence as Normalizers};
use words::Words;

/// The tokens of one text, ready for an engine. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Token numbers, those that the tokenizer adds at both ends included.
    pub ids: Arc<[u32]>,
    /// Whether tokens were cut off to keep the model's limit.
    pub truncated: bool,
    /// Leading tokens that belong to the prompt, with what the tokenizer puts before it.
    pub prompt_tokens: usize,
}

/// Why a text has no tokens.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenizeError {
    /// The text is longer than the model takes, and was not to be cut.
    #[error("input has more than {limit} tokens, the model's limit")]
    TooLong {
        /// Tokens that the model takes.
        limit: usize,
    },
    /// A text without tokens, of a tokenizer that adds none of its own.
    #[error("input has no tokens")]
    Empty,
    /// The text holds a token that the tokenizer has and the model has not.
    #[error("input has token {token}, the model has {limit}")]
    Unknown {
        /// The token.
        token: u32,
        /// Tokens of the model.
        limit: usize,
    },
    /// The tokenizer failed, which a sound `tokenizer.json` never does.
    #[error("the tokenizer failed: {0}")]
    Failed(String),
}

/// A model's tokenizer.
#[derive(Debug)]
pub(super) struct Tokenize {
    tokenizer: Tokenizer,
    cutting: Cutting,
    added: Added,
    /// Tokens that mark something, such as the end of a text.
    special: BTreeSet<u32>,
    /// What stands before and behind each text.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    max_tokens: usize,
    /// Tokens of the model.
    vocabulary: usize,
}

/// How a long text is cut into windows.
#[derive(Debug)]
enum Cutting {
    Words(Words),
    Pieces(Pieces),
}

impl Tokenize {
    /// Loads `tokenizer.json`.
    pub fn load(
        dir: &Path,
        model_type: &str,
        limit: &MaxTokens,
        lower_case: bool,
        vocabulary: usize,
    ) -> Result<Tokenize, LoadError> {
        let file = dir.join("tokenizer.json");
        let text = read(&file)?;
        let mut tokenizer: Tokenizer = parse(&file, &text)?;
        let failed = |error: tokenizers::Error| LoadError::Corrupt {
            file: file.clone(),
            why: error.to_string(),
        };
        agree::check(dir, &file, &text, model_type)?;
        // The file's own settings are those of its last training run, not of this service.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(failed)?;
        let added = Added::of(&tokenizer);
        let cutting = match Words::find(&file, &tokenizer)? {
            Some(words) => Cutting::Words(words),
            None => Cutting::Pieces(Pieces::find(&file, &text, &tokenizer, &added)?),
        };
        if lower_case {
            lower_first(&mut tokenizer).map_err(failed)?;
        }
        // Tokens that were added behind the model's may go beyond its embeddings, as in EmbeddingGemma.
        let size = tokenizer.get_vocab_size(false);
        if size > vocabulary {
            let supported = format!("vocab_size of config.json, {vocabulary}");
            return Err(refuse(&file, "vocabulary", size, &supported));
        }
        let (prefix, suffix) = around(&file, &tokenizer)?;
        let max_tokens = limit.count;
        if prefix.len() + suffix.len() >= max_tokens {
            let around = prefix.len() + suffix.len();
            return Err(limit.refuse(&format!("more than the {around} tokens around a text")));
        }
        let special = tokenizer.get_added_tokens_decoder().into_iter();
        Ok(Tokenize {
            special: special
                .filter(|(_, token)| token.special)
                .map(|(id, _)| id)
                .collect(),
            cutting,
            added,
            prefix,
            suffix,
            max_tokens,
            vocabulary,
            tokenizer,
        })
    }

    /// See [`super::Model::tokenize`].
    pub fn sequence(
        &self,
        text: &str,
        prompt: Option<&str>,
        truncate: bool,
        step: &mut dyn FnMut(),
    ) -> Result<Sequence, TokenizeError> {
        let room = self.max_tokens - self.prefix.len() - self.suffix.len();
        let (mut content, mut prompt_tokens) = (Vec::new(), 0);
        match prompt.filter(|prompt| !prompt.is_empty()) {
            None => self.content(text, room + 1, &mut content, step)?,
            Some(prompt) => {
                self.content(prompt, room, &mut content, step)?;
                content.truncate(room);
                prompt_tokens = self.prompt_tokens(&content);
                content.clear();
                self.content(&[prompt, text].concat(), room + 1, &mut content, step)?;
            }
        }
        let truncated = content.len() > room;
        if truncated && !truncate {
            return Err(TokenizeError::TooLong {
                limit: self.max_tokens,
            });
        }
        content.truncate(room);
        let ids: Arc<[u32]> = self
            .prefix
            .iter()
            .chain(&content)
            .chain(&self.suffix)
            .copied()
            .collect();
        if ids.is_empty() {
            return Err(TokenizeError::Empty);
        }
        let limit = self.vocabulary;
        if let Some(token) = ids.iter().copied().find(|id| *id as usize >= limit) {
            return Err(TokenizeError::Unknown { token, limit });
        }
        Ok(Sequence {
            ids,
            truncated,
            prompt_tokens,
        })
    }

    /// Tokens of a prompt alone with all that stands around it, as the reference counts them: without the
    /// last one, if that is special.
    fn prompt_tokens(&self, content: &[u32]) -> usize {
        let all = || self.prefix.iter().chain(content).chain(&self.suffix);
        let last = all().last().is_some_and(|token| self.special.contains(token));
        all().count() - usize::from(last)
    }

    /// The first tokens of a text: at least `enough` where there are as many. `step` is called for each window.
    fn content(
        &self,
        text: &str,
        enough: usize,
        tokens: &mut Vec<u32>,
        step: &mut dyn FnMut(),
    ) -> Result<(), TokenizeError> {
        let Tokenize { tokenizer, added, .. } = self;
        match &self.cutting {
            Cutting::Words(words) => words.content(tokenizer, added, text, enough, tokens, step),
            Cutting::Pieces(pieces) => pieces.content(tokenizer, added, text, enough, tokens, step),
        }
    }
}

/// Lower-cases before all else that is done to a text, unless that is done already. The tokenizer's own tokens keep their
/// letters, as they are found before.
fn lower_first(tokenizer: &mut Tokenizer) -> Result<(), tokenizers::Error> {
    let lowers = |part: &NormalizerWrapper| matches!(part, NormalizerWrapper::Lowercase(_));
    let mut parts = vec![NormalizerWrapper::Lowercase(Lowercase)];
    match tokenizer.get_normalizer() {
        None => {}
        Some(NormalizerWrapper::Sequence(sequence)) => parts.extend_from_slice(sequence.as_ref()),
        Some(one) => parts.push(one.clone()),
    }
    if !parts[1..].iter().any(lowers) {
        tokenizer.with_normalizer(Some(Normalizers::new(parts)))?;
    }
    Ok(())
}

/// What is put before and behind a text: it shows when a text is encoded with and without it.
fn around(file: &Path, tokenizer: &Tokenizer) -> Result<(Vec<u32>, Vec<u32>), LoadError> {
    let failed = |error: tokenizers::Error| LoadError::Corrupt {
        file: file.to_owned(),
        why: error.to_string(),
    };
    let refused = |value, known| refuse(file, "post_processor", value, known);
    let bare = tokenizer.encode_fast("a", false).map_err(failed)?;
    let full = tokenizer.encode_fast("a", true).map_err(failed)?;
    let place = full
        .get_ids()
        .windows(bare.len().max(1))
        .position(|part| part == bare.get_ids());
    let Some(place) = place else {
        return Err(refused("one that changes the text's tokens", "a template"));
    };
    if full.get_type_ids().iter().any(|kind| *kind != 0) {
        return Err(refused("token types other than 0", "token type 0"));
    }
    let (prefix, rest) = full.get_ids().split_at(place);
    Ok((prefix.to_vec(), rest[bare.len()..].to_vec()))
}
