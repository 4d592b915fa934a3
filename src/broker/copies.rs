//! What a copy of a message keeps: of one that goes on in another queue of ours, and of a dead letter.

use super::intake::Receipt;
use super::publish::PERSISTENT;
use crate::clock::Clock;
use crate::job::checkpoint::{Checkpoint, HEADER_CHECKPOINT, HEADER_ORIGINAL_QUEUE};
use crate::job::reply::HEADER_ATTEMPT;
use crate::job::{Lane, Refusal};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

/// Headers of the original that a dead letter keeps; RabbitMQ's frames hold 131072 bytes.
const HEADERS_KEPT_BYTES: usize = 64 * 1024;

/// The message's own properties, and headers that say why it is here.
pub(super) fn dead_properties(receipt: &Receipt, refusal: &Refusal, attempt: u32) -> BasicProperties {
    let mut headers = kept_headers(receipt);
    headers.insert("x-error-type".into(), text(refusal.error.name()));
    headers.insert("x-error-code".into(), whole(u64::from(refusal.error.code())));
    headers.insert("x-error-message".into(), text(&refusal.message));
    if let Some(param) = &refusal.param {
        headers.insert("x-error-param".into(), text(param));
    }
    let origin = original_queue(receipt.lane, &receipt.queue, &headers);
    headers.insert(HEADER_ORIGINAL_QUEUE.into(), origin);
    headers.insert("x-dead-at-ms".into(), whole(Clock::unix_ms()));
    headers.insert(HEADER_ATTEMPT.into(), whole(u64::from(attempt)));
    copied(&receipt.message.properties, headers)
}

/// The message's own properties, and a header that says how far the job has come.
pub(super) fn moved_properties(
    receipt: &Receipt,
    message_id: &str,
    checkpoint: Option<&Checkpoint>,
    budget_from_ms: Option<u64>,
) -> BasicProperties {
    let kept = kept_headers(receipt);
    let mut headers = FieldTable::default();
    for (name, value) in kept.inner() {
        let made_by_the_broker = ["x-delivery-count", "x-acquired-count", "x-death"].contains(&name.as_str())
            || name.as_str().starts_with("x-first-death-")
            || name.as_str().starts_with("x-last-death-");
        let budget = ["x-budget-ms", "x-sent-at-ms"].contains(&name.as_str());
        if !made_by_the_broker && (budget_from_ms.is_some() || !budget) {
            headers.insert(name.clone(), value.clone());
        }
    }
    let has = |name| headers.inner().contains_key(name);
    let undated =
        has("x-budget-ms") && !has("x-sent-at-ms") && receipt.message.properties.timestamp().is_none();
    if let Some(from_ms) = budget_from_ms.filter(|_| undated) {
        headers.insert("x-sent-at-ms".into(), whole(from_ms));
    }
    if let Some(checkpoint) = checkpoint {
        headers.insert(HEADER_CHECKPOINT.into(), text(&checkpoint.to_header()));
        let origin = original_queue(receipt.lane, &receipt.queue, &kept);
        headers.insert(HEADER_ORIGINAL_QUEUE.into(), origin);
    }
    let moved = copied(&receipt.message.properties, headers).with_message_id(message_id.into());
    // What goes back to its own queue as it came is to its sender's mind still there, and vanishes when that said so.
    match receipt.message.properties.expiration() {
        Some(expiration) if checkpoint.is_none() => moved.with_expiration(expiration.clone()),
        _ => moved,
    }
}

/// The queue that a job was sent to. What goes on says so itself; a lane's message cannot have come from elsewhere,
/// whatever its sender wrote.
fn original_queue(lane: Lane, queue: &str, headers: &FieldTable) -> AMQPValue {
    let told = headers.inner().get(HEADER_ORIGINAL_QUEUE);
    match told.filter(|_| lane == Lane::Resumed) {
        Some(AMQPValue::LongString(origin)) => AMQPValue::LongString(origin.clone()),
        _ => text(queue),
    }
}

