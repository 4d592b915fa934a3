//! `POST /v1/embeddings`: a request of OpenAI's shape to a job, and its answer to a response.

use super::Shared;
use super::board::Full;
use super::call::{Given, Reply, Unanswered};
use super::gate::{self, Peer, RequestId};
use super::refusal::{self, json_response};
use super::tokens;
use super::turnstile::Turnstile;
use crate::clock::Clock;
use crate::job::reply::{Answer, HEADER_ATTEMPT, HEADER_FINGERPRINT};
use crate::job::request::{Number, Properties, Request as Wanted, RequestLimits, decode_tokens};
use crate::job::{ErrorType, Refusal};
use axum::body::{Body, Bytes};
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;

/// Bodies above this size are read on a thread where that may take its time.
const DECODE_INLINE_BYTES: usize = 64 << 10;
/// Answers of more numbers are written on such a thread.
const ENCODE_INLINE_NUMBERS: usize = 16 << 10;
/// Longest wait for such a thread. They are few, and shared with the broker's large messages.
const ASIDE_MAX: Duration = Duration::from_secs(30);
/// When to come back where no estimate is to be had: the loop hangs, and its end and a new start are seconds away.
const RETRY_HUNG_MS: u64 = 5000;

/// What of bodies may be here at once.
#[derive(Debug)]
pub(super) struct Bodies {
    volume: Mutex<Volume>,
    requests: Arc<Semaphore>,
    turnstile: Turnstile,
}

/// Bytes of bodies.
#[derive(Debug)]
struct Volume {
    here: usize,
    max: usize,
}

/// So many bytes of a body, for as long as this lives.
struct Weight<'a> {
    bodies: &'a Bodies,
    bytes: usize,
}

impl Drop for Weight<'_> {
    fn drop(&mut self) {
        self.bodies.volume().here -= self.bytes;
    }
}

/// The place of a request and its body, for as long as this lives.
struct Place<'a> {
    bodies: &'a Bodies,
    _request: OwnedSemaphorePermit,
    _weight: Weight<'a>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.bodies.turnstile.leave();
    }
}

impl Bodies {
    /// At most so many bytes, and so many requests.
    pub(super) fn new(bytes_max: usize, requests: usize, clock: Clock) -> Bodies {
        Bodies {
            volume: Mutex::new(Volume {
                here: 0,
                max: bytes_max,
            }),
            requests: Arc::new(Semaphore::new(requests)),
            turnstile: Turnstile::new(clock),
        }
    }

    /// At most so many bytes from now on. What is here stays.
    pub(super) fn set_bytes_max(&self, max: usize) {
        self.volume().max = max;
    }

