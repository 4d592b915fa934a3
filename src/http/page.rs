//! The page for people at `/`: one file, shipped inside the program.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response, header};

/// All of it.
const PAGE: &str = include_str!("page.html");

pub(super) async fn page() -> Response<Body> {
    let mut response = Response::new(Body::from(PAGE));
    let headers: [(HeaderName, &'static str); 4] = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // It needs nothing from anywhere else, and nobody may frame it.
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        ),
    ];
    for (name, value) in headers {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}
