//! The third ring's decisions: heartbeats and the present moment in, verdicts about workers out. Pure: it
//! knows no process, no socket and no clock.
//!
//! A worker is known from its first heartbeat and forgotten when its process has ended. Its heartbeats say
//! how it is; their absence says the rest. One that was never connected is left to wait for its broker.

use super::ledger::Stage;
use super::status::State;
use crate::clock::Moment;
use crate::config::Limits;
use crate::job::heartbeat::Heartbeat;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// From the polite signal to the other. A worker that can still drain is done sooner or is cut off by its
/// own `drain_ms`; what it had not settled is delivered again either way.
const GRACE: Duration = Duration::from_secs(5);
/// Workers watched at once; a machine runs a few.
const WORKERS_MAX: usize = 1024;
/// A monitor that has not turned for longer than this was asleep itself (stopped, starved, a paused machine),
/// and counts only this much of the time: what it could not hear is nobody's silence.
const TURN_MAX: Duration = Duration::from_secs(2);

/// How long a worker may be in a state that it should not be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Without a heartbeat.
    pub silence: Duration,
    /// Without the broker, by its own account, after having been connected.
    pub lost: Duration,
    /// With the same stage stalled, by its own account.
    pub stall: Duration,
}

impl Bounds {
    /// From the configuration. A worker is given one heartbeat longer than its own watchdog gives it, so
    /// that it comes first and can say more.
    pub fn new(limits: &Limits) -> Bounds {
        Bounds {
            silence: limits.heartbeat_timeout,
            lost: limits.disconnect_kill + limits.heartbeat_interval,
            stall: limits.heartbeat_timeout,
        }
    }
}

/// Why a worker has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It has fallen silent.
    Silent,
    /// It lives and has lost its broker.
    BrokerLost,
    /// It lives and gets nowhere.
    Stalled(Stage),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Silent => f.write_str("no heartbeat"),
            Cause::BrokerLost => f.write_str("broker lost"),
            Cause::Stalled(stage) => write!(f, "stage {stage} stalled"),
        }
    }
}

/// What is to be done to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// SIGTERM, with a record of why.
    Terminate {
        /// The worker.
        pid: u32,
        /// Why.
        cause: Cause,
        /// For how long it has been so.
        lasted: Duration,
        /// Since its last heartbeat.
        silent: Duration,
    },
    /// It has not gone within the grace period: SIGKILL.
    Kill {
        /// The worker.
        pid: u32,
    },
}

/// Whose heartbeat it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A worker's first.
    First,
    /// A known worker's.
    Again,
    /// Nobody's that could be watched: there are too many already.
    Refused,
}

/// How far a worker is on the way out. Nothing leads back: a signal cannot be called back.
///
/// ```text
///   heard        judge: bound passed        judge: grace over
///   ------> Watched ------------> Terminated ------------> Killed
///              |  ended               |  ended                |  ended
///              +----------------------+-----------------------+------> forgotten
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Watched,
    Terminated(Moment),
    Killed,
}

#[derive(Clone, Debug)]
struct Worker {
    heard: Moment,
    was_connected: bool,
    lost_since: Option<Moment>,
    stalled: Option<(Stage, Moment)>,
    draining: bool,
    fate: Fate,
    /// Of its own, if it has any.
    bounds: Option<Bounds>,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Monitor {
    bounds: Bounds,
    workers: BTreeMap<u32, Worker>,
    last_heard: Option<Moment>,
    turned: Moment,
}

impl Monitor {
    /// A monitor that knows nobody.
    pub fn new(bounds: Bounds, now: Moment) -> Monitor {
        Monitor {
            bounds,
            workers: BTreeMap::new(),
            last_heard: None,
            turned: now,
        }
    }

    /// New bounds hold from now on.
    pub fn reload(&mut self, bounds: Bounds) {
        self.bounds = bounds;
    }

