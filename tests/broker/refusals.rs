//! Contract 3.1: whatever is wrong is answered with the type, the code and the field, and never costs more.

use crate::caller::{Caller, headers};
use crate::service::bench;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;

/// Goal: each error of a request, to the letter, on both lanes, in one process that survives them all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_wrong_field_is_named() {
    let Some(bench) = bench("wrong") else { return };
    let mut service = bench.serve("max_inputs = 8");
    let mut caller = Caller::connect(&bench).await;
    let many = |n: usize| json!({ "input": vec!["a"; n] }).to_string();
    let long = json!({"input": "word ".repeat(3000), "truncate": false}).to_string();
    let (nine, brackets) = (many(9), "[".repeat(100_000));
    let invalid = |param| ("invalid_request", 400, param);
    type Expected<'a> = (&'a str, u64, Option<&'a str>);
    let cases: Vec<(&[u8], Expected<'_>)> = vec![
        (b"", invalid(None)),
        (b"not json", invalid(None)),
        (b"null", invalid(None)),
        (b"[]", invalid(None)),
        (b"\"text\"", invalid(None)),
        (b"{\"input\":\"a\"} {}", invalid(None)),
        (b"\xff\xfe", invalid(None)),
        (brackets.as_bytes(), invalid(None)),
        (b"{}", invalid(Some("input"))),
        (br#"{"input":null}"#, invalid(Some("input"))),
        (br#"{"input":[]}"#, invalid(Some("input"))),
        (br#"{"input":7}"#, invalid(Some("input"))),
        (br#"{"input":["a",null]}"#, invalid(Some("input"))),
        (br#"{"input":["a",["b"]]}"#, invalid(Some("input"))),
        (br#"{"input":[1,2]}"#, invalid(Some("input"))),
        (br#"{"input":[[1,2]]}"#, invalid(Some("input"))),
        (br#"{"input":"\ud800"}"#, invalid(Some("input"))),
        (b"{\"input\":\"\xc3\x28\"}", invalid(Some("input"))),
        (br#"{"input":"a","model":7}"#, invalid(Some("model"))),
        (
            br#"{"input":"a","model":"none such"}"#,
            ("model_not_found", 404, Some("model")),
        ),
        (
            br#"{"input":"a","model":""}"#,
            ("model_not_found", 404, Some("model")),
        ),
        (
            br#"{"input":"a","encoding_format":"hex"}"#,
            invalid(Some("encoding_format")),
        ),
        (br#"{"input":"a","dimensions":0}"#, invalid(Some("dimensions"))),
        (br#"{"input":"a","dimensions":385}"#, invalid(Some("dimensions"))),
        (br#"{"input":"a","dimensions":-1}"#, invalid(Some("dimensions"))),
        (br#"{"input":"a","dimensions":"64"}"#, invalid(Some("dimensions"))),
        (
            br#"{"input":"a","input_type":"poem"}"#,
            invalid(Some("input_type")),
        ),
        (
            br#"{"input":"a","prompt_name":"none such"}"#,
            invalid(Some("prompt_name")),
        ),
        (br#"{"input":"a","truncate":"no"}"#, invalid(Some("truncate"))),
        (br#"{"input":"a","normalize":1}"#, invalid(Some("normalize"))),
        (br#"{"input":"a","stream":"yes"}"#, invalid(Some("stream"))),
        (nine.as_bytes(), ("too_many_inputs", 413, Some("input"))),
        (long.as_bytes(), ("input_too_long", 413, Some("input"))),
    ];
    for queue in [caller.names.interactive.clone(), caller.names.bulk.clone()] {
        for (body, expected) in &cases {
            let (properties, id) = caller.properties();
            let reply = caller.ask_raw(&queue, body, properties).await;
            let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
            assert_eq!(reply.error(), *expected, "{shown} on {queue}");
            assert_eq!(reply.correlation_id(), Some(id.as_str()), "{shown}");
            assert_eq!(reply.message_id(), Some(id.as_str()), "{shown}");
            assert_eq!(reply.header("x-attempt").as_deref(), Some("1"), "{shown}");
            assert_eq!(reply.json["error"].get("overloaded"), None, "{shown}");
        }
    }
    let eight = serde_json::from_str(&many(8)).unwrap();
    assert_eq!(caller.ask(&eight).await.vectors().len(), 8);
    let (interactive, bulk) = (caller.names.interactive.clone(), caller.names.bulk.clone());
    caller.settles_at(&interactive, (0, 1)).await;
    caller.settles_at(&bulk, (0, 1)).await;
    let dead = caller.names.dead.clone();
    assert_eq!(caller.depth(&dead).await, (0, 0));
    assert!(service.exited().is_none());
}

/// Goal: properties and headers are checked as the body is, and numbers are taken in every AMQP type.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn properties_are_checked() {
    let Some(bench) = bench("props") else { return };
    let _service = bench.serve("");
    let mut caller = Caller::connect(&bench).await;
    let queue = caller.names.interactive.clone();
    let good = br#"{"input":"a"}"#;

    let (properties, _) = caller.properties();
    let reply = caller
        .ask_raw(&queue, good, properties.with_content_type("text/plain".into()))
        .await;
    assert_eq!(reply.error(), ("invalid_request", 400, Some("content_type")));
    let (properties, _) = caller.properties();
    let reply = caller
        .ask_raw(&queue, good, properties.with_content_encoding("gzip".into()))
        .await;
    assert_eq!(reply.error(), ("invalid_request", 400, Some("content_encoding")));
    for kind in ["application/json", "application/json; charset=utf-8", ""] {
        let (properties, _) = caller.properties();
        let reply = caller
            .ask_raw(&queue, good, properties.with_content_type(kind.into()))
            .await;
        assert_eq!(reply.vectors().len(), 1, "{kind}");
    }

    for name in ["x-budget-ms", "x-sent-at-ms"] {
        let nested = AMQPValue::FieldTable(headers(&[("a", 1)]));
        for wrong in [
            AMQPValue::LongString("soon".into()),
            AMQPValue::Boolean(true),
            AMQPValue::LongInt(-5),
            nested,
        ] {
            let mut table = FieldTable::default();
            table.insert(name.into(), wrong.clone());
            let (properties, _) = caller.properties();
            let reply = caller.ask_raw(&queue, good, properties.with_headers(table)).await;
            assert_eq!(reply.error(), ("invalid_request", 400, Some(name)), "{wrong:?}");
        }
    }
    for right in [
        AMQPValue::LongString("60000".into()),
        AMQPValue::LongInt(60_000),
        AMQPValue::Double(60_000.0),
        AMQPValue::ShortUInt(60_000),
    ] {
        let mut table = FieldTable::default();
        table.insert("x-budget-ms".into(), right.clone());
        let (properties, _) = caller.properties();
        let reply = caller.ask_raw(&queue, good, properties.with_headers(table)).await;
        assert_eq!(reply.vectors().len(), 1, "{right:?}");
    }
}
