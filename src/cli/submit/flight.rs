//! The jobs between input and output: what is to be sent, what has come, what may be written. Decides only; it
//! never waits, and time and chance are parameters.
//!
//! ```text
//!             offer            next                          heard: all vectors, done, error
//!   Batch ----------> Waiting ------> UnderWay ------------------------------------------> Complete ---take--> Piece
//!                        ^               | heard: refused · lost · not_taken
//!                        +---------------+
//! ```
//! A job whose texts the service finds fault with is sent again in halves, until what is bad fails alone. Pieces leave in the order of the input, also out of a job that is not complete: as far as its lines are there.

use super::lines::{Batch, Line};
use super::pace::{Pace, stretched};
use crate::clock::Moment;
use crate::job::ErrorType;
use crate::job::received::{Heard, ReceivedError, Vectors};
use serde::Serialize;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Jobs that may be unfinished or wait for an earlier one, per job that may be under way.
const WINDOW: usize = 4;
/// No further batch is taken while the texts and vectors here are more than this. A single batch may be larger.
const BYTES_MAX: usize = 64 << 20;
/// A job of more lines than this is streamed: fewer are one batch of the service (`batch_inputs`), and of one batch
/// nothing could come earlier.
const PLAIN_MAX: usize = 32;
/// Pause before a retry where nothing says how long it should be.
const PAUSE_DEFAULT: Duration = Duration::from_secs(1);

/// How jobs are worded.
#[derive(Debug, Clone)]
pub struct Wording {
    /// First part of all ids; no other run uses it.
    pub run: String,
    /// Model name or alias.
    pub model: Option<String>,
    /// `query` or `document`.
    pub input_type: Option<&'static str>,
    /// Whether jobs that are large enough are streamed.
    pub stream: bool,
}

#[derive(Serialize)]
struct Body<'a> {
    input: Vec<&'a str>,
    encoding_format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_type: Option<&'static str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    stream: bool,
}

/// A vector, and whether its text was cut for it.
pub type Embedded = (Vec<f32>, bool);

/// Lines that have come to their end, in the order of the input.
#[derive(Debug, Default)]
pub struct Piece {
    /// Each with its vector, or why it has none.
    pub lines: Vec<(Line, Result<Embedded, Arc<str>>)>,
    /// Lines without any text, among and before these.
    pub empty: u64,
    /// What could not be read among and before these: where, and why.
    pub unreadable: Vec<(String, String)>,
    /// Bytes of the input that are done with.
    pub bytes: u64,
    /// Tokens the model read since the last piece.
    pub tokens: u64,
    /// Of the model that made the vectors.
    pub fingerprint: Option<Arc<str>>,
}

/// One job.
#[derive(Debug)]
struct Job {
    batch: Batch,
    /// What has come for each line; those that were taken are `None` again.
    answers: Vec<Option<Result<Embedded, Arc<str>>>>,
    /// Lines without an answer.
    missing: usize,
    /// Lines that have left.
    taken: usize,
    state: State,
    /// Counts the messages with different lines that were made of it.
    part: u32,
    /// The line for each index of the last message.
    wire: Vec<usize>,
    /// Lines that one message may have.
    wire_max: usize,
    /// Attempt and last error, while it is tried again.
    attempt: Option<(u32, String)>,
    fingerprint: Option<Arc<str>>,
    tokens: u64,
}

#[derive(Debug)]
enum State {
    Waiting { not_before: Moment },
    UnderWay { sent: Moment },
    Complete,
}

/// All jobs between input and output.
#[derive(Debug)]
pub struct Flight {
    wording: Wording,
    pace: Pace,
    jobs_max: usize,
    patience: Duration,
    jobs: VecDeque<Job>,
    /// Number of the first of them; they are numbered in the order of the input.
    first: u64,
    /// The jobs that are under way, by the ids of their messages.
    by_id: HashMap<String, u64>,
    /// Bytes of texts and vectors.
    held: usize,
    /// When something last got on, or when the waiting for it began.
    sign_of_life: Moment,
    refused: Option<String>,
}

/// A message to send.
#[derive(Debug)]
pub struct Sending {
    /// Its id.
    pub id: String,
    /// Its body.
    pub body: Vec<u8>,
}

