//! What has changed since an earlier run, measure by measure.

use super::report::{Better, Measure, Report};
use serde::Serialize;

/// What a change means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Every round is better than every round before.
    Better,
    /// The rounds of both runs overlap: nothing beyond what was measured as noise.
    Same,
    /// Every round is worse than every round before.
    Worse,
}

/// A measure of both runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compared {
    /// The measure's.
    pub name: String,
    /// The measure's.
    pub precision: String,
    /// The measure's.
    pub unit: String,
    /// Median before.
    pub before: f64,
    /// Median now.
    pub now: f64,
    /// How good it is now, beside before: above one is better, for times too. `None` where one of the two is zero.
    pub ratio: Option<f64>,
    /// Whether that is more than noise.
    pub verdict: Verdict,
}

/// Two runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The file of the earlier one.
    pub file: String,
    /// When that was.
    pub date: String,
    /// Its version.
    pub version: String,
    /// What both have measured.
    pub measures: Vec<Compared>,
    /// What only the earlier one has.
    pub missing: Vec<String>,
    /// What else is different, so that numbers do not speak of the program alone.
    pub differs: Vec<String>,
}

/// Compares a run with an earlier one.
pub fn compare(file: &str, before: &Report, now: &Report) -> Comparison {
    let both = |measure: &Measure| {
        let earlier = before.measure(&measure.name, &measure.precision)?;
        (earlier.unit == measure.unit).then(|| compared(earlier, measure))
    };
    let is_missing = |measure: &&Measure| now.measure(&measure.name, &measure.precision).is_none();
    Comparison {
        file: file.to_owned(),
        date: before.date.clone(),
        version: before.version.clone(),
        measures: now.measures.iter().filter_map(both).collect(),
        missing: (before.measures.iter().filter(is_missing))
            .map(|measure| format!("{} in {}", measure.name, measure.precision))
            .collect(),
        differs: differs(before, now),
    }
}

impl Comparison {
    /// How many measures this was found of.
    pub fn count(&self, verdict: Verdict) -> usize {
        let of = self.measures.iter();
        of.filter(|measure| measure.verdict == verdict).count()
    }

    /// Measures whose ratio is below this.
    pub fn below(&self, ratio: f64) -> Vec<&Compared> {
        let is_below = |measure: &&Compared| measure.ratio.is_some_and(|own| own < ratio);
        self.measures.iter().filter(is_below).collect()
    }
}

fn compared(before: &Measure, now: &Measure) -> Compared {
    // Turned so that more is better.
    let turn = |measure: &Measure| match measure.better {
        Better::Higher => (measure.min, measure.max),
        Better::Lower => (-measure.max, -measure.min),
    };
    let ((worst_before, best_before), (worst, best)) = (turn(before), turn(now));
    let slack = slack(&now.unit);
    let verdict = if best < worst_before - slack {
        Verdict::Worse
    } else if worst > best_before + slack {
        Verdict::Better
    } else {
        Verdict::Same
    };
    let (above, below) = match now.better {
        Better::Higher => (now.median, before.median),
        Better::Lower => (before.median, now.median),
    };
    Compared {
        name: now.name.clone(),
        precision: now.precision.clone(),
        unit: now.unit.clone(),
        before: before.median,
        now: now.median,
        ratio: (above > 0.0 && below > 0.0).then(|| above / below),
        verdict,
    }
}

/// Differences of this size are none, whatever the spread: vectors of one round have none of their own, and another
/// kind of processor rounds otherwise.
fn slack(unit: &str) -> f64 {
    match unit {
        "cosine" => 1e-5,
        "share" => 2e-3,
        _ => 0.0,
    }
}

