//! The health truth: is useful work going round, and has the broker proved itself? Pure: facts and the
//! present moment in, a verdict out. It never reads a clock, and silence alone never heals it.

use super::event::Worker;
use super::ledger::{Ledger, Stage};
use crate::clock::Moment;
use crate::config::Limits;
use crate::job::Lane;
use std::fmt;
use std::time::Duration;

/// How often the loop must turn even when nothing happens, so that a loop that hangs is seen.
const TURN_MAX: Duration = Duration::from_millis(500);

/// A loop that has not turned for this long is not merely between two turns.
const TURN_LATE: Duration = Duration::from_secs(1);

/// Looks in a row at which a queue had no consumer, before the session counts as lost. One look may come
/// from a broker that has just moved the queue's leader and knows of no consumer yet.
const UNCONSUMED_MAX: u32 = 3;

/// Why the process ends itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KillReason {
    /// No broker proof within its bound, after having been connected.
    BrokerDisconnected,
    /// A stage has something inside and nothing has left it within the bound.
    NoProgress(Stage),
    /// The loop has not turned within the bound.
    LoopHung,
    /// The watchdog thread has not looked within the bound.
    WatchdogHung,
    /// A canary's vector is wrong, or every batch fails.
    EngineCorrupt,
    /// Not drained within the grace period.
    DrainTimeout,
}

impl KillReason {
    /// `KILL_REASON=` in the journal.
    pub fn name(self) -> &'static str {
        match self {
            KillReason::BrokerDisconnected => "broker_disconnected",
            KillReason::NoProgress(_) | KillReason::LoopHung | KillReason::WatchdogHung => "no_progress",
            KillReason::EngineCorrupt => "engine_corrupt",
            KillReason::DrainTimeout => "drain_timeout",
        }
    }

    /// The contract's exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            KillReason::BrokerDisconnected => 70,
            KillReason::NoProgress(_) | KillReason::LoopHung | KillReason::WatchdogHung => 71,
            KillReason::EngineCorrupt => 72,
            KillReason::DrainTimeout => 0,
        }
    }

    /// `STAGE=` in the journal, where one stage of a job's life, or a part that watches over it, is to blame.
    pub fn stage(self) -> Option<&'static str> {
        match self {
            KillReason::NoProgress(stage) => Some(stage.name()),
            KillReason::LoopHung => Some("loop"),
            KillReason::WatchdogHung => Some("watchdog"),
            _ => None,
        }
    }
}

/// What must hold for the service to be believed, each by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Condition {
    /// It has not been told to stop.
    Wanted,
    /// No canary came back wrong, and not every batch fails.
    EngineRight,
    /// The loop has turned within the stall limit.
    LoopTurns,
    /// The watchdog thread has looked within the stall limit.
    Watched,
    /// No stage is stalled.
    Progress,
    /// The broker has proved itself within its limit.
    BrokerProven,
    /// A session stands.
    Connected,
}

/// What the truth amounts to at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is stalled and the broker has proved itself within its limit.
    Proven,
    /// Something is amiss that may still heal: no pets, no kill.
    Unproven,
    /// A bound of the contract is passed.
    Kill(KillReason),
}

/// Why the service is not ready. Overload and a blocking broker cost readiness only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NotReady {
    /// Models are loaded for the first time, or the first canary has not come round yet.
    Starting,
    /// The broker has not proved itself within its limit.
    BrokerLost,
    /// The broker answers, and knows of no consumer of ours on a lane.
    Unconsumed,
    /// The broker says that it takes no messages.
    Blocked,
    /// The interactive lane is full.
    Saturated,
    /// The default model could not be loaded when it was wanted.
    ModelFailed,
    /// The service is stopping.
    Draining,
}

impl fmt::Display for NotReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NotReady::Starting => "first canary under way",
            NotReady::BrokerLost => "broker lost",
            NotReady::Unconsumed => "the broker knows no consumer of ours",
            NotReady::Blocked => "broker blocks publishing (memory or disk alarm)",
            NotReady::Saturated => "queue full",
            NotReady::ModelFailed => "default model cannot be loaded",
            NotReady::Draining => "draining",
        })
    }
}

