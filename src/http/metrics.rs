//! `GET /metrics`: what is counted and measured, in Prometheus' text format.
//!
//! Labels take their values from closed sets and from the configured models, so the number of series is bounded. Every series
//! is there from the start, with a zero: what appears only when it first happens cannot be compared with before.

mod families;
mod text;

use super::Shared;
use super::board::Full;
use super::refusal;
use crate::clock::Clock;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, Response, StatusCode, header};
use families::Scene;

pub(super) async fn metrics(State(shared): State<Shared>) -> Response<Body> {
    let (posted, age) = shared.board.seen();
    let kills = shared.deaths.kills(&shared.sources, shared.clock).await;
    let scene = Scene {
        report: super::views::judged(&posted, age),
        tally: posted.tally.as_deref(),
        age,
        now: shared.clock.now(),
        unix_ms: Clock::unix_ms(),
        kills: kills.ok(),
        storm: shared.sources.storm,
        watchdog: shared.sources.watchdog,
        process: (shared.sources.process)(),
        spans: (shared.sources.spans)(),
        requests: shared.counts.all(),
        refused: Full::ALL.map(|full| (full.name(), shared.board.refused(full))),
    };
    let mut response = refusal::json_response(StatusCode::OK, scene.write().into_bytes());
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
