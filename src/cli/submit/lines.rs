//! Files and stdin to batches of lines, read by a thread of its own, one file open at a time, and never further
//! ahead than the bounded channel allows. A [`Sieve`] may leave out lines that are in the output already.

use super::kept::{Seam, Sieve, Sifted};
use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Longest line that is sent; the broker takes messages of 16 MiB from version 4.0 on.
const LINE_BYTES_MAX: u64 = 8 << 20;
/// Longest line as JSON has it: there a control character takes six bytes.
const LINE_JSON_MAX: usize = 15 << 20;
/// A job is cut here even if it has fewer lines than it may have: the service works a streamed job off in slices of
/// 128 KiB, and one slice needs no way through its queue of jobs that go on.
const JOB_BYTES_MAX: usize = 128 << 10;
/// Batches that wait to be sent.
const READ_AHEAD: usize = 4;

/// One line to embed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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
        of.is_file().then_some(of.len())
    });
    (!files.is_empty()).then(|| sizes.sum())?
}

/// What the reading thread tells.
#[derive(Debug)]
pub enum Read {
    /// The next lines.
    Batch(Batch),
    /// All that was in the output fits to the input so far; from here on lines are new.
    Seam(Box<Seam>),
    /// The input is not the one that the output was made of. Nothing follows.
    Refused(String),
}

/// Starts reading. The thread ends with the input, or when nobody listens any more.
pub fn read(files: Vec<PathBuf>, lines_max: usize, sieve: Option<Sieve>) -> mpsc::Receiver<Read> {
    let (sender, told) = mpsc::channel(READ_AHEAD);
    let reading = std::thread::Builder::new().name("read-lines".into());
    reading
        .spawn(move || {
            let mut cutter = Cutter::new(lines_max, sieve, |read| sender.blocking_send(read).is_ok());
            let stdin = [PathBuf::from("-")];
            let files = if files.is_empty() { &stdin[..] } else { &files };
            for file in files {
                if !cutter.read_file(file) {
                    return;
                }
            }
            cutter.end();
        })
        .expect("a thread can be started");
    told
}

/// Bytes of a text as a string of JSON.
fn json_bytes(text: &str) -> usize {
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..0x20 => 6,
        _ => 1,
    };
    text.bytes().map(escaped).sum::<usize>() + 2
}

/// Cuts what is read into batches.
struct Cutter<F> {
    lines_max: usize,
    sieve: Option<Sieve>,
    batch: Batch,
    text_bytes: usize,
    index: u64,
    /// False when nobody listens.
    sink: F,
}

impl<F: FnMut(Read) -> bool> Cutter<F> {
    fn new(lines_max: usize, sieve: Option<Sieve>, sink: F) -> Cutter<F> {
        Cutter {
            lines_max,
            sieve,
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
        // Opening a folder works, and reading it is what fails.
        let opened = File::open(file).and_then(|open| Ok((open.metadata()?.is_dir(), open)));
        let problem = match opened {
            Ok((false, open)) => return self.read_lines(&name, BufReader::with_capacity(1 << 16, open)),
            Ok((true, _)) => "is a directory; name the files in it".to_owned(),
            Err(error) => format!("cannot be opened: {error}"),
        };
        self.cannot_read(name.to_string(), problem)
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
                    return self.cannot_read(place, problem);
                }
            }
            let whole = bytes.ends_with(b"\n") || (bytes.len() as u64) < LINE_BYTES_MAX;
            if !whole {
                let problem = format!("longer than {LINE_BYTES_MAX} bytes");
                if !self.cannot_read(place, problem) {
                    return false;
                }
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
                Ok(text) if json_bytes(&text) > LINE_JSON_MAX => {
                    let problem = format!("longer than {LINE_JSON_MAX} bytes as JSON");
                    if !self.cannot_read(place, problem) {
                        return false;
                    }
                }
                Ok(text) => {
                    if !self.take(file, number, text) {
                        return false;
                    }
                }
                Err(_) => {
                    if !self.cannot_read(place, "not UTF-8".into()) {
                        return false;
                    }
                }
            }
        }
        true
    }

    fn cannot_read(&mut self, place: String, problem: String) -> bool {
        self.batch.unreadable.push((place, problem));
        self.batch.unreadable.len() < self.lines_max || self.hand_on()
    }

    fn take(&mut self, file: &Arc<str>, number: u64, text: String) -> bool {
        let line = Line {
            file: file.clone(),
            number,
            index: self.index,
            text,
        };
        self.index += 1;
        match self.sieve.as_mut().map_or(Sifted::New, |sieve| sieve.sift(&line)) {
            Sifted::New => {}
            Sifted::Kept => return true,
            Sifted::Seam(seam) => {
                if !(self.hand_on() && (self.sink)(Read::Seam(seam))) {
                    return false;
                }
            }
            Sifted::Refused(why) => {
                // A file that could not be read may be why.
                if self.hand_on() {
                    (self.sink)(Read::Refused(why));
                }
                return false;
            }
            // What is left is of no interest.
            Sifted::End => {
                self.hand_on();
                return false;
            }
        }
        let full = self.text_bytes > 0 && self.text_bytes + line.text.len() > JOB_BYTES_MAX;
        if full && !self.hand_on() {
            return false;
        }
        self.text_bytes += line.text.len();
        self.batch.lines.push(line);
        self.batch.lines.len() < self.lines_max || self.hand_on()
    }

    /// The input has ended.
    fn end(&mut self) {
        let told = self.sieve.as_mut().and_then(Sieve::end);
        if self.hand_on()
            && let Some(told) = told
        {
            (self.sink)(told);
        }
    }

    fn hand_on(&mut self) -> bool {
        self.text_bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        batch == Batch::default() || (self.sink)(Read::Batch(batch))
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
        let mut cutter = Cutter::new(lines_max, None, |read| {
            let Read::Batch(batch) = read else {
                panic!("{read:?}")
            };
            batches.push(batch);
            true
        });
        cutter.read_lines(&"f".into(), bytes);
        cutter.end();
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

    /// Goal: what the broker would not take is told and left out. Method: control characters, which JSON writes with six bytes each.
    #[test]
    fn a_line_is_as_long_as_its_json() {
        for text in ["", "plain", "q\"b\\é北\u{7f}"] {
            assert_eq!(
                json_bytes(text),
                serde_json::to_string(text).unwrap().len(),
                "{text:?}"
            );
        }
        for byte in 0..0x20u8 {
            let text = char::from(byte).to_string();
            assert_eq!(
                json_bytes(&text),
                serde_json::to_string(&text).unwrap().len(),
                "{byte}"
            );
        }
        let bytes = [b"a\n".to_vec(), vec![0; 3 << 20], b"\nb".to_vec()].concat();
        let batches = cut(&bytes, 64);
        let texts: Vec<_> = batches[0].lines.iter().map(|l| (l.number, &l.text[..])).collect();
        assert_eq!(texts, [(1, "a"), (3, "b")]);
        assert_eq!(batches[0].unreadable[0].0, "f:2");
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
