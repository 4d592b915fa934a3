//! The gate before every route: who may pass, under which id a request is known, and how often what was answered.

use super::Shared;
use super::refusal;
use crate::job::Refusal;
use crate::job::trace::{HEADER_TRACEPARENT, TraceParent};
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use axum::middleware::Next;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError, RwLock};
use subtle::ConstantTimeEq;

/// Under which a request and its job are known: given back as it came, or made up.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id that is taken.
const REQUEST_ID_BYTES_MAX: usize = 128;
/// Nobody needs a token for these: whoever may connect may know whether the service lives. The page holds nothing.
const OPEN: [&str; 3] = ["/", "/health/live", "/health/ready"];
/// The routes by which requests are counted; all others are one.
const ROUTES: [&str; 8] = [
    "/",
    "/health/live",
    "/health/ready",
    "/history",
    "/metrics",
    "/status",
    "/v1/embeddings",
    "/v1/models",
];

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) IpAddr);

/// The id of a request.
#[derive(Clone, Debug)]
pub(super) struct RequestId(pub(super) String);

/// What callers must present. Only its hash is kept.
#[derive(Clone)]
pub struct Token([u8; 32]);

impl Token {
    /// The token in these words.
    pub fn new(text: &str) -> Token {
        Token(Sha256::digest(text.as_bytes()).into())
    }

    /// Whether this is it. Takes the same time whatever is wrong with it.
    fn is(&self, text: &[u8]) -> bool {
        let given: [u8; 32] = Sha256::digest(text).into();
        self.0.ct_eq(&given).into()
    }

