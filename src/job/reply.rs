//! Replies as bytes: results in OpenAI's shape, and errors.

use super::Refusal;
use super::request::Encoding;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde::ser::{SerializeSeq, Serializer};

/// AMQP `type` of a reply with vectors.
pub const TYPE_RESULT: &str = "embeddings.result";
/// AMQP `type` of some of a streamed job's vectors.
pub const TYPE_CHUNK: &str = "embeddings.chunk";
/// AMQP `type` of a streamed job's progress.
pub const TYPE_PROGRESS: &str = "embeddings.progress";
/// AMQP `type` of a streamed job's end.
pub const TYPE_DONE: &str = "embeddings.done";
/// AMQP `type` of a refusal or failure.
pub const TYPE_ERROR: &str = "embeddings.error";
/// AMQP `app_id` of every message of the service.
pub const APP_ID: &str = "embeddings";
/// Header: the most attempts that anything of the job has taken so far, the first is 1. It never falls from one answer of a
/// job to the next, and is never above `max_attempts`.
pub const HEADER_ATTEMPT: &str = "x-attempt";
/// Header: equal fingerprints mean comparable vectors.
pub const HEADER_FINGERPRINT: &str = "x-model-fingerprint";

/// Upper bound of one JSON number of an f32 with its comma, such as `-0.000012345679,`.
const FLOAT_JSON_BYTES_MAX: usize = 17;
/// Upper bound of what surrounds one vector: `{"object":"embedding","index":…,"embedding":[]},`.
const ITEM_JSON_BYTES: usize = 80;
/// Upper bound of what surrounds all vectors, without the list of truncated inputs.
const RESULT_JSON_BYTES: usize = 512;
/// Upper bound of one index in the list of truncated inputs.
const INDEX_JSON_BYTES: usize = 8;

/// The vectors of a job, ready to be written.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The model's configured name.
    pub model: String,
    /// Index of the first of these inputs in the whole job.
    pub first: usize,
    /// One vector per input, in the order of the inputs.
    pub vectors: Vec<Vec<f32>>,
    /// How vectors are written.
    pub encoding: Encoding,
    /// Tokens the model read, special tokens included.
    pub tokens: u64,
    /// Indices of the inputs that were cut, in the whole job.
    pub truncated: Vec<usize>,
}

impl Answer {
    /// The body of an `embeddings.result` or `embeddings.chunk`.
    pub fn to_json(&self) -> Vec<u8> {
        let data = Data {
            first: self.first,
            vectors: &self.vectors,
            encoding: self.encoding,
        };
        let usage = Usage {
            prompt_tokens: self.tokens,
            total_tokens: self.tokens,
        };
        let body = ResultBody {
            object: "list",
            model: &self.model,
            data,
            usage,
            truncated: &self.truncated,
        };
        let capacity = result_bytes_max(
            self.vectors.len(),
            self.vectors.first().map_or(0, Vec::len),
            self.encoding,
        );
        let mut bytes = Vec::with_capacity(capacity);
        serde_json::to_writer(&mut bytes, &body).expect("writing plain data to memory cannot fail");
        bytes
    }
}

/// Most bytes that a result of `inputs` vectors of `dimensions` numbers can have.
pub fn result_bytes_max(inputs: usize, dimensions: usize, encoding: Encoding) -> usize {
    let vector = match encoding {
        Encoding::Float => dimensions.saturating_mul(FLOAT_JSON_BYTES_MAX),
        Encoding::Base64 => dimensions
            .saturating_mul(4)
            .div_ceil(3)
            .saturating_mul(4)
            .saturating_add(2),
    };
    inputs
        .saturating_mul(vector + ITEM_JSON_BYTES + INDEX_JSON_BYTES)
        .saturating_add(RESULT_JSON_BYTES)
}

#[derive(Serialize)]
struct ResultBody<'a> {
    object: &'static str,
    model: &'a str,
    data: Data<'a>,
    usage: Usage,
    truncated: &'a [usize],
}

/// How far a streamed job is.
#[derive(Debug, Clone, Serialize)]
pub struct Progress<'a> {
    /// Inputs whose vectors have arrived.
    pub done: usize,
    /// Inputs of the job.
    pub total: usize,
    /// Inputs a second, since the job began.
    pub rate: f64,
    /// Until the end, at this rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta_ms: Option<u64>,
    /// The most attempts that anything of the job has taken so far; the first is 1.
    pub attempt: u32,
    /// Why the attempt before this one failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<&'a str>,
    /// Memory of the worker that has it.
    pub rss_bytes: u64,
    /// The job's id.
    pub job: &'a str,
}

/// The end of a streamed job.
#[derive(Debug, Clone, Serialize)]
pub struct Done<'a> {
    object: &'static str,
    /// The model's configured name.
    model: &'a str,
    usage: Usage,
    /// Inputs of the job.
    total: usize,
    /// Since its first inputs were taken up.
    wall_ms: u64,
    /// The most attempts that anything of it took, as in the header.
    attempts: u32,
}

