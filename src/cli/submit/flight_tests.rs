//! The flight against a service that is made up: order, losses, refusals, patience.

use super::*;
use crate::job::received;
use crate::job::reply::{TYPE_CHUNK, TYPE_DONE, TYPE_ERROR, TYPE_PROGRESS, TYPE_RESULT};
use proptest::prelude::*;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

fn at(ms: u64) -> Moment {
    Moment::from_millis(ms)
}

fn flight(jobs_max: usize) -> Flight {
    let wording = Wording {
        run: "r".into(),
        model: None,
        input_type: None,
        stream: true,
    };
    Flight::new(wording, jobs_max, PATIENCE)
}

fn batch(first: u64, lines: u64) -> Batch {
    let line = |index: u64| Line {
        file: "f".into(),
        number: index + 1,
        index,
        text: format!("text {index}"),
    };
    Batch {
        lines: (first..first + lines).map(line).collect(),
        bytes: lines,
        ..Batch::default()
    }
}

fn texts(sending: &Sending) -> Vec<String> {
    let body: Value = serde_json::from_slice(&sending.body).unwrap();
    serde_json::from_value(body["input"].clone()).unwrap()
}

fn heard(kind: &str, body: &Value) -> Result<Heard, String> {
    received::read(kind, body.to_string().as_bytes()).unwrap()
}

/// The vectors of these inputs of a message; each says which text it is of.
fn vectors(sending: &Sending, indices: impl IntoIterator<Item = usize>) -> Value {
    let texts = texts(sending);
    let item = |index: usize| {
        let number: f32 = texts[index].split(' ').next_back().unwrap().parse().unwrap();
        json!({"index": index, "embedding": [1.0, number]})
    };
    let data: Vec<Value> = indices.into_iter().map(item).collect();
    json!({"data": data, "usage": {"total_tokens": 2 * data.len()}, "truncated": []})
}

fn error(kind: &str, retry_ms: Option<u64>) -> Result<Heard, String> {
    let body = json!({"error": {"code": 1, "type": kind, "message": "m", "retry_after_ms": retry_ms}});
    heard(TYPE_ERROR, &body)
}

/// All that can be taken: index of each line and whether it has its own vector.
fn taken(flight: &mut Flight) -> Vec<(u64, bool)> {
    let mut lines = Vec::new();
    while let Some(piece) = flight.take() {
        for (line, answer) in piece.lines {
            let own = answer.is_ok_and(|(vector, _)| vector == [1.0, line.index as f32]);
            lines.push((line.index, own));
        }
    }
    lines
}

/// Goal: chunks may come in any order and twice; lines leave as far as they are there, each once.
#[test]
fn chunks_leave_in_order() {
    let mut flight = flight(2);
    flight.offer(batch(0, 40), at(0));
    let sending = flight.next(at(0)).unwrap();
    assert!(String::from_utf8_lossy(&sending.body).contains("\"stream\":true"));
    let hear =
        |flight: &mut Flight, kind, body| flight.heard(&sending.id, None, heard(kind, &body), 0.0, at(5));
    hear(&mut flight, TYPE_CHUNK, vectors(&sending, 32..40));
    assert_eq!(taken(&mut flight), []);
    hear(&mut flight, TYPE_CHUNK, vectors(&sending, 0..16));
    hear(&mut flight, TYPE_CHUNK, vectors(&sending, 0..16));
    assert_eq!(taken(&mut flight), (0..16).map(|n| (n, true)).collect::<Vec<_>>());
    hear(&mut flight, TYPE_CHUNK, vectors(&sending, 8..32));
    assert_eq!(
        taken(&mut flight),
        (16..40).map(|n| (n, true)).collect::<Vec<_>>()
    );
    hear(&mut flight, TYPE_DONE, json!({"total": 40}));
    assert!(flight.is_empty() && flight.held == 0);
}

/// Goal: an end without all vectors is told for each line that has none, and for no other.
#[test]
fn a_job_that_ends_early_fails_what_is_missing() {
    for (kind, body, words) in [
        (TYPE_DONE, json!({"total": 40}), "8 vectors have not come"),
        (
            TYPE_ERROR,
            json!({"error": {"code": 500, "type": "internal", "message": "broken"}}),
            "500 internal: broken",
        ),
    ] {
        let mut flight = flight(1);
        flight.offer(batch(0, 40), at(0));
        let sending = flight.next(at(0)).unwrap();
        let chunk = vectors(&sending, 0..32);
        flight.heard(&sending.id, None, heard(TYPE_CHUNK, &chunk), 0.0, at(1));
        flight.heard(&sending.id, None, heard(kind, &body), 0.0, at(2));
        let piece = flight.take().unwrap();
        assert_eq!(piece.lines.len(), 40);
        for (line, answer) in piece.lines {
            match answer {
                Ok(_) => assert!(line.index < 32),
                Err(cause) => assert!(line.index >= 32 && cause.contains(words), "{cause}"),
            }
        }
        assert!(flight.is_empty());
    }
    let mut flight = flight(1);
    flight.offer(batch(0, 2), at(0));
    let sending = flight.next(at(0)).unwrap();
    let short = vectors(&sending, 1..2);
    flight.heard(&sending.id, None, heard(TYPE_RESULT, &short), 0.0, at(1));
    assert_eq!(taken(&mut flight), [(0, false), (1, true)]);
}