    /// A heartbeat came from this process, whatever it says about its own number.
    pub fn heard(&mut self, pid: u32, beat: &Heartbeat, now: Moment) -> Heard {
        self.last_heard = Some(now);
        let known = self.workers.contains_key(&pid);
        if !known && self.workers.len() >= WORKERS_MAX {
            return Heard::Refused;
        }
        let worker = self.workers.entry(pid).or_insert(Worker {
            heard: now,
            was_connected: false,
            lost_since: None,
            stalled: None,
            draining: false,
            fate: Fate::Watched,
            bounds: None,
        });
        worker.heard = now;
        // One that is degraded was ready once, and had a broker, also if this monitor is younger than that.
        worker.was_connected |= beat.connected || beat.state == State::Degraded.name();
        worker.draining = beat.state == State::Draining.name();
        worker.lost_since = if beat.connected || !worker.was_connected {
            None
        } else {
            worker.lost_since.or(Some(now))
        };
        let name = beat.stalled_stage.as_deref();
        let stalled = Stage::ALL.into_iter().find(|stage| Some(stage.name()) == name);
        worker.stalled = stalled.map(|stage| match worker.stalled {
            Some((before, since)) if before == stage => (stage, since),
            _ => (stage, now),
        });
        if known { Heard::Again } else { Heard::First }
    }

    /// A known worker has bounds of its own from now on, or none.
    pub fn bind(&mut self, pid: u32, bounds: Option<Bounds>) {
        if let Some(worker) = self.workers.get_mut(&pid) {
            worker.bounds = bounds;
        }
    }

    /// Its process has ended.
    pub fn ended(&mut self, pid: u32) {
        self.workers.remove(&pid);
    }

    /// One turn: who has to go. To be asked when everything that has come is heard.
    pub fn judge(&mut self, now: Moment) -> Vec<Verdict> {
        let asleep = now.since(self.turned).saturating_sub(TURN_MAX);
        self.turned = now;
        let bounds = self.bounds;
        let judge = |(&pid, worker): (&u32, &mut Worker)| {
            worker.excuse(asleep, now);
            match worker.fate {
                Fate::Watched => {
                    let (cause, lasted) = worker.overdue(&worker.bounds.unwrap_or(bounds), now)?;
                    worker.fate = Fate::Terminated(now);
                    let silent = now.since(worker.heard);
                    Some(Verdict::Terminate {
                        pid,
                        cause,
                        lasted,
                        silent,
                    })
                }
                Fate::Terminated(since) if now.since(since) >= GRACE => {
                    worker.fate = Fate::Killed;
                    Some(Verdict::Kill { pid })
                }
                Fate::Terminated(_) | Fate::Killed => None,
            }
        };
        self.workers.iter_mut().filter_map(judge).collect()
    }

    /// When a verdict can fall at the earliest if nothing more is heard.
    pub fn next_check(&self) -> Option<Moment> {
        self.workers
            .values()
            .filter_map(|worker| worker.deadline(&worker.bounds.unwrap_or(self.bounds)))
            .min()
    }

    /// Workers that are watched.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Since anyone was heard.
    pub fn silent_for(&self, now: Moment) -> Option<Duration> {
        self.last_heard.map(|last| now.since(last))
    }
}

impl Worker {
    /// Every bound with the moment from which it counts. One that is draining is already on its way out, and
    /// its own `drain_ms` bounds that; only its silence is judged.
    fn clocks(&self, bounds: &Bounds) -> [Option<(Cause, Moment, Duration)>; 3] {
        let lost = self.lost_since.filter(|_| !self.draining);
        let stalled = self.stalled.filter(|_| !self.draining);
        [
            Some((Cause::Silent, self.heard, bounds.silence)),
            lost.map(|since| (Cause::BrokerLost, since, bounds.lost)),
            stalled.map(|(stage, since)| (Cause::Stalled(stage), since, bounds.stall)),
        ]
    }

