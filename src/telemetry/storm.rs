//! Many deaths: what to make of a storm, and of a slow one that no start limit sees. Pure.

use super::death::Death;
use super::history::counts_by_reason;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// `MESSAGE_ID=` of the alarm: systemd has given up.
pub const MESSAGE_ID_ALARM: &str = "d9ffcc143c0247c08e92a2fbacb0c3bf";
/// `MESSAGE_ID=` of the warning that deaths come slowly and do not end.
pub const MESSAGE_ID_CHRONIC: &str = "89e70cf9d9ff483799091edaec8bbd34";
/// The unit's `StartLimitIntervalSec=` and `StartLimitBurst=`.
pub const STORM: (Duration, usize) = (Duration::from_secs(15 * 60), 5);
/// The cool-down after a first alarm.
pub const COOLDOWN_FIRST: Duration = Duration::from_secs(60);
/// The cool-down of a storm that is nothing but a broker that comes and goes. Each new process waits for it
/// while it starts, and harms nobody; a long pause would only add to the outage.
pub const OUTAGE_FIRST: Duration = Duration::from_secs(15);
/// It doubles up to this.
pub const OUTAGE_MAX: Duration = Duration::from_secs(120);
/// Any other doubles up to this.
pub const COOLDOWN_MAX: Duration = Duration::from_secs(3600);
/// Alarms are forgotten, and warnings repeated, after this long.
pub const DAY_MS: u64 = 24 * 3600 * 1000;
const HOUR_MS: u64 = 3600 * 1000;
/// Hours of a day with a death that make it chronic.
const CHRONIC_HOURS: usize = 6;

/// Deaths in at least six different hours of the last day, and no storm among them, for a storm has its own
/// alarm: the counts by reason.
pub fn chronic<'a>(
    deaths: impl IntoIterator<Item = &'a Death>,
    now_unix_ms: u64,
) -> Option<BTreeMap<String, usize>> {
    let since = now_unix_ms.saturating_sub(DAY_MS);
    let today = |death: &&Death| death.unix_ms > since && death.unix_ms <= now_unix_ms;
    let deaths: Vec<&Death> = deaths.into_iter().filter(today).collect();
    let hours: BTreeSet<u64> = deaths
        .iter()
        .map(|it| (now_unix_ms - it.unix_ms) / HOUR_MS)
        .collect();
    let (window, burst) = STORM;
    let storm = deaths
        .windows(burst)
        .any(|run| u128::from(run[burst - 1].unix_ms.saturating_sub(run[0].unix_ms)) <= window.as_millis());
    (hours.len() >= CHRONIC_HOURS && !storm).then(|| counts_by_reason(deaths, since))
}

/// The pause before the try after alarm number `count`, counted from one. `jitter` from 0 to 1 spreads it
/// by a quarter to both sides, so that a fleet does not come back in lockstep.
pub fn cooldown(first: Duration, most: Duration, count: u32, jitter: f64) -> Duration {
    let doubled = first.saturating_mul(1 << count.saturating_sub(1).min(16));
    doubled
        .min(most.max(first))
        .mul_f64(0.75 + 0.5 * jitter.clamp(0.0, 1.0))
}

/// Whether all of these deaths were the loss of the broker.
pub fn is_outage(deaths: &[&Death]) -> bool {
    !deaths.is_empty()
        && deaths
            .iter()
            .all(|death| death.kill_reason == "broker_disconnected")
}

/// The reason that ended it most often. `deaths` begins with the newest; of equals that one decides.
pub fn dominating<'a>(deaths: &[&'a Death]) -> Option<&'a Death> {
    let times = |reason: &str| deaths.iter().filter(|it| it.kill_reason == reason).count();
    deaths
        .iter()
        .copied()
        .rev()
        .max_by_key(|death| times(&death.kill_reason))
}

