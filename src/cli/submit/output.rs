//! What people and programs see: JSON Lines or nearest lines on stdout, failures, progress bar and summary
//! on stderr.

use super::job::Done;
use super::lines;
use super::search::Search;
use crate::args::SubmitArgs;
use crate::clock::Clock;
use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// Where results go.
pub struct Sink(BufWriter<Box<dyn Write>>);

impl Sink {
    /// A file, or stdout without one.
    pub fn open(path: Option<&Path>) -> anyhow::Result<Sink> {
        let target: Box<dyn Write> = match path {
            None => Box::new(std::io::stdout()),
            Some(path) => {
                let file = File::create(path);
                Box::new(file.with_context(|| format!("failed to create {}", path.display()))?)
            }
        };
        Ok(Sink(BufWriter::new(target)))
    }
}

/// Writes results in order, and counts.
pub struct Output {
    sink: Sink,
    searches: Vec<Search>,
    bar: ProgressBar,
    clock: Clock,
    fingerprint: Option<String>,
    embedded: u64,
    failed: u64,
    empty: u64,
    tokens: u64,
}

#[derive(Serialize)]
struct Record<'a> {
    file: &'a str,
    line: u64,
    index: u64,
    text: &'a str,
    embedding: &'a [f32],
    truncated: bool,
}

impl Output {
    /// Nothing written yet. `clock` started when the command did.
    pub fn new(sink: Sink, args: &SubmitArgs, clock: Clock) -> Output {
        Output {
            sink,
            searches: Vec::new(),
            bar: bar(args),
            clock,
            fingerprint: None,
            embedded: 0,
            failed: 0,
            empty: 0,
            tokens: 0,
        }
    }

    /// From now on lines are compared with these queries instead of written.
    pub fn search_for(&mut self, searches: Vec<Search>) {
        self.searches = searches;
    }

    /// Takes in the next batch.
    pub fn write(&mut self, done: Done) -> anyhow::Result<()> {
        let Done { batch, result } = done;
        self.empty += batch.empty;
        for (place, problem) in &batch.unreadable {
            self.fail(place, problem);
        }
        match result {
            Err(cause) => {
                for line in &batch.lines {
                    self.fail(&format!("{}:{}", line.file, line.number), &cause);
                }
            }
            Ok(answer) => {
                self.tokens += answer.tokens;
                self.embedded += batch.lines.len() as u64;
                self.compare(answer.fingerprint);
                for (at, (line, vector)) in batch.lines.iter().zip(&answer.vectors).enumerate() {
                    for search in &mut self.searches {
                        search.offer(line, vector);
                    }
                    if self.searches.is_empty() {
                        let record = Record {
                            file: &line.file,
                            line: line.number,
                            index: line.index,
                            text: &line.text,
                            embedding: vector,
                            truncated: answer.truncated.contains(&at),
                        };
                        serde_json::to_writer(&mut self.sink.0, &record).context("failed to write output")?;
                        self.sink.0.write_all(b"\n").context("failed to write output")?;
                    }
                }
            }
        }
        self.bar.inc(batch.bytes);
        self.bar.set_message(format!(
            "{} lines · {:.0} inputs/s",
            self.embedded,
            self.per_second(self.embedded)
        ));
        Ok(())
    }

    /// Lets a reader behind a pipe see what is there.
    pub fn flush(&mut self) -> anyhow::Result<()> {
        self.sink.0.flush().context("failed to write output")
    }

    /// Prints what was searched for, and the summary. Says how many inputs failed.
    pub fn finish(mut self) -> anyhow::Result<u64> {
        self.bar.finish_and_clear();
        for (number, search) in self.searches.iter().enumerate() {
            let gap = if number > 0 { "\n" } else { "" };
            write!(self.sink.0, "{gap}").context("failed to write output")?;
            search.print(&mut self.sink.0).context("failed to write output")?;
        }
        self.flush()?;
        let counted = |count: u64, what: &str| match count {
            0 => String::new(),
            _ => format!(", {count} {what}"),
        };
        eprintln!(
            "{} inputs in {:.2} s, {:.1} inputs/s, {:.0} tokens/s{}{}",
            self.embedded,
            self.seconds(),
            self.per_second(self.embedded),
            self.per_second(self.tokens),
            counted(self.empty, "empty lines skipped"),
            counted(self.failed, "failed"),
        );
        Ok(self.failed)
    }

    fn fail(&mut self, place: &str, cause: &str) {
        self.failed += 1;
        self.bar.suspend(|| eprintln!("{place}: {cause}"));
    }

    /// Vectors of different models must not be compared; say so once for each change.
    fn compare(&mut self, fingerprint: Option<String>) {
        let Some(new) = fingerprint else { return };
        if let Some(old) = self.fingerprint.replace(new.clone())
            && old != new
        {
            self.bar.suspend(|| {
                eprintln!("warning: the model changed from {old} to {new}: vectors before and after cannot be compared");
            });
        }
    }

    fn seconds(&self) -> f64 {
        self.clock.now().since(crate::clock::Moment::ZERO).as_secs_f64()
    }

    fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.seconds().max(0.001)
    }
}

/// A bar over the bytes of the files, or a counter for stdin; nothing where stderr is no terminal.
fn bar(args: &SubmitArgs) -> ProgressBar {
    let total = lines::total_bytes(&args.files);
    let target = if args.quiet {
        ProgressDrawTarget::hidden()
    } else {
        ProgressDrawTarget::stderr()
    };
    let style = match total {
        Some(_) => "{bar:30} {percent:>3} % · {msg} · eta {eta}",
        None => "{spinner} {msg} · {elapsed}",
    };
    let style = ProgressStyle::with_template(style).expect("the templates are well-formed");
    ProgressBar::with_draw_target(total, target).with_style(style)
}
