//! What a run found, as JSON: written by `--json` and `--output`, read by `--compare`.
//!
//! Names are part of the contract with scripts: fields and measures are added, not renamed.
//!
//! | measure | unit | what |
//! |---|---|---|
//! | `engine.short`, `.mixed`, `.long`, `.own` | tokens/s | the engine alone, text to vector, on all threads; `own` is a file's |
//! | `engine.single.p50`, `.p99` | ms | one short text at a time, on one thread |
//! | `broker.bulk` | inputs/s | the mixed texts in bulk jobs through broker and service |
//! | `broker.bulk.of_engine` | ratio | its tokens a second over `engine.mixed` of the same round, where both have one fingerprint |
//! | `broker.single.p50`, `.p99` | ms | one short text at a time on the interactive lane |
//! | `quality.cosine_min`, `.cosine_mean` | cosine | to the vectors of f32 |
//! | `quality.nearest_10` | share | of the ten nearest texts in f32, those that this precision finds too |
//! | `quality.speed` | tokens/s | the same texts, on all threads |
//! | `quality.load` | ms | from the folder to a model that computes |

use super::stats;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What [`Report::format`] is.
pub const FORMAT: &str = "embeddings-bench-1";

/// A run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// `embeddings-bench-1`; another number where a field has changed its meaning.
    pub format: String,
    /// Of the program that measured.
    pub version: String,
    /// When it began, in UTC.
    pub date: String,
    /// The same in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// Where it ran.
    pub machine: Machine,
    /// What was measured.
    pub model: Subject,
    /// How it was measured.
    pub settings: Settings,
    /// What was found.
    pub measures: Vec<Measure>,
    /// What should be known of it: what was left out and why, what `auto` chose.
    pub notes: Vec<String>,
}

/// A machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// Its name.
    pub host: String,
    /// Kind of processor, such as `x86_64`.
    pub arch: String,
    /// The processor's name.
    pub cpu: String,
    /// Instructions that kernels are chosen by, of those that the processor has.
    pub flags: Vec<String>,
    /// Processors that are on.
    pub cores: usize,
    /// Processors that affinity and cgroup leave to this process.
    pub allowed: usize,
    /// Memory of the machine.
    pub memory_bytes: u64,
    /// Of the operating system.
    pub kernel: String,
    /// Processes that wanted to run in the last minute before this began; above 0.5 it was not quiet.
    pub load_average: Option<f64>,
    /// `EMBEDDINGS_CPU_MAX`, where it masks instructions off.
    pub masked: Option<String>,
}

/// A model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Subject {
    /// As it was asked for.
    pub name: String,
    /// Its folder.
    pub path: String,
    /// Such as `bert`.
    pub architecture: String,
    /// Components of a vector.
    pub dimensions: usize,
    /// Longest sequence.
    pub max_tokens: usize,
    /// Bytes of its weights' files.
    pub weights_bytes: u64,
    /// Over the weights' files.
    pub weights_sha256: String,
    /// Where it computed, such as `cpu`.
    pub device: String,
    /// What this machine computed with, by precision: equal fingerprints mean comparable vectors.
    pub fingerprints: Vec<String>,
    /// What the service behind the broker says that it computes with.
    pub service_fingerprint: Option<String>,
}

/// How a run was made.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Threads that computed.
    pub threads: usize,
    /// Seconds of each measure, all rounds together.
    pub seconds: f64,
    /// Rounds; all measures take turns in each.
    pub rounds: usize,
    /// Token budget of a batch.
    pub batch_tokens: usize,
    /// Where the texts come from: a file, or `built-in`.
    pub texts: String,
    /// How many there are.
    pub texts_count: usize,
    /// Over them.
    pub texts_sha256: String,
}

/// Whether more or less is to be wished for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// More.
    Higher,
    /// Less.
    Lower,
}

/// What was measured of one thing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// One of the table above.
    pub name: String,
    /// Number format that was computed in.
    pub precision: String,
    /// Of all the numbers.
    pub unit: String,
    /// What is to be wished for.
    pub better: Better,
    /// Of the rounds.
    pub median: f64,
    /// The least round.
    pub min: f64,
    /// The most.
    pub max: f64,
    /// What each came to, in their order; at least one.
    pub rounds: Vec<f64>,
    /// How long a text is, where the measure is a rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_input: Option<f64>,
}

/// The measures of a run while it is made.
#[derive(Debug, Default)]
pub struct Tape(Vec<Measure>);

