//! `embeddings dead`: looks through the dead-letter queue, and puts letters back to work or deletes them.
//!
//! Each command is one pass over what the queue held when it began: a letter is read, judged by a `Filter`,
//! and kept, requeued or deleted before the next one is read, so that one body is in memory at a time. How
//! that is done without losing any is `broker::dead`'s business. Exit 0: done; 1: failed; 3: no such letter.

mod body;
mod summary;
mod text;

use super::{configuration, count, print, print_bytes};
use crate::args::{DeadCommand, DeadListArgs, DeadPurgeArgs, DeadRequeueArgs, DeadShowArgs};
use crate::broker::dead::Letters;
use crate::clock::{Clock, millis};
use crate::config::BrokerConfig;
use anyhow::Context;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;
use summary::{Filter, Summary};
use text::Seen;

/// The command line makes no sense, as clap's own errors.
const EXIT_USAGE: u8 = 2;
/// No letter is meant by what was asked for, or none by one of the ids.
const EXIT_NONE: u8 = 3;
/// Letters with the same id that are shown; an id may come as often as its sender likes.
const SHOWN_MAX: usize = 8;
/// How long a question waits for its answer.
const ANSWER_MAX: Duration = Duration::from_secs(120);

/// Runs the command.
///
/// # Errors
/// The configuration (exit 78), the broker (1), stdout that cannot be written (1).
pub fn run(command: &DeadCommand) -> anyhow::Result<ExitCode> {
    let flags = match command {
        DeadCommand::List(args) => &args.config,
        DeadCommand::Show(args) => &args.config,
        DeadCommand::Requeue(args) => &args.config,
        DeadCommand::Purge(args) => &args.config,
    };
    let broker = configuration(flags)?.config.broker;
    // Headers can be nested so deep that to copy and drop them needs the stack that `main` gives to threads.
    let code = std::thread::scope(|scope| {
        let work = scope.spawn(|| block_on(command, &broker));
        work.join().expect("a panic ends the process")
    })?;
    Ok(ExitCode::from(code))
}

fn block_on(command: &DeadCommand, broker: &BrokerConfig) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start a runtime")?;
    let end = runtime.block_on(perform(command, broker));
    // A question that nobody has answered still waits on a thread of the runtime.
    runtime.shutdown_background();
    end
}

async fn perform(command: &DeadCommand, broker: &BrokerConfig) -> anyhow::Result<u8> {
    if let DeadCommand::Purge(args) = command
        && args.all
        && !args.yes
        && !std::io::stdin().is_terminal()
    {
        let why = "purge --all deletes for good; give --yes, or call it from a terminal".to_owned();
        let _ = super::failed(args.json, &[why], EXIT_USAGE);
        return Ok(EXIT_USAGE);
    }
    let opened = Letters::open(broker).await;
    let mut letters = opened.with_context(|| format!("dead letters at {}", broker.shown()))?;
    let end = match command {
        DeadCommand::List(args) => list(args, &mut letters).await,
        DeadCommand::Show(args) => show(args, &mut letters).await,
        DeadCommand::Requeue(args) => requeue(args, &mut letters).await,
        DeadCommand::Purge(args) => purge(args, &mut letters).await,
    };
    let closed = letters.close().await;
    let end = end?;
    // What the broker has not confirmed must not be called done.
    closed?;
    print(&end.said)?;
    print_bytes(&end.body)?;
    Ok(end.code)
}

/// What a command says when the broker has agreed to all of it.
#[derive(Default)]
struct End {
    said: String,
    body: Vec<u8>,
    code: u8,
}

async fn list(args: &DeadListArgs, letters: &mut Letters) -> anyhow::Result<End> {
    let names = letters.names().clone();
    let filter = Filter {
        reason: args.reason.as_deref(),
        queue: args.queue.as_deref().map(|queue| match queue {
            "interactive" => names.interactive.clone(),
            "bulk" => names.bulk.clone(),
            "resumed" => names.resumed.clone(),
            other => other.to_owned(),
        }),
        ..Filter::default()
    };
    let now_ms = Clock::unix_ms();
    let mut found = Vec::new();
    let mut read = 0usize;
    while found.len() < args.limit
        && let Some(held) = letters.next().await?
    {
        let (summary, _) = summary::read(&held.letter);
        letters.keep(held).await?;
        read += 1;
        if filter.takes(&summary, now_ms) {
            found.push(summary);
        }
    }
    let at_start = letters.at_start() as usize;
    let limited = found.len() == args.limit && read < at_start;
    let seen = Seen {
        queue: &names.dead,
        // Without a limit it is known what there is; others may have taken some meanwhile.
        total: if limited { at_start } else { read },
        limited,
        now_ms,
    };
    Ok(End {
        said: if args.json {
            format!("{:#}\n", text::list_json(seen, &found))
        } else {
            text::list(seen, &found)
        },
        code: if found.is_empty() { EXIT_NONE } else { 0 },
        ..End::default()
    })
}

