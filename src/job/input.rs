//! What stands in `input` of a request: texts, or the token ids of OpenAI's that some of its clients send instead.

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, SeqAccess, Visitor};
use std::fmt;

/// Elements of one array that are kept, above what any configuration allows a job to have: 32 MiB of empty strings
/// would else take twenty times their size.
const INPUTS_KEPT: usize = 1 << 20;
/// Token ids of one input: what OpenAI's own models take (API reference, "Create embeddings"), and so what its clients
/// cut to.
pub(super) const TOKENS_MAX: usize = 8192;

/// The value of `input`, at most [`INPUTS_KEPT`] of it.
#[derive(Debug, PartialEq)]
pub(super) enum Input {
    /// A string, or an array of strings. The empty array is one of those.
    Texts(Vec<String>),
    /// An array of token ids, or an array of such arrays, none of them above [`TOKENS_MAX`].
    Tokens(Vec<Vec<u32>>),
}

impl Input {
    /// How many texts it stands for.
    pub(super) fn texts(&self) -> usize {
        match self {
            Input::Texts(texts) => texts.len(),
            Input::Tokens(tokens) => tokens.len(),
        }
    }
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Input, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Input;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of strings")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Input, E> {
                Ok(Input::Texts(vec![text.to_owned()]))
            }
            fn visit_string<E: de::Error>(self, text: String) -> Result<Input, E> {
                Ok(Input::Texts(vec![text]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Input, A::Error> {
                // The first element says of which kind all must be.
                Ok(match seq.next_element::<First>()? {
                    None => Input::Texts(Vec::new()),
                    Some(First::Text(text)) => {
                        let next = |seq: &mut A| Ok(seq.next_element::<Text>()?.map(|Text(text)| text));
                        Input::Texts(rest(text, seq, INPUTS_KEPT, next)?.0)
                    }
                    Some(First::Id(id)) => {
                        let next = |seq: &mut A| Ok(seq.next_element::<Id>()?.map(|Id(id)| id));
                        Input::Tokens(vec![bounded(rest(id, seq, TOKENS_MAX, next)?)?])
                    }
                    Some(First::Ids(ids)) => {
                        let next = |seq: &mut A| Ok(seq.next_element::<Ids>()?.map(|Ids(ids)| ids));
                        Input::Tokens(rest(ids, seq, INPUTS_KEPT, next)?.0)
                    }
                })
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// The first element and those that follow, and how many there were in all. What is above `max` is only walked over.
fn rest<'de, A: SeqAccess<'de>, T>(
    first: T,
    mut seq: A,
    max: usize,
    next: impl Fn(&mut A) -> Result<Option<T>, A::Error>,
) -> Result<(Vec<T>, usize), A::Error> {
    let mut kept = vec![first];
    while kept.len() < max {
        match next(&mut seq)? {
            Some(element) => kept.push(element),
            None => {
                let all = kept.len();
                return Ok((kept, all));
            }
        }
    }
    let mut all = kept.len();
    while seq.next_element::<IgnoredAny>()?.is_some() {
        all += 1;
    }
    Ok((kept, all))
}

fn bounded<E: de::Error>((ids, all): (Vec<u32>, usize)) -> Result<Vec<u32>, E> {
    if all > TOKENS_MAX {
        return Err(E::custom(format_args!(
            "{all} token ids for one text, limit is {TOKENS_MAX}"
        )));
    }
    Ok(ids)
}

/// The first element of an array.
enum First {
    Text(String),
    Id(u32),
    Ids(Vec<u32>),
}

impl<'de> Deserialize<'de> for First {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<First, D::Error> {
        struct One;
        impl<'de> Visitor<'de> for One {
            type Value = First;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<First, E> {
                Ok(First::Text(text.to_owned()))
            }
            fn visit_string<E: de::Error>(self, text: String) -> Result<First, E> {
                Ok(First::Text(text))
            }
            fn visit_u64<E: de::Error>(self, id: u64) -> Result<First, E> {
                Id::new(id).map(|Id(id)| First::Id(id))
            }
            fn visit_i64<E: de::Error>(self, id: i64) -> Result<First, E> {
                Id::new(id).map(|Id(id)| First::Id(id))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<First, A::Error> {
                ids(seq).map(First::Ids)
            }
        }
        deserializer.deserialize_any(One)
    }
}

/// An element of an array of texts.
struct Text(String);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text, D::Error> {
        String::deserialize(deserializer).map(Text)
    }
}

/// A number that may be a token's; which ones are only the vocabulary knows.
struct Id(u32);

impl Id {
    fn new<E: de::Error>(id: impl TryInto<u32> + fmt::Display + Copy) -> Result<Id, E> {
        let known = id.try_into().ok();
        known
            .map(Id)
            .ok_or_else(|| E::custom(super::request::no_token(id)))
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Id, D::Error> {
        struct One;
        impl Visitor<'_> for One {
            type Value = Id;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a token id")
            }
            fn visit_u64<E: de::Error>(self, id: u64) -> Result<Id, E> {
                Id::new(id)
            }
            fn visit_i64<E: de::Error>(self, id: i64) -> Result<Id, E> {
                Id::new(id)
            }
        }
        deserializer.deserialize_any(One)
    }
}

/// An element of an array of arrays.
struct Ids(Vec<u32>);

impl<'de> Deserialize<'de> for Ids {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Ids, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Ids;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of token ids")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Ids, A::Error> {
                ids(seq).map(Ids)
            }
        }
        deserializer.deserialize_any(All)
    }
}

