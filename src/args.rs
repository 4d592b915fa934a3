//! The command line, defined once: parsing, `--help`, man pages and completions all come from here.

use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// Most threads that compute, as for `engine.threads`.
pub const THREADS_MAX: usize = 1024;

/// Embedding service for RabbitMQ and systemd that never turns into a zombie.
#[derive(Debug, Parser)]
#[command(name = "embeddings", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands of the one binary.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take jobs from RabbitMQ, embed them, reply: the service itself
    Serve(ServeArgs),
    /// Embed files or the lines of stdin through the broker
    Submit(SubmitArgs),
    /// Embed lines of stdin with a model on this machine, without a broker
    Embed(EmbedArgs),
    /// Add, list, check, pull and remove models
    #[command(subcommand)]
    Model(ModelCommand),
    /// Print every setting, its value and where it came from
    Config(ConfigArgs),
    /// Ask the service how it is: ● running (exit 0), ◐ degraded (1), ○ stopped (3)
    Status(StatusArgs),
    /// Watch all workers of this broker by their heartbeats: live on a terminal, else one look
    Top(TopArgs),
    /// Test configuration, broker, permissions, topology, model and device; say what to mend
    Check(CheckArgs),
    /// List, show, requeue and purge dead letters: jobs that could not be answered
    #[command(subcommand)]
    Dead(DeadCommand),
    /// Measure how fast a model is here, alone and through the broker, and what a precision costs
    Bench(BenchArgs),
    /// Listen to the heartbeats of the workers on this machine and end those that fall silent
    Monitor(MonitorArgs),
    /// Write the record of a death; systemd calls it when the service has ended (ExecStopPost=)
    Postmortem,
    /// Raise the alarm and try again later; systemd calls it when it has given up (OnFailure=)
    Alarm {
        /// The unit that has failed
        unit: String,
    },
}

impl Command {
    /// Whether facts are asked for as JSON.
    pub fn is_json(&self) -> bool {
        match self {
            Command::Model(
                ModelCommand::Add { json, .. }
                | ModelCommand::List { json, .. }
                | ModelCommand::Check { json, .. }
                | ModelCommand::Pull { json, .. }
                | ModelCommand::Rm { json, .. },
            ) => *json,
            Command::Config(args) => args.json,
            Command::Status(args) => args.json,
            Command::Top(args) => args.json,
            Command::Check(args) => args.json,
            Command::Dead(DeadCommand::List(args)) => args.json,
            Command::Dead(DeadCommand::Show(args)) => args.json,
            Command::Dead(DeadCommand::Requeue(args)) => args.json,
            Command::Dead(DeadCommand::Purge(args)) => args.json,
            Command::Bench(args) => args.json,
            Command::Serve(_)
            | Command::Submit(_)
            | Command::Embed(_)
            | Command::Monitor(_)
            | Command::Postmortem
            | Command::Alarm { .. } => false,
        }
    }
}

/// Which configuration to use, the same for every command that needs one.
#[derive(Debug, Clone, Default, Args)]
pub struct ConfigFlags {
    /// Speak of embeddings@NAME.service: its configuration (/etc/embeddings/instances/NAME), its state, its socket
    #[arg(long, value_name = "NAME", value_parser = instance)]
    pub instance: Option<String>,
    /// Read this file instead of /etc/embeddings/embeddings.toml and its conf.d
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set one key, dots descend: --set broker.prefix=test (wins over files and environment)
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// `embeddings serve`
#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented on the type")]
    pub config: ConfigFlags,
}

/// The class of service of a submitted job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LaneArg {
    /// Answered soon, or refused at once
    Interactive,
    /// May wait in the broker as long as it takes
    Bulk,
}

