//! A dead letter in a line: who killed it, why, when, and where it came from. Nothing here asks the broker.
//!
//! Two hands write into the queue. The service publishes what it cannot answer, with headers that say why
//! (`x-error-type` …); the broker's own net (`x-death`) catches what was delivered too often or rejected.

use super::body::{self, Body};
use crate::broker::dead::Letter;
use crate::job::Names;
use crate::job::checkpoint::{Checkpoint, HEADER_CHECKPOINT, HEADER_ORIGINAL_QUEUE};
use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// Characters kept of a message; the service's own are shorter than that.
const MESSAGE_CHARS: usize = 600;
/// Hex digits of a body's hash that make an id.
const HASH_DIGITS: usize = 16;

/// Who put a letter into the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// The service, because it could not answer.
    Service,
    /// The broker, by its own rules.
    Broker,
    /// Somebody else.
    Unknown,
}

/// What is kept of a letter.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// The job's id: message id, else correlation id, else made from its body.
    pub id: String,
    /// Who put it there.
    pub by: By,
    /// The error type of the service, or the broker's reason.
    pub reason: Option<String>,
    /// The error's code.
    pub code: Option<u64>,
    /// What the service said.
    pub message: Option<String>,
    /// The field that was wrong.
    pub param: Option<String>,
    /// The queue it was sent to.
    pub queue: Option<String>,
    /// The last attempt at it.
    pub attempt: Option<u64>,
    /// How often the broker has dead-lettered it.
    pub deaths: Option<u64>,
    /// When it died, as far as that was written down.
    pub died_unix_ms: Option<u64>,
    /// When it was sent.
    pub sent_unix_ms: Option<u64>,
    /// How many inputs it has.
    pub inputs: Option<usize>,
    /// Size of its body.
    pub bytes: usize,
    /// Whether it says where its answer goes.
    pub reply_to: bool,
    /// Whether its body is the rest of a streamed job, whose first inputs were answered.
    #[serde(skip)]
    pub is_rest: bool,
}

/// Reads a letter.
pub fn read(letter: &Letter) -> (Summary, Body) {
    let Letter {
        properties, headers, ..
    } = letter;
    let body = body::read(&letter.body);
    // The newest death comes first.
    let death = headers
        .get("x-death")
        .and_then(|deaths| deaths.get(0)?.as_object());
    let of_death = |name| text(death?, name);
    let error = text(headers, "x-error-type");
    let by = match (&error, death, text(headers, "x-first-death-reason")) {
        (Some(_), _, _) => By::Service,
        (None, None, None) => By::Unknown,
        (None, _, _) => By::Broker,
    };
    let sent_ms = number(headers, "x-sent-at-ms");
    let stamped_ms = || number(properties, "timestamp").map(|seconds| seconds.saturating_mul(1000));
    let died_ms = || Some(number(death?, "time")?.saturating_mul(1000));
    let summary = Summary {
        id: id(letter),
        by,
        reason: error
            .or_else(|| of_death("reason"))
            .or_else(|| text(headers, "x-first-death-reason")),
        code: number(headers, "x-error-code"),
        message: text(headers, "x-error-message").map(|said| body::shortened(&said, MESSAGE_CHARS)),
        param: text(headers, "x-error-param"),
        queue: text(headers, HEADER_ORIGINAL_QUEUE)
            .or_else(|| of_death("queue"))
            .or_else(|| text(headers, "x-first-death-queue")),
        attempt: number(headers, "x-attempt").filter(|_| by == By::Service),
        deaths: death.and_then(|death| number(death, "count")),
        died_unix_ms: number(headers, "x-dead-at-ms").or_else(|| match by {
            // A job that the broker caught once may have died by the service's hand later.
            By::Service => None,
            By::Broker | By::Unknown => died_ms(),
        }),
        sent_unix_ms: sent_ms.or_else(stamped_ms),
        inputs: body.inputs,
        bytes: letter.body.len(),
        reply_to: text(properties, "reply_to").is_some_and(|queue| !queue.is_empty()),
        is_rest: text(headers, HEADER_CHECKPOINT)
            .and_then(|header| Checkpoint::parse(&header))
            .is_some_and(|checkpoint| checkpoint.done > 0),
    };
    (summary, body)
}

