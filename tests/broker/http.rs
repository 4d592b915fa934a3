//! Contract 6: jobs by HTTP, answered as those of the broker are, and refused as OpenAI's clients understand it.

use crate::caller::{Caller, cosine};
use crate::private::wait_for;
use crate::proxy::Proxy;
use crate::service::{MODEL, SOON, bench};
use crate::web::{address, ask, connect, embed, get, request, response};
use base64::Engine as _;
use embeddings::clock::{Clock, Moment};
use serde_json::{Value, json};
use std::io::Write;
use std::time::Duration;

/// HTTP on any free port.
const ON: &str = "http.listen = \"127.0.0.1:0\"\n";

pub fn metric(address: &str, sample: &str) -> f64 {
    let page = get(address, "/metrics").body;
    let value = page
        .lines()
        .find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    value
        .unwrap_or_else(|| panic!("no {sample} in {page}"))
        .parse()
        .unwrap()
}

/// A place in a trace, as W3C Trace Context writes it.
const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Goal: the same vectors as through the broker, in each shape of the request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openai_s_route_gives_the_broker_s_vectors() {
    let Some(bench) = bench("http") else { return };
    let service = bench.serve(ON);
    let at = address(&service);
    let texts = ["a text", "another, somewhat longer text"];
    let body = json!({"input": texts, "model": MODEL, "user": "someone", "encoding_format": "float"});
    let mut caller = Caller::connect(&bench).await;
    let by_broker = caller.ask(&body).await;
    let by_http = ask(
        &at,
        "POST",
        "/v1/embeddings",
        &[("x-request-id", "mine-1"), ("traceparent", TRACEPARENT)],
        &body.to_string(),
    );
    assert_eq!(by_http.vectors(), by_broker.vectors());
    assert_eq!(by_http.headers["x-request-id"], "mine-1");
    assert_eq!(by_http.headers["traceparent"], TRACEPARENT);
    assert_eq!(
        by_http.headers["x-model-fingerprint"],
        by_broker.header("x-model-fingerprint").unwrap()
    );
    let told = by_http.json();
    assert_eq!((&told["object"], &told["model"]), (&json!("list"), &json!(MODEL)));
    assert_eq!(told["usage"]["prompt_tokens"], told["usage"]["total_tokens"]);
    assert!(embed(&at, &body).headers["x-request-id"].starts_with("req_"));

    let one = embed(&at, &json!({"input": texts[0], "model": "mini"})).vectors();
    assert!(cosine(&one[0], &by_broker.vectors()[0]) > 0.99999);
    let coded = embed(&at, &json!({"input": texts[0], "encoding_format": "base64"})).json();
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(coded["data"][0]["embedding"].as_str().unwrap())
        .unwrap();
    let decoded: Vec<f32> = bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect();
    assert_eq!(decoded, one[0]);
    let short = embed(&at, &json!({"input": texts[0], "dimensions": 64})).vectors();
    assert_eq!(short[0].len(), 64);

    let models = get(&at, "/v1/models").json();
    let ids: Vec<&str> = models["data"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|it| it["id"].as_str())
        .collect();
    assert_eq!(ids, [MODEL, "mini"]);
    assert_eq!(get(&at, "/v1/models/mini").json()["object"], "model");
    assert_eq!(get(&at, "/v1/models/none").error().1, "model_not_found");
    assert!(get(&at, "/").body.starts_with("<!doctype html>"));
}

/// Goal: what the broker takes bounds the answers that go through it, and no others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_s_bound_is_for_its_own_answers() {
    let Some(bench) = bench("httplarge") else { return };
    let service = bench.serve(&format!("{ON}broker.max_message_bytes = 65536"));
    let body = json!({"input": vec!["a"; 64]});
    let mut caller = Caller::connect(&bench).await;
    let refused = caller.ask(&body).await;
    assert_eq!(refused.error(), ("too_many_inputs", 413, Some("input")));
    assert_eq!(embed(&address(&service), &body).vectors().len(), 64);
}

