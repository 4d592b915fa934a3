//! Faults that the simulation or a reader found in the logic, each as the shortest history that shows it.
//!
//! Goal: none of them comes back. Method: a service on made-up time is driven event by event.

mod support;

use embeddings::clock::Moment;
use embeddings::job::chunks::Chunks;
use embeddings::job::{ErrorType, JobKey, Lane, Refusal};
use embeddings::logic::ModelSetup;
use embeddings::logic::ahead::JOBS_MAX;
use embeddings::logic::event::{
    Action, BatchId, CallerId, Confirmation, EngineId, Event, ModelId, Onward, Outcome, Streaming, Ticket,
};
use embeddings::logic::health::KillReason;
use embeddings::logic::ledger::Stage;
use std::collections::VecDeque;
use std::time::Duration;
use support::{Service, batch_of, killed, limits, setup, ticket};

fn canaries(actions: &[Action]) -> Vec<bool> {
    let sent = actions.iter().filter_map(|action| match action {
        Action::SendCanary { through_broker, .. } => Some(*through_broker),
        _ => None,
    });
    sent.collect()
}

fn batches_of(actions: &[Action]) -> Vec<(BatchId, Vec<JobKey>)> {
    let started = actions.iter().filter_map(|action| match action {
        Action::StartBatch { batch, items, .. } => {
            Some((*batch, items.iter().map(|item| item.job).collect()))
        }
        _ => None,
    });
    started.collect()
}

/// A memory alarm came while a canary was on its way through the broker. That canary could not end, so no
/// canary took the short way, no pet was sent, and systemd killed a service whose broker merely blocked.
#[test]
fn a_canary_held_up_by_a_blocking_broker_does_not_silence_the_short_way() {
    let mut service = Service::ready(setup());
    assert_eq!(canaries(&service.pass(5000)), [true]);
    assert_eq!(canaries(&service.step(Event::BrokerBlocked)), [false]);
    let local = service.logic.local_key();
    service.deliver_as(local, Lane::Probe, Ok(ticket(1)));
    let batch = batch_of(&service.tokenize(local, 1));
    assert!(service.compute(batch, 1).contains(&Action::Pet));
    // An alarm of minutes kills nobody, and when it ends the old canary has its full time again.
    assert_eq!(killed(&service.pass(120_000)), None);
    service.step(Event::BrokerUnblocked);
    assert_eq!(killed(&service.pass(29_999)), None);
    assert_eq!(
        killed(&service.pass(1)),
        Some(KillReason::NoProgress(Stage::Received))
    );
}

/// A canary got lost in the probe queue. The next delivery of another queue counted as its coming, so it
/// was under way for ever: nothing was stalled, and no further canary was sent.
#[test]
fn a_lost_canary_does_not_hide_behind_other_deliveries() {
    let mut service = Service::ready(setup());
    assert_eq!(canaries(&service.pass(5000)), [true]);
    let job = service.deliver(Lane::Interactive, ticket(1));
    service.finish(job);
    assert_eq!(killed(&service.pass(29_999)), None);
    assert_eq!(
        killed(&service.pass(1)),
        Some(KillReason::NoProgress(Stage::Received))
    );
}

/// The tokenizers hung, and jobs with short budgets went on coming. Each that ran into its deadline counted
/// as progress of the stage it was stuck in, and so the stall was never seen.
#[test]
fn deadlines_do_not_keep_a_stuck_tokenizer_alive() {
    let mut service = Service::ready(setup());
    service.deliver(Lane::Bulk, ticket(1));
    let mut actions = Vec::new();
    for _ in 0..30 {
        let mut hasty = ticket(1);
        hasty.deadline = Some(Moment::from_millis(service.now + 700));
        service.deliver(Lane::Bulk, hasty);
        actions.extend(service.pass(1000));
    }
    assert_eq!(killed(&actions), Some(KillReason::NoProgress(Stage::Admitted)));
}

