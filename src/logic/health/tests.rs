//! Goal: each condition of the truth counts by itself, and everybody who asks is told the same.

use super::*;

fn at(ms: u64) -> Moment {
    Moment::from_millis(ms)
}

/// All is well at `now`, and something has just gone all the way round.
fn proven(now: Moment) -> Health {
    let mut health = Health::new(Limits::shipped(), 1, 1, at(0));
    health.broker_up(now);
    health.turned(now);
    health.watched(now);
    health.round_completed(now);
    health
}

/// Each condition alone withholds the pet: taking any one of them out of the gate fails here.
#[test]
fn every_condition_alone_withholds_the_pet() {
    let now = at(60_000);
    type Spoil = fn(&mut Health);
    let spoil: [(Condition, Spoil); 7] = [
        (Condition::Wanted, |health| health.drain(at(60_000))),
        (Condition::EngineRight, Health::canary_wrong),
        (Condition::LoopTurns, |health| health.turn = at(30_000)),
        (Condition::Watched, |health| health.watched(at(30_000))),
        (Condition::Progress, |health| {
            health.ledger.enter(Stage::Published, 1, at(30_000));
        }),
        (Condition::BrokerProven, |health| health.broker_proof(at(50_000))),
        (Condition::Connected, |health| health.connected = false),
    ];
    assert!(proven(now).may_pet(Duration::ZERO, now));
    for (condition, spoil) in spoil {
        let mut health = proven(now);
        spoil(&mut health);
        let broken: Vec<Condition> = (health.conditions(now).into_iter())
            .filter(|(_, holds)| !holds)
            .map(|(condition, _)| condition)
            .collect();
        assert_eq!(broken, [condition]);
        assert!(
            !health.may_pet(Duration::ZERO, now),
            "a pet without {condition:?}"
        );
    }
}

/// No round, an old round, a pet just sent: each withholds it too.
#[test]
fn a_pet_needs_a_round_of_this_very_moment_and_room_since_the_last() {
    let now = at(60_000);
    let mut health = proven(now);
    assert!(!health.may_pet(Duration::ZERO, at(60_001)));
    assert!(health.may_pet(Duration::from_secs(5), now));
    health.round_completed(at(64_999));
    health.broker_proof(at(64_999));
    assert!(!health.may_pet(Duration::from_secs(5), at(64_999)));
    health.round_completed(at(65_000));
    assert!(health.may_pet(Duration::from_secs(5), at(65_000)));
}

/// A service that was told to stop turned every millisecond, for a canary that was due and never sent. It turns for the end of
/// its time, to the moment, and else as seldom as any other.
#[test]
fn a_draining_service_waits_for_no_canary() {
    let mut health = proven(at(1000));
    health.drain(at(60_000));
    assert_eq!(health.next_check(at(60_000)), at(60_500));
    let end = at(60_000) + Limits::shipped().drain;
    assert_eq!(
        health.next_check(at(60_000) + Limits::shipped().drain - Duration::from_millis(7)),
        end
    );
}

/// A consumer that is missing once or twice may be the broker's own confusion; three times is a loss.
#[test]
fn a_missing_consumer_is_a_lost_broker_at_the_third_look() {
    let mut health = proven(at(0));
    let seen: Vec<bool> = [0, 0, 1, 0, 0, 0, 0]
        .into_iter()
        .map(|consumers| health.queue_seen(Lane::Bulk, true, consumers, at(10)))
        .collect();
    assert_eq!(seen, [false, false, false, false, false, true, false]);
}

/// Goal: while a consumer is missing for good everybody is told the same: not ready at once, the end when its bound is
/// passed, and a record that says what was missing; a broker that answers all the while does not hide it.
#[test]
fn a_missing_consumer_is_told_alike_by_all() {
    let mut health = proven(at(0));
    health.ready = true;
    for _ in 0..3 {
        health.queue_seen(Lane::Bulk, true, 0, at(1000));
    }
    let mut look = |ms| {
        let now = at(ms);
        health.turned(now);
        health.watched(now);
        health.broker_proof(now);
        let detail = health.detail(KillReason::BrokerDisconnected, now);
        (health.verdict(now), health.readiness(false, now), detail)
    };
    let unready = Err(NotReady::Unconsumed);
    assert_eq!(look(1000), (Verdict::Proven, unready, None));
    assert_eq!(look(10_999), (Verdict::Proven, unready, None));
    let end = Verdict::Kill(KillReason::BrokerDisconnected);
    let detail = "no consumer on lane bulk for 10.0 s, though the broker answers";
    assert_eq!(look(11_000), (end, unready, Some(detail.into())));
    assert_eq!(health.unproven_age(at(11_000)), Some(Duration::from_secs(10)));
    health.consumer_seen(Lane::Bulk);
    assert_eq!(health.readiness(false, at(11_000)), Ok(()));
    assert_eq!(health.unproven_age(at(11_000)), Some(Duration::ZERO));
}
