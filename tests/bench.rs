//! Goal: `embeddings bench` measures what it says, tells it to people and to scripts alike, and refuses early what it
//! cannot use. Method: the real binary with the real model and rounds of a few hundredths of a second; no broker
//! (tests/broker/bench.rs has one).

#[path = "support/model.rs"]
mod model;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// Sentences that have something to do with each other, so that there is something to find.
const TEXTS: [&str; 24] = [
    "The cat sleeps on the warm sofa.",
    "A dog barks at the postman every morning.",
    "Kittens play with a ball of wool.",
    "The vet looked at the puppy's paw.",
    "Stocks fell sharply on Monday.",
    "The central bank raised its rate by a quarter.",
    "Investors sold bonds and bought gold.",
    "Inflation is at its lowest in ten years.",
    "A recipe for tomato soup with basil.",
    "Bake the bread for forty minutes.",
    "Salt the water before the pasta goes in.",
    "The stew tastes better on the second day.",
    "The train to Vienna leaves at noon.",
    "Our flight was cancelled because of fog.",
    "The harbour has a ferry to the islands.",
    "Take the second road behind the bridge.",
    "The queue is full and the message was refused.",
    "A broker confirms what it has written to disk.",
    "The process was ended by its watchdog.",
    "Restart the service after the upgrade.",
    "Snow fell on the hills all night.",
    "It will rain in the west tomorrow.",
    "The summer was the driest on record.",
    "A storm tore the roof off the barn.",
];

/// A folder with the texts, and the binary with nothing of this machine's configuration.
struct Desk(TempDir);

impl Desk {
    fn new() -> Desk {
        let desk = Desk(tempfile::tempdir().unwrap());
        desk.write("texts", TEXTS.join("\n"));
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// Runs `embeddings bench` in the folder, with a broker that is not there.
    fn bench(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_embeddings"))
            .env_clear()
            .env("HOME", self.0.path())
            .env("STATE_DIRECTORY", self.0.path())
            .current_dir(self.0.path())
            .args([
                "bench",
                "--config",
                "/dev/null",
                "--set",
                "broker.url=amqp://127.0.0.1:1",
            ])
            .args(arguments)
            .output()
            .unwrap()
    }

    /// As [`Desk::bench`], with the model and the texts, and quick.
    fn quick(&self, arguments: &[&str]) -> Output {
        let folder = model::minilm();
        let mut all = vec![
            "--model",
            folder.to_str().unwrap(),
            "--seconds",
            "0.1",
            "--threads",
            "1",
        ];
        all.extend(["--texts", "texts"]);
        all.extend(arguments);
        self.bench(&all)
    }
}

fn told(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The measure of this name and precision.
fn measure<'a>(report: &'a Value, name: &str, precision: &str) -> &'a Value {
    let all = report["measures"].as_array().unwrap();
    let own = |measure: &&Value| measure["name"] == name && measure["precision"] == precision;
    all.iter()
        .find(own)
        .unwrap_or_else(|| panic!("no {name} in {precision}: {all:#?}"))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("no number: {value}"))
}

#[test]
fn a_run_is_told_written_and_compared() {
    let desk = Desk::new();
    let both = ["--precision", "f32,bf16"];
    let (code, out, err) = told(&desk.quick(&[&both[..], &["--output", "before.json"]].concat()));
    assert_eq!(code, Some(0), "{err}");
    assert!(
        out.lines()
            .next()
            .unwrap()
            .starts_with("all-MiniLM-L6-v2: f32 on cpu, 1 thread: "),
        "{out}"
    );
    // Nobody asked for the broker, so its absence is a note.
    assert!(
        out.contains("note: through the broker nothing is measured: "),
        "{out}"
    );
    assert!(
        !out.contains('\x1b') && err.is_empty(),
        "neither colour nor progress outside of a terminal: {err}"
    );

    let report = read(&desk.path("before.json"));
    assert_eq!(report["format"], "embeddings-bench-1");
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(
        (&report["settings"]["threads"], &report["settings"]["texts_count"]),
        (&1.into(), &24.into())
    );
    assert_eq!(report["model"]["dimensions"], 384);
    assert_eq!(report["model"]["fingerprints"].as_array().unwrap().len(), 2);
    for precision in ["f32", "bf16"] {
        let rate = measure(&report, "engine.own", precision);
        let (least, middle, most) = (
            number(&rate["min"]),
            number(&rate["median"]),
            number(&rate["max"]),
        );
        assert!(10.0 < least && least <= middle && middle <= most, "{rate}");
        assert_eq!(rate["rounds"].as_array().unwrap().len(), 5);
        let length = number(&rate["tokens_per_input"]);
        assert!(
            (6.0..14.0).contains(&length),
            "the texts have some ten tokens: {length}"
        );
        let (p50, p99) = (
            number(&measure(&report, "engine.single.p50", precision)["median"]),
            number(&measure(&report, "engine.single.p99", precision)["median"]),
        );
        assert!(0.0 < p50 && p50 <= p99, "{p50} {p99}");
        // What one text takes and what texts a second are cannot be far from each other on one thread.
        let texts_per_second = middle / length;
        assert!(
            texts_per_second * p50 > 100.0,
            "{texts_per_second} texts/s, but one takes {p50} ms"
        );
    }

    let (code, out, _) = told(&desk.quick(&["--engine", "--precision", "bf16", "--compare", "before.json"]));
    assert_eq!(code, Some(0), "a comparison alone fails nothing");
    assert!(
        out.lines().next().unwrap().contains("beside before.json of "),
        "{out}"
    );
    assert!(out.contains("not measured now: engine.own in f32"), "{out}");
    assert!(!out.contains("differs:"), "{out}");
    let compare = [
        "--engine",
        "--precision",
        "bf16",
        "--json",
        "--compare",
        "before.json",
    ];
    let (code, out, err) = told(&desk.quick(&[&compare[..], &["--fail-below", "1000"]].concat()));
    assert_eq!(code, Some(1));
    assert!(
        err.contains("below 1000 of before.json: engine.own in bf16 at "),
        "{err}"
    );
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["comparison"]["measures"].as_array().unwrap().len(), 3);
    assert!(number(&report["comparison"]["measures"][0]["ratio"]) > 0.0);
    let (code, ..) = told(&desk.quick(&[&compare[..], &["--fail-below", "0.0001"]].concat()));
    assert_eq!(code, Some(0));
    let (code, _, err) =
        told(&desk.quick(&[&["--quality"], &compare[1..], &["--fail-below", "0.5"]].concat()));
    assert_eq!(code, Some(2), "nothing to judge by is no success");
    assert!(err.contains("no measure in common"), "{err}");
}

