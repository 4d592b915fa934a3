//! What the board says, as responses: health, status, models.

use super::Shared;
use super::board::{Posted, Sources};
use super::refusal::{self, json_response};
use crate::clock::{Clock, Moment, millis};
use crate::report::advice::advice;
use crate::report::{Condition, Kill, Part, Report, State as Judgement};
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use futures_util::FutureExt;
use futures_util::future::{self, BoxFuture};
use serde::Serialize;
use serde_json::json;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::spawn_blocking;

/// Records of deaths are read again after this long: none is added while the process lives, but by others of its kind.
const DEATHS_FRESH: Duration = Duration::from_secs(2);
/// A disk that does not answer keeps nobody from being answered.
const DEATHS_MAX: Duration = Duration::from_secs(1);

/// The records of deaths that are kept, or why they cannot be told.
pub(super) type Kills = Result<Vec<Kill>, String>;

/// The records of deaths, as read last. A disk that hangs holds one thread, however many look.
#[derive(Debug)]
pub(super) struct Deaths {
    kept: Mutex<Kept>,
    /// [`DEATHS_FRESH`], but in tests.
    fresh: Duration,
    /// [`DEATHS_MAX`], but in tests.
    patience: Duration,
}

#[derive(Debug, Default)]
struct Kept {
    known: Option<(Moment, Kills)>,
    /// The read that is under way, for all who wait for it.
    reading: Option<Reading>,
}

type Reading = future::Shared<BoxFuture<'static, Kills>>;

impl Default for Deaths {
    fn default() -> Deaths {
        Deaths {
            kept: Mutex::default(),
            fresh: DEATHS_FRESH,
            patience: DEATHS_MAX,
        }
    }
}

