//! `embeddings embed`: lines of stdin to vectors on stdout, with a model on this machine and no broker.
//!
//! One thread reads and parses, the main thread makes tokens, batches and JSON, the engine threads compute.
//! Batches are cut by tokens in the order of arrival: without padding, sorting by length gains nothing. Towards the end they
//! become smaller, so that the engines end at about the same time.

use crate::args::EmbedArgs;
use crate::clock::Clock;
use crate::engine::pool::{BatchResult, Pool, PoolEvent, Work};
use crate::engine::{LoadOptions, Model, device, pooling};
use anyhow::{Context, anyhow, bail};
use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};

/// Token budget of one batch. Larger ones leave the second-level cache and gain nothing.
const BATCH_TOKENS: usize = 512;
/// Nor are batches cut smaller than this: a batch goes through all weights, however few its rows.
const LEAST_TOKENS: usize = 192;
/// Bytes of English to a token, for what was not made into tokens yet.
const TOKEN_BYTES: usize = 4;
/// Lines read ahead, so that a stream of single texts fills batches.
const LINES_AHEAD: usize = 64;
/// Batches given to one engine at once: it computes one while the next lies ready.
const BATCHES_AHEAD: usize = 2;
/// Exit code of a line that is no JSON string or array of strings.
const BAD_LINE: u8 = 2;
/// And of an input that has no vector.
const BAD_INPUT: u8 = 1;

/// What a line of stdin holds.
#[derive(serde::Deserialize)]
#[serde(untagged, expecting = "not a JSON string or array of strings")]
enum Line {
    One(String),
    Many(Vec<String>),
}

enum Event {
    /// A line waits in the channel of lines.
    Line,
    /// Stdin has ended, or cannot be read.
    End(std::io::Result<()>),
    Done(usize, u64, BatchResult),
}

/// Runs the command until stdin closes.
pub fn run(args: &EmbedArgs) -> anyhow::Result<ExitCode> {
    let options = LoadOptions {
        precision: args.precision.parse().context("--precision")?,
        ..Default::default()
    };
    let model = Model::load(&args.model, &options, &mut |_| ())
        .with_context(|| format!("failed to load the model in {}", args.model.display()))?;
    let (events, inbox) = channel();
    let done = events.clone();
    let report = Arc::new(move |event| {
        if let PoolEvent::Done {
            engine,
            batch,
            result,
        } = event
        {
            // The receiver is gone only when the command has ended.
            let _ = done.send(Event::Done(engine, batch, result));
        }
    });
    let pool = Pool::start(
        args.threads.unwrap_or_else(device::threads),
        Clock::start(),
        report,
    )
    .context("failed to start the engine threads")?;
    let (lines, line) = sync_channel(LINES_AHEAD);
    std::thread::Builder::new()
        .name("io-stdin".into())
        .spawn(move || read(std::io::stdin().lock(), &lines, &events))
        .context("failed to start the reading thread")?;
    let engines = pool.engines();
    let out = std::io::BufWriter::with_capacity(1 << 16, std::io::stdout().lock());
    let mut embed = Embed {
        model: Arc::new(model),
        pool,
        out,
        line,
        lines_waiting: 0,
        ended: false,
        bad: None,
        texts: VecDeque::new(),
        tokens_waiting: 0,
        requests: VecDeque::new(),
        first_request: 0,
        batches: BTreeMap::new(),
        next_batch: 0,
        load: vec![0; engines],
    };
    match embed.turn(&inbox)? {
        None => Ok(ExitCode::SUCCESS),
        Some(bad) => {
            tell!("embeddings: {bad}");
            Ok(ExitCode::from(bad.code))
        }
    }
}

/// The line that ended the command; what came before it was answered.
#[derive(Debug, thiserror::Error)]
#[error("line {number} of stdin: {why}")]
struct BadLine {
    number: u64,
    why: String,
    /// What the command ends with.
    code: u8,
}

/// Parses lines until stdin ends. Blocks when enough of them wait.
fn read(
    mut stdin: impl BufRead,
    lines: &std::sync::mpsc::SyncSender<Result<Line, String>>,
    events: &Sender<Event>,
) {
    let mut text = Vec::new();
    let end = loop {
        text.clear();
        match stdin.read_until(b'\n', &mut text) {
            Ok(0) => break Ok(()),
            Err(error) => break Err(error),
            Ok(_) => {}
        }
        let line = parse(&text);
        if lines.send(line).is_err() || events.send(Event::Line).is_err() {
            return;
        }
    };
    let _ = events.send(Event::End(end));
}