/// While draining, a canary of the short way was given back to a queue it never came from.
#[test]
fn a_canary_without_a_delivery_is_not_given_back() {
    let outcome = Outcome::Probe;
    // It came before the drain, and after it.
    for early in [true, false] {
        let mut service = Service::ready(setup());
        service.step(Event::BrokerBlocked);
        let job = service.logic.local_key();
        let mut actions = Vec::new();
        if early {
            service.deliver_as(job, Lane::Probe, Ok(ticket(1)));
        }
        actions.extend(service.step(Event::Drain));
        if !early {
            actions.extend(service.deliver_as(job, Lane::Probe, Ok(ticket(1))));
        }
        assert!(actions.contains(&Action::Forget { job, outcome }), "{actions:?}");
        assert!(!actions.contains(&Action::Requeue { job }), "{actions:?}");
    }
}

/// The alarm ended while a canary of the short way was in the engine. Its end was taken for a whole round,
/// although the broker's way was open and unproven.
#[test]
fn the_short_way_is_a_round_only_while_the_broker_blocks() {
    let mut service = Service::ready(setup());
    service.step(Event::BrokerBlocked);
    service.pass(5000);
    let local = service.logic.local_key();
    service.deliver_as(local, Lane::Probe, Ok(ticket(1)));
    let batch = batch_of(&service.tokenize(local, 1));
    assert_eq!(canaries(&service.step(Event::BrokerUnblocked)), [true]);
    let actions = service.compute(batch, 1);
    assert!(!actions.contains(&Action::Pet), "{actions:?}");
}

/// With one of two engines stuck and `max_inflight` reached, the jobs that waited for it were blamed.
#[test]
fn what_waits_for_a_stuck_engine_is_judged_by_the_engine() {
    let mut setup = setup();
    setup.engines = 2;
    setup.limits.max_inflight = 1;
    // No canary comes between: the story is about the two jobs.
    setup.limits.canary_interval = Duration::from_secs(600);
    let mut service = Service::ready(setup);
    let stuck = service.deliver(Lane::Interactive, ticket(1));
    let waits = service.deliver(Lane::Interactive, ticket(1));
    service.tokenize(waits, 1);
    service.tokenize(stuck, 1);
    assert_eq!(killed(&service.pass(29_999)), None);
    assert_eq!(
        killed(&service.pass(1)),
        Some(KillReason::NoProgress(Stage::Computed))
    );
}

/// Slow is not dead: a batch of ten minutes with a step now and then is let live, and one without is not.
#[test]
fn steps_inside_a_long_batch_are_progress() {
    let mut service = Service::ready(setup());
    let job = service.deliver(Lane::Bulk, ticket(1));
    service.tokenize(job, 1);
    for _ in 0..24 {
        assert_eq!(killed(&service.pass(25_000)), None);
        service.step(Event::BatchStep { engine: EngineId(0) });
        // The canary waits behind the long batch, on this one engine.
        let canary = service.logic.health().inside()[Stage::Received as usize];
        if canary.1 > 0 {
            let canary = service.deliver(Lane::Probe, ticket(1));
            service.tokenize(canary, 1);
        }
    }
    assert_eq!(
        killed(&service.pass(limits().liveness_max_stall.as_millis() as u64)),
        Some(KillReason::NoProgress(Stage::Computed))
    );
}

