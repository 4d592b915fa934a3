//! Results to JSON Lines or to nearest lines, on a thread of its own: whoever reads the output may be slow, and the
//! jobs under way must not wait for it.

use super::board::Board;
use super::flight::Piece;
use super::lines::Line;
use super::mend::Mend;
use super::search::Search;
use serde::Serialize;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::mpsc;

/// Pieces that wait to be written.
const PIECES: usize = 2;

/// Writes results in order, and counts.
pub struct Output {
    sink: Sink,
    searches: Vec<Search>,
    board: Board,
    /// The present record as bytes.
    record: Vec<u8>,
    fingerprint: Option<Arc<str>>,
    /// What was counted.
    pub counts: Counts,
}

enum Sink {
    Append(BufWriter<Box<dyn Write + Send>>),
    Mend(Box<Mend>),
}

/// What became of the input.
#[derive(Debug, Default)]
pub struct Counts {
    /// Lines with a vector.
    pub embedded: u64,
    /// Lines and files without one.
    pub failed: u64,
    /// Lines without any text.
    pub empty: u64,
    /// Tokens the model read.
    pub tokens: u64,
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
    /// Nothing written yet.
    pub fn new(target: Box<dyn Write + Send>, board: Board) -> Output {
        Output {
            sink: Sink::Append(BufWriter::with_capacity(1 << 16, target)),
            searches: Vec::new(),
            board,
            record: Vec::new(),
            fingerprint: None,
            counts: Counts::default(),
        }
    }

    /// From now on lines are compared with these queries instead of written.
    pub fn search_for(&mut self, searches: Vec<Search>) {
        self.searches = searches;
    }

    /// From now on records go into a file that is mended.
    pub fn mend(&mut self, mend: Mend) {
        self.sink = Sink::Mend(Box::new(mend));
    }

    /// Starts to write what is sent, until the sender is dropped or writing fails.
    pub fn run(mut self) -> Writer {
        let (pieces, mut waiting) = mpsc::channel(PIECES);
        let writing = std::thread::Builder::new().name("write-lines".into());
        let thread = writing
            .spawn(move || {
                while let Some(piece) = waiting.blocking_recv() {
                    if let Err(error) = self.write(piece) {
                        return (self, Err(error));
                    }
                }
                (self, Ok(()))
            })
            .expect("a thread can be started");
        Writer { pieces, thread }
    }

    fn write(&mut self, piece: Piece) -> io::Result<()> {
        self.counts.tokens += piece.tokens;
        // A file is mended in a second pass over the input: what the first one told is not told again.
        let first_pass = matches!(self.sink, Sink::Append(_));
        if first_pass {
            self.counts.empty += piece.empty;
            for (place, problem) in &piece.unreadable {
                self.fail(place, problem);
            }
        }
        if !piece.lines.is_empty() {
            self.compare(piece.fingerprint);
        }
        let mut written = 0;
        for (line, answer) in piece.lines {
            match answer {
                Ok((vector, truncated)) => {
                    self.record(&line, &vector, truncated)?;
                    written += 1;
                }
                Err(cause) => self.fail(&format!("{}:{}", line.file, line.number), &cause),
            }
        }
        // Whoever reads behind a pipe sees what is there, and a kill costs nothing that was counted.
        if let Sink::Append(sink) = &mut self.sink {
            sink.flush()?;
        }
        self.counts.embedded += written;
        self.board
            .wrote(written, if first_pass { piece.bytes } else { 0 });
        Ok(())
    }

    fn record(&mut self, line: &Line, vector: &[f32], truncated: bool) -> io::Result<()> {
        if !self.searches.is_empty() {
            for search in &mut self.searches {
                search.offer(line, vector);
            }
            return Ok(());
        }
        let record = Record {
            file: &line.file,
            line: line.number,
            index: line.index,
            text: &line.text,
            embedding: vector,
            truncated,
        };
        self.record.clear();
        serde_json::to_writer(&mut self.record, &record)?;
        self.record.push(b'\n');
        match &mut self.sink {
            Sink::Append(sink) => sink.write_all(&self.record),
            Sink::Mend(mend) => mend.put(line.index, &self.record),
        }
    }

    /// Prints what was searched for, or puts the mended file in place.
    pub fn finish(&mut self) -> io::Result<()> {
        match std::mem::replace(&mut self.sink, Sink::Append(BufWriter::new(Box::new(io::sink())))) {
            Sink::Mend(mend) => mend.finish(),
            Sink::Append(mut sink) => {
                for (number, search) in self.searches.iter().enumerate() {
                    write!(sink, "{}", if number > 0 { "\n" } else { "" })?;
                    search.print(&mut sink)?;
                }
                sink.flush()
            }
        }
    }

    /// One line about all of it; `kept` records were there before.
    pub fn summary(&self, kept: u64) -> String {
        let counted = |count: u64, what: &str| match count {
            0 => String::new(),
            _ => format!(", {count} {what}"),
        };
        let Counts {
            embedded,
            failed,
            empty,
            tokens,
        } = self.counts;
        format!(
            "{embedded} inputs in {:.2} s, {:.1} inputs/s, {:.0} tokens/s{}{}{}",
            self.board.seconds(),
            self.board.per_second(embedded),
            self.board.per_second(tokens),
            counted(kept, "there before"),
            counted(empty, "empty lines skipped"),
            counted(failed, "failed"),
        )
    }

    fn fail(&mut self, place: &str, cause: &str) {
        self.counts.failed += 1;
        self.board.say(&format!("{place}: {cause}"));
    }

    /// Vectors of different models must not be compared; say so once for each change.
    fn compare(&mut self, fingerprint: Option<Arc<str>>) {
        let Some(new) = fingerprint else { return };
        if let Some(old) = self.fingerprint.replace(new.clone())
            && old != new
        {
            self.board.say(&format!(
                "warning: the model changed from {old} to {new}: vectors before and after cannot be compared"
            ));
        }
    }
}

/// A thread that writes.
pub struct Writer {
    /// Where pieces go; closed when writing has failed.
    pub pieces: mpsc::Sender<Piece>,
    thread: JoinHandle<(Output, io::Result<()>)>,
}

impl Writer {
    /// Waits until all pieces are written.
    pub fn end(self) -> (Output, io::Result<()>) {
        drop(self.pieces);
        match self.thread.join() {
            Ok(ended) => ended,
            Err(panicked) => std::panic::resume_unwind(panicked),
        }
    }
}