/// What a line holds, or what is wrong with it.
fn parse(text: &[u8]) -> Result<Line, String> {
    if text.trim_ascii().is_empty() {
        return Err("it is empty, not a JSON string or array of strings".to_owned());
    }
    serde_json::from_slice(text).map_err(|error| {
        // Its line is one of this text, and would contradict the one of stdin.
        let place = format!(" at line {} column {}", error.line(), error.column());
        let why = error.to_string();
        why.strip_suffix(&place).unwrap_or(&why).to_owned()
    })
}

/// One line on its way.
struct Request {
    single: bool,
    /// The vectors as JSON, where they are ready.
    vectors: Vec<Option<Vec<u8>>>,
    missing: usize,
}

struct Embed<W: Write> {
    model: Arc<Model>,
    pool: Pool,
    out: W,
    line: Receiver<Result<Line, String>>,
    /// Lines in that channel.
    lines_waiting: usize,
    ended: bool,
    bad: Option<BadLine>,
    /// Texts without tokens: the request's number (counted from the start), their place in it, themselves.
    texts: VecDeque<(u64, usize, String)>,
    /// Tokens that these will become, roughly.
    tokens_waiting: usize,
    /// Lines in order; the first one has the number `first_request`.
    requests: VecDeque<Request>,
    first_request: u64,
    /// Which vectors each batch brings.
    batches: BTreeMap<u64, Vec<(u64, usize)>>,
    next_batch: u64,
    /// Batches at each engine.
    load: Vec<usize>,
}

impl<W: Write> Embed<W> {
    /// Works until stdin has ended and everything is answered, or up to the first bad line.
    fn turn(&mut self, inbox: &Receiver<Event>) -> anyhow::Result<Option<BadLine>> {
        loop {
            while let Ok(event) = inbox.try_recv() {
                self.hear(event)?;
            }
            let started = match self.free_engine() {
                Some(engine) => self.start_batch(engine)?,
                None => false,
            };
            let no_more = self.bad.is_some() || (self.ended && self.lines_waiting == 0);
            if no_more && self.texts.is_empty() && self.batches.is_empty() {
                return Ok(self.bad.take());
            }
            if !started {
                let event = inbox.recv().map_err(|_| anyhow!("all threads have ended"))?;
                self.hear(event)?;
            }
        }
    }

    fn hear(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Line => self.lines_waiting += 1,
            Event::End(end) => {
                end.context("failed to read stdin")?;
                self.ended = true;
            }
            Event::Done(engine, batch, result) => {
                self.load[engine] -= 1;
                self.finish_batch(batch, result)?;
            }
        }
        Ok(())
    }

    /// The engine with the fewest batches, if it has room.
    fn free_engine(&self) -> Option<usize> {
        let engine = (0..self.load.len()).min_by_key(|engine| self.load[*engine])?;
        (self.load[engine] < BATCHES_AHEAD).then_some(engine)
    }

    /// Makes one batch of what is there; false if nothing is.
    fn start_batch(&mut self, engine: usize) -> anyhow::Result<bool> {
        let model = self.model.clone();
        let info = model.info();
        let prompt = info
            .default_prompt
            .as_ref()
            .and_then(|name| info.prompts.get(name));
        let (mut sequences, mut places, mut tokens) = (Vec::new(), Vec::new(), 0);
        let budget = if self.lines_waiting == 0 {
            budget(self.tokens_waiting, self.load.len())
        } else {
            BATCH_TOKENS
        };
        while tokens < budget {
            let Some((request, index, text)) = self.texts.pop_front() else {
                if self.lines_waiting == 0 || self.bad.is_some() {
                    break;
                }
                self.take_line()?;
                continue;
            };
            let rough = rough_tokens(&text, info.max_tokens);
            self.tokens_waiting = self.tokens_waiting.saturating_sub(rough);
            let sequence = match model.tokenize(&text, prompt.map(String::as_str), true) {
                Ok(sequence) => sequence,
                Err(error) => {
                    self.spoil(request, format!("input {}: {error}", index + 1), BAD_INPUT);
                    continue;
                }
            };
            tokens += sequence.ids.len();
            sequences.push(sequence);
            places.push((request, index));
        }
        if sequences.is_empty() {
            return Ok(false);
        }
        let batch = self.next_batch;
        self.next_batch += 1;
        self.batches.insert(batch, places);
        self.load[engine] += 1;
        if self
            .pool
            .submit(
                engine,
                Work {
                    batch,
                    model,
                    sequences,
                    urgent: false,
                },
            )
            .is_err()
        {
            bail!("engine {engine} takes no work although it has room");
        }
        Ok(true)
    }

    /// Takes the next line that was read; its texts join the queue.
    fn take_line(&mut self) -> anyhow::Result<()> {
        self.lines_waiting -= 1;
        let number = self.first_request + self.requests.len() as u64;
        let (single, texts) = match self.line.recv().context("failed to hear of a line")? {
            Ok(Line::One(text)) => (true, vec![text]),
            Ok(Line::Many(texts)) => (false, texts),
            Err(why) => {
                self.spoil(number, why, BAD_LINE);
                return Ok(());
            }
        };
        let most = self.model.info().max_tokens;
        self.tokens_waiting += texts.iter().map(|text| rough_tokens(text, most)).sum::<usize>();
        let vectors = vec![None; texts.len()];
        self.requests.push_back(Request {
            single,
            missing: vectors.len(),
            vectors,
        });
        self.texts.extend(
            texts
                .into_iter()
                .enumerate()
                .map(|(index, text)| (number, index, text)),
        );
        self.write_finished()
    }

    fn finish_batch(&mut self, batch: u64, result: BatchResult) -> anyhow::Result<()> {
        let places = self.batches.remove(&batch).context("an unknown batch is done")?;
        for ((number, index), vector) in places.into_iter().zip(result?) {
            let vector = match vector {
                Ok(vector) => vector,
                Err(fault) => {
                    self.spoil(number, format!("input {}: {fault}", index + 1), BAD_INPUT);
                    continue;
                }
            };
            let vector = pooling::finish(vector, None, self.model.info().normalize);
            let request = &mut self.requests[(number - self.first_request) as usize];
            request.vectors[index] = Some(serde_json::to_vec(&vector)?);
            request.missing -= 1;
        }
        self.write_finished()
    }

    /// The line cannot be answered: those before it are, and nothing behind it. Of several the first counts.
    fn spoil(&mut self, line: u64, why: String, code: u8) {
        let number = line + 1;
        if self.bad.as_ref().is_some_and(|bad| bad.number <= number) {
            return;
        }
        self.bad = Some(BadLine { number, why, code });
        self.texts.retain(|(request, ..)| *request < line);
        self.tokens_waiting = 0;
    }

    /// Writes the lines at the head of the queue that are complete, each with a flush of its own.
    fn write_finished(&mut self) -> anyhow::Result<()> {
        while self.requests.front().is_some_and(|request| request.missing == 0) {
            let Some(request) = self.requests.pop_front() else {
                break;
            };
            self.first_request += 1;
            write(&mut self.out, &request).context("failed to write to stdout")?;
        }
        Ok(())
    }
}