impl Flight {
    /// No job yet. `patience` is how long nothing may get on.
    pub fn new(wording: Wording, jobs_max: usize, patience: Duration) -> Flight {
        Flight {
            wording,
            pace: Pace::new(jobs_max),
            jobs_max,
            patience,
            jobs: VecDeque::new(),
            first: 0,
            by_id: HashMap::new(),
            held: 0,
            sign_of_life: Moment::ZERO,
            refused: None,
        }
    }

    /// Whether another batch may be offered.
    pub fn has_room(&self) -> bool {
        self.jobs.len() < self.jobs_max * WINDOW && (self.held < BYTES_MAX || self.jobs.is_empty())
    }

    /// Whether nothing is left to wait for or to take.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Jobs that wait for an answer, or to be sent.
    pub fn unanswered(&self) -> usize {
        let complete = |job: &&Job| !matches!(job.state, State::Complete);
        self.jobs.iter().filter(complete).count()
    }

    /// How many jobs may be under way now.
    pub fn limit(&self) -> usize {
        self.pace.limit()
    }

    /// Whether fewer jobs may be under way than were asked for.
    pub fn is_slowed(&self) -> bool {
        self.pace.limit() < self.jobs_max
    }

    /// Takes in the next batch of the input.
    pub fn offer(&mut self, batch: Batch, now: Moment) {
        if self.unanswered() == 0 {
            // Until now nobody waited for anything.
            self.sign_of_life = self.sign_of_life.max(now);
        }
        let missing = batch.lines.len();
        self.held += batch.lines.iter().map(|line| line.text.len()).sum::<usize>();
        let state = match missing {
            0 => State::Complete,
            _ => State::Waiting { not_before: now },
        };
        let answers = std::iter::repeat_with(|| None).take(missing).collect();
        self.jobs.push_back(Job {
            batch,
            answers,
            missing,
            taken: 0,
            state,
            part: 0,
            wire: Vec::new(),
            wire_max: usize::MAX,
            attempt: None,
            fingerprint: None,
            tokens: 0,
        });
    }

    /// The next message to send now, if any. From now on its job is under way.
    pub fn next(&mut self, now: Moment) -> Option<Sending> {
        if !self.pace.may_send(self.by_id.len(), now) {
            return None;
        }
        let due = |job: &Job| matches!(job.state, State::Waiting { not_before } if not_before <= now);
        let at = self.jobs.iter().position(due)?;
        let number = self.first + at as u64;
        let job = &mut self.jobs[at];
        let wire: Vec<usize> = (0..job.answers.len())
            .filter(|&line| line >= job.taken && job.answers[line].is_none())
            .take(job.wire_max)
            .collect();
        if !job.wire.is_empty() && wire != job.wire {
            // Other lines are another job: under the old id the service might know an answer.
            job.part += 1;
        }
        job.wire = wire;
        let id = match job.part {
            0 => format!("{}-{number}", self.wording.run),
            part => format!("{}-{number}.{part}", self.wording.run),
        };
        let lines = &job.batch.lines;
        let body = Body {
            input: job.wire.iter().map(|&line| lines[line].text.as_str()).collect(),
            encoding_format: "base64",
            model: self.wording.model.as_deref(),
            input_type: self.wording.input_type,
            stream: self.wording.stream && job.wire.len() > PLAIN_MAX,
        };
        let body = serde_json::to_vec(&body).expect("writing plain data to memory cannot fail");
        job.state = State::UnderWay { sent: now };
        self.by_id.insert(id.clone(), number);
        Some(Sending { id, body })
    }

    /// The broker did not take a message: there is no such queue, or it is full.
    pub fn not_taken(&mut self, id: &str, cause: String, draw: f64, now: Moment) {
        self.refused = Some(cause);
        let not_before = now + stretched(PAUSE_DEFAULT, draw);
        if let Some(job) = self.ended(id) {
            job.state = State::Waiting { not_before };
        }
    }

    /// The connection is lost: what is unanswered is to be sent again. Says how many jobs that are.
    pub fn lost(&mut self, now: Moment) -> usize {
        self.by_id.clear();
        let mut count = 0;
        for job in &mut self.jobs {
            if let State::UnderWay { .. } = job.state {
                job.state = State::Waiting { not_before: now };
                count += 1;
            }
        }
        count
    }

