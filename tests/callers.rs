//! Jobs of callers that wait on connections of their own, in the pure logic.
//!
//! Goal: they are admitted, batched and answered like any other, each is handed over exactly once, and none of them can make
//! a service look alive whose broker or whose way round is not proven. Method: a service on made-up time, event by event.

mod support;

use embeddings::job::{ErrorType, JobKey, Lane, Refusal};
use embeddings::logic::event::{Action, BatchId, EngineId, Event, Outcome};
use embeddings::logic::health::KillReason;
use embeddings::logic::ledger::Stage;
use proptest::prelude::*;
use std::collections::BTreeMap;
use support::{Service, batch_of, killed, setup, ticket};

fn key(n: u64) -> JobKey {
    JobKey(JobKey::CALLED + n)
}

/// A caller asks for `inputs` texts.
fn call(service: &mut Service, n: u64, inputs: usize) -> Vec<Action> {
    let (job, arrival) = (key(n), Ok(ticket(inputs)));
    service.step(Event::Called { job, arrival })
}

/// Hands the answer over at once, as the shell does.
fn hand_over(service: &mut Service, actions: &[Action]) -> Vec<Action> {
    let mut followed = Vec::new();
    for action in actions {
        if let Action::Answer { job } | Action::Refuse { job, .. } = action {
            followed.extend(service.step(Event::HandedOver {
                job: *job,
                taken: true,
            }));
        }
    }
    followed
}

/// From the call to the answer at the present moment; all that was done.
fn answered(service: &mut Service, n: u64) -> Vec<Action> {
    let mut all = call(service, n, 1);
    let batch = batch_of(&service.tokenize(key(n), 1));
    let computed = service.compute(batch, 1);
    all.extend(hand_over(service, &computed));
    all.extend(computed);
    all
}

fn ended(actions: &[Action], job: JobKey) -> Option<Outcome> {
    actions.iter().find_map(|action| match action {
        Action::Forget { job: gone, outcome } if *gone == job => Some(*outcome),
        _ => None,
    })
}

fn refusal(actions: &[Action]) -> Refusal {
    let found = actions.iter().find_map(|action| match action {
        Action::Refuse { refusal, .. } => Some(refusal.clone()),
        _ => None,
    });
    found.unwrap_or_else(|| panic!("no refusal among {actions:?}"))
}

/// Thousands of answers complete no round: no pet, not ready, and canaries go on being sent.
#[test]
fn answers_to_callers_pet_nobody() {
    let (mut service, first) = Service::connected(setup());
    assert!(
        first
            .iter()
            .any(|action| matches!(action, Action::SendCanary { .. }))
    );
    for n in 1..2000 {
        let actions = answered(&mut service, n);
        assert_eq!(ended(&actions, key(n)), Some(Outcome::Answered));
        assert!(
            !actions.contains(&Action::Pet) && !actions.contains(&Action::Ready),
            "{actions:?}"
        );
    }
    let mut service = Service::ready(setup());
    let mut canaries = 0;
    for n in 1..=12 {
        let actions = [service.pass(500), answered(&mut service, n)].concat();
        canaries += actions
            .iter()
            .filter(|it| matches!(it, Action::SendCanary { .. }))
            .count();
    }
    assert_eq!(canaries, 1, "one is due after 5 s, whatever callers ask");
}

/// A broker that confirms nothing is a stall of `published`, however many callers are answered past it.
#[test]
fn answers_to_callers_hide_no_stall() {
    let mut service = Service::ready(setup());
    let job = service.deliver(Lane::Interactive, ticket(1));
    let batch = batch_of(&service.tokenize(job, 1));
    service.compute(batch, 1);
    let mut reason = None;
    for n in 1..=70 {
        assert_eq!(reason, None, "after {} ms", service.now);
        answered(&mut service, n);
        reason = killed(&service.pass(500));
        if service.now >= 30_000 {
            break;
        }
    }
    assert_eq!(reason, Some(KillReason::NoProgress(Stage::Published)));
}

