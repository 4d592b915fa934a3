//! Judges what computes.

use super::finding::Finding;
use super::mend::Hand;
use super::table;
use crate::config::{Config, Origin};
use crate::engine::device;

/// Threads that were asked for, against those that may run.
pub fn threads(config: &Config, from: &Origin, hand: &Hand) -> Finding {
    let check = &table::DEVICE_THREADS;
    let allowed = device::threads();
    match config.engine.threads {
        0 => Finding::ok(check, format!("{allowed} threads, as affinity and cgroup allow")),
        wanted if wanted > allowed => {
            let text = format!("engine.threads = {wanted}, and affinity and cgroup allow {allowed}");
            Finding::warning(check, text, hand.unset(from, "engine.threads"))
                .note("as many as may run are taken then")
        }
        wanted => Finding::ok(check, format!("{wanted} of {allowed} threads")),
    }
}
