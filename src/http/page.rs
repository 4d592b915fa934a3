//! The page for people at `/`: one answer, put together from what lies in `page`. It says nothing by itself, and asks `/status`,
//! `/history` and `/health/ready` from the browser, as anyone may.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use std::sync::LazyLock;

const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = concat!(
    // A block of its own: none of its names is the browser's.
    "\"use strict\";\n{\n",
    include_str!("page/words.js"),
    include_str!("page/charts.js"),
    include_str!("page/live.js"),
    "}\n",
);

/// All of it.
static PAGE: LazyLock<String> = LazyLock::new(|| {
    let put = |page: &str, element: &str, inside: &str| {
        let (open, close) = (format!("<{element}>"), format!("</{element}>"));
        page.replacen(&format!("{open}{close}"), &format!("{open}{inside}{close}"), 1)
    };
    put(
        &put(include_str!("page/page.html"), "style", STYLE),
        "script",
        SCRIPT,
    )
});

/// What the page may do: its own style and its own script, known by their hashes, and questions to whoever served it. It needs
/// nothing from anywhere else, nobody may frame it, and no text can become a part of it other than as text.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = |text: &str| STANDARD.encode(Sha256::digest(text));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; connect-src 'self'; img-src data:; \
         frame-ancestors 'none'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        hash(STYLE),
        hash(SCRIPT),
    );
    HeaderValue::from_str(&policy).expect("a hash is plain text")
});

pub(super) async fn page() -> Response<Body> {
    let mut response = Response::new(Body::from(PAGE.as_str()));
    let headers: [(HeaderName, HeaderValue); 5] = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/html; charset=utf-8"),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (header::CONTENT_SECURITY_POLICY, POLICY.clone()),
    ];
    response.headers_mut().extend(headers);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the policy fits the page: one style and one script, no attribute for either, no markup out of text, nothing from
    /// elsewhere. Method: the sources are read as text.
    #[test]
    fn the_page_is_whole_and_needs_nothing() {
        assert!(PAGE.contains(STYLE) && PAGE.contains(SCRIPT));
        for element in ["style", "script"] {
            assert_eq!(PAGE.matches(&format!("<{element}")).count(), 1, "{element}");
        }
        let page = PAGE.replace("http://www.w3.org/2000/svg", "");
        for never in [
            " style=",
            " onclick=",
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "http:",
            "https:",
        ] {
            assert!(!page.contains(never), "{never}");
        }
    }
}