/// What helps against this kind of death.
pub fn hint(death: Option<&Death>) -> &'static str {
    let Some(death) = death else {
        return "no death is on record: see systemctl status and journalctl -u";
    };
    match (death.kill_reason.as_str(), death.stage.as_str()) {
        ("broker_disconnected", _) => {
            "look at RabbitMQ and at the network between; or raise disconnect_kill_ms"
        }
        ("no_progress", "published" | "acked" | "received") => {
            "the broker answers and settles nothing: look at its alarms, queues and disk"
        }
        ("no_progress" | "watchdog_timeout" | "heartbeat_timeout" | "drain_timeout", _) => {
            "raise capacity, or lower max_inflight and engine.batch_tokens; is the machine out of CPU?"
        }
        ("engine_corrupt", _) => {
            "the machine computes wrong numbers: embeddings model check, then memory and device"
        }
        ("oom_killed", _) => {
            "memory: lower engine.batch_tokens, max_queue or the number of models, or add memory"
        }
        ("config_error", _) => "run embeddings check",
        ("start_timeout", _) => "loading stands still: look at the disk, and at TimeoutStartSec=",
        ("panic", _) => "a bug: report DETAIL= of the record; SUSPECT_JOBS= may name the job that finds it",
        ("signal", _) => "who sends the signal? SUSPECT_JOBS= may name a job that crashes the process",
        _ => "see DETAIL= of the records: journalctl -u embeddings -p crit",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 100 * DAY_MS;

    fn at(hours_ago: f64, reason: &str) -> Death {
        Death {
            unix_ms: NOW - (hours_ago * HOUR_MS as f64) as u64,
            ..Death::of(reason)
        }
    }

    #[test]
    fn only_a_lost_broker_alone_is_an_outage() {
        let (lost, hung) = (at(0.1, "broker_disconnected"), at(0.0, "no_progress"));
        assert!(is_outage(&[&lost, &lost]));
        assert!(!is_outage(&[&hung, &lost]) && !is_outage(&[]));
        let dominates = dominating(&[&hung, &lost]).unwrap();
        assert_eq!(dominates.kill_reason, "no_progress", "of equals the newest");
    }

    #[test]
    fn deaths_in_six_hours_of_a_day_are_chronic() {
        let slow: Vec<Death> = [20.5, 16.5, 12.5, 8.5, 4.5, 0.0]
            .map(|ago| at(ago, "signal"))
            .into();
        assert_eq!(chronic(&slow, NOW), Some(BTreeMap::from([("signal".into(), 6)])));
        assert_eq!(chronic(&slow[1..], NOW), None, "five hours");
        let old: Vec<Death> = [50.0, 40.0, 30.0].map(|ago| at(ago, "signal")).into();
        assert_eq!(
            chronic(old.iter().chain(&slow[1..]), NOW),
            None,
            "of the last day"
        );
        let crowded: Vec<Death> = [5.9, 5.8, 5.7, 5.6, 3.0, 1.1].map(|ago| at(ago, "signal")).into();
        assert_eq!(chronic(&crowded, NOW), None, "three hours");
        let storm: Vec<Death> = [0.05, 0.04, 0.03, 0.02].map(|ago| at(ago, "panic")).into();
        assert_eq!(
            chronic(slow[..5].iter().chain(&storm).chain(&slow[5..]), NOW),
            None,
            "a storm"
        );
    }

    #[test]
    fn the_cooldown_doubles_to_an_hour() {
        let pause = |count, jitter| cooldown(COOLDOWN_FIRST, COOLDOWN_MAX, count, jitter).as_secs();
        assert_eq!(
            [1, 2, 3, 6, 7, 40].map(|count| pause(count, 0.5)),
            [60, 120, 240, 1920, 3600, 3600]
        );
        assert_eq!((pause(1, 0.0), pause(1, 1.0)), (45, 75));
    }

    #[test]
    fn the_hint_fits_what_dominates() {
        let deaths = ["signal", "oom_killed", "signal", "panic"].map(Death::of);
        let deaths: Vec<&Death> = deaths.iter().collect();
        assert!(hint(dominating(&deaths)).contains("signal"));
        assert!(hint(dominating(&deaths[1..2])).contains("memory"));
        assert!(hint(None).contains("no death"));
        let mut stalled = Death::of("no_progress");
        stalled.stage = "computed".into();
        assert!(hint(Some(&stalled)).contains("max_inflight"));
        stalled.stage = "published".into();
        assert!(hint(Some(&stalled)).contains("broker"));
    }
}
