//! What a state means, and what to do next, for a service that answers for itself: the same words in the terminal and on the
//! page. What helps against a death is said beside the deaths, in `telemetry::storm`.

use super::Report;

/// For a service that answers and is not ready.
pub fn advice(report: &Report) -> Vec<String> {
    let limit = |key: &str| report.limits.get(key).copied().unwrap_or_default();
    let left = |key: &str, age: Option<u64>| span(limit(key).saturating_sub(age.unwrap_or_default()));
    let hung = report.not_ready.as_deref() == Some("hung");
    if let Some(stage) = report.stalled_stage.as_ref().filter(|_| !hung) {
        let ends = "its own watchdog ends it (ring 1, no_progress, exit 71), and systemd starts another";
        return vec![format!("nothing leaves the stage {stage}: {ends}")];
    }
    let hint = match report.not_ready.as_deref() {
        Some("starting") if report.broker.waiting.is_some() => {
            "it goes on by itself when the broker answers; `embeddings check` says what is in the way".into()
        }
        Some("starting") => "wait: it is ready after its first canary".into(),
        Some("broker_lost") if report.broker.proof_age_ms.is_some() => format!(
            "it reconnects by itself; without an answer it ends in {} (broker_disconnected, exit 70), \
             and the next one waits for the broker",
            left("disconnect_kill_ms", report.broker.proof_age_ms)
        ),
        Some("unconsumed") => format!(
            "it reconnects by itself; if the broker goes on to know no consumer of ours it ends after {} of that \
             (broker_disconnected, exit 70)",
            span(limit("disconnect_kill_ms"))
        ),
        Some("blocked") => {
            "free memory or disk of the broker (`rabbitmq-diagnostics alarms`); meanwhile nothing is lost"
                .into()
        }
        Some("saturated") => "callers are told when to come back; more workers take more".into(),
        Some("model_failed") => {
            "the journal says what is wrong with its folder; the next job for it tries again".into()
        }
        Some("hung") => format!(
            "its own watchdog thread ends it {} after the last turn of its loop (ring 1, no_progress, exit 71)",
            span(limit("liveness_max_stall_ms"))
        ),
        Some("draining") => format!("it ends within drain_ms ({})", span(limit("drain_ms"))),
        _ => return Vec::new(),
    };
    vec![hint]
}

/// A span as people say it.
pub fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match seconds {
        0..10 => format!("{:.1} s", ms as f64 / 1000.0),
        10..120 => format!("{seconds} s"),
        120..7200 => format!("{minutes} min"),
        7200..172_800 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{} days", hours / 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_finds_it_not_ready_is_told_what_comes_next() {
        let mut report = Report::default();
        report.limits.insert("disconnect_kill_ms".into(), 10_000);
        report.limits.insert("liveness_max_stall_ms".into(), 30_000);
        report.broker.proof_age_ms = Some(7000);
        let mut said = |why: &str| {
            report.not_ready = Some(why.into());
            advice(&report).join("\n")
        };
        assert!(said("broker_lost").contains("it ends in 3.0 s"));
        assert!(said("unconsumed").contains("it ends after 10 s"));
        assert!(said("hung").contains("30 s after the last turn"));
        assert!(said("saturated").contains("more workers"));
        report.stalled_stage = Some("computed".into());
        assert!(advice(&report)[0].starts_with("nothing leaves the stage computed"));
        assert!(advice(&Report::default()).is_empty());
    }
}
