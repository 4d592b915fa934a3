//! Contract 3.2, 3.4 and 3.5: where messages end up, and what the broker's objects look like.

use crate::caller::{Caller, header, headers};
use crate::private::wait_for;
use crate::service::{SOON, bench};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt as _;
use lapin::BasicProperties;
use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicNackOptions, BasicRejectOptions, QueueDeclareOptions,
    QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;
use std::collections::BTreeSet;

/// Goal: an answer that nobody can take costs nothing but a line in the log; the job is acked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_returned_reply_is_acked() {
    let Some(bench) = bench("returned") else { return };
    let service = bench.serve("");
    let mut caller = Caller::connect(&bench).await;
    for queue in [caller.names.interactive.clone(), caller.names.bulk.clone()] {
        let gone = BasicProperties::default()
            .with_reply_to("no.such.queue".into())
            .with_message_id("into the void".into());
        caller.publish(&queue, br#"{"input":"a"}"#, gone.clone()).await;
        // Also an error that nobody can take.
        caller.publish(&queue, b"not json", gone).await;
        caller.settles_at(&queue, (0, 1)).await;
        caller.ask(&json!({"input": "still here"})).await.vectors();
    }
    // Unacknowledged messages would come back once their consumer is gone.
    let queues = [caller.names.interactive.clone(), caller.names.bulk.clone()];
    service.signal(libc::SIGTERM);
    let mut service = service;
    assert_eq!(service.exit(SOON).0, Some(0));
    for queue in queues {
        caller.settles_at(&queue, (0, 0)).await;
    }
    assert_eq!(caller.depth(&caller.names.dead).await.0, 0);
    assert!(service.log().contains("nobody waits for the answer any more"));
}

/// Goal: what cannot be answered is in the dead-letter queue as it came, with the reason in its headers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_without_a_sender_is_dead_lettered() {
    let Some(bench) = bench("dead") else { return };
    let _service = bench.serve("");
    let caller = Caller::connect(&bench).await;
    let cases: [(&[u8], &str, Option<&str>); 3] = [
        (br#"{"input":"a"}"#, "400", Some("reply_to")),
        (b"\x00\xff", "400", None),
        (br#"{"input":"a","model":"none"}"#, "404", Some("model")),
    ];
    for queue in [&caller.names.interactive, &caller.names.bulk] {
        for (body, code, param) in cases {
            let properties = BasicProperties::default()
                .with_message_id("lost one".into())
                .with_headers(headers(&[("x-mine", 7)]));
            caller.publish(queue, body, properties).await;
            let dead = caller.take(&caller.names.dead).await;
            assert_eq!(dead.data, body);
            let of = &dead.properties;
            assert_eq!(of.message_id().as_ref().map(|id| id.as_str()), Some("lost one"));
            assert_eq!(header(of, "x-mine").as_deref(), Some("7"));
            assert_eq!(header(of, "x-error-code").as_deref(), Some(code));
            assert_eq!(header(of, "x-error-param").as_deref(), param);
            assert!(header(of, "x-error-type").is_some() && header(of, "x-error-message").is_some());
            assert_eq!(header(of, "x-original-queue").as_deref(), Some(queue.as_str()));
            assert_eq!(header(of, "x-attempt").as_deref(), Some("1"));
        }
    }
    // Whoever looks into the letter must be able to tell what it is.
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_content_encoding("gzip".into())
        .with_correlation_id("7".into())
        .with_message_id("packed".into())
        .with_app_id("theirs".into())
        .with_type("theirs.job".into())
        .with_priority(3)
        .with_timestamp(1_700_000_000);
    let gzip = b"\x1f\x8b\x08\x00";
    caller.publish(&caller.names.bulk, gzip, properties.clone()).await;
    let dead = caller.take(&caller.names.dead).await;
    assert_eq!(
        header(&dead.properties, "x-error-param").as_deref(),
        Some("content_encoding")
    );
    let headers = dead.properties.headers().clone().unwrap();
    let kept = properties.with_delivery_mode(2).with_headers(headers);
    assert_eq!((&dead.properties, dead.data.as_slice()), (&kept, gzip.as_slice()));
    for queue in [&caller.names.interactive, &caller.names.bulk] {
        caller.settles_at(queue, (0, 1)).await;
    }
}

/// What comes to the caller's direct reply-to.
async fn direct_answers(caller: &Caller) -> lapin::Consumer {
    let (name, options) = (
        "amq.rabbitmq.reply-to",
        BasicConsumeOptions {
            no_ack: true,
            ..Default::default()
        },
    );
    let subscribed =
        caller
            .channel
            .basic_consume(name.into(), "direct".into(), options, FieldTable::default());
    subscribed.await.unwrap()
}

/// Goal: RabbitMQ's direct reply-to works, and its answers do not count as returned.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn direct_reply_to_works() {
    let Some(bench) = bench("direct") else { return };
    let service = bench.serve("");
    let caller = Caller::connect(&bench).await;
    let mut answers = direct_answers(&caller).await;
    for (n, body) in [br#"{"input":"a"}"#.as_slice(), b"not json"].iter().enumerate() {
        let properties = BasicProperties::default()
            .with_reply_to("amq.rabbitmq.reply-to".into())
            .with_correlation_id(format!("{n}").into());
        caller.publish(&caller.names.interactive, body, properties).await;
        let next = tokio::time::timeout(SOON, answers.next());
        let answer = next.await.unwrap().unwrap().unwrap();
        let id = answer.properties.correlation_id().as_ref().unwrap().to_string();
        assert_eq!(id, n.to_string());
    }
    caller.settles_at(&caller.names.interactive, (0, 1)).await;
    assert!(!service.log().contains("nobody waits"), "{}", service.log());
}

