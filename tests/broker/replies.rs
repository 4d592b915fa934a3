//! Contract 3.1 and 3.2: what a good job gets back.

use crate::caller::{Caller, cosine};
use crate::service::{Bench, MODEL, bench};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;

async fn ready(test: &str, settings: &str) -> Option<(Bench, crate::service::Service, Caller)> {
    let bench = bench(test)?;
    let service = bench.serve(settings);
    let caller = Caller::connect(&bench).await;
    Some((bench, service, caller))
}

fn norm(vector: &[f32]) -> f32 {
    vector.iter().map(|x| x * x).sum::<f32>().sqrt()
}

/// Goal: every property, header and field of a result, on both lanes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_is_complete() {
    let Some((_bench, _service, mut caller)) = ready("result", "").await else {
        return;
    };
    for queue in [caller.names.interactive.clone(), caller.names.bulk.clone()] {
        let (properties, id) = caller.properties();
        let properties = properties
            .with_message_id("order 66".into())
            .with_content_type("application/json".into());
        let body = br#"{"input":["one small step","one giant leap"],"user":"x","model":null}"#;
        let reply = caller.ask_raw(&queue, body, properties).await;
        assert_eq!(reply.kind(), Some("embeddings.result"));
        assert_eq!(reply.correlation_id(), Some(id.as_str()));
        assert_eq!(reply.message_id(), Some("order 66"));
        let app = reply.properties.app_id().as_ref().map(|id| id.as_str());
        assert_eq!(app, Some("embeddings"));
        assert_eq!(reply.header("x-attempt").as_deref(), Some("1"));
        let fingerprint = reply.header("x-model-fingerprint");
        assert!(fingerprint.is_some_and(|text| text.len() >= 16));
        assert_eq!(reply.json["object"], "list");
        assert_eq!(reply.json["model"], MODEL);
        assert_eq!(reply.json["truncated"], json!([]));
        let usage = &reply.json["usage"];
        assert_eq!(usage["prompt_tokens"], usage["total_tokens"]);
        // [CLS] one small step [SEP], and as many for the other.
        assert_eq!(usage["total_tokens"], 10);
        for (index, item) in reply.json["data"].as_array().unwrap().iter().enumerate() {
            assert_eq!(
                (item["object"].as_str(), item["index"].as_u64()),
                (Some("embedding"), Some(index as u64))
            );
        }
        for vector in reply.vectors() {
            assert_eq!(vector.len(), 384);
            assert!((norm(&vector) - 1.0).abs() < 1e-3);
        }
    }
}

/// Goal: the job id is the message id, else the correlation id, else made up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_id_is_always_there() {
    let Some((_bench, _service, mut caller)) = ready("ids", "").await else {
        return;
    };
    let reply = caller.ask(&json!({"input": "a"})).await;
    assert_eq!(reply.message_id(), reply.correlation_id());
    let bare = BasicProperties::default().with_reply_to(caller.replies.as_str().into());
    let queue = caller.names.interactive.clone();
    let first = caller.ask_raw(&queue, br#"{"input":"a"}"#, bare.clone()).await;
    let second = caller.ask_raw(&queue, br#"{"input":"a"}"#, bare).await;
    assert_eq!(first.correlation_id(), None);
    assert!(first.message_id().is_some_and(|id| id.len() >= 16));
    assert_ne!(first.message_id(), second.message_id());
}

/// Goal: base64 is the same numbers; dimensions cut and renormalise; aliases, prompts and `normalize` do
/// what they say; a text is the same alone and in company.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vectors_are_what_was_asked_for() {
    let Some((_bench, _service, mut caller)) = ready("vectors", "").await else {
        return;
    };
    let text = "the quick brown fox jumps over the lazy dog";
    let plain = caller.ask(&json!({"input": text})).await.vectors().remove(0);
    let base64 = caller
        .ask(&json!({"input": text, "encoding_format": "base64", "model": "mini"}))
        .await;
    assert!(base64.json["data"][0]["embedding"].is_string());
    assert_eq!(base64.json["model"], MODEL);
    assert_eq!(base64.vectors().remove(0), plain);

    let short = caller
        .ask(&json!({"input": text, "dimensions": 64}))
        .await
        .vectors()
        .remove(0);
    assert_eq!(short.len(), 64);
    assert!((norm(&short) - 1.0).abs() < 1e-3);
    assert!(cosine(&short, &plain[..64]) > 0.9999);

    let long = caller
        .ask(&json!({"input": text, "normalize": false}))
        .await
        .vectors()
        .remove(0);
    assert!((norm(&long) - 1.0).abs() > 0.01, "norm {}", norm(&long));
    assert!(cosine(&long, &plain) > 0.9999);

    for kind in ["query", "document"] {
        let typed = caller
            .ask(&json!({"input": text, "input_type": kind}))
            .await
            .vectors();
        assert!(cosine(&typed[0], &plain) > 0.9999);
    }
    let many: Vec<String> = (0..40)
        .map(|n| format!("{} {n}", "word ".repeat(n * 3)))
        .collect();
    let mut input = many.clone();
    input.insert(17, text.to_owned());
    let company = caller.ask(&json!({"input": input})).await.vectors();
    assert_eq!(company.len(), 41);
    assert!(cosine(&company[17], &plain) > 0.9999);
    assert!(cosine(&company[0], &company[40]) < 0.9999);
}

