//! What must hold of `embeddings top`'s account of a fleet over any history.
//!
//! Goal: whoever falls silent is silent within the interval that it promised itself, whoever keeps its promise never
//! is; while this side cannot hear nobody is blamed; no history makes the list grow without bound.
//! Method: proptest draws workers, their clocks, what they say, gaps in the line and how time passes; a plain account
//! of it, kept beside, says how each must be shown.

use embeddings::clock::Moment;
use embeddings::job::heartbeat::Heartbeat;
use embeddings::logic::fleet::{DEAF_AFTER, ECHO_INTERVAL, Fleet, Health, Order, ROWS_MAX};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

/// What a worker says that does not say its own interval.
const INTERVAL: Duration = Duration::from_secs(6);
/// Promises of the workers by their process ids.
const PROMISES_MS: [u64; 5] = [1000, 5000, 5000, 20_000, 500];

#[derive(Clone, Debug)]
enum Turn {
    /// Time passes; echoes come back meanwhile, or not.
    Wait(u64, bool),
    /// A worker speaks; its machine's clock is wrong by so much.
    Beat(usize, i64),
    /// It says good-bye.
    Leave(usize),
    /// The connection is lost, and had again.
    Cut(u64),
    /// The broker has an alarm.
    Alarm(u64),
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let who = 0usize..PROMISES_MS.len();
    let turn = prop_oneof![
        8 => (1u64..3000, prop::bool::weighted(0.9)).prop_map(|(ms, echoes)| Turn::Wait(ms, echoes)),
        8 => (who.clone(), any::<i64>()).prop_map(|(who, skew)| Turn::Beat(who, skew)),
        1 => who.prop_map(Turn::Leave),
        1 => (1u64..30_000).prop_map(Turn::Cut),
        1 => (1u64..30_000).prop_map(Turn::Alarm),
    ];
    prop::collection::vec(turn, 1..200)
}

fn beat(who: usize, skew: i64, state: &str) -> Heartbeat {
    Heartbeat {
        host: "host".into(),
        pid: who as u32 + 1,
        instance: format!("/run/embeddings-{who}"),
        connected: true,
        ready: state != "draining",
        state: state.into(),
        interval_ms: PROMISES_MS[who],
        sent_ts: skew.unsigned_abs(),
        last_progress_ts: skew.unsigned_abs().wrapping_mul(3),
        ..Default::default()
    }
}

/// The world beside: a fleet on made-up time, that ticks and echoes as the real one does.
struct World {
    fleet: Fleet,
    now: u64,
    /// When the last echo or heartbeat came.
    proof: u64,
    /// Since when it hears.
    hearing: u64,
    heard: BTreeMap<usize, (u64, bool)>,
    silent: BTreeMap<usize, bool>,
}

impl World {
    fn new() -> World {
        let mut fleet = Fleet::new(INTERVAL, Moment::ZERO);
        fleet.opened(Moment::ZERO);
        World {
            fleet,
            now: 0,
            proof: 0,
            hearing: 0,
            heard: BTreeMap::new(),
            silent: BTreeMap::new(),
        }
    }

    fn at(&self) -> Moment {
        Moment::from_millis(self.now)
    }

    fn proven(&mut self) {
        if self.now - self.proof >= DEAF_AFTER.as_millis() as u64 {
            self.hearing = self.now;
        }
        self.proof = self.now;
    }

    fn wait(&mut self, ms: u64, echoes: bool) {
        let end = self.now + ms;
        while self.now < end {
            self.now = (self.now + ECHO_INTERVAL.as_millis() as u64).min(end);
            if echoes {
                self.proven();
                self.fleet.echoed(self.at());
            }
            self.fleet.tick(self.at());
            self.judge();
        }
    }

    fn says(&mut self, who: usize, skew: i64, state: &str) {
        self.proven();
        self.heard.insert(who, (self.now, state == "draining"));
        self.silent.insert(who, false);
        self.fleet.heard(beat(who, skew, state), self.at());
    }

    /// In the plainest way: silent is who was not heard up to the last proof for as long as it promised.
    fn judge(&mut self) {
        for (who, (heard, _)) in &self.heard {
            let limit = PROMISES_MS[*who] - ECHO_INTERVAL.as_millis() as u64;
            if self.proof.saturating_sub((*heard).max(self.hearing)) >= limit {
                self.silent.insert(*who, true);
            }
        }
    }

    fn expected(&self, who: usize, deaf: bool) -> Health {
        let (heard, leaving) = self.heard[&who];
        match (leaving, self.silent[&who]) {
            (true, true) => Health::Stopped,
            _ if deaf => Health::Unknown,
            (false, true) => Health::Silent,
            _ if heard < self.hearing => Health::Unknown,
            (true, false) => Health::Draining,
            (false, false) => Health::Idle,
        }
    }

