//! `embeddings top` where there is no terminal: one look, as a table or as JSON.

use super::words::{self, Column};
use crate::cli::{Paint, table};
use crate::clock::{Moment, millis};
use crate::logic::fleet::{Fleet, Health, Order, Totals, View};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

/// Columns of the table, by their rank.
const RANK_MAX: usize = 13;
/// Machines that are named as those to look at.
const NAMED_MAX: usize = 8;

/// All is well.
const EXIT_WELL: u8 = 0;
/// Something is silent, stalled, degraded or starting, or could not be heard.
const EXIT_UNWELL: u8 = 1;
/// There is no worker.
const EXIT_NONE: u8 = 3;

/// What was looked at, beside the workers.
#[derive(Debug, Clone)]
pub struct Look {
    /// Order of the rows.
    pub order: Order,
    /// Words that rows must have.
    pub words: String,
    /// The broker, without its password.
    pub broker: String,
    /// For how long was listened.
    pub listened: Duration,
    /// Wall clock.
    pub unix_ms: u64,
}

/// The exit code: of the whole fleet, whatever is shown of it.
pub fn exit_code(fleet: &Fleet, totals: &Totals, now: Moment) -> u8 {
    match totals.workers() {
        _ if fleet.deaf(now).is_some() || !totals.is_well() => EXIT_UNWELL,
        0 => EXIT_NONE,
        _ => EXIT_WELL,
    }
}

/// For people, who may read it in a log.
pub fn people(fleet: &Fleet, look: &Look, paint: Paint, now: Moment) -> String {
    let totals = fleet.totals(now);
    let (colour, answer) = words::answer(fleet, &totals, now);
    let mut out = paint.paint(colour, &answer);
    out.push('\n');
    let rows = fleet.rows(look.order, &look.words, now);
    let columns = || Column::ALL.into_iter().filter(|column| column.rank() <= RANK_MAX);
    if !rows.is_empty() {
        let title = columns().map(|column| column.title().to_owned()).collect();
        let cells = |view: &View<'_>| columns().map(|column| column.cell(view)).collect();
        let all: Vec<Vec<String>> = std::iter::once(title).chain(rows.iter().map(cells)).collect();
        out.push('\n');
        let text = table(&all);
        for (at, line) in text.lines().enumerate() {
            match at.checked_sub(1).map(|at| rows[at].health) {
                Some(health) => out.push_str(&paint.paint(words::colour(health), line)),
                None => out.push_str(line),
            }
            out.push('\n');
        }
    }
    let mut ends = words::remarks(fleet, &totals);
    ends.extend(where_to_look(&rows));
    if totals.unheard > 0 {
        ends.push(
            "who takes jobs and sends no heartbeat hangs, or is not of this version; `embeddings status` says so on its machine"
                .to_owned(),
        );
    } else if totals.workers() == 0 && fleet.deaf(now).is_none() {
        ends.push(format!(
            "nothing was heard in {} at {}; is a service running there, with the same broker.prefix?",
            words::age(look.listened),
            look.broker
        ));
    }
    if !ends.is_empty() {
        out.push('\n');
        out.push_str(&ends.join("\n"));
        out.push('\n');
    }
    out
}

/// Where somebody should go, and what to ask there.
fn where_to_look(rows: &[View<'_>]) -> Option<String> {
    let bad = |view: &&View<'_>| view.health.is_bad() && view.health != Health::Unknown;
    let hosts: BTreeSet<&str> = rows
        .iter()
        .filter(bad)
        .map(|view| view.beat.host.as_str())
        .collect();
    if hosts.is_empty() {
        return None;
    }
    let more = hosts.len().saturating_sub(NAMED_MAX);
    let mut named = hosts.into_iter().take(NAMED_MAX).collect::<Vec<_>>().join(", ");
    if more > 0 {
        named.push_str(&format!(" and {more} more"));
    }
    Some(format!("`embeddings status` says why, on {named}"))
}

/// For machines: what each worker said last, and what is to be added from here.
pub fn json(fleet: &Fleet, look: &Look, now: Moment) -> Value {
    let totals = fleet.totals(now);
    let deaf = fleet.deaf(now);
    let counts: serde_json::Map<String, Value> = Health::ALL
        .into_iter()
        .map(|health| (health.name().to_owned(), totals.count(health).into()))
        .collect();
    let workers: Vec<Value> = fleet
        .rows(look.order, &look.words, now)
        .iter()
        .map(worker)
        .collect();
    json!({
        "line": words::answer(fleet, &totals, now).1,
        "well": exit_code(fleet, &totals, now) == EXIT_WELL,
        "at_unix_ms": look.unix_ms,
        "listened_ms": millis(look.listened),
        "broker": {
            "address": look.broker,
            "problem": deaf.map(|(_, cause)| cause),
            "echoing": fleet.is_echoing(),
        },
        "workers": totals.workers(),
        "unheard": totals.unheard,
        "health": counts,
        "rows": workers,
    })
}

fn worker(view: &View<'_>) -> Value {
    let mut said = serde_json::to_value(view.beat).unwrap_or_default();
    let seen = [
        ("health", json!(view.health.name())),
        ("heard_age_ms", json!(millis(view.age))),
        ("progress_age_ms", json!(view.progress_age.map(millis))),
        ("last_kill_age_ms", json!(view.kill_age.map(millis))),
        ("known_ms", json!(millis(view.known))),
        ("restarts", json!(view.restarts)),
    ];
    if let Some(fields) = said.as_object_mut() {
        fields.extend(seen.map(|(name, value)| (name.to_owned(), value)));
    }
    said
}
