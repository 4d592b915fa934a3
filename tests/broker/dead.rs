//! `embeddings dead` on a real queue: letters of both kinds are seen, brought back and deleted, and neither a
//! look nor the death of the command costs one.

use crate::caller::{Caller, header};
use crate::proxy::Proxy;
use crate::service::{Bench, SOON, bench};
use embeddings::clock::{Clock, Moment};
use futures_util::future::join_all;
use lapin::BasicProperties;
use lapin::options::{
    BasicGetOptions, BasicNackOptions, BasicPublishOptions, BasicRejectOptions, QueueDeclareOptions,
    QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// `embeddings dead …` against the node, under the bench's prefix.
fn command(bench: &Bench, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_embeddings"));
    command
        .arg("dead")
        .args(arguments)
        .args(["--config", "/dev/null"])
        .arg("--set")
        .arg(format!("broker.url={}", bench.node.url))
        .arg("--set")
        .arg(format!("broker.prefix={}", bench.prefix))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Exit code, stdout and stderr.
fn dead(bench: &Bench, arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command(bench, arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// What `dead list --json` shows.
fn listed(bench: &Bench, arguments: &[&str]) -> Vec<Value> {
    let (code, out, err) = dead(bench, &[&["list", "--json"], arguments].concat());
    let answer: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
    let letters = answer["dead_letters"].as_array().unwrap().clone();
    assert_eq!(code, Some(if letters.is_empty() { 3 } else { 0 }), "{err}");
    letters
}

fn ids(letters: &[Value]) -> BTreeSet<&str> {
    letters
        .iter()
        .map(|letter| letter["id"].as_str().unwrap())
        .collect()
}

/// The topology without a service.
fn topology(bench: &Bench) {
    let mut maker = bench.serve("");
    maker.signal(libc::SIGTERM);
    assert_eq!(maker.exit(SOON).0, Some(0));
}

/// Letters as the service would have published them, many at a time.
async fn bury(caller: &Caller, ids: &[String], body: &[u8]) {
    let mut headers = FieldTable::default();
    for (name, value) in [
        ("x-error-type", "internal"),
        ("x-error-message", "by hand"),
        ("x-original-queue", &caller.names.bulk),
    ] {
        headers.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    for some in ids.chunks(200) {
        let published = some.iter().map(async |id| {
            let properties = BasicProperties::default()
                .with_headers(headers.clone())
                .with_message_id(id.as_str().into());
            let options = BasicPublishOptions {
                mandatory: true,
                ..Default::default()
            };
            let dead = caller.names.dead.as_str().into();
            let confirm = caller
                .channel
                .basic_publish("".into(), dead, options, body, properties)
                .await
                .unwrap();
            assert!(confirm.await.unwrap().is_ack());
        });
        join_all(published).await;
    }
}

/// Takes everything that is in a queue: the message ids, doubles included.
async fn drain(caller: &Caller, queue: &str) -> Vec<String> {
    let mut found = Vec::new();
    while let Some(got) = caller
        .channel
        .basic_get(queue.into(), BasicGetOptions { no_ack: true })
        .await
        .unwrap()
    {
        found.push(got.delivery.properties.message_id().clone().unwrap().to_string());
    }
    found
}

/// Goal: what the running service could not answer is listed, shown, deleted by reason, and, when its cause is
/// mended, brought back to its lane and answered as if it had never died. Method: jobs without a way back, and one whose
/// reply queue is full at both of its attempts, until it is emptied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dead_are_seen_and_brought_back() {
    let Some(bench) = bench("dead") else { return };
    let _service = bench.serve("max_attempts = 2");
    let caller = Caller::connect(&bench).await;
    let names = caller.names.clone();
    assert_eq!(dead(&bench, &["list"]).0, Some(3));

    let mut table = FieldTable::default();
    table.insert("x-max-length".into(), AMQPValue::LongInt(1));
    table.insert(
        "x-overflow".into(),
        AMQPValue::LongString("reject-publish".into()),
    );
    let declared = caller
        .channel
        .queue_declare("".into(), QueueDeclareOptions::exclusive(), table)
        .await;
    let full = declared.unwrap().name().to_string();
    caller
        .publish(&full, b"in the way", BasicProperties::default())
        .await;
    let good = br#"{"input":["first text","second text"],"model":"mini"}"#;
    let named = |id: &str| BasicProperties::default().with_message_id(id.into());
    let back = named("good").with_reply_to(full.as_str().into());
    caller
        .publish(&names.interactive, good, back.with_correlation_id("c".into()))
        .await;
    caller.publish(&names.interactive, good, named("nowhere")).await;
    caller.publish(&names.bulk, b"not json", named("broken")).await;
    caller.settles_at(&names.dead, (3, 0)).await;

    let (code, out, _) = dead(&bench, &["list"]);
    assert_eq!(code, Some(0));
    assert!(
        out.starts_with(&format!("3 dead letters in {}\n\njob ", names.dead)),
        "{out}"
    );
    let letters = listed(&bench, &[]);
    assert_eq!(ids(&letters), BTreeSet::from(["good", "nowhere", "broken"]));
    let of = |id: &str| letters.iter().find(|letter| letter["id"] == id).unwrap();
    assert_eq!(of("good")["reason"], "internal");
    assert_eq!(of("good")["code"], 500);
    assert_eq!(of("good")["queue"], names.interactive);
    assert_eq!(of("good")["inputs"], 2);
    assert_eq!(of("good")["attempt"], 2);
    assert_eq!(of("nowhere")["reply_to"], false);
    assert_eq!(of("broken")["reason"], "invalid_request");
    assert_eq!(of("broken")["inputs"], Value::Null);
    assert_eq!(
        ids(&listed(&bench, &["--queue", "bulk"])),
        BTreeSet::from(["broken"])
    );
    assert_eq!(
        ids(&listed(&bench, &["--reason", "internal"])),
        BTreeSet::from(["good"])
    );
    assert_eq!(listed(&bench, &["--limit", "2"]).len(), 2);

    let (code, out, _) = dead(&bench, &["show", "good", "--body"]);
    assert_eq!(code, Some(0));
    for part in ["internal 500", "2 inputs, model mini", "\"second text\"", &full] {
        assert!(out.contains(part), "{part} is not in\n{out}");
    }
    assert!(
        out.ends_with(&format!("\nbody\n{}\n", str::from_utf8(good).unwrap())),
        "{out}"
    );
    let (_, out, _) = dead(&bench, &["show", "broken", "--body", "--json"]);
    let shown: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(shown["dead_letters"][0]["body"], "not json");
    let (code, out, err) = dead(&bench, &["show", "absent"]);
    assert_eq!((code, out.as_str()), (Some(3), ""));
    assert!(err.contains("no dead letter absent in"), "{err}");

    // Nothing is mended for these: they come back.
    let (code, out, err) = dead(&bench, &["requeue", "broken", "absent"]);
    assert_eq!(code, Some(3));
    assert!(out.starts_with("1 dead letter requeued: 1 to "), "{out}");
    assert!(
        err.contains("broken: has no reply_to") && err.contains("no dead letter absent"),
        "{err}"
    );
    caller.settles_at(&names.dead, (3, 0)).await;

    let purge = ["purge", "--all", "--reason", "invalid_request", "--yes"];
    let (code, out, _) = dead(&bench, &purge);
    assert_eq!((code, out.as_str()), (Some(0), "2 dead letters deleted\n"));
    assert_eq!(ids(&listed(&bench, &[])), BTreeSet::from(["good"]));
    assert_eq!(dead(&bench, &purge).0, Some(3));

    let emptied = caller
        .channel
        .queue_purge(full.as_str().into(), QueuePurgeOptions::default());
    emptied.await.unwrap();
    let (code, out, err) = dead(&bench, &["requeue", "good"]);
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(
        out,
        format!("1 dead letter requeued: 1 to {}\n", names.interactive)
    );
    let answer = caller.take(&full).await;
    assert_eq!(answer.properties.kind(), &Some("embeddings.result".into()));
    assert_eq!(answer.properties.correlation_id(), &Some("c".into()));
    assert_eq!(header(&answer.properties, "x-attempt").as_deref(), Some("1"));
    caller.settles_at(&names.dead, (0, 0)).await;
}

/// Goal: what the broker's own net caught is told as such, with queue, reason and time, and goes back without
/// its past, whatever its sender had written on it. Method: rejected by hand, with no service there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_s_own_net_is_understood() {
    let Some(bench) = bench("net") else { return };
    topology(&bench);
    let caller = Caller::connect(&bench).await;
    let names = caller.names.clone();
    let mut headers = FieldTable::default();
    headers.insert("x-budget-ms".into(), AMQPValue::LongLongInt(1000));
    headers.insert("x-sent-at-ms".into(), AMQPValue::LongLongInt(5));
    headers.insert("traceparent".into(), AMQPValue::LongString("00-1-2-03".into()));
    let properties = BasicProperties::default()
        .with_correlation_id("net-1".into())
        .with_user_id("guest".into())
        .with_expiration("60000".into())
        .with_headers(headers);
    caller.publish(&names.bulk, br#"{"input":"a"}"#, properties).await;
    let got = caller
        .channel
        .basic_get(names.bulk.as_str().into(), BasicGetOptions::default())
        .await
        .unwrap()
        .unwrap();
    got.acker
        .reject(BasicRejectOptions { requeue: false })
        .await
        .unwrap();
    caller.settles_at(&names.dead, (1, 0)).await;

    let letters = listed(&bench, &[]);
    let letter = &letters[0];
    assert_eq!(letter["id"], "net-1");
    assert_eq!(
        (&letter["by"], &letter["reason"]),
        (&json!("broker"), &json!("rejected"))
    );
    assert_eq!(
        (&letter["queue"], &letter["deaths"]),
        (&json!(names.bulk), &json!(1))
    );
    assert!(
        letter["age_ms"].as_u64().unwrap() < 60_000,
        "since its death, not its sending"
    );
    let (_, out, _) = dead(&bench, &["list", "--reason", "rejected"]);
    assert!(out.contains("by the broker, 1 time"), "{out}");
    let (_, out, _) = dead(&bench, &["show", "net-1"]);
    assert!(out.contains("rejected") && out.contains("x-death"), "{out}");
    let (code, _, err) = dead(&bench, &["purge", "--all", "--older-than", "1h", "--yes"]);
    assert_eq!(code, Some(3), "{err}");

    let before_ms = Clock::unix_ms();
    assert_eq!(dead(&bench, &["requeue", "--all"]).0, Some(0));
    let back = caller.take(&names.bulk).await.properties;
    // The broker's own count of this queue, and so of the job's new life.
    assert_eq!(header(&back, "x-delivery-count").as_deref().unwrap_or("0"), "0");
    let left: Vec<String> = back
        .headers()
        .as_ref()
        .unwrap()
        .inner()
        .keys()
        .map(ToString::to_string)
        .filter(|name| name != "x-delivery-count")
        .collect();
    assert_eq!(left, ["traceparent", "x-budget-ms", "x-sent-at-ms"]);
    let sent_ms: u64 = header(&back, "x-sent-at-ms").unwrap().parse().unwrap();
    assert!(sent_ms >= before_ms, "the caller's budget begins anew");
    assert_eq!((back.user_id(), back.expiration()), (&None, &None));
    caller.settles_at(&names.dead, (0, 0)).await;
}

/// Goal: however often a letter is looked at, it stays. Method: the limit that RabbitMQ 4 has by itself is set
/// by a policy, and a letter that is given back by hand shows that it works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn looking_costs_no_letter() {
    let Some(bench) = bench("looks") else { return };
    topology(&bench);
    let caller = Caller::connect(&bench).await;
    let queue = caller.names.dead.clone();
    bench.node.ctl(&format!(
        "set_policy limit-{0} '^{0}\\.dead$' '{{\"delivery-limit\":20}}' --apply-to queues",
        bench.prefix
    ));
    bury(&caller, &["by hand".into()], b"{}").await;
    let mut given_back = 0;
    while let Some(got) = caller
        .channel
        .basic_get(queue.as_str().into(), BasicGetOptions::default())
        .await
        .unwrap()
    {
        let again = BasicNackOptions {
            requeue: true,
            ..Default::default()
        };
        got.acker.nack(again).await.unwrap();
        given_back += 1;
        assert!(given_back < 100, "the policy has no effect");
        // The queue hears of it after the answer to the next question.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(given_back > 19, "{given_back}");

    let all: Vec<String> = (0..3).map(|n| format!("letter-{n}")).collect();
    bury(&caller, &all, br#"{"input":"a"}"#).await;
    for look in 0..26 {
        let letters = listed(&bench, &[]);
        assert_eq!(letters.len(), 3, "look {look}");
        assert_eq!(
            ids(&letters),
            all.iter().map(String::as_str).collect(),
            "look {look}"
        );
    }
    let (_, out, _) = dead(&bench, &["show", "letter-1"]);
    assert!(
        out.contains("x-error-message") && out.contains("by hand"),
        "{out}"
    );
    bench.node.ctl(&format!("clear_policy limit-{}", bench.prefix));
}

/// Goal: a command that is killed between publishing and acknowledging doubles a job and loses none. Method:
/// SIGKILL in the midst of many, several times, and once while a lost confirm holds it in just that gap; every
/// id is in the one queue or the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_in_the_midst_loses_nothing() {
    let Some(bench) = bench("killed") else { return };
    topology(&bench);
    let caller = Caller::connect(&bench).await;
    let names = caller.names.clone();
    let all: Vec<String> = (0..400).map(|n| format!("letter-{n}")).collect();
    bury(&caller, &all, br#"{"input":"a"}"#).await;
    for round in 1..=3 {
        let mut child = command(&bench, &["requeue", "--all"]).spawn().unwrap();
        let clock = Clock::start();
        while caller.depth(&names.bulk).await.0 < round * 60 {
            assert!(clock.now().since(Moment::ZERO) < SOON, "nothing is requeued");
        }
        child.kill().unwrap();
        let ended = child.wait().unwrap();
        assert!(!ended.success(), "it was done before it was killed");
    }
    let (code, out, err) = dead(&bench, &["requeue", "--all"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("dead letters requeued"), "{out}");
    caller.settles_at(&names.dead, (0, 0)).await;
    let found = drain(&caller, &names.bulk).await;
    assert!(
        found.len() <= all.len() + 3,
        "{} at most one double a kill",
        found.len()
    );
    let found: BTreeSet<String> = found.into_iter().collect();
    assert_eq!(found, all.into_iter().collect());

    // The gap itself: the job is in its lane, and the command, which has not heard so, holds the letter.
    bury(&caller, &["gap".into()], b"{}").await;
    let proxy = Proxy::to(bench.node.address());
    proxy.lose_confirms();
    let url = format!("broker.url={}", bench.node.url_at(proxy.address));
    let mut child = command(&bench, &["requeue", "gap"])
        .args(["--set", &url])
        .spawn()
        .unwrap();
    caller.settles_at(&names.bulk, (1, 0)).await;
    // Whoever holds a message that it has got counts as a consumer.
    caller.settles_at(&names.dead, (0, 1)).await;
    child.kill().unwrap();
    child.wait().unwrap();
    drop(proxy);
    caller.settles_at(&names.dead, (1, 0)).await;
    assert_eq!(drain(&caller, &names.bulk).await, ["gap"]);
    assert_eq!(dead(&bench, &["purge", "gap"]).0, Some(0));

    // A lane that is gone: nothing is confirmed, so the letter stays.
    bury(&caller, &["last".into()], b"{}").await;
    let deleted = caller
        .channel
        .queue_delete(names.bulk.as_str().into(), QueueDeleteOptions::default());
    deleted.await.unwrap();
    let (code, _, err) = dead(&bench, &["requeue", "--all"]);
    assert_eq!(code, Some(1));
    assert!(err.contains("does not exist, the dead letter stays"), "{err}");
    assert_eq!(ids(&listed(&bench, &[])), BTreeSet::from(["last"]));
}

/// Goal: two thousand letters are listed in bounded memory and time, two lists at once do not hide letters
/// from each other, and a part is deleted by id. Method: bodies that together are far more than the bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_are_listed_in_bounded_memory() {
    let Some(bench) = bench("many") else { return };
    let (code, _, err) = dead(&bench, &["list"]);
    assert_eq!(code, Some(1));
    assert!(
        err.contains("does not exist: no service has run with this broker and prefix"),
        "{err}"
    );
    topology(&bench);
    let caller = Caller::connect(&bench).await;
    let all: Vec<String> = (0..2000).map(|n| format!("letter-{n}")).collect();
    let body = json!({"input": vec!["x".repeat(1000); 64]}).to_string();
    bury(&caller, &all, body.as_bytes()).await;

    let clock = Clock::start();
    let mut child = command(&bench, &["list", "--limit", "5000"]).spawn().unwrap();
    let mut other = command(&bench, &["list", "--limit", "5000"]).spawn().unwrap();
    let outputs = [&mut child, &mut other].map(|child| {
        let mut out = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            let mut text = String::new();
            std::io::Read::read_to_string(&mut out, &mut text).unwrap();
            text
        })
    });
    let peak_kib = peak_kib(child);
    assert!(other.wait().unwrap().success());
    let took = clock.now().since(Moment::ZERO);
    for output in outputs {
        let text = output.join().unwrap();
        assert!(text.starts_with("2000 dead letters in "), "{}", &text[..200]);
        assert_eq!(text.lines().count(), 2003);
    }
    eprintln!(
        "2 x 2000 letters of {} bytes: {took:?}, {peak_kib} KiB",
        body.len()
    );
    assert!(
        peak_kib < 64 * 1024,
        "{peak_kib} KiB for {} bytes",
        2000 * body.len()
    );
    assert!(took < SOON, "{took:?}");

    let (code, out, err) = dead(&bench, &["purge", "letter-7", "letter-1999"]);
    assert_eq!(
        (code, out.as_str()),
        (Some(0), "2 dead letters deleted\n"),
        "{err}"
    );
    caller.settles_at(&caller.names.dead, (1998, 0)).await;
    let (code, out, _) = dead(&bench, &["purge", "--all", "--yes"]);
    assert_eq!((code, out.as_str()), (Some(0), "1998 dead letters deleted\n"));
}

/// Waits for a child that succeeds; the most memory it had.
fn peak_kib(child: std::process::Child) -> i64 {
    let pid = libc::pid_t::try_from(child.id()).unwrap();
    let mut status = 0;
    // SAFETY: plain numbers, which the call fills.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the child is ours and not yet reaped; `child` is not waited for by anybody else.
    let reaped = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    assert_eq!((reaped, status), (pid, 0));
    usage.ru_maxrss
}
