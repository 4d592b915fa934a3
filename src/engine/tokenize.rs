//! Text to tokens, for texts of any size and content.
//!
//! A text is worked off window by window until there are enough tokens, so a text of megabytes costs no more
//! than its first pages. The result is exactly that of the whole text: a word that a window cuts is carried
//! over, and a window never ends inside one of the tokenizer's own tokens or between a letter and its marks.

use super::LoadError;
use super::folder::{parse, read, refuse};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{
    Model as _, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _, Tokenizer,
};
use unicode_normalization_alignments::char::canonical_combining_class;

/// Bytes of text looked at at once. Some 1500 tokens of English: most texts are done with the first.
const WINDOW: usize = 8192;

/// The tokens of one text, ready for an engine. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Token numbers, those that the tokenizer adds at both ends included.
    pub ids: Arc<[u32]>,
    /// Whether tokens were cut off to keep the model's limit.
    pub truncated: bool,
    /// Leading tokens that belong to the prompt, with what the tokenizer puts before it.
    pub prompt_tokens: usize,
}

/// Why a text has no tokens.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenizeError {
    /// The text is longer than the model takes, and was not to be cut.
    #[error("input has more than {limit} tokens, the model's limit")]
    TooLong {
        /// Tokens that the model takes.
        limit: usize,
    },
    /// The tokenizer failed, which a sound `tokenizer.json` never does.
    #[error("the tokenizer failed: {0}")]
    Failed(String),
}

/// A model's tokenizer.
#[derive(Debug)]
pub(super) struct Tokenize {
    tokenizer: Tokenizer,
    /// What stands before and behind each text.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    /// The texts of the tokenizer's own tokens, such as `[MASK]`.
    added: Vec<String>,
    /// A word of more characters is one unknown token, however long it is.
    word_chars: usize,
    lower_case: bool,
    max_tokens: usize,
}

impl Tokenize {
    /// Loads `tokenizer.json`.
    pub fn load(
        dir: &Path,
        max_tokens: usize,
        lower_case: bool,
        vocabulary: usize,
    ) -> Result<Tokenize, LoadError> {
        let file = dir.join("tokenizer.json");
        let mut tokenizer: Tokenizer = parse(&file, &read(&file)?)?;
        let failed = |error: tokenizers::Error| LoadError::Corrupt {
            file: file.clone(),
            why: error.to_string(),
        };
        // The file's own settings are those of its last training run, not of this service.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(failed)?;
        let ModelWrapper::WordPiece(model) = tokenizer.get_model() else {
            return Err(refuse(&file, "model.type", "another than WordPiece", "WordPiece"));
        };
        let word_chars = model.max_input_chars_per_word;
        if !matches!(
            tokenizer.get_normalizer(),
            Some(NormalizerWrapper::BertNormalizer(_))
        ) {
            return Err(refuse(
                &file,
                "normalizer.type",
                "another than BertNormalizer",
                "BertNormalizer",
            ));
        }
        if !matches!(
            tokenizer.get_pre_tokenizer(),
            Some(PreTokenizerWrapper::BertPreTokenizer(_))
        ) {
            return Err(refuse(
                &file,
                "pre_tokenizer.type",
                "another than BertPreTokenizer",
                "BertPreTokenizer",
            ));
        }
        let size = tokenizer.get_vocab_size(true);
        if size > vocabulary {
            return Err(refuse(
                &file,
                "vocabulary",
                size,
                &format!("vocab_size of config.json, {vocabulary}"),
            ));
        }
        // What is put around a text shows when a text is encoded with and without it.
        let bare = tokenizer.encode_fast("a", false).map_err(failed)?;
        let full = tokenizer.encode_fast("a", true).map_err(failed)?;
        let place = full
            .get_ids()
            .windows(bare.len().max(1))
            .position(|part| part == bare.get_ids());
        let Some(place) = place else {
            return Err(refuse(
                &file,
                "post_processor",
                "one that changes the text's tokens",
                "a template",
            ));
        };
        if full.get_type_ids().iter().any(|kind| *kind != 0) {
            return Err(refuse(
                &file,
                "post_processor",
                "token types other than 0",
                "token type 0",
            ));
        }
        let (prefix, rest) = full.get_ids().split_at(place);
        let suffix = &rest[bare.len()..];
        if prefix.len() + suffix.len() >= max_tokens {
            let supported = format!(
                "more than the {} tokens around a text",
                prefix.len() + suffix.len()
            );
            return Err(refuse(
                &dir.join("sentence_bert_config.json"),
                "max_seq_length",
                max_tokens,
                &supported,
            ));
        }
        Ok(Tokenize {
            prefix: prefix.to_vec(),
            suffix: suffix.to_vec(),
            added: tokenizer
                .get_added_tokens_decoder()
                .into_values()
                .map(|token| token.content)
                .collect(),
            word_chars,
            lower_case,
            max_tokens,
            tokenizer,
        })
    }

