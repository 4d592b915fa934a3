//! `precision = "auto"`: the fastest numbers that keep vectors where 32 bits put them, found by trying.
//!
//! All forms of a model embed the same few texts at load. What decides is measured on this model and this
//! machine, so nothing is assumed of either. The other forms are let go of.

use super::tokenize::Tokenize;
use super::{Engine, Sequence};
use crate::clock::Clock;
use std::time::Duration;

/// The least cosine to 32 bits on any of [`TEXTS`]. The promise is 0.9999 on every text; a few texts cannot find
/// the worst one, so half of the distance is kept in reserve. all-MiniLM-L6-v2 comes to 0.99998 over thousands.
const COSINE_LEAST: f64 = 0.99995;
/// How much faster the lesser numbers have to be: below this they are not worth their rounding, and noise could
/// choose otherwise at the next start.
const GAIN_LEAST: f64 = 1.2;
/// How often a GPU embeds the texts at once: some 15 000 tokens, which keep it busy.
pub const COPIES_ON_A_GPU: usize = 64;
/// Runs whose fastest counts.
const RUNS: usize = 3;

/// Of several lengths, kinds and scripts.
const TEXTS: [&str; 8] = [
    "ok",
    "How do I reset my password?",
    "The quick brown fox jumps over the lazy dog.",
    "fn main() { println!(\"{}\", (1..=10).map(|n| n * n).sum::<u64>()); }",
    "Die Würde des Menschen ist unantastbar. Sie zu achten und zu schützen ist Verpflichtung aller Gewalt.",
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "Invoice 2024-117: 3 x cable, 14.99 EUR; 1 x adapter, 7.50 EUR; total 52.47 EUR, due within 14 days.",
    "Messages that cannot be delivered are kept in a queue of their own, with the reason, the number of attempts and \
     the moment of the last one, so that an operator can look at them, mend what was wrong, and send them on their \
     way again. Nothing is thrown away without a word, and nothing is tried for ever.",
];

/// What the texts became, and in what time.
pub struct Tried {
    vectors: Vec<Vec<f32>>,
    fastest: Duration,
}

/// Embeds the texts, so many times over at once; nothing if the model cannot. A GPU shows its speed only with many.
pub fn attempt(
    tokenize: &Tokenize,
    mut engine: Box<dyn Engine>,
    copies: usize,
    step: &mut dyn FnMut(),
) -> Option<Tried> {
    let sequences: Result<Vec<Sequence>, _> = TEXTS
        .iter()
        .map(|text| tokenize.sequence(text, None, true, &mut || ()))
        .collect();
    let sequences = sequences.ok()?;
    let batch: Vec<&Sequence> = std::iter::repeat_n(&sequences, copies).flatten().collect();
    let clock = Clock::start();
    let mut tried = Tried {
        vectors: Vec::new(),
        fastest: Duration::MAX,
    };
    for _ in 0..RUNS {
        let begin = clock.now();
        let vectors = engine.embed(&batch, step).ok()?;
        tried.fastest = tried.fastest.min(clock.now().since(begin));
        tried.vectors = vectors.into_iter().collect::<Result<_, _>>().ok()?;
    }
    Some(tried)
}

/// Whether the lesser numbers are worth it.
pub fn is_worth(lesser: &Tried, full: &Tried) -> bool {
    let near = lesser
        .vectors
        .iter()
        .zip(&full.vectors)
        .all(|(a, b)| cosine(a, b) >= COSINE_LEAST);
    near && lesser.fastest.mul_f64(GAIN_LEAST) <= full.fastest
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

    fn tried(vector: [f32; 2], ms: u64) -> Tried {
        Tried {
            vectors: vec![vector.to_vec()],
            fastest: Duration::from_millis(ms),
        }
    }

    #[test]
    fn what_is_near_and_faster_is_worth_it() {
        let full = tried([1.0, 0.0], 12);
        assert!(is_worth(&tried([1.0, 0.005], 10), &full));
        assert!(!is_worth(&tried([1.0, 0.005], 11), &full), "hardly faster");
        assert!(!is_worth(&tried([1.0, 0.02], 1), &full), "too far away");
        assert!(!is_worth(&tried([f32::NAN, 0.0], 1), &full), "no number");
    }
}
