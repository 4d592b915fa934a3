//! `embeddings submit`: lines of files or stdin through the broker, in the order they stand in.
//!
//! ```text
//!   lines (thread) --bounded--> jobs under way (at most --jobs) --> finished, sorted --> output or search
//! ```
//! Memory is bounded by the read-ahead, the jobs under way and the finished jobs that wait for an earlier
//! one. Retries are for what says that it may be retried; everything else is told at the end by exit code.

mod job;
mod lines;
mod output;
mod search;

use crate::args::{LaneArg, SubmitArgs};
use crate::broker::client::Client;
use crate::clock::Clock;
use crate::config::{self, BrokerConfig, EXIT_CONFIG, Inputs};
use crate::job::Lane;
use anyhow::Context;
use futures_util::stream::{FuturesUnordered, StreamExt};
use job::{Done, Fatal, Jobs};
use lines::{Batch, Line};
use output::{Output, Sink};
use search::Search;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

/// Some inputs were not embedded.
const EXIT_SOME_FAILED: u8 = 1;
/// The command line makes no sense, as clap's own errors.
const EXIT_USAGE: u8 = 2;
/// `EX_UNAVAILABLE` of sysexits.h: no broker, or no service behind it.
const EXIT_UNAVAILABLE: u8 = 69;
/// Jobs that may be unfinished or wait for an earlier one, per job under way.
const WINDOW: usize = 4;
/// Bounds of `--jobs` and `--job-inputs`; the service's own bound on inputs is usually lower.
const COUNT_MAX: usize = 65_536;

/// Runs the command.
pub fn run(args: &SubmitArgs) -> anyhow::Result<ExitCode> {
    for (flag, value) in [("--job-inputs", args.job_inputs), ("--jobs", args.jobs)] {
        if !(1..=COUNT_MAX).contains(&value) {
            eprintln!("error: {flag} is {value}, must be 1 to {COUNT_MAX}");
            return Ok(ExitCode::from(EXIT_USAGE));
        }
    }
    if args.timeout == 0 {
        eprintln!("error: --timeout is 0, must be at least 1 second");
        return Ok(ExitCode::from(EXIT_USAGE));
    }
    let inputs = Inputs::from_process(args.config.config.clone(), args.config.set.clone());
    let config = match config::load(&inputs) {
        Ok(loaded) => loaded.config,
        Err(errors) => {
            eprintln!("{errors}");
            return Ok(ExitCode::from(EXIT_CONFIG));
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    let end = runtime.block_on(submit(args, &config.broker));
    runtime.shutdown_timeout(Duration::from_secs(1));
    match end {
        Ok(code) => Ok(ExitCode::from(code)),
        Err(End::Unavailable(Fatal(cause))) => {
            eprintln!("error: {cause}");
            Ok(ExitCode::from(EXIT_UNAVAILABLE))
        }
        Err(End::Other(error)) => Err(error),
    }
}

/// Why the command ends before its input does.
enum End {
    Unavailable(Fatal),
    Other(anyhow::Error),
}

impl From<Fatal> for End {
    fn from(fatal: Fatal) -> End {
        End::Unavailable(fatal)
    }
}

impl From<anyhow::Error> for End {
    fn from(error: anyhow::Error) -> End {
        End::Other(error)
    }
}

async fn submit(args: &SubmitArgs, broker: &BrokerConfig) -> Result<u8, End> {
    let clock = Clock::start();
    let sink = Sink::open(args.output.as_deref())?;
    let lane = match args.lane {
        LaneArg::Interactive => Lane::Interactive,
        LaneArg::Bulk => Lane::Bulk,
    };
    let client = Client::connect(broker, lane, "embeddings submit")
        .await
        .map_err(|error| Fatal(format!("cannot reach the broker at {}: {error}", broker.shown())))?;
    match client
        .consumers()
        .await
        .map_err(|error| Fatal(error.to_string()))?
    {
        Some(0) => eprintln!(
            "no service takes jobs from {} now; waiting up to {} s",
            client.queue(),
            args.timeout
        ),
        Some(_) => {}
        None => {
            let queue = client.queue();
            return Err(Fatal(format!(
                "queue {queue} does not exist: no service has run with this broker and prefix"
            ))
            .into());
        }
    }
    let jobs = Jobs::new(&client, args, &clock);
    let mut output = Output::new(sink, args, clock);
    if !args.search.is_empty() {
        let Some(queries) = queries(&jobs, args).await? else {
            return Ok(EXIT_SOME_FAILED);
        };
        output.search_for(queries);
    }
    stream(args, &jobs, &mut output).await?;
    let failed = output.finish()?;
    client.close().await;
    Ok(if failed > 0 { EXIT_SOME_FAILED } else { 0 })
}

/// Embeds the queries, all in one job. `None` if that failed, which has been said then.
async fn queries(jobs: &Jobs<'_>, args: &SubmitArgs) -> Result<Option<Vec<Search>>, Fatal> {
    let lines = args.search.iter().zip(0u64..).map(|(query, index)| Line {
        file: "--search".into(),
        number: index + 1,
        index,
        text: query.clone(),
    });
    let batch = Batch {
        lines: lines.collect(),
        ..Batch::default()
    };
    let done = jobs.embed(batch, Some("query")).await?;
    match done.result {
        Ok(answer) => Ok(Some(
            done.batch
                .lines
                .into_iter()
                .zip(answer.vectors)
                .map(|(line, vector)| Search::new(line.text, &vector, args.top))
                .collect(),
        )),
        Err(cause) => {
            eprintln!("--search: {cause}");
            Ok(None)
        }
    }
}

/// Keeps jobs under way until the input has ended and every job is done.
async fn stream(args: &SubmitArgs, jobs: &Jobs<'_>, output: &mut Output) -> Result<(), End> {
    let input_type = (!args.search.is_empty()).then_some("document");
    let mut batches = lines::read(args.files.clone(), args.job_inputs);
    let mut input_open = true;
    let mut under_way = FuturesUnordered::new();
    let mut finished: BTreeMap<u64, Done> = BTreeMap::new();
    let (mut begun, mut written) = (0u64, 0u64);
    loop {
        let unwritten = under_way.len() + finished.len();
        let room = under_way.len() < args.jobs && unwritten < args.jobs * WINDOW;
        tokio::select! {
            batch = batches.recv(), if input_open && room => match batch {
                Some(batch) => {
                    let number = begun;
                    under_way.push(async move { (number, jobs.embed(batch, input_type).await) });
                    begun += 1;
                }
                None => input_open = false,
            },
            Some((number, done)) = under_way.next(), if !under_way.is_empty() => {
                finished.insert(number, done?);
                while let Some(done) = finished.remove(&written) {
                    output.write(done)?;
                    written += 1;
                }
                output.flush()?;
            }
            else => return Ok(()),
        }
    }
}