fn differs(before: &Report, now: &Report) -> Vec<String> {
    let pair = |what: &str, before: &str, now: &str| {
        let shown = |value: &str| {
            if value.is_empty() {
                "none".to_owned()
            } else {
                value.to_owned()
            }
        };
        (before != now).then(|| format!("{what}: {} before, {} now", shown(before), shown(now)))
    };
    let (machine, earlier) = (&now.machine, &before.machine);
    let (settings, other) = (&now.settings, &before.settings);
    let mut all = vec![
        pair("processor", &earlier.cpu, &machine.cpu),
        pair("instructions", &earlier.flags.join(" "), &machine.flags.join(" ")),
        pair(
            "EMBEDDINGS_CPU_MAX",
            earlier.masked.as_deref().unwrap_or(""),
            machine.masked.as_deref().unwrap_or(""),
        ),
        pair("device", &before.model.device, &now.model.device),
        pair(
            "threads",
            &other.threads.to_string(),
            &settings.threads.to_string(),
        ),
        pair(
            "batch_tokens",
            &other.batch_tokens.to_string(),
            &settings.batch_tokens.to_string(),
        ),
        pair("texts", &other.texts, &settings.texts),
    ];
    if before.model.weights_sha256 != now.model.weights_sha256 {
        all.push(Some(format!(
            "model: {} before, {} now",
            before.model.name, now.model.name
        )));
    }
    if other.texts == settings.texts && other.texts_sha256 != settings.texts_sha256 {
        all.push(Some(format!(
            "texts: {} holds others than before",
            settings.texts
        )));
    }
    all.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::super::report::Tape;
    use super::*;
    use proptest::prelude::*;

    fn run(unit: &str, rounds: &[f64]) -> Report {
        let mut tape = Tape::default();
        rounds
            .iter()
            .for_each(|value| tape.add("engine.long", "f32", unit, *value));
        Report {
            measures: tape.measures(),
            ..Report::default()
        }
    }

    fn verdict(unit: &str, before: &[f64], now: &[f64]) -> (Verdict, f64) {
        let found = compare("x", &run(unit, before), &run(unit, now));
        (found.measures[0].verdict, found.measures[0].ratio.unwrap())
    }

    #[test]
    fn only_what_leaves_the_spread_is_better_or_worse() {
        let before = [95.0, 100.0, 105.0];
        assert_eq!(
            verdict("tokens/s", &before, &[80.0, 80.0, 96.0]),
            (Verdict::Same, 0.8)
        );
        assert_eq!(
            verdict("tokens/s", &before, &[80.0, 80.0, 94.0]),
            (Verdict::Worse, 0.8)
        );
        assert_eq!(
            verdict("tokens/s", &before, &[120.0, 106.0, 120.0]),
            (Verdict::Better, 1.2)
        );
        // Times: less is better, and the ratio is turned round.
        assert_eq!(
            verdict("ms", &before, &[125.0, 125.0, 106.0]),
            (Verdict::Worse, 0.8)
        );
        assert_eq!(verdict("ms", &before, &[80.0]), (Verdict::Better, 1.25));
        // Rounding is no change of vectors.
        assert_eq!(verdict("cosine", &[0.999_970], &[0.999_965]).0, Verdict::Same);
        assert_eq!(verdict("cosine", &[0.999_970], &[0.999_950]).0, Verdict::Worse);
    }

    #[test]
    fn what_cannot_be_compared_is_told() {
        let (before, mut now) = (run("tokens/s", &[1.0]), run("tokens/s", &[1.0]));
        now.measures[0].precision = "int8".to_owned();
        now.settings.threads = 2;
        let found = compare("x", &before, &now);
        assert_eq!(found.missing, ["engine.long in f32"]);
        assert_eq!(found.differs, ["threads: 0 before, 2 now"]);
        assert!(found.measures.is_empty() && found.below(9.0).is_empty());
        let nothing = compare("x", &run("ms", &[0.0]), &run("ms", &[1.0]));
        assert_eq!(nothing.measures[0].ratio, None);
    }

    proptest! {
        /// Goal: a comparison is fair. Turned round it says the opposite, the ratio is the inverse, a run beside itself
        /// is the same, and what is called worse has a ratio below one.
        #[test]
        fn turned_round_it_says_the_opposite(
            a in prop::collection::vec(0.1f64..1e6, 1..8),
            b in prop::collection::vec(0.1f64..1e6, 1..8),
            unit in prop::sample::select(vec!["ms", "tokens/s"]),
        ) {
            let ((there, ratio), (back, inverse)) = (verdict(unit, &a, &b), verdict(unit, &b, &a));
            let opposite = match there {
                Verdict::Better => Verdict::Worse,
                Verdict::Worse => Verdict::Better,
                Verdict::Same => Verdict::Same,
            };
            prop_assert_eq!(back, opposite);
            prop_assert!((ratio * inverse - 1.0).abs() < 1e-9);
            prop_assert!(there != Verdict::Worse || ratio < 1.0);
            prop_assert_eq!(verdict(unit, &a, &a), (Verdict::Same, 1.0));
        }
    }
}