/// The machine. See the module's header for what it must never do.
#[derive(Clone, Debug)]
pub struct Health {
    limits: Limits,
    /// What is inside each stage, and when something last left it.
    pub(super) ledger: Ledger,
    /// Whether a session stands.
    connected: bool,
    /// When the broker last answered; `None` before the first session.
    proof: Option<Moment>,
    blocked_since: Option<Moment>,
    draining_since: Option<Moment>,
    /// When a job or canary last went all the way round.
    round: Option<Moment>,
    /// Whether a canary is under way through the broker.
    canary_brokered: bool,
    /// Whether a canary is under way on the short way.
    canary_local: bool,
    canary_wrong: bool,
    pet: Option<Moment>,
    ready: bool,
    turn: Moment,
    /// When the watchdog thread last looked; `None` where there is none.
    watched: Option<Moment>,
    /// Looks in a row at which a lane's queue had no consumer.
    unconsumed: [u32; Lane::COUNT],
    /// Since when a lane's consumer has been missing for good, over all sessions.
    unconsumed_since: [Option<Moment>; Lane::COUNT],
}

impl Health {
    /// A service that has proved nothing yet.
    pub fn new(limits: Limits, engines: usize, tokenizers: usize, now: Moment) -> Health {
        Health {
            limits,
            ledger: Ledger::new(engines, tokenizers, now),
            connected: false,
            proof: None,
            blocked_since: None,
            draining_since: None,
            round: None,
            canary_brokered: false,
            canary_local: false,
            canary_wrong: false,
            pet: None,
            ready: false,
            turn: now,
            watched: None,
            unconsumed: [0; Lane::COUNT],
            unconsumed_since: [None; Lane::COUNT],
        }
    }

    /// The loop turned.
    pub fn turned(&mut self, now: Moment) {
        self.turn = now;
    }

    /// The watchdog thread looked at `at`: a ring that no longer watches is no ring.
    pub fn watched(&mut self, at: Moment) {
        self.watched = Some(at);
    }

    /// The broker told of a queue of ours: `waits` says that it has messages it could deliver. True if our
    /// consumer has been missing so often that the session is lost, whatever else it says.
    pub fn queue_seen(&mut self, lane: Lane, waits: bool, consumers: usize, now: Moment) -> bool {
        self.broker_proof(now);
        self.ledger.queue_seen(lane, waits && consumers > 0, now);
        if consumers > 0 {
            self.consumer_seen(lane);
            return false;
        }
        let missed = &mut self.unconsumed[lane as usize];
        *missed += 1;
        if *missed >= UNCONSUMED_MAX {
            self.unconsumed_since[lane as usize].get_or_insert(now);
        }
        *missed == UNCONSUMED_MAX
    }

    /// A lane's consumer is known to the broker: it was told so, or it was delivered to.
    pub fn consumer_seen(&mut self, lane: Lane) {
        self.unconsumed[lane as usize] = 0;
        self.unconsumed_since[lane as usize] = None;
    }