    /// A place for a body of this size, or what is full.
    fn take(&self, bytes: usize) -> Result<Place<'_>, Full> {
        let request = self.requests.clone().try_acquire_owned();
        let _request = request.map_err(|_| Full::Requests)?;
        let _weight = self.more(bytes)?;
        self.turnstile.enter();
        Ok(Place {
            bodies: self,
            _request,
            _weight,
        })
    }

    /// A place for so many bytes more of a body that has one. A body above the bound has room when it is alone.
    fn more(&self, bytes: usize) -> Result<Weight<'_>, Full> {
        let mut all = self.volume();
        let bytes = bytes.min(all.max);
        if bytes > all.max.saturating_sub(all.here) {
            return Err(Full::Bodies);
        }
        all.here += bytes;
        Ok(Weight { bodies: self, bytes })
    }

    fn volume(&self) -> MutexGuard<'_, Volume> {
        self.volume.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) async fn embed(
    State(shared): State<Shared>,
    Extension(Peer(peer)): Extension<Peer>,
    Extension(RequestId(id)): Extension<RequestId>,
    request: Request,
) -> Response<Body> {
    let limits = shared.limits;
    let (parts, body) = request.into_parts();
    // Without a length it may come to be as large as any.
    let announced = content_length(&parts.headers);
    if announced.is_some_and(|bytes| bytes > limits.body_bytes_max) {
        return too_large(limits.body_bytes_max);
    }
    let reserved = announced.unwrap_or(limits.body_bytes_max);
    let _place = match shared.bodies.take(reserved) {
        Ok(place) => place,
        Err(full) => return no_place(&shared, full),
    };
    let body = axum::body::to_bytes(body, limits.body_bytes_max);
    let body = match tokio::time::timeout(shared.bounds.body, body).await {
        Ok(Ok(body)) => body,
        Ok(Err(error)) if is_too_large(&error) => return too_large(limits.body_bytes_max),
        Ok(Err(error)) => {
            let message = format!("the body cannot be read: {error}");
            return refusal::plain(StatusCode::BAD_REQUEST, "invalid_request", &message);
        }
        Err(_) => {
            let message = format!(
                "the body has not come within {} s",
                shared.bounds.body.as_secs_f64()
            );
            let mut response = refusal::plain(StatusCode::REQUEST_TIMEOUT, "body_timeout", &message);
            refusal::close(&mut response);
            return response;
        }
    };
    let properties = properties(&parts.headers, &id);
    let mut bytes = body.len();
    let Some(wanted) = read(&properties, body, limits).await else {
        return hangs(ASIDE_MAX);
    };
    // Token ids may be shorter than the texts that they stand for.
    let texts = wanted.as_ref().map_or(0, text_bytes);
    bytes = bytes.max(texts);
    let _more = match shared.bodies.more(bytes.saturating_sub(reserved)) {
        Ok(more) => more,
        Err(full) => return no_place(&shared, full),
    };
    match shared.line.ask(id, peer, properties, bytes, wanted).await {
        Ok(Reply { given, traceparent }) => {
            let response = match given {
                Given::Vectors(answer, fingerprint) => vectors(answer, &fingerprint).await,
                Given::Refused(refusal) => refusal::response(&refusal),
            };
            gate::in_trace(response, traceparent.as_ref())
        }
        Err(Unanswered::Hangs(silent)) => hangs(silent),
        Err(Unanswered::Starting) => refusal::unavailable("the models are being loaded", RETRY_HUNG_MS),
        Err(Unanswered::Stopping) => refusal::unavailable("the service is stopping", RETRY_HUNG_MS),
        Err(Unanswered::Late(limit)) => {
            let message = format!("no answer within {} s", limit.as_secs());
            refusal::response(&Refusal::new(ErrorType::DeadlineExceeded, message))
        }
    }
}

/// What is asked; `None` if the thread that should read it does not.
async fn read(
    properties: &Properties,
    body: Bytes,
    limits: RequestLimits,
) -> Option<Result<Wanted, Refusal>> {
    let small = body.len() <= DECODE_INLINE_BYTES;
    let properties = properties.clone();
    let decoded = aside(!small, move || decode_tokens(&properties, &body, limits)).await?;
    let wanted = match decoded {
        Ok((wanted, None)) => Ok(wanted),
        Ok((mut wanted, Some(tokens))) => {
            let longer = !(small && tokens::known());
            let texts = aside(longer, move || tokens::texts(&tokens, limits.body_bytes_max)).await?;
            texts.map(|texts| {
                wanted.input = texts;
                wanted
            })
        }
        Err(refusal) => Err(refusal),
    };
    Some(wanted.and_then(|wanted| match wanted.stream {
        false => Ok(wanted),
        true => Err(Refusal::invalid(
            "stream",
            "stream is true, and only jobs that come through the broker are streamed",
        )),
    }))
}

/// Does it: at once, or, if it may take longer, on a thread where that is no harm. `None` if that thread does not get to it.
async fn aside<T: Send + 'static>(longer: bool, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    if !longer {
        return Some(work());
    }
    let done = tokio::time::timeout(ASIDE_MAX, spawn_blocking(work)).await.ok()?;
    Some(done.expect("reading a request cannot panic"))
}

fn text_bytes(wanted: &Wanted) -> usize {
    wanted.input.iter().map(String::len).sum()
}

/// Not before places have become free here, nor before the loop expects to have room: a request that waits for the one alone
/// would be turned away by the other.
fn no_place(shared: &Shared, full: Full) -> Response<Body> {
    shared.board.refuse(full);
    let here_ms = shared.bodies.turnstile.retry_after_ms();
    let retry_after_ms = here_ms.max(shared.board.retry_after_ms().unwrap_or(0));
    let message = match full {
        Full::Bodies => "the bodies of requests that are here have as many bytes as they may",
        Full::Requests | Full::Connections => "as many requests are here as may be",
    };
    refusal::response(&Refusal::new(ErrorType::Overloaded, message).retry_after(retry_after_ms))
}

