//! WordPiece behind BERT's normaliser, window by window.
//!
//! The result is exactly that of the whole text: a word that a window cuts is carried over, and a window never
//! ends inside one of the tokenizer's own tokens or between a letter and its marks.

use super::TokenizeError;
use super::added::Added;
use crate::engine::LoadError;
use crate::engine::folder::refuse;
use std::path::Path;
use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{
    Model as _, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _, Tokenizer,
};
use unicode_normalization_alignments::char::canonical_combining_class;

/// Bytes of text looked at at once. Some 1500 tokens of English: most texts are done with the first.
const WINDOW: usize = 8192;

/// What is particular about the tokenizer.
#[derive(Debug)]
pub struct Words {
    /// A word of more characters is one unknown token, however long it is.
    word_chars: usize,
}

impl Words {
    /// Says whether the tokenizer is of this kind, and refuses WordPiece behind anything else.
    pub fn find(file: &Path, tokenizer: &Tokenizer) -> Result<Option<Words>, LoadError> {
        let ModelWrapper::WordPiece(model) = tokenizer.get_model() else {
            return Ok(None);
        };
        let refused = |key, known: &str| refuse(file, key, format!("another than {known}"), known);
        let Some(NormalizerWrapper::BertNormalizer(_)) = tokenizer.get_normalizer() else {
            return Err(refused("normalizer.type", "BertNormalizer"));
        };
        let Some(PreTokenizerWrapper::BertPreTokenizer(_)) = tokenizer.get_pre_tokenizer() else {
            return Err(refused("pre_tokenizer.type", "BertPreTokenizer"));
        };
        let word_chars = model.max_input_chars_per_word;
        Ok(Some(Words { word_chars }))
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
        // Normalised text whose last word may go on in the next window.
        let mut carried = String::new();
        let mut first = 0;
        while first < text.len() && tokens.len() < enough {
            let end = window_end(added, text, first);
            let last = end == text.len();
            let window = tokenizer
                .get_added_vocabulary()
                .extract_and_normalize(tokenizer.get_normalizer(), &text[first..end]);
            for (part, _, own) in window.get_splits(OffsetReferential::Normalized, OffsetType::None) {
                match own {
                    None => {
                        carried.push_str(part);
                        self.words(tokenizer, &mut carried, false, tokens)?;
                    }
                    Some(own) => {
                        self.words(tokenizer, &mut carried, true, tokens)?;
                        tokens.extend(own.iter().map(|token| token.id));
                    }
                }
            }
            if last {
                self.words(tokenizer, &mut carried, true, tokens)?;
            }
            first = end;
            step();
        }
        Ok(())
    }

    /// Turns the words of `text` into tokens. Unless `whole`, the last one stays there if nothing ends it.
    fn words(
        &self,
        tokenizer: &Tokenizer,
        text: &mut String,
        whole: bool,
        tokens: &mut Vec<u32>,
    ) -> Result<(), TokenizeError> {
        let failed = |error: tokenizers::Error| TokenizeError::Failed(error.to_string());
        let mut words = PreTokenizedString::from(text.as_str());
        if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut words).map_err(failed)?;
        }
        let words = words.get_splits(OffsetReferential::Normalized, OffsetType::None);
        let open = words
            .last()
            .map(|(word, ..)| *word)
            .filter(|word| !whole && text.ends_with(word));
        for (word, ..) in &words[..words.len() - usize::from(open.is_some())] {
            let pieces = tokenizer.get_model().tokenize(word).map_err(failed)?;
            tokens.extend(pieces.iter().map(|token| token.id));
        }
        // What is too long for a word needs no more than to be seen as such.
        *text = open.map_or_else(String::new, |word| {
            word.chars().take(self.word_chars + 1).collect()
        });
        Ok(())
    }
}

/// Where a window that begins at `first` ends: near [`WINDOW`], before a character that stands for itself,
/// and neither inside nor beside one of the tokenizer's own tokens.
fn window_end(added: &Added, text: &str, first: usize) -> usize {
    let mut end = first + WINDOW;
    if end >= text.len() {
        return text.len();
    }
    end = (first + 1..=end)
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(text.len());
    let marks = |at: usize| {
        text[at..]
            .chars()
            .next()
            .is_some_and(|c| canonical_combining_class(c) != 0)
    };
    let candidates = (first + WINDOW / 2..=end)
        .rev()
        .filter(|at| text.is_char_boundary(*at));
    // Where half a window is nothing but tokens, it ends between two of them. Where it is nothing but
    // marks, it ends between two of those: the order of marks is lost, which matters to none of the
    // normaliser's forms that keep them.
    (candidates
        .clone()
        .find(|at| !marks(*at) && !added.touches(text, *at, true)))
    .or_else(|| candidates.clone().find(|at| !added.touches(text, *at, false)))
    .unwrap_or(end)
}
