//! The tokenizer's own tokens, such as `[MASK]`, which are found in a text before all else.

use tokenizers::Tokenizer;

/// Their texts.
#[derive(Debug)]
pub struct Added {
    contents: Vec<String>,
    /// Bytes of the longest.
    longest: usize,
}

impl Added {
    /// Those of a tokenizer.
    pub fn of(tokenizer: &Tokenizer) -> Added {
        let contents: Vec<String> = tokenizer
            .get_added_tokens_decoder()
            .into_values()
            .map(|token| token.content)
            .filter(|content| !content.is_empty())
            .collect();
        let longest = contents.iter().map(String::len).max().unwrap_or(0);
        Added { contents, longest }
    }

    /// Their texts.
    pub fn contents(&self) -> impl Iterator<Item = &str> {
        self.contents.iter().map(String::as_str)
    }

    /// Whether one of them lies across `at`, or with `beside` begins or ends there.
    pub fn touches(&self, text: &str, at: usize, beside: bool) -> bool {
        let from = (0..=at.saturating_sub(self.longest))
            .rev()
            .find(|at| text.is_char_boundary(*at))
            .unwrap_or(0);
        let to = (at + self.longest..text.len())
            .find(|at| text.is_char_boundary(*at))
            .unwrap_or(text.len());
        let around = &text[from..to];
        self.contents.iter().any(|token| {
            around.match_indices(token.as_str()).any(|(place, _)| {
                let begin = from + place;
                let end = begin + token.len();
                (begin < at && at < end) || (beside && (begin == at || end == at))
            })
        })
    }
}
