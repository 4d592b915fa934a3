//! `embeddings submit`: lines of files or stdin through the broker, in the order they stand in.
//!
//! ```text
//!   lines, kept (thread) --batches--> flight, pace (decide) --pieces--> output (thread) --> target
//!                                       ^ drive: broker, clock, signals
//! ```
//! Memory is bounded by the read-ahead, by the jobs of the flight and by the pieces that wait to be written,
//! whatever the number and size of the files. What is lost on the way is sent again until nothing got on for
//! `--timeout`; what ends is told by exit code, and a later run can go on from what is written.

mod board;
mod drive;
mod flight;
mod kept;
mod lines;
mod mend;
mod output;
mod pace;
mod search;
mod target;

use crate::args::{LaneArg, SubmitArgs};
use crate::clock::Clock;
use crate::config::{self, BrokerConfig, EXIT_CONFIG};
use crate::job::Lane;
use anyhow::Context;
use board::Board;
use drive::{Drive, Ended, Stop};
use flight::{Flight, Wording};
use kept::{Kept, Seam, Sieve, Want};
use lines::{Batch, Line, Read};
use mend::Mend;
use output::{Output, Writer};
use search::{Search, cosine};
use signal_hook::consts::signal::SIGINT;
use std::io::{self, Seek, SeekFrom};
use std::process::ExitCode;
use std::time::Duration;
use target::{Target, Unusable};
use tokio::sync::mpsc;

/// Some inputs were not embedded.
const EXIT_SOME_FAILED: u8 = 1;
/// The command line makes no sense, as clap's own errors; or not with this output and this input.
const EXIT_USAGE: u8 = 2;
/// `EX_UNAVAILABLE` of sysexits.h: no broker, or no service behind it.
const EXIT_UNAVAILABLE: u8 = 69;
/// `EX_IOERR` of sysexits.h: the output cannot be written.
const EXIT_OUTPUT: u8 = 74;
/// What a shell shows for a program that SIGPIPE has ended: its reader has gone.
const EXIT_READER_GONE: u8 = 128 + 13;
/// Bounds of `--jobs` and `--job-inputs`; the service's own bound on inputs is usually lower.
const COUNT_MAX: usize = 65_536;
/// Lines in a streamed job: half a slice of the service, so that several are under way and none is moved.
const JOB_INPUTS_BULK: usize = 256;
/// Lines in a job that is answered whole: one batch of the service.
const JOB_INPUTS_INTERACTIVE: usize = 32;
/// After a signal, writing what is finished may take so long.
const FLUSH_MAX: Duration = Duration::from_secs(5);
/// Vectors of one text from one model are at least so near to each other.
const SAME_COSINE_MIN: f32 = 0.9999;