fn ids<'de, A: SeqAccess<'de>>(mut seq: A) -> Result<Vec<u32>, A::Error> {
    let Some(Id(first)) = seq.next_element()? else {
        return Ok(Vec::new());
    };
    let next = |seq: &mut A| Ok(seq.next_element::<Id>()?.map(|Id(id)| id));
    bounded(rest(first, seq, TOKENS_MAX, next)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Input, String> {
        serde_json::from_str(json).map_err(|error: serde_json::Error| error.to_string())
    }

    #[test]
    fn all_four_shapes_are_told_apart() {
        let texts = |texts: &[&str]| Ok(Input::Texts(texts.iter().map(ToString::to_string).collect()));
        assert_eq!(read(r#""a""#), texts(&["a"]));
        assert_eq!(read(r#"["a","b\n"]"#), texts(&["a", "b\n"]));
        assert_eq!(read("[]"), texts(&[]));
        assert_eq!(read("[1,2]"), Ok(Input::Tokens(vec![vec![1, 2]])));
        assert_eq!(
            read("[[1],[],[2,3]]"),
            Ok(Input::Tokens(vec![vec![1], vec![], vec![2, 3]]))
        );
    }

    #[test]
    fn a_mixture_is_none_of_them() {
        for (json, said) in [
            (r#"["a",1]"#, "expected a string"),
            (r#"["a",[1]]"#, "expected a string"),
            (r#"[1,"a"]"#, "expected a token id"),
            ("[1,[2]]", "expected a token id"),
            ("[[1],2]", "expected an array of token ids"),
            ("[[1],[2,[3]]]", "expected a token id"),
            ("[1.5]", "expected a string"),
            ("[1,2.5]", "expected a token id"),
            ("[-1]", "-1 is no token"),
            ("[[4294967296]]", "4294967296 is no token"),
            ("[null]", "expected a string"),
            ("{}", "expected a string or an array of strings"),
        ] {
            let error = read(json).expect_err(json);
            assert!(error.contains(said), "{json}: {error}");
        }
    }

    /// Goal: what is above a bound is refused or let go, and never kept.
    #[test]
    fn nothing_is_kept_above_its_bound() {
        let many = |n: usize| format!("[{}0]", "0,".repeat(n - 1));
        assert_eq!(
            read(&many(TOKENS_MAX)),
            Ok(Input::Tokens(vec![vec![0; TOKENS_MAX]]))
        );
        for json in [many(TOKENS_MAX + 2), format!("[[7],{}]", many(TOKENS_MAX + 2))] {
            let error = read(&json).unwrap_err();
            assert!(
                error.contains("8194 token ids for one text, limit is 8192"),
                "{error}"
            );
        }
        let empty = format!("[{}[]]", "[],".repeat(INPUTS_KEPT + 5));
        assert_eq!(read(&empty).unwrap().texts(), INPUTS_KEPT);
    }
}
