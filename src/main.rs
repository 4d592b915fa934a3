//! Parse the command line, run the command, turn its result into an exit code.

use clap::Parser;
use embeddings::args::{Cli, Command};
use embeddings::config::{ConfigErrors, EXIT_CONFIG};
use embeddings::{app, cli, telemetry};
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Stack of every thread whose size is not said elsewhere, also of those that libraries start. The headers of
/// one message, at most a frame of 128 KiB, can hold 18 000 tables one inside the other, and lapin reads them
/// by recursion: with the usual 2 MiB one such message would end every worker that it meets. Only touched
/// pages cost memory.
const STACK_BYTES: &str = "67108864";

fn main() -> ExitCode {
    // SAFETY: this is the first statement of the process; no other thread exists that could read the
    // environment meanwhile.
    unsafe { std::env::set_var("RUST_MIN_STACK", STACK_BYTES) };
    telemetry::dying::abort_on_panic();
    let command = Cli::parse().command;
    let json = command.is_json();
    match run(command) {
        Ok(code) => code,
        Err(error) => report(&error, json),
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Embed(args) => cli::embed::run(&args),
        Command::Model(command) => cli::model::run(&command),
        Command::Config(args) => cli::config::run(&args),
        Command::Status(args) => cli::status::run(&args),
        Command::Top(args) => cli::top::run(&args),
        Command::Check(args) => cli::check::run(&args),
        Command::Serve(args) => Ok(app::serve(&cli::inputs(&args.config))),
        Command::Submit(args) => cli::submit::run(&args),
        Command::Dead(command) => cli::dead::run(&command),
        Command::Bench(args) => cli::bench::run(&args),
        #[cfg(target_os = "linux")]
        Command::Monitor(args) => cli::monitor::run(&args),
        #[cfg(not(target_os = "linux"))]
        Command::Monitor(_) => {
            anyhow::bail!("the monitor needs Linux: it holds processes by their descriptors")
        }
        Command::Postmortem => cli::postmortem::run(),
        Command::Alarm { unit } => cli::alarm::run(&unit),
    }
}

/// Says why the command failed. A bad configuration has a status of its own, so that systemd
/// does not restart on it; everything else is 1 (usage errors are clap's, and 2).
fn report(error: &anyhow::Error, json: bool) -> ExitCode {
    match error.downcast_ref::<ConfigErrors>() {
        Some(errors) => {
            let all: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
            cli::failed(json, &all, EXIT_CONFIG)
        }
        None => cli::failed(json, &[format!("{error:#}")], 1),
    }
}
