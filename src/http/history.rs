//! `GET /history`: the last hour of this process, column by column, for the page and for whoever draws.

use super::Shared;
use super::refusal::json_response;
use super::views::uncached;
use crate::clock::{Clock, Moment};
use crate::logic::hour::{Hour, LANES, Latency, STEP, Slot};
use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode};
use serde::Serialize;
use std::collections::BTreeMap;

/// One value for each slot, the oldest first; `null` where the loop stood still, and where there was nothing to measure.
type Column<T> = Vec<Option<T>>;
/// The same for each lane, by its name.
type Lanes<T> = BTreeMap<&'static str, T>;

/// All of it.
#[derive(Debug, Serialize)]
struct History {
    /// Length of a slot.
    step_ms: u64,
    /// Beginning of the first slot, by the present reading of the wall clock.
    since_unix_ms: u64,
    /// How many there are; each column has so many.
    slots: usize,
    /// Why new work was not welcome in a slot; `""` where it always was.
    not_ready: Column<String>,
    /// Inputs computed.
    inputs_per_second: Column<f64>,
    /// Their tokens.
    tokens_per_second: Column<f64>,
    /// Jobs answered with vectors.
    jobs_per_second: Lanes<Column<f64>>,
    /// How long they took from delivery to acknowledgement.
    job_ms: Lanes<Times>,
    /// Jobs turned away as overloaded.
    overloaded_per_second: Column<f64>,
    /// Other error replies.
    errors_per_second: Column<f64>,
    /// What HTTP turned away before it was a job: requests, bodies and connections for which there was no room.
    http_refused_per_second: Column<f64>,
    /// The most admitted jobs that no engine had begun.
    queue: Lanes<Column<u64>>,
    /// The most jobs that were being computed.
    inflight: Column<u64>,
}

/// Times of jobs in milliseconds; `null` where none ended.
#[derive(Debug, Serialize)]
struct Times {
    mean: Column<f64>,
    p50: Column<f64>,
    p99: Column<f64>,
}

pub(super) async fn history(State(shared): State<Shared>) -> Response<Body> {
    let history = History::of(&shared.board.hour(), shared.clock.now(), Clock::unix_ms());
    let json = serde_json::to_vec(&history).expect("plain data is always written");
    uncached(json_response(StatusCode::OK, json))
}

impl History {
    fn of(hour: &Hour, now: Moment, unix_ms: u64) -> History {
        let step_ms = STEP.as_millis() as u64;
        let (first, slots) = hour.over(now);
        let rate = |count: fn(&Slot) -> u64| {
            let rate = |slot: &Slot| rounded(count(slot) as f64 / STEP.as_secs_f64());
            column(&slots, |slot| Some(rate(slot)))
        };
        let time = |lane: usize, of: fn(Latency) -> f64| {
            column(&slots, |slot| Some(rounded(1000.0 * of(slot.latency[lane]?))))
        };
        History {
            step_ms,
            since_unix_ms: unix_ms.saturating_sub(now.as_millis().saturating_sub(first * step_ms)),
            slots: slots.len(),
            not_ready: column(&slots, |slot| Some(slot.not_ready.clone().unwrap_or_default())),
            inputs_per_second: rate(|slot| slot.inputs),
            tokens_per_second: rate(|slot| slot.tokens),
            jobs_per_second: lanes(|lane| {
                column(&slots, |slot| {
                    Some(rounded(slot.jobs[lane] as f64 / STEP.as_secs_f64()))
                })
            }),
            job_ms: lanes(|lane| Times {
                mean: time(lane, |latency| latency.mean),
                p50: time(lane, |latency| latency.median),
                p99: time(lane, |latency| latency.p99),
            }),
            overloaded_per_second: rate(|slot| slot.overloaded),
            errors_per_second: rate(|slot| slot.errors),
            http_refused_per_second: rate(|slot| slot.door),
            queue: lanes(|lane| column(&slots, |slot| Some(slot.queue[lane]))),
            inflight: column(&slots, |slot| Some(slot.inflight)),
        }
    }
}

fn column<T>(slots: &[Option<&Slot>], value: impl Fn(&Slot) -> Option<T>) -> Column<T> {
    slots.iter().map(|slot| value((*slot)?)).collect()
}

fn lanes<T>(of: impl Fn(usize) -> T) -> Lanes<T> {
    LANES
        .iter()
        .enumerate()
        .map(|(at, lane)| (lane.name(), of(at)))
        .collect()
}

/// A tenth of a unit is finer than anyone draws, and an hour stays some kilobytes.
fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::tally::Tally;
    use crate::report::Report;

    /// Goal: each column has a value for each slot, a gap is `null`, and the wall clock is only asked for where the first one
    /// began: set by an hour, it moves all of them and changes nothing else.
    #[test]
    fn columns_fit_together() {
        let at = Moment::from_millis;
        let (mut hour, mut tally) = (Hour::default(), Tally::new(at(0)));
        hour.look(&Report::default(), &tally, 10, at(25_000));
        tally.inputs = 50;
        hour.look(&Report::default(), &tally, 15, at(41_000));
        let told = |unix_ms| serde_json::to_value(History::of(&hour, at(52_000), unix_ms)).unwrap();
        let mut history = told(10_000_000);
        assert_eq!(history["since_unix_ms"], 10_000_000 - 52_000 + 20_000);
        assert_eq!(history["inputs_per_second"], serde_json::json!([0.0, null, 5.0]));
        assert_eq!(
            history["http_refused_per_second"],
            serde_json::json!([1.0, null, 0.5])
        );
        assert_eq!(history["not_ready"], serde_json::json!(["", null, ""]));
        assert_eq!(
            history["job_ms"]["bulk"]["p99"],
            serde_json::json!([null, null, null])
        );
        assert_eq!(history["queue"]["interactive"], serde_json::json!([0, null, 0]));
        let mut later = told(13_600_000);
        assert_eq!(later["since_unix_ms"], 13_600_000 - 32_000);
        for history in [&mut history, &mut later] {
            history.as_object_mut().unwrap().remove("since_unix_ms");
        }
        assert_eq!(history, later);
    }
}