/// What `embeddings submit --help` says behind its options.
const SUBMIT_HELP: &str = "\
Output: one JSON object on a line for each line that was embedded, in the order of the input:
  {\"file\":\"notes.txt\",\"line\":7,\"index\":5,\"text\":\"…\",\"embedding\":[…],\"truncated\":false}
  line counts from 1 in its file; index counts all lines with text from 0; truncated tells that the model read
  only the beginning. Empty lines are skipped. A line that fails is told on stderr and has no record.

Exit: 0 all embedded · 1 some lines or files failed · 2 wrong use, or the output does not fit to the input
  69 no broker, no service, or nothing got on for --timeout · 74 the output cannot be written
  78 bad configuration · 130, 143 ended by SIGINT, SIGTERM · 141 the reader of the output has gone
  After 69, 74, 130, 143 and any kill, the same command with --resume goes on.";

/// What `embeddings model pull --help` says behind its options.
const PULL_HELP: &str = "\
Only files that the model needs are fetched, several at once, and checked against the Hub's checksums. A command that
was cut off goes on where it was when it is run again. With a whole commit as @REVISION (40 digits) nothing is asked
for that is there already; a branch or tag is looked up first, and its commit is recorded beside the model.

Environment:
  HF_TOKEN                  opens private and gated models; it is sent to the Hub alone, and never shown
  HF_ENDPOINT               a mirror in place of https://huggingface.co
  HF_HUB_OFFLINE=1          uses only what an earlier pull left in the cache
  HF_HUB_DOWNLOAD_TIMEOUT   seconds of silence after which a connection is given up (30)
  HTTPS_PROXY, ALL_PROXY    a proxy, as usual";

/// `embeddings submit`
#[derive(Debug, Args)]
#[command(after_long_help = SUBMIT_HELP)]
pub struct SubmitArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented on the type")]
    pub config: ConfigFlags,
    /// Files whose lines are embedded; none or `-` reads stdin
    pub files: Vec<PathBuf>,
    /// Model name or alias; the service's default without it
    #[arg(long)]
    pub model: Option<String>,
    /// Class of service
    #[arg(long, value_enum, default_value = "bulk")]
    pub lane: LaneArg,
    /// Lines in one job, fewer if they are long; without it 256 on the lane bulk, 32 on interactive. Bulk jobs of
    /// more than 32 lines are streamed: their vectors come while they are computed
    #[arg(long, value_name = "N")]
    pub job_inputs: Option<usize>,
    /// Jobs on their way at the same time; fewer while the service is overloaded
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub jobs: usize,
    /// How long nothing may get on: no vector and no word of progress for any job. Give up after that. A job may
    /// wait as long as it takes while others get on
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub timeout: u64,
    /// Write JSON Lines here instead of stdout. A file that holds something is refused without --resume or --force
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Go on where an earlier run of the same command ended, however it did: keep what --output holds, check it
    /// against the input and the model, and embed what is missing
    #[arg(long, requires = "output", conflicts_with_all = ["force", "search"])]
    pub resume: bool,
    /// Begin anew and overwrite what --output holds
    #[arg(long)]
    pub force: bool,
    /// Print the lines nearest to this query instead of vectors; may be given several times
    #[arg(long, value_name = "QUERY")]
    pub search: Vec<String>,
    /// Lines to print for each query
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub top: usize,
    /// No progress bar
    #[arg(long, short)]
    pub quiet: bool,
}

/// `embeddings embed`
#[derive(Debug, Args)]
pub struct EmbedArgs {
    /// Folder of the model (sentence-transformers layout)
    #[arg(long, value_name = "DIR")]
    pub model: PathBuf,
    /// Number format of the weights
    #[arg(long, default_value = "f32")]
    pub precision: String,
    /// Threads that compute, 1 to 1024; without it as many as the machine and its cgroup allow
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=THREADS_MAX as u64))]
    pub threads: Option<usize>,
}

/// `embeddings model …`
#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// Copy a model folder into the service's model directory, after checking it
    Add {
        /// Folder of the model (sentence-transformers layout)
        dir: PathBuf,
        /// Name to give it; the folder's name without it
        #[arg(long)]
        name: Option<String>,
        /// Replace a model that is installed under this name
        #[arg(long)]
        replace: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        #[expect(missing_docs, reason = "documented on the type")]
        config: ConfigFlags,
    },
    /// List installed and configured models
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        #[expect(missing_docs, reason = "documented on the type")]
        config: ConfigFlags,
    },
    /// Load a model, embed a sentence, and say what it is
    Check {
        /// Name of an installed model, or a folder
        model: String,
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        #[expect(missing_docs, reason = "documented on the type")]
        config: ConfigFlags,
    },
    /// Fetch a model from the Hugging Face Hub into the service's model directory
    #[command(after_long_help = PULL_HELP)]
    Pull {
        /// ID on the Hub, such as sentence-transformers/all-MiniLM-L6-v2, with @REVISION to pin one
        id: String,
        /// Refuse the model unless model.safetensors has this SHA-256
        #[arg(long, value_name = "HEX")]
        sha256: Option<String>,
        /// Name to give it; the last part of the ID without it
        #[arg(long)]
        name: Option<String>,
        /// Replace a model that is installed under this name
        #[arg(long)]
        replace: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        #[expect(missing_docs, reason = "documented on the type")]
        config: ConfigFlags,
    },
    /// Remove an installed model
    Rm {
        /// Name of an installed model
        name: String,
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        #[expect(missing_docs, reason = "documented on the type")]
        config: ConfigFlags,
    },
}