/// Bulk's turn came while a large interactive job held the only place in flight, and was counted as taken.
/// With jobs of just eight batches one after the other bulk never moved.
#[test]
fn the_turn_of_bulk_is_not_lost_while_max_inflight_holds_it_up() {
    let mut setup = setup();
    setup.limits.max_inflight = 1;
    setup.batch_tokens = 10;
    let mut service = Service::ready(setup);
    let mut batches = VecDeque::new();
    let begin = |service: &mut Service, lane| {
        let job = service.deliver(lane, ticket(8));
        (job, service.tokenize(job, 8))
    };
    for _ in 0..3 {
        let (_, actions) = begin(&mut service, Lane::Interactive);
        batches.extend(batches_of(&actions));
    }
    let (bulk, actions) = begin(&mut service, Lane::Bulk);
    batches.extend(batches_of(&actions));
    for _ in 0..32 {
        let (batch, jobs) = batches.pop_front().expect("the engine is never idle");
        if jobs.contains(&bulk) {
            return;
        }
        let mut actions = service.compute(batch, jobs.len());
        if actions
            .iter()
            .any(|action| matches!(action, Action::Answer { .. }))
        {
            actions.extend(begin(&mut service, Lane::Interactive).1);
        }
        batches.extend(batches_of(&actions));
    }
    panic!("bulk was not drawn within 32 batches");
}

/// Two canaries ran in one batch, one of the short way and one of the broker's; the first was right and the
/// second wrong. The round of the first petted systemd before the second ended the process.
#[test]
fn a_wrong_canary_withholds_the_pet_of_its_own_batch() {
    let mut service = Service::ready(setup());
    service.pass(5000);
    let brokered = service.deliver(Lane::Probe, ticket(1));
    let busy = service.deliver(Lane::Interactive, ticket(1));
    service.step(Event::BrokerBlocked);
    let local = service.logic.local_key();
    service.deliver_as(local, Lane::Probe, Ok(ticket(1)));
    let first = batch_of(&service.tokenize(busy, 1));
    service.tokenize(local, 1);
    service.tokenize(brokered, 1);
    let (batch, jobs) = batches_of(&service.compute(first, 1)).remove(0);
    assert!(jobs.contains(&local) && jobs.contains(&brokered), "{jobs:?}");
    let results = jobs.iter().map(|&job| {
        if job == local {
            Ok(())
        } else {
            Err("not a number".to_owned())
        }
    });
    let results = results.collect();
    let actions = service.step(Event::BatchDone {
        engine: EngineId(0),
        batch,
        results,
    });
    assert_eq!(killed(&actions), Some(KillReason::EngineCorrupt));
    assert!(!actions.contains(&Action::Pet), "{actions:?}");
}

/// A process died between the confirm of a slice and the acknowledgement of the one before; both lay in the broker, and each
/// was worked off to the job's end. A copy is acknowledged and no more, and that proves nothing.
#[test]
fn a_copy_of_a_slice_is_acknowledged_and_no_more() {
    let mut service = Service::ready(setup());
    service.now = 2000;
    let job = JobKey(1000);
    let actions = service.step(Event::Superseded {
        job,
        lane: Lane::Resumed,
    });
    assert_eq!(actions, [Action::Ack { job }]);
    let actions = service.step(Event::Acked { job });
    let outcome = Outcome::MovedOn;
    assert!(actions.contains(&Action::Forget { job, outcome }), "{actions:?}");
    assert!(!actions.contains(&Action::Pet), "{actions:?}");
}

/// Asking the loop again cost a flood of refusals more than all else: what follows once a last word is in a queue is decided
/// when it is sent. Where there is no queue, the logic asks.
#[test]
fn a_last_word_takes_its_acknowledgement_along() {
    for (outcome, asked, ended) in [
        (Confirmation::Routed, false, Outcome::Refused),
        (Confirmation::Returned, true, Outcome::Returned),
    ] {
        let mut service = Service::ready(setup());
        service.now = 2000;
        let job = JobKey(1000);
        let actions = service.step(Event::Delivered {
            job,
            lane: Lane::Interactive,
            arrival: Err(Refusal::invalid("input", "input is missing")),
            answerable: true,
            attempt: 1,
            suspect: false,
            fetched: false,
        });
        let refused =
            |action: &Action| matches!(action, Action::Refuse { job: refused, .. } if *refused == job);
        assert!(actions.iter().any(refused), "{actions:?}");
        let actions = service.step(Event::Confirmed { job, outcome });
        assert_eq!(actions.contains(&Action::Ack { job }), asked, "{actions:?}");
        let actions = service.step(Event::Acked { job });
        assert!(
            actions.contains(&Action::Forget { job, outcome: ended }),
            "{actions:?}"
        );
    }
}