/// Goal: a direct reply-to of a node that the cluster does not have costs one session, however many jobs name it, and callers whose
/// answers were under way just then get them. Method: jobs as a shovel brings them from another cluster, good ones and refused
/// ones, among those of a caller who is here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_direct_reply_to_costs_one_session() {
    const CALLS: usize = 120;
    let Some(bench) = bench("foreign") else { return };
    let service = bench.serve("");
    let caller = Caller::connect(&bench).await;
    let mut answers = direct_answers(&caller).await;
    let queue = caller.names.interactive.clone();
    let node = [&[131, 88, 119, 7], b"reply@7".as_slice(), &[0; 12]].concat();
    let foreign = format!("amq.rabbitmq.reply-to.{}.key", STANDARD.encode(node));
    let bodies = [br#"{"input":"a"}"#.as_slice(), b"not json"];
    for n in 0..CALLS {
        let here = BasicProperties::default()
            .with_reply_to("amq.rabbitmq.reply-to".into())
            .with_correlation_id(n.to_string().into());
        caller.publish(&queue, bodies[n % 2], here).await;
        if n % 20 == 10 {
            let elsewhere = BasicProperties::default().with_reply_to(foreign.as_str().into());
            caller.publish(&queue, bodies[n / 20 % 2], elsewhere).await;
        }
    }
    let mut missing: BTreeSet<String> = (0..CALLS).map(|n| n.to_string()).collect();
    while !missing.is_empty() {
        let next = tokio::time::timeout(SOON, answers.next());
        let answer = next.await.expect("an answer is missing").unwrap().unwrap();
        missing.remove(answer.properties.correlation_id().as_ref().unwrap().as_str());
    }
    // What waits for its turn to be tried is in no queue.
    let told = || {
        service
            .log()
            .matches("the broker knows no such direct reply-to")
            .count()
    };
    wait_for(SOON, "each foreign name is tried", || told() == 6);
    caller.settles_at(&queue, (0, 1)).await;
    caller.settles_at(&caller.names.resumed, (0, 1)).await;
    let log = service.log();
    assert_eq!(log.matches("lost the broker").count(), 1, "{log}");
    assert_eq!(told(), 6, "{log}");
}