impl Deaths {
    /// Those of now, or of the last time at which the disk answered.
    pub(super) async fn kills(&self, sources: &Sources, clock: Clock) -> Kills {
        let reading = {
            let mut kept = self.kept();
            if let Some((at, kills)) = &kept.known
                && clock.now().since(*at) < self.fresh
            {
                return kills.clone();
            }
            // One that did not come back is not given up: the threads for such work are few, and the broker's large
            // messages need them.
            let read = || begin(sources.deaths.clone());
            kept.reading.get_or_insert_with(read).clone()
        };
        let read = tokio::time::timeout(self.patience, reading).await;
        let mut kept = self.kept();
        // Another's, which is still under way, stays.
        kept.reading.take_if(|reading| reading.peek().is_some());
        let kills = match read {
            Ok(kills) => kills,
            Err(_) => match kept.known.take() {
                Some((_, kills)) => kills,
                None => Err("the disk does not answer".into()),
            },
        };
        // Also when it did not answer: nobody need wait for it twice in a row.
        kept.known = Some((clock.now(), kills.clone()));
        kills
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn begin(read: Arc<dyn Fn() -> Kills + Send + Sync>) -> Reading {
    let reading = spawn_blocking(move || read());
    let kills = async { reading.await.unwrap_or_else(|why| Err(why.to_string())) };
    kills.boxed().shared()
}

/// A health check's answer.
#[derive(Serialize)]
struct Health<'a> {
    /// `ok` or `failed`.
    status: &'static str,
    /// Why new work is not welcome, in a word.
    not_ready: Option<&'a str>,
    /// The line that `systemctl status` shows.
    line: &'a str,
    /// How old all of this is.
    age_ms: u64,
    /// Every condition, with its value and its limit.
    conditions: Vec<Condition>,
}

pub(super) async fn live(State(shared): State<Shared>) -> Response<Body> {
    health(&shared, Part::Liveness)
}

pub(super) async fn ready(State(shared): State<Shared>) -> Response<Body> {
    health(&shared, Part::Readiness)
}

fn health(shared: &Shared, part: Part) -> Response<Body> {
    let (posted, age) = shared.board.seen();
    let report = judged(&posted, age);
    let ok = match part {
        Part::Readiness => report.ready,
        Part::Liveness => report.live,
    };
    let health = Health {
        status: if ok { "ok" } else { "failed" },
        not_ready: report.not_ready.as_deref(),
        line: &report.line,
        age_ms: millis(age),
        conditions: report.conditions.clone(),
    };
    let status = if ok {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    uncached(json_response(
        status,
        serde_json::to_vec(&health).expect("plain data is always written"),
    ))
}

pub(super) async fn status(State(shared): State<Shared>) -> Response<Body> {
    let report = report(&shared).await;
    let mut json = serde_json::to_vec_pretty(&report).expect("plain data is always written");
    json.push(b'\n');
    uncached(json_response(StatusCode::OK, json))
}

/// The whole report, as `embeddings status --json` shows it.
async fn report(shared: &Shared) -> Report {
    let (posted, age) = shared.board.seen();
    let mut report = judged(&posted, age);
    report.pid = Some(std::process::id());
    report.host.clone_from(&shared.sources.host);
    report.version = env!("CARGO_PKG_VERSION").into();
    report.uptime_ms = Some(shared.clock.now().as_millis());
    report.at_unix_ms = Clock::unix_ms();
    report.rss_bytes = (shared.sources.process)().rss_bytes;
    report.http = shared.board.http();
    match shared.deaths.kills(&shared.sources, shared.clock).await {
        Ok(mut kills) => {
            kills.truncate(shared.sources.kills_max);
            report.kills = kills;
        }
        Err(why) => report.kills_unknown = Some(why),
    }
    report.hints = advice(&report);
    report
}

/// What was posted, and what its age says of who should have posted since.
pub(super) fn judged(posted: &Posted, age: Duration) -> Report {
    let mut report = posted.report.clone();
    let (late, dead) = (age >= posted.late_after, age >= posted.dead_after);
    let loop_of = |name: &str, of, ok, limit| Condition {
        name: name.into(),
        of,
        ok,
        value: Some(millis(age)),
        limit: Some(millis(limit)),
        unit: Some("ms".into()),
    };
    report.conditions.extend([
        loop_of("loop_answers", Part::Readiness, !late, posted.late_after),
        loop_of("loop_turns", Part::Liveness, !dead, posted.dead_after),
    ]);
    report.live &= !dead;
    if late {
        report.state = Judgement::Degraded;
        report.activity = "hung".into();
        report.line = format!("its loop has not turned for {:.1} s", age.as_secs_f64());
        report.ready = false;
        report.not_ready = Some("hung".into());
        report.progress_age_ms = report.progress_age_ms.map(|ms| ms.saturating_add(millis(age)));
    }
    report
}

pub(super) async fn models(State(shared): State<Shared>) -> Response<Body> {
    let all: Vec<_> = shared.models.iter().map(|name| one(&shared, name)).collect();
    let json = json!({ "object": "list", "data": all });
    json_response(StatusCode::OK, json.to_string().into_bytes())
}

pub(super) async fn model(State(shared): State<Shared>, Path(name): Path<String>) -> Response<Body> {
    match shared.models.iter().find(|known| **known == name) {
        Some(name) => json_response(StatusCode::OK, one(&shared, name).to_string().into_bytes()),
        None => {
            let message = format!("model {name:?} is not one of {}", shared.models.join(", "));
            refusal::plain(StatusCode::NOT_FOUND, "model_not_found", &message)
        }
    }
}

fn one(shared: &Shared, name: &str) -> serde_json::Value {
    let started = Clock::unix_ms().saturating_sub(shared.clock.now().as_millis()) / 1000;
    json!({ "id": name, "object": "model", "created": started, "owned_by": "embeddings" })
}

pub(super) fn uncached(mut response: Response<Body>) -> Response<Body> {
    let never = HeaderValue::from_static("no-store");
    response.headers_mut().insert(header::CACHE_CONTROL, never);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::board::Process;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    /// Goal: the age of the last word decides alone: late costs readiness, much later life.
    #[test]
    fn silence_is_told_of() {
        let mut posted = Posted {
            late_after: Duration::from_secs(3),
            dead_after: Duration::from_secs(30),
            ..Posted::default()
        };
        (posted.report.ready, posted.report.live) = (true, true);
        posted.report.progress_age_ms = Some(10);
        let at = |seconds| {
            let report = judged(&posted, Duration::from_secs(seconds));
            (report.ready, report.live, report.activity, report.progress_age_ms)
        };
        assert_eq!(at(2), (true, true, String::new(), Some(10)));
        assert_eq!(at(3), (false, true, "hung".into(), Some(3010)));
        assert_eq!(at(30), (false, false, "hung".into(), Some(30_010)));
    }

    /// Goal: a disk that hangs holds one thread, however often somebody looks, and is asked again when it has answered.
    /// Method: a read that waits until the test lets it go.
    #[tokio::test]
    async fn a_disk_that_hangs_is_asked_once() {
        let reads = Arc::new(AtomicUsize::new(0));
        let (let_go, held) = mpsc::channel::<()>();
        let held = Mutex::new(held);
        let read = {
            let reads = reads.clone();
            move || {
                let before = reads.fetch_add(1, Ordering::SeqCst);
                let _ = held.lock().unwrap().recv();
                Err(format!("read {before}"))
            }
        };
        let sources = Sources {
            host: String::new(),
            process: Process::default,
            deaths: Arc::new(read),
            kills_max: 0,
            spans: Arc::new(|| (0, 0)),
            storm: Duration::ZERO,
            watchdog: None,
        };
        let deaths = Deaths {
            fresh: Duration::ZERO,
            patience: Duration::from_millis(20),
            ..Deaths::default()
        };
        let clock = Clock::start();
        let look = || deaths.kills(&sources, clock);
        let told = |why: &str| Err::<Vec<Kill>, _>(why.to_owned());
        for _ in 0..8 {
            let (one, other) = tokio::join!(look(), look());
            let silent = told("the disk does not answer");
            assert!(same(&one, &silent) && same(&other, &silent), "{one:?}, {other:?}");
        }
        assert!(reads.load(Ordering::SeqCst) <= 1);
        let_go.send(()).unwrap();
        while !same(&look().await, &told("read 0")) {}
        // What is known is told until the disk answers again.
        assert!(same(&look().await, &told("read 0")));
        assert!(reads.load(Ordering::SeqCst) <= 2);
        drop(let_go);
        while !same(&look().await, &told("read 1")) {}
    }

    fn same(one: &Kills, other: &Kills) -> bool {
        format!("{one:?}") == format!("{other:?}")
    }
}
