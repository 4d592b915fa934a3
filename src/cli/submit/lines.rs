//! Files and stdin to batches of lines, read by a thread of its own and never further ahead than the
//! bounded channel allows.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Longest line that is sent; the broker takes messages of 16 MiB from version 4.0 on.
const LINE_BYTES_MAX: u64 = 8 << 20;
/// A job is cut here even if it has fewer lines than it may have.
const JOB_BYTES_MAX: usize = 1 << 20;
/// Batches that wait to be sent.
const READ_AHEAD: usize = 4;

/// One line to embed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The file as given, `-` for stdin.
    pub file: Arc<str>,
    /// From 1.
    pub number: u64,
    /// Its place among all inputs, from 0.
    pub index: u64,
    /// Without its line ending.
    pub text: String,
}

/// Lines for one job, and what was found on the way to them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// To embed.
    pub lines: Vec<Line>,
    /// Lines without any text.
    pub empty: u64,
    /// What cannot be embedded: where, and why.
    pub unreadable: Vec<(String, String)>,
    /// Bytes read, for the progress bar.
    pub bytes: u64,
}

/// Bytes in all files, if every one of them is a regular file.
pub fn total_bytes(files: &[PathBuf]) -> Option<u64> {
    let sizes = files.iter().map(|file| {
        let of = std::fs::metadata(file).ok()?;
        of.is_file().then(|| of.len())
    });
    (!files.is_empty()).then(|| sizes.sum())?
}

/// Starts reading. The thread ends with the input, or when nobody listens any more.
pub fn read(files: Vec<PathBuf>, lines_max: usize) -> mpsc::Receiver<Batch> {
    let (sender, batches) = mpsc::channel(READ_AHEAD);
    let reading = std::thread::Builder::new().name("read-lines".into());
    reading
        .spawn(move || {
            let mut cutter = Cutter::new(lines_max, |batch| sender.blocking_send(batch).is_ok());
            let stdin = [PathBuf::from("-")];
            let files = if files.is_empty() { &stdin[..] } else { &files };
            for file in files {
                if !cutter.read_file(file) {
                    return;
                }
            }
            cutter.hand_on();
        })
        .expect("a thread can be started");
    batches
}

/// Cuts what is read into batches.
struct Cutter<F> {
    lines_max: usize,
    batch: Batch,
    text_bytes: usize,
    index: u64,
    /// False when nobody listens.
    sink: F,
}

impl<F: FnMut(Batch) -> bool> Cutter<F> {
    fn new(lines_max: usize, sink: F) -> Cutter<F> {
        Cutter {
            lines_max,
            batch: Batch::default(),
            text_bytes: 0,
            index: 0,
            sink,
        }
    }

    fn read_file(&mut self, file: &PathBuf) -> bool {
        let name: Arc<str> = file.to_string_lossy().into();
        if name.as_ref() == "-" {
            return self.read_lines(&name, std::io::stdin().lock());
        }
        match File::open(file) {
            Ok(open) => self.read_lines(&name, BufReader::with_capacity(1 << 16, open)),
            Err(error) => {
                self.batch
                    .unreadable
                    .push((name.to_string(), format!("cannot be opened: {error}")));
                true
            }
        }
    }

    fn read_lines(&mut self, file: &Arc<str>, mut reader: impl BufRead) -> bool {
        for number in 1u64.. {
            let mut bytes = Vec::new();
            let place = format!("{file}:{number}");
            match (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes) {
                Ok(0) => break,
                Ok(read) => self.batch.bytes += read as u64,
                Err(error) => {
                    let problem = format!("cannot be read further: {error}");
                    self.batch.unreadable.push((place, problem));
                    break;
                }
            }
            let whole = bytes.ends_with(b"\n") || (bytes.len() as u64) < LINE_BYTES_MAX;
            if !whole {
                let problem = format!("longer than {LINE_BYTES_MAX} bytes");
                self.batch.unreadable.push((place, problem));
                match skip_line(&mut reader) {
                    Ok(skipped) => self.batch.bytes += skipped,
                    Err(_) => break,
                }
                continue;
            }
            if bytes.ends_with(b"\n") {
                bytes.pop();
            }
            if bytes.ends_with(b"\r") {
                bytes.pop();
            }
            match String::from_utf8(bytes) {
                Ok(text) if text.is_empty() => self.batch.empty += 1,
                Ok(text) => {
                    if !self.take(file, number, text) {
                        return false;
                    }
                }
                Err(_) => self.batch.unreadable.push((place, "not UTF-8".into())),
            }
        }
        true
    }