/// A lost session takes what it had delivered, and leaves every caller its job and its place in line.
#[test]
fn a_lost_session_costs_no_caller() {
    let mut service = Service::ready(setup());
    let delivered = service.deliver(Lane::Interactive, ticket(3));
    call(&mut service, 1, 2);
    call(&mut service, 2, 1);
    let running = batch_of(&service.tokenize(delivered, 3));
    assert!(
        service
            .tokenize(key(1), 2)
            .iter()
            .all(|it| !matches!(it, Action::Forget { .. }))
    );
    let lost = service.step(Event::BrokerDown);
    assert_eq!(ended(&lost, delivered), Some(Outcome::Lost));
    assert_eq!((ended(&lost, key(1)), ended(&lost, key(2))), (None, None));
    let stage = |service: &Service, stage: Stage| service.logic.health().inside()[stage as usize].1;
    assert_eq!(stage(&service, Stage::Admitted), 1);
    assert_eq!(stage(&service, Stage::Batched) + 3, 2 + 3);
    let next = service.compute(running, 3);
    let batch = batch_of(&next);
    let computed = service.compute(batch, 2);
    assert_eq!(
        ended(&hand_over(&mut service, &computed), key(1)),
        Some(Outcome::Answered)
    );
    let batch = batch_of(&service.tokenize(key(2), 1));
    let computed = service.compute(batch, 1);
    assert_eq!(
        ended(&hand_over(&mut service, &computed), key(2)),
        Some(Outcome::Answered)
    );
    assert_eq!(
        stage(&service, Stage::Admitted) + stage(&service, Stage::Batched),
        0
    );
}

/// One whose caller goes away before it is begun is dropped; one that is begun ends with what is in the engine.
#[test]
fn the_gone_are_dropped() {
    let mut setup = setup();
    setup.batch_tokens = 10;
    let mut service = Service::ready(setup);
    call(&mut service, 1, 5);
    call(&mut service, 2, 1);
    let running = batch_of(&service.tokenize(key(1), 5));
    service.tokenize(key(2), 1);
    let gone = service.step(Event::CallerGone { job: key(2) });
    assert_eq!(ended(&gone, key(2)), Some(Outcome::Returned));
    let gone = service.step(Event::CallerGone { job: key(1) });
    assert_eq!(ended(&gone, key(1)), None, "a batch of it runs");
    let mut done = service.compute(running, 1);
    // What lay ready in the engine is computed; nothing more is begun.
    if ended(&done, key(1)).is_none() {
        done = service.compute(BatchId(running.0 + 1), 1);
    }
    assert_eq!(ended(&done, key(1)), Some(Outcome::Returned));
    assert!(
        !done
            .iter()
            .any(|it| matches!(it, Action::StartBatch { .. } | Action::Answer { .. }))
    );
    assert_eq!(service.logic.health().inside()[Stage::Batched as usize].1, 0);
    assert_eq!(
        service
            .logic
            .figures(embeddings::clock::Moment::from_millis(service.now))
            .queue,
        0
    );
}

/// A drain: who waits is told when to come again, who is at work is answered, who comes is sent away.
#[test]
fn a_drain_sends_callers_away_with_a_time() {
    let mut setup = setup();
    setup.batch_tokens = 10;
    let mut service = Service::ready(setup);
    call(&mut service, 1, 1);
    call(&mut service, 2, 1);
    let running = batch_of(&service.tokenize(key(1), 1));
    let draining = service.step(Event::Drain);
    let told = refusal(&draining);
    assert_eq!(
        (told.error, told.retry_after_ms),
        (ErrorType::Draining, Some(5000))
    );
    assert_eq!(
        ended(&hand_over(&mut service, &draining), key(2)),
        Some(Outcome::Refused)
    );
    service.now += 4500;
    let late = call(&mut service, 3, 1);
    assert_eq!(refusal(&late).retry_after_ms, Some(1000));
    hand_over(&mut service, &late);
    let computed = service.compute(running, 1);
    let last = hand_over(&mut service, &computed);
    assert_eq!(ended(&last, key(1)), Some(Outcome::Answered));
    assert!(last.contains(&Action::Drained));
}

