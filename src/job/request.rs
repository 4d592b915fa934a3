//! A request as it comes from the wire: properties and body to [`Request`], or a [`Refusal`] that names
//! the field. Whatever the bytes are, this returns; it allocates no more than a few times their length.

use super::input::Input;
use super::reply_to::DIRECT_REPLY_TO;
use super::trace::TraceParent;
use super::{ErrorType, Refusal};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What of a message's properties and headers matters, free of any client library's types.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties {
    /// Where the answer goes; empty counts as absent.
    pub reply_to: Option<String>,
    /// Given back with the answer.
    pub correlation_id: Option<String>,
    /// Job id and idempotency key.
    pub message_id: Option<String>,
    /// `application/json` or absent.
    pub content_type: Option<String>,
    /// Must be absent, or a spelling of "as it is".
    pub content_encoding: Option<String>,
    /// AMQP `timestamp`, seconds since the Unix epoch.
    pub timestamp_s: Option<u64>,
    /// `x-budget-ms`: how long the caller will wait.
    pub budget_ms: Number,
    /// `x-sent-at-ms`: when the caller sent, milliseconds since the Unix epoch.
    pub sent_at_ms: Number,
    /// The trace that it belongs to.
    pub traceparent: Option<TraceParent>,
    /// How often it has been delivered before: `x-delivery-count` of quorum queues, else 1 if the broker says so.
    pub delivery_count: u64,
}

impl Properties {
    /// Whose job it is, as far as that can be told: jobs with one reply queue are one caller's, for who reads the
    /// answers has asked. A direct reply-to (`amq.rabbitmq.reply-to.CHANNEL.CONSUMER`) is one channel's.
    pub fn caller(&self) -> Option<&str> {
        let name = self.reply_to.as_deref()?;
        let channel = name.rsplit_once('.').map(|(channel, _)| channel);
        channel
            .filter(|_| name.starts_with(DIRECT_REPLY_TO))
            .or(Some(name))
    }

    /// When its sender sent it, at the latest, in milliseconds since the Unix epoch; if that is known.
    pub fn sent_ms(&self) -> Option<u64> {
        match self.sent_at_ms {
            Number::Value(ms) => Some(ms),
            // It may have been sent at the end of that second.
            Number::Absent | Number::Wrong => {
                Some(self.timestamp_s?.saturating_mul(1000).saturating_add(999))
            }
        }
    }
}

/// A header that should be a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Number {
    /// Not there.
    #[default]
    Absent,
    /// A number, not negative.
    Value(u64),
    /// Something else.
    Wrong,
}

/// How vectors are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// A JSON array of numbers.
    #[default]
    Float,
    /// Little-endian f32 in base64.
    Base64,
}

/// What the text is, for models that were trained with prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum InputType {
    /// A question.
    Query,
    /// What is searched.
    Document,
}

/// A well-formed request, which is written as it was read. That the model exists, has the prompt and the dimensions
/// is checked elsewhere.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Request {
    /// 1 to `max_inputs` texts.
    pub input: Vec<String>,
    /// Name or alias; `None` is the default model.
    pub model: Option<String>,
    /// How vectors are written.
    #[serde(rename = "encoding_format")]
    pub encoding: Encoding,
    /// Matryoshka truncation, at least 1.
    pub dimensions: Option<usize>,
    /// Applies the model's prompt for it.
    pub input_type: Option<InputType>,
    /// A named prompt of the model; goes before [`Request::input_type`].
    pub prompt_name: Option<String>,
    /// Cut inputs over the model's limit.
    pub truncate: bool,
    /// L2-normalise; `None` is the model's own setting.
    pub normalize: Option<bool>,
    /// Replies per chunk.
    pub stream: bool,
}

impl Request {
    /// The body of a message that asks for the same.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data is always written")
    }
}

/// How much of a body that is no request is shown to its sender.
const SHOWN_BYTES: usize = 20;

/// Bounds on one request.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimits {
    /// Inputs of one job that is not streamed.
    pub inputs_max: usize,
    /// Inputs of one job that is.
    pub stream_inputs_max: usize,
    /// Bytes of one body.
    pub body_bytes_max: usize,
}

/// What is said to one who sends tokens where only texts are taken.
const TOKENS: &str = "token ids are taken by HTTP only, send the texts themselves";

/// What is said of a number that is no token's.
pub fn no_token(id: impl fmt::Display) -> String {
    format!("{id} is no token of cl100k_base")
}

/// Reads a request. Errors are answers to the sender, never faults of ours.
pub fn decode(properties: &Properties, body: &[u8], limits: RequestLimits) -> Result<Request, Refusal> {
    let (request, tokens) = decode_tokens(properties, body, limits)?;
    match tokens {
        None => Ok(request),
        Some(_) => Err(Refusal::invalid("input", format!("input: {TOKENS}"))),
    }
}