/// `embeddings config`
#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented on the type")]
    pub config: ConfigFlags,
    /// As JSON
    #[arg(long, conflicts_with = "default_file")]
    pub json: bool,
    /// Print the commented default configuration file instead
    #[arg(long)]
    pub default_file: bool,
}

/// What `embeddings status --help` says behind its options.
const STATUS_HELP: &str = "\
Exit: 0 running · 1 degraded, starting, stopping or hung · 3 stopped · 4 it cannot be known, such as for want of permission";

/// `embeddings status`
#[derive(Debug, Args)]
#[command(after_long_help = STATUS_HELP)]
pub struct StatusArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented on the type")]
    pub config: ConfigFlags,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// By what the rows of `embeddings top` are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SortArg {
    /// The worst first
    State,
    /// By machine
    Host,
    /// The longest queue first
    Queue,
    /// The most jobs in flight first
    Inflight,
    /// The fastest first
    Rate,
    /// Whoever has got on least lately first
    Progress,
    /// The latest death first
    Kill,
}

/// What `embeddings top --help` says behind its options.
const TOP_HELP: &str = "\
A worker is silent when no heartbeat of it came for as long as it promised at most: its heartbeat_interval_ms.
It is unknown while this side cannot hear: no connection, or a broker that takes no messages (alarm).
One look takes as long as the longest promise, 5 seconds by default.

Keys: arrows choose · Enter all of a worker · s next order · / filter · x take out of the list · ? help · q end

Exit: 0 all well · 1 a worker is silent, stalled, degraded or starting, or takes jobs and is not heard · 2 wrong use
  3 no worker · 69 no broker, or no service has run there · 78 bad configuration
  The live table ends with 0; ended by a signal with 129, 130 or 143.";

/// `embeddings top`
#[derive(Debug, Args)]
#[command(after_long_help = TOP_HELP)]
pub struct TopArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented on the type")]
    pub config: ConfigFlags,
    /// One look as plain text, also on a terminal
    #[arg(long)]
    pub once: bool,
    /// One look as one JSON document
    #[arg(long)]
    pub json: bool,
    /// Order of the rows
    #[arg(long, value_enum, default_value = "state")]
    pub sort: SortArg,
    /// Only workers with this in host, instance, process id, state, model, device, version or last kill; in any case
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub filter: String,
}

/// What `embeddings check --help` says behind its options.
const CHECK_HELP: &str = "\
Nothing is changed, here or on the broker, and every step has a limit. Each finding has an id (broker.login), says what was
found and, unless it is well, why that matters and which commands mend it.

Exit: 0 no error, there may be warnings · 1 an error · 78 an error for which the service refuses to start: in the
configuration, or of a model";

/// `embeddings check`
#[derive(Debug, Args)]
#[command(after_long_help = CHECK_HELP)]
pub struct CheckArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented on the type")]
    pub config: ConfigFlags,
    /// As JSON
    #[arg(long)]
    pub json: bool,
    /// Judge as this user what files can be read; without it the unit's user, or `embeddings`. Only root can
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
}

/// `embeddings dead …`: exit 0 when done, 1 when failed, 3 when there is no such dead letter
#[derive(Debug, Subcommand)]
pub enum DeadCommand {
    /// One line for each dead letter: which job, why, from where; exit 3 if there is none
    List(DeadListArgs),
    /// Everything of a dead letter: properties, headers, reason, and what its body asks for
    Show(DeadShowArgs),
    /// Put dead letters back to the queue they came from, as new jobs
    Requeue(DeadRequeueArgs),
    /// Delete dead letters
    Purge(DeadPurgeArgs),
}

/// `embeddings dead list`
#[derive(Debug, Args)]
pub struct DeadListArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented on the type")]
    pub config: ConfigFlags,
    /// As JSON
    #[arg(long)]
    pub json: bool,
    /// Read no further after this many
    #[arg(long, default_value_t = 1000, value_name = "N")]
    pub limit: usize,
    /// Only those with this error type (internal), or reason of the broker's own (delivery_limit)
    #[arg(long, value_name = "TYPE")]
    pub reason: Option<String>,
    /// Only those that came from this queue; `interactive` and `bulk` are short for the lanes' queues
    #[arg(long, value_name = "NAME")]
    pub queue: Option<String>,
}

/// `embeddings dead show`
#[derive(Debug, Args)]
pub struct DeadShowArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented on the type")]
    pub config: ConfigFlags,
    /// The job id, as `dead list` shows it
    pub id: String,
    /// The whole body, too
    #[arg(long)]
    pub body: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `embeddings dead requeue`
