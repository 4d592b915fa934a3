//! Spans of jobs, as a collector gets them; and what it costs when it does not take them.

use crate::caller::Caller;
use crate::collector::{Collector, Mood, attribute, hex};
use crate::private::wait_for;
use crate::service::{MODEL, SOON, Service, bench};
use crate::web::{Response, address, ask, get};
use embeddings::clock::{Clock, Moment};
use lapin::types::{AMQPValue, FieldTable};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use serde_json::{Value, json};
use std::net::TcpListener;
use std::time::Duration;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// Settings with this collector, and HTTP on any free port.
fn with(endpoint: &str, more: &str) -> String {
    format!("http.listen = \"127.0.0.1:0\"\ntraces.otlp_endpoint = \"{endpoint}\"\n{more}")
}

fn parent(flags: &str) -> String {
    format!("00-{TRACE}-{PARENT}-{flags}")
}

/// Sends a job with this traceparent, if any: what its answer says of the trace, and the answer.
async fn traced(caller: &mut Caller, body: &Value, parent: Option<&str>) -> (Option<String>, Value) {
    let (mut properties, _) = caller.properties();
    if let Some(parent) = parent {
        let mut headers = FieldTable::default();
        headers.insert("traceparent".into(), AMQPValue::LongString(parent.into()));
        properties = properties.with_headers(headers);
    }
    let queue = caller.names.interactive.clone();
    let reply = caller
        .ask_raw(&queue, body.to_string().as_bytes(), properties)
        .await;
    (reply.header("traceparent"), reply.json)
}

fn by_http(at: &str, body: &Value, parent: Option<&str>) -> Response {
    let header = parent.map(|parent| ("traceparent", parent));
    ask(at, "POST", "/v1/embeddings", header.as_slice(), &body.to_string())
}

fn sample(at: &str, name: &str) -> f64 {
    let page = get(at, "/metrics").body;
    let value = page
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
}

/// The span that an answer names.
fn named(spans: &[Span], told: &str) -> Span {
    let found = spans.iter().find(|span| hex(&span.span_id) == told[36..52]);
    found
        .unwrap_or_else(|| panic!("{told} is not in {spans:?}"))
        .clone()
}

/// The spans below one, in their order; each begins where the one before ends, and all lie within it.
fn stages(spans: &[Span], of: &Span) -> Vec<String> {
    let mut below: Vec<&Span> = spans
        .iter()
        .filter(|span| span.parent_span_id == of.span_id)
        .collect();
    below.sort_by_key(|span| (span.start_time_unix_nano, span.end_time_unix_nano));
    for pair in below.windows(2) {
        assert_eq!(pair[0].end_time_unix_nano, pair[1].start_time_unix_nano);
    }
    assert!(below.iter().all(|span| span.kind == SpanKind::Internal as i32));
    let first = below
        .first()
        .map_or(of.start_time_unix_nano, |span| span.start_time_unix_nano);
    let last = below
        .last()
        .map_or(of.end_time_unix_nano, |span| span.end_time_unix_nano);
    assert!(of.start_time_unix_nano <= first && last <= of.end_time_unix_nano);
    below.iter().map(|span| span.name.clone()).collect()
}

fn has(span: &Span, attributes: &[(&str, &str)]) {
    for (key, value) in attributes {
        assert_eq!(
            attribute(&span.attributes, key).as_deref(),
            Some(*value),
            "{key} of {span:?}"
        );
    }
}

/// How many lines of the log speak of this.
fn lines(service: &Service, words: &str) -> usize {
    service.log().lines().filter(|line| line.contains(words)).count()
}