/// A request, and the token ids of its texts where those were sent, an array for each: then it is without its texts, which
/// whoever has the vocabulary puts in.
pub type Spelled = (Request, Option<Vec<Vec<u32>>>);

/// Reads a request whose texts may be token ids.
pub fn decode_tokens(
    properties: &Properties,
    body: &[u8],
    limits: RequestLimits,
) -> Result<Spelled, Refusal> {
    check_properties(properties)?;
    if body.len() > limits.body_bytes_max {
        let message = format!(
            "body has {} bytes, limit is {}",
            body.len(),
            limits.body_bytes_max
        );
        return Err(Refusal::new(ErrorType::InputTooLong, message).on("input"));
    }
    // Looked at before parsing, for serde would read an array as the fields of a request in their order.
    if body.trim_ascii_start().first() != Some(&b'{') {
        let shown = String::from_utf8_lossy(&body[..body.len().min(SHOWN_BYTES)]).into_owned();
        let message = format!("body begins with {shown:?}, a JSON object is expected");
        return Err(Refusal::new(ErrorType::InvalidRequest, message));
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let raw: Raw = serde_path_to_error::deserialize(&mut json).map_err(|error| name_field(&error))?;
    json.end()
        .map_err(|error| Refusal::new(ErrorType::InvalidRequest, format!("body: {error}")))?;
    raw.check(limits)
}

fn check_properties(properties: &Properties) -> Result<(), Refusal> {
    if let Some(kind) = &properties.content_type {
        let essence = kind.split(';').next().unwrap_or_default().trim();
        if !essence.is_empty() && !essence.eq_ignore_ascii_case("application/json") {
            return Err(Refusal::invalid(
                "content_type",
                format!("content_type is {kind:?}, application/json is expected"),
            ));
        }
    }
    if let Some(coding) = &properties.content_encoding
        && !["", "utf-8", "utf8", "identity"].contains(&coding.to_ascii_lowercase().as_str())
    {
        return Err(Refusal::invalid(
            "content_encoding",
            format!("content_encoding is {coding:?}, none is expected"),
        ));
    }
    for (name, number) in [
        ("x-budget-ms", properties.budget_ms),
        ("x-sent-at-ms", properties.sent_at_ms),
    ] {
        if number == Number::Wrong {
            return Err(Refusal::invalid(
                name,
                format!(
                    "header {name} must be a whole number of milliseconds from 0 to {}",
                    u64::MAX
                ),
            ));
        }
    }
    Ok(())
}

/// Turns a parse error into a refusal whose `param` is the field, without index or position.
fn name_field(error: &serde_path_to_error::Error<serde_json::Error>) -> Refusal {
    let path = error.path().to_string();
    let field: String = path
        .chars()
        .take_while(|&c| c != '.' && c != '[' && c != '?')
        .collect();
    let inner = error.inner();
    let refusal = if path.is_empty() || path == "." || path == "?" {
        Refusal::new(ErrorType::InvalidRequest, format!("body: {inner}"))
    } else {
        Refusal::new(ErrorType::InvalidRequest, format!("{path}: {inner}"))
    };
    if field.is_empty() {
        refusal
    } else {
        refusal.on(field)
    }
}

/// The body as written. `null` for an optional field is as good as leaving it out.
#[derive(Deserialize)]
struct Raw {
    input: Option<Input>,
    model: Option<String>,
    encoding_format: Option<String>,
    dimensions: Option<u64>,
    input_type: Option<String>,
    prompt_name: Option<String>,
    truncate: Option<bool>,
    normalize: Option<bool>,
    stream: Option<bool>,
}

impl Raw {
    fn check(self, limits: RequestLimits) -> Result<Spelled, Refusal> {
        let Some(input) = self.input else {
            return Err(Refusal::invalid(
                "input",
                "input is missing, a string or an array of strings is expected",
            ));
        };
        if input.texts() == 0 {
            return Err(Refusal::invalid(
                "input",
                "input is an empty array, at least 1 text is expected",
            ));
        }
        let inputs_max = if self.stream.unwrap_or(false) {
            limits.stream_inputs_max
        } else {
            limits.inputs_max
        };
        if input.texts() > inputs_max {
            let message = format!("input has {} texts, limit is {inputs_max}", input.texts());
            return Err(Refusal::new(ErrorType::TooManyInputs, message).on("input"));
        }
        let encoding = match self.encoding_format.as_deref() {
            None | Some("float") => Encoding::Float,
            Some("base64") => Encoding::Base64,
            Some(other) => {
                let message = format!("encoding_format is {other:?}, \"float\" or \"base64\" is expected");
                return Err(Refusal::invalid("encoding_format", message));
            }
        };
        let input_type = match self.input_type.as_deref() {
            None => None,
            Some("query") => Some(InputType::Query),
            Some("document") => Some(InputType::Document),
            Some(other) => {
                let message = format!("input_type is {other:?}, \"query\" or \"document\" is expected");
                return Err(Refusal::invalid("input_type", message));
            }
        };
        if self.dimensions == Some(0) {
            return Err(Refusal::invalid(
                "dimensions",
                "dimensions is 0, at least 1 is expected",
            ));
        }
        let (input, tokens) = match input {
            Input::Texts(texts) => (texts, None),
            Input::Tokens(tokens) => (Vec::new(), Some(tokens)),
        };
        let request = Request {
            input,
            model: self.model,
            encoding,
            dimensions: self.dimensions.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
            input_type,
            prompt_name: self.prompt_name,
            truncate: self.truncate.unwrap_or(true),
            normalize: self.normalize,
            stream: self.stream.unwrap_or(false),
        };
        Ok((request, tokens))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: RequestLimits = RequestLimits {
        inputs_max: 3,
        stream_inputs_max: 5,
        body_bytes_max: 1 << 20,
    };

    fn refused(body: &str) -> (ErrorType, Option<String>) {
        let refusal = decode(&Properties::default(), body.as_bytes(), LIMITS).expect_err(body);
        (refusal.error, refusal.param)
    }

    #[test]
    fn a_plain_request_takes_the_defaults() {
        let request = decode(
            &Properties::default(),
            br#"{"input":"a\u0000b","user":7}"#,
            LIMITS,
        )
        .unwrap();
        assert_eq!(request.input, ["a\0b"]);
        assert_eq!(request.encoding, Encoding::Float);
        assert!(request.truncate && !request.stream);
        assert_eq!(
            (request.model, request.dimensions, request.normalize),
            (None, None, None)
        );
    }

    /// Each wrong field is named; the error type is the contract's.
    #[test]
    fn wrong_fields_are_named() {
        for (body, error, param) in [
            ("", ErrorType::InvalidRequest, None),
            ("nonsense", ErrorType::InvalidRequest, None),
            ("null", ErrorType::InvalidRequest, None),
            ("[]", ErrorType::InvalidRequest, None),
            (
                "[\"a\",null,null,null,null,null,null,null,null]",
                ErrorType::InvalidRequest,
                None,
            ),
            ("{\"input\":\"a\"} x", ErrorType::InvalidRequest, None),
            ("{}", ErrorType::InvalidRequest, Some("input")),
            ("{\"input\":null}", ErrorType::InvalidRequest, Some("input")),
            ("{\"input\":[]}", ErrorType::InvalidRequest, Some("input")),
            ("{\"input\":[1,2]}", ErrorType::InvalidRequest, Some("input")),
            (
                "{\"input\":[\"a\",null]}",
                ErrorType::InvalidRequest,
                Some("input"),
            ),
            ("{\"input\":{\"a\":1}}", ErrorType::InvalidRequest, Some("input")),
            (
                "{\"input\":\"\\ud800\"}",
                ErrorType::InvalidRequest,
                Some("input"),
            ),
            (
                "{\"input\":[\"a\",\"b\",\"c\",\"d\"]}",
                ErrorType::TooManyInputs,
                Some("input"),
            ),
            (
                "{\"input\":\"a\",\"model\":1}",
                ErrorType::InvalidRequest,
                Some("model"),
            ),
            (
                "{\"input\":\"a\",\"encoding_format\":\"hex\"}",
                ErrorType::InvalidRequest,
                Some("encoding_format"),
            ),
            (
                "{\"input\":\"a\",\"dimensions\":0}",
                ErrorType::InvalidRequest,
                Some("dimensions"),
            ),
            (
                "{\"input\":\"a\",\"dimensions\":-1}",
                ErrorType::InvalidRequest,
                Some("dimensions"),
            ),
            (
                "{\"input\":\"a\",\"dimensions\":1.5}",
                ErrorType::InvalidRequest,
                Some("dimensions"),
            ),
            (
                "{\"input\":\"a\",\"input_type\":\"x\"}",
                ErrorType::InvalidRequest,
                Some("input_type"),
            ),
            (
                "{\"input\":\"a\",\"truncate\":\"yes\"}",
                ErrorType::InvalidRequest,
                Some("truncate"),
            ),
            (
                "{\"input\":\"a\",\"normalize\":1}",
                ErrorType::InvalidRequest,
                Some("normalize"),
            ),
            (
                "{\"input\":\"a\",\"stream\":[]}",
                ErrorType::InvalidRequest,
                Some("stream"),
            ),
        ] {
            let (got, field) = refused(body);
            assert_eq!((got, field.as_deref()), (error, param), "{body}");
        }
        assert_eq!(refused(&"[".repeat(100_000)).0, ErrorType::InvalidRequest);
        assert_eq!(
            refused(&format!("{{\"x\":{}", "[".repeat(100_000))).0,
            ErrorType::InvalidRequest
        );
        let long = format!("{{\"input\":\"{}\"}}", "a".repeat(1 << 20));
        assert_eq!(refused(&long), (ErrorType::InputTooLong, Some("input".into())));
    }

    /// Goal: who sends tokens instead of texts reads what to do, in both of OpenAI's shapes for them.
    #[test]
    fn tokens_are_named_as_such() {
        for body in [r#"{"input":[1,2]}"#, r#"{"input":[[1,2],[3]]}"#] {
            let refusal = decode(&Properties::default(), body.as_bytes(), LIMITS).unwrap_err();
            assert_eq!(refusal.param.as_deref(), Some("input"));
            assert!(
                refusal.message.contains("token ids are taken by HTTP only"),
                "{}",
                refusal.message
            );
        }
    }

    /// Goal: where tokens are taken they count as the texts that they stand for.
    #[test]
    fn tokens_count_as_texts() {
        let read = |body: &str| decode_tokens(&Properties::default(), body.as_bytes(), LIMITS);
        let (request, tokens) = read(r#"{"input":[[1,2],[3]],"dimensions":7}"#).unwrap();
        assert_eq!((request.input.len(), request.dimensions), (0, Some(7)));
        assert_eq!(tokens, Some(vec![vec![1, 2], vec![3]]));
        assert_eq!(read(r#"{"input":["a"]}"#).unwrap().1, None);
        assert_eq!(
            read(r#"{"input":[[1],[2],[3],[4]]}"#).unwrap_err().error,
            ErrorType::TooManyInputs
        );
    }

    #[test]
    fn one_reply_queue_is_one_caller() {
        let caller = |name: &str| {
            let reply_to = Some(name.to_owned());
            let properties = Properties {
                reply_to,
                ..Default::default()
            };
            properties.caller().map(str::to_owned)
        };
        assert_eq!(caller("team.search.replies"), Some("team.search.replies".into()));
        assert_eq!(caller("amq.gen-x.y"), Some("amq.gen-x.y".into()));
        let direct = "amq.rabbitmq.reply-to.g1h2AA5yZXBseUA4NDQ2MDcxMgAAAAkAAAAAaxBIOQ==";
        assert_eq!(caller(&format!("{direct}.abc==")), Some(direct.into()));
        assert_eq!(Properties::default().caller(), None);
    }

    #[test]
    fn no_more_of_a_budget_is_spent_than_is_known() {
        let sent = |sent_at_ms, timestamp_s| {
            let properties = Properties {
                sent_at_ms,
                timestamp_s,
                ..Default::default()
            };
            properties.sent_ms()
        };
        assert_eq!(sent(Number::Value(5), Some(7)), Some(5));
        assert_eq!(sent(Number::Absent, Some(7)), Some(7999));
        assert_eq!(sent(Number::Absent, Some(u64::MAX)), Some(u64::MAX));
        assert_eq!(sent(Number::Absent, None), None);
    }

    #[test]
    fn properties_are_checked() {
        let ok = Properties {
            content_type: Some("Application/JSON; charset=utf-8".into()),
            ..Default::default()
        };
        assert!(decode(&ok, b"{\"input\":\"a\"}", LIMITS).is_ok());
        for (properties, param) in [
            (
                Properties {
                    content_type: Some("text/plain".into()),
                    ..Default::default()
                },
                "content_type",
            ),
            (
                Properties {
                    content_encoding: Some("gzip".into()),
                    ..Default::default()
                },
                "content_encoding",
            ),
            (
                Properties {
                    budget_ms: Number::Wrong,
                    ..Default::default()
                },
                "x-budget-ms",
            ),
            (
                Properties {
                    sent_at_ms: Number::Wrong,
                    ..Default::default()
                },
                "x-sent-at-ms",
            ),
        ] {
            let refusal = decode(&properties, b"{\"input\":\"a\"}", LIMITS).unwrap_err();
            assert_eq!(refusal.param.as_deref(), Some(param));
        }
    }

    proptest! {
        /// Goal: no bytes at all can make the decoder panic. Method: random bytes, and random edits of a good body.
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..40, byte: u8) {
            let _ = decode(&Properties::default(), &bytes, LIMITS);
            let mut body = br#"{"input":["a","b"],"dimensions":3,"x":"\ud83d"}"#.to_vec();
            body[at] = byte;
            let _ = decode(&Properties::default(), &body, LIMITS);
        }
    }
}