/// A plain job was held for as long as it took: after half an hour the broker closed the channel and gave it to the next, for
/// ever. It ends in time, whatever of it is in an engine, and once: what comes out of there is dropped, and nothing is tried again.
#[test]
fn a_plain_job_is_held_no_longer_than_may_be() {
    for lane in [Lane::Interactive, Lane::Bulk, Lane::Resumed] {
        let mut service = Service::ready(setup());
        service.now = 1000;
        service.step(Event::BrokerUp { resumable: true });
        let limit = Duration::from_millis(22_500);
        service.step(Event::HeldTooLong { limit });
        let job = service.deliver(lane, ticket(200));
        let mut batches: VecDeque<_> = batches_of(&service.tokenize(job, 200)).into();
        let (batch, jobs) = batches.pop_front().unwrap();
        batches.extend(batches_of(&service.compute(batch, jobs.len())));
        assert!(
            refusals(&service.pass(9999), job).is_empty(),
            "ended before its time"
        );
        let refused = refusals(&service.pass(1), job);
        assert_eq!(refused.len(), 1, "{refused:?}");
        let refusal = &refused[0];
        assert_eq!(refusal.error, ErrorType::TooManyInputs);
        assert_eq!(refusal.param.as_deref(), Some("input"));
        for said in ["10.0 s", "22.5 s", "stream: true", "smaller jobs"] {
            assert!(refusal.message.contains(said), "{}", refusal.message);
        }
        assert!(service.pass(5000).iter().all(|action| !starts(action, job)));
        let whole = |service: &mut Service, (batch, jobs): (BatchId, Vec<JobKey>), result| {
            assert!(jobs.iter().all(|in_it| *in_it == job));
            service.step(Event::BatchDone {
                engine: EngineId(0),
                batch,
                results: vec![result; jobs.len()],
            })
        };
        // One batch fails whole, which would be computed again in parts.
        let failed = whole(
            &mut service,
            batches.pop_front().unwrap(),
            Err("not a number".into()),
        );
        let outcome = Confirmation::Routed;
        service.step(Event::Confirmed { job, outcome });
        let mut settled = service.step(Event::Acked { job });
        settled.extend(failed);
        settled.extend(whole(&mut service, batches.pop_front().unwrap(), Ok(())));
        let outcome = Outcome::Refused;
        assert!(settled.contains(&Action::Forget { job, outcome }), "{settled:?}");
        assert!(settled.iter().all(|action| !starts(action, job)), "{settled:?}");
        assert!(batches.is_empty());
    }
}

/// Who waits on a connection holds no delivery, and so its job is computed for as long as it takes.
#[test]
fn a_caller_s_job_may_take_as_long_as_it_takes() {
    let mut service = Service::ready(setup());
    service.step(Event::BrokerUp { resumable: true });
    let limit = Duration::from_secs(3);
    service.step(Event::HeldTooLong { limit });
    let job = JobKey(JobKey::CALLED + 1);
    service.step(Event::Called {
        job,
        arrival: Ok(ticket(1)),
    });
    let batch = batch_of(&service.tokenize(job, 1));
    assert!(refusals(&service.pass(20_000), job).is_empty());
    assert!(service.compute(batch, 1).contains(&Action::Answer { job }));
}

