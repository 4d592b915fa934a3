//! One request to the Hub: where it goes, who is told the token, and what an answer that is no file means.

use super::patience;
use anyhow::ensure;
use std::ops::Range;
use std::time::Duration;
use ureq::Body;
use ureq::http::{HeaderMap, Response};

/// Where the Hub is, unless `HF_ENDPOINT` names a mirror.
const ENDPOINT: &str = "https://huggingface.co";
/// Longest time to find and connect to a host.
const REACH_MAX: Duration = Duration::from_secs(8);
/// Longest silence of a host, unless `HF_HUB_DOWNLOAD_TIMEOUT` says otherwise.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// The Hub sends to a store, which may send further.
const REDIRECTS_MAX: usize = 8;

/// Why a request brought nothing. No text of it holds the token.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Nobody answers there.
    #[error("failed to reach {host}: {why}")]
    Unreachable {
        /// Scheme, host and port.
        host: String,
        /// What the system says.
        why: String,
    },
    /// An answer, but not the one that was wanted.
    #[error("{host} answers {status}{}", .pause.map(|pause| format!(", come again in {} s", pause.as_secs())).unwrap_or_default())]
    Status {
        /// Scheme, host and port.
        host: String,
        /// Of HTTP.
        status: u16,
        /// What `Retry-After` asks for.
        pause: Option<Duration>,
    },
    /// The connection broke, fell silent, or what came makes no sense.
    #[error("{host}: {why}")]
    Broken {
        /// Scheme, host and port.
        host: String,
        /// What went wrong.
        why: String,
    },
}

impl Fault {
    /// Whether the same request may succeed a little later.
    pub fn may_pass(&self) -> bool {
        match self {
            Fault::Unreachable { .. } | Fault::Broken { .. } => true,
            Fault::Status { status, pause, .. } => {
                let busy = matches!(status, 408 | 429 | 500..=599);
                busy && pause.is_none_or(|pause| pause <= patience::PAUSE_MAX)
            }
        }
    }

    /// How long the host asks to be left alone.
    pub fn pause(&self) -> Option<Duration> {
        match self {
            Fault::Status { pause, .. } => *pause,
            _ => None,
        }
    }