    /// See [`super::Model::tokenize`].
    pub fn sequence(
        &self,
        text: &str,
        prompt: Option<&str>,
        truncate: bool,
        step: &mut dyn FnMut(),
    ) -> Result<Sequence, TokenizeError> {
        let room = self.max_tokens - self.prefix.len() - self.suffix.len();
        let (mut content, mut prompt_tokens) = (Vec::new(), 0);
        match prompt.filter(|prompt| !prompt.is_empty()) {
            None => self.content(text, room + 1, &mut content, step)?,
            Some(prompt) => {
                self.content(prompt, room, &mut content, step)?;
                // As in the reference: the prompt alone, with what stands before it and not what stands behind.
                prompt_tokens = self.prefix.len() + content.len();
                content.clear();
                self.content(&[prompt, text].concat(), room + 1, &mut content, step)?;
            }
        }
        let truncated = content.len() > room;
        if truncated && !truncate {
            return Err(TokenizeError::TooLong {
                limit: self.max_tokens,
            });
        }
        content.truncate(room);
        let ids = self
            .prefix
            .iter()
            .chain(&content)
            .chain(&self.suffix)
            .copied()
            .collect();
        Ok(Sequence {
            ids,
            truncated,
            prompt_tokens,
        })
    }

    /// The first tokens of a text: at least `enough` where there are as many. `step` is called for each window.
    fn content(
        &self,
        text: &str,
        enough: usize,
        tokens: &mut Vec<u32>,
        step: &mut dyn FnMut(),
    ) -> Result<(), TokenizeError> {
        let lower;
        let text = if self.lower_case {
            lower = text.to_lowercase();
            &lower
        } else {
            text
        };
        // Normalised text whose last word may go on in the next window.
        let mut carried = String::new();
        let mut first = 0;
        while first < text.len() && tokens.len() < enough {
            let end = self.window_end(text, first);
            let last = end == text.len();
            let window = self
                .tokenizer
                .get_added_vocabulary()
                .extract_and_normalize(self.tokenizer.get_normalizer(), &text[first..end]);
            for (part, _, own) in window.get_splits(OffsetReferential::Normalized, OffsetType::None) {
                match own {
                    None => {
                        carried.push_str(part);
                        self.words(&mut carried, false, tokens)?;
                    }
                    Some(own) => {
                        self.words(&mut carried, true, tokens)?;
                        tokens.extend(own.iter().map(|token| token.id));
                    }
                }
            }
            if last {
                self.words(&mut carried, true, tokens)?;
            }
            first = end;
            step();
        }
        Ok(())
    }

    /// Turns the words of `text` into tokens. Unless `whole`, the last one stays there if nothing ends it.
    fn words(&self, text: &mut String, whole: bool, tokens: &mut Vec<u32>) -> Result<(), TokenizeError> {
        let failed = |error: tokenizers::Error| TokenizeError::Failed(error.to_string());
        let mut words = PreTokenizedString::from(text.as_str());
        if let Some(pre_tokenizer) = self.tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut words).map_err(failed)?;
        }
        let words = words.get_splits(OffsetReferential::Normalized, OffsetType::None);
        let open = words
            .last()
            .map(|(word, ..)| *word)
            .filter(|word| !whole && text.ends_with(word));
        for (word, ..) in &words[..words.len() - usize::from(open.is_some())] {
            tokens.extend(
                self.tokenizer
                    .get_model()
                    .tokenize(word)
                    .map_err(failed)?
                    .iter()
                    .map(|token| token.id),
            );
        }
        // What is too long for a word needs no more than to be seen as such.
        *text = open.map_or_else(String::new, |word| {
            word.chars().take(self.word_chars + 1).collect()
        });
        Ok(())
    }

    /// Where a window that begins at `first` ends: near [`WINDOW`], before a character that stands for itself,
    /// and neither inside nor beside one of the tokenizer's own tokens.
    fn window_end(&self, text: &str, first: usize) -> usize {
        let mut end = first + WINDOW;
        if end >= text.len() {
            return text.len();
        }
        end = (first + 1..=end)
            .rev()
            .find(|at| text.is_char_boundary(*at))
            .unwrap_or(text.len());
        let marks = |at: usize| {
            text[at..]
                .chars()
                .next()
                .is_some_and(|c| canonical_combining_class(c) != 0)
        };
        let longest = self.added.iter().map(String::len).max().unwrap_or(0);
        let cuts = |at: usize, beside: bool| {
            let from = (0..=at.saturating_sub(longest))
                .rev()
                .find(|at| text.is_char_boundary(*at))
                .unwrap_or(0);
            let to = (at + longest..text.len())
                .find(|at| text.is_char_boundary(*at))
                .unwrap_or(text.len());
            let around = &text[from..to];
            self.added.iter().filter(|token| !token.is_empty()).any(|token| {
                around.match_indices(token.as_str()).any(|(place, _)| {
                    let begin = from + place;
                    let end = begin + token.len();
                    (begin < at && at < end) || (beside && (begin == at || end == at))
                })
            })
        };
        let candidates = (first + WINDOW / 2..=end)
            .rev()
            .filter(|at| text.is_char_boundary(*at));
        // Where half a window is nothing but tokens, it ends between two of them. Where it is nothing but
        // marks, it ends between two of those: the order of marks is lost, which matters to none of the
        // normaliser's forms that keep them.
        (candidates.clone().find(|at| !marks(*at) && !cuts(*at, true)))
            .or_else(|| candidates.clone().find(|at| !cuts(*at, false)))
            .unwrap_or(end)
    }
}

