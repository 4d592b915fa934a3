//! What is embedded: texts that come with the program, the same on every machine, or the lines of a file.

use super::Ended;
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// Sentences of the World Factbook, which is in the public domain, country by country; `scripts/bench-texts` makes
/// them. Numbers of different machines can be compared only over the same texts, so they are a part of the program.
const BUILT_IN: &str = include_str!("texts.txt");
/// Texts that are used of a file. Retrieval compares each with each, so its time grows with the square.
const TEXTS_MAX: usize = 4096;
/// Longest line of a file, in bytes. No model reads as much.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// A built-in text of so many words or fewer is short: 8 to 24 tokens of most tokenizers.
const SHORT_WORDS: usize = 16;
/// Words of a long built-in text: more than 256 tokens of most tokenizers, where all-MiniLM-L6-v2 cuts.
const LONG_WORDS: usize = 220;
/// Sentences of the mixed built-in texts, in turn: some 60 tokens on average, some 200 at most.
const MIXED_SENTENCES: [usize; 10] = [1, 1, 1, 2, 1, 3, 1, 2, 1, 6];

/// The texts of a run.
#[derive(Debug)]
pub struct Texts {
    /// The file, or `built-in`.
    pub source: String,
    /// Over all that are used, in hexadecimal.
    pub sha256: String,
    /// Distinct and not empty, in the order in which they stand.
    pub lines: Vec<String>,
    /// What should be known of the choice.
    pub note: Option<String>,
    own: bool,
}

/// Texts of one kind, in an order that has nothing to do with where they come from.
#[derive(Debug)]
pub struct Workload {
    /// Last part of the measure's name.
    pub name: &'static str,
    /// At least one.
    pub texts: Vec<String>,
}

impl Texts {
    /// The built-in texts.
    pub fn built_in() -> Texts {
        let lines = BUILT_IN.lines().map(str::to_owned).collect();
        Texts::of("built-in".to_owned(), lines, None, false)
    }

    /// The lines of a file, or so many of them, evenly spread, as there may be at most.
    ///
    /// # Errors
    /// A file that cannot be read, a line that is no text, or no text at all.
    pub fn open(path: &Path) -> Result<Texts, Ended> {
        let shown = path.display();
        let usage = |problem: String| Ended::usage(format!("--texts {shown}{problem}"));
        let file = File::open(path).map_err(|error| usage(format!(" cannot be opened: {error}")))?;
        let mut reader = BufReader::new(file);
        let mut thin = Thin::new(TEXTS_MAX);
        for number in 1u64.. {
            let mut bytes = Vec::new();
            let read = (&mut reader)
                .take(LINE_BYTES_MAX + 1)
                .read_until(b'\n', &mut bytes)
                .map_err(|error| usage(format!(":{number} cannot be read: {error}")))?;
            if read == 0 {
                break;
            }
            if bytes.len() as u64 > LINE_BYTES_MAX {
                return Err(usage(format!(":{number} is longer than {LINE_BYTES_MAX} bytes")));
            }
            let text = std::str::from_utf8(&bytes).map_err(|_| usage(format!(":{number} is not UTF-8")))?;
            if !text.trim().is_empty() {
                thin.push(text.trim().to_owned());
            }
        }
        if thin.seen == 0 {
            return Err(usage(" holds no text; one text a line is expected".to_owned()));
        }
        let used = thin.kept.len() as u64;
        let note = (used < thin.seen).then(|| {
            format!(
                "{used} of the {} lines of {shown} are used, evenly spread",
                thin.seen
            )
        });
        Ok(Texts::of(shown.to_string(), thin.kept, note, true))
    }

    fn of(source: String, lines: Vec<String>, note: Option<String>, own: bool) -> Texts {
        let mut seen = HashSet::new();
        let lines: Vec<String> = lines
            .into_iter()
            .filter(|line| seen.insert(line.clone()))
            .collect();
        let digest = Sha256::digest(lines.join("\n").as_bytes());
        Texts {
            source,
            sha256: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
            lines,
            note,
            own,
        }
    }

    /// What the engine is measured on: short, mixed and long texts, or the lines of the file.
    pub fn workloads(&self) -> Vec<Workload> {
        if self.own {
            return vec![Workload::of("own", self.lines.clone())];
        }
        vec![self.short(), self.mixed(), self.long()]
    }

    /// What is sent one at a time.
    pub fn single(&self) -> Workload {
        if self.own {
            Workload::of("own", self.lines.clone())
        } else {
            self.short()
        }
    }

    /// What is sent in bulk.
    pub fn bulk(&self) -> Workload {
        if self.own {
            Workload::of("own", self.lines.clone())
        } else {
            self.mixed()
        }
    }

    fn short(&self) -> Workload {
        let short = |line: &&String| words(line) <= SHORT_WORDS;
        Workload::of("short", self.lines.iter().filter(short).cloned().collect())
    }

