//! `embeddings`: embedding jobs from RabbitMQ in, vectors out, and no zombie in between.
//!
//! One idea carries the house: **logic decides, the shell does.** Events and the present moment go into
//! [`logic`], actions come out; only the shell touches broker, device, clock and systemd.
//!
//! | floor | module | its one responsibility |
//! |---|---|---|
//! | 5 | `main` | parse [`args`], run a command, turn the result into an exit code |
//! | 4 | [`app`] | build all parts from [`config`], start them, turn the loop, drain in reverse order |
//! | 3 | [`broker`] | connect, consume and decode, encode and publish with confirms; alone names lapin |
//! | 3 | [`engine`] | text in, vectors out; alone names Candle |
//! | 3 | [`watchdog`] | the only writer of the notify socket, the thread that kills, and the monitor's socket and hands |
//! | 3 | [`telemetry`] | journal and terminal logging, the black box, the records of deaths |
//! | 3 | [`http`] | health, metrics, status and OpenAI's route; alone names axum and hyper |
//! | 3 | [`traces`] | spans of jobs that ended, to a collector; alone names OpenTelemetry's protocol |
//! | 3 | [`control`] | the status socket: whoever asks gets one document |
//! | 3 | [`cli`] | one small file per command |
//! | 2 | [`logic`] | every decision; no IO, no `async`, no clock read |
//! | 1 | [`config`], [`job`], [`report`], [`clock`], [`args`] | plain data: settings, the wire, what is said of the service, time, the command line |
//!
//! Arrows run only downward, and parts on one floor do not know each other. `tests/tidy.rs` keeps it so.

/// A line on stderr. `eprintln!` would panic, and so end the process, where nobody reads it any more.
macro_rules! tell {
    ($($line:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($line)*);
    }};
}

pub mod app;
pub mod args;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod engine;
pub mod http;
pub mod job;
pub mod logic;
pub mod report;
pub mod telemetry;
pub mod traces;
pub mod watchdog;