/// Goal: a job leaves one tree, below its caller's span, whose root its answer names: by the broker, by HTTP, refused. What
/// the caller does not keep is not told. Method: a collector that decodes what comes, and OpenTelemetry's own messages behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_leaves_a_tree_below_its_caller_s_span() {
    let Some(bench) = bench("traces") else { return };
    let collector = Collector::start("127.0.0.1:0", Mood::Takes);
    let mut service = bench.serve(&with(&collector.endpoint(), ""));
    let at = address(&service);
    let mut caller = Caller::connect(&bench).await;
    let queue = caller.names.interactive.clone();
    let good = json!({"input": ["a text", "another"], "dimensions": 64});
    let bad = json!({"input": "a", "dimensions": 100_000});

    let (told, _) = traced(&mut caller, &good, Some(&parent("01"))).await;
    let (refused, error) = traced(&mut caller, &bad, Some(&parent("01"))).await;
    assert_eq!(error["error"]["param"], "dimensions");
    // Not kept by its caller, or of no trace: the answer says what came.
    let (unkept, _) = traced(&mut caller, &good, Some(&parent("00"))).await;
    assert_eq!(unkept, Some(parent("00")));
    assert_eq!(traced(&mut caller, &good, None).await.0, None);
    let http = by_http(&at, &good, Some(&parent("01")));
    let wrong = by_http(&at, &bad, Some(&parent("01")));
    let headers = [
        ("traceparent", parent("01")),
        ("x-sent-at-ms", "1".into()),
        ("x-budget-ms", "1".into()),
    ];
    let headers: Vec<(&str, &str)> = headers
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let late = ask(&at, "POST", "/v1/embeddings", &headers, &good.to_string());
    assert_eq!((http.status, wrong.status, late.status), (200, 400, 504));
    let [told, refused] = [told, refused].map(Option::unwrap);
    let [http, wrong, late] = [http, wrong, late].map(|response| response.headers["traceparent"].clone());
    for told in [&told, &refused, &http, &wrong, &late] {
        assert!(
            told.starts_with(&format!("00-{TRACE}-")) && told.ends_with("-01"),
            "{told}"
        );
        assert!(!told.contains(PARENT), "{told}");
    }

    let all = 6 + 3 + 4 + 1 + 1;
    wait_for(SOON, "five trees have come", || {
        collector.trace(TRACE).len() >= all
    });
    let spans = collector.trace(TRACE);
    let span = named(&spans, &told);
    assert_eq!(span.name, format!("process {queue}"));
    assert_eq!(span.kind, SpanKind::Consumer as i32);
    assert_eq!(hex(&span.parent_span_id), PARENT);
    assert_eq!(span.status, None);
    has(
        &span,
        &[
            ("messaging.system", "rabbitmq"),
            ("messaging.operation.type", "process"),
            ("messaging.destination.name", &queue),
            ("messaging.message.id", "job-1"),
            ("messaging.message.conversation_id", "job-1"),
            ("messaging.message.body.size", &good.to_string().len().to_string()),
            ("gen_ai.operation.name", "embeddings"),
            ("gen_ai.request.model", MODEL),
            ("gen_ai.usage.input_tokens", "7"),
            ("gen_ai.embeddings.dimension.count", "64"),
            ("embeddings.inputs", "2"),
            ("embeddings.lane", "interactive"),
            ("embeddings.outcome", "answered"),
        ],
    );
    assert_eq!(
        stages(&spans, &span),
        ["admitted", "batched", "computed", "published", "acked"]
    );

    let span = named(&spans, &refused);
    let status = span.status.clone().unwrap();
    assert_eq!(status.code, StatusCode::Error as i32);
    assert_eq!(status.message, "invalid_request: dimensions");
    has(
        &span,
        &[
            ("error.type", "invalid_request"),
            ("embeddings.outcome", "refused"),
        ],
    );
    assert_eq!(stages(&spans, &span), ["published", "acked"]);

    let span = named(&spans, &http);
    assert_eq!(
        (span.name.as_str(), span.kind),
        ("POST /v1/embeddings", SpanKind::Server as i32)
    );
    assert_eq!(hex(&span.parent_span_id), PARENT);
    has(
        &span,
        &[
            ("http.response.status_code", "200"),
            ("gen_ai.usage.input_tokens", "7"),
        ],
    );
    assert_eq!(stages(&spans, &span), ["admitted", "batched", "computed"]);
    // By the conventions for HTTP a caller's mistake is no error of the server's.
    let span = named(&spans, &wrong);
    has(
        &span,
        &[
            ("http.response.status_code", "400"),
            ("embeddings.outcome", "refused"),
        ],
    );
    assert_eq!(span.status, None);
    // A budget that has run out is one.
    let span = named(&spans, &late);
    assert_eq!(span.status.clone().unwrap().code, StatusCode::Error as i32);
    has(
        &span,
        &[
            ("http.response.status_code", "504"),
            ("error.type", "deadline_exceeded"),
            ("embeddings.outcome", "refused"),
        ],
    );

    let (resource, _) = &collector.spans()[0];
    let of = |key| attribute(&resource.attributes, key).unwrap();
    assert_eq!(of("service.name"), "embeddings");
    assert_eq!(of("service.version"), env!("CARGO_PKG_VERSION"));
    assert_eq!(of("process.pid"), service.pid().to_string());
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    assert_eq!(of("host.name"), host);
    assert!(of("service.instance.id").contains(&host));
    assert_eq!(
        collector.spans().len(),
        all,
        "canaries and what is not kept are not told"
    );
    let sent = || sample(&at, "embeddings_spans_sent_total") == all as f64;
    wait_for(SOON, "all are counted", sent);
    assert_eq!(sample(&at, "embeddings_spans_dropped_total"), 0.0);

    // Another collector waits for a restart, and that is said.
    service.write_config(&with("http://127.0.0.1:1", ""));
    service.signal(libc::SIGHUP);
    let waits = || {
        let log = service.log();
        log.lines()
            .any(|line| line.contains("waits for a restart") && line.contains("traces"))
    };
    wait_for(SOON, "the change is named", waits);

    // What was told last is sent before the end.
    let (last, _) = traced(&mut caller, &good, Some(&parent("01"))).await;
    service.signal(libc::SIGTERM);
    assert_eq!(service.exit(SOON).0, Some(0), "{}", service.log());
    named(&collector.trace(TRACE), &last.unwrap());
    assert_eq!(lines(&service, "spans are taken"), 1);
    collector.is_read_by_others();
}