#[derive(Debug, Args)]
pub struct DeadRequeueArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented on the type")]
    pub config: ConfigFlags,
    /// Job ids, as `dead list` shows them
    #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "ID")]
    pub ids: Vec<String>,
    /// All of them, or all that the other options leave
    #[arg(long)]
    pub all: bool,
    /// Only those with this error type (internal), or reason of the broker's own (delivery_limit)
    #[arg(long, value_name = "TYPE")]
    pub reason: Option<String>,
    /// At most this many
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `embeddings dead purge`
#[derive(Debug, Args)]
pub struct DeadPurgeArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented on the type")]
    pub config: ConfigFlags,
    /// Job ids, as `dead list` shows them
    #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "ID")]
    pub ids: Vec<String>,
    /// All of them, or all that the other options leave
    #[arg(long)]
    pub all: bool,
    /// Only those with this error type (internal), or reason of the broker's own (delivery_limit)
    #[arg(long, value_name = "TYPE")]
    pub reason: Option<String>,
    /// Only those that died longer ago, such as 90s, 15m, 12h, 7d; where only the time of sending is known,
    /// that counts, and where nothing is known, the letter stays
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub older_than: Option<Duration>,
    /// Do not ask before deleting with --all
    #[arg(long)]
    pub yes: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// The name of an instance, which is part of file names.
fn instance(text: &str) -> Result<String, String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let plain = (1..=100).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with(['.', '-']);
    let wrong = "1 to 100 of the characters a-z A-Z 0-9 . _ - are expected, the first neither . nor -";
    plain.then(|| text.to_owned()).ok_or_else(|| wrong.to_owned())
}

/// A whole number and its unit: `90s`, `15m`, `12h`, `7d`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "a whole number and its unit is expected, such as 90s, 15m, 12h, 7d".to_owned();
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    let whole = number.checked_mul(seconds).ok_or_else(wrong)?;
    Ok(Duration::from_secs(whole))
}

/// What `embeddings bench --help` says behind its options.
const BENCH_HELP: &str = "\
Without --engine, --broker or --quality: the engine alone, and through the broker if a service
answers there, in less than a minute. The texts come with the program: short ones (one sentence of
at most 16 words), mixed ones (some 60 tokens) and long ones (more than 256). All measures take
turns in five rounds; told is the median, and the least and the most in brackets. The service is
measured beside whatever else it does; it gets 8 bulk jobs of 32 texts at a time, then one text at
a time on the interactive lane.

  embeddings bench --output before.json         then, after a change of machine or version:
  embeddings bench --compare before.json        ratios, above 1 is better, for times too
  embeddings bench --precision f32,bf16,int8    side by side
  embeddings bench --quality                    cosine to f32, and which part of the ten nearest
                                                of 3000 texts is the same

Exit: 0 measured · 1 failed, or a ratio below --fail-below · 2 wrong use, or an unusable file
  69 no broker or no service behind it (with --broker) · 74 --output cannot be written
  78 bad configuration";

/// `embeddings bench`
#[derive(Debug, Args)]
#[command(after_long_help = BENCH_HELP)]
pub struct BenchArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented on the type")]
    pub config: ConfigFlags,
    /// Measure the engine alone
    #[arg(long)]
    pub engine: bool,
    /// Measure through the broker; a failure if no service answers there
    #[arg(long)]
    pub broker: bool,
    /// Measure how near each precision comes to f32: cosine, and the ten nearest texts of each
    #[arg(long)]
    pub quality: bool,
    /// Name or alias of a model, or a folder; the service's default without it
    #[arg(long, value_name = "NAME|DIR")]
    pub model: Option<String>,
    /// Number formats: f32, bf16, int8 or auto, several separated by commas. Without it the configured one, and all
    /// there are for --quality
    #[arg(long, value_name = "P,P", value_delimiter = ',')]
    pub precision: Vec<String>,
    /// Threads that compute; without it as many as the service would use
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// How long each measure takes, all rounds together; --quality takes as long as its texts do
    #[arg(long, default_value_t = 5.0, value_name = "SECONDS")]
    pub seconds: f64,
    /// Embed the lines of this file, at most 4096 of them, evenly spread, instead of the texts that come with the program
    #[arg(long, value_name = "FILE")]
    pub texts: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
    /// Write the JSON here, too
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Compare with an earlier run, written by --output or --json
    #[arg(long, value_name = "FILE")]
    pub compare: Option<PathBuf>,
    /// Exit 1 if any measure is less than this part as good as in the earlier run, such as 0.9
    #[arg(long, value_name = "RATIO", requires = "compare")]
    pub fail_below: Option<f64>,
}

/// `embeddings monitor`
#[derive(Debug, Args)]
pub struct MonitorArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented on the type")]
    pub config: ConfigFlags,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(604_800)));
        for wrong in ["", "7", "d", "1.5h", "-1h", "1ü", "99999999999999999d"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