    /// A message came for a job. `draw` is a random number from 0 to 1.
    pub fn heard(
        &mut self,
        id: &str,
        fingerprint: Option<Arc<str>>,
        heard: Result<Heard, String>,
        draw: f64,
        now: Moment,
    ) {
        // Late words for a job that was sent anew since, or has ended.
        let Some(&number) = self.by_id.get(id) else { return };
        let job = &mut self.jobs[(number - self.first) as usize];
        if let Ok(Heard::Error(error)) = &heard
            && may_retry(error)
        {
            self.refuse(id, error, draw, now);
            return;
        }
        self.sign_of_life = now;
        self.refused = None;
        let end = match heard {
            Ok(Heard::Progress(progress)) => {
                // The counter stays where a job has got over its trouble; the error does not.
                job.attempt = progress.last_error.map(|error| (progress.attempt, error));
                return;
            }
            Ok(Heard::Chunk(vectors)) => {
                job.fingerprint = fingerprint.or(job.fingerprint.take());
                let (bytes, taken) = job.take_in(vectors);
                self.held += bytes;
                match taken {
                    Ok(()) if job.unanswered() > 0 => return,
                    taken => taken,
                }
            }
            Ok(Heard::Result(vectors)) => {
                job.fingerprint = fingerprint.or(job.fingerprint.take());
                let count = vectors.data.len();
                let (bytes, taken) = job.take_in(vectors);
                self.held += bytes;
                let asked = job.wire.len();
                taken.and_then(|()| match job.unanswered() {
                    0 => Ok(()),
                    _ => Err(format!("the answer has {count} vectors for {asked} inputs")),
                })
            }
            Ok(Heard::Done(done)) => Err(format!(
                "the service says that its job of {} inputs is done, and {} vectors have not come",
                done.total,
                job.unanswered()
            )),
            Ok(Heard::Error(error)) if finds_fault_with_a_text(&error) && job.wire.len() > 1 => {
                job.wire_max = job.wire.len() / 2;
                Ok(())
            }
            Ok(Heard::Error(error)) => Err(said(&error)),
            Err(unreadable) => Err(format!("the answer cannot be read: {unreadable}")),
        };
        match end {
            // It was a part only, and got through.
            Ok(()) if job.unanswered() == 0 => job.wire_max = job.wire_max.saturating_mul(2),
            Ok(()) => {}
            Err(cause) => job.fail(&cause),
        }
        self.pace.answered();
        if let Some(job) = self.ended(id) {
            job.state = match job.missing {
                0 => State::Complete,
                _ => State::Waiting { not_before: now },
            };
            job.attempt = None;
        }
    }

    /// A refusal is no sign of life: nothing gets on by it.
    fn refuse(&mut self, id: &str, error: &ReceivedError, draw: f64, now: Moment) {
        self.refused = Some(said(error));
        let pause = error.retry_after_ms.map_or(PAUSE_DEFAULT, Duration::from_millis);
        let Some(&number) = self.by_id.get(id) else { return };
        let sent = match self.jobs[(number - self.first) as usize].state {
            State::UnderWay { sent, .. } => sent,
            _ => now,
        };
        let not_before = self.pace.refused(sent, pause, draw, now);
        if let Some(job) = self.ended(id) {
            job.state = State::Waiting { not_before };
        }
    }

    /// No further word of this message is waited for.
    fn ended(&mut self, id: &str) -> Option<&mut Job> {
        let number = self.by_id.remove(id)?;
        self.jobs.get_mut((number - self.first) as usize)
    }

    /// The next lines for the output, in the order of the input.
    pub fn take(&mut self) -> Option<Piece> {
        let job = self.jobs.front_mut()?;
        let mut piece = Piece {
            unreadable: std::mem::take(&mut job.batch.unreadable),
            empty: std::mem::take(&mut job.batch.empty),
            fingerprint: job.fingerprint.clone(),
            ..Piece::default()
        };
        while let Some(answer) = job.answers.get_mut(job.taken).and_then(Option::take) {
            let line = std::mem::take(&mut job.batch.lines[job.taken]);
            self.held -= line.text.len() + answer.as_ref().map_or(0, |(vector, _)| 4 * vector.len());
            piece.lines.push((line, answer));
            job.taken += 1;
        }
        if !piece.lines.is_empty() {
            piece.tokens = std::mem::take(&mut job.tokens);
        }
        if job.taken == job.answers.len() {
            piece.bytes = job.batch.bytes;
            self.jobs.pop_front();
            self.first += 1;
        }
        let nothing = piece.lines.is_empty() && piece.bytes == 0 && piece.unreadable.is_empty();
        (!nothing || piece.empty > 0).then_some(piece)
    }

