//! The heartbeat: what a worker says of itself, to the monitor's socket and to the exchange of events.

use serde::{Deserialize, Serialize};

/// AMQP `type` of a heartbeat.
pub const TYPE_HEARTBEAT: &str = "embeddings.heartbeat";

/// One heartbeat as it travels, in JSON. What another version leaves out reads as nothing, so that a
/// monitor of one version hears the workers of another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Heartbeat {
    /// Process id as the worker knows it; the monitor asks the kernel.
    pub pid: u32,
    /// Name of the unit without its ending: `embeddings`, of an instance `embeddings@NAME`.
    pub name: String,
    /// The machine.
    pub host: String,
    /// Whether a session with the broker stands.
    pub connected: bool,
    /// Whether new work is welcome.
    pub ready: bool,
    /// Admitted interactive jobs that no engine has begun.
    pub queue: usize,
    /// Jobs whose computation has begun and is not finished.
    pub inflight: usize,
    /// When something last left a stage, Unix ms.
    pub last_progress_ts: u64,
    /// From delivery to acknowledgement, the last job; null before the first.
    pub last_job_latency_ms: Option<u64>,
    /// From first batch to acknowledgement, the mean of the last jobs; null before the first.
    pub avg_job_ms: Option<u64>,
    /// The state in a word.
    pub state: String,
    /// The stage that is stalled.
    pub stalled_stage: Option<String>,
    /// The default model.
    pub model: String,
    /// What computes it.
    pub device: String,
    /// Memory held.
    pub rss_bytes: u64,
    /// Version of the program.
    pub version: String,
}

/// Routing key of a machine's heartbeats.
pub fn routing_key(host: &str) -> String {
    format!("heartbeat.{host}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Goal: the contract's words, its order, and no others; both ways.
    #[test]
    fn a_heartbeat_has_the_contracts_fields() {
        let beat = Heartbeat {
            pid: 7,
            name: "embeddings".into(),
            avg_job_ms: Some(37),
            ..Default::default()
        };
        let text = serde_json::to_string(&beat).unwrap();
        assert_eq!(
            text,
            r#"{"pid":7,"name":"embeddings","host":"","connected":false,"ready":false,"queue":0,"inflight":0,"last_progress_ts":0,"last_job_latency_ms":null,"avg_job_ms":37,"state":"","stalled_stage":null,"model":"","device":"","rss_bytes":0,"version":""}"#
        );
        assert_eq!(serde_json::from_str::<Heartbeat>(&text).unwrap(), beat);
        let other: Heartbeat = serde_json::from_value(json!({"connected": true, "mood": "good"})).unwrap();
        assert!(other.connected && other.stalled_stage.is_none());
    }
}