/// What a tokenizer thread does; it calls its parameter as it gets on.
pub type Job = Box<dyn FnOnce(&mut dyn FnMut()) + Send>;

/// Calls of a job's step that make one report: a few milliseconds of work, and of a word of megabytes a
/// fraction of a second.
const STEPS_A_REPORT: u32 = 64;

/// What a tokenizer thread reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It took up a job.
    Began,
    /// It got on in it.
    Step,
    /// It is through with it.
    Ended,
    /// It was asked whether it still works.
    Tried,
}

/// Takes reports on the tokenizer's thread, with its number; only for a [`Progress::Step`] it must not wait.
pub type Report = Arc<dyn Fn(usize, Progress) + Send + Sync>;

/// Threads that turn text into tokens, named `tokenize-0` and so on, and one bounded queue for all of them.
///
/// A job that panics ends its thread through the panic hook; nothing here catches it.
#[derive(Debug)]
pub struct Tokenizers {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Queue {
    capacity: usize,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    jobs: VecDeque<Job>,
    /// Per thread, whether it owes an answer.
    asked: Vec<bool>,
    closed: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} jobs", self.jobs.len())
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tokenizers {
    /// Starts `threads` threads (at least one) with room for `capacity` waiting jobs.
    ///
    /// # Errors
    /// The system starts no more threads.
    pub fn start(threads: usize, capacity: usize, report: Report) -> std::io::Result<Tokenizers> {
        let threads = threads.max(1);
        let state = State {
            jobs: VecDeque::new(),
            asked: vec![false; threads],
            closed: false,
        };
        let queue = Arc::new(Queue {
            capacity,
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let threads = (0..threads)
            .map(|index| {
                let (queue, report) = (queue.clone(), report.clone());
                std::thread::Builder::new()
                    .name(format!("tokenize-{index}"))
                    .spawn(move || work(index, &queue, &report))
            })
            .collect::<std::io::Result<Vec<_>>>()?;
        Ok(Tokenizers { queue, threads })
    }

    /// Queues a job, or hands it back when the queue is full.
    ///
    /// # Errors
    /// The job itself.
    pub fn submit(&self, job: Job) -> Result<(), Job> {
        let mut state = self.queue.lock();
        if state.jobs.len() >= self.queue.capacity {
            return Err(job);
        }
        state.jobs.push_back(job);
        drop(state);
        self.queue.changed.notify_one();
        Ok(())
    }

    /// Has a thread report [`Progress::Tried`], before it takes up another job.
    pub fn ask(&self, thread: usize) {
        if let Some(asked) = self.queue.lock().asked.get_mut(thread) {
            *asked = true;
        }
        self.queue.changed.notify_all();
    }
}

impl Drop for Tokenizers {
    /// Lets the queue run empty and waits for the threads.
    fn drop(&mut self) {
        self.queue.lock().closed = true;
        self.queue.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A panic has been through the hook already.
            let _ = thread.join();
        }
    }
}

enum Next {
    Job(Job),
    Answer,
    End,
}

fn next(index: usize, queue: &Queue) -> Next {
    let mut state = queue.lock();
    loop {
        if std::mem::take(&mut state.asked[index]) {
            return Next::Answer;
        }
        if let Some(job) = state.jobs.pop_front() {
            return Next::Job(job);
        }
        if state.closed {
            return Next::End;
        }
        state = queue.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

fn work(index: usize, queue: &Queue, report: &Report) {
    loop {
        let job = match next(index, queue) {
            Next::Job(job) => job,
            Next::Answer => {
                report(index, Progress::Tried);
                continue;
            }
            Next::End => return,
        };
        report(index, Progress::Began);
        let mut steps = 0;
        job(&mut || {
            steps += 1;
            if steps % STEPS_A_REPORT == 0 {
                report(index, Progress::Step);
            }
        });
        report(index, Progress::Ended);
    }
}
