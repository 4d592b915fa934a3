//! The thread that sends: batches of jobs, a few attempts at each, and what is said of it in the log.

use super::job::Job;
use super::{Setup, proto};
use crate::clock::{Clock, Moment};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;
use tracing::{info, warn};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// Jobs told of together, at most: half a megabyte or so.
const BATCH: usize = 256;
/// The first of a batch waits so long for others.
const FILL: Duration = Duration::from_secs(1);
/// Longest time for one attempt, from finding the host to the end of its answer.
const ATTEMPT_MAX: Duration = Duration::from_secs(5);
/// Attempts at one batch. What failed so often is dropped, and makes room for later ones.
const ATTEMPTS: u32 = 5;
/// Pause after the first failure; each further one doubles it.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest pause, whatever the collector asks for.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Largest answer that is read.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// The queue counts as keeping up again when nothing was dropped for so long.
const CALM: Duration = Duration::from_secs(60);

/// What is counted, and whether the end has come.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) sent: AtomicU64,
    pub(super) dropped: AtomicU64,
    /// Those of the dropped for which the queue had no place.
    overrun: AtomicU64,
    pub(super) closing: AtomicBool,
}

impl Counts {
    /// There was no place for so many spans.
    pub(super) fn overrun(&self, spans: u64) {
        self.overrun.fetch_add(spans, Ordering::Relaxed);
        self.dropped.fetch_add(spans, Ordering::Relaxed);
    }
}

/// How it goes, as far as the log has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing was sent yet.
    Unknown,
    Well,
    /// The collector takes spans, and more come than it takes.
    Behind,
    Failing,
}

/// Why an attempt came to nothing.
#[derive(Debug)]
struct Fault {
    why: String,
    /// Whether the same request may succeed later (OTLP specification, "Failures").
    may_pass: bool,
    /// How long the collector asks to be left alone.
    pause: Option<Duration>,
}

/// The thread's own things.
#[derive(Debug)]
pub(super) struct Post {
    agent: ureq::Agent,
    /// The whole address.
    url: String,
    resource: Resource,
    clock: Clock,
    counts: Arc<Counts>,
    state: State,
    pause: Duration,
    /// How much the queue had overrun when it was last looked at, and when it last had more than before.
    overrun: (u64, Moment),
    /// What had been dropped when the collector was last well.
    dropped_before: u64,
}

impl Post {
    pub(super) fn new(setup: Setup, counts: Arc<Counts>) -> Post {
        Post {
            agent: agent(&setup.endpoint),
            url: address(&setup.endpoint),
            resource: proto::resource(&setup),
            clock: setup.clock,
            counts,
            state: State::Unknown,
            pause: PAUSE,
            overrun: (0, Moment::ZERO),
            dropped_before: 0,
        }
    }