/// Runs the command.
pub fn run(args: &SubmitArgs) -> anyhow::Result<ExitCode> {
    for (flag, value) in [("--job-inputs", args.job_inputs), ("--jobs", Some(args.jobs))] {
        if let Some(value) = value
            && !(1..=COUNT_MAX).contains(&value)
        {
            tell!("error: {flag} is {value}, must be 1 to {COUNT_MAX}");
            return Ok(ExitCode::from(EXIT_USAGE));
        }
    }
    if args.timeout == 0 {
        tell!("error: --timeout is 0, must be at least 1 second");
        return Ok(ExitCode::from(EXIT_USAGE));
    }
    let inputs = super::inputs(&args.config);
    let config = match config::load(&inputs) {
        Ok(loaded) => loaded.config,
        Err(errors) => {
            tell!("{errors}");
            return Ok(ExitCode::from(EXIT_CONFIG));
        }
    };
    let target = match Target::open(args) {
        Ok(target) => target,
        Err(Unusable(code, problem)) => {
            tell!("error: {problem}");
            return Ok(ExitCode::from(code));
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    let code = runtime.block_on(submit(args, &config.broker, &target));
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(ExitCode::from(code))
}

/// Why the command ends before its input does.
#[derive(Debug)]
enum End {
    Stop(Stop),
    Output(io::Error),
    /// The queries of `--search` have no vectors, which was told.
    NoQueries,
}

impl From<Stop> for End {
    fn from(stop: Stop) -> End {
        End::Stop(stop)
    }
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> End {
        End::Output(error)
    }
}

async fn submit(args: &SubmitArgs, broker: &BrokerConfig, target: &Target) -> u8 {
    let clock = Clock::start();
    let board = Board::new(args, clock);
    let lane = match args.lane {
        LaneArg::Interactive => Lane::Interactive,
        LaneArg::Bulk => Lane::Bulk,
    };
    let patience = Duration::from_secs(args.timeout);
    let mut run = Run {
        args,
        target,
        wording: Wording {
            run: format!("submit-{:016x}", rand::random::<u64>()),
            model: args.model.clone(),
            input_type: None,
            stream: lane == Lane::Bulk,
        },
        patience,
        kept: Seam::default(),
    };
    let end = match Drive::connect(broker, lane, patience, board.clone(), clock).await {
        Ok(mut drive) => {
            let end = run.all(&mut drive, board.clone()).await;
            drive.close().await;
            end
        }
        Err(stop) => Err(stop.into()),
    };
    board.clear();
    match end {
        Ok(output) => {
            tell!("{}", output.summary(run.kept.kept));
            u8::from(output.counts.failed > 0) * EXIT_SOME_FAILED
        }
        Err(end) => run.told(&end),
    }
}

/// One run of the command.
struct Run<'a> {
    args: &'a SubmitArgs,
    target: &'a Target,
    wording: Wording,
    patience: Duration,
    /// What was there before.
    kept: Seam,
}

impl Run<'_> {
    async fn all(&mut self, drive: &mut Drive, board: Board) -> Result<Output, End> {
        let mut output = Output::new(self.target.writer()?, board.clone());
        if !self.args.search.is_empty() {
            output.search_for(self.queries(drive, &board).await?);
            self.wording.input_type = Some("document");
        }
        let mut sieve = None;
        if let Target::Regular { file, path } = self.target {
            if self.args.resume {
                sieve = Some(Sieve::new(Kept::open(path)?, Want::Behind));
            } else {
                file.set_len(0)?;
            }
        }
        let mut output = self.pass(drive, output, sieve, &board).await?;
        output.finish()?;
        if self.kept.gaps > 0 {
            output = self.mend(drive, output, &board).await?;
        }
        // From here on not even a loss of power costs a record.
        self.target.make_durable(|warning| board.say(warning))?;
        Ok(output)
    }

    /// Brings lines of the input to the output.
    async fn pass(
        &mut self,
        drive: &mut Drive,
        output: Output,
        sieve: Option<Sieve>,
        board: &Board,
    ) -> Result<Output, End> {
        let mut input = lines::read(self.args.files.clone(), self.job_inputs(), sieve);
        let mut flight = Flight::new(self.wording.clone(), self.args.jobs, self.patience);
        let writer = output.run();
        let stop = loop {
            match drive.run(&mut flight, &mut input, &writer.pieces).await {
                Ok(Ended::Input) => break None,
                Ok(Ended::Seam(seam)) => match self.at_seam(drive, *seam, board).await {
                    Ok(()) => {}
                    Err(end) => break Some(end),
                },
                Err(stop) => break Some(stop.into()),
            }
        };
        let written = written(drive, writer, stop.is_some()).await?;
        match (stop, written) {
            // Why writing failed says more than that it did.
            (_, Some((_, Err(error)))) => Err(End::Output(error)),
            (Some(end), _) => Err(end),
            (None, Some((output, Ok(())))) => Ok(output),
            (None, None) => Err(End::Output(io::ErrorKind::TimedOut.into())),
        }
    }

    /// What is in the output fits to the input: cuts off what a kill has left, and goes on behind it.
    async fn at_seam(&mut self, drive: &mut Drive, seam: Seam, board: &Board) -> Result<(), End> {
        let Target::Regular { file, path } = self.target else {
            unreachable!("only a regular file is resumed")
        };
        if seam.more || seam.gaps > 0 {
            self.compare(drive, &seam, board).await?;
        }
        if seam.torn {
            let shown = path.display();
            board.say(&format!(
                "{shown}: half a record at the end is cut off and made again"
            ));
            file.set_len(seam.end)?;
        }
        let mut file = file;
        file.seek(SeekFrom::Start(seam.end))?;
        board.skipped();
        self.kept = seam;
        Ok(())
    }

    /// Embeds the first and the last text of the output once more: does the model still make the same vectors?
    async fn compare(&self, drive: &mut Drive, seam: &Seam, board: &Board) -> Result<(), End> {
        for (number, (text, before)) in seam.samples.iter().enumerate() {
            // Each in a job of its own: two of the longest lines are more than the broker takes in one message.
            let wording = Wording {
                run: format!("{}-check{number}", self.wording.run),
                ..self.wording.clone()
            };
            let mut vectors = alone(drive, wording, self.patience, &[text]).await?;
            let Some(now) = vectors.pop() else { continue };
            match now {
                Ok(now) if now.len() == before.len() && cosine(before, &now) >= SAME_COSINE_MIN => {}
                Ok(now) => {
                    return Err(End::Stop(Stop::Refused(format!(
                        "the model makes other vectors than those in the output ({} numbers there, {} now, cosine \
                         {:.4}): nothing is added; --model chooses another, --force begins anew",
                        before.len(),
                        now.len(),
                        cosine(before, &now),
                    ))));
                }
                Err(cause) => board.say(&format!(
                    "warning: cannot see whether the model is still the same: {cause} ({} bytes)",
                    text.len()
                )),
            }
        }
        Ok(())
    }

    /// Tries once more what had failed in an earlier run, and puts it where it belongs.
    async fn mend(&mut self, drive: &mut Drive, mut output: Output, board: &Board) -> Result<Output, End> {
        let gaps = self.kept.gaps;
        let Target::Regular { path, .. } = self.target else {
            unreachable!("only a regular file is resumed")
        };
        let files = &self.args.files;
        if files.is_empty() || files.iter().any(|file| file.as_os_str() == "-") {
            board.say(&format!(
                "{gaps} lines that had failed stay without a record: stdin cannot be read a second time"
            ));
            output.counts.failed += gaps;
            return Ok(output);
        }
        board.say(&format!("{gaps} lines that had failed are tried again"));
        output.mend(Mend::begin(path)?);
        self.wording.run.push_str("-again");
        let sieve = Sieve::new(Kept::open(path)?, Want::Gaps(self.kept.next));
        let mut output = self.pass(drive, output, Some(sieve), board).await?;
        output.finish()?;
        Ok(output)
    }

    /// Embeds the queries, all in one job.
    async fn queries(&self, drive: &mut Drive, board: &Board) -> Result<Vec<Search>, End> {
        let wording = Wording {
            run: format!("{}-query", self.wording.run),
            input_type: Some("query"),
            ..self.wording.clone()
        };
        let texts: Vec<&str> = self.args.search.iter().map(String::as_str).collect();
        let mut searches = Vec::new();
        for (text, vector) in texts
            .iter()
            .zip(alone(drive, wording, self.patience, &texts).await?)
        {
            match vector {
                Ok(vector) => searches.push(Search::new((*text).to_owned(), &vector, self.args.top)),
                Err(cause) => {
                    board.say(&format!("--search: {cause}"));
                    return Err(End::NoQueries);
                }
            }
        }
        Ok(searches)
    }

    fn job_inputs(&self) -> usize {
        self.args.job_inputs.unwrap_or(match self.args.lane {
            LaneArg::Bulk => JOB_INPUTS_BULK,
            LaneArg::Interactive => JOB_INPUTS_INTERACTIVE,
        })
    }

    /// Says why the command ends early, and how to go on. Gives the exit code.
    fn told(&self, end: &End) -> u8 {
        let go_on = self.target.how_to_go_on();
        match end {
            End::NoQueries => EXIT_SOME_FAILED,
            End::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => EXIT_READER_GONE,
            End::Output(error) => {
                tell!("error: the output cannot be written: {error}");
                if let Target::Regular { .. } = self.target {
                    tell!("{go_on}");
                }
                EXIT_OUTPUT
            }
            End::Stop(Stop::Output) => unreachable!("the writer has said why it ended"),
            End::Stop(Stop::Unavailable(cause)) => {
                tell!("error: {cause}\n{go_on}");
                EXIT_UNAVAILABLE
            }
            End::Stop(Stop::Refused(why)) => {
                tell!("error: {why}");
                EXIT_USAGE
            }
            End::Stop(Stop::Signal(signal)) => {
                let name = if *signal == SIGINT { "SIGINT" } else { "SIGTERM" };
                tell!("ended by {name}\n{go_on}");
                u8::try_from(128 + signal).unwrap_or(EXIT_SOME_FAILED)
            }
        }
    }
}