async fn show(args: &DeadShowArgs, letters: &mut Letters) -> anyhow::Result<End> {
    let queue = letters.names().dead.clone();
    let seen = Seen {
        queue: &queue,
        total: letters.at_start() as usize,
        limited: false,
        now_ms: Clock::unix_ms(),
    };
    let (mut machine, mut people, mut bodies) = (Vec::new(), Vec::new(), Vec::new());
    let mut found = 0usize;
    while let Some(held) = letters.next().await? {
        let (summary, asks) = summary::read(&held.letter);
        if summary.id == args.id {
            found += 1;
        }
        if summary.id == args.id && found <= SHOWN_MAX {
            if args.json {
                machine.push(text::letter_json(seen, &summary, &asks, &held.letter, args.body));
            } else {
                people.push(text::letter(seen, &summary, &asks, &held.letter));
                if args.body && found == 1 {
                    bodies = held.letter.body.clone();
                }
            }
        }
        letters.keep(held).await?;
    }
    if found == 0 {
        tell!("error: {}", none(&args.id, &queue));
        let said = json!({"queue": queue, "found": 0, "dead_letters": []});
        return Ok(End {
            said: if args.json {
                format!("{said:#}\n")
            } else {
                String::new()
            },
            code: EXIT_NONE,
            ..End::default()
        });
    }
    if found > SHOWN_MAX {
        tell!(
            "{} have this id, {SHOWN_MAX} are shown",
            count(found, "dead letter")
        );
    }
    if args.json {
        let said = json!({"queue": queue, "found": found, "dead_letters": machine});
        return Ok(End {
            said: format!("{said:#}\n"),
            ..End::default()
        });
    }
    if args.body {
        if found > 1 {
            tell!(
                "{} have this id, the first one's body is shown",
                count(found, "dead letter")
            );
        }
        people.push("body\n".to_owned());
        if std::io::stdout().is_terminal() {
            bodies = lines_of_plain(&String::from_utf8_lossy(&bodies)).into_bytes();
        }
        if bodies.last().is_some_and(|&last| last != b'\n') {
            bodies.push(b'\n');
        }
    }
    Ok(End {
        said: people.join("\n"),
        body: bodies,
        code: 0,
    })
}

async fn requeue(args: &DeadRequeueArgs, letters: &mut Letters) -> anyhow::Result<End> {
    let names = letters.names().clone();
    let filter = Filter {
        ids: &args.ids,
        reason: args.reason.as_deref(),
        ..Filter::default()
    };
    let limit = args.limit.unwrap_or(usize::MAX);
    let now_ms = Clock::unix_ms();
    let mut done = Done::default();
    let mut to: BTreeMap<&str, usize> = BTreeMap::new();
    while done.number < limit
        && let Some(held) = letters.next().await.context(done.so_far("requeued"))?
    {
        let (summary, _) = summary::read(&held.letter);
        if !filter.takes(&summary, now_ms) {
            letters.keep(held).await.context(done.so_far("requeued"))?;
            continue;
        }
        let queue = summary.target(&names);
        let sent = letters.requeue(held, queue).await;
        sent.with_context(|| format!("{}; then {}", done.so_far("requeued"), summary.id))?;
        if !summary.reply_to {
            tell!(
                "{}: has no reply_to, the service will refuse it again",
                summary.id
            );
        }
        done.count(summary);
        *to.entry(queue).or_default() += 1;
    }
    Ok(done.end(&args.ids, &names.dead, "requeued", &to, args.json))
}