    /// New limits hold from now on.
    pub fn reload(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// A session stands; its handshake was an answer.
    pub fn broker_up(&mut self, now: Moment) {
        self.connected = true;
        self.broker_proof(now);
    }

    /// The session ended: whatever depended on it has left, and the way round is open again.
    /// `inside` is what the stages hold of jobs that no session has delivered.
    pub fn broker_down(&mut self, inside: &[usize; Stage::ALL.len()]) {
        self.connected = false;
        self.blocked_since = None;
        self.canary_brokered = false;
        self.unconsumed = [0; Lane::COUNT];
        self.ledger.session_lost(inside);
    }

    /// The broker answered.
    pub fn broker_proof(&mut self, now: Moment) {
        self.proof = Some(now);
    }

    /// The broker blocks us, or no longer. What waits for it is judged anew from the moment it takes
    /// messages again. A canary that is held up by the broker does not hold up one on the short way.
    pub fn broker_blocked(&mut self, blocked: bool, now: Moment) {
        match (blocked, self.blocked_since) {
            (true, None) => self.blocked_since = Some(now),
            (false, Some(_)) => {
                self.blocked_since = None;
                self.ledger.restart(Stage::Published, now);
                self.ledger.restart(Stage::Received, now);
            }
            _ => {}
        }
    }

    /// A job or canary completed all stages.
    pub fn round_completed(&mut self, now: Moment) {
        self.round = Some(now);
    }

    /// The canary of this way has come back, or has been given up.
    pub fn canary_ended(&mut self, through_broker: bool) {
        if through_broker {
            self.canary_brokered = false;
        } else {
            self.canary_local = false;
        }
    }

    /// The engine computes wrong vectors: nothing heals that.
    pub fn canary_wrong(&mut self) {
        self.canary_wrong = true;
    }

    /// The service is to stop.
    pub fn drain(&mut self, now: Moment) {
        self.draining_since.get_or_insert(now);
    }

    /// Whether the service is stopping.
    pub fn is_draining(&self) -> bool {
        self.draining_since.is_some()
    }

    /// What is left of the time to stop; none if the service does not stop.
    pub fn drain_left(&self, now: Moment) -> Duration {
        let since = self.draining_since.map(|since| now.since(since));
        since.map_or(Duration::ZERO, |since| self.limits.drain.saturating_sub(since))
    }

    /// Whether a session with the broker stands.
    pub fn is_connected(&self) -> bool {
        self.connected
    }

    /// Since when the broker blocks us.
    pub fn blocked_since(&self) -> Option<Moment> {
        self.blocked_since
    }

    /// Every condition of being believed, at this moment.
    pub fn conditions(&self, now: Moment) -> [(Condition, bool); 7] {
        let stall = self.limits.liveness_max_stall;
        // A loop that does not turn hears no proof: then it is the loop that is judged, not the broker.
        let heard = now.min(self.turn + TURN_LATE);
        [
            (Condition::Wanted, self.draining_since.is_none()),
            (Condition::EngineRight, !self.canary_wrong),
            (Condition::LoopTurns, now.since(self.turn) < stall),
            (
                Condition::Watched,
                self.watched
                    .is_none_or(|at| now.since(at) < stall.max(2 * self.limits.watchdog_interval)),
            ),
            (Condition::Progress, self.stalled(now).is_none()),
            (Condition::BrokerProven, self.broker_proven(heard)),
            (Condition::Connected, self.connected),
        ]
    }

    /// The first condition that does not hold decides. The loss of a session is judged by its age, a stall
    /// by the ledger, a wrong vector at once.
    pub fn verdict(&self, now: Moment) -> Verdict {
        let broken = self.conditions(now).into_iter().find(|(_, holds)| !holds);
        let Some((broken, _)) = broken else {
            return Verdict::Proven;
        };
        match broken {
            Condition::Wanted => match self.draining_since {
                Some(since) if now.since(since) >= self.limits.drain => {
                    Verdict::Kill(KillReason::DrainTimeout)
                }
                _ => Verdict::Unproven,
            },
            Condition::EngineRight => Verdict::Kill(KillReason::EngineCorrupt),
            Condition::LoopTurns => Verdict::Kill(KillReason::LoopHung),
            Condition::Watched => Verdict::Kill(KillReason::WatchdogHung),
            Condition::Progress => self.stalled(now).map_or(Verdict::Unproven, |stage| {
                Verdict::Kill(KillReason::NoProgress(stage))
            }),
            // A broker that was never there is waited for.
            Condition::BrokerProven if self.proof.is_some() => Verdict::Kill(KillReason::BrokerDisconnected),
            Condition::BrokerProven | Condition::Connected => Verdict::Unproven,
        }
    }

    /// For how long a stage, or the loop, may stand still.
    pub fn stall_max(&self) -> Duration {
        self.limits.liveness_max_stall
    }

    /// The stage that is stalled, if one is; of several the last, because what waits for the next is judged
    /// by the next. What waits for a broker that says it blocks is excused.
    pub fn stalled(&self, now: Moment) -> Option<Stage> {
        Stage::ALL.into_iter().rev().find(|&stage| {
            !self.excuses(stage) && self.ledger.waiting_for(stage, now) >= self.limits.liveness_max_stall
        })
    }

    /// Whether a stage may wait as long as it likes, because it waits for a broker that says it blocks.
    pub fn excuses(&self, stage: Stage) -> bool {
        self.blocked_since.is_some() && matches!(stage, Stage::Published | Stage::Received)
    }

    /// Whether new work is welcome, or why not.
    pub fn readiness(&self, saturated: bool, now: Moment) -> Result<(), NotReady> {
        if self.is_draining() {
            return Err(NotReady::Draining);
        }
        if !self.ready {
            return Err(NotReady::Starting);
        }
        if !self.connected {
            return Err(NotReady::BrokerLost);
        }
        // At once, like the loss of a session: what would be sent to that lane lies there.
        if self.unconsumed(now).is_some() {
            return Err(NotReady::Unconsumed);
        }
        if !self.broker_proven(now) {
            return Err(NotReady::BrokerLost);
        }
        if self.blocked_since.is_some() {
            return Err(NotReady::Blocked);
        }
        if saturated {
            Err(NotReady::Saturated)
        } else {
            Ok(())
        }
    }

    /// Called on the proving event only. True if systemd may be told, at most once per `spacing`.
    pub fn may_pet(&mut self, spacing: Duration, now: Moment) -> bool {
        let due = self.pet.is_none_or(|last| now.since(last) >= spacing);
        let allowed = due && self.round == Some(now) && self.verdict(now) == Verdict::Proven;
        if allowed {
            self.pet = Some(now);
        }
        allowed
    }

    /// Called on the proving event only. True once, when the first round is complete.
    pub fn becomes_ready(&mut self, now: Moment) -> bool {
        let first = !self.ready && self.round == Some(now) && self.verdict(now) == Verdict::Proven;
        self.ready |= first;
        first
    }

    /// Whether it has been ready.
    pub fn has_been_ready(&self) -> bool {
        self.ready
    }

    /// Whether a canary is due, at once if it is `urgent`; if so it counts as sent. `None` if not due, else
    /// whether the broker is to carry it.
    pub fn canary_due(&mut self, urgent: bool, now: Moment) -> Option<bool> {
        if !self.connected || self.is_draining() || self.canary_under_way() {
            return None;
        }
        let recent = |last: Moment| now.since(last) < self.limits.canary_interval;
        if !urgent && self.round.is_some_and(recent) {
            return None;
        }
        let through_broker = self.blocked_since.is_none();
        if through_broker {
            self.canary_brokered = true;
            self.ledger.enter(Stage::Received, 1, now);
        } else {
            self.canary_local = true;
        }
        Some(through_broker)
    }

    /// Idle threads that are to be asked now whether they still work.
    pub fn trials_due(&mut self, now: Moment) -> Vec<Worker> {
        if self.is_draining() {
            return Vec::new();
        }
        // Often enough that a thread which is well has answered long before it could count as stalled.
        let every = self
            .limits
            .canary_interval
            .min(self.limits.liveness_max_stall / 4);
        self.ledger.trials_due(every, now)
    }

    /// Whether a canary is under way on the way that the next would take.
    fn canary_under_way(&self) -> bool {
        if self.blocked_since.is_some() {
            self.canary_local
        } else {
            self.canary_brokered
        }
    }

    /// Age of the last proof; `None` before the first.
    pub fn proof_age(&self, now: Moment) -> Option<Duration> {
        self.proof.map(|proof| now.since(proof))
    }

    /// The lane whose consumer has been missing for longest, and for how long, if one is missing for good.
    pub fn unconsumed(&self, now: Moment) -> Option<(Lane, Duration)> {
        let missing = Lane::ALL.into_iter().zip(self.unconsumed_since);
        missing
            .filter_map(|(lane, since)| Some((lane, now.since(since?))))
            .max_by_key(|&(_, missing)| missing)
    }

    /// For how long the broker has not proved that it serves us: an answer is no proof for a lane whose consumer it does not
    /// know. `None` before the first answer.
    pub fn unproven_age(&self, now: Moment) -> Option<Duration> {
        let missing = self
            .unconsumed(now)
            .map_or(Duration::ZERO, |(_, missing)| missing);
        self.proof_age(now).map(|age| age.max(missing))
    }

    /// Whether the broker has proved within its limit that it serves us.
    fn broker_proven(&self, now: Moment) -> bool {
        self.unproven_age(now)
            .is_some_and(|age| age < self.limits.disconnect_kill)
    }

    /// What there is to say of why the process ends, beyond the reason itself.
    pub fn detail(&self, reason: KillReason, now: Moment) -> Option<String> {
        let (lane, missing) = self.unconsumed(now)?;
        let limit = self.limits.disconnect_kill;
        let answers = self.proof_age(now).is_some_and(|age| age < limit);
        let blamed = reason == KillReason::BrokerDisconnected && answers && missing >= limit;
        blamed.then(|| {
            let seconds = missing.as_secs_f64();
            format!(
                "no consumer on lane {} for {seconds:.1} s, though the broker answers",
                lane.name()
            )
        })
    }

    /// Age of the last completed round; `None` before the first.
    pub fn round_age(&self, now: Moment) -> Option<Duration> {
        self.round.map(|round| now.since(round))
    }

    /// Age of the last progress in any stage, or since the start if there has been none.
    pub fn progress_age(&self, now: Moment) -> Duration {
        self.ledger
            .last_left()
            .map_or(now.since(Moment::ZERO), |left| now.since(left))
    }

    /// What is inside each stage, for people.
    pub fn inside(&self) -> [(Stage, usize); 6] {
        Stage::ALL.map(|stage| (stage, self.ledger.inside(stage)))
    }

    /// When to look again at the latest.
    pub fn next_check(&self, now: Moment) -> Moment {
        let due = match self.draining_since {
            // No canary follows any more.
            Some(since) => Some(since + self.limits.drain),
            None => {
                let round = self.round.filter(|_| self.connected && !self.canary_under_way());
                round.map(|last| last + self.limits.canary_interval)
            }
        };
        let due = due.unwrap_or(now + TURN_MAX);
        due.max(now + Duration::from_millis(1)).min(now + TURN_MAX)
    }
}

#[cfg(test)]
mod tests;