impl Tape {
    /// Adds what a round came to.
    pub fn add(&mut self, name: &str, precision: &str, unit: &str, value: f64) {
        let same = |measure: &&mut Measure| measure.name == name && measure.precision == precision;
        if let Some(measure) = self.0.iter_mut().find(same) {
            measure.rounds.push(value);
            return;
        }
        self.0.push(Measure {
            name: name.to_owned(),
            precision: precision.to_owned(),
            unit: unit.to_owned(),
            better: if unit == "ms" {
                Better::Lower
            } else {
                Better::Higher
            },
            median: value,
            min: value,
            max: value,
            rounds: vec![value],
            tokens_per_input: None,
        });
    }

    /// Adds a round of a rate over texts of this length.
    pub fn add_rate(&mut self, name: &str, precision: &str, unit: &str, value: f64, tokens_per_input: f64) {
        self.add(name, precision, unit, value);
        let same = |measure: &&mut Measure| measure.name == name && measure.precision == precision;
        if let Some(measure) = self.0.iter_mut().find(same) {
            measure.tokens_per_input = Some(tokens_per_input);
        }
    }

    /// The measures, in the order in which they were begun.
    pub fn measures(mut self) -> Vec<Measure> {
        for measure in &mut self.0 {
            let all = measure.rounds.iter().copied();
            measure.min = all.clone().fold(f64::INFINITY, f64::min);
            measure.max = all.fold(f64::NEG_INFINITY, f64::max);
            measure.median = stats::median(&measure.rounds).unwrap_or(measure.median);
        }
        self.0
    }
}

impl Report {
    /// A measure by its name and precision.
    pub fn measure(&self, name: &str, precision: &str) -> Option<&Measure> {
        let mut all = self.measures.iter();
        all.find(|measure| measure.name == name && measure.precision == precision)
    }

    /// Reads what an earlier run has written.
    ///
    /// # Errors
    /// What is wrong with it, by file and key.
    pub fn read(path: &Path) -> Result<Report, String> {
        let shown = path.display();
        let bytes = std::fs::read(path).map_err(|error| format!("{shown} cannot be read: {error}"))?;
        let mut json = serde_json::Deserializer::from_slice(&bytes);
        let report: Report = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let (key, why) = (error.path().to_string(), error.inner());
            format!("{shown}: {key}: {why}")
        })?;
        json.end().map_err(|error| format!("{shown}: {error}"))?;
        if report.format != FORMAT {
            return Err(format!(
                "{shown}: format is {:?}, must be {FORMAT:?}: not written by this command, or by another version",
                report.format
            ));
        }
        for (at, measure) in report.measures.iter().enumerate() {
            if measure.rounds.is_empty() {
                return Err(format!(
                    "{shown}: measures[{at}].rounds is empty, must have a number"
                ));
            }
        }
        Ok(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tape() -> Vec<Measure> {
        let mut tape = Tape::default();
        for (rate, ms) in [(90.0, 1.0), (110.0, 3.0), (96.0, 2.0)] {
            tape.add_rate("engine.short", "bf16", "tokens/s", rate, 15.5);
            tape.add("engine.single.p50", "bf16", "ms", ms);
        }
        tape.measures()
    }

    #[test]
    fn rounds_become_a_middle_and_its_bounds() {
        let measures = tape();
        assert_eq!(measures.len(), 2);
        let rate = &measures[0];
        assert_eq!((rate.median, rate.min, rate.max), (96.0, 90.0, 110.0));
        assert_eq!((rate.better, rate.tokens_per_input), (Better::Higher, Some(15.5)));
        let time = &measures[1];
        assert_eq!(
            (time.median, time.better, &time.rounds[..]),
            (2.0, Better::Lower, &[1.0, 3.0, 2.0][..])
        );
    }

    #[test]
    fn what_is_written_can_be_read_and_what_is_wrong_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("before.json");
        let report = Report {
            format: FORMAT.to_owned(),
            measures: tape(),
            ..Report::default()
        };
        std::fs::write(&path, serde_json::to_vec_pretty(&report).unwrap()).unwrap();
        assert_eq!(Report::read(&path).unwrap(), report);
        let problem = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Report::read(&path).unwrap_err()
        };
        assert!(problem("{}").contains("format is \"\", must be"));
        assert!(
            problem(r#"{"measures": [{"name": 7}]}"#).contains("before.json: measures[0].name: invalid type")
        );
        let text = serde_json::to_string(&report).unwrap();
        assert!(problem(&format!("{text} and more")).contains("trailing characters"));
        assert!(problem(&text.replace("[1.0,3.0,2.0]", "[]")).contains("measures[1].rounds is empty"));
        assert!(
            Report::read(&dir.path().join("none"))
                .unwrap_err()
                .contains("cannot be read")
        );
    }
}