impl<'a> Done<'a> {
    /// A job of `total` inputs and `tokens` tokens has come to its end.
    pub fn new(model: &'a str, tokens: u64, total: usize, wall_ms: u64, attempts: u32) -> Done<'a> {
        let usage = Usage {
            prompt_tokens: tokens,
            total_tokens: tokens,
        };
        Done {
            object: "embeddings.done",
            model,
            usage,
            total,
            wall_ms,
            attempts,
        }
    }
}

#[derive(Debug, Clone, Serialize)]
struct Usage {
    prompt_tokens: u64,
    total_tokens: u64,
}

struct Data<'a> {
    first: usize,
    vectors: &'a [Vec<f32>],
    encoding: Encoding,
}

impl Serialize for Data<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(Some(self.vectors.len()))?;
        for (index, vector) in self.vectors.iter().enumerate() {
            let embedding = match self.encoding {
                Encoding::Float => Embedding::Float(vector),
                Encoding::Base64 => Embedding::Base64(to_base64(vector)),
            };
            seq.serialize_element(&Item {
                object: "embedding",
                index: self.first.saturating_add(index),
                embedding,
            })?;
        }
        seq.end()
    }
}

#[derive(Serialize)]
struct Item<'a> {
    object: &'static str,
    index: usize,
    embedding: Embedding<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Embedding<'a> {
    Float(&'a [f32]),
    Base64(String),
}

/// Little-endian f32 in standard base64 with padding, as OpenAI's clients expect it.
pub fn to_base64(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
    STANDARD.encode(bytes)
}

/// The body of an `embeddings.error`.
pub fn error_json(refusal: &Refusal) -> Vec<u8> {
    let body = ErrorBody {
        error: ErrorFields {
            code: refusal.error.code(),
            r#type: refusal.error.name(),
            message: &refusal.message,
            param: refusal.param.as_deref(),
            overloaded: (refusal.error == super::ErrorType::Overloaded).then_some(true),
            retry_after_ms: refusal.retry_after_ms,
        },
    };
    serde_json::to_vec(&body).expect("writing plain data to memory cannot fail")
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: ErrorFields<'a>,
}

#[derive(Serialize)]
struct ErrorFields<'a> {
    code: u16,
    r#type: &'static str,
    message: &'a str,
    param: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    overloaded: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::ErrorType;
    use crate::job::received::{self, Heard};
    use proptest::prelude::*;

    fn answer(vectors: Vec<Vec<f32>>, encoding: Encoding) -> Answer {
        Answer {
            first: 0,
            model: "m".into(),
            vectors,
            encoding,
            tokens: 7,
            truncated: vec![1],
        }
    }

    #[test]
    fn a_result_has_openai_s_shape() {
        let json = answer(vec![vec![0.5, -1.0]], Encoding::Float).to_json();
        assert_eq!(
            String::from_utf8(json).unwrap(),
            r#"{"object":"list","model":"m","data":[{"object":"embedding","index":0,"embedding":[0.5,-1.0]}],"usage":{"prompt_tokens":7,"total_tokens":7},"truncated":[1]}"#
        );
        assert_eq!(to_base64(&[1.0, -2.0]), "AACAPwAAAMA=");
    }

    #[test]
    fn only_an_overload_is_marked_as_one() {
        let busy = Refusal::new(ErrorType::Overloaded, "no room").retry_after(40);
        let json: serde_json::Value = serde_json::from_slice(&error_json(&busy)).unwrap();
        assert_eq!(json["error"]["overloaded"], true);
        assert_eq!(
            (
                json["error"]["code"].as_u64(),
                json["error"]["retry_after_ms"].as_u64()
            ),
            (Some(429), Some(40))
        );
        let wrong = error_json(&Refusal::invalid("input", "no"));
        let json: serde_json::Value = serde_json::from_slice(&wrong).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"error":{"code":400,"type":"invalid_request","message":"no","param":"input"}})
        );
    }

    proptest! {
        /// Goal: the bound on a reply's size is a bound, and what is written is read back to the bit.
        #[test]
        fn sizes_are_bounded_and_vectors_survive(
            vectors in (1usize..9).prop_flat_map(|d| proptest::collection::vec(
                proptest::collection::vec(-1.0f32..1.0, d..=d), 1..5)),
            base64: bool,
        ) {
            let encoding = if base64 { Encoding::Base64 } else { Encoding::Float };
            let json = answer(vectors.clone(), encoding).to_json();
            prop_assert!(json.len() <= result_bytes_max(vectors.len(), vectors[0].len(), encoding));
            let Some(Ok(Heard::Result(read))) = received::read(TYPE_RESULT, &json) else { panic!() };
            let back: Vec<Vec<f32>> = read.data.into_iter().map(|item| item.embedding).collect();
            prop_assert_eq!(back, vectors);
        }
    }
}