/// Goal: the numbers of `--quality` are those of the vectors. Method: f32 beside itself is perfect, bf16 and int8 are
/// within what docs/performance.md promises and not perfect, so that neither was compared with itself.
#[test]
fn quality_tells_precisions_apart() {
    let desk = Desk::new();
    let (code, out, err) = told(&desk.quick(&["--quality", "--output", "quality.json"]));
    assert_eq!(code, Some(0), "{err}");
    assert!(
        out.starts_with("all-MiniLM-L6-v2: of the ten nearest texts in f32 bf16 finds "),
        "{out}"
    );
    assert!(out.contains("note: auto chooses "), "{out}");
    let report = read(&desk.path("quality.json"));
    let value = |name: &str, precision: &str| number(&measure(&report, name, precision)["median"]);
    assert!((value("quality.cosine_min", "f32") - 1.0).abs() < 1e-6);
    assert_eq!(value("quality.nearest_10", "f32"), 1.0);
    for (precision, least) in [("bf16", 0.9999), ("int8", 0.998)] {
        let (cosine, mean) = (
            value("quality.cosine_min", precision),
            value("quality.cosine_mean", precision),
        );
        assert!(
            least <= cosine && cosine <= mean && mean < 0.999_999_9,
            "{precision} {cosine} {mean}"
        );
        let found = value("quality.nearest_10", precision);
        assert!(0.9 < found && found <= 1.0, "{precision} finds {found}");
        assert!(value("quality.speed", precision) > 10.0 && value("quality.load", precision) > 1.0);
    }
    assert!(value("quality.cosine_min", "int8") < value("quality.cosine_min", "bf16"));
}

#[test]
fn what_cannot_be_measured_is_refused_before_anything_is_measured() {
    let desk = Desk::new();
    desk.write("empty", "\n  \n");
    desk.write("few", "one\ntwo\n");
    desk.write(
        "wrong.json",
        r#"{"format": "embeddings-bench-1", "measures": [{"name": "x", "precision": 7}]}"#,
    );
    desk.write("config.json", "{}");
    for (arguments, code, words) in [
        (
            &["--model", "none"][..],
            1,
            "none is no folder; `embeddings model list`",
        ),
        (&["--model", "."], 1, "modules.json is missing"),
        (
            &["--precision", "f31"],
            2,
            "--precision: precision is \"f31\"; must be",
        ),
        (&["--seconds", "0"], 2, "--seconds is 0, must be"),
        (&["--seconds", "NaN"], 2, "--seconds is NaN, must be"),
        (&["--threads", "0"], 2, "--threads is 0, must be 1 to"),
        (&["--texts", "empty"], 2, "--texts empty holds no text"),
        (&["--texts", "absent"], 2, "--texts absent cannot be opened"),
        (
            &["--texts", "few", "--quality"],
            2,
            "few holds 2 distinct texts, --quality needs at least 11",
        ),
        (&["--compare", "absent"], 2, "--compare absent cannot be read"),
        (
            &["--compare", "wrong.json"],
            2,
            "wrong.json: measures[0].precision: invalid type",
        ),
        (
            &["--compare", "config.json"],
            2,
            "config.json: format is \"\", must be",
        ),
        (&["--fail-below", "0.9"], 2, "--compare <FILE>"),
        (
            &["--fail-below=-1", "--compare", "absent"],
            2,
            "--fail-below is -1, must be",
        ),
        (
            &["--output", "absent/x.json"],
            74,
            "--output absent/x.json cannot be written",
        ),
        (&["--output", "."], 74, "--output . is a directory"),
        (&["--set", "max_queue=no"], 78, "max_queue"),
    ] {
        let (found, out, err) = told(&desk.bench(arguments));
        assert_eq!(found, Some(code), "{arguments:?}: {err}");
        assert!(err.contains(words), "{arguments:?}: {err}");
        assert!(out.is_empty(), "{arguments:?}: {out}");
    }
    let (code, _, err) = told(&desk.quick(&["--broker"]));
    assert_eq!(code, Some(69), "{err}");
    assert!(
        err.contains("is not in the configuration, so no service knows it"),
        "{err}"
    );
}
