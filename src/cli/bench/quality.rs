//! What a precision costs: how far vectors move from those of f32, and what a search finds then.
//!
//! Every text is a query against all others. A model is loaded for each precision, embeds a part of the texts and
//! is let go of before the next is loaded, so that only one is in memory; and that round by round, so that a machine
//! that slows down slows all alike.

use super::engine::Rig;
use super::nearest::{self, NEAREST, Vectors};
use super::report::{Subject, Tape};
use crate::config::{self, Precision};
use anyhow::Context;
use std::collections::BTreeMap;
use std::path::Path;

/// Rounds, each with its part of the texts.
pub const ROUNDS: usize = 3;
/// So many texts have ten others.
pub const TEXTS_MIN: usize = NEAREST + 1;
/// Texts that warm an engine up before its part is timed.
const WARM_UP: usize = 32;

/// What is compared.
pub struct Trial<'a> {
    /// The model's folder.
    pub dir: &'a Path,
    /// Where it computes.
    pub device: config::Device,
    /// None of them `auto`, none twice, f32 first.
    pub precisions: &'a [Precision],
    /// At least [`TEXTS_MIN`].
    pub texts: &'a [String],
    /// That compute.
    pub threads: usize,
    /// Token budget of a batch.
    pub batch_tokens: usize,
}

/// Measures all precisions onto the tape, and notes in `subject` what was loaded. `say` is told what comes next.
///
/// # Errors
/// A precision that cannot be loaded, or a text that has no vector.
pub fn measure(
    trial: &Trial<'_>,
    tape: &mut Tape,
    subject: &mut Subject,
    say: &dyn Fn(&str),
) -> anyhow::Result<()> {
    let mut found: BTreeMap<&str, Vectors> = BTreeMap::new();
    let names: Vec<String> = trial.precisions.iter().map(ToString::to_string).collect();
    for round in 0..ROUNDS {
        // Every third text, so that the rounds are alike.
        let part: Vec<String> = trial.texts.iter().skip(round).step_by(ROUNDS).cloned().collect();
        for (precision, name) in trial.precisions.iter().zip(&names) {
            say(&format!("quality in {name}, round {} of {ROUNDS}", round + 1));
            let mut rig = Rig::load(
                trial.dir,
                trial.device,
                *precision,
                trial.threads,
                trial.batch_tokens,
            )?;
            super::describe(subject, &rig);
            rig.embed(&part[..WARM_UP.min(part.len())])?;
            let (vectors, pace) = rig.embed(&part)?;
            tape.add("quality.load", name, "ms", rig.load_ms);
            tape.add_rate(
                "quality.speed",
                name,
                "tokens/s",
                pace.tokens_per_second,
                pace.tokens_per_input,
            );
            let dimensions = rig.info().dimensions;
            let kept = found.entry(name).or_insert_with(|| Vectors::new(dimensions));
            vectors.iter().for_each(|vector| kept.push(vector));
        }
    }
    say("quality: the nearest texts of each");
    let reference = names.first().and_then(|name| found.get(name.as_str()));
    let reference = reference.context("nothing to compare with")?;
    let nearest = nearest::neighbours(reference, trial.threads);
    for name in &names {
        let vectors = &found[name.as_str()];
        let (least, mean) = nearest::cosines(reference, vectors).context("no texts")?;
        let own = nearest::neighbours(vectors, trial.threads);
        let overlap = nearest::overlap(&nearest, &own).context("no texts")?;
        tape.add("quality.cosine_min", name, "cosine", least);
        tape.add("quality.cosine_mean", name, "cosine", mean);
        tape.add("quality.nearest_10", name, "share", overlap);
    }
    Ok(())
}