async fn purge(args: &DeadPurgeArgs, letters: &mut Letters) -> anyhow::Result<End> {
    let queue = letters.names().dead.clone();
    let filter = Filter {
        ids: &args.ids,
        reason: args.reason.as_deref(),
        older_than_ms: args.older_than.map(millis),
        ..Filter::default()
    };
    let there = letters.at_start() as usize;
    if args.all && !args.yes && there > 0 {
        let what = if filter.is_open() {
            format!("{} from {queue}", count(there, "dead letter"))
        } else {
            format!("those of {} in {queue} that match", count(there, "dead letter"))
        };
        if !agreed(&format!("Delete {what} for good? [y/N] ")).await? {
            anyhow::bail!("nothing deleted");
        }
    }
    let now_ms = Clock::unix_ms();
    let mut done = Done::default();
    let mut ageless = 0usize;
    while let Some(held) = letters.next().await.context(done.so_far("deleted"))? {
        let (summary, _) = summary::read(&held.letter);
        if filter.takes(&summary, now_ms) {
            letters.delete(held).await.context(done.so_far("deleted"))?;
            done.count(summary);
        } else {
            if filter.older_than_ms.is_some() && summary.age_ms(now_ms).is_none() {
                ageless += 1;
            }
            letters.keep(held).await.context(done.so_far("deleted"))?;
        }
    }
    if ageless > 0 {
        tell!("{} of unknown age kept", count(ageless, "dead letter"));
    }
    Ok(done.end(&args.ids, &queue, "deleted", &BTreeMap::new(), args.json))
}

/// What a command has done so far.
#[derive(Default)]
struct Done {
    number: usize,
    ids: BTreeSet<String>,
}

impl Done {
    fn count(&mut self, letter: Summary) {
        self.number += 1;
        self.ids.insert(letter.id);
    }

    fn so_far(&self, how: &str) -> String {
        format!("{} {how}", count(self.number, "dead letter"))
    }

    /// The answer; ids that no letter had are named.
    fn end(
        &self,
        ids: &[String],
        queue: &str,
        how: &str,
        places: &BTreeMap<&str, usize>,
        as_json: bool,
    ) -> End {
        let missing: Vec<&String> = ids.iter().filter(|id| !self.ids.contains(*id)).collect();
        let incomplete = !missing.is_empty() || self.number == 0;
        for id in &missing {
            tell!("error: {}", none(id, queue));
        }
        let said = if as_json {
            let answer =
                json!({"queue": queue, "done": how, "number": self.number, "to": places, "missing": missing});
            format!("{answer:#}\n")
        } else {
            let places: Vec<String> = places
                .iter()
                .map(|(queue, number)| format!("{number} to {queue}"))
                .collect();
            let colon = if places.is_empty() { "" } else { ": " };
            format!("{}{colon}{}\n", self.so_far(how), places.join(", "))
        };
        End {
            said,
            code: if incomplete { EXIT_NONE } else { 0 },
            ..End::default()
        }
    }
}

fn none(id: &str, queue: &str) -> String {
    format!(
        "no dead letter {} in {queue}; `embeddings dead list` shows those there are",
        plain(id)
    )
}

/// Asks on the terminal.
async fn agreed(question: &str) -> anyhow::Result<bool> {
    let mut terminal = std::io::stderr();
    terminal.write_all(question.as_bytes())?;
    terminal.flush()?;
    let answer = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|_| line)
    });
    let line = match tokio::time::timeout(ANSWER_MAX, answer).await {
        Ok(line) => line.expect("reading a line cannot panic")?,
        Err(_) => anyhow::bail!("no answer within {} s, nothing deleted", ANSWER_MAX.as_secs()),
    };
    Ok(matches!(line.trim().to_lowercase().as_str(), "y" | "yes"))
}

/// Text from elsewhere for a terminal: what steers it is written out.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

fn lines_of_plain(text: &str) -> String {
    let lines: Vec<String> = text.split('\n').map(plain).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_asks_for_what_is_not_there_is_told() {
        let mut done = Done::default();
        let none = BTreeMap::new();
        assert_eq!(done.end(&[], "q", "deleted", &none, false).code, EXIT_NONE);
        done.count(summary::read(&summary::tests::refused()).0);
        let ids = ["job-7".to_owned(), "job-8".to_owned()];
        let end = done.end(&ids[..1], "q", "requeued", &BTreeMap::from([("q", 1)]), false);
        assert_eq!(
            (end.said.as_str(), end.code),
            ("1 dead letter requeued: 1 to q\n", 0)
        );
        let end = done.end(&ids, "q", "deleted", &none, true);
        assert_eq!(end.code, EXIT_NONE);
        let said: serde_json::Value = serde_json::from_str(&end.said).unwrap();
        assert_eq!(said["missing"], json!(["job-8"]), "{said}");
    }

    #[test]
    fn letters_cannot_steer_a_terminal() {
        assert_eq!(plain("a\u{1b}[2J\u{9b}\n"), r"a\u{1b}[2J\u{9b}\n");
        assert_eq!(lines_of_plain("ü\n\t"), "ü\n\\t");
    }
}
