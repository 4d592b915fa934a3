//! `embeddings check` on a real RabbitMQ: each way of being kept from one's work, and what mends it.
//!
//! Goal and method as in tests/check.rs; here a shell has the node's own `rabbitmqctl`.

use crate::mended::Machine;
use crate::node::{self, Node};
use crate::private::{Private, wait_for};
use crate::service::{SOON, bench};
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

/// A machine without a model, whose configuration names the node with this user and virtual host.
fn machine(node: &Node, user: &str, rest: &str) -> Machine {
    let machine = Machine::new();
    let address = node.address();
    let (user, vhost) = user.split_once('@').unwrap_or((user, "%2f"));
    machine.write(
        "embeddings.toml",
        format!("http.listen = ''\n[broker]\nurl = 'amqp://{user}@{address}/{vhost}'\n{rest}\n"),
    );
    machine.before(&node.shell());
    machine
}

/// A user of its own, with these rights on `/`.
fn user(node: &Node, name: &str, rights: Option<[&str; 3]>) -> String {
    let name = format!("{name}-{}", std::process::id());
    node.ctl(&format!("add_user {name} hunter2"));
    if let Some([configure, write, read]) = rights {
        node.ctl(&format!(
            "set_permissions {name} '{configure}' '{write}' '{read}'"
        ));
    }
    format!("{name}:hunter2")
}

/// Somebody who says this to whoever comes.
fn stranger(words: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut hello = [0; 8];
            let _ = stream.read_exact(&mut hello);
            let _ = stream.write_all(words);
        }
    });
    address
}

#[test]
fn a_broker_that_is_well_is_told_so_and_left_as_it_was() {
    let Some(bench) = bench("check-well") else { return };
    let node = &bench.node;
    let machine = machine(node, "guest:guest", &format!("prefix = '{}'", bench.prefix));
    let model = bench.model_dir().display().to_string();
    machine.append(
        "embeddings.toml",
        &format!("[models.\"all-MiniLM-L6-v2\"]\npath = {model:?}"),
    );
    let before = (node.ctl("list_queues name"), node.ctl("list_exchanges name"));
    let answer = machine.check();
    assert_eq!((answer.code, answer.troubled().len()), (0, 0), "{answer:?}");
    let rights = ["permissions.configure", "permissions.write", "permissions.read"];
    for id in rights
        .into_iter()
        .chain(["broker.version", "broker.login", "broker.alarm"])
    {
        assert!(answer.well(id).is_some(), "{id}: {answer:?}");
    }
    assert!(
        answer
            .well("topology.queue")
            .unwrap()
            .to_string()
            .contains("not there yet")
    );
    // Others come and go meanwhile; nothing of ours may.
    let ours = |list: &str| {
        list.lines()
            .filter(|name| name.starts_with(&bench.prefix))
            .count()
    };
    assert_eq!((ours(&before.0), ours(&before.1)), (0, 0));
    assert_eq!(
        (
            ours(&node.ctl("list_queues name")),
            ours(&node.ctl("list_exchanges name"))
        ),
        (0, 0)
    );

    // Beside a working service, with all objects there, a message in a lane stays what it is.
    drop(bench.serve(""));
    let lane = format!("{}.bulk", bench.prefix);
    let leave = async |channel: &Channel| {
        let options = BasicPublishOptions::default();
        let properties = BasicProperties::default();
        let confirm = channel.basic_publish("".into(), lane.as_str().into(), options, b"{}", properties);
        confirm.await.unwrap().await.unwrap();
    };
    with_channel(node, leave);
    let answer = machine.check();
    assert_eq!((answer.code, answer.troubled().len()), (0, 0), "{answer:?}");
    let queues = answer.well("topology.queue").unwrap()["found"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        queues.contains(&format!("{lane}: 1 messages, 0 consumers")),
        "{queues}"
    );
    let take = async |channel: &Channel| {
        let got = channel
            .basic_get(lane.as_str().into(), BasicGetOptions { no_ack: true })
            .await;
        got.unwrap().map(|message| message.redelivered)
    };
    assert_eq!(
        with_channel(node, take),
        Some(false),
        "it was never delivered to the check"
    );
}

/// Does something by a channel with confirms.
fn with_channel<T>(node: &Node, work: impl AsyncFnOnce(&Channel) -> T) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let connection = Connection::connect(&node.url, ConnectionProperties::default())
            .await
            .unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .unwrap();
        let result = work(&channel).await;
        connection.close(200, "done".into()).await.unwrap();
        result
    })
}

