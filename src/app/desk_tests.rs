//! What a desk keeps of a job from slice to slice.

use super::*;

/// Goal: what is told of attempts neither falls behind the slice that was tried again, nor counts one that is not made.
#[test]
fn attempts_are_told_as_they_were_made() {
    let mut held = Held::blank(Lane::Resumed, "job".into(), Moment::ZERO);
    (held.attempt, held.checkpoint.trouble) = (2, 1);
    held.sequences = vec![Sequence {
        ids: Arc::from([1]),
        truncated: false,
        prompt_tokens: 0,
    }];
    let behind = held.behind();
    assert_eq!((behind.done, behind.attempt, behind.most), (1, 1, 2));
    let mut next = Held::blank(Lane::Resumed, "job".into(), Moment::ZERO);
    (next.attempt, next.checkpoint) = (behind.attempt, behind);
    assert_eq!(next.attempts(), 2);
    next.attempt = 3;
    assert_eq!(next.attempts(), 3);
    // It comes after its third death where three attempts are allowed.
    (next.attempt, next.spent) = (4, true);
    assert_eq!(next.attempts(), 3);
}

#[test]
fn slices_are_whole_chunks() {
    let texts = |count: usize, bytes: usize| vec!["x".repeat(bytes); count];
    let slice = |texts: &[String], chunk, before, attempt| slice(texts, Chunks::new(chunk, before), attempt);
    assert_eq!(slice(&texts(6000, 10), 32, 0, 1), 512);
    assert_eq!(slice(&texts(6000, 10), 100, 0, 1), 500);
    assert_eq!(slice(&texts(6000, 1024), 32, 0, 1), 128);
    assert_eq!(slice(&texts(6000, 1 << 20), 32, 0, 1), 32);
    assert_eq!(slice(&texts(6000, 10), 2000, 0, 1), 2000);
    assert_eq!(slice(&texts(7, 10), 32, 0, 1), 7);
    // Behind one that was cut within a chunk.
    assert_eq!(slice(&texts(6000, 10), 32, 37, 1), 27 + 480);
    assert_eq!(slice(&texts(6000, 1 << 20), 32, 37, 1), 27);
    assert_eq!(slice(&texts(7, 10), 32, 37, 1), 7);
    let shrinking: Vec<usize> = (1..6)
        .map(|attempt| slice(&texts(6000, 10), 32, 0, attempt))
        .collect();
    assert_eq!(shrinking, [512, 128, 32, 32, 32]);
}

/// Goal: a job counts its attempts from one again behind the slice that failed, and is as it was before. Method: its first slice is
/// tried a second or third time, and the rest goes on from worker to worker.
#[test]
fn attempts_are_forgotten_behind_what_failed() {
    use crate::job::request::{Encoding, Request};
    use crate::logic::event::ModelId;
    for (chunk, attempt) in [(1, 2), (8, 3), (32, 2), (32, 3), (64, 4), (600, 2)] {
        let mut rest = vec!["text".to_owned(); 10_000];
        let mut checkpoint = Checkpoint {
            attempt,
            ..Checkpoint::default()
        };
        let mut forgotten = None;
        while !rest.is_empty() {
            let mut held = Held::blank(Lane::Resumed, "job".into(), Moment::ZERO);
            (held.attempt, held.checkpoint) = (checkpoint.attempt, checkpoint);
            let request = Request {
                input: rest,
                model: None,
                encoding: Encoding::Float,
                dimensions: None,
                input_type: None,
                prompt_name: None,
                truncate: true,
                normalize: None,
                stream: true,
            };
            let plan = Plan {
                model: ModelId(0),
                prompt: None,
                dimensions: None,
                normalize: true,
                truncate: true,
                encoding: Encoding::Float,
                chunk: Some(chunk),
            };
            let (inputs, _) = held.plan(request, plan, true, 1);
            let sequence = Sequence {
                ids: Arc::from([1]),
                truncated: false,
                prompt_tokens: 0,
            };
            held.sequences = vec![sequence; inputs];
            checkpoint = held.behind();
            rest = held.rest;
            if checkpoint.attempt == 1 && forgotten.is_none() {
                forgotten = Some(checkpoint.done);
            }
        }
        let most = SLICE_INPUTS.max(chunk);
        assert!(
            forgotten.is_some_and(|done| done <= most),
            "{chunk}, {attempt}: {forgotten:?}"
        );
    }
}
