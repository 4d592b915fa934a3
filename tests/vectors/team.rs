//! Engines that help each other, in a pool as the service has it.

use super::{Golden, MINILM, golden, load, load_in};
use embeddings::clock::Clock;
use embeddings::config::Precision;
use embeddings::engine::pool::{Pool, PoolEvent, Work};
use embeddings::engine::{Model, Sequence};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, LazyLock};

fn pool(engines: usize) -> (Pool, Receiver<PoolEvent>) {
    let (events, inbox) = channel();
    let report = Arc::new(move |event| {
        // The receiver is gone where a test drops the pool in the middle of its work.
        let _ = events.send(event);
    });
    (Pool::start(engines, Clock::start(), report).unwrap(), inbox)
}

fn alone(model: &Model, sequences: &[Sequence]) -> Vec<Vec<u32>> {
    let sequences: Vec<&Sequence> = sequences.iter().collect();
    let vectors = model.engine().embed(&sequences, &mut || ()).unwrap();
    vectors.into_iter().map(|vector| bits(vector.unwrap())).collect()
}

fn bits(vector: Vec<f32>) -> Vec<u32> {
    vector.into_iter().map(f32::to_bits).collect()
}

/// The vectors of the next batch that is done, and its number.
fn done(inbox: &Receiver<PoolEvent>) -> (u64, Vec<Vec<u32>>) {
    loop {
        if let PoolEvent::Done { batch, result, .. } = inbox.recv().unwrap() {
            let vectors = result.unwrap().into_iter().map(|vector| bits(vector.unwrap()));
            return (batch, vectors.collect());
        }
    }
}

fn lines(model: &Model, name: &str) -> Vec<Sequence> {
    let lines = Golden::read(&golden().join(name));
    lines.iter().map(|line| line.sequence(model)).collect()
}

// Goal: a batch has the same vectors, to the bit, whether or not idle engines help. Method: a model of the world and small ones
// of several families, in every precision, one batch at a time in a pool of three.
#[test]
fn help_changes_no_bit() {
    let mut models = vec![];
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
        models.push((
            load_in(&super::minilm(), precision),
            "minilm-256.jsonl".to_owned(),
        ));
        for name in ["modernbert", "qwen3", "gemma3", "mpnet", "gte", "distilbert-relu"] {
            models.push((
                load_in(&golden().join(name), precision),
                format!("{name}/golden.jsonl"),
            ));
        }
    }
    let (pool, inbox) = pool(3);
    for (model, file) in models {
        for (batch, sequences) in lines(&model, &file).chunks(2).enumerate() {
            let work = Work {
                batch: batch as u64,
                model: model.clone(),
                sequences: sequences.to_vec(),
                urgent: false,
            };
            pool.submit(batch % 3, work).unwrap();
            let (_, got) = done(&inbox);
            assert!(got == alone(&model, sequences), "{file}, batch {batch}");
        }
    }
    let teams = std::thread::available_parallelism().is_ok_and(|count| count.get() > 1);
    assert!(!teams || pool.shares_helped() > 0, "no engine has helped another");
}

/// A model of which a batch takes next to no time, and texts of several lengths with their vectors.
struct Small {
    model: Arc<Model>,
    sequences: Vec<Sequence>,
    vectors: Vec<Vec<u32>>,
}

static SMALL: LazyLock<Small> = LazyLock::new(|| {
    let model = load(&golden().join("max"));
    let sequences = lines(&model, "max/golden.jsonl");
    let vectors = alone(&model, &sequences);
    Small {
        model,
        sequences,
        vectors,
    }
});

#[derive(Debug, Clone)]
enum Step {
    /// To which engine, which text, urgent or not.
    Submit(usize, usize, bool),
    Ask(usize),
    Tidy,
    /// Waits for a batch, if one is under way: the others become idle meanwhile, or not.
    Wait,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3_usize, any::<prop::sample::Index>(), any::<bool>())
            .prop_map(|(engine, text, urgent)| Step::Submit(engine, text.index(SMALL.sequences.len()), urgent)),
        1 => (0..3_usize).prop_map(Step::Ask),
        1 => Just(Step::Tidy),
        3 => Just(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    // Goal: whatever engines are given to do while they help or are helped, every batch is done once and right, every question
    // is answered, and a pool that is dropped in the middle ends. Method: any steps, then all is waited for or nothing.
    #[test]
    fn whatever_comes_between_is_done(steps in prop::collection::vec(step(), 1..120), wait in any::<bool>()) {
        let Small { model, sequences, vectors } = &*SMALL;
        let (pool, inbox) = pool(3);
        let mut under_way = BTreeMap::new();
        let mut questions = 0;
        let hear = |under_way: &mut BTreeMap<u64, usize>, questions: &mut usize| {
            match inbox.recv().unwrap() {
                PoolEvent::Step { .. } => {}
                PoolEvent::Tried { right, .. } => {
                    assert!(right);
                    *questions -= 1;
                }
                PoolEvent::Done { batch, result, .. } => {
                    let text = under_way.remove(&batch).expect("a batch is done once");
                    let vector = result.unwrap().remove(0).unwrap();
                    assert!(bits(vector) == vectors[text]);
                }
            }
        };
        for (batch, step) in (0..).zip(steps) {
            match step {
                Step::Submit(engine, text, urgent) => {
                    let (model, sequences) = (model.clone(), vec![sequences[text].clone()]);
                    let work = Work { batch, model, sequences, urgent };
                    if pool.submit(engine, work).is_ok() {
                        under_way.insert(batch, text);
                    }
                }
                // Two questions to one engine before it answers are one, so the first is waited for.
                Step::Ask(engine) => {
                    while questions > 0 {
                        hear(&mut under_way, &mut questions);
                    }
                    pool.ask(engine);
                    questions += 1;
                }
                Step::Tidy => pool.tidy(),
                Step::Wait => {
                    if !under_way.is_empty() {
                        hear(&mut under_way, &mut questions);
                    }
                }
            }
        }
        while wait && (!under_way.is_empty() || questions > 0) {
            hear(&mut under_way, &mut questions);
        }
        drop(pool);
    }
}

// Goal: a pool that is dropped while one engine helps another ends, and nobody holds the model. Method: as a long batch begins,
// with all other engines idle.
#[test]
fn a_pool_in_the_middle_of_its_work_ends() {
    let model = load(&super::minilm());
    let sequence = MINILM.tokenize(&"home ".repeat(200), None, true).unwrap();
    for _ in 0..4 {
        let (pool, inbox) = pool(3);
        let work = Work {
            batch: 0,
            model: model.clone(),
            sequences: vec![sequence.clone(); 2],
            urgent: false,
        };
        pool.submit(0, work).unwrap();
        assert!(matches!(inbox.recv().unwrap(), PoolEvent::Step { .. }));
        drop(pool);
    }
    let weak = Arc::downgrade(&model);
    drop(model);
    assert_eq!(weak.strong_count(), 0);
}