    fn check(&self, deaf: bool) {
        let rows = self.fleet.rows(Order::Host, "", self.at());
        for view in rows {
            let who = view.key.1 as usize - 1;
            assert_eq!(
                view.health,
                self.expected(who, deaf),
                "worker {who} at {}",
                self.now
            );
            let age = self.now - self.heard[&who].0;
            assert_eq!(view.age, Duration::from_millis(age), "whatever its clock says");
        }
    }

    fn is_deaf(&self) -> bool {
        self.now - self.proof >= DEAF_AFTER.as_millis() as u64
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn each_is_shown_as_the_plain_account_says(turns in turns()) {
        let mut world = World::new();
        for turn in turns {
            match turn {
                Turn::Wait(ms, echoes) => world.wait(ms, echoes),
                Turn::Beat(who, skew) => world.says(who, skew, "idle"),
                Turn::Leave(who) => world.says(who, 0, "draining"),
                Turn::Cut(ms) => {
                    world.fleet.lost("cut", world.at());
                    for _ in 0..ms / 250 {
                        world.now += 250;
                        world.fleet.tick(world.at());
                        world.check(true);
                    }
                    world.fleet.opened(world.at());
                    (world.hearing, world.proof) = (world.now, world.now);
                }
                Turn::Alarm(ms) => {
                    world.fleet.blocked(true, world.at());
                    for _ in 0..ms / 250 {
                        world.now += 250;
                        world.fleet.tick(world.at());
                        world.check(true);
                    }
                    world.fleet.blocked(false, world.at());
                    (world.hearing, world.proof) = (world.now, world.now);
                }
            }
            world.check(world.is_deaf());
        }
    }

    /// Within one interval: from its last word on, whenever that was, with echoes as they are sent.
    #[test]
    fn silence_is_shown_within_the_promised_interval(
        who in 0..PROMISES_MS.len(),
        before in prop::collection::vec(0.0..1.0, 0..20),
        skew in any::<i64>(),
        phase in 0u64..250,
    ) {
        let mut world = World::new();
        world.wait(phase + 1, true);
        for part in before {
            world.says(who, skew, "working");
            let latest = PROMISES_MS[who] - ECHO_INTERVAL.as_millis() as u64;
            world.wait((part * latest as f64) as u64, true);
            let shown = world.fleet.rows(Order::Health, "", world.at())[0].health;
            prop_assert_eq!(shown, Health::Working, "it keeps its promise");
        }
        world.says(who, skew, "working");
        world.wait(PROMISES_MS[who], true);
        let shown = world.fleet.rows(Order::Health, "", world.at())[0].health;
        prop_assert_eq!(shown, Health::Silent);
    }

    /// Sleep of this side is nobody's silence, and neither is a line without a proof.
    #[test]
    fn who_cannot_hear_blames_nobody(asleep in 2000u64..10_000_000) {
        let mut world = World::new();
        world.says(1, 0, "idle");
        world.wait(1000, true);
        world.now += asleep;
        world.fleet.tick(world.at());
        prop_assert_ne!(world.fleet.rows(Order::Health, "", world.at())[0].health, Health::Silent);
        world.fleet.echoed(world.at());
        world.fleet.tick(world.at());
        prop_assert_eq!(world.fleet.rows(Order::Health, "", world.at())[0].health, Health::Unknown);
        let woken = world.now;
        (world.proof, world.hearing) = (woken, woken);
        world.wait(5000, true);
        prop_assert_eq!(world.fleet.rows(Order::Health, "", world.at())[0].health, Health::Silent);
    }

    /// Any order leaves equal rows as they stand by host and process, loses none and doubles none.
    #[test]
    fn orders_are_stable_and_lose_nobody(
        workers in prop::collection::vec((0u32..6, 0usize..3, 0usize..3, 0u64..3, prop::option::of(0u64..3)), 0..40),
    ) {
        let mut fleet = Fleet::new(INTERVAL, Moment::ZERO);
        fleet.opened(Moment::ZERO);
        for (at, (host, queue, inflight, rate, kill)) in workers.iter().enumerate() {
            let beat = Heartbeat {
                host: format!("Host{host}"),
                pid: at as u32,
                queue: *queue,
                inflight: *inflight,
                inputs_per_second: *rate as f64,
                sent_ts: 100,
                last_progress_ts: 100 - rate,
                last_kill: kill.map(|at_ts| embeddings::job::heartbeat::LastKill { at_ts, ..Default::default() }),
                ..Default::default()
            };
            fleet.heard(beat, Moment::ZERO);
        }
        let keys = |order, words: &str| -> Vec<(String, u32)> {
            fleet.rows(order, words, Moment::ZERO).iter().map(|view| view.key.clone()).collect()
        };
        let all = keys(Order::Host, "");
        prop_assert_eq!(all.len(), workers.len());
        prop_assert!(all.is_sorted());
        for order in Order::ALL {
            let rows = fleet.rows(order, "", Moment::ZERO);
            let weight = |at: usize| -> i64 {
                let view = &rows[at];
                match order {
                    Order::Health => view.health as i64,
                    Order::Host => 0,
                    Order::Queue => -(view.beat.queue as i64),
                    Order::Inflight => -(view.beat.inflight as i64),
                    Order::Rate => -(view.beat.inputs_per_second as i64),
                    Order::Progress => -(view.progress_age.map_or(-1, |age| age.as_millis() as i64)),
                    Order::Kill => view.kill_age.map_or(i64::MAX, |age| age.as_millis() as i64),
                }
            };
            for at in 1..rows.len() {
                prop_assert!(weight(at - 1) <= weight(at), "{:?}", order);
                prop_assert!(weight(at - 1) < weight(at) || rows[at - 1].key < rows[at].key, "{:?}", order);
            }
            let mut sorted: Vec<_> = rows.iter().map(|view| view.key.clone()).collect();
            sorted.sort();
            prop_assert_eq!(&sorted, &all);
        }
        let filtered = keys(Order::Host, "hOsT3");
        let expected: Vec<_> = all.iter().filter(|key| key.0 == "Host3").cloned().collect();
        prop_assert_eq!(filtered, expected);
    }
}

fn one(host: &str, pid: u32, uptime_ms: u64) -> Heartbeat {
    Heartbeat {
        host: host.into(),
        pid,
        instance: "/run/embeddings".into(),
        connected: true,
        ready: true,
        state: "idle".into(),
        interval_ms: 5000,
        uptime_ms: Some(uptime_ms),
        ..Default::default()
    }
}

fn shown(fleet: &Fleet, now: Moment) -> Vec<(u32, Health, u32)> {
    let rows = fleet.rows(Order::Host, "", now);
    rows.iter()
        .map(|view| (view.key.1, view.health, view.restarts))
        .collect()
}

/// Time passes, and echoes come back.
fn pass(fleet: &mut Fleet, from_ms: u64, to_ms: u64) {
    for ms in (from_ms..=to_ms).step_by(250) {
        fleet.echoed(Moment::from_millis(ms));
        fleet.tick(Moment::from_millis(ms));
    }
}

/// A process that takes the place of another takes its row, in each way in which that can be seen; one beside does not.
#[test]
fn a_restart_takes_the_row_over() {
    let at = Moment::from_millis;
    let mut fleet = Fleet::new(INTERVAL, at(0));
    fleet.opened(at(0));
    fleet.heard(one("a", 1, 60_000), at(0));
    pass(&mut fleet, 0, 1500);
    // Its record says whose place it takes.
    let mut killed = one("a", 2, 500);
    killed.last_kill = Some(embeddings::job::heartbeat::LastKill {
        pid: 1,
        ..Default::default()
    });
    fleet.heard(killed, at(1500));
    assert_eq!(shown(&fleet, at(1500)), [(2, Health::Idle, 1)]);
    pass(&mut fleet, 1500, 2500);
    // It has said good-bye.
    let mut leaving = one("a", 2, 1500);
    leaving.state = "draining".into();
    fleet.heard(leaving, at(2500));
    assert_eq!(shown(&fleet, at(2500)), [(2, Health::Draining, 1)]);
    fleet.heard(one("a", 3, 100), at(2700));
    assert_eq!(shown(&fleet, at(2700)), [(3, Health::Idle, 2)]);
    pass(&mut fleet, 2500, 4000);
    // It has just vanished: that it is silent tells, one interval later.
    fleet.heard(one("a", 4, 100), at(4000));
    assert_eq!(
        shown(&fleet, at(4000)),
        [(3, Health::Idle, 2), (4, Health::Idle, 0)]
    );
    pass(&mut fleet, 4000, 8000);
    fleet.heard(one("a", 4, 4100), at(8000));
    assert_eq!(shown(&fleet, at(8000)), [(4, Health::Idle, 3)]);
    // A heartbeat that was held up for long is still of the same process.
    fleet.heard(one("a", 4, 4200), at(8400));
    assert_eq!(shown(&fleet, at(8400)), [(4, Health::Idle, 3)]);
    // The same number again, of a younger process.
    fleet.heard(one("a", 4, 50), at(8500));
    assert_eq!(shown(&fleet, at(8500)), [(4, Health::Idle, 4)]);
    // Another instance, and another machine, are others, also while this one is silent.
    pass(&mut fleet, 8500, 14_000);
    let mut beside = one("a", 5, 100);
    beside.instance = "/run/embeddings-gpu1".into();
    fleet.heard(beside, at(14_000));
    fleet.heard(one("b", 6, 100), at(14_000));
    assert_eq!(
        shown(&fleet, at(14_000)),
        [(4, Health::Silent, 4), (5, Health::Idle, 0), (6, Health::Idle, 0)]
    );
    fleet.heard(one("a", 7, 100), at(14_100));
    assert_eq!(
        shown(&fleet, at(14_100)),
        [(5, Health::Idle, 0), (7, Health::Idle, 5), (6, Health::Idle, 0)]
    );
}

/// Goal: the list is bounded; who is heard is not pushed out, who has been silent longest goes first, and it is said.
#[test]
fn the_list_is_bounded_and_says_what_it_forgets() {
    let at = Moment::from_millis;
    let mut fleet = Fleet::new(INTERVAL, at(0));
    fleet.opened(at(0));
    for pid in 0..ROWS_MAX as u32 {
        fleet.heard(one("a", pid, 60_000), at(u64::from(pid) / 10));
    }
    fleet.heard(one("b", 1, 60_000), at(1000));
    let totals = fleet.totals(at(1000));
    assert_eq!(
        (totals.workers(), totals.forgotten, totals.refused),
        (ROWS_MAX, 0, 1)
    );
    for ms in (1000..=7000).step_by(250) {
        fleet.echoed(at(ms));
        if ms == 4000 {
            for pid in 1..ROWS_MAX as u32 - 1 {
                fleet.heard(one("a", pid, 60_000), at(ms));
            }
        }
        fleet.tick(at(ms));
    }
    fleet.heard(one("b", 1, 60_000), at(7000));
    let totals = fleet.totals(at(7000));
    assert_eq!(
        (totals.workers(), totals.forgotten, totals.refused),
        (ROWS_MAX, 1, 1)
    );
    assert_eq!(totals.count(Health::Silent), 1);
    assert!(fleet.row(&("a".into(), 0), at(7000)).is_none(), "silent longest");
    assert!(fleet.row(&("b".into(), 1), at(7000)).is_some());
}

/// Goal: what is heard of a worker that takes jobs and sends no heartbeat is that there is one, once there was time.
#[test]
fn consumers_that_nobody_hears_are_told() {
    let at = Moment::from_millis;
    let mut fleet = Fleet::new(INTERVAL, at(0));
    fleet.opened(at(0));
    fleet.counted(Some(3));
    fleet.heard(one("a", 1, 0), at(100));
    assert_eq!(fleet.totals(at(100)).unheard, 0, "not yet");
    for ms in (250..=5250).step_by(250) {
        fleet.echoed(at(ms));
        fleet.tick(at(ms));
        if ms == 4000 {
            fleet.heard(one("a", 1, 4000), at(ms));
        }
    }
    let totals = fleet.totals(at(5250));
    assert_eq!((totals.unheard, totals.is_well()), (2, false));
    fleet.lost("gone", at(5300));
    assert_eq!(fleet.totals(at(5300)).unheard, 0);
}

/// Goal: ages are right whatever the clock of the worker's machine says.
#[test]
fn a_wrong_clock_changes_no_age() {
    let at = Moment::from_millis;
    let day_ms = 86_400_000;
    for sent_ts in [day_ms, 1_724_612_345_678, u64::MAX] {
        let mut fleet = Fleet::new(INTERVAL, at(0));
        fleet.opened(at(0));
        let mut beat = one("a", 1, 60_000);
        (beat.sent_ts, beat.last_progress_ts) = (sent_ts, sent_ts - 700);
        fleet.heard(beat, at(1000));
        let row = fleet.row(&("a".into(), 1), at(1500)).unwrap();
        assert_eq!(row.progress_age, Some(Duration::from_millis(1200)));
        assert_eq!(row.uptime, Some(Duration::from_millis(60_500)));
    }
}

/// Goal: what a heartbeat says cannot steer a terminal, nor fill the memory.
#[test]
fn texts_are_plain_and_short() {
    let mut fleet = Fleet::new(INTERVAL, Moment::ZERO);
    fleet.opened(Moment::ZERO);
    let mut beat = one("\u{1b}[2Jhost\n", 1, 0);
    beat.model = "x".repeat(100_000);
    fleet.heard(beat, Moment::ZERO);
    let rows = fleet.rows(Order::Host, "", Moment::ZERO);
    assert_eq!(rows[0].beat.host, " [2Jhost ");
    assert_eq!(rows[0].beat.model.len(), 128);
}
