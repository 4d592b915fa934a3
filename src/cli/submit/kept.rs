//! `--resume`: what an output file holds already, read beside the input in one pass and never changed by reading.
//!
//! The file holds records in the order of the input. A line that failed has no record, which is a gap; a kill may
//! have left half a record at the end, which counts as nothing. Whatever else does not fit to the input is refused.

use super::lines::{Line, Read};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::borrow::Cow;
use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::Path;

/// Longest record: a text of 8 MiB can be six times as long in JSON, and the vector comes to it.
const RECORD_BYTES_MAX: u64 = 80 << 20;

/// How each record begins.
const RECORD_BEGINS: &[u8] = b"{\"file\":\"";

/// A record as far as it says which line it is of.
#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    file: Cow<'a, str>,
    line: u64,
    index: u64,
    #[serde(borrow)]
    text: Cow<'a, str>,
    #[serde(rename = "embedding")]
    _embedding: IgnoredAny,
}

/// A record's text and vector.
#[derive(Deserialize)]
struct Sample {
    text: String,
    embedding: Vec<f32>,
}

/// An output file, record by record.
#[derive(Debug)]
pub struct Kept {
    shown: String,
    reader: BufReader<File>,
    /// The present record with its line ending; empty behind the last.
    record: Vec<u8>,
    index: u64,
    /// Records up to the present one.
    count: u64,
    /// Where the present record ends.
    end: u64,
    /// Whether half a record stands at the end.
    torn: bool,
}

impl Kept {
    /// Stands before the first record.
    pub fn open(path: &Path) -> std::io::Result<Kept> {
        Ok(Kept {
            shown: path.display().to_string(),
            reader: BufReader::with_capacity(1 << 17, File::open(path)?),
            record: Vec::new(),
            index: 0,
            count: 0,
            end: 0,
            torn: false,
        })
    }

    /// Goes to the next record. False behind the last; an error if what stands there is no record.
    pub fn advance(&mut self) -> Result<bool, String> {
        self.record.clear();
        let mut limited = (&mut self.reader).take(RECORD_BYTES_MAX);
        let read = limited.read_until(b'\n', &mut self.record);
        let read = read.map_err(|error| format!("{} cannot be read: {error}", self.shown))?;
        if read == 0 {
            return Ok(false);
        }
        if !self.record.ends_with(b"\n") && begins_a_record(&self.record) {
            self.torn = true;
            self.record.clear();
            return Ok(false);
        }
        self.count += 1;
        let index = self.head()?.index;
        if self.count > 1 && index <= self.index {
            return Err(self.at(&format!(
                "record {index} does not stand in the order of the input"
            )));
        }
        self.index = index;
        self.end += read as u64;
        Ok(true)
    }

    /// The present record with its line ending; empty behind the last.
    pub fn record(&self) -> &[u8] {
        &self.record
    }

    /// Its place among all inputs.
    pub fn index(&self) -> u64 {
        self.index
    }

    fn head(&self) -> Result<Head<'_>, String> {
        serde_json::from_slice(&self.record)
            .map_err(|error| self.at(&format!("this is no record of embeddings submit: {error}")))
    }

    /// The error that the present record does not fit.
    fn at(&self, problem: &str) -> String {
        format!("{}:{}: {problem}", self.shown, self.count)
    }

    /// That the present record is of this line, or how it differs.
    fn check(&self, line: &Line) -> Result<(), String> {
        let head = self.head()?;
        let place = |file: &str, number: u64| format!("{file}:{number}");
        let (there, here) = (place(&head.file, head.line), place(&line.file, line.number));
        if there != here {
            return Err(self.at(&format!(
                "record {} is of {there}, and the input has {here} there: the input has changed",
                head.index
            )));
        }
        if head.text != line.text {
            return Err(self.at(&format!("{here} has another text now: the input has changed")));
        }
        Ok(())
    }
}

/// Where the old records end and new ones begin.
#[derive(Debug, Default)]
pub struct Seam {
    /// Records that are there.
    pub kept: u64,
    /// Lines among them that have none.
    pub gaps: u64,
    /// Length of the file without half a record at its end.
    pub end: u64,
    /// Whether there is such a half.
    pub torn: bool,
    /// Place among all inputs behind the last record.
    pub next: u64,
    /// Whether there are lines behind it.
    pub more: bool,
    /// Texts and vectors of the first and the last record.
    pub samples: Vec<(String, Vec<f32>)>,
}