/// Goal: where the configuration says so a job without a trace begins one, which its answer names, and a slice that goes on
/// from another queue stands in the same trace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_may_begin_a_trace_and_its_slices_stay_in_it() {
    let Some(bench) = bench("traceroots") else { return };
    let collector = Collector::start("127.0.0.1:0", Mood::Takes);
    let service = bench.serve(&with(&collector.endpoint(), "traces.sample_percent = 100"));
    let mut caller = Caller::connect(&bench).await;
    let told = by_http(&address(&service), &json!({"input": "a"}), None).headers["traceparent"].clone();
    wait_for(SOON, "its tree has come", || {
        collector.trace(&told[3..35]).len() == 4
    });
    let root = named(&collector.trace(&told[3..35]), &told);
    assert!(root.parent_span_id.is_empty());

    // Two slices, of 512 inputs and of the rest.
    let texts: Vec<String> = (0..640).map(|n| format!("text {n}")).collect();
    caller.send(&json!({"input": texts, "stream": true})).await;
    let (mut first, mut last) = (None, None);
    while let Some(reply) = caller.reply_within(SOON).await {
        let told = reply.header("traceparent").unwrap();
        first.get_or_insert(told.clone());
        if reply.kind() == Some("embeddings.done") {
            last = Some(told);
            break;
        }
    }
    let (first, last) = (first.unwrap(), last.unwrap());
    assert_eq!(first[3..35], last[3..35], "one trace");
    assert_ne!(first, last, "another span");
    wait_for(SOON, "both trees have come", || {
        collector.trace(&first[3..35]).len() >= 12
    });
    let spans = collector.trace(&first[3..35]);
    let (begun, ended) = (named(&spans, &first), named(&spans, &last));
    assert!(begun.parent_span_id.is_empty());
    assert_eq!(ended.parent_span_id, begun.span_id);
    has(
        &begun,
        &[("embeddings.outcome", "moved_on"), ("embeddings.inputs", "512")],
    );
    has(
        &ended,
        &[("embeddings.outcome", "answered"), ("embeddings.inputs", "128")],
    );
    assert!(ended.name.ends_with(".resumed"), "{}", ended.name);
}