/// The third slice of a streamed job was refused for an input that its sender knew by another number.
#[test]
fn an_input_that_fails_is_named_as_its_sender_counts() {
    let mut service = Service::ready(setup());
    service.step(Event::BrokerUp { resumable: true });
    let mut slice = ticket(4);
    slice.stream = Some(Streaming {
        chunks: Chunks::new(4, 1024),
        last: true,
    });
    let job = service.deliver(Lane::Resumed, slice);
    let batch = batch_of(&service.tokenize(job, 4));
    let mut results = vec![Ok(()); 4];
    results[3] = Err("not a number".to_owned());
    let actions = service.step(Event::BatchDone {
        engine: EngineId(0),
        batch,
        results,
    });
    let told = actions.iter().find_map(|action| match action {
        Action::Move {
            onward: Onward::Retry(refusal),
            ..
        } => Some(refusal.message.as_str()),
        _ => None,
    });
    assert_eq!(told, Some("input 1027: not a number"), "{actions:?}");
}

/// A job that alone is larger than the queue was told to come again in ten minutes, for ever, as if it were for the load. It is
/// told what is wrong instead, however full the queue is, and nothing of it is told of the load.
#[test]
fn a_job_that_never_fits_is_not_told_to_come_again() {
    for held in [0, 1] {
        let mut setup = setup();
        setup.limits.max_queue = 1;
        let most = setup.limits.max_queue_bytes;
        let mut service = Service::ready(setup);
        for _ in 0..held {
            service.deliver(Lane::Interactive, ticket(1));
        }
        let mut large = ticket(1);
        large.bytes = most + 1;
        let (brokered, called) = (JobKey(1000), JobKey(JobKey::CALLED + 1));
        let by_broker = service.deliver_as(brokered, Lane::Interactive, Ok(large.clone()));
        let arrival = Ok(large.clone());
        let by_http = service.step(Event::Called { job: called, arrival });
        for (job, actions) in [(brokered, by_broker), (called, by_http)] {
            let refused = refusals(&actions, job);
            assert_eq!(refused.len(), 1, "{actions:?}");
            assert_eq!(refused[0].error, ErrorType::InputTooLong);
            assert_eq!(
                (refused[0].param.as_deref(), refused[0].retry_after_ms),
                (Some("input"), None)
            );
            for size in [most, most + 1] {
                let message = &refused[0].message;
                assert!(message.contains(&size.to_string()), "{message}");
            }
            let pressed = |action: &Action| matches!(action, Action::Backpressure(_));
            assert!(!actions.iter().any(pressed), "{actions:?}");
        }
        // The bulk lane is bounded by its prefetch.
        let job = service.deliver(Lane::Bulk, large);
        assert!(refusals(&service.pass(10), job).is_empty());
    }
}

fn refusals(actions: &[Action], job: JobKey) -> Vec<Refusal> {
    let refused = actions.iter().filter_map(|action| match action {
        Action::Refuse { job: of, refusal } if *of == job => Some(refusal.clone()),
        _ => None,
    });
    refused.collect()
}

fn starts(action: &Action, job: JobKey) -> bool {
    matches!(action, Action::StartBatch { items, .. } if items.iter().any(|item| item.job == job))
}

/// How many jobs are asked for.
fn looks(actions: &[Action]) -> Vec<usize> {
    let asked = actions.iter().filter_map(|action| match action {
        Action::LookAhead { jobs, .. } => Some(*jobs),
        _ => None,
    });
    asked.collect()
}

/// Sixteen bulk jobs of one caller, alone at the queue, of which the first takes a second.
fn full_of_one_callers(
    setup: &dyn Fn(&mut Service),
    deliver: &dyn Fn(&mut Service) -> JobKey,
) -> (Service, JobKey) {
    let mut service = Service::ready(support::setup());
    service.step(Event::BrokerUp { resumable: true });
    setup(&mut service);
    service.step(Event::QueueSeen {
        lane: Lane::Bulk,
        ready: 500,
        consumers: 1,
    });
    let jobs: Vec<JobKey> = (0..16).map(|_| deliver(&mut service)).collect();
    service.now += 1000;
    (service, jobs[0])
}

