//! Replies as a client reads them: whole ones, and the parts of a streamed job.

use super::reply::{TYPE_CHUNK, TYPE_DONE, TYPE_ERROR, TYPE_PROGRESS, TYPE_RESULT};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, de::DeserializeOwned};
use std::fmt;

/// One message of the service to a client.
#[derive(Debug)]
pub enum Heard {
    /// `embeddings.result`: all vectors of a job, and its end.
    Result(Vectors),
    /// `embeddings.chunk`: some vectors of a streamed job.
    Chunk(Vectors),
    /// `embeddings.progress`
    Progress(Progress),
    /// `embeddings.done`: a streamed job has ended.
    Done(Done),
    /// `embeddings.error`: the job has ended, for this reason.
    Error(ReceivedError),
}

/// Vectors with their places in the job.
#[derive(Debug, Default, Deserialize)]
pub struct Vectors {
    /// One entry for each input that is answered here.
    pub data: Vec<Item>,
    /// Tokens the model read for them.
    pub usage: Usage,
    /// Indices of those that were cut.
    #[serde(default)]
    pub truncated: Vec<usize>,
}

/// A vector.
#[derive(Debug, Deserialize)]
pub struct Item {
    /// Which input of the job it belongs to.
    pub index: usize,
    /// The vector, from base64 or from numbers.
    #[serde(deserialize_with = "vector")]
    pub embedding: Vec<f32>,
}

/// Token counts.
#[derive(Debug, Default, Deserialize)]
pub struct Usage {
    /// Tokens the model read.
    pub total_tokens: u64,
}

/// How far a streamed job is.
#[derive(Debug, Deserialize)]
pub struct Progress {
    /// The most attempts that anything of the job has taken so far; the first is 1.
    pub attempt: u32,
    /// Why the attempt before this one failed.
    pub last_error: Option<String>,
}

/// The end of a streamed job.
#[derive(Debug, Deserialize)]
pub struct Done {
    /// Inputs of the job.
    pub total: usize,
}

/// An error as a client reads it.
#[derive(Debug, Deserialize)]
pub struct ReceivedError {
    /// HTTP-like code.
    pub code: u16,
    /// One of the contract's types.
    pub r#type: String,
    /// For people.
    pub message: String,
    /// The field that is at fault, if one is.
    pub param: Option<String>,
    /// When a retry may succeed.
    pub retry_after_ms: Option<u64>,
}

#[derive(Deserialize)]
struct ErrorBody {
    error: ReceivedError,
}

/// Reads a message by its AMQP `type`; `None` for a type that this client does not know.
pub fn read(kind: &str, body: &[u8]) -> Option<Result<Heard, String>> {
    Some(match kind {
        TYPE_RESULT => json(body).map(Heard::Result),
        TYPE_CHUNK => json(body).map(Heard::Chunk),
        TYPE_PROGRESS => json(body).map(Heard::Progress),
        TYPE_DONE => json(body).map(Heard::Done),
        TYPE_ERROR => json(body).map(|ErrorBody { error }| Heard::Error(error)),
        _ => return None,
    })
}

fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

/// Little-endian f32 in base64, or an array of numbers. The text is decoded where it lies in the message.
fn vector<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f32>, D::Error> {
    struct Either;
    impl<'de> Visitor<'de> for Either {
        type Value = Vec<f32>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a vector in base64 or as numbers")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<f32>, E> {
            let bytes = STANDARD.decode(text).map_err(E::custom)?;
            if bytes.len() % 4 != 0 {
                return Err(E::custom(format!("a vector of {} bytes", bytes.len())));
            }
            let floats = bytes.chunks_exact(4);
            Ok(floats
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut numbers: A) -> Result<Vec<f32>, A::Error> {
            let mut vector = Vec::new();
            while let Some(number) = numbers.next_element()? {
                vector.push(number);
            }
            Ok(vector)
        }
    }
    deserializer.deserialize_any(Either)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: each type of message is read as what it is, in both encodings, and nonsense is an error.
    #[test]
    fn messages_are_read_by_their_type() {
        let body = br#"{"object":"list","model":"m","data":[{"index":1,"embedding":[2.0]},
            {"index":0,"embedding":"AACAPw=="}],"usage":{"prompt_tokens":9,"total_tokens":9},"truncated":[1]}"#;
        let Some(Ok(Heard::Chunk(chunk))) = read(TYPE_CHUNK, body) else {
            panic!("a chunk")
        };
        let found: Vec<_> = chunk.data.iter().map(|i| (i.index, &i.embedding[..])).collect();
        assert_eq!(found, [(1, &[2.0][..]), (0, &[1.0][..])]);
        assert_eq!((chunk.usage.total_tokens, &chunk.truncated[..]), (9, &[1][..]));
        let body =
            br#"{"done":3,"total":9,"rate":1.5,"attempt":2,"last_error":"no","rss_bytes":7,"job":"j"}"#;
        assert!(
            matches!(read(TYPE_PROGRESS, body), Some(Ok(Heard::Progress(p))) if p.attempt == 2 && p.last_error.is_some())
        );
        assert!(read("embeddings.heartbeat", b"{}").is_none());
        for wrong in [
            &b"{"[..],
            br#"{"data":[{"index":0,"embedding":"AAAA"}],"usage":{"total_tokens":1}}"#,
        ] {
            assert!(matches!(read(TYPE_RESULT, wrong), Some(Err(_))));
        }
    }
}