    /// Sends what comes, until nobody tells any more and all is sent or given up.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        while let Ok(first) = jobs.recv() {
            let mut batch = vec![first];
            let until = self.clock.now() + FILL;
            while batch.len() < BATCH {
                match jobs.recv_timeout(until.since(self.clock.now())) {
                    Ok(job) => batch.push(job),
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
                }
            }
            self.deliver(&batch);
        }
    }

    fn deliver(&mut self, batch: &[Job]) {
        let spans: u64 = batch.iter().map(Job::spans).sum();
        let body = proto::request(&self.resource, batch);
        for attempt in 1..=ATTEMPTS {
            let fault = match self.attempt(&body) {
                Ok(rejected) => {
                    let rejected = rejected.min(spans);
                    self.counts.sent.fetch_add(spans - rejected, Ordering::Relaxed);
                    self.counts.dropped.fetch_add(rejected, Ordering::Relaxed);
                    return self.goes_well(rejected);
                }
                Err(fault) => fault,
            };
            self.fails(&fault.why);
            if !fault.may_pass || attempt == ATTEMPTS || self.closing() {
                break;
            }
            self.wait(fault.pause.unwrap_or(self.pause).min(PAUSE_MAX));
            self.pause = (2 * self.pause).min(PAUSE_MAX);
        }
        self.counts.dropped.fetch_add(spans, Ordering::Relaxed);
    }

    /// One attempt. How many spans the collector would not have.
    fn attempt(&self, body: &[u8]) -> Result<u64, Fault> {
        ask(&self.agent, &self.url, body)
    }

    fn goes_well(&mut self, rejected: u64) {
        self.pause = PAUSE;
        let dropped = self.counts.dropped.load(Ordering::Relaxed);
        let (overrun, now) = (self.counts.overrun.load(Ordering::Relaxed), self.clock.now());
        let before = std::mem::replace(&mut self.overrun.0, overrun);
        let grew = overrun > before && self.state != State::Failing;
        if grew || rejected > 0 {
            self.overrun.1 = now;
        }
        match self.state {
            State::Unknown => info!(collector = self.url, "spans are taken"),
            State::Failing => {
                let dropped = dropped - self.dropped_before;
                info!(collector = self.url, dropped, "spans are taken again");
            }
            State::Well if grew || rejected > 0 => warn!(
                collector = self.url,
                rejected, "more spans come than the collector takes; the others are dropped"
            ),
            State::Behind if now.since(self.overrun.1) >= CALM => {
                info!(collector = self.url, "the collector takes all spans again");
            }
            State::Well | State::Behind => {}
        }
        self.state = match self.state {
            State::Behind if now.since(self.overrun.1) < CALM => State::Behind,
            State::Well if grew || rejected > 0 => State::Behind,
            _ => State::Well,
        };
        self.dropped_before = dropped;
    }

    fn fails(&mut self, why: &str) {
        if self.state != State::Failing {
            warn!(
                collector = self.url,
                why, "the collector takes no spans; they wait, then they are dropped, and jobs go on"
            );
            self.state = State::Failing;
        }
    }

    fn closing(&self) -> bool {
        self.counts.closing.load(Ordering::Acquire)
    }

    /// Waits, unless the end comes.
    fn wait(&self, pause: Duration) {
        let until = self.clock.now() + pause;
        while !self.closing() {
            let rest = until.since(self.clock.now());
            if rest.is_zero() {
                return;
            }
            // Whoever closes wakes it.
            std::thread::park_timeout(rest);
        }
    }
}

/// One request and its answer. How many of the spans in it the collector would not have.
fn ask(agent: &ureq::Agent, url: &str, body: &[u8]) -> Result<u64, Fault> {
    let passing = |error: ureq::Error| Fault {
        why: error.to_string(),
        may_pass: true,
        pause: None,
    };
    let request = agent.post(url).content_type("application/x-protobuf");
    let mut answer = request.send(body).map_err(passing)?;
    let status = answer.status().as_u16();
    if !answer.status().is_success() {
        let asked = answer.headers().get("retry-after");
        let seconds = asked.and_then(|text| text.to_str().ok()?.trim().parse().ok());
        return Err(Fault {
            why: format!("it answers {status}"),
            may_pass: matches!(status, 429 | 502 | 503 | 504),
            pause: seconds.map(Duration::from_secs),
        });
    }
    // What it says of a request that it took is of use, and not needed.
    let told = answer
        .body_mut()
        .with_config()
        .limit(ANSWER_BYTES_MAX)
        .read_to_vec();
    let told = told
        .ok()
        .and_then(|bytes| ExportTraceServiceResponse::decode(&bytes[..]).ok());
    let rejected = told
        .and_then(|told| told.partial_success)
        .map(|part| part.rejected_spans);
    Ok(rejected.and_then(|spans| u64::try_from(spans).ok()).unwrap_or(0))
}

/// Whether a collector takes a request without spans.
pub(super) fn probe(endpoint: &str) -> Result<(), String> {
    let asked = ask(&agent(endpoint), &address(endpoint), &[]);
    asked.map(drop).map_err(|fault| fault.why)
}

/// Where a collector takes traces (OTLP specification, "OTLP/HTTP Request").
fn address(endpoint: &str) -> String {
    format!("{}/v1/traces", endpoint.trim_end_matches('/'))
}

/// The way to the collector. It trusts whom the system trusts, and takes no proxy that the environment names for others.
fn agent(endpoint: &str) -> ureq::Agent {
    let mut tls = TlsConfig::builder();
    if endpoint.starts_with("https://") {
        let roots = rustls_native_certs::load_native_certs();
        let roots = roots
            .certs
            .iter()
            .map(|root| Certificate::from_der(root).to_owned());
        tls = tls.root_certs(RootCerts::Specific(Arc::new(roots.collect())));
    }
    ureq::Agent::config_builder()
        .user_agent(concat!("embeddings/", env!("CARGO_PKG_VERSION")))
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(None)
        .timeout_global(Some(ATTEMPT_MAX))
        .tls_config(tls.build())
        .build()
        .new_agent()
}
