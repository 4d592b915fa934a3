//! `embeddings bench`: how fast a model is on this machine, alone and through the broker, and what a precision costs.
//!
//! ```text
//!   plan (refuse) --> rounds: engine, broker, engine, broker, … --> tape --> report --> show, JSON, compare
//!                     quality: a model for each precision, one after the other ^
//! ```
//! Machines are noisy. So everything is measured in rounds, in each of which all measures take turns, and what is
//! told is the median with the least and the most; an earlier run differs only where the rounds do not overlap.

mod broker;
mod compare;
mod engine;
mod machine;
mod nearest;
mod plan;
mod quality;
mod report;
mod show;
mod stats;
mod texts;

use super::status::moment;
use super::{Paint, configuration, count, print};
use crate::args::BenchArgs;
use crate::clock::Clock;
use crate::config::{BrokerConfig, Precision};
use crate::engine::device;
use anyhow::Context;
use broker::Caller;
use compare::compare;
use engine::Rig;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use plan::{Plan, Wire};
use quality::Trial;
use report::{FORMAT, Report, Settings, Subject, Tape};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// Rounds of everything but quality.
const ROUNDS: usize = 5;
/// The command line makes no sense, or not with these files.
const EXIT_USAGE: u8 = 2;
/// `EX_UNAVAILABLE` of sysexits.h: no broker, or no service behind it.
const EXIT_UNAVAILABLE: u8 = 69;
/// `EX_IOERR` of sysexits.h: the output cannot be written.
const EXIT_OUTPUT: u8 = 74;
/// Processes a core that want to run before a run begins: above this they are told of.
const BUSY: f64 = 0.5;
/// Part of `--seconds` that warms each engine up before the first round.
const WARM_UP: f64 = 0.1;

/// Why the command ends without an answer, and its exit code.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
struct Ended {
    code: u8,
    why: String,
}

impl Ended {
    fn usage(why: String) -> Ended {
        Ended {
            code: EXIT_USAGE,
            why,
        }
    }

    fn failed(why: String) -> Ended {
        Ended { code: 1, why }
    }

    fn unavailable(why: String) -> Ended {
        Ended {
            code: EXIT_UNAVAILABLE,
            why,
        }
    }

    fn output(why: String) -> Ended {
        Ended {
            code: EXIT_OUTPUT,
            why,
        }
    }
}

/// Runs the command: 0 measured, 1 failed or below `--fail-below`, 2 wrong use, 69 nobody behind the broker, 74 for
/// the output.
///
/// # Errors
/// A bad configuration, or a model that does not work.
pub fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    match bench(args) {
        Ok(code) => Ok(code),
        Err(error) => match error.downcast_ref::<Ended>() {
            Some(Ended { code, why }) => Ok(super::failed(args.json, std::slice::from_ref(why), *code)),
            None => Err(error),
        },
    }
}

fn bench(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    let config = configuration(&args.config)?.config;
    let plan = plan::make(args, &config)?;
    let board = Board::new();
    let mut report = blank(&plan, args);
    let mut tape = Tape::default();
    if plan.parts.engine || plan.parts.broker {
        speed(
            &plan,
            &config.broker,
            args.seconds,
            &mut report,
            &mut tape,
            &board,
        )?;
    }
    if plan.parts.quality {
        trial(&plan, &mut report, &mut tape, &board)?;
    }
    board.clear();
    report.measures = tape.measures();
    tell(args, &plan, &report)
}

/// The report without what is measured.
fn blank(plan: &Plan, args: &BenchArgs) -> Report {
    let at_unix_ms = Clock::unix_ms();
    let texts = &plan.texts;
    let machine = machine::look();
    let mut notes: Vec<String> = texts.note.iter().cloned().collect();
    if let Some(load) = machine.load_average
        && load > BUSY * machine.cores as f64
    {
        let cores = count(machine.cores, "core");
        notes.push(format!(
            "the machine was not quiet: a load of {load} on {cores} before this began; other programs are measured too"
        ));
    }
    Report {
        format: FORMAT.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        date: moment(at_unix_ms),
        at_unix_ms,
        machine,
        model: Subject {
            name: plan.target.name.clone(),
            path: plan.target.dir.display().to_string(),
            ..Subject::default()
        },
        settings: Settings {
            threads: plan.threads,
            seconds: args.seconds,
            rounds: ROUNDS,
            batch_tokens: plan.batch_tokens,
            texts: texts.source.clone(),
            texts_count: texts.lines.len(),
            texts_sha256: texts.sha256.clone(),
        },
        measures: Vec::new(),
        notes,
    }
}

