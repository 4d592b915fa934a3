//! The notice that a lane takes no further work, or takes it again, as it travels to the exchange of events.

use super::Lane;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// AMQP `type` of the notice.
pub const TYPE_BACKPRESSURE: &str = "embeddings.backpressure";

/// One change of a lane's backpressure, in JSON. What another version leaves out reads as nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Notice {
    /// `interactive` or `bulk`.
    pub lane: String,
    /// Whether it is on from now on.
    pub on: bool,
    /// Why it is, or was, on: `queue_full`, `bytes`, `memory` or `slam`.
    pub cause: String,
    /// The model whose own bound it is, if it is one's own.
    pub model: Option<String>,
    /// Admitted jobs of the lane that no engine has begun.
    pub queue: usize,
    /// Jobs of the lane whose computation has begun and is not finished.
    pub inflight: usize,
    /// Bytes of the interactive lane's bodies.
    pub queue_bytes: usize,
    /// Mean time of a job of the lane; null before the first.
    pub avg_job_ms: Option<u64>,
    /// Memory in use; null where it is not known.
    pub memory_bytes: Option<u64>,
    /// The bounds, named as in the configuration; `memory_bytes` is the machine's or the cgroup's.
    pub limits: BTreeMap<String, u64>,
    /// When a job may find room: an estimate; 0 if there is room.
    pub retry_after_ms: u64,
    /// For how long it was on; null where it begins.
    pub lasted_ms: Option<u64>,
    /// When, Unix ms.
    pub at_unix_ms: u64,
    /// Process id.
    pub pid: u32,
    /// The machine.
    pub host: String,
}

/// Routing key of a lane's notices.
pub fn routing_key(lane: Lane) -> String {
    format!("backpressure.{}", lane.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the names on the wire stay what they are.
    #[test]
    fn a_notice_has_its_fields() {
        let notice = Notice {
            lane: Lane::Bulk.name().into(),
            on: true,
            cause: "slam".into(),
            avg_job_ms: Some(37),
            ..Default::default()
        };
        let text = serde_json::to_string(&notice).unwrap();
        assert_eq!(
            text,
            r#"{"lane":"bulk","on":true,"cause":"slam","model":null,"queue":0,"inflight":0,"queue_bytes":0,"avg_job_ms":37,"memory_bytes":null,"limits":{},"retry_after_ms":0,"lasted_ms":null,"at_unix_ms":0,"pid":0,"host":""}"#
        );
        assert_eq!(serde_json::from_str::<Notice>(&text).unwrap(), notice);
        assert_eq!(routing_key(Lane::Bulk), "backpressure.bulk");
    }
}