/// Goal: what was not answered is sent again under its old id, so that the service may know the answer; after some
/// vectors have come the rest is another job.
#[test]
fn a_lost_connection_costs_no_line() {
    let mut flight = flight(2);
    flight.offer(batch(0, 40), at(0));
    flight.offer(batch(40, 3), at(0));
    let (first, second) = (flight.next(at(0)).unwrap(), flight.next(at(0)).unwrap());
    let chunk = vectors(&first, 0..32);
    flight.heard(&first.id, None, heard(TYPE_CHUNK, &chunk), 0.0, at(1));
    assert_eq!(taken(&mut flight).len(), 32);
    assert_eq!(flight.lost(at(2)), 2);
    let (rest, same) = (flight.next(at(3)).unwrap(), flight.next(at(3)).unwrap());
    assert_eq!((same.id, &same.body), (second.id, &second.body));
    assert_ne!(rest.id, first.id);
    assert_eq!(
        texts(&rest),
        (32..40).map(|n| format!("text {n}")).collect::<Vec<_>>()
    );
    // A late word of the old one is nobody's.
    flight.heard(&first.id, None, error("internal", None), 0.0, at(4));
    let result = vectors(&rest, 0..8);
    flight.heard(&rest.id, None, heard(TYPE_RESULT, &result), 0.0, at(5));
    assert_eq!(
        taken(&mut flight),
        (32..40).map(|n| (n, true)).collect::<Vec<_>>()
    );
}

/// Goal: a refusal is honoured and is no sign of life; a word of progress is one.
#[test]
fn patience_ends_where_nothing_gets_on() {
    let mut flight = flight(4);
    flight.offer(batch(0, 40), at(1000));
    let sending = flight.next(at(1000)).unwrap();
    assert_eq!(flight.wake(true), Some(at(61_000)));
    let progress = json!({"done": 0, "total": 40, "attempt": 3, "last_error": "engine failed"});
    flight.heard(
        &sending.id,
        None,
        heard(TYPE_PROGRESS, &progress),
        0.0,
        at(50_000),
    );
    assert_eq!(flight.trouble(), Some((3, "engine failed")));
    assert!(flight.gives_up(at(109_999)).is_none());
    flight.heard(&sending.id, None, error("overloaded", Some(500)), 0.0, at(60_000));
    assert_eq!(
        (flight.limit(), flight.wake(true), flight.wake(false)),
        (2, Some(at(60_500)), Some(at(110_000)))
    );
    assert!(flight.next(at(60_499)).is_none());
    assert_eq!(flight.next(at(60_500)).unwrap().id, sending.id);
    let why = flight.gives_up(at(110_000)).unwrap();
    assert!(why.contains("60 s") && why.contains("1 overloaded: m"), "{why}");
    flight.was_stopped(at(200_000));
    assert!(flight.gives_up(at(259_999)).is_none());
}

/// Goal: a vector out of place, or an empty one, is an error and not somebody else's vector.
#[test]
fn nonsense_is_not_believed() {
    for item in [
        json!({"index": 5, "embedding": [1.0]}),
        json!({"index": 0, "embedding": []}),
    ] {
        let mut flight = flight(1);
        flight.offer(batch(0, 2), at(0));
        let sending = flight.next(at(0)).unwrap();
        let body = json!({"data": [item], "usage": {"total_tokens": 1}});
        flight.heard(&sending.id, None, heard(TYPE_RESULT, &body), 0.0, at(1));
        assert_eq!(taken(&mut flight), [(0, false), (1, false)]);
    }
}

