//! Token ids back to texts: clients of OpenAI's, LangChain's first of all, cut texts by the vocabulary of OpenAI's embedding
//! models and send what they cut. Here those ids mean nothing, so they are read as the texts that they stand for.
//!
//! The vocabulary is built when the first ids come, which takes a tenth of a second, and kept as one table.

use crate::job::request::no_token;
use crate::job::{ErrorType, Refusal};
use std::sync::OnceLock;

/// Special tokens included, cl100k_base ends here (tiktoken, `openai_public.py`: 100 276 is `<|endofprompt|>`).
const IDS_END: u32 = 100_277;

static KNOWN: OnceLock<Vocabulary> = OnceLock::new();

/// cl100k_base: that of all of OpenAI's embedding models since text-embedding-ada-002, and the one that LangChain takes for
/// a model that it does not know.
struct Vocabulary {
    /// What the tokens stand for, one behind the other in the order of their ids. A part of a character may be one.
    bytes: Box<[u8]>,
    /// Where each ends. A number that is no token's ends where it begins.
    ends: Box<[u32]>,
}

impl Vocabulary {
    fn build() -> Vocabulary {
        let library = tiktoken_rs::cl100k_base().expect("the vocabulary in this program is whole");
        let mut bytes = Vec::with_capacity(1 << 20);
        let ends = (0..IDS_END).map(|id| {
            bytes.extend(library.decode_bytes(&[id]).unwrap_or_default());
            bytes.len() as u32
        });
        let ends = ends.collect();
        Vocabulary {
            bytes: bytes.into(),
            ends,
        }
    }

    fn token(&self, id: u32) -> Option<&[u8]> {
        let at = usize::try_from(id).ok()?;
        let end = *self.ends.get(at)?;
        let begin = if at == 0 { 0 } else { self.ends[at - 1] };
        (begin < end).then(|| &self.bytes[begin as usize..end as usize])
    }
}

/// Whether the vocabulary is built, so that reading ids takes no longer than reading as much text.
pub(super) fn known() -> bool {
    KNOWN.get().is_some()
}

/// The texts that these ids stand for, at most `bytes_max` of them together. Where a text was cut inside a character there
/// is a replacement character (U+FFFD).
///
/// # Errors
/// Refusals that name `input`: a number that is no token's, texts that are too long.
pub(super) fn texts(inputs: &[Vec<u32>], bytes_max: usize) -> Result<Vec<String>, Refusal> {
    let vocabulary = KNOWN.get_or_init(Vocabulary::build);
    let mut room = bytes_max;
    let mut texts = Vec::with_capacity(inputs.len());
    for (at, ids) in inputs.iter().enumerate() {
        let mut bytes = Vec::with_capacity(4 * ids.len());
        for &id in ids {
            let unknown = || Refusal::invalid("input", format!("input[{at}]: {}", no_token(id)));
            bytes.extend_from_slice(vocabulary.token(id).ok_or_else(unknown)?);
        }
        room = room.checked_sub(bytes.len()).ok_or_else(|| {
            let message = format!("the tokens stand for more than {bytes_max} bytes of text");
            Refusal::new(ErrorType::InputTooLong, message).on("input")
        })?;
        texts.push(match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(cut) => String::from_utf8_lossy(cut.as_bytes()).into_owned(),
        });
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: usize = 1 << 20;

    fn one(ids: &[u32]) -> Result<String, Refusal> {
        texts(&[ids.to_vec()], ROOM).map(|mut texts| texts.remove(0))
    }

    /// Goal: whatever OpenAI's clients make of a text comes back as that text. Method: the library's own encoder.
    #[test]
    fn texts_come_back_as_they_were() {
        let library = tiktoken_rs::cl100k_base().unwrap();
        for text in [
            "",
            "a text",
            "  two\n\nparagraphs,\t\"quoted\" — and 1234567 numbers",
            "größer als 北京 или Москва, नमस्ते, 👩‍👩‍👧‍👦 \u{0} \u{200b}",
        ] {
            assert_eq!(one(&library.encode_ordinary(text)).unwrap(), text);
        }
        // OpenAI's cookbook, "How to count tokens with tiktoken".
        assert_eq!(
            one(&[83, 1609, 5963, 374, 2294, 0]).unwrap(),
            "tiktoken is great!"
        );
        assert_eq!(one(&[100_257]).unwrap(), "<|endoftext|>");
    }

    #[test]
    fn a_cut_inside_a_character_is_marked() {
        let library = tiktoken_rs::cl100k_base().unwrap();
        let ids = library.encode_ordinary("ab 👩‍👩‍👧‍👦");
        let cut = one(&ids[..2]).unwrap();
        assert!(cut.starts_with("ab ") && cut.ends_with('\u{fffd}'), "{cut:?}");
        let rest = one(&ids[2..]).unwrap();
        assert!(rest.starts_with('\u{fffd}') && rest.ends_with('👦'), "{rest:?}");
    }

    #[test]
    fn numbers_between_and_behind_the_tokens_are_named() {
        for id in [100_256, 100_261, 100_275, IDS_END, u32::MAX] {
            let refusal = texts(&[vec![5], vec![1, id]], ROOM).unwrap_err();
            assert_eq!(refusal.error, ErrorType::InvalidRequest);
            assert_eq!(refusal.param.as_deref(), Some("input"));
            assert_eq!(
                refusal.message,
                format!("input[1]: {id} is no token of cl100k_base")
            );
        }
    }

    /// Goal: a few bytes of ids cannot become more text than any body may hold. Method: the longest token, 128 blanks.
    #[test]
    fn the_texts_have_a_bound() {
        let library = tiktoken_rs::cl100k_base().unwrap();
        let blanks = library.encode_ordinary(&" ".repeat(128));
        assert!(blanks.len() <= 2, "{blanks:?}");
        let many = vec![blanks; 10];
        assert_eq!(texts(&many, 1280).unwrap().concat().len(), 1280);
        assert_eq!(texts(&many, 1279).unwrap_err().error, ErrorType::InputTooLong);
    }
}