/// Notes what a loaded model is.
fn describe(subject: &mut Subject, rig: &Rig) {
    let info = rig.info();
    subject.architecture = info.architecture.clone();
    subject.dimensions = info.dimensions;
    subject.max_tokens = info.max_tokens;
    subject.weights_bytes = info.weights_bytes;
    subject.weights_sha256 = info.weights_sha256.clone();
    subject.device = info.device.name().to_owned();
    let fingerprint = rig.fingerprint();
    if !subject.fingerprints.contains(&fingerprint) {
        subject.fingerprints.push(fingerprint);
    }
}

/// Engine and broker in turns.
fn speed(
    plan: &Plan,
    config: &BrokerConfig,
    seconds: f64,
    report: &mut Report,
    tape: &mut Tape,
    board: &Board,
) -> anyhow::Result<()> {
    // First, since what is missing there should be told at once.
    let mut caller = None;
    if plan.parts.broker {
        board.say("looking for a service behind the broker");
        let found = match &plan.target.wire {
            Wire::Known(name) => Caller::connect(config, name.clone()),
            Wire::Unknown(why) => Err(why.clone()),
        };
        match found {
            Ok(found) => {
                report.model.service_fingerprint = Some(found.fingerprint.clone());
                caller = Some(found);
            }
            Err(why) => without_broker(plan, report, why)?,
        }
    }
    let mut rigs = if plan.parts.engine {
        rigs(plan, report, board)?
    } else {
        Vec::new()
    };
    let span = Duration::from_secs_f64(seconds / ROUNDS as f64);
    let (workloads, single, bulk) = (plan.texts.workloads(), plan.texts.single(), plan.texts.bulk());
    for (_, rig) in &mut rigs {
        rig.pace(&bulk.texts, Duration::from_secs_f64(seconds * WARM_UP))?;
    }
    for round in 1..=ROUNDS {
        // Tokens a second of what goes through the broker too, by fingerprint.
        let mut alone = Vec::new();
        for workload in &workloads {
            for (name, rig) in &mut rigs {
                board.say(&format!(
                    "engine in {name}, {} texts, round {round} of {ROUNDS}",
                    workload.name
                ));
                let pace = rig.pace(&workload.texts, span)?;
                let measure = format!("engine.{}", workload.name);
                tape.add_rate(
                    &measure,
                    name,
                    "tokens/s",
                    pace.tokens_per_second,
                    pace.tokens_per_input,
                );
                if workload.name == bulk.name {
                    alone.push((rig.fingerprint(), pace.tokens_per_second));
                }
            }
        }
        for (name, rig) in &mut rigs {
            board.say(&format!(
                "engine in {name}, one text at a time, round {round} of {ROUNDS}"
            ));
            tails(tape, "engine.single", name, &rig.single(&single.texts, span)?);
        }
        if let Some(mut service) = caller.take() {
            board.say(&format!("through the broker, round {round} of {ROUNDS}"));
            match through(&mut service, &bulk.texts, &single.texts, span, &alone, tape) {
                Ok(()) => caller = Some(service),
                Err(why) => without_broker(plan, report, why)?,
            }
        }
    }
    if let Some(service) = caller {
        service.close();
    }
    Ok(())
}

/// Ends the run where the broker was asked for, else notes that it goes on without.
fn without_broker(plan: &Plan, report: &mut Report, why: String) -> Result<(), Ended> {
    if plan.parts.broker_needed {
        return Err(Ended::unavailable(why));
    }
    report
        .notes
        .push(format!("through the broker nothing is measured: {why}"));
    Ok(())
}

