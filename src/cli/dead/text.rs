//! What the commands say of dead letters: to people, and as JSON.

use super::body::{Body, shortened};
use super::summary::{By, Summary};
use crate::broker::dead::Letter;
use crate::cli::status::{moment, span};
use crate::cli::{count, table};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

/// Characters of a message in a list.
const MESSAGE_CHARS: usize = 80;
/// Stands where nothing is known.
const NONE: &str = "-";

/// What was seen of the queue.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The queue.
    pub queue: &'a str,
    /// How many letters it had.
    pub total: usize,
    /// Whether reading ended early because enough were found.
    pub limited: bool,
    /// The present time.
    pub now_ms: u64,
}

/// The list for people.
pub fn list(seen: Seen<'_>, letters: &[Summary]) -> String {
    let mut out = head(seen, letters.len());
    if letters.is_empty() {
        return out;
    }
    let titles = [
        "job", "age", "from", "why", "attempt", "inputs", "bytes", "message",
    ];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    rows.extend(letters.iter().map(|letter| row(letter, seen)));
    out.push('\n');
    out.push_str(&table(&rows));
    out
}

fn head(seen: Seen<'_>, shown: usize) -> String {
    let letters = |number: usize| count(number, "dead letter");
    let Seen { queue, total, .. } = seen;
    let read = if seen.limited {
        ", read no further; --limit shows more"
    } else {
        ""
    };
    if total == 0 {
        format!("no dead letters in {queue}\n")
    } else if shown == total {
        format!("{} in {queue}\n", letters(total))
    } else {
        format!("{shown} of {} in {queue}{read}\n", letters(total))
    }
}

fn row(letter: &Summary, seen: Seen<'_>) -> Vec<String> {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| NONE.to_owned());
    let number = |n: Option<u64>| or_none(n.map(|n| n.to_string()));
    // A queue of ours is named by its lane.
    let prefix = seen.queue.strip_suffix("dead").unwrap_or_default();
    let from = letter
        .queue
        .as_deref()
        .map(|queue| super::plain(queue.strip_prefix(prefix).unwrap_or(queue)));
    let message = match letter.by {
        By::Service => letter.message.clone(),
        By::Broker => Some(by_broker(letter)),
        By::Unknown => Some("put there by neither service nor broker".to_owned()),
    };
    vec![
        letter.id.clone(),
        or_none(letter.age_ms(seen.now_ms).map(span)),
        or_none(from),
        why(letter),
        number(letter.attempt),
        or_none(letter.inputs.map(|n| n.to_string())),
        letter.bytes.to_string(),
        or_none(message.map(|text| shortened(&text, MESSAGE_CHARS))),
    ]
}

fn by_broker(letter: &Summary) -> String {
    let times = usize::try_from(letter.deaths.unwrap_or(1)).unwrap_or(usize::MAX);
    format!("by the broker, {}", count(times, "time"))
}

/// The error with its code, or the broker's reason.
fn why(letter: &Summary) -> String {
    let reason = letter.reason.as_deref().map(super::plain);
    match (reason, letter.code) {
        (Some(reason), Some(code)) => format!("{reason} {code}"),
        (Some(reason), None) => reason,
        (None, _) => NONE.to_owned(),
    }
}

/// The list for machines.
pub fn list_json(seen: Seen<'_>, letters: &[Summary]) -> Value {
    let letters: Vec<Value> = letters
        .iter()
        .map(|letter| with_age(letter, seen.now_ms))
        .collect();
    json!({"queue": seen.queue, "total": seen.total, "limited": seen.limited, "dead_letters": letters})
}

fn with_age(letter: &Summary, now_ms: u64) -> Value {
    let mut value = json!(letter);
    value["age_ms"] = json!(letter.age_ms(now_ms));
    value
}

