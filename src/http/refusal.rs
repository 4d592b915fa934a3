//! Refusals and errors in the shape that OpenAI's clients read: `error.type` is one of their three kinds, `error.code` the
//! contract's name, and the status and `Retry-After` are what their retries go by.

use crate::job::{ErrorType, Refusal};
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response, StatusCode, header};
use serde_json::json;

/// Milliseconds until a retry may succeed. OpenAI's clients look for it before `Retry-After`.
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// A refusal as a response.
pub(super) fn response(refusal: &Refusal) -> Response<Body> {
    let status = StatusCode::from_u16(refusal.error.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = error(status, refusal.error.name(), &refusal.message, refusal);
    if let Some(ms) = refusal.retry_after_ms {
        come_back(&mut response, ms);
    }
    if refusal.error == ErrorType::Draining {
        close(&mut response);
    }
    response
}

/// There is nobody here who could take the job up, or finish it.
pub(super) fn unavailable(message: &str, retry_after_ms: u64) -> Response<Body> {
    let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message);
    come_back(&mut response, retry_after_ms);
    close(&mut response);
    response
}

/// The whole answer to a connection that is not served, in the bytes of HTTP/1.1: nobody knows what it would have asked.
pub(super) fn crowded(retry_after_ms: u64) -> Vec<u8> {
    let error = json!({ "error": {
        "message": "as many connections are here as may be",
        "type": "server_error",
        "param": null,
        "code": "unavailable",
        "retry_after_ms": retry_after_ms,
    }});
    let body = error.to_string();
    let (seconds, length) = (whole_seconds(retry_after_ms), body.len());
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: {seconds}\r\n\
         retry-after-ms: {retry_after_ms}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    answer.into_bytes()
}

/// `Retry-After` has no smaller unit, and none at all would be at once.
fn whole_seconds(ms: u64) -> u64 {
    ms.div_ceil(1000).max(1)
}

fn come_back(response: &mut Response<Body>, ms: u64) {
    let headers = response.headers_mut();
    headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(ms)));
    headers.insert(RETRY_AFTER_MS, HeaderValue::from(ms));
}

/// Who comes again on another connection may find another process.
pub(super) fn close(response: &mut Response<Body>) {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
}

/// An error that no job has, such as a path that is not there.
pub(super) fn plain(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    error(
        status,
        code,
        message,
        &Refusal::new(ErrorType::InvalidRequest, message),
    )
}

fn error(status: StatusCode, code: &str, message: &str, refusal: &Refusal) -> Response<Body> {
    let kind = match status {
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        status if status.is_server_error() => "server_error",
        _ => "invalid_request_error",
    };
    let mut error = json!({
        "message": message,
        "type": kind,
        "param": refusal.param,
        "code": code,
    });
    if refusal.error == ErrorType::Overloaded {
        error["overloaded"] = true.into();
    }
    if let Some(ms) = refusal.retry_after_ms {
        error["retry_after_ms"] = ms.into();
    }
    json_response(status, json!({ "error": error }).to_string().into_bytes())
}

/// JSON as a response.
pub(super) fn json_response(status: StatusCode, json: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::from(json));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn body(response: Response<Body>) -> serde_json::Value {
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    /// Goal: seconds are whole and never none, and a client that knows milliseconds gets them.
    #[tokio::test]
    async fn an_overload_says_when_to_come_back() {
        for (ms, seconds) in [(50, "1"), (1000, "1"), (1001, "2")] {
            let refusal = Refusal::new(ErrorType::Overloaded, "full").retry_after(ms);
            let response = response(&refusal);
            assert_eq!(response.status(), 429);
            assert_eq!(response.headers()["retry-after"], seconds);
            assert_eq!(response.headers()["retry-after-ms"], ms.to_string());
            let body = body(response).await;
            assert_eq!(
                body["error"],
                json!({"message": "full", "type": "rate_limit_error", "param": null, "code": "overloaded",
                    "overloaded": true, "retry_after_ms": ms})
            );
        }
    }

    #[tokio::test]
    async fn a_wrong_field_is_named_in_openai_s_shape() {
        let response = response(&Refusal::invalid("dimensions", "no"));
        assert_eq!(response.status(), 400);
        assert!(!response.headers().contains_key("retry-after"));
        assert_eq!(
            body(response).await,
            json!({"error": {"message": "no", "type": "invalid_request_error", "param": "dimensions",
                "code": "invalid_request"}})
        );
    }
}