/// A model in each precision, with its name; what `auto` chooses is said, and not measured twice.
fn rigs(plan: &Plan, report: &mut Report, board: &Board) -> anyhow::Result<Vec<(&'static str, Rig)>> {
    let mut all: Vec<(&'static str, Rig)> = Vec::new();
    let target = &plan.target;
    for precision in &plan.precisions {
        board.say(&format!("loading {} in {precision}", target.name));
        let rig = Rig::load(
            &target.dir,
            target.device,
            *precision,
            plan.threads,
            plan.batch_tokens,
        )?;
        let name = rig.info().precision.name();
        if *precision == Precision::Auto {
            report.notes.push(format!("auto chooses {name} on this machine"));
        }
        describe(&mut report.model, &rig);
        if all.iter().all(|(other, _)| *other != name) {
            all.push((name, rig));
        }
    }
    Ok(all)
}

/// One round through the broker.
fn through(
    service: &mut Caller,
    bulk: &[String],
    single: &[String],
    span: Duration,
    alone: &[(String, f64)],
    tape: &mut Tape,
) -> Result<(), String> {
    let done = service.bulk(bulk, span)?;
    let times = service.single(single, span)?;
    let precision = service.precision().to_owned();
    let inputs_per_second = done.inputs as f64 / done.seconds;
    let tokens_per_input = done.tokens as f64 / done.inputs as f64;
    tape.add_rate(
        "broker.bulk",
        &precision,
        "inputs/s",
        inputs_per_second,
        tokens_per_input,
    );
    let same = alone
        .iter()
        .find(|(fingerprint, _)| *fingerprint == service.fingerprint);
    if let Some((_, tokens_per_second)) = same {
        let ratio = done.tokens as f64 / done.seconds / tokens_per_second;
        tape.add("broker.bulk.of_engine", &precision, "ratio", ratio);
    }
    tails(tape, "broker.single", &precision, &times);
    Ok(())
}

/// The middle and the tail of a round's times.
fn tails(tape: &mut Tape, name: &str, precision: &str, times: &[f64]) {
    for (part, value) in [("p50", 0.5), ("p99", 0.99)] {
        if let Some(ms) = stats::percentile(times, value) {
            tape.add(&format!("{name}.{part}"), precision, "ms", ms);
        }
    }
}

/// Vectors of each precision beside those of f32.
fn trial(plan: &Plan, report: &mut Report, tape: &mut Tape, board: &Board) -> anyhow::Result<()> {
    let target = &plan.target;
    let asked = match &plan.qualities[..] {
        // Those that this build has.
        [] => [Precision::Bf16, Precision::F16, Precision::Int8, Precision::Auto]
            .into_iter()
            .filter(|precision| {
                device::Device::choose(target.device, *precision).is_ok_and(|(device, place)| {
                    device::Precision::choose(*precision, device, place.is_some()).is_ok()
                })
            })
            .collect(),
        asked => asked.to_vec(),
    };
    let mut precisions = vec![Precision::F32];
    for precision in asked {
        let mut own = precision;
        if precision == Precision::Auto {
            board.say("what auto chooses");
            let rig = Rig::load(&target.dir, target.device, precision, 1, plan.batch_tokens)?;
            own = rig.info().precision.setting();
            let note = format!("auto chooses {own} on this machine");
            if !report.notes.contains(&note) {
                report.notes.push(note);
            }
            describe(&mut report.model, &rig);
        }
        if !precisions.contains(&own) {
            precisions.push(own);
        }
    }
    let trial = Trial {
        dir: &target.dir,
        device: target.device,
        precisions: &precisions,
        texts: &plan.texts.lines,
        threads: plan.threads,
        batch_tokens: plan.batch_tokens,
    };
    quality::measure(&trial, tape, &mut report.model, &|what| board.say(what))
}

/// Writes what was found, and judges it.
fn tell(args: &BenchArgs, plan: &Plan, report: &Report) -> anyhow::Result<ExitCode> {
    let compared = plan.before.as_ref().map(|(path, before)| {
        let file = path.display().to_string();
        compare(&file, before, report)
    });
    let mut json = serde_json::to_value(report).context("failed to write the report as JSON")?;
    if let Some(compared) = &compared {
        json["comparison"] = serde_json::to_value(compared).context("failed to write the comparison")?;
    }
    let json = format!("{json:#}\n");
    // Whatever can fail comes before the answer, so that who reads JSON gets one object and not two.
    if let Some(path) = &args.output {
        write(path, &json)?;
    }
    let failed = match (&compared, args.fail_below) {
        (Some(compared), Some(below)) => plan::judged(compared, below)?,
        _ => None,
    };
    if args.json {
        print(&json)?;
    } else {
        print(&show::people(report, compared.as_ref(), Paint::stdout()))?;
    }
    Ok(match failed {
        None => ExitCode::SUCCESS,
        Some(why) => {
            tell!("{why}");
            ExitCode::FAILURE
        }
    })
}

fn write(path: &Path, json: &str) -> Result<(), Ended> {
    std::fs::write(path, json)
        .map_err(|error| Ended::output(format!("--output {} cannot be written: {error}", path.display())))
}

/// What is being measured, on stderr where that is a terminal.
struct Board(ProgressBar);

impl Board {
    fn new() -> Board {
        let style = ProgressStyle::with_template("{spinner} {msg}").expect("the template is well-formed");
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style);
        Board(bar)
    }

    fn say(&self, what: &str) {
        // No timer draws in between: a thread that wakes up ten times a second would be measured too.
        self.0.set_message(what.to_owned());
        self.0.tick();
    }

    fn clear(&self) {
        self.0.finish_and_clear();
    }
}
