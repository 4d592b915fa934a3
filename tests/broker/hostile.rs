//! Messages that no honest sender makes: they are answered or dead-lettered, and the next job is served.

use crate::caller::{Caller, headers};
use crate::service::bench;
use serde_json::json;

/// Goal: huge bodies and odd texts cost one answer each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn huge_and_odd_bodies_are_answered() {
    const HUGE: usize = 20 << 20;
    let Some(bench) = bench("hostile") else { return };
    let mut service = bench.serve("");
    let mut caller = Caller::connect(&bench).await;
    let queue = caller.names.interactive.clone();

    let garbage: Vec<u8> = (0..HUGE).map(|n| (n * 31 % 251) as u8).collect();
    let (properties, _) = caller.properties();
    let reply = caller.ask_raw(&queue, &garbage, properties).await;
    assert_eq!(reply.error().1, 400);

    // A valid string far over the model's limit: cut like any other, or refused for its size.
    let long = json!({"input": "word ".repeat(HUGE / 5)}).to_string();
    let (properties, _) = caller.properties();
    let reply = caller.ask_raw(&queue, long.as_bytes(), properties).await;
    match reply.kind() {
        Some("embeddings.result") => assert_eq!(reply.json["truncated"], json!([0])),
        _ => assert!([413, 429].contains(&reply.error().1), "{}", reply.json),
    }

    let nested = format!("{{\"input\":{}", "[".repeat(1 << 20));
    let (properties, _) = caller.properties();
    let reply = caller.ask_raw(&queue, nested.as_bytes(), properties).await;
    assert_eq!(reply.error(), ("invalid_request", 400, Some("input")));

    // Texts without words are texts.
    for text in [
        "", " ", "\0", "a\0b", "\u{feff}", "\u{202e}", "🙂", "\r\n\t", "%s%n",
    ] {
        let reply = caller.ask(&json!({"input": text})).await;
        let vector = reply.vectors().remove(0);
        assert!(vector.iter().all(|x| x.is_finite()), "{text:?}");
    }
    let word = "x".repeat(100_000);
    caller.ask(&json!({"input": word})).await.vectors();
    assert!(service.exited().is_none());
}

/// Goal: properties at their limits come back as they were.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_properties_come_back() {
    let Some(bench) = bench("longprops") else { return };
    let mut service = bench.serve("");
    let mut caller = Caller::connect(&bench).await;
    let queue = caller.names.interactive.clone();
    let id = "é".repeat(127);
    let (properties, _) = caller.properties();
    let properties = properties
        .with_correlation_id(id.as_str().into())
        .with_message_id(id.as_str().into())
        .with_headers(headers(&[("x-delivery-count", i64::MAX), ("x-attempt", -1)]));
    let reply = caller.ask_raw(&queue, br#"{"input":"a"}"#, properties).await;
    assert_eq!(reply.correlation_id(), Some(id.as_str()));
    assert_eq!(reply.message_id(), Some(id.as_str()));
    reply.vectors();
    // A reply queue's name that holds anything.
    for to in [
        "\0",
        "..",
        "amq.rabbitmq.reply-to.garbage",
        "amq.rabbitmq.reply-to.a.b",
        "amq.rabbitmq.reply-to.g1h2AA5yZXBseUA4NDQ2MDcAAApQAAAAAGcB.abc==",
        "amq.rabbitmq.reply-to",
    ] {
        let properties = lapin::BasicProperties::default().with_reply_to(to.into());
        if to == "amq.rabbitmq.reply-to" {
            // The broker itself refuses this to senders that do not listen on it.
            continue;
        }
        caller
            .publish(&queue, br#"{"input":"a"}"#, properties.clone())
            .await;
        caller.publish(&queue, b"{}", properties).await;
    }
    caller.settles_at(&queue, (0, 1)).await;
    caller.ask(&json!({"input": "still here"})).await.vectors();
    assert!(!service.log().contains("lost the broker"), "{}", service.log());
    assert!(service.exited().is_none());
}
