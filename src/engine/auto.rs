//! `precision = "auto"`: the fastest numbers that keep vectors where 32 bits put them, found by trying.
//!
//! Both forms of a model embed the same few texts at load, which tells how near they are; then their first layers take
//! turns, which tells how fast they are, as all layers are alike. What decides is measured on this model and this
//! machine, so nothing is assumed of either. The other form is let go of.

use super::device::Precision;
use super::encoder::Chain;
use super::tokenize::Tokenize;
use super::{Engine, Sequence};
use crate::clock::Clock;
use std::sync::Arc;
use std::time::Duration;

/// The least cosine to 32 bits on any of [`TEXTS`]. The promise is 0.9999 on every text; a few texts cannot find
/// the worst one, though the shortest of them are of the worst kind, so a third of the distance is kept in reserve.
/// all-MiniLM-L6-v2 comes to 0.99995 on those here, to 0.99993 over 1500 single words, and to 0.99997 over thousands of sentences.
const COSINE_LEAST: f64 = 0.99993;
/// The narrowest model that is tried. Where a vector is made of few numbers, their errors hardly cancel out: over a thousand texts
/// of up to six words a random model 48 wide (`tests/golden/gte`) came to 0.9998, though none of those here is below 0.99995;
/// random ones 128 to 384 wide stayed above 0.9999. Narrow models are fast anyway.
const WIDTH_LEAST: usize = 256;
/// How much faster the lesser numbers have to be: below this they are not worth their rounding, and noise could
/// choose otherwise at the next start.
const GAIN_LEAST: f64 = 1.2;
/// How often a GPU embeds the texts at once: some 15 000 tokens, which keep it busy.
const COPIES_ON_A_GPU: usize = 128;
/// Turns of which the fastest counts, at least.
const TURNS: usize = 3;
/// Turns at most: on a busy machine the lesser numbers get more of them to show their speed, so that each start chooses alike.
const TURNS_MAX: usize = 24;

/// Of several kinds and scripts, and short, which is the worst case: over more tokens errors cancel out. Some hundred tokens
/// in all: a model waits for this trial to serve.
const TEXTS: [&str; 8] = [
    "ok",
    "How do I reset my password?",
    "The quick brown fox jumps over the lazy dog.",
    "fn main() { println!(\"{}\", 6 * 7); }",
    "Die Würde des Menschen ist unantastbar.",
    "吾輩は猫である。名前はまだ無い。",
    "Invoice 2024-117: 3 x cable, 14.99 EUR",
    "Nothing is thrown away without a word, and nothing is tried for ever.",
];

/// The number formats of those asked for that a trial can decide between, for a model so wide.
pub fn to_try(asked_for: Vec<Precision>, width: usize) -> Vec<Precision> {
    match asked_for.len() > 1 && width < WIDTH_LEAST {
        true => vec![Precision::F32],
        false => asked_for,
    }
}

/// Whether the lesser numbers are worth it; they are not if the model cannot embed the texts.
pub fn is_worth(tokenize: &Tokenize, lesser: &Arc<Chain>, full: &Arc<Chain>, step: &mut dyn FnMut()) -> bool {
    let sequence = |text: &&str| tokenize.sequence(text, None, true, &mut || ()).ok();
    let Some(sequences) = TEXTS.iter().map(sequence).collect::<Option<Vec<Sequence>>>() else {
        return false;
    };
    let batch: Vec<&Sequence> = sequences.iter().collect();
    let vectors = |chain: &Arc<Chain>, step: &mut dyn FnMut()| -> Option<Vec<Vec<f32>>> {
        let vectors = chain.engine().embed(&batch, step).ok()?;
        vectors.into_iter().collect::<Result<_, _>>().ok()
    };
    let both = std::thread::scope(|scope| {
        // Where the machine starts no thread for it, one after the other does as well.
        let other = std::thread::Builder::new().name("load-trial".into());
        let other = other.spawn_scoped(scope, || vectors(lesser, &mut || ()));
        let full = vectors(full, step);
        let lesser = match other {
            Ok(other) => other
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(_) => vectors(lesser, step),
        };
        lesser.zip(full)
    });
    let Some((ours, theirs)) = both else {
        return false;
    };
    if !is_near(&ours, &theirs) {
        return false;
    }
    let mut engines = [lesser, full].map(|chain| chain.engine_of(1));
    let clock = Clock::start();
    let mut fastest = [Duration::MAX; 2];
    for turn in 1..=TURNS_MAX {
        for (engine, fastest) in engines.iter_mut().zip(&mut fastest) {
            let begin = clock.now();
            // Vectors of one layer may be anything, also nothing; the time is what counts.
            if engine.embed(&batch, step).is_err() {
                return false;
            }
            *fastest = (*fastest).min(clock.now().since(begin));
        }
        if turn >= TURNS && is_faster(fastest[0], fastest[1]) {
            return true;
        }
    }
    false
}

/// As [`is_worth`], on a GPU: it shows its speed only with many texts at once, and in all layers.
pub fn is_worth_on_a_gpu(tokenize: &Tokenize, engines: [Box<dyn Engine>; 2], step: &mut dyn FnMut()) -> bool {
    let sequence = |text: &&str| tokenize.sequence(text, None, true, &mut || ()).ok();
    let Some(sequences) = TEXTS.iter().map(sequence).collect::<Option<Vec<Sequence>>>() else {
        return false;
    };
    let batch: Vec<&Sequence> = std::iter::repeat_n(&sequences, COPIES_ON_A_GPU)
        .flatten()
        .collect();
    let clock = Clock::start();
    let tried = engines.map(|mut engine| {
        let (mut fastest, mut vectors) = (Duration::MAX, None);
        for _ in 0..TURNS {
            let begin = clock.now();
            let computed = engine.embed(&batch, step).ok()?;
            fastest = fastest.min(clock.now().since(begin));
            vectors = Some(computed.into_iter().collect::<Result<Vec<_>, _>>().ok()?);
        }
        Some((vectors?, fastest))
    });
    match tried {
        [Some((lesser, in_lesser)), Some((full, in_full))] => {
            is_near(&lesser, &full) && is_faster(in_lesser, in_full)
        }
        _ => false,
    }
}

fn is_near(lesser: &[Vec<f32>], full: &[Vec<f32>]) -> bool {
    let mut pairs = lesser.iter().zip(full);
    pairs.all(|(a, b)| cosine(a, b) >= COSINE_LEAST)
}

fn is_faster(lesser: Duration, full: Duration) -> bool {
    lesser.mul_f64(GAIN_LEAST) <= full
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum::<f64>()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_models_are_not_tried() {
        let auto = || vec![Precision::Bf16, Precision::F32];
        assert_eq!(to_try(auto(), 255), [Precision::F32]);
        assert_eq!(to_try(auto(), 256), auto());
        assert_eq!(
            to_try(vec![Precision::Int8], 32),
            [Precision::Int8],
            "as was asked for"
        );
    }

    #[test]
    fn what_is_near_and_faster_is_worth_it() {
        let full = [vec![1.0, 0.0], vec![0.0, 1.0]];
        let near = |second: [f32; 2]| is_near(&[vec![1.0, 0.0], second.to_vec()], &full);
        assert!(near([0.005, 1.0]));
        assert!(!near([0.02, 1.0]), "too far away");
        assert!(!near([f32::NAN, 1.0]), "no number");
        let ms = Duration::from_millis;
        assert!(is_faster(ms(10), ms(12)));
        assert!(!is_faster(ms(11), ms(12)), "hardly faster");
    }
}
