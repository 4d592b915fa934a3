//! `embeddings status`: asks the service itself how it is, not its process id.
//!
//! The answer comes from the loop that does the work, through the status socket. Where none comes, what
//! systemd and the kernel know, the records of deaths and the configuration say why, and what to do next.

mod hints;
mod text;
mod unit;

pub(super) use text::{moment, span};
pub(super) use unit::span_ms;

use super::{Paint, print};
use crate::args::StatusArgs;
use crate::clock::Clock;
use crate::config::{self, ConfigErrors, Inputs, Limits};
use crate::control::{self, Asked, SOCKET};
use crate::report::{Report, State};
use crate::telemetry::history;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Who does not answer in this time hangs: a loop in health answers within milliseconds.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// Exit status of an init script that cannot know (Linux Standard Base, "Init Script Actions").
const EXIT_UNKNOWN: u8 = 4;

/// Runs the command: 0 running, 1 degraded, 3 stopped; 4 where it cannot be known.
///
/// # Errors
/// Stdout that cannot be written.
pub fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let inputs = super::inputs(&args.config);
    let report = match look(&inputs) {
        Ok(report) => report,
        Err(why) => {
            let known = json!({"state": "unknown", "name": inputs.unit(), "line": why});
            return Ok(super::failed_with(args.json, &[why], EXIT_UNKNOWN, known));
        }
    };
    let text = if args.json {
        format!("{}\n", serde_json::to_string_pretty(&report)?)
    } else {
        text::people(&report, Paint::stdout())
    };
    print(&text)?;
    Ok(ExitCode::from(match report.state {
        State::Running => 0,
        State::Degraded => 1,
        State::Stopped => 3,
    }))
}

/// What only this machine can say of a service that does not answer for itself.
#[derive(Debug, Default)]
struct Around {
    /// The socket that was asked last.
    socket: PathBuf,
    /// The limits as configured, where the configuration can be read.
    limits: Option<Limits>,
    /// What is wrong with the configuration.
    wrong: Vec<String>,
    /// What the kernel says that the process does, in a word.
    process: Option<String>,
}

fn look(inputs: &Inputs) -> Result<Report, String> {
    let mut socket = PathBuf::new();
    let mut asked = Asked::Nobody;
    for runtime in runtimes(inputs) {
        socket = runtime.join(SOCKET);
        asked = control::ask(&socket, PATIENCE).map_err(|error| format!("{}: {error}", socket.display()))?;
        if !matches!(asked, Asked::Nobody) {
            break;
        }
    }
    let (pid, activity, line) = match asked {
        Asked::Answer(answer) => {
            let mut report: Report = serde_json::from_slice(&answer)
                .map_err(|error| format!("{}: no report: {error}", socket.display()))?;
            report.hints = hints::of_answer(&report);
            hints::name_instance(&mut report.hints, inputs.instance.as_deref());
            return Ok(report);
        }
        Asked::Unanswered { pid } => (pid, "hung", "takes questions and does not answer: its loop hangs"),
        Asked::Silent { pid } => (pid, "hung", "not a word in 3 s: nothing in the process runs"),
        Asked::Nobody => (None, "stopped", "no process answers"),
    };
    let system = socket.starts_with(inputs.unit_runtime());
    let unit = system.then(|| unit::ask(&inputs.unit())).flatten();
    // By systemd's account there may be a process that could not open its socket.
    let there = pid.is_some()
        || activity == "hung"
        || unit.as_ref().is_some_and(|unit| unit.active_state == "active");
    let (limits, wrong) = match config::load(inputs) {
        Ok(loaded) => (Some(loaded.config.limits), Vec::new()),
        Err(ConfigErrors(errors)) => (None, errors.iter().map(ToString::to_string).collect()),
    };
    let around = Around {
        process: pid.and_then(process),
        socket,
        limits,
        wrong,
    };
    let state_dir = match unit {
        Some(_) => inputs.unit_state(),
        None => config::directories(inputs).state,
    };
    let mut report = Report {
        name: inputs.unit(),
        state: if there { State::Degraded } else { State::Stopped },
        activity: if there && activity == "stopped" {
            "hung"
        } else {
            activity
        }
        .into(),
        line: line.into(),
        pid: pid.or_else(|| unit.as_ref().and_then(|unit| unit.main_pid)),
        systemd: unit,
        at_unix_ms: Clock::unix_ms(),
        ..Report::default()
    };
    match history::kills(&state_dir, history::SHOWN_MAX) {
        Ok(kills) => report.kills = kills,
        Err(why) => report.kills_unknown = Some(why),
    }
    report.hints = hints::of_silence(&report, &around);
    hints::name_instance(&mut report.hints, inputs.instance.as_deref());
    Ok(report)
}

/// Where a service of this user may listen, and where the machine's does.
fn runtimes(inputs: &Inputs) -> Vec<PathBuf> {
    let own = config::directories(inputs).runtime;
    let told = inputs.environment.contains_key("RUNTIME_DIRECTORY");
    let system = inputs.unit_runtime();
    let system = (!told && own != system).then_some(system);
    [own].into_iter().chain(system).collect()
}

/// The state of a process as `ps` shows it: `T` is stopped by a signal, `D` waits in the kernel.
fn process(pid: u32) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let state = status.lines().find_map(|line| line.strip_prefix("State:"))?;
    Some(state.trim().to_owned())
}