/// Goal: long inputs are cut and named, or refused if they must not be cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_inputs_are_named() {
    let Some((_bench, _service, mut caller)) = ready("cut", "").await else {
        return;
    };
    let long = "word ".repeat(3000);
    let reply = caller.ask(&json!({"input": ["a", long, "b", long]})).await;
    assert_eq!(reply.json["truncated"], json!([1, 3]));
    let reply = caller
        .ask(&json!({"input": ["a", long], "truncate": false}))
        .await;
    assert_eq!(reply.error(), ("input_too_long", 413, Some("input")));
    let reply = caller.ask(&json!({"input": ["a"], "truncate": false})).await;
    assert_eq!(reply.vectors().len(), 1);
}

/// Goal: a job that comes twice is computed once while its answer is at hand, and answered twice; another job under the
/// same id is another job, and canaries are computed each time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_comes_twice_is_computed_once() {
    const AT_HAND: &str = "answered with what is at hand";
    let settings = "log = { level = \"debug\" }\ncanary_interval_ms = 200";
    let Some((_bench, service, mut caller)) = ready("twice", settings).await else {
        return;
    };
    let queue = caller.names.interactive.clone();
    let (properties, _) = caller.properties();
    let properties = properties.with_message_id("once".into());
    let mut answers = Vec::new();
    for body in [
        r#"{"input":["a","b"]}"#,
        r#"{"input":["a","b"]}"#,
        r#"{"input":["c"]}"#,
    ] {
        let reply = caller.ask_raw(&queue, body.as_bytes(), properties.clone()).await;
        assert!(reply.header("x-model-fingerprint").is_some());
        answers.push(reply.vectors());
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(answers[2].len(), 1);
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(service.log().matches(AT_HAND).count(), 1, "{}", service.log());
}

/// Goal: jobs that come with the same id and body while the first of them is being computed wait for its answer, and each is
/// answered. Method: some seconds of work in one job, sent three times at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_comes_again_while_it_is_computed_is_computed_once() {
    let settings = "log = { level = \"debug\" }";
    let Some((_bench, service, mut caller)) = ready("twins", settings).await else {
        return;
    };
    let queue = caller.names.interactive.clone();
    let body = json!({"input": vec!["many words make long work ".repeat(40); 64]}).to_string();
    let mut ids = Vec::new();
    for _ in 0..3 {
        let (properties, id) = caller.properties();
        let properties = properties.with_message_id("once".into());
        caller.publish(&queue, body.as_bytes(), properties).await;
        ids.push(id);
    }
    let mut answers = Vec::new();
    for _ in 0..3 {
        let reply = caller.reply().await;
        ids.retain(|id| Some(id.as_str()) != reply.correlation_id());
        answers.push(reply.vectors());
    }
    assert!(ids.is_empty());
    assert!(answers[0] == answers[1] && answers[0] == answers[2] && answers[0].len() == 64);
    let log = service.log();
    assert_eq!(log.matches("waits for that answer").count(), 2, "{log}");
}

/// Goal: whoever follows a request through several programs finds it here: each answer carries the caller's `traceparent`,
/// also of a job that has gone on as another message, and the log its trace's id. What is none is left out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_belongs_to_its_caller_s_trace() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let Some((_bench, service, mut caller)) = ready("trace", "[log]\nlevel = \"debug\"").await else {
        return;
    };
    let queue = caller.names.interactive.clone();
    let mut of = |text: &str| {
        let mut headers = FieldTable::default();
        headers.insert("traceparent".into(), AMQPValue::LongString(text.into()));
        caller.properties().0.with_headers(headers)
    };
    // More inputs than one slice, so that the end comes from another message than the first chunk.
    let long = json!({"input": vec!["a text"; 600], "stream": true, "encoding_format": "base64"});
    let (good, bad, streamed, wrong) = (of(&parent), of(&parent), of(&parent), of("00-1-2-3"));
    let told = |reply: &crate::caller::Reply| reply.header("traceparent");
    let reply = caller.ask_raw(&queue, br#"{"input":"a text"}"#, good).await;
    assert_eq!(
        (reply.kind(), told(&reply)),
        (Some("embeddings.result"), Some(parent.clone()))
    );
    let reply = caller.ask_raw(&queue, br#"{"input":7}"#, bad).await;
    assert_eq!(
        (reply.kind(), told(&reply)),
        (Some("embeddings.error"), Some(parent.clone()))
    );
    let reply = caller.ask_raw(&queue, br#"{"input":"a text"}"#, wrong).await;
    assert_eq!((reply.kind(), told(&reply)), (Some("embeddings.result"), None));
    caller
        .publish(&queue, long.to_string().as_bytes(), streamed)
        .await;
    loop {
        let reply = caller.reply().await;
        assert_eq!(told(&reply), Some(parent.clone()), "{:?}", reply.kind());
        if reply.kind() == Some("embeddings.done") {
            break;
        }
    }
    assert!(service.log().contains(TRACE), "{}", service.log());
}
