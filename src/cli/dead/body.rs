//! What the body of a dead job asks for, in a few words: read once, and nothing of it kept but the beginning
//! of the first texts. A body that the service has refused may be anything.

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// Texts whose beginning is kept.
const TEXTS_SHOWN: usize = 3;
/// Characters kept of each.
const TEXT_CHARS: usize = 80;
/// Characters kept of what a parser says.
const PROBLEM_CHARS: usize = 120;

/// What a body asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Body {
    /// How many inputs, where there is an `input`.
    pub inputs: Option<usize>,
    /// How the first texts begin.
    pub texts: Vec<String>,
    /// The model, if one is named.
    pub model: Option<String>,
    /// Why it cannot be read any further.
    pub problem: Option<String>,
}

/// Reads a body, whatever it is.
pub fn read(body: &[u8]) -> Body {
    match serde_json::from_slice::<Object>(body) {
        Ok(Object(body)) => body,
        Err(error) => Body {
            problem: Some(shortened(&error.to_string(), PROBLEM_CHARS)),
            ..Body::default()
        },
    }
}

/// The beginning of a text on one line, and a sign that there is more.
pub fn shortened(text: &str, chars_max: usize) -> String {
    // Cut first: a text may have megabytes.
    let begin: String = text.chars().take(chars_max + 1).collect();
    let mut short = super::plain(&begin);
    if let Some((end, _)) = short.char_indices().nth(chars_max) {
        short.truncate(end);
        short.push('…');
    }
    short
}

struct Object(Body);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Object;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut body = Body::default();
                while let Some(field) = map.next_key::<String>()? {
                    match field.as_str() {
                        "input" => {
                            let Input { count, texts } = map.next_value()?;
                            (body.inputs, body.texts) = (count, texts);
                        }
                        "model" => body.model = map.next_value::<Begin>()?.0,
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(Object(body))
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// A string or an array, counted.
#[derive(Default)]
struct Input {
    count: Option<usize>,
    texts: Vec<String>,
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Input, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = Input;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of strings")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Input, E> {
                Ok(Input {
                    count: Some(1),
                    texts: vec![shortened(text, TEXT_CHARS)],
                })
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Input, A::Error> {
                let mut input = Input::default();
                let mut count = 0usize;
                while input.texts.len() < TEXTS_SHOWN {
                    let Some(Begin(text)) = seq.next_element()? else {
                        input.count = Some(count);
                        return Ok(input);
                    };
                    input.texts.push(text.unwrap_or_else(|| "(no text)".to_owned()));
                    count += 1;
                }
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                input.count = Some(count);
                Ok(input)
            }
            fn visit_unit<E: de::Error>(self) -> Result<Input, E> {
                Ok(Input::default())
            }
        }
        deserializer.deserialize_any(Texts)
    }
}

/// How a string begins; `None` for anything else.
struct Begin(Option<String>);

impl<'de> Deserialize<'de> for Begin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Begin, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Begin;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Begin, E> {
                Ok(Begin(Some(shortened(text, TEXT_CHARS))))
            }
            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Begin, E> {
                Ok(Begin(None))
            }
            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Begin, E> {
                Ok(Begin(None))
            }
            fn visit_u64<E: de::Error>(self, _: u64) -> Result<Begin, E> {
                Ok(Begin(None))
            }
            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Begin, E> {
                Ok(Begin(None))
            }
            fn visit_unit<E: de::Error>(self) -> Result<Begin, E> {
                Ok(Begin(None))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Begin, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Begin(None))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Begin, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Begin(None))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_counted_and_texts_cut() {
        let body = read(br#"{"x":[{}],"input":["a","b\u001b[2J",{"c":[1]},"d","e"],"model":"mini"}"#);
        assert_eq!(body.inputs, Some(5));
        assert_eq!(body.texts, ["a", r"b\u{1b}[2J", "(no text)"]);
        assert_eq!((body.model.as_deref(), body.problem), (Some("mini"), None));
        let long = format!(r#"{{"input":"{}"}}"#, "ü".repeat(500));
        let body = read(long.as_bytes());
        assert_eq!(body.inputs, Some(1));
        assert_eq!(body.texts[0].chars().count(), TEXT_CHARS + 1);
        assert_eq!(read(br#"{"input":[]}"#).inputs, Some(0));
        assert_eq!(read(br#"{"input":null}"#), Body::default());
    }

    /// Goal: whatever the service has refused is told in a line.
    #[test]
    fn what_is_no_request_says_why() {
        let deep = "[".repeat(100_000);
        let text = format!("{{\"input\":{{\"{}\":1}}}}", "x".repeat(10_000));
        for wrong in [
            &b""[..],
            b"not json",
            b"\xff",
            b"[]",
            b"{} {}",
            deep.as_bytes(),
            text.as_bytes(),
        ] {
            let problem = read(wrong).problem.expect("there is a problem");
            assert!(!problem.is_empty() && problem.chars().count() <= PROBLEM_CHARS + 1);
        }
    }
}