/// One letter for people; the body follows it if it is wanted whole.
pub fn letter(seen: Seen<'_>, summary: &Summary, body: &Body, letter: &Letter) -> String {
    let said = match (&summary.message, summary.by) {
        (Some(message), _) => message.clone(),
        (None, By::Broker) => by_broker(summary),
        (None, _) => "no reason is written on it".to_owned(),
    };
    let mut out = format!("{} in {}: {}, {said}\n\n", summary.id, seen.queue, why(summary));
    let at = |unix_ms: Option<u64>| {
        let ago = |ms| span(seen.now_ms.saturating_sub(ms));
        unix_ms.map(|ms| format!("{}, {} ago", moment(ms), ago(ms)))
    };
    let number = |n: Option<u64>| n.map(|n| n.to_string());
    let lines = [
        ("died", at(summary.died_unix_ms)),
        ("sent", at(summary.sent_unix_ms)),
        ("from", summary.queue.clone()),
        ("field", summary.param.clone()),
        ("attempt", number(summary.attempt)),
        (
            "given back",
            Some(count(usize::try_from(letter.looks).unwrap_or(usize::MAX), "time")),
        ),
        ("body", Some(asks_for(summary, body))),
    ];
    let mut rows: Vec<Vec<String>> = lines
        .into_iter()
        .filter_map(|(name, text)| Some(vec![name.to_owned(), super::plain(&text?)]))
        .collect();
    rows.extend(
        body.texts
            .iter()
            .map(|text| vec![String::new(), format!("\"{text}\"")]),
    );
    out.push_str(&table(&rows));
    for (title, map) in [("properties", &letter.properties), ("headers", &letter.headers)] {
        if !map.is_empty() {
            out.push_str(&format!("\n{title}\n"));
            out.push_str(&table(&fields(map)));
        }
    }
    out
}

fn asks_for(summary: &Summary, body: &Body) -> String {
    let mut parts = vec![count(summary.bytes, "byte")];
    parts.extend(body.inputs.map(|inputs| count(inputs, "input")));
    parts.extend(body.model.as_ref().map(|model| format!("model {model}")));
    parts.extend(body.problem.clone());
    parts.join(", ")
}

fn fields(map: &Map<String, Value>) -> Vec<Vec<String>> {
    let shown = |value: &Value| match value {
        Value::String(text) => super::plain(text),
        other => super::plain(&other.to_string()),
    };
    map.iter()
        .map(|(name, value)| vec![format!("  {}", super::plain(name)), shown(value)])
        .collect()
}

/// One letter for machines; a body that is not UTF-8 is in base64.
pub fn letter_json(seen: Seen<'_>, summary: &Summary, body: &Body, letter: &Letter, whole: bool) -> Value {
    let mut value = with_age(summary, seen.now_ms);
    value["properties"] = json!(letter.properties);
    value["headers"] = json!(letter.headers);
    value["given_back"] = json!(letter.looks);
    value["texts"] = json!(body.texts);
    value["model"] = json!(body.model);
    value["problem"] = json!(body.problem);
    if whole {
        match std::str::from_utf8(&letter.body) {
            Ok(text) => value["body"] = json!(text),
            Err(_) => value["body_base64"] = json!(STANDARD.encode(&letter.body)),
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::super::summary::{read, tests as letters};
    use super::*;

    const SEEN: Seen<'static> = Seen {
        queue: "embeddings.dead",
        total: 2,
        limited: false,
        now_ms: 5_060_000,
    };

    #[test]
    fn the_first_line_is_the_answer() {
        let empty = Seen { total: 0, ..SEEN };
        assert_eq!(list(empty, &[]), "no dead letters in embeddings.dead\n");
        assert_eq!(list(SEEN, &[]), "0 of 2 dead letters in embeddings.dead\n");
        let limited = Seen {
            limited: true,
            ..SEEN
        };
        assert!(head(limited, 1).ends_with("read no further; --limit shows more\n"));
        let both = [read(&letters::refused()).0, read(&letters::caught()).0];
        let expected = "\
2 dead letters in embeddings.dead

job    age     from         why             attempt  inputs  bytes  message
job-7  67 min  interactive  internal 500    5        2       19     it is broken
c-1    60 s    bulk         delivery_limit  -        -       8      by the broker, 2 times
";
        assert_eq!(list(SEEN, &both), expected);
        let machine = list_json(SEEN, &both);
        assert_eq!(machine["dead_letters"][1]["age_ms"], 60_000);
        assert_eq!(machine["dead_letters"][0]["by"], "service");
    }

    #[test]
    fn a_letter_is_shown_with_everything() {
        let refused = letters::refused();
        let (summary, body) = read(&refused);
        let text = letter(SEEN, &summary, &body, &refused);
        assert!(text.starts_with("job-7 in embeddings.dead: internal 500, it is broken\n\n"));
        for part in [
            "body        19 bytes, 2 inputs\n            \"a\"\n",
            "\nproperties\n  message_id  job-7\n",
            "  x-attempt         5\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        let machine = letter_json(SEEN, &summary, &body, &refused, true);
        assert_eq!(machine["body"], r#"{"input":["a","b"]}"#);
        let broken = letters::letter(json!({}), json!({"a": "\u{1b}[2J"}), b"\xff");
        let (summary, body) = read(&broken);
        let machine = letter_json(SEEN, &summary, &body, &broken, true);
        assert_eq!(machine["body_base64"], "/w==");
        assert!(!letter(SEEN, &summary, &body, &broken).contains('\u{1b}'));
    }
}