impl Summary {
    /// How long it has been dead, or else at most has been: since it was sent.
    pub fn age_ms(&self, now_ms: u64) -> Option<u64> {
        let since = self.died_unix_ms.or(self.sent_unix_ms)?;
        Some(now_ms.saturating_sub(since))
    }

    /// The queue it goes back to: its own if that is one of ours, else the lane where jobs may wait. The rest of a streamed
    /// job goes on where it stood: in a lane it would be a job of its own, with indices that begin anew.
    pub fn target<'a>(&self, names: &'a Names) -> &'a str {
        if self.is_rest {
            return &names.resumed;
        }
        match &self.queue {
            Some(queue) if *queue == names.interactive => &names.interactive,
            Some(queue) if *queue == names.resumed => &names.resumed,
            _ => &names.bulk,
        }
    }
}

/// Which letters are meant.
#[derive(Debug, Clone, Default)]
pub struct Filter<'a> {
    /// These ids; all if there is none.
    pub ids: &'a [String],
    /// This error type, or reason of the broker.
    pub reason: Option<&'a str>,
    /// From this queue.
    pub queue: Option<String>,
    /// Dead for longer than this.
    pub older_than_ms: Option<u64>,
}

impl Filter<'_> {
    /// Whether a letter is meant.
    pub fn takes(&self, letter: &Summary, now_ms: u64) -> bool {
        let age_ms = letter.age_ms(now_ms);
        (self.ids.is_empty() || self.ids.contains(&letter.id))
            && self
                .reason
                .is_none_or(|reason| letter.reason.as_deref() == Some(reason))
            && self
                .queue
                .as_ref()
                .is_none_or(|queue| letter.queue.as_ref() == Some(queue))
            && self
                .older_than_ms
                .is_none_or(|bound| age_ms.is_some_and(|age| age > bound))
    }

    /// Whether it leaves any out.
    pub fn is_open(&self) -> bool {
        self.ids.is_empty() && self.reason.is_none() && self.queue.is_none() && self.older_than_ms.is_none()
    }
}

/// The job's id in words that can be typed: without control characters, and never empty.
fn id(letter: &Letter) -> String {
    let named = ["message_id", "correlation_id"]
        .into_iter()
        .filter_map(|name| text(&letter.properties, name))
        .find(|id| !id.is_empty());
    named.map(|id| super::plain(&id)).unwrap_or_else(|| {
        let hash = Sha256::digest(&letter.body);
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("body:{}", &hex[..HASH_DIGITS])
    })
}

fn text(of: &Map<String, Value>, name: &str) -> Option<String> {
    Some(of.get(name)?.as_str()?.to_owned())
}