    fn mixed(&self) -> Workload {
        let mut lines = &self.lines[..];
        let mut texts = Vec::new();
        for sentences in MIXED_SENTENCES.iter().cycle() {
            if lines.is_empty() {
                break;
            }
            let (text, rest) = lines.split_at((*sentences).min(lines.len()));
            texts.push(text.join(" "));
            lines = rest;
        }
        Workload::of("mixed", texts)
    }

    fn long(&self) -> Workload {
        let mut texts = Vec::new();
        let mut text = String::new();
        for line in &self.lines {
            text.push_str(if text.is_empty() { "" } else { " " });
            text.push_str(line);
            if words(&text) >= LONG_WORDS {
                texts.push(std::mem::take(&mut text));
            }
        }
        Workload::of("long", texts)
    }
}

impl Workload {
    fn of(name: &'static str, mut texts: Vec<String>) -> Workload {
        shuffle(&mut texts);
        Workload { name, texts }
    }
}

fn words(text: &str) -> usize {
    text.split_whitespace().count()
}

/// Fisher and Yates' shuffle by SplitMix64 from a fixed seed: the same order in every run and every version, and the
/// beginning of the list is like the whole of it.
fn shuffle(texts: &mut [String]) {
    let mut state = 42u64;
    for last in (1..texts.len()).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let chosen = (mixed % (last as u64 + 1)) as usize;
        texts.swap(last, chosen);
    }
}

/// Keeps every n-th of what comes, with n a power of two, so that no more than `max` are kept of any number.
#[derive(Debug)]
struct Thin {
    max: usize,
    every: u64,
    seen: u64,
    kept: Vec<String>,
}

impl Thin {
    fn new(max: usize) -> Thin {
        Thin {
            max,
            every: 1,
            seen: 0,
            kept: Vec::new(),
        }
    }

    fn push(&mut self, text: String) {
        if self.seen.is_multiple_of(self.every) {
            self.kept.push(text);
        }
        self.seen += 1;
        if self.kept.len() > self.max {
            let mut place = 0;
            self.kept.retain(|_| {
                place += 1;
                place % 2 == 1
            });
            self.every *= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Goal: the built-in texts are what the help and the documents say of them.
    #[test]
    fn the_built_in_texts_are_thousands_and_of_three_lengths() {
        let texts = Texts::built_in();
        assert_eq!(texts.lines.len(), BUILT_IN.lines().count(), "no text twice");
        assert!(texts.lines.len() >= 3000, "{}", texts.lines.len());
        assert_eq!(texts.sha256.len(), 64);
        let workloads = texts.workloads();
        let names: Vec<&str> = workloads.iter().map(|workload| workload.name).collect();
        assert_eq!(names, ["short", "mixed", "long"]);
        let mean = |at: usize| {
            let texts = &workloads[at].texts;
            texts.iter().map(|text| words(text)).sum::<usize>() / texts.len()
        };
        assert!((8..=16).contains(&mean(0)), "{}", mean(0));
        assert!((35..=60).contains(&mean(1)), "{}", mean(1));
        assert!((LONG_WORDS..LONG_WORDS + 55).contains(&mean(2)), "{}", mean(2));
        assert!(workloads.iter().all(|workload| workload.texts.len() > 200));
        assert_eq!(texts.mixed().texts, workloads[1].texts, "the same at every call");
    }

    #[test]
    fn a_file_gives_its_lines_and_what_is_wrong_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("texts");
        let open = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Texts::open(&path)
        };
        let texts = open(b"one\r\n\n  two \none\nthree").unwrap();
        assert_eq!(texts.lines, ["one", "two", "three"]);
        assert_eq!(texts.workloads().len(), 1);
        assert_eq!(texts.workloads()[0].name, "own");
        let problem = |bytes: &[u8]| open(bytes).unwrap_err().to_string();
        assert!(problem(b"\n \n").ends_with("holds no text; one text a line is expected"));
        assert!(problem(b"a\n\xff\n").ends_with(":2 is not UTF-8"));
        assert!(problem(&vec![b'a'; LINE_BYTES_MAX as usize + 1]).contains(":1 is longer than"));
        assert!(
            Texts::open(dir.path())
                .unwrap_err()
                .to_string()
                .contains("cannot be read")
        );
    }

    proptest! {
        /// Goal: of any number of lines a bounded number is kept, evenly spread, and more than half of the bound.
        #[test]
        fn thinning_is_even(max in 1usize..40, count in 1u64..2000) {
            let mut thin = Thin::new(max);
            (0..count).for_each(|number| thin.push(number.to_string()));
            prop_assert_eq!(thin.seen, count);
            prop_assert!(thin.kept.len() <= max);
            prop_assert!(thin.every == 1 || thin.kept.len() * 2 > max);
            for (place, kept) in thin.kept.iter().enumerate() {
                prop_assert_eq!(kept, &(place as u64 * thin.every).to_string());
            }
        }

        #[test]
        fn shuffling_loses_nothing(count in 0usize..200) {
            let before: Vec<String> = (0..count).map(|number| format!("{number:03}")).collect();
            let mut after = before.clone();
            shuffle(&mut after);
            prop_assert!(count < 20 || after != before);
            after.sort();
            prop_assert_eq!(after, before);
        }
    }
}