    fn take(&mut self, file: &Arc<str>, number: u64, text: String) -> bool {
        if self.text_bytes > 0 && self.text_bytes + text.len() > JOB_BYTES_MAX && !self.hand_on() {
            return false;
        }
        self.text_bytes += text.len();
        self.batch.lines.push(Line {
            file: file.clone(),
            number,
            index: self.index,
            text,
        });
        self.index += 1;
        self.batch.lines.len() < self.lines_max || self.hand_on()
    }

    fn hand_on(&mut self) -> bool {
        self.text_bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        batch == Batch::default() || (self.sink)(batch)
    }
}

/// Skips to the next line in pieces; says how many bytes that were.
fn skip_line(reader: &mut impl BufRead) -> std::io::Result<u64> {
    let mut skipped = 0;
    loop {
        let piece = reader.fill_buf()?;
        let (used, found) = match piece.iter().position(|&byte| byte == b'\n') {
            Some(at) => (at + 1, true),
            None => (piece.len(), false),
        };
        reader.consume(used);
        skipped += used as u64;
        if found || used == 0 {
            return Ok(skipped);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(bytes: &[u8], lines_max: usize) -> Vec<Batch> {
        let mut batches = Vec::new();
        let mut cutter = Cutter::new(lines_max, |batch| {
            batches.push(batch);
            true
        });
        cutter.read_lines(&"f".into(), bytes);
        cutter.hand_on();
        batches
    }

    /// Goal: line numbers survive empty lines and lines that cannot be read; every byte is accounted for.
    #[test]
    fn lines_keep_their_numbers() {
        let bytes = b"a\n\r\nb\r\n\xff\nc";
        let batches = cut(bytes, 2);
        let lines: Vec<_> = batches.iter().flat_map(|batch| &batch.lines).collect();
        let found: Vec<_> = lines
            .iter()
            .map(|l| (l.number, l.index, l.text.as_str()))
            .collect();
        assert_eq!(found, [(1, 0, "a"), (3, 1, "b"), (5, 2, "c")]);
        assert_eq!(batches.iter().map(|batch| batch.empty).sum::<u64>(), 1);
        assert_eq!(
            batches.iter().map(|batch| batch.bytes).sum::<u64>(),
            bytes.len() as u64
        );
        assert_eq!(
            batches[1].unreadable,
            [("f:4".to_owned(), "not UTF-8".to_owned())]
        );
    }

    /// Goal: memory is bounded by bytes too. Method: a line over the limit, between lines under it, and
    /// lines that together are more than a job may hold.
    #[test]
    fn long_lines_are_skipped_and_big_batches_cut() {
        let mut bytes = b"a\n".to_vec();
        bytes.extend(vec![b'x'; LINE_BYTES_MAX as usize + 10]);
        bytes.extend(b"\nb");
        let batches = cut(&bytes, 64);
        let texts: Vec<_> = batches[0].lines.iter().map(|l| (l.number, &l.text[..])).collect();
        assert_eq!(texts, [(1, "a"), (3, "b")]);
        assert_eq!(batches[0].unreadable[0].0, "f:2");
        assert_eq!(batches[0].bytes, bytes.len() as u64);
        let line = [vec![b'y'; JOB_BYTES_MAX / 2], b"\n".to_vec()].concat();
        assert_eq!(cut(&line.repeat(5), 64).len(), 3);
    }
}