    /// When to look again, if nothing is heard until then. Without a connection nothing can be sent.
    pub fn wake(&self, connected: bool) -> Option<Moment> {
        let waiting = self.jobs.iter().filter_map(|job| match job.state {
            State::Waiting { not_before } => Some(not_before),
            _ => None,
        });
        let may_send = connected && self.by_id.len() < self.pace.limit();
        let send = waiting.min().filter(|_| may_send);
        let send = send.map(|at| at.max(self.pace.held_until()));
        let give_up = (self.unanswered() > 0).then(|| self.sign_of_life + self.patience);
        [send, give_up].into_iter().flatten().min()
    }

    /// This process stood still until now, so nobody knows how long the service was silent.
    pub fn was_stopped(&mut self, now: Moment) {
        self.sign_of_life = self.sign_of_life.max(now);
    }

    /// Why no more is waited for, when nothing got on for too long.
    pub fn gives_up(&self, now: Moment) -> Option<String> {
        let silent = now.since(self.sign_of_life);
        if self.unanswered() == 0 || silent < self.patience {
            return None;
        }
        let (patience, unanswered) = (self.patience.as_secs(), self.unanswered());
        let last = self.refused.as_ref();
        let last = last.map_or(String::new(), |cause| format!("; last refused with {cause}"));
        Some(format!(
            "nothing got on for {patience} s (--timeout), {unanswered} jobs are unanswered{last}"
        ))
    }

    /// The attempt and the last error of the job that has the hardest time.
    pub fn trouble(&self) -> Option<(u32, &str)> {
        let tried = self.jobs.iter().filter_map(|job| job.attempt.as_ref());
        let worst = tried.max_by_key(|(attempt, _)| *attempt)?;
        Some((worst.0, &worst.1))
    }
}

impl Job {
    /// Puts vectors into their places. One that is there already came twice, and is dropped. Says how many bytes
    /// were kept, and what was wrong.
    fn take_in(&mut self, vectors: Vectors) -> (usize, Result<(), String>) {
        let (mut bytes, mut fresh) = (0, false);
        for item in vectors.data {
            let Some(&line) = self.wire.get(item.index) else {
                return (
                    bytes,
                    Err(format!("the answer has a vector {} out of place", item.index)),
                );
            };
            if item.embedding.is_empty() {
                return (
                    bytes,
                    Err(format!("vector {} of the answer is empty", item.index)),
                );
            }
            if line < self.taken || self.answers[line].is_some() {
                continue;
            }
            let truncated = vectors.truncated.contains(&item.index);
            bytes += 4 * item.embedding.len();
            self.answers[line] = Some(Ok((item.embedding, truncated)));
            self.missing -= 1;
            fresh = true;
        }
        if fresh {
            self.tokens += vectors.usage.total_tokens;
        }
        (bytes, Ok(()))
    }

    /// Lines of the last message that have no answer.
    fn unanswered(&self) -> usize {
        let open = |line: &&usize| **line >= self.taken && self.answers[**line].is_none();
        self.wire.iter().filter(open).count()
    }

    /// The lines of the last message that have no vector will have none.
    fn fail(&mut self, cause: &str) {
        let cause: Arc<str> = cause.into();
        for &line in self.wire.iter().filter(|&&line| line >= self.taken) {
            if self.answers[line].is_none() {
                self.answers[line] = Some(Err(cause.clone()));
                self.missing -= 1;
            }
        }
    }
}

/// Whether the same job may be answered later.
fn may_retry(error: &ReceivedError) -> bool {
    let passing = [
        ErrorType::Overloaded,
        ErrorType::Draining,
        ErrorType::DeadlineExceeded,
    ];
    passing.iter().any(|passing| passing.name() == error.r#type)
}

/// Whether other texts might be taken: too long, nothing that the tokenizer knows, too many of them, one whose vector is no vector.
fn finds_fault_with_a_text(error: &ReceivedError) -> bool {
    let faults = [
        ErrorType::Internal,
        ErrorType::InvalidRequest,
        ErrorType::InputTooLong,
        ErrorType::TooManyInputs,
    ];
    error.param.as_deref() == Some("input") && faults.iter().any(|fault| fault.name() == error.r#type)
}

fn said(error: &ReceivedError) -> String {
    format!("{} {}: {}", error.code, error.r#type, error.message)
}

#[cfg(test)]
#[path = "flight_tests.rs"]
mod tests;