#[test]
fn brokers_that_are_nowhere_or_none() {
    let machine = Machine::new();
    let at = |url: &str| {
        machine.write(
            "embeddings.toml",
            format!("http.listen = ''\nbroker.url = '{url}'\n"),
        );
        machine.check()
    };
    let found = at("amqp://u:p@127.0.0.1:1").error("broker.address");
    assert!(found.text("found").contains("connection refused"), "{found:?}");
    let answer = at("amqp://u:p@mq.invalid");
    let found = answer.error("broker.name");
    assert!(
        found
            .text("found")
            .contains("mq.invalid:5672: the name does not resolve"),
        "{found:?}"
    );
    // Its password would travel in plain text.
    let found = answer.troubled_by("broker.plaintext");
    assert!(!found.text("found").contains(":p@"), "{found:?}");
    assert_eq!(found.text("level"), "warning");
    machine.mended_by(&found);
    // A network that is for documents alone: nothing comes back, or a router says that there is no way.
    let found = at("amqp://u:p@192.0.2.1").error("broker.address");
    assert!(found.text("found").starts_with("192.0.2.1:5672: "), "{found:?}");

    let web = stranger(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    let found = at(&format!("amqp://u:p@{web}")).error("broker.protocol");
    assert!(
        found.text("found").contains("does not speak AMQP 0-9-1"),
        "{found:?}"
    );
    let tls = stranger(b"\x15\x03\x03\0\x02\x02\x46");
    let found = at(&format!("amqp://u:p@{tls}")).error("broker.protocol");
    assert!(
        found
            .text("found")
            .contains("speaks TLS, and broker.url says amqp://"),
        "{found:?}"
    );
    machine.mended_by(&found);
    // The first frame of a broker of 2020: properties `product` and `version`, no mechanisms.
    let old = stranger(
        b"\x01\0\0\0\0\0\x34\0\x0a\0\x0a\0\x09\0\0\0\x26\x07productS\0\0\0\x08RabbitMQ\x07versionS\0\0\0\x053.8.9\0\0\0\0\xce",
    );
    let found = at(&format!("amqp://u:p@{old}")).error("broker.version");
    assert!(
        found.text("found").contains("RabbitMQ 3.8.9 is older than 3.10"),
        "{found:?}"
    );
}

#[test]
fn tls_where_there_is_none_and_roots_that_are_none() {
    let Some(node) = node::shared() else { return };
    let machine = machine(&node, "guest:guest", "");
    machine.replace("embeddings.toml", "amqp://", "amqps://");
    let found = machine.check().error("broker.tls");
    assert!(
        found.text("found").contains("speaks AMQP without TLS"),
        "{found:?}"
    );
    machine.append("embeddings.toml", "ca_file = '/absent/ca.pem'");
    let answer = machine.check();
    let roots = answer.error("broker.ca_file");
    assert!(
        roots.text("found").contains("/absent/ca.pem\": failed to read"),
        "{roots:?}"
    );
    machine.mended_by(&roots);
    let file = machine.write(
        "ca.pem",
        "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n",
    );
    machine.append(
        "embeddings.toml",
        &format!("ca_file = {:?}", file.display().to_string()),
    );
    let roots = machine.check().error("broker.ca_file");
    assert!(roots.text("found").contains("holds no certificate"), "{roots:?}");
    machine.mended_by(&roots);
    machine.mended_by(&found);
}

#[test]
fn a_user_whom_the_broker_does_not_let_in() {
    let Some(node) = node::shared() else { return };
    let name = user(&node, "let-in", None);
    let machine = machine(&node, &name, "");
    let found = machine.check().error("broker.vhost");
    assert!(found.text("found").contains("refused"), "{found:?}");
    machine.mended_by(&found);

    let known = name.replace(":hunter2", ":hunter3");
    machine.replace("embeddings.toml", &name, &known);
    let found = machine.check().error("broker.login");
    assert!(found.text("found").contains("ACCESS_REFUSED"), "{found:?}");
    machine.types("hunter3\n");
    machine.mended_by(&found);

    let vhost = format!("/check-{}", std::process::id());
    machine.replace(
        "embeddings.toml",
        "/%2f'",
        &format!("/%2fcheck-{}'", std::process::id()),
    );
    let found = machine.check().error("broker.vhost");
    assert!(
        found.text("found").contains(&vhost) && found.text("found").contains("not found"),
        "{found:?}"
    );
    machine.mended_by(&found);
    node.ctl(&format!("delete_vhost {vhost}"));
}

#[test]
fn each_right_that_is_missing_is_told_apart() {
    let Some(node) = node::shared() else { return };
    for (id, rights) in [
        ("permissions.configure", ["^x$", ".*", ".*"]),
        ("permissions.write", [".*", "^x$", ".*"]),
        ("permissions.read", [".*", ".*", "^x$"]),
    ] {
        let name = user(&node, &id.replace('.', "-"), Some(rights));
        let machine = machine(&node, &name, &format!("prefix = 'rights.{}'", std::process::id()));
        let answer = machine.check();
        let found = answer.error(id);
        let mut others = answer.troubled();
        others.retain(|other| other.starts_with("permissions") || other.starts_with("topology"));
        assert_eq!(others, [id], "{answer:?}");
        assert!(found.text("found").contains("access to"), "{found:?}");
        assert!(
            found.mend()[0].contains("rabbitmqctl set_permissions -p / "),
            "{found:?}"
        );
        machine.mended_by(&found);
    }
}

#[test]
fn a_topology_that_is_missing_or_another() {
    let Some(node) = node::shared() else { return };
    let prefix = format!("check-topology-{}", std::process::id());
    let machine = machine(
        &node,
        "guest:guest",
        &format!("prefix = '{prefix}'\ndeclare = false"),
    );
    let answer = machine.check();
    for id in ["topology.queue", "topology.exchange", "topology.resumed"] {
        let found = answer.troubled_by(id);
        let level = if id == "topology.resumed" {
            "warning"
        } else {
            "error"
        };
        assert_eq!(found.text("level"), level, "{found:?}");
        assert!(
            found
                .text("found")
                .contains("not there, and broker.declare is false"),
            "{found:?}"
        );
    }
    machine.mended_by(&answer.troubled_by("topology.queue"));

    // The file says `declare = true` now. A queue and an exchange of these names, and of other kinds, are there.
    let (queue, exchange) = (format!("{prefix}.bulk"), format!("{prefix}.events"));
    with_channel(&node, async |channel: &Channel| {
        let (durable, none) = (QueueDeclareOptions::durable(), FieldTable::default());
        channel
            .queue_declare(queue.as_str().into(), durable, none.clone())
            .await
            .unwrap();
        let options = ExchangeDeclareOptions {
            durable: true,
            ..Default::default()
        };
        let (name, kind) = (exchange.as_str().into(), ExchangeKind::Direct);
        channel.exchange_declare(name, kind, options, none).await.unwrap();
    });
    let found = machine.check().error("topology.conflict");
    assert!(
        found.text("found").contains(&queue) && found.text("found").contains(&exchange),
        "{found:?}"
    );
    assert!(found.text("found").contains("inequivalent arg"), "{found:?}");
    machine.mended_by(&found);
}

/// Goal: a broker that blocks publishers is found, and what is told of it ends it. Method: a node of its own, whose memory is
/// said to be used up.
#[test]
fn a_broker_under_an_alarm() {
    if node::shared().is_none() {
        return;
    }
    let node = Private::start();
    let machine = Machine::new();
    machine.write(
        "embeddings.toml",
        format!("http.listen = ''\nbroker.url = '{}'\n", node.url),
    );
    node.ctl("set_vm_memory_high_watermark 0.000001");
    let mut seen = None;
    wait_for(SOON, "the alarm is on", || {
        seen = machine.check().find("broker.alarm").cloned();
        seen.is_some() || {
            std::thread::sleep(Duration::from_millis(200));
            false
        }
    });
    let seen = seen.unwrap();
    assert!(
        seen["found"].as_str().unwrap().contains("takes no messages"),
        "{seen}"
    );
    assert!(
        seen["note"]
            .as_str()
            .unwrap()
            .contains("rabbitmqctl set_vm_memory_high_watermark 0.4"),
        "{seen}"
    );
    node.ctl("set_vm_memory_high_watermark 0.4");
    wait_for(SOON, "the alarm is off", || {
        machine.check().find("broker.alarm").is_none()
    });
}