/// Goal: a collector that is not there, or would not take anything, costs spans and nothing else; it is said once, and so is
/// its return. Method: a port at which nobody listens, then a collector that is busy, then one that takes.
#[test]
fn an_absent_collector_costs_spans_alone() {
    let Some(bench) = bench("traceabsent") else { return };
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut service = bench.serve(&with(&format!("http://{port}"), ""));
    let at = address(&service);
    let one = || {
        let clock = Clock::start();
        let answer = by_http(&at, &json!({"input": "a text"}), Some(&parent("01")));
        assert_eq!(answer.status, 200, "{answer:?}");
        clock.now().since(Moment::ZERO)
    };
    one();
    let told = || lines(&service, "the collector takes no spans");
    wait_for(SOON, "its absence is told", || told() == 1);
    assert!((0..20).map(|_| one()).max().unwrap() < Duration::from_secs(2));
    assert_eq!(get(&at, "/health/ready").status, 200);
    assert_eq!(get(&at, "/health/live").status, 200);
    // Whoever is busy is asked again, and whoever refuses for good is not.
    let collector = Collector::start(&port.to_string(), Mood::Answers(503));
    wait_for(SOON, "it is asked again", || collector.requests() > 0);
    collector.be(Mood::Answers(400));
    let dropped = || sample(&at, "embeddings_spans_dropped_total");
    wait_for(SOON, "a batch is given up", || dropped() > 0.0);
    collector.be(Mood::Takes);
    one();
    wait_for(SOON, "spans are taken", || !collector.trace(TRACE).is_empty());
    wait_for(SOON, "its return is told", || {
        lines(&service, "spans are taken again") == 1
    });
    assert_eq!(told(), 1, "{}", service.log());
    assert!(service.exited().is_none());
}

/// Goal: a collector that takes connections and never answers holds up no job, no health check, no end. Method: jobs by the
/// broker and by HTTP while each attempt waits for its limit; far more than the queue has room for; then SIGTERM.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_hangs_holds_nothing_up() {
    let Some(bench) = bench("tracehangs") else { return };
    let collector = Collector::start("127.0.0.1:0", Mood::Hangs);
    let mut service = bench.serve(&with(&collector.endpoint(), "max_queue = 1000"));
    let at = address(&service);
    let mut caller = Caller::connect(&bench).await;
    let short = json!({"input": "a"});
    traced(&mut caller, &short, Some(&parent("01"))).await;
    wait_for(SOON, "the collector is asked", || collector.requests() > 0);
    let clock = Clock::start();
    let mut longest = Duration::ZERO;
    let mut rounds = 0;
    // A refusal is a job as well, and quickly done.
    let wrong = json!({"input": "a", "dimensions": 0}).to_string();
    let queue = caller.names.interactive.clone();
    while sample(&at, "embeddings_spans_dropped_total") == 0.0 {
        assert!(clock.now().since(Moment::ZERO) < 2 * SOON, "nothing is dropped");
        let began = clock.now();
        assert_eq!(by_http(&at, &short, Some(&parent("01"))).status, 200);
        longest = longest.max(clock.now().since(began));
        for _ in 0..200 {
            let (properties, _) = caller.properties();
            let mut headers = FieldTable::default();
            headers.insert(
                "traceparent".into(),
                AMQPValue::LongString(parent("01").as_str().into()),
            );
            let properties = properties.with_headers(headers);
            caller.publish(&queue, wrong.as_bytes(), properties).await;
        }
        for _ in 0..200 {
            caller.reply().await;
        }
        rounds += 1;
    }
    assert!(longest < Duration::from_secs(2), "{longest:?} in {rounds} rounds");
    assert_eq!(get(&at, "/health/ready").status, 200);
    // Said after the first attempt, and not again after the second.
    let told = || lines(&service, "the collector takes no spans");
    wait_for(SOON, "a second attempt is made", || collector.requests() > 1);
    assert_eq!(told(), 1, "{}", service.log());
    service.signal(libc::SIGTERM);
    let (code, took) = service.exit(SOON);
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(4), "{took:?}");
}
