//! Judges the user's rights and the queues and exchange of the service.

use super::broker::Place;
use super::finding::Finding;
use super::mend::quoted;
use super::table::{self, Check};
use crate::broker::probe::{Kind, Object, Right, State, Use};

/// The three rights, each for all that it was asked for.
pub fn rights(rights: &[Right], place: &Place) -> Vec<Finding> {
    let mut found = Vec::new();
    for (which, check) in [
        (Use::Configure, &table::PERMISSIONS_CONFIGURE),
        (Use::Write, &table::PERMISSIONS_WRITE),
        (Use::Read, &table::PERMISSIONS_READ),
    ] {
        let own: Vec<&Right> = rights.iter().filter(|it| it.right == which).collect();
        match own.iter().find(|it| it.refused.is_some()) {
            _ if own.is_empty() => {}
            None => {
                let on: Vec<&str> = own.iter().map(|it| short(&it.on)).collect();
                found.push(Finding::ok(check, on.join(", ")));
            }
            Some(first) => {
                let on: Vec<&str> = own
                    .iter()
                    .filter(|it| it.refused.is_some())
                    .map(|it| short(&it.on))
                    .collect();
                let words = first.refused.as_deref().unwrap_or_default();
                let text = format!("user {} on {}: {words}", place.user(), on.join(", "));
                found.push(place.on_broker(Finding::error(check, text, vec![place.grant()])));
            }
        }
    }
    found
}

/// The random part of a name that nobody has says nothing.
fn short(name: &str) -> &str {
    name.split_once(".probe.check.")
        .map_or(name, |(before, _)| &name[..before.len() + ".probe".len()])
}

/// Everything of the topology.
pub fn objects(objects: &[Object], place: &Place) -> Vec<Finding> {
    let mut found = absent(objects, place);
    found.extend(objects.iter().filter_map(|object| troubled(object, place)));
    let there: Vec<&Object> = objects
        .iter()
        .filter(|it| matches!(it.state, State::There { .. }))
        .collect();
    let holds = |it: &&Object| match it.state {
        State::There {
            holds: Some((messages, consumers)),
        } if it.kind == Kind::Queue => {
            Some(format!("{}: {messages} messages, {consumers} consumers", it.name))
        }
        _ => None,
    };
    let queues: Vec<String> = there.iter().filter_map(holds).collect();
    if !queues.is_empty() {
        found.push(Finding::ok(&table::TOPOLOGY_QUEUE, queues.join("; ")));
    }
    let resumed = objects.iter().filter(|it| it.kind == Kind::Resumed);
    if resumed.clone().count() > 0 && resumed.clone().all(|it| matches!(it.state, State::There { .. })) {
        found.push(Finding::ok(
            &table::TOPOLOGY_RESUMED,
            format!("{} queues", resumed.count()),
        ));
    }
    if let Some(events) = there.iter().find(|it| it.kind == Kind::Exchange) {
        found.push(Finding::ok(&table::TOPOLOGY_EXCHANGE, events.name.clone()));
    }
    let absent = objects.iter().filter(|it| it.state == State::Absent).count();
    if place.config.declare && absent > 0 {
        let text = format!(
            "{absent} of {} not there yet: the service declares them when it starts",
            objects.len()
        );
        found.push(Finding::ok(&table::TOPOLOGY_QUEUE, text));
    }
    found
}

fn check_of(kind: Kind) -> &'static Check {
    match kind {
        Kind::Queue => &table::TOPOLOGY_QUEUE,
        Kind::Resumed => &table::TOPOLOGY_RESUMED,
        Kind::Exchange => &table::TOPOLOGY_EXCHANGE,
    }
}

/// What is not there, and that the service must not declare. They are mended in one, and so they are told in one.
fn absent(objects: &[Object], place: &Place) -> Vec<Finding> {
    let mut found = Vec::new();
    for kind in [Kind::Queue, Kind::Resumed, Kind::Exchange] {
        let own = objects
            .iter()
            .filter(|it| it.kind == kind && it.state == State::Absent);
        let names: Vec<&str> = own.map(|it| it.name.as_str()).collect();
        if place.config.declare || names.is_empty() {
            continue;
        }
        let text = format!("{}: not there, and broker.declare is false", names.join(", "));
        let commands = place.hand.set(&place.declare_from, "broker.declare", "true");
        let note = "the service then declares what is missing; or declare it yourself: docs/operating.md has the table";
        let finding = match kind {
            Kind::Resumed => Finding::warning(check_of(kind), text, commands),
            Kind::Queue | Kind::Exchange => Finding::error(check_of(kind), text, commands),
        };
        found.push(finding.note(note));
    }
    found
}

fn troubled(object: &Object, place: &Place) -> Option<Finding> {
    let Object { kind, name, state } = object;
    match state {
        State::Absent | State::There { .. } => None,
        State::Different(refused) => {
            let vhost = quoted(&place.url.vhost());
            let (command, note) = match kind {
                Kind::Exchange => {
                    let call = format!(
                        "rabbit_exchange:delete(rabbit_misc:r(<<\"{}\">>, exchange, <<\"{name}\">>), false, <<\"check\">>).",
                        place.url.vhost()
                    );
                    (
                        format!("eval {}", quoted(&call)),
                        "nothing is lost but its bindings; or another broker.prefix, or broker.declare = false",
                    )
                }
                Kind::Queue | Kind::Resumed => (
                    format!("delete_queue -p {vhost} --if-empty {}", quoted(name)),
                    "deletes it only when it is empty: take out first what it holds; or another broker.prefix, or broker.declare = false",
                ),
            };
            let command = place.hand.root(format!("rabbitmqctl {command}"));
            let note = place
                .there()
                .map_or(note.to_owned(), |there| format!("{there}; {note}"));
            let text = format!("{name}: {}", refused.text);
            Some(Finding::error(&table::TOPOLOGY_CONFLICT, text, vec![command]).note(note))
        }
        State::Unknown(refused) => {
            let log = place.hand.root("journalctl -u rabbitmq-server -n 50");
            Some(place.on_broker(Finding::error(
                check_of(*kind),
                format!("{name}: {}", refused.text),
                vec![log],
            )))
        }
    }
}