async fn vectors(answer: Answer, fingerprint: &str) -> Response<Body> {
    let numbers: usize = answer.vectors.iter().map(Vec::len).sum();
    let json = if numbers <= ENCODE_INLINE_NUMBERS {
        answer.to_json()
    } else {
        let writing = spawn_blocking(move || answer.to_json());
        match tokio::time::timeout(ASIDE_MAX, writing).await {
            Ok(written) => written.expect("writing JSON cannot panic"),
            Err(_) => return hangs(ASIDE_MAX),
        }
    };
    let mut response = json_response(StatusCode::OK, json);
    let headers = response.headers_mut();
    headers.insert(HEADER_ATTEMPT, HeaderValue::from_static("1"));
    if let Ok(fingerprint) = HeaderValue::from_str(fingerprint) {
        headers.insert(HEADER_FINGERPRINT, fingerprint);
    }
    response
}

/// The headers of a request in the words of a message's properties.
fn properties(headers: &HeaderMap, id: &str) -> Properties {
    let text = |name: header::HeaderName| {
        let value = headers.get(name)?;
        Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    Properties {
        message_id: Some(id.to_owned()),
        // A page in a browser may send any other type to any address without being asked; this one it may not.
        content_type: Some(text(header::CONTENT_TYPE).unwrap_or_else(|| "absent".into())),
        content_encoding: text(header::CONTENT_ENCODING),
        traceparent: gate::traceparent(headers),
        budget_ms: number(headers, "x-budget-ms"),
        sent_at_ms: number(headers, "x-sent-at-ms"),
        ..Properties::default()
    }
}

fn number(headers: &HeaderMap, name: &str) -> Number {
    let Some(value) = headers.get(name) else {
        return Number::Absent;
    };
    let number = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    number.map_or(Number::Wrong, Number::Value)
}

fn content_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn is_too_large(error: &axum::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.to_string() == "length limit exceeded" {
            return true;
        }
        cause = error.source();
    }
    false
}

fn too_large(limit: usize) -> Response<Body> {
    let message = format!("the body is larger than {limit} bytes");
    let mut response = refusal::response(&Refusal::new(ErrorType::InputTooLong, message).on("input"));
    // What is left of the body is not read.
    refusal::close(&mut response);
    response
}

fn hangs(silent: Duration) -> Response<Body> {
    let message = format!("the service has not moved for {:.1} s", silent.as_secs_f64());
    refusal::unavailable(&message, RETRY_HUNG_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_back() {
        let bodies = Bodies::new(3000, 2, Clock::start());
        let first = bodies.take(1001).unwrap();
        assert_eq!(bodies.take(2000).err(), Some(Full::Bodies));
        let second = bodies.take(0).unwrap();
        assert_eq!(bodies.take(0).err(), Some(Full::Requests));
        drop((first, second));
        let all = bodies.take(usize::MAX).unwrap();
        assert!(bodies.more(0).is_ok() && bodies.more(1).is_err());
        // A bound below what is here turns away what comes, and takes nothing back.
        bodies.set_bytes_max(1000);
        assert!(bodies.more(0).is_ok() && bodies.more(1).is_err());
        bodies.set_bytes_max(4000);
        assert!(bodies.more(1000).is_ok() && bodies.more(1001).is_err());
        drop(all);
        assert!(bodies.take(4000).is_ok(), "all is given back");
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_known_as_such() {
        let error = axum::body::to_bytes(Body::from("four"), 3).await.unwrap_err();
        assert!(is_too_large(&error), "{error:?}");
    }

    #[test]
    fn headers_are_checked_like_properties() {
        let mut headers = HeaderMap::new();
        let wrong = |headers: &HeaderMap| {
            let limits = RequestLimits {
                inputs_max: 1,
                stream_inputs_max: 1,
                body_bytes_max: 100,
            };
            let read = decode_tokens(&properties(headers, "id"), br#"{"input":"a"}"#, limits);
            read.err().and_then(|refusal| refusal.param)
        };
        assert_eq!(wrong(&headers).as_deref(), Some("content_type"));
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        assert_eq!(wrong(&headers), None);
        headers.insert("x-budget-ms", HeaderValue::from_static("soon"));
        assert_eq!(wrong(&headers).as_deref(), Some("x-budget-ms"));
        let digits = HeaderValue::from_static("9999999999999999999999999999999999999999");
        headers.insert("x-budget-ms", digits);
        assert_eq!(wrong(&headers).as_deref(), Some("x-budget-ms"));
        headers.insert("x-budget-ms", HeaderValue::from_static("50"));
        headers.insert("content-encoding", HeaderValue::from_static("gzip"));
        assert_eq!(wrong(&headers).as_deref(), Some("content_encoding"));
    }
}