    fn overdue(&self, bounds: &Bounds, now: Moment) -> Option<(Cause, Duration)> {
        let mut clocks = self.clocks(bounds).into_iter().flatten();
        let (cause, since, _) = clocks.find(|(_, since, bound)| now.since(*since) >= *bound)?;
        Some((cause, now.since(since)))
    }

    fn deadline(&self, bounds: &Bounds) -> Option<Moment> {
        match self.fate {
            Fate::Watched => {
                let clocks = self.clocks(bounds).into_iter().flatten();
                clocks.map(|(_, since, bound)| since + bound).min()
            }
            Fate::Terminated(since) => Some(since + GRACE),
            Fate::Killed => None,
        }
    }

    /// Time that the monitor itself slept is nobody's fault.
    fn excuse(&mut self, asleep: Duration, now: Moment) {
        let later = |since: Moment| (since + asleep).min(now);
        self.heard = later(self.heard);
        self.lost_since = self.lost_since.map(later);
        self.stalled = self.stalled.map(|(stage, since)| (stage, later(since)));
        if let Fate::Terminated(since) = self.fate {
            self.fate = Fate::Terminated(later(since));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        silence: Duration::from_secs(45),
        lost: Duration::from_secs(15),
        stall: Duration::from_secs(45),
    };

    /// A monitor on made-up time that turns every half second, as the real one does.
    struct Watch {
        monitor: Monitor,
        now: u64,
    }

    impl Watch {
        fn new() -> Watch {
            let monitor = Monitor::new(BOUNDS, Moment::ZERO);
            Watch { monitor, now: 0 }
        }

        fn hears(&mut self, pid: u32, beat: &Heartbeat) -> Heard {
            self.monitor.heard(pid, beat, Moment::from_millis(self.now))
        }

        /// Lets time pass; the worker, if it beats, beats at each turn.
        fn pass(&mut self, ms: u64, beating: Option<(u32, &Heartbeat)>) -> Vec<(u64, Verdict)> {
            let mut verdicts = Vec::new();
            for _ in 0..ms / 500 {
                self.now += 500;
                if let Some((pid, beat)) = beating {
                    self.hears(pid, beat);
                }
                let now = Moment::from_millis(self.now);
                verdicts.extend(
                    self.monitor
                        .judge(now)
                        .into_iter()
                        .map(|verdict| (self.now, verdict)),
                );
            }
            verdicts
        }
    }

    fn beat(connected: bool, state: State, stalled: Option<Stage>) -> Heartbeat {
        Heartbeat {
            connected,
            state: state.name().to_owned(),
            stalled_stage: stalled.map(|stage| stage.name().to_owned()),
            ..Default::default()
        }
    }

    fn terminate(pid: u32, cause: Cause, lasted_ms: u64, silent_ms: u64) -> Verdict {
        let (lasted, silent) = (Duration::from_millis(lasted_ms), Duration::from_millis(silent_ms));
        Verdict::Terminate {
            pid,
            cause,
            lasted,
            silent,
        }
    }

    #[test]
    fn silence_ends_a_worker_at_its_bound_and_stubbornness_five_seconds_later() {
        let mut watch = Watch::new();
        assert_eq!(watch.hears(7, &beat(true, State::Idle, None)), Heard::First);
        let verdicts = watch.pass(120_000, None);
        let expected = [
            (45_000, terminate(7, Cause::Silent, 45_000, 45_000)),
            (50_000, Verdict::Kill { pid: 7 }),
        ];
        assert_eq!(verdicts, expected);
        watch.monitor.ended(7);
        assert_eq!(watch.monitor.workers(), 0);
        assert_eq!(watch.hears(7, &beat(true, State::Idle, None)), Heard::First);
        assert_eq!(watch.pass(44_500, None), []);
    }

    #[test]
    fn a_worker_with_bounds_of_its_own_is_held_to_them_and_no_other_is() {
        let mut watch = Watch::new();
        let idle = beat(true, State::Idle, None);
        watch.hears(7, &idle);
        watch.hears(8, &idle);
        let own = Bounds {
            silence: Duration::from_secs(6),
            ..BOUNDS
        };
        watch.monitor.bind(7, Some(own));
        assert_eq!(watch.monitor.next_check(), Some(Moment::from_millis(6000)));
        let first = terminate(7, Cause::Silent, 6000, 6000);
        let second = terminate(8, Cause::Silent, 45_000, 45_000);
        let verdicts = watch.pass(46_000, None);
        let expected = [
            (6000, first),
            (11_000, Verdict::Kill { pid: 7 }),
            (45_000, second),
        ];
        assert_eq!(verdicts, expected);
    }

    #[test]
    fn a_lost_broker_ends_a_worker_that_had_one() {
        let (up, down) = (beat(true, State::Idle, None), beat(false, State::Degraded, None));
        let mut watch = Watch::new();
        let waits = beat(false, State::Starting, None);
        assert_eq!(watch.pass(600_000, Some((7, &waits))), [], "it never had one");
        watch.hears(7, &up);
        assert_eq!(
            watch.pass(15_000, Some((7, &down))),
            [],
            "one heartbeat more than its own watchdog"
        );
        watch.pass(500, Some((7, &up)));
        let since = watch.now + 500;
        let verdicts = watch.pass(16_000, Some((7, &down)));
        assert_eq!(
            verdicts,
            [(since + 15_000, terminate(7, Cause::BrokerLost, 15_000, 0))]
        );
    }

    #[test]
    fn the_same_stage_stalled_for_long_ends_a_worker_and_another_begins_anew() {
        let stalled = |stage| beat(true, State::Stalled, Some(stage));
        let mut watch = Watch::new();
        assert_eq!(watch.pass(45_000, Some((7, &stalled(Stage::Computed)))), []);
        assert_eq!(watch.pass(45_000, Some((7, &stalled(Stage::Published)))), []);
        let verdicts = watch.pass(500, Some((7, &stalled(Stage::Published))));
        assert_eq!(
            verdicts[0].1,
            terminate(7, Cause::Stalled(Stage::Published), 45_000, 0)
        );
    }

    #[test]
    fn a_draining_worker_is_left_to_its_own_limit_unless_it_falls_silent() {
        let mut watch = Watch::new();
        watch.hears(7, &beat(true, State::Working, None));
        let draining = beat(false, State::Draining, Some(Stage::Computed));
        assert_eq!(watch.pass(600_000, Some((7, &draining))), []);
        assert_eq!(watch.pass(45_000, None).len(), 1);
    }

    /// Goal: a monitor that was stopped itself does not take what it could not hear for silence.
    #[test]
    fn a_monitor_that_slept_ends_nobody_for_it() {
        let mut watch = Watch::new();
        watch.hears(7, &beat(true, State::Idle, None));
        assert_eq!(watch.pass(40_000, None), []);
        watch.now += 3_600_000;
        let woken = watch.now;
        assert_eq!(watch.monitor.judge(Moment::from_millis(woken)), []);
        let verdicts = watch.pass(10_000, None);
        assert_eq!(verdicts[0].0, woken + 3_000, "40 s and 2 s had counted");
    }

    #[test]
    fn there_is_room_for_so_many_and_no_more() {
        let mut watch = Watch::new();
        let well = beat(true, State::Idle, None);
        for pid in 1..=WORKERS_MAX as u32 {
            assert_eq!(watch.hears(pid, &well), Heard::First);
        }
        assert_eq!(watch.hears(u32::MAX, &well), Heard::Refused);
        assert_eq!(watch.hears(1, &well), Heard::Again);
        watch.monitor.ended(1);
        assert_eq!(watch.hears(u32::MAX, &well), Heard::First);
    }
}