/// A broker closes the channel on which a delivery is held for too long, and what was fetched comes back all at once: one that is
/// known to have little patience is not tried.
#[test]
fn a_look_ahead_keeps_within_the_brokers_patience() {
    for (limit_s, expected) in [(1800, true), (12, false)] {
        let limit = Duration::from_secs(limit_s);
        let (mut service, first) = full_of_one_callers(
            &|service| drop(service.step(Event::HeldTooLong { limit })),
            &|service| service.deliver(Lane::Bulk, ticket(1)),
        );
        service.finish(first);
        assert_eq!(!looks(&service.pass(300)).is_empty(), expected, "{limit_s} s");
    }
}

/// Jobs of several slices leave their lane without an answer, so the pace was never known, and nobody was looked for behind a hundred
/// of them.
#[test]
fn a_look_ahead_learns_the_pace_from_slices() {
    let (mut service, first) = full_of_one_callers(&|_| (), &|service| {
        let mut slice = ticket(4);
        slice.stream = Some(Streaming {
            chunks: Chunks::new(4, 0),
            last: false,
        });
        service.deliver(Lane::Bulk, slice)
    });
    assert!(looks(&service.pass(300)).is_empty(), "nothing is known yet");
    let batch = batch_of(&service.tokenize(first, 4));
    service.compute(batch, 4);
    let outcome = Confirmation::Routed;
    let moving = service.step(Event::Confirmed { job: first, outcome });
    let onward = Onward::NextSlice;
    assert!(
        moving.contains(&Action::Move { job: first, onward }),
        "{moving:?}"
    );
    service.step(Event::Confirmed { job: first, outcome });
    service.step(Event::Acked { job: first });
    assert!(!looks(&service.pass(300)).is_empty());
}

/// Jobs of a model that computes one at a time filled the consumer, and the engine had nothing to do while others lay behind them.
/// When a thousand were fetched past such a model, whatever its pace, most of them waited too long, and each stood in the way of
/// what goes on.
#[test]
fn a_look_ahead_goes_past_a_models_own_bound() {
    // Of that model what it gets through in a minute, or what the consumer holds; and what the whole lane gets through in a minute, or
    // in two seconds of company, or eight that may be begun at once.
    for (consumers, ms_per_job, most) in [
        (1, None, 16 + 8),
        (1, Some(2000), 30 + 30),
        (1, Some(20), JOBS_MAX),
        (2, None, 16 + 8),
        (2, Some(2000), 30 + 8),
        (2, Some(20), 64 + 8),
    ] {
        let mut setup = setup();
        let narrow = ModelSetup {
            max_inflight: Some(1),
            ..setup.models[0]
        };
        setup.models.push(narrow);
        let mut service = Service::ready(setup);
        service.step(Event::BrokerUp { resumable: true });
        service.step(Event::QueueSeen {
            lane: Lane::Bulk,
            ready: 500,
            consumers,
        });
        let of = |model, caller| Ticket {
            model: ModelId(model),
            caller: CallerId(caller),
            ..ticket(1)
        };
        for caller in 0..ms_per_job.map_or(0, |_| 32) {
            let job = service.deliver(Lane::Bulk, of(1, caller));
            let batch = batch_of(&service.tokenize(job, 1));
            service.pass(ms_per_job.unwrap_or_default());
            service.compute(batch, 1);
            let outcome = Confirmation::Routed;
            service.step(Event::Confirmed { job, outcome });
            service.step(Event::Acked { job });
        }
        let first = service.deliver(Lane::Bulk, of(1, 0));
        for caller in 1..16 {
            service.deliver(Lane::Bulk, of(1, caller));
        }
        assert!(looks(&service.pass(300)).is_empty(), "none is at work");
        let mut held = 16;
        service.tokenize(first, 1);
        // All that is found is of that model as well, until there is no end to be seen.
        while let Some(&asked) = looks(&service.pass(300)).first() {
            for _ in 0..asked {
                held += 1;
                service.fetch(of(1, held as u64));
            }
            service.step(Event::LookedAhead);
        }
        assert!(
            (most * 3 / 4..=most).contains(&held),
            "{held} with {consumers} and {ms_per_job:?}"
        );
    }
}