/// The message's own headers. A header frame has room for 128 KiB in all, and ours must fit: headers too large to
/// keep are left out.
fn kept_headers(receipt: &Receipt) -> FieldTable {
    let headers = receipt.message.properties.headers().clone();
    let kept = headers.filter(|headers| table_bytes(headers) <= HEADERS_KEPT_BYTES);
    let mut own = FieldTable::default();
    for (name, value) in kept.unwrap_or_default().inner() {
        // RabbitMQ would send the copy to whoever is named there as well.
        if !["CC", "BCC"].contains(&name.as_str()) {
            own.insert(name.clone(), value.clone());
        }
    }
    own
}

/// What a copy keeps of the properties, with these headers. Not the expiration, which would let it vanish, nor the user id,
/// which the broker compares with ours. A copy outlives a restart of the broker, whatever the sender chose.
pub(super) fn copied(of: &BasicProperties, headers: FieldTable) -> BasicProperties {
    let mut copy = BasicProperties::default()
        .with_headers(headers)
        .with_delivery_mode(PERSISTENT);
    if let Some(value) = of.content_type() {
        copy = copy.with_content_type(value.clone());
    }
    if let Some(value) = of.content_encoding() {
        copy = copy.with_content_encoding(value.clone());
    }
    if let Some(value) = of.correlation_id() {
        copy = copy.with_correlation_id(value.clone());
    }
    if let Some(value) = of.message_id() {
        copy = copy.with_message_id(value.clone());
    }
    if let Some(value) = of.reply_to() {
        copy = copy.with_reply_to(value.clone());
    }
    if let Some(value) = of.app_id() {
        copy = copy.with_app_id(value.clone());
    }
    if let Some(value) = of.kind() {
        copy = copy.with_type(value.clone());
    }
    if let Some(value) = of.priority() {
        copy = copy.with_priority(*value);
    }
    if let Some(value) = of.timestamp() {
        copy = copy.with_timestamp(*value);
    }
    copy
}

/// About as many bytes as the table takes on the wire.
fn table_bytes(table: &FieldTable) -> usize {
    table
        .inner()
        .iter()
        .map(|(key, value)| key.as_str().len() + 2 + value_bytes(value))
        .sum()
}

fn value_bytes(value: &AMQPValue) -> usize {
    match value {
        AMQPValue::FieldTable(table) => 4 + table_bytes(table),
        AMQPValue::FieldArray(values) => {
            4 + values
                .as_slice()
                .iter()
                .map(|value| 1 + value_bytes(value))
                .sum::<usize>()
        }
        AMQPValue::LongString(text) => 4 + text.as_bytes().len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.as_slice().len(),
        AMQPValue::ShortString(text) => 1 + text.as_str().len(),
        _ => 8,
    }
}

pub(super) fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

pub(super) fn whole(value: u64) -> AMQPValue {
    AMQPValue::LongLongInt(i64::try_from(value).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a dead letter names the lane that its job was sent to, however often it was tried again.
    #[test]
    fn what_goes_on_knows_where_it_came_from() {
        let mut headers = FieldTable::default();
        let of = |lane, queue, headers: &FieldTable| original_queue(lane, queue, headers);
        assert_eq!(of(Lane::Resumed, "resumed", &headers), text("resumed"));
        headers.insert(HEADER_ORIGINAL_QUEUE.into(), text("interactive"));
        assert_eq!(of(Lane::Resumed, "resumed", &headers), text("interactive"));
        assert_eq!(
            of(Lane::Bulk, "bulk", &headers),
            text("bulk"),
            "its sender made that up"
        );
        headers.insert(HEADER_ORIGINAL_QUEUE.into(), whole(1));
        assert_eq!(of(Lane::Resumed, "resumed", &headers), text("resumed"));
    }
}
