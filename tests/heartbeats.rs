//! What must hold of the heartbeat monitor over any history of heartbeats.
//!
//! Goal: whoever is well is never ended, whoever is not is ended within the bound, and always politely first.
//! Method: proptest draws what several workers say and how time passes; a plain account of it, kept beside,
//! says what the monitor had to do.

use embeddings::clock::Moment;
use embeddings::job::heartbeat::Heartbeat;
use embeddings::logic::ledger::Stage;
use embeddings::logic::monitor::{Bounds, Cause, Monitor, Verdict};
use embeddings::logic::status::State;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

const BOUNDS: Bounds = Bounds {
    silence: Duration::from_millis(9000),
    lost: Duration::from_millis(4000),
    stall: Duration::from_millis(9000),
};
/// Longest step of a real monitor between two turns.
const STEP_MS: u64 = 500;
const GRACE_MS: u64 = 5000;

#[derive(Clone, Debug)]
enum Turn {
    Wait(u64),
    Beat(u32, bool, bool, Option<usize>),
    End(u32),
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let pid = 1u32..4;
    let beat = (
        pid.clone(),
        prop::bool::weighted(0.6),
        prop::bool::weighted(0.1),
        prop::option::weighted(0.2, 0usize..6),
    );
    let turn = prop_oneof![
        6 => (1..=STEP_MS).prop_map(Turn::Wait),
        1 => Just(Turn::Wait(STEP_MS)),
        5 => beat.prop_map(|(pid, connected, draining, stalled)| Turn::Beat(pid, connected, draining, stalled)),
        1 => pid.prop_map(Turn::End),
    ];
    prop::collection::vec(turn, 1..400)
}

/// What is known of one worker, told in the plainest way.
#[derive(Clone, Debug, Default)]
struct Account {
    heard: u64,
    had_broker: bool,
    lost_at: Option<u64>,
    stalled_at: Option<(usize, u64)>,
    draining: bool,
    terminated_at: Option<u64>,
    killed: bool,
}

fn beat(connected: bool, draining: bool, stalled: Option<usize>) -> Heartbeat {
    let state = if draining { State::Draining } else { State::Idle };
    Heartbeat {
        connected,
        state: state.name().to_owned(),
        stalled_stage: stalled.map(|at| Stage::ALL[at].name().to_owned()),
        ..Default::default()
    }
}

fn ms(span: Duration) -> u64 {
    span.as_millis() as u64
}

impl Account {
    fn hears(&mut self, connected: bool, draining: bool, stalled: Option<usize>, now: u64) {
        self.heard = now;
        self.had_broker |= connected;
        self.draining = draining;
        self.lost_at = if connected || !self.had_broker {
            None
        } else {
            self.lost_at.or(Some(now))
        };
        self.stalled_at = stalled.map(|stage| match self.stalled_at {
            Some((before, since)) if before == stage => (stage, since),
            _ => (stage, now),
        });
    }

    fn is_due(&self, now: u64) -> bool {
        let lost = self.lost_at.is_some_and(|since| now - since >= ms(BOUNDS.lost));
        let stalled = self
            .stalled_at
            .is_some_and(|(_, since)| now - since >= ms(BOUNDS.stall));
        now - self.heard >= ms(BOUNDS.silence) || (!self.draining && (lost || stalled))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn those_that_must_go_go_in_time_and_nobody_else(turns in turns()) {
        let mut monitor = Monitor::new(BOUNDS, Moment::ZERO);
        let mut accounts: BTreeMap<u32, Account> = BTreeMap::new();
        let mut now = 0u64;
        for turn in turns {
            match turn {
                Turn::Wait(span) => now += span,
                Turn::Beat(pid, connected, draining, stalled) => {
                    accounts.entry(pid).or_default().hears(connected, draining, stalled, now);
                    monitor.heard(pid, &beat(connected, draining, stalled), Moment::from_millis(now));
                }
                Turn::End(pid) => {
                    accounts.remove(&pid);
                    monitor.ended(pid);
                }
            }
            // What is announced as the next check is early enough.
            let check = monitor.next_check().map(Moment::as_millis);
            let verdicts = monitor.judge(Moment::from_millis(now));
            if check.is_none_or(|check| check > now) {
                prop_assert!(verdicts.is_empty());
            }
            for verdict in &verdicts {
                match verdict {
                    Verdict::Terminate { pid, cause, lasted, silent } => {
                        let account = accounts.get_mut(pid).expect("a worker that is there");
                        prop_assert!(account.is_due(now) && account.terminated_at.is_none());
                        prop_assert_eq!(ms(*silent), now - account.heard);
                        prop_assert!(*cause != Cause::BrokerLost || account.had_broker);
                        prop_assert!(ms(*lasted) >= ms(BOUNDS.lost));
                        account.terminated_at = Some(now);
                    }
                    Verdict::Kill { pid } => {
                        let account = accounts.get_mut(pid).expect("a worker that is there");
                        let politely = account.terminated_at.expect("asked before");
                        prop_assert!(now - politely >= GRACE_MS && !account.killed);
                        account.killed = true;
                    }
                }
            }
            for account in accounts.values() {
                prop_assert!(!account.is_due(now) || account.terminated_at.is_some(), "{account:?} at {now}");
                let overstayed = account.terminated_at.is_some_and(|since| now - since >= GRACE_MS);
                prop_assert_eq!(overstayed, account.killed);
            }
            prop_assert_eq!(monitor.workers(), accounts.len());
        }
    }

    /// However irregular the beats, as long as each comes within the bound.
    #[test]
    fn a_worker_that_beats_is_never_ended(gaps in prop::collection::vec(1u64..9000, 1..60)) {
        let mut monitor = Monitor::new(BOUNDS, Moment::ZERO);
        let mut now = 0;
        for gap in gaps {
            monitor.heard(1, &beat(true, false, None), Moment::from_millis(now));
            for at in (now..now + gap).step_by(STEP_MS as usize) {
                prop_assert_eq!(monitor.judge(Moment::from_millis(at)), []);
            }
            now += gap;
        }
    }

    /// A monitor that sleeps for any time, at any time, takes none of it for a worker's silence.
    #[test]
    fn sleep_of_the_monitor_is_nobodys_silence(before in 0u64..6500, asleep in 0u64..10_000_000) {
        let mut monitor = Monitor::new(BOUNDS, Moment::ZERO);
        monitor.heard(1, &beat(true, false, None), Moment::ZERO);
        for at in (0..=before).step_by(STEP_MS as usize) {
            prop_assert_eq!(monitor.judge(Moment::from_millis(at)), []);
        }
        prop_assert_eq!(monitor.judge(Moment::from_millis(before)), []);
        prop_assert_eq!(monitor.judge(Moment::from_millis(before + asleep)), []);
    }
}