/// What a look at the bulk queue asks for, and that there is none where one would do harm: before anything tells the pace, a
/// thousand jobs of ten seconds were taken from every other worker; and a queue that must not be fetched from ended session
/// after session.
#[test]
fn a_look_ahead_knows_the_pace_and_its_company() {
    let told = |service: &mut Service, consumers| {
        service.step(Event::QueueSeen {
            lane: Lane::Bulk,
            ready: 500,
            consumers,
        });
    };
    let mut service = Service::ready(setup());
    service.step(Event::BrokerUp { resumable: true });
    told(&mut service, 1);
    let jobs: Vec<JobKey> = (0..16).map(|_| service.deliver(Lane::Bulk, ticket(1))).collect();
    assert!(looks(&service.pass(1000)).is_empty(), "nothing was answered yet");
    // One job in two seconds.
    service.now += 1000;
    let first = service.finish(jobs[0]);
    assert!(first.contains(&Action::Forget {
        job: jobs[0],
        outcome: Outcome::Answered
    }));
    told(&mut service, 2);
    let shared = looks(&service.pass(300));
    assert!(
        shared.iter().all(|&jobs| jobs <= 20),
        "ten seconds at most: {shared:?}"
    );
    service.step(Event::LookedAhead);
    told(&mut service, 1);
    let alone = looks(&service.pass(300));
    assert!(
        matches!(alone[..], [jobs] if (16..=240).contains(&jobs)),
        "{alone:?}"
    );
    // None while one is under way, and a session that is lost meanwhile is not risked again.
    assert!(looks(&service.pass(2000)).is_empty());
    service.step(Event::BrokerDown);
    service.step(Event::BrokerUp { resumable: true });
    told(&mut service, 1);
    for _ in 0..16 {
        service.deliver(Lane::Bulk, ticket(1));
    }
    assert!(looks(&service.pass(20_000)).is_empty());
}

/// A reply queue's name cost its publisher the connection. The last word of a job that had no attempts left was sent to it
/// again at each delivery, each with another copy in the dead-letter queue, until the broker had counted a thousand.
#[test]
fn a_last_word_is_not_tried_for_ever() {
    let told = |attempt: u32| {
        let mut service = Service::ready(setup());
        let job = JobKey(1000);
        service.step(Event::Delivered {
            job,
            lane: Lane::Resumed,
            arrival: Ok(ticket(1)),
            answerable: true,
            attempt,
            suspect: true,
            fetched: false,
        });
        let actions = service.step(Event::DeadLettered { job });
        let refused =
            |action: &Action| matches!(action, Action::Refuse { job: refused, .. } if *refused == job);
        assert_ne!(
            actions.iter().any(refused),
            actions.contains(&Action::Ack { job }),
            "{actions:?}"
        );
        actions.iter().any(refused)
    };
    let most = limits().max_attempts;
    assert!(told(most + 1) && told(most + 3));
    assert!(!told(most + 4) && !told(u32::MAX));
}

/// A reply queue took no refusal either: the letter said that, and no longer what was wrong with the job.
#[test]
fn a_refusal_that_nobody_takes_is_told_in_the_letter() {
    let mut service = Service::ready(setup());
    let job = JobKey(1000);
    service.deliver_as(
        job,
        Lane::Interactive,
        Err(Refusal::invalid("input", "input is missing")),
    );
    let outcome = Confirmation::Rejected;
    let actions = service.step(Event::Confirmed { job, outcome });
    let letter = actions.iter().find_map(|action| match action {
        Action::DeadLetter { refusal, .. } => Some(refusal),
        _ => None,
    });
    let letter = letter.unwrap();
    assert_eq!(letter.error, ErrorType::InvalidRequest);
    assert_eq!(letter.param.as_deref(), Some("input"));
    assert_eq!(
        letter.message,
        "input is missing; and the reply queue rejected the answer"
    );
}