/// Goal: whatever is wrong gets its status, and the field in OpenAI's shape; nothing of it disturbs the service.
#[test]
fn what_is_wrong_is_named() {
    let Some(bench) = bench("httpwrong") else { return };
    let mut service = bench.serve(&format!("{ON}max_inputs = 3"));
    let at = address(&service);
    for (body, status, code, param) in [
        ("{", 400, "invalid_request", None),
        ("{}", 400, "invalid_request", Some("input")),
        (r#"{"input":[1,2,"a"]}"#, 400, "invalid_request", Some("input")),
        (
            r#"{"input":[[1,2],[999999]]}"#,
            400,
            "invalid_request",
            Some("input"),
        ),
        (
            r#"{"input":[[1],[2],[3],[4]]}"#,
            413,
            "too_many_inputs",
            Some("input"),
        ),
        (r#"{"input":[]}"#, 400, "invalid_request", Some("input")),
        (
            r#"{"input":"a","model":"nobody"}"#,
            404,
            "model_not_found",
            Some("model"),
        ),
        (
            r#"{"input":"a","dimensions":385}"#,
            400,
            "invalid_request",
            Some("dimensions"),
        ),
        (
            r#"{"input":"a","encoding_format":"hex"}"#,
            400,
            "invalid_request",
            Some("encoding_format"),
        ),
        (
            r#"{"input":"a","stream":true}"#,
            400,
            "invalid_request",
            Some("stream"),
        ),
        (
            r#"{"input":["a","b","c","d"]}"#,
            413,
            "too_many_inputs",
            Some("input"),
        ),
    ] {
        let response = ask(&at, "POST", "/v1/embeddings", &[], body);
        let expected = (status, code.to_owned(), param.map(str::to_owned));
        assert_eq!(response.error(), expected, "{body}");
        assert_eq!(response.headers["content-type"], "application/json");
    }
    let long = json!({"input": "one two three four ".repeat(400), "truncate": false});
    assert_eq!(embed(&at, &long).error().1, "input_too_long");
    let plain = json!({"input": "a"}).to_string();
    for (header, status, param) in [
        (("content-type", "text/plain"), 400, Some("content_type")),
        (("content-encoding", "gzip"), 400, Some("content_encoding")),
        (("x-budget-ms", "soon"), 400, Some("x-budget-ms")),
        (("x-budget-ms", "0"), 504, None),
        (("host", "evil.example"), 421, None),
        (("x-request-id", &"x".repeat(200)), 400, Some("x-request-id")),
    ] {
        let (got, _, field) = ask(&at, "POST", "/v1/embeddings", &[header], &plain).error();
        assert_eq!((got, field.as_deref()), (status, param), "{header:?}");
    }
    for (method, path, status) in [
        ("GET", "/v1/embeddings", 405),
        ("POST", "/metrics", 405),
        ("GET", "/nothing", 404),
        ("GET", "/v1/../metrics", 404),
    ] {
        assert_eq!(
            ask(&at, method, path, &[], "").error().0,
            status,
            "{method} {path}"
        );
    }
    // Its length alone refuses a body, before any of it is read.
    let mut stream = connect(&at);
    let head = "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 33554433\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    assert_eq!(response(&mut stream).error().0, 413);
    assert!(service.exited().is_none());
    assert_eq!(embed(&at, &json!({"input": "a"})).vectors().len(), 1);
}

/// Goal: above `max_queue` callers are told at once when to come back, a model that is busy to its last place answers health
/// checks at once, and whoever was taken in is answered.
#[test]
fn an_overload_is_refused_at_once_and_health_is_answered() {
    let Some(bench) = bench("httpflood") else { return };
    let service = bench.serve(&format!("{ON}max_queue = 4"));
    let at = address(&service);
    let body = json!({"input": vec!["some words to work on for a while ".repeat(20); 64]});
    let asked: Vec<_> = (0..40)
        .map(|_| {
            let (at, body) = (at.clone(), body.clone());
            std::thread::spawn(move || {
                let clock = Clock::start();
                (embed(&at, &body), clock.now().since(Moment::ZERO))
            })
        })
        .collect();
    wait_for(SOON, "the queue is full", || {
        get(&at, "/health/ready").status == 503
    });
    for path in ["/health/live", "/health/ready", "/metrics", "/status"] {
        let clock = Clock::start();
        let status = get(&at, path).status;
        let took = clock.now().since(Moment::ZERO);
        assert!(took < Duration::from_secs(1), "{path}: {took:?}");
        assert!(status == 200 || path == "/health/ready", "{path}: {status}");
    }
    let (mut answered, mut refused) = (0, 0);
    for ask in asked {
        let (response, took) = ask.join().unwrap();
        if response.status == 200 {
            answered += 1;
            continue;
        }
        refused += 1;
        assert_eq!(response.error(), (429, "overloaded".into(), None));
        assert!(took < Duration::from_secs(3), "refused after {took:?}");
        let seconds: u64 = response.headers["retry-after"].parse().unwrap();
        let ms: u64 = response.headers["retry-after-ms"].parse().unwrap();
        assert!(
            seconds >= 1 && seconds == ms.div_ceil(1000).max(1),
            "{response:?}"
        );
    }
    assert!(
        answered >= 4 && refused >= 1,
        "{answered} answered, {refused} refused"
    );
    wait_for(SOON, "the queue is empty", || {
        get(&at, "/health/ready").status == 200
    });
    let counted = |sample: &str| metric(&at, sample) as usize;
    wait_for(SOON, "all are counted", || {
        counted("embeddings_rejected_total{reason=\"queue_full\"}") == refused
            && counted("embeddings_jobs_total{lane=\"interactive\",outcome=\"answered\"}") == answered
    });
}

/// Goal: who goes away is not worked for any further, and holds no place.
#[test]
fn a_caller_that_goes_away_leaves_its_place() {
    let Some(bench) = bench("httpgone") else { return };
    let service = bench.serve(&format!("{ON}max_inflight = 1\n[engine]\nthreads = 1"));
    let at = address(&service);
    let long = json!({"input": vec!["many words that take their time ".repeat(40); 2000]});
    let body = request("POST", "/v1/embeddings", &[], &long.to_string());
    let mut leaving: Vec<_> = (0..5).map(|_| connect(&at)).collect();
    for stream in &mut leaving {
        stream.write_all(&body).unwrap();
    }
    let inside = || {
        metric(&at, "embeddings_queue_jobs{lane=\"interactive\"}") + metric(&at, "embeddings_inflight_jobs")
    };
    wait_for(SOON, "all are taken in", || inside() >= 5.0);
    let before = metric(&at, "embeddings_inputs_total");
    drop(leaving);
    let clock = Clock::start();
    assert_eq!(embed(&at, &json!({"input": "short"})).vectors().len(), 1);
    let took = clock.now().since(Moment::ZERO);
    let returned = "embeddings_jobs_total{lane=\"interactive\",outcome=\"returned\"}";
    wait_for(SOON, "nothing is inside", || {
        inside() == 0.0 && metric(&at, returned) == 5.0
    });
    let computed = metric(&at, "embeddings_inputs_total") - before;
    assert!(
        computed < 1000.0,
        "{computed} inputs were computed for nobody, {took:?}"
    );
}

/// Goal: jobs by HTTP need no broker: they are answered before the first session, and over the loss of one; readiness says
/// that the broker is missing. No such job makes the service ready, or keeps it alive.
#[test]
fn jobs_by_http_need_no_broker_and_prove_nothing() {
    let Some(bench) = bench("httplone") else { return };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nowhere = taken.local_addr().unwrap();
    drop(taken);
    let mut service = bench.start(&bench.node.url_at(nowhere), ON);
    service.tells("waiting for the broker");
    let at = address(&service);
    for _ in 0..3 {
        assert_eq!(embed(&at, &json!({"input": "a text"})).vectors().len(), 1);
    }
    let ready = get(&at, "/health/ready");
    assert_eq!(
        (ready.status, &ready.json()["not_ready"]),
        (503, &json!("starting"))
    );
    assert_eq!(get(&at, "/health/live").status, 200);
    assert!(!service.has_told("READY=1") && !service.has_told("WATCHDOG=1"));
    assert_eq!(metric(&at, "embeddings_watchdog_pets_total"), 0.0);

    let proxy = Proxy::to(bench.node.address());
    let limits =
        format!("{ON}disconnect_kill_ms = 3000\nwatchdog_interval_ms = 200\ncanary_interval_ms = 500");
    let mut service = bench.start(&bench.node.url_at(proxy.address), &limits);
    service.ready();
    let at = address(&service);
    let long = json!({"input": vec!["words over which the broker is lost ".repeat(30); 300]});
    let waiting = std::thread::spawn({
        let at = at.clone();
        move || embed(&at, &long)
    });
    wait_for(SOON, "it is at work", || {
        metric(&at, "embeddings_inflight_jobs") > 0.0
    });
    proxy.cut();
    assert_eq!(waiting.join().unwrap().vectors().len(), 300);
    wait_for(SOON, "the loss is counted", || {
        metric(&at, "embeddings_broker_disconnects_total") == 1.0
    });
    wait_for(SOON, "it is ready again", || {
        get(&at, "/health/ready").status == 200
    });
    // A broker that stays away ends the process in time, however many jobs by HTTP are answered meanwhile.
    proxy.refuse(true);
    proxy.cut();
    let clock = Clock::start();
    let mut answered = 0;
    while service.exited().is_none() {
        assert!(
            clock.now().since(Moment::ZERO) < Duration::from_secs(10),
            "{answered} answered"
        );
        let Ok(mut stream) = std::net::TcpStream::connect(&at) else {
            continue;
        };
        let body = request("POST", "/v1/embeddings", &[], r#"{"input":"a"}"#);
        let mut text = String::new();
        let asked = stream
            .write_all(&body)
            .and_then(|()| std::io::Read::read_to_string(&mut stream, &mut text));
        answered += usize::from(asked.is_ok() && text.starts_with("HTTP/1.1 200"));
    }
    assert_eq!(service.exit(SOON).0, Some(70), "{}", service.log());
    assert!(answered > 0);
}

/// Goal: SIGTERM under load: what is in flight is answered, what waits is told to come again, nobody is left without a word.
#[test]
fn a_stop_answers_or_sends_away() {
    let Some(bench) = bench("httpstop") else { return };
    let mut service = bench.serve(&format!("{ON}drain_ms = 20000\nmax_inflight = 2"));
    let at = address(&service);
    let body = json!({"input": vec!["words to be done before the end ".repeat(20); 64]});
    let asked: Vec<_> = (0..12)
        .map(|_| {
            let (at, body) = (at.clone(), body.clone());
            std::thread::spawn(move || embed(&at, &body))
        })
        .collect();
    let inside = || {
        metric(&at, "embeddings_queue_jobs{lane=\"interactive\"}") + metric(&at, "embeddings_inflight_jobs")
    };
    // What only waits when the stop comes is sent away, so something must be at work.
    wait_for(SOON, "all are taken in, and some are at work", || {
        inside() >= 10.0 && metric(&at, "embeddings_inflight_jobs") >= 1.0
    });
    service.signal(libc::SIGTERM);
    service.tells("STOPPING=1");
    let (mut answered, mut sent_away) = (0, 0);
    for ask in asked {
        let response = ask.join().unwrap();
        if response.status == 200 {
            answered += 1;
        } else {
            assert_eq!(response.error().1, "draining", "{response:?}");
            assert!(response.headers["retry-after"].parse::<u64>().unwrap() >= 1);
            sent_away += 1;
        }
    }
    assert!(
        answered > 0 && sent_away > 0,
        "{answered} answered, {sent_away} sent away"
    );
    assert_eq!(service.exit(SOON).0, Some(0), "{}", service.log());
}

/// Goal: the token opens all but health and the page; without it an OpenAI client reads what is missing. Method: the same
/// requests with the right one, a wrong one, and none.
#[test]
fn a_token_guards_everything_but_health() {
    let Some(bench) = bench("httptoken") else { return };
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "sesame\nnot this\n").unwrap();
    let set = format!("{ON}http.token_file = \"{}\"", file.path().display());
    let mut service = bench.serve(&set);
    let at = address(&service);
    let body = json!({"input": "a"}).to_string();
    for (token, opens) in [
        (Some("Bearer sesame"), true),
        (Some("Bearer not this"), false),
        (None, false),
    ] {
        let headers: Vec<(&str, &str)> = token.map(|token| ("authorization", token)).into_iter().collect();
        let status = if opens { 200 } else { 401 };
        for path in ["/status", "/metrics", "/v1/models"] {
            assert_eq!(
                ask(&at, "GET", path, &headers, "").status,
                status,
                "{path} {token:?}"
            );
        }
        let answer = ask(&at, "POST", "/v1/embeddings", &headers, &body);
        assert_eq!(answer.status, status);
        if !opens {
            assert_eq!(answer.error().1, "invalid_api_key");
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
        }
    }
    for path in ["/", "/health/live", "/health/ready"] {
        assert_eq!(get(&at, path).status, 200, "{path}");
    }
    // With a token a proxy may call us by any name.
    let named = [("host", "vectors.example"), ("authorization", "Bearer sesame")];
    assert_eq!(ask(&at, "GET", "/status", &named, "").status, 200);

    // A reload takes another one over, and keeps the one before where there is none.
    let status = |token: &str| ask(&at, "GET", "/status", &[("authorization", token)], "").status;
    for (written, statuses) in [("abracadabra", [401, 200]), ("", [401, 200])] {
        std::fs::write(file.path(), format!("{written}\n")).unwrap();
        service.forget_told();
        service.signal(libc::SIGHUP);
        service.tells("READY=1");
        let told = [status("Bearer sesame"), status("Bearer abracadabra")];
        assert_eq!(told, statuses, "{written:?}");
    }
    assert!(service.log().contains("configuration kept as it was"));

    std::fs::write(file.path(), "\n").unwrap();
    let mut refused = bench.start(&bench.node.url, &set);
    assert_eq!(refused.exit(SOON).0, Some(78));
    assert!(refused.log().contains("http.token_file"), "{}", refused.log());
}

/// Goal: a port that another instance has costs no job; it is said, and taken over when it is free.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taken_port_costs_no_job() {
    let Some(bench) = bench("httptaken") else { return };
    let first = bench.serve(ON);
    let at = address(&first);
    let second = bench.serve(&format!("http.listen = \"{at}\""));
    let told = |what: &str| {
        let told: Value = serde_json::from_slice(&second.status(&["--json"]).stdout).unwrap();
        told["http"][what].as_str().map(str::to_owned)
    };
    assert_eq!(told("listen"), None);
    assert!(
        told("problem").unwrap().contains("in use"),
        "{:?}",
        told("problem")
    );
    assert!(second.log().contains("http.listen"), "{}", second.log());
    first.signal(libc::SIGKILL);
    drop(first);
    Caller::connect(&bench)
        .await
        .ask(&json!({"input": "a"}))
        .await
        .vectors();
    wait_for(SOON, "the port is taken over", || {
        told("listen") == Some(at.clone())
    });
    assert_eq!(embed(&at, &json!({"input": "a"})).vectors().len(), 1);
}