    /// The HTTP status, if there was an answer.
    pub fn status(&self) -> Option<u16> {
        match self {
            Fault::Status { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// Which part of a file is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Bytes of the file.
    pub bytes: Range<u64>,
    /// Only if the file still has this tag; else the whole file comes.
    pub unless_changed_from: Option<String>,
}

/// The way to the Hub.
pub struct Wire {
    agent: ureq::Agent,
    /// Scheme, host, port, and a path if a mirror has one; without a slash at the end.
    pub endpoint: String,
    token: Option<String>,
}

impl Wire {
    /// Prepares; nothing is asked yet. `token` is what the caller found besides `HF_TOKEN`.
    ///
    /// # Errors
    /// An endpoint that is no URL, or a token that no header can hold.
    pub fn new(token: Option<String>) -> anyhow::Result<Wire> {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let endpoint = set("HF_ENDPOINT")
            .unwrap_or_else(|| ENDPOINT.to_owned())
            .trim()
            .trim_end_matches('/')
            .to_owned();
        ensure!(
            origin(&endpoint).is_some(),
            "HF_ENDPOINT {endpoint:?} is no URL such as {ENDPOINT}"
        );
        let token = set("HF_TOKEN").or(token).map(|token| token.trim().to_owned());
        ensure!(
            token
                .as_ref()
                .is_none_or(|token| token.bytes().all(|b| b.is_ascii_graphic())),
            "HF_TOKEN holds characters that no token has"
        );
        let silence = set("HF_HUB_DOWNLOAD_TIMEOUT")
            .and_then(|text| text.trim().parse::<u64>().ok())
            .map_or(SILENCE_MAX, |s| Duration::from_secs(s.clamp(1, 3600)));
        let agent = ureq::Agent::config_builder()
            .user_agent(concat!("embeddings/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            // Followed here, so that it is certain who is told the token.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(REACH_MAX))
            .timeout_connect(Some(REACH_MAX))
            .timeout_recv_response(Some(silence))
            .timeout_per_read(Some(silence))
            .timeout_per_write(Some(silence))
            .build()
            .new_agent();
        Ok(Wire {
            agent,
            endpoint,
            token,
        })
    }

    /// Whether there is a token.
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Asks for what is at `path` of the endpoint, or for a slice of it. The answer is 200 or 206.
    ///
    /// # Errors
    /// Any other answer, or none.
    pub fn get(&self, path: &str, slice: Option<&Slice>) -> Result<Response<Body>, Fault> {
        let mut url = format!("{}{path}", self.endpoint);
        for _ in 0..REDIRECTS_MAX {
            let host = origin(&url).unwrap_or(&url).to_owned();
            let answer = self.ask(&url, slice).map_err(|error| unanswered(&host, error))?;
            let status = answer.status().as_u16();
            match status {
                200 | 206 => return Ok(answer),
                301 | 302 | 303 | 307 | 308 => {
                    let location = header(answer.headers(), "location").unwrap_or_default();
                    url = follow(&url, &location).ok_or_else(|| Fault::Broken {
                        why: format!("answers {status} and sends to {location:?}, where nobody can go"),
                        host,
                    })?;
                }
                _ => {
                    let pause =
                        header(answer.headers(), "retry-after").and_then(|text| patience::asked_for(&text));
                    return Err(Fault::Status { host, status, pause });
                }
            }
        }
        Err(Fault::Broken {
            host: self.endpoint.clone(),
            why: "sends from one place to the next without end".into(),
        })
    }

    fn ask(&self, url: &str, slice: Option<&Slice>) -> Result<Response<Body>, ureq::Error> {
        let mut request = self.agent.get(url);
        // Only the endpoint itself may know it: it sends on to stores of other hosts.
        if let Some(token) = &self.token
            && origin(url) == origin(&self.endpoint)
        {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if let Some(slice) = slice {
            let Range { start, end } = slice.bytes;
            request = request.header("Range", format!("bytes={start}-{}", end.saturating_sub(1)));
            if let Some(tag) = &slice.unless_changed_from {
                request = request.header("If-Range", tag);
            }
        }
        request.call()
    }
}

/// A header as text.
pub fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.trim().to_owned())
}

/// First and last byte of `Content-Range`, and the length of the whole file if it is told.
pub fn content_range(headers: &HeaderMap) -> Option<(u64, u64, Option<u64>)> {
    let text = header(headers, "content-range")?;
    let (bounds, whole) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = bounds.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?, whole.parse().ok()))
}

/// A path in which only what a URL takes as it is stands so.
pub fn escaped(path: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'-' | b'_' | b'.' | b'~');
    path.bytes()
        .map(|b| match plain(b) {
            true => char::from(b).to_string(),
            false => format!("%{b:02X}"),
        })
        .collect()
}

fn unanswered(host: &str, error: ureq::Error) -> Fault {
    use std::io::ErrorKind as Kind;
    use ureq::Timeout;
    let (host, why) = (host.to_owned(), error.to_string());
    let unreachable = match &error {
        ureq::Error::Io(error) => matches!(
            error.kind(),
            Kind::ConnectionRefused
                | Kind::HostUnreachable
                | Kind::NetworkUnreachable
                | Kind::AddrNotAvailable
        ),
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => true,
        ureq::Error::Timeout(which) => matches!(which, Timeout::Resolve | Timeout::Connect),
        _ => false,
    };
    if unreachable {
        Fault::Unreachable { host, why }
    } else {
        Fault::Broken { host, why }
    }
}

/// Scheme, host and port of a URL.
fn origin(url: &str) -> Option<&str> {
    let host = url
        .find("://")
        .filter(|at| matches!(&url[..*at], "http" | "https"))?
        + 3;
    let end = url[host..]
        .find(['/', '?', '#'])
        .map_or(url.len(), |at| host + at);
    let sound = end > host && !url.contains(|c: char| c.is_whitespace() || c.is_control());
    sound.then(|| &url[..end])
}

/// Where `location` leads from `url`; nowhere if it leads from https to http.
fn follow(url: &str, location: &str) -> Option<String> {
    let (scheme, _) = url.split_once("://")?;
    let next = if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{}{location}", origin(url)?)
    } else {
        location.to_owned()
    };
    origin(&next)?;
    (scheme == "http" || next.starts_with("https://")).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_leads_where_it_says_and_never_out_of_https() {
        let from = "https://hub.test/a/b?c";
        let to = |location| follow(from, location);
        assert_eq!(to("/x/y"), Some("https://hub.test/x/y".into()));
        assert_eq!(to("//store.test/x"), Some("https://store.test/x".into()));
        assert_eq!(
            to("https://store.test/x?y=1"),
            Some("https://store.test/x?y=1".into())
        );
        for bad in ["http://hub.test/x", "ftp://hub.test/x", "x/y", "", "https://"] {
            assert_eq!(to(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_host_is_the_same_only_with_its_scheme_and_port() {
        assert_eq!(
            origin("https://hub.test/a"),
            origin("https://hub.test?x=https://b")
        );
        assert_ne!(origin("https://hub.test/a"), origin("http://hub.test/a"));
        assert_ne!(origin("https://hub.test/a"), origin("https://hub.test:444/a"));
        assert_ne!(origin("https://hub.test/a"), origin("https://hub.test.evil/a"));
        assert_eq!(origin("hub.test"), None);
        assert_eq!(origin("https:///a"), None);
    }

    #[test]
    fn a_name_with_odd_characters_stays_one_path() {
        assert_eq!(escaped("1_Pooling/config.json"), "1_Pooling/config.json");
        assert_eq!(escaped("a b?c#d%"), "a%20b%3Fc%23d%25");
    }

    #[test]
    fn what_passes_is_tried_again() {
        let fault = |status, pause: Option<u64>| Fault::Status {
            host: "https://hub.test".into(),
            status,
            pause: pause.map(Duration::from_secs),
        };
        for status in [408, 429, 500, 503] {
            assert!(fault(status, None).may_pass(), "{status}");
        }
        for status in [400, 401, 403, 404, 416] {
            assert!(!fault(status, None).may_pass(), "{status}");
        }
        assert!(fault(429, Some(5)).may_pass());
        assert!(
            !fault(429, Some(86_400)).may_pass(),
            "nobody waits a day at a terminal"
        );
        assert_eq!(
            fault(429, Some(9)).to_string(),
            "https://hub.test answers 429, come again in 9 s"
        );
    }
}