/// A number, or one that is written as a text.
fn number(of: &Map<String, Value>, name: &str) -> Option<u64> {
    let value = of.get(name)?;
    value.as_u64().or_else(|| value.as_str()?.trim().parse().ok())
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use serde_json::json;

    /// A letter as the service publishes it.
    pub fn refused() -> Letter {
        letter(
            json!({"message_id": "job-7", "timestamp": 1_000, "reply_to": "answers"}),
            json!({"x-error-type": "internal", "x-error-code": 500, "x-error-message": "it is broken",
                "x-original-queue": "embeddings.interactive", "x-attempt": 5}),
            br#"{"input":["a","b"]}"#,
        )
    }

    /// A letter as the broker's net catches it.
    pub fn caught() -> Letter {
        letter(
            json!({"correlation_id": "c-1"}),
            json!({"x-death": [{"reason": "delivery_limit", "queue": "embeddings.bulk", "count": 2, "time": 5_000},
                    {"reason": "expired", "queue": "other", "count": 1, "time": 4_000}],
                "x-first-death-reason": "expired", "x-attempt": 9}),
            b"not json",
        )
    }

    /// A letter of these parts.
    pub fn letter(properties: Value, headers: Value, body: &[u8]) -> Letter {
        let map = |value: Value| value.as_object().expect("an object").clone();
        Letter {
            properties: map(properties),
            headers: map(headers),
            body: body.to_vec(),
            looks: 0,
        }
    }

    #[test]
    fn both_kinds_are_understood() {
        let (ours, _) = read(&refused());
        assert_eq!((ours.id.as_str(), ours.by), ("job-7", By::Service));
        assert_eq!((ours.reason.as_deref(), ours.code), (Some("internal"), Some(500)));
        assert_eq!((ours.attempt, ours.inputs, ours.bytes), (Some(5), Some(2), 19));
        assert_eq!((ours.died_unix_ms, ours.sent_unix_ms), (None, Some(1_000_000)));
        assert_eq!(ours.age_ms(1_000_500), Some(500));
        assert!(ours.reply_to);
        let (theirs, body) = read(&caught());
        assert_eq!((theirs.id.as_str(), theirs.by), ("c-1", By::Broker));
        assert_eq!(theirs.reason.as_deref(), Some("delivery_limit"));
        assert_eq!(theirs.queue.as_deref(), Some("embeddings.bulk"));
        assert_eq!((theirs.deaths, theirs.attempt), (Some(2), None));
        assert_eq!(theirs.died_unix_ms, Some(5_000_000));
        assert!(body.problem.is_some() && theirs.inputs.is_none() && !theirs.reply_to);
    }

    #[test]
    fn every_letter_has_an_id_that_can_be_typed() {
        let of = |properties| read(&letter(properties, json!({}), b"x")).0;
        let none = of(json!({"message_id": ""}));
        assert_eq!(none.id, "body:2d711642b726b044");
        assert_eq!(none.by, By::Unknown);
        assert_eq!(of(json!({"message_id": "a\u{1b}[2J\n"})).id, r"a\u{1b}[2J\n");
    }

    #[test]
    fn letters_go_back_only_to_queues_of_ours() {
        let names = Names::new("embeddings");
        assert_eq!(read(&refused()).0.target(&names), "embeddings.interactive");
        assert_eq!(read(&caught()).0.target(&names), "embeddings.bulk");
        let mut resumed = read(&refused()).0;
        resumed.queue = Some("embeddings.resumed".into());
        assert_eq!(resumed.target(&names), "embeddings.resumed");
        let tried = |done: usize| {
            let mut letter = refused();
            let checkpoint = json!({"done": done, "attempt": 5}).to_string();
            letter.headers.insert(HEADER_CHECKPOINT.into(), json!(checkpoint));
            read(&letter).0
        };
        assert_eq!(tried(0).target(&names), "embeddings.interactive");
        assert_eq!(tried(512).target(&names), "embeddings.resumed");
        assert_eq!(tried(512).queue.as_deref(), Some("embeddings.interactive"));
        let other = Names::new("test");
        assert_eq!(read(&refused()).0.target(&other), "test.bulk");
    }

    #[test]
    fn all_conditions_of_a_filter_hold() {
        let (ours, theirs) = (read(&refused()).0, read(&caught()).0);
        let now_ms = 5_060_000;
        let takes = |filter: Filter<'_>| (filter.takes(&ours, now_ms), filter.takes(&theirs, now_ms));
        assert!(Filter::default().is_open());
        assert_eq!(takes(Filter::default()), (true, true));
        let reason = Filter {
            reason: Some("internal"),
            ..Filter::default()
        };
        assert_eq!(takes(reason.clone()), (true, false));
        let ids = ["c-1".to_owned()];
        assert_eq!(takes(Filter { ids: &ids, ..reason }), (false, false));
        let queue = Some("embeddings.bulk".to_owned());
        let of_queue = Filter {
            queue,
            ..Filter::default()
        };
        assert_eq!(takes(of_queue), (false, true));
        let old = Filter {
            older_than_ms: Some(60_000),
            ..Filter::default()
        };
        assert_eq!(
            takes(old.clone()),
            (true, false),
            "as old as the bound is not older"
        );
        let ageless = read(&letter(json!({}), json!({}), b"x")).0;
        assert!(!old.takes(&ageless, now_ms));
    }
}