/// Embeds a few texts in one job, each to its vector or to why it has none.
async fn alone(
    drive: &mut Drive,
    wording: Wording,
    patience: Duration,
    texts: &[&str],
) -> Result<Vec<Result<Vec<f32>, String>>, Stop> {
    let line = |(index, text): (usize, &&str)| Line {
        index: index as u64,
        text: (*text).to_owned(),
        ..Line::default()
    };
    let batch = Batch {
        lines: texts.iter().enumerate().map(line).collect(),
        ..Batch::default()
    };
    let (sender, mut input) = mpsc::channel(1);
    sender
        .try_send(Read::Batch(batch))
        .expect("there is room for one");
    drop(sender);
    // A piece holds one line at least.
    let (pieces, mut answered) = mpsc::channel(texts.len() + 1);
    let mut flight = Flight::new(wording, 1, patience);
    drive.run(&mut flight, &mut input, &pieces).await?;
    let mut vectors = Vec::new();
    while let Ok(piece) = answered.try_recv() {
        for (_, answer) in piece.lines {
            vectors.push(
                answer
                    .map(|(vector, _)| vector)
                    .map_err(|cause| cause.to_string()),
            );
        }
    }
    Ok(vectors)
}

/// Waits until the writer has written what it has. `None` if that takes too long where the command is to end.
async fn written(
    drive: &mut Drive,
    writer: Writer,
    ending: bool,
) -> Result<Option<(Output, io::Result<()>)>, Stop> {
    let ended = tokio::task::spawn_blocking(move || writer.end());
    let ended = async { ended.await.expect("a writer does not panic") };
    if ending {
        return Ok(tokio::time::timeout(FLUSH_MAX, ended).await.ok());
    }
    drive.unless_signalled(ended).await.map(Some)
}