    fn is_in(&self, headers: &HeaderMap) -> bool {
        let value = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
        let (scheme, token) = value.unwrap_or_default().split_at_checked(7).unwrap_or_default();
        let given = self.is(token.trim_ascii());
        scheme.eq_ignore_ascii_case(b"bearer ") && given
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// What is asked for at present, if anything.
#[derive(Debug)]
pub(super) struct Asked(RwLock<Option<Token>>);

impl Asked {
    pub(super) fn new(token: Option<Token>) -> Asked {
        Asked(RwLock::new(token))
    }

    pub(super) fn now(&self) -> Option<Token> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks for another one from now on, if one was asked for; whether that changes anything.
    pub(super) fn renew(&self, token: Token) -> bool {
        let mut asked = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let changes = asked.as_ref().is_some_and(|asked| asked.0 != token.0);
        if changes {
            *asked = Some(token);
        }
        changes
    }
}

/// Requests by route and status.
#[derive(Debug, Default)]
pub(super) struct Counts(Mutex<BTreeMap<(&'static str, u16), u64>>);

impl Counts {
    fn count(&self, route: &'static str, status: StatusCode) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((route, status.as_u16())).or_default() += 1;
    }

    /// All that were answered so far.
    pub(super) fn all(&self) -> BTreeMap<(&'static str, u16), u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Lets a request pass, or refuses it.
pub(super) async fn pass(State(shared): State<Shared>, mut request: Request, next: Next) -> Response<Body> {
    let path = request.uri().path();
    let route = if path.starts_with("/v1/models/") {
        "/v1/models"
    } else {
        let known = ROUTES.iter().find(|route| **route == path);
        known.copied().unwrap_or("other")
    };
    let id = request_id(request.headers());
    let refused = match (&shared.token.now(), &id) {
        (_, Err(problem)) => Some(refusal::response(&Refusal::invalid(REQUEST_ID.as_str(), problem))),
        _ if OPEN.contains(&path) => None,
        (Some(token), _) => (!token.is_in(request.headers())).then(unauthorized),
        (None, _) => (!is_meant(request.headers())).then(misdirected),
    };
    let id = id.unwrap_or_else(|_| made_up());
    let parent = traceparent(request.headers());
    let mut response = match refused {
        Some(refused) => refused,
        None => {
            request.extensions_mut().insert(RequestId(id.clone()));
            next.run(request).await
        }
    };
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    // What a job said of its trace stands; everything else gives back what came.
    if !response.headers().contains_key(HEADER_TRACEPARENT) {
        response = in_trace(response, parent.as_ref());
    }
    shared.counts.count(route, response.status());
    response
}

/// A response that says to which trace it belongs.
pub(super) fn in_trace(mut response: Response<Body>, parent: Option<&TraceParent>) -> Response<Body> {
    if let Some(Ok(parent)) = parent.map(|parent| HeaderValue::from_str(parent.as_str())) {
        response.headers_mut().insert(HEADER_TRACEPARENT, parent);
    }
    response
}

/// The trace that a request belongs to.
pub(super) fn traceparent(headers: &HeaderMap) -> Option<TraceParent> {
    TraceParent::parse(headers.get(HEADER_TRACEPARENT)?.to_str().ok()?)
}

fn request_id(headers: &HeaderMap) -> Result<String, String> {
    let Some(id) = headers.get(REQUEST_ID) else {
        return Ok(made_up());
    };
    match id.to_str() {
        Ok(id) if (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) => Ok(id.to_owned()),
        _ => Err(format!(
            "x-request-id must be 1 to {REQUEST_ID_BYTES_MAX} printable characters"
        )),
    }
}

fn made_up() -> String {
    format!("req_{:032x}", rand::random::<u128>())
}

/// Whether a request without a token is meant for a service on this machine. A page in a browser can have its own name point
/// here (DNS rebinding), but it cannot have the browser say another name than its own.
fn is_meant(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST) else {
        return true;
    };
    let authority = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
    authority.is_some_and(|authority| {
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok()
    })
}

fn unauthorized() -> Response<Body> {
    let message =
        "a token is needed: Authorization: Bearer TOKEN, with the token in the service's http.token_file";
    let mut response = refusal::plain(StatusCode::UNAUTHORIZED, "invalid_api_key", message);
    let bearer = HeaderValue::from_static("Bearer");
    response.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
    response
}

fn misdirected() -> Response<Body> {
    let message = "without http.token_file the Host header must be an address or localhost";
    refusal::plain(StatusCode::MISDIRECTED_REQUEST, "wrong_host", message)
}

pub(super) async fn no_such_path(request: Request) -> Response<Body> {
    let message = format!("there is no {} here", request.uri().path());
    refusal::plain(StatusCode::NOT_FOUND, "not_found", &message)
}

pub(super) async fn no_such_method(request: Request) -> Response<Body> {
    let message = format!("{} is not for {}", request.uri().path(), request.method());
    refusal::plain(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", &message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).unwrap());
        headers
    }

    #[test]
    fn only_the_token_opens() {
        let token = Token::new("open sesame");
        for (given, opens) in [
            ("Bearer open sesame", true),
            ("bearer  open sesame ", true),
            ("Bearer open sesam", false),
            ("Bearer ", false),
            ("Basic open sesame", false),
            ("open sesame", false),
        ] {
            assert_eq!(token.is_in(&headers("authorization", given)), opens, "{given:?}");
        }
        assert!(!token.is_in(&HeaderMap::new()));
        assert!(!format!("{token:?}").contains("open"));

        let asked = Asked::new(Some(token));
        assert!(!asked.renew(Token::new("open sesame")));
        assert!(asked.renew(Token::new("abracadabra")));
        let now = asked.now().unwrap();
        assert!(now.is_in(&headers("authorization", "Bearer abracadabra")));
        assert!(!now.is_in(&headers("authorization", "Bearer open sesame")));
        // A service that asks for nothing must not begin to without a word.
        let open = Asked::new(None);
        assert!(!open.renew(Token::new("abracadabra")) && open.now().is_none());
    }

    #[test]
    fn a_foreign_name_is_not_meant_for_us() {
        for (host, meant) in [
            ("127.0.0.1:8970", true),
            ("localhost:8970", true),
            ("LOCALHOST", true),
            ("[::1]:8970", true),
            ("evil.example:8970", false),
            ("localhost.evil.example", false),
            ("", false),
        ] {
            assert_eq!(is_meant(&headers("host", host)), meant, "{host:?}");
        }
        assert!(is_meant(&HeaderMap::new()));
    }

    #[test]
    fn an_id_is_kept_made_up_or_refused() {
        assert_eq!(request_id(&headers("x-request-id", "a-1")).unwrap(), "a-1");
        assert!(request_id(&HeaderMap::new()).unwrap().starts_with("req_"));
        assert!(request_id(&headers("x-request-id", &"a".repeat(129))).is_err());
        assert!(request_id(&headers("x-request-id", "")).is_err());
    }
}