/// Tokens that a text may become.
fn rough_tokens(text: &str, most: usize) -> usize {
    (text.len() / TOKEN_BYTES + 2).min(most)
}

/// Tokens of the next batch where `waiting` are all that is known of: half of an engine's share, so that what is left when
/// the first engine has nothing more to do becomes less and less.
fn budget(waiting: usize, engines: usize) -> usize {
    (waiting / (2 * engines.max(1))).clamp(LEAST_TOKENS, BATCH_TOKENS)
}

fn write(out: &mut impl Write, request: &Request) -> std::io::Result<()> {
    let vectors = request.vectors.iter().flatten();
    if request.single {
        for vector in vectors {
            out.write_all(vector)?;
        }
    } else {
        for (index, vector) in vectors.enumerate() {
            out.write_all(if index == 0 { b"[" } else { b"," })?;
            out.write_all(vector)?;
        }
        out.write_all(if request.vectors.is_empty() { b"[]" } else { b"]" })?;
    }
    out.write_all(b"\n")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_line_is_told_without_a_place_of_its_own() {
        let why = |text: &str| parse(text.as_bytes()).map(|_| ()).unwrap_err();
        for blank in ["\n", "", " \t\r\n"] {
            assert_eq!(why(blank), "it is empty, not a JSON string or array of strings");
        }
        assert_eq!(why("3\n"), "not a JSON string or array of strings");
        for broken in ["\"a\n", "[\"a\",\n", "\"a\" \"b\"\n", "\u{0}"] {
            assert!(!why(broken).contains("line"), "{broken:?}: {}", why(broken));
        }
        assert!(parse(b" [\"a\"] \n").is_ok());
    }

    // Goal: no engine waits long for the others at the end. Method: batches of what is left go to the engine that is
    // free first, for all amounts; the engines' ends lie no further apart than one least batch.
    #[test]
    fn engines_end_together() {
        for engines in 1..5 {
            for tokens in (1..9000).step_by(37) {
                let (mut left, mut ends) = (tokens, vec![0; engines]);
                while left > 0 {
                    let batch = budget(left, engines).min(left);
                    left -= batch;
                    *ends.iter_mut().min().unwrap() += batch;
                }
                let (first, last) = (ends.iter().min().unwrap(), ends.iter().max().unwrap());
                assert!(
                    last - first <= LEAST_TOKENS,
                    "{tokens} tokens on {engines} engines: {ends:?}"
                );
            }
        }
    }
}