/// Goal: a reply queue that takes no more must not lose the job: it is dead-lettered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_reply_queue_dead_letters() {
    let Some(bench) = bench("full") else { return };
    let service = bench.serve("max_attempts = 2");
    let caller = Caller::connect(&bench).await;
    let mut table = FieldTable::default();
    table.insert("x-max-length".into(), AMQPValue::LongInt(1));
    table.insert(
        "x-overflow".into(),
        AMQPValue::LongString("reject-publish".into()),
    );
    let full = caller
        .channel
        .queue_declare("".into(), QueueDeclareOptions::exclusive(), table)
        .await
        .unwrap();
    let full = full.name().to_string();
    let queue = caller.names.interactive.clone();
    let properties = BasicProperties::default().with_reply_to(full.as_str().into());
    caller.publish(&full, b"taken", BasicProperties::default()).await;
    let properties = properties.with_message_id("nobody takes me".into());
    caller
        .publish(&queue, br#"{"input":"a"}"#, properties.clone())
        .await;
    let clock = embeddings::clock::Clock::start();
    while !service.log().contains("failed, to be tried again") {
        assert!(clock.now().since(embeddings::clock::Moment::ZERO) < SOON);
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let status = service.status(&["--json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    let retrying = &status["retrying"][0];
    assert_eq!(retrying["job"], "nobody takes me", "{status}");
    assert_eq!(retrying["attempt"], 2);
    assert!(retrying["last_error"].as_str().unwrap().contains("rejected"));
    let dead = caller.take(&caller.names.dead).await;
    assert_eq!(dead.data, br#"{"input":"a"}"#);
    assert_eq!(
        header(&dead.properties, "x-error-type").as_deref(),
        Some("internal")
    );
    assert_eq!(header(&dead.properties, "x-attempt").as_deref(), Some("2"));
    assert_eq!(header(&dead.properties, "x-original-queue"), Some(queue.clone()));
    assert!(service.log().contains("failed, to be tried again"));
    // What was wrong with the job stays known, though its sender did not hear it.
    caller
        .publish(&queue, br#"{"input":"a","dimensions":0}"#, properties)
        .await;
    let dead = caller.take(&caller.names.dead).await;
    let said = |name| header(&dead.properties, name).unwrap_or_default();
    assert_eq!(said("x-error-type"), "invalid_request");
    assert_eq!(said("x-error-param"), "dimensions");
    assert!(
        said("x-error-message").contains("rejected"),
        "{}",
        said("x-error-message")
    );
    for queue in [&queue, &caller.names.resumed] {
        caller.settles_at(queue, (0, 1)).await;
    }
}

/// Goal: the topology is what the contract says, the broker's own dead-lettering included, and a job
/// that comes a second time says so. Method: a service makes it all and goes; the rest is done by hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_topology_stands() {
    let Some(bench) = bench("topology") else { return };
    let mut maker = bench.serve("");
    maker.signal(libc::SIGTERM);
    assert_eq!(maker.exit(SOON).0, Some(0));
    let mut caller = Caller::connect(&bench).await;
    let listed = bench
        .node
        .ctl("list_queues --formatter json name type durable arguments");
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let of = |name: &str| {
        let mut all = listed.as_array().unwrap().iter();
        all.find(|queue| queue["name"] == name)
            .expect("the queue is there")
            .clone()
    };
    let (lanes, dead) = (
        [caller.names.interactive.clone(), caller.names.bulk.clone()],
        caller.names.dead.clone(),
    );
    for lane in &lanes {
        let shown = of(lane).to_string();
        for part in [
            "quorum",
            "at-least-once",
            "reject-publish",
            "x-delivery-limit",
            &dead,
        ] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
    }
    let exchanges = bench.node.ctl("list_exchanges name type durable");
    let events = exchanges
        .lines()
        .find(|line| line.starts_with(&caller.names.events))
        .unwrap();
    assert!(events.contains("topic") && events.contains("true"), "{events}");

    // The broker's own net: a rejected message is in the dead-letter queue.
    for lane in &lanes {
        caller
            .publish(lane, b"rejected", BasicProperties::default())
            .await;
        let message = caller
            .channel
            .basic_get(lane.as_str().into(), BasicGetOptions::default())
            .await
            .unwrap()
            .unwrap();
        message
            .acker
            .reject(BasicRejectOptions { requeue: false })
            .await
            .unwrap();
        let dead = caller.take(&dead).await;
        assert_eq!(dead.data, b"rejected");
        assert_eq!(
            header(&dead.properties, "x-first-death-reason").as_deref(),
            Some("rejected")
        );
    }

    // A job that was delivered before says so.
    let id = caller.send(&json!({"input": "second time"})).await;
    let message = caller
        .channel
        .basic_get(lanes[0].as_str().into(), BasicGetOptions::default())
        .await
        .unwrap()
        .unwrap();
    let again = BasicNackOptions {
        requeue: true,
        ..Default::default()
    };
    message.acker.nack(again).await.unwrap();
    let _service = bench.serve("");
    let reply = caller.reply().await;
    assert_eq!(reply.correlation_id(), Some(id.as_str()));
    assert_eq!(reply.header("x-attempt").as_deref(), Some("2"));
}

/// Goal: with `declare = false` nothing is declared; the service waits, says so, and starts when all is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_topology_is_waited_for() {
    let Some(bench) = bench("undeclared") else { return };
    let mut service = bench.start(&bench.node.url, "broker.declare = false");
    service.tells("waiting for the broker");
    assert!(!service.has_told("READY=1"));
    let caller = Caller::connect(&bench).await;
    let channel = caller.another_channel().await;
    let passive = QueueDeclareOptions::durable().passive();
    let looked = channel.queue_declare(caller.names.bulk.as_str().into(), passive, FieldTable::default());
    assert!(looked.await.is_err(), "nothing was declared");
    // Another service may declare.
    let _other = bench.serve("");
    service.ready();
    // A queue that vanishes under both is declared again by the one that may, and both go on.
    let channel = caller.another_channel().await;
    channel
        .queue_delete(caller.names.bulk.as_str().into(), QueueDeleteOptions::default())
        .await
        .unwrap();
    let caller = Caller::connect(&bench).await;
    let clock = embeddings::clock::Clock::start();
    loop {
        let channel = caller.another_channel().await;
        let looked = channel
            .queue_declare(caller.names.bulk.as_str().into(), passive, FieldTable::default())
            .await;
        if looked.is_ok_and(|queue| queue.consumer_count() == 2) {
            break;
        }
        let waited = clock.now().since(embeddings::clock::Moment::ZERO);
        assert!(waited < SOON, "the queue has not come back");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(service.exited().is_none());
}