fn slices_end(actions: &[Action], job: JobKey) -> Vec<usize> {
    let cut = actions.iter().filter_map(|action| match action {
        Action::Cut { job: of, inputs } if *of == job => Some(*inputs),
        _ => None,
    });
    cut.collect()
}

/// A streamed job of `inputs` texts in chunks of a hundred, of which the engine holds the first two batches: 51 texts each.
fn streaming(inputs: usize) -> (Service, JobKey, VecDeque<BatchId>) {
    let mut service = Service::ready(setup());
    service.step(Event::BrokerUp { resumable: true });
    let mut slice = ticket(inputs);
    slice.stream = Some(Streaming {
        chunks: Chunks::new(100, 0),
        last: true,
    });
    let job = service.deliver(Lane::Bulk, slice);
    let begun = batches_of(&service.tokenize(job, inputs));
    assert_eq!(begun.len(), 2);
    (service, job, begun.into_iter().map(|(batch, _)| batch).collect())
}

/// A stop went on to compute all of a slice, until its time was over and systemd's patience with it: one attempt was charged, and
/// all of the slice was computed again.
#[test]
fn a_stop_leaves_what_is_not_begun_to_the_next_worker() {
    let (mut service, job, mut begun) = streaming(400);
    assert_eq!(slices_end(&service.step(Event::Drain), job), [200]);
    // A quarter of the time to drain.
    assert!(slices_end(&service.pass(1200), job).is_empty());
    assert_eq!(slices_end(&service.pass(100), job), [102]);
    assert!(service.compute(begun.pop_front().unwrap(), 51).is_empty());
    let last = service.compute(begun.pop_front().unwrap(), 51);
    for (first, inputs) in [(0, 100), (100, 2)] {
        let chunk = Action::Chunk { job, first, inputs };
        assert!(last.contains(&chunk), "{last:?}");
    }
    let outcome = Confirmation::Routed;
    service.step(Event::Confirmed { job, outcome });
    let onward = Onward::NextSlice;
    let moving = service.step(Event::Confirmed { job, outcome });
    assert!(moving.contains(&Action::Move { job, onward }), "{moving:?}");
    service.step(Event::Confirmed { job, outcome });
    assert!(service.step(Event::Acked { job }).contains(&Action::Drained));
}

/// One chunk of long texts, on a slow model, was held until the broker's patience was over, by one worker after another.
#[test]
fn a_chunk_that_takes_long_ends_with_the_inputs_that_are_begun() {
    let (mut service, job, _) = streaming(200);
    let limit = Duration::from_secs(120);
    service.step(Event::HeldTooLong { limit });
    assert!(slices_end(&service.pass(9_900), job).is_empty());
    assert_eq!(slices_end(&service.pass(200), job), [102]);
}

/// A small job that went on stood first in line, worth no batch while the engine computed another: who called meanwhile waited for that
/// whole batch, and not for a layer.
#[test]
fn nobody_waits_behind_a_small_job_that_goes_on() {
    let mut service = Service::ready(setup());
    service.step(Event::BrokerUp { resumable: true });
    let bulk = service.deliver(Lane::Bulk, ticket(60));
    assert_eq!(
        batches_of(&service.tokenize(bulk, 60)).len(),
        1,
        "the rest is no full batch"
    );
    let resumed = service.deliver(Lane::Resumed, ticket(1));
    assert!(batches_of(&service.tokenize(resumed, 1)).is_empty());
    let call = service.deliver(Lane::Interactive, ticket(1));
    let started = service.tokenize(call, 1);
    assert!(started.iter().any(|action| starts(action, call)), "{started:?}");
}