/// What becomes of a line.
#[derive(Debug)]
pub enum Sifted {
    /// It is to be embedded.
    New,
    /// It is the first behind the seam, and is to be embedded.
    Seam(Box<Seam>),
    /// It has its record, or is left alone.
    Kept,
    /// It, and all behind it, are left alone.
    End,
    /// The output is not of this input.
    Refused(String),
}

/// Which lines are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Those behind the last record.
    Behind,
    /// Those without a record, below this place among all inputs.
    Gaps(u64),
}

/// Holds the output file against the input.
#[derive(Debug)]
pub struct Sieve {
    kept: Kept,
    want: Want,
    /// Whether the first record was read; opening reads nothing.
    begun: bool,
    seam: Option<Seam>,
    last: Vec<u8>,
}

impl Sieve {
    /// The file is read as far as the input is.
    pub fn new(kept: Kept, want: Want) -> Sieve {
        Sieve {
            kept,
            want,
            begun: false,
            seam: Some(Seam::default()),
            last: Vec::new(),
        }
    }

    /// What is to be done with the next line of the input.
    pub fn sift(&mut self, line: &Line) -> Sifted {
        match self.look(line) {
            Ok(sifted) => sifted,
            Err(why) => Sifted::Refused(why),
        }
    }

    fn look(&mut self, line: &Line) -> Result<Sifted, String> {
        if !self.begun {
            self.begun = true;
            self.kept.advance()?;
        }
        if let Want::Gaps(below) = self.want
            && line.index >= below
        {
            return Ok(Sifted::End);
        }
        if self.kept.record().is_empty() {
            let Some(seam) = self.seam.take() else {
                return Ok(Sifted::New);
            };
            let seam = Seam {
                more: true,
                ..self.finished(seam)?
            };
            return Ok(Sifted::Seam(Box::new(seam)));
        }
        let seam = self.seam.as_mut().expect("it is taken behind the last record");
        if line.index < self.kept.index() {
            seam.gaps += 1;
            return Ok(match self.want {
                Want::Behind => Sifted::Kept,
                Want::Gaps(_) => Sifted::New,
            });
        }
        self.kept.check(line)?;
        if seam.samples.is_empty() {
            seam.samples.push(sample(self.kept.record())?);
        }
        self.last.clear();
        self.last.extend_from_slice(self.kept.record());
        self.kept.advance()?;
        Ok(Sifted::Kept)
    }

    /// The input has ended: the last word on the output.
    pub fn end(&mut self) -> Option<Read> {
        if self.want != Want::Behind {
            return None;
        }
        let begun = std::mem::replace(&mut self.begun, true);
        let there = if begun { Ok(true) } else { self.kept.advance() };
        if let Err(why) = there {
            return Some(Read::Refused(why));
        }
        if !self.kept.record().is_empty() {
            let more = "the input ends before this record: the input has changed";
            return Some(Read::Refused(self.kept.at(more)));
        }
        let seam = self.seam.take()?;
        Some(match self.finished(seam) {
            Ok(seam) => Read::Seam(Box::new(seam)),
            Err(why) => Read::Refused(why),
        })
    }

    fn finished(&mut self, mut seam: Seam) -> Result<Seam, String> {
        seam.kept = self.kept.count;
        seam.end = self.kept.end;
        seam.next = if seam.kept > 0 { self.kept.index + 1 } else { 0 };
        seam.torn = self.kept.torn;
        if seam.kept > 1 {
            seam.samples.push(sample(&self.last)?);
        }
        Ok(seam)
    }
}

/// Whether these bytes may be what is left of a record: by a kill, or (zeros) by a loss of power. Anything else is
/// somebody's text, and not ours to cut off.
fn begins_a_record(bytes: &[u8]) -> bool {
    let length = bytes.len().min(RECORD_BEGINS.len());
    bytes[..length] == RECORD_BEGINS[..length] || bytes.iter().all(|&byte| byte == 0)
}

fn sample(record: &[u8]) -> Result<(String, Vec<f32>), String> {
    let sample: Sample =
        serde_json::from_slice(record).map_err(|error| format!("a record of the output: {error}"))?;
    Ok((sample.text, sample.embedding))
}

#[cfg(test)]
#[path = "kept_tests.rs"]
mod tests;
