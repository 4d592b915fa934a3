//! The heartbeat: what a worker says of itself, to the monitor's socket and to the exchange of events.
//!
//! Times of the wall clock are the worker's own. Whoever hears it on another machine reckons with differences to
//! [`Heartbeat::sent_ts`], and with the moment at which it came.

use serde::{Deserialize, Serialize};

/// AMQP `type` of a heartbeat.
pub const TYPE_HEARTBEAT: &str = "embeddings.heartbeat";

/// One heartbeat as it travels, in JSON. What another version leaves out reads as nothing, so that a
/// monitor of one version hears the workers of another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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
    /// The next heartbeat comes within this time, or the worker is not well; 0 where it is not said.
    pub interval_ms: u64,
    /// When this was said, Unix ms; 0 where it is not said.
    pub sent_ts: u64,
    /// Since the start of the process; null where it is not said.
    pub uptime_ms: Option<u64>,
    /// The runtime directory: of two workers on one machine each has its own, and a worker that is started anew
    /// has that of the one before.
    pub instance: String,
    /// Inputs computed a second, lately.
    pub inputs_per_second: f64,
    /// Bound of [`Heartbeat::queue`]; 0 where it is not said.
    pub queue_max: usize,
    /// Why new work is not welcome, in a word; null where it is.
    pub not_ready: Option<String>,
    /// The last death of an earlier process of this instance; null where none is known.
    pub last_kill: Option<LastKill>,
}

/// How an earlier process of a worker ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LastKill {
    /// `KILL_REASON=`
    pub reason: String,
    /// The stage to blame; empty where none is.
    pub stage: String,
    /// When it was recorded, Unix ms.
    pub at_ts: u64,
    /// Process id.
    pub pid: u32,
}

/// Routing key of a machine's heartbeats.
pub fn routing_key(host: &str) -> String {
    format!("heartbeat.{host}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Goal: the contract's words in its order, then those that were added; both ways.
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
            r#"{"pid":7,"name":"embeddings","host":"","connected":false,"ready":false,"queue":0,"inflight":0,"last_progress_ts":0,"last_job_latency_ms":null,"avg_job_ms":37,"state":"","stalled_stage":null,"model":"","device":"","rss_bytes":0,"version":"","interval_ms":0,"sent_ts":0,"uptime_ms":null,"instance":"","inputs_per_second":0.0,"queue_max":0,"not_ready":null,"last_kill":null}"#
        );
        assert_eq!(serde_json::from_str::<Heartbeat>(&text).unwrap(), beat);
        let other: Heartbeat = serde_json::from_value(json!({"connected": true, "mood": "good"})).unwrap();
        assert!(other.connected && other.stalled_stage.is_none());
    }
}