proptest! {
    /// Goal: whatever happens on the way, each line leaves once, in order, with its own vector; never more jobs are
    /// under way than allowed, and the window is a bound. Method: a service that answers, refuses, repeats itself
    /// and loses connections at random, and at the end answers all.
    #[test]
    fn each_line_leaves_once(
        sizes in proptest::collection::vec(1u64..80, 1..20),
        jobs_max in 1usize..5,
        steps in proptest::collection::vec((0u8..6, 0usize..100, 0usize..80, 0usize..80), 0..150),
    ) {
        let mut flight = flight(jobs_max);
        let (mut now, mut next_line, mut left) = (0u64, 0u64, Vec::new());
        let mut sizes = sizes.into_iter();
        let mut open: Vec<Sending> = Vec::new();
        let mut answer = steps.into_iter();
        loop {
            while flight.has_room() && let Some(lines) = sizes.next() {
                flight.offer(batch(next_line, lines), at(now));
                next_line += lines;
            }
            prop_assert!(flight.jobs.len() <= jobs_max * WINDOW);
            now += 1;
            while let Some(sending) = flight.next(at(now)) {
                open.push(sending);
            }
            prop_assert!(open.len() <= jobs_max);
            left.extend(taken(&mut flight));
            if flight.is_empty() && sizes.len() == 0 {
                break;
            }
            if flight.is_empty() {
                continue;
            }
            if open.is_empty() {
                let wake = flight.wake(true).expect("something to wait for");
                now = now.max(wake.as_millis());
                continue;
            }
            let (what, which, a, b) = answer.next().unwrap_or((0, 0, 0, 0));
            let which = which % open.len();
            let count = texts(&open[which]).len();
            let (kind, body) = match what {
                0 => (TYPE_RESULT, vectors(&open[which], 0..count)),
                1 | 2 => (TYPE_CHUNK, vectors(&open[which], a.min(count)..b.clamp(a.min(count), count))),
                3 => {
                    let sending = open.remove(which);
                    flight.heard(&sending.id, None, error("overloaded", Some(20)), 0.5, at(now));
                    continue;
                }
                4 => {
                    let sending = open.remove(which);
                    flight.not_taken(&sending.id, "full".into(), 0.5, at(now));
                    continue;
                }
                _ => {
                    open.clear();
                    flight.lost(at(now));
                    continue;
                }
            };
            flight.heard(&open[which].id.clone(), None, heard(kind, &body), 0.0, at(now));
            open.retain(|sending| flight.by_id.contains_key(&sending.id));
        }
        prop_assert_eq!(left, (0..next_line).map(|n| (n, true)).collect::<Vec<_>>());
        prop_assert_eq!(flight.held, 0);
    }
}

/// Goal: one text that the service refuses costs its own line and no other.
/// Method: a service that takes no message with a bad text in it, nor one of more than fifty.
#[test]
fn a_bad_line_fails_alone() {
    let none: &[u64] = &[];
    for (bad, kind_of_error, code) in [
        (none, "invalid_request", 400),
        (&[0], "input_too_long", 413),
        (&[99], "internal", 500),
        (&[17, 18, 63], "invalid_request", 400),
    ] {
        let mut flight = flight(1);
        flight.offer(batch(0, 100), at(0));
        let mut sent = 0;
        let mut lines = Vec::new();
        while let Some(sending) = flight.next(at(sent)) {
            sent += 1;
            assert!(sent < 100, "{bad:?}: it never ends");
            let texts = texts(&sending);
            let fault = texts.len() > 50 || bad.iter().any(|n| texts.contains(&format!("text {n}")));
            let (kind, body) = match fault {
                true => {
                    let error =
                        json!({"code": code, "type": kind_of_error, "message": "m", "param": "input"});
                    (TYPE_ERROR, json!({"error": error}))
                }
                false => (TYPE_RESULT, vectors(&sending, 0..texts.len())),
            };
            flight.heard(&sending.id, None, heard(kind, &body), 0.0, at(sent));
            lines.extend(taken(&mut flight));
        }
        let expected: Vec<(u64, bool)> = (0..100).map(|n| (n, !bad.contains(&n))).collect();
        assert_eq!(lines, expected, "{bad:?}");
        assert!(flight.is_empty() && flight.held == 0, "{bad:?}");
    }
}

/// Goal: what is wrong with every message is not tried for each line.
#[test]
fn a_fault_of_another_field_ends_the_job() {
    let mut flight = flight(1);
    flight.offer(batch(0, 100), at(0));
    let sending = flight.next(at(0)).unwrap();
    let error = json!({"code": 400, "type": "invalid_request", "message": "m", "param": "input_type"});
    flight.heard(
        &sending.id,
        None,
        heard(TYPE_ERROR, &json!({"error": error})),
        0.0,
        at(1),
    );
    assert!(flight.next(at(1)).is_none());
    assert_eq!(taken(&mut flight).len(), 100);
}
