//! Contract 8 and the way to grow: several nodes in `broker.url`, of which one dies or hangs.
//!
//! The nodes of these tests are proxies before the one node of all tests, so that each can be cut, refused or frozen by
//! itself. A real cluster of three, with nodes that are killed, is what `make soak` is for.

use crate::caller::Caller;
use crate::proxy::Proxy;
use crate::service::{Bench, SOON, Service, bench};
use embeddings::clock::{Clock, Moment};
use serde_json::json;
use std::time::Duration;

fn url(bench: &Bench, hosts: &[String]) -> String {
    bench.node.url.replace(bench.node.address(), &hosts.join(","))
}

async fn says(service: &Service, words: &str, within: Duration) {
    let clock = Clock::start();
    while !service.log().contains(words) {
        let waited = clock.now().since(Moment::ZERO);
        assert!(waited < within, "it does not say {words:?}: {}", service.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn answers(caller: &mut Caller) {
    for n in 0..8 {
        let id = caller.send(&json!({"input": format!("text {n}")})).await;
        // What was answered before a cut and not acknowledged is answered again.
        loop {
            let reply = caller.reply().await;
            reply.vectors();
            if reply.correlation_id() == Some(id.as_str()) {
                break;
            }
        }
    }
}

/// Goal: a node that is gone costs a reconnect to another and no life, whichever it is. Method: of three nodes one is never
/// there; the other two are there in turns, so the service has to move each time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_costs_a_reconnect() {
    let Some(bench) = bench("nodes") else { return };
    let (one, other) = (Proxy::to(bench.node.address()), Proxy::to(bench.node.address()));
    let hosts = [
        "127.0.0.1:1".to_owned(),
        one.address.to_string(),
        other.address.to_string(),
    ];
    other.refuse(true);
    // A bound that one pause too many would break.
    let mut service = bench.start(&url(&bench, &hosts), "disconnect_kill_ms = 4000");
    service.ready();
    let mut caller = Caller::connect(&bench).await;
    answers(&mut caller).await;
    for (round, (dies, lives)) in [(&one, &other), (&other, &one), (&one, &other)]
        .iter()
        .enumerate()
    {
        lives.refuse(false);
        dies.refuse(true);
        dies.cut();
        // Attempts that fail count as sessions, too.
        let clock = Clock::start();
        while service.log().matches("connected to the broker").count() < round + 2 {
            let waited = clock.now().since(Moment::ZERO);
            assert!(waited < SOON, "{}", service.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        answers(&mut caller).await;
    }
    assert!(service.exited().is_none(), "{}", service.log());
}

/// Goal: a node that hangs, its sockets open, is left for another within the bound at which the loss of the broker kills. Method: the
/// node that is connected to is frozen, with the settings as they are shipped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_hangs_is_left_for_another() {
    let Some(bench) = bench("hangs") else { return };
    let (one, other) = (Proxy::to(bench.node.address()), Proxy::to(bench.node.address()));
    other.refuse(true);
    let hosts = [one.address.to_string(), other.address.to_string()];
    let mut service = bench.start(&url(&bench, &hosts), "");
    service.ready();
    other.refuse(false);
    one.freeze(true);
    says(
        &service,
        "connected to the broker session=2",
        Duration::from_secs(10),
    )
    .await;
    let mut caller = Caller::connect(&bench).await;
    answers(&mut caller).await;
    assert!(service.exited().is_none(), "{}", service.log());
}