/// An engine that fails at an input costs its caller one answer, and no attempt that nobody would hear of.
#[test]
fn a_failure_is_told_at_once() {
    let mut service = Service::ready(setup());
    service.step(Event::BrokerUp { resumable: true });
    call(&mut service, 1, 1);
    let batch = batch_of(&service.tokenize(key(1), 1));
    let failed = service.step(Event::BatchDone {
        engine: EngineId(0),
        batch,
        results: vec![Err("not finite".into())],
    });
    assert_eq!(refusal(&failed).error, ErrorType::Internal);
    assert!(
        !failed
            .iter()
            .any(|it| matches!(it, Action::Move { .. } | Action::DeadLetter { .. }))
    );
}

proptest! {
    /// Goal: over any order of calls, departures, sessions and batches, each caller's job ends exactly once; nothing is left
    /// inside; and without a canary nobody is petted. Method: random steps, then all work is done.
    #[test]
    fn every_call_ends_once(steps in prop::collection::vec((0u8..8, 0u64..12, 1usize..4), 1..120)) {
        let mut setup = setup();
        setup.batch_tokens = 20;
        setup.limits.max_queue = 5;
        let (mut service, _) = Service::connected(setup);
        let mut open = std::collections::BTreeSet::new();
        let mut ends: BTreeMap<JobKey, usize> = BTreeMap::new();
        let mut batches: Vec<(BatchId, usize)> = Vec::new();
        let mut next = 0;
        let mut asked = Vec::new();
        let mut untokenized: BTreeMap<JobKey, usize> = BTreeMap::new();
        let mut take = |service: &mut Service, actions: Vec<Action>, batches: &mut Vec<(BatchId, usize)>| {
            let mut queue = std::collections::VecDeque::from(actions);
            while let Some(action) = queue.pop_front() {
                match action {
                    Action::Answer { job } | Action::Refuse { job, .. } => {
                        queue.extend(service.step(Event::HandedOver { job, taken: true }));
                    }
                    Action::StartBatch { batch, items, .. } => batches.push((batch, items.len())),
                    Action::Forget { job, .. } if job.0 > JobKey::CALLED => *ends.entry(job).or_default() += 1,
                    Action::Pet | Action::Ready => panic!("nothing has gone round"),
                    _ => {}
                }
            }
        };
        for (step, which, inputs) in steps {
            let actions = match step {
                0..=2 => {
                    next += 1;
                    open.insert(key(next));
                    asked.push(key(next));
                    untokenized.insert(key(next), inputs);
                    call(&mut service, next, inputs)
                }
                3 => match untokenized.pop_first() {
                    Some((job, inputs)) => service.tokenize(job, inputs),
                    None => Vec::new(),
                },
                4 if !batches.is_empty() => {
                    let (batch, inputs) = batches.remove(0);
                    service.compute(batch, inputs)
                }
                5 => service.step(Event::CallerGone { job: key(which) }),
                6 => service.step(Event::BrokerDown),
                7 => service.step(Event::BrokerUp { resumable: true }),
                _ => Vec::new(),
            };
            take(&mut service, actions, &mut batches);
        }
        while let Some((job, inputs)) = untokenized.pop_first() {
            let actions = service.tokenize(job, inputs);
            take(&mut service, actions, &mut batches);
        }
        while !batches.is_empty() {
            let (batch, inputs) = batches.remove(0);
            let actions = service.compute(batch, inputs);
            take(&mut service, actions, &mut batches);
        }
        for job in asked {
            prop_assert_eq!(ends.get(&job), Some(&1), "{:?}", job);
        }
        for stage in [Stage::Admitted, Stage::Batched, Stage::Computed, Stage::Published] {
            prop_assert_eq!(service.logic.health().inside()[stage as usize].1, 0, "{}", stage);
        }
    }
}
