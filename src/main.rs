//! Parse the command line, run the command, turn its result into an exit code.

use clap::Parser;
use embeddings::args::{Cli, Command};
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Embed(args) => embeddings::cli::embed::run(&args),
        Command::Serve(args) => {
            let flags = args.config;
            Ok(embeddings::app::serve(&embeddings::config::Inputs::from_process(
                flags.config,
                flags.set,
            )))
        }
        Command::Submit(args) => embeddings::cli::submit::run(&args),
        _ => Ok(ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("embeddings: {error:#}");
        ExitCode::FAILURE
    })
}
