//! A job's life here, from its delivery to its acknowledgement.

use super::event::{Streaming, Ticket};
use crate::clock::Moment;
use crate::job::chunks::Chunks;
use crate::job::{JobKey, Lane, Refusal};
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

/// Where a job stands.
///
/// ```text
///  Delivered ──suspect─────────────────────────────────────────────> Moving ───────────────┐
///      │ admit   └─refuse─────────────────────────┐                   ^  ^ next slice         v
///      ├─ its model is not there ──> Awaiting ──Loaded──> Tokenizing    (a canary: Trying ──Tried──> Replying)
///      v
///  Twin <──Twin── Tokenizing; Twin ──Parted──> Tokenizing, Twin ──Recalled──> Replying
///  Tokenizing ──Tokenized──> Waiting ──draw──> Computing ──all computed──> Replying ──Confirmed──> Acking ──Acked──> gone
///      │ refuse                 │ deadline          │ failed           |       ^ │ rejected        ^
///      └────────────────────────┴───────────────────┼──────────────────┼───────┘ │                 │
///                                                   └──> again? ──yes──┘ <───────┘                 │
///                                                           └──no──> DeadLettering ────────────────┘
///  A plain job that is Computing for longer than a delivery may be held: ──> Replying
///  Called: as Delivered, and Replying ──HandedOver──> gone; CallerGone: nothing further of it is begun
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its model is on its way into memory.
    Awaiting,
    /// A canary whose model is not in memory: an engine is asked for a computation of its own.
    Trying,
    /// Its texts are being tokenized.
    Tokenizing,
    /// Another job computes the very same. It is in no stage: whatever holds it up holds up the other.
    Twin,
    /// Tokenized, none of its inputs in a batch yet.
    Waiting,
    /// Some of its inputs are or have been in a batch.
    Computing,
    /// Its answer is on its way; `vectors` tells an answer from a refusal.
    Replying {
        /// Whether the answer holds vectors.
        vectors: bool,
    },
    /// What is left of it is on its way to a queue of ours.
    Moving {
        /// Whether chunks of it are out.
        slice: bool,
    },
    /// Its copy is on its way to the dead-letter queue.
    DeadLettering,
    /// Its acknowledgement is being written.
    Acking {
        /// Whether the sender's answer held vectors and found a queue.
        end: End,
    },
}

/// What a job will have come to once it is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Vectors in the sender's queue.
    Answered,
    /// Vectors that nobody waited for any more.
    Returned,
    /// A refusal was sent.
    Refused,
    /// A refusal that nobody waited for any more.
    RefusalReturned,
    /// It goes on from another queue; `slice` says that a slice of it has been sent.
    MovedOn {
        /// Whether chunks of it are out.
        slice: bool,
    },
    /// Dead-lettered.
    DeadLettered,
}

/// Where a job came from, which is where its answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A queue of the broker.
    Queue,
    /// Nowhere: a canary that never sees the broker.
    Within,
    /// A connection on which its caller waits.
    Connection,
}

/// One job.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its lane.
    pub lane: Lane,
    /// What it asks for.
    pub ticket: Ticket,
    /// Whether it was admitted, and so counts against the bounds.
    pub admitted: bool,
    /// Whether it holds its model in memory.
    pub holds_model: bool,
    /// Whether a refusal can be sent, or only dead-lettered.
    pub answerable: bool,
    /// Where it came from.
    pub source: Source,
    /// A look ahead brought it, beyond what the consumer may hold.
    pub fetched: bool,
    /// Its caller has gone away: what is computed of it ends there, and nothing more is begun.
    pub gone: bool,
    /// When it was delivered.
    pub delivered: Moment,
    /// When it entered the stage in which it is.
    pub entered: Moment,
    /// When its first input went into a batch.
    pub begun: Option<Moment>,
    /// Where it stands.
    pub phase: Phase,
    /// Tokens of each input, once known.
    pub tokens: Vec<usize>,
    /// Which inputs have been put into a batch.
    drawn: Vec<bool>,
    /// The first input that has not.
    first_undrawn: usize,
    /// How many have not.
    pub undrawn: usize,
    /// Inputs in engines now.
    pub computing: usize,
    /// Why it fails, if it does.
    pub failure: Option<Refusal>,
    /// Which attempt this is; the first is 1.
    pub attempt: u32,
    /// It is computed with no other job's inputs.
    pub alone: bool,
    /// What its sender is told once its copy lies in the dead-letter queue.
    pub last_word: Option<Refusal>,
    /// Its chunks, if it is streamed.
    pub stream: Option<Stream>,
}

/// Where a slice ends that is to end early: no further input goes into a batch but those before that place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cut {
    /// With the last chunk that is begun.
    BehindChunk,
    /// With the last input that is begun, which makes its chunk a shorter one.
    WithinChunk,
}

/// What an early end leaves out of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// How many inputs.
    pub inputs: usize,
    /// The chunk that has all its inputs computed now that it is shorter: its first input, and how many it has.
    pub completed: Option<(usize, usize)>,
}

/// The chunks of a slice.
#[derive(Clone, Debug)]
pub struct Stream {
    chunks: Chunks,
    /// Whether the slice is the last of its job.
    pub last: bool,
    /// Inputs of each chunk that are not computed.
    left: Vec<usize>,
    /// Chunks on their way to the sender.
    pub unconfirmed: usize,
    /// Nobody takes them any more.
    pub returned: bool,
    /// The slice was to be longer.
    cut: Option<Cut>,
}

impl Stream {
    fn new(streaming: Streaming, inputs: usize) -> Stream {
        let mut stream = Stream {
            chunks: streaming.chunks,
            last: streaming.last,
            left: Vec::new(),
            unconfirmed: 0,
            returned: false,
            cut: None,
        };
        stream.holds(inputs);
        stream
    }

    /// The slice has so many inputs, none of which is computed.
    fn holds(&mut self, inputs: usize) {
        let chunks = 0..self.chunks.count(inputs);
        self.left = chunks.map(|chunk| self.extent(chunk, inputs).1).collect();
    }

    /// A chunk of a slice of so many inputs: its first input, and how many it has.
    fn extent(&self, chunk: usize, inputs: usize) -> (usize, usize) {
        let first = self.chunks.first(chunk);
        (first, self.chunks.first(chunk + 1).min(inputs) - first)
    }

    /// An input is computed. Its chunk, if that was the last of it: its first input, and how many it has.
    pub fn computed(&mut self, input: usize, inputs: usize) -> Option<(usize, usize)> {
        let chunk = self.chunks.holding(input);
        self.left[chunk] -= 1;
        (self.left[chunk] == 0).then(|| self.extent(chunk, inputs))
    }
}

impl Job {
    /// A job just delivered.
    pub fn new(lane: Lane, ticket: Ticket, answerable: bool, source: Source, now: Moment) -> Job {
        let stream = ticket
            .stream
            .map(|streaming| Stream::new(streaming, ticket.inputs));
        Job {
            attempt: 1,
            alone: false,
            last_word: None,
            stream,
            lane,
            ticket,
            admitted: false,
            holds_model: false,
            answerable,
            source,
            fetched: false,
            gone: false,
            delivered: now,
            entered: now,
            begun: None,
            phase: Phase::Tokenizing,
            tokens: Vec::new(),
            drawn: Vec::new(),
            first_undrawn: 0,
            undrawn: 0,
            computing: 0,
            failure: None,
        }
    }

    /// It leaves the stage in which it was, and enters the next: how long it was there.
    pub fn passes(&mut self, now: Moment) -> Duration {
        let span = now.since(self.entered);
        self.entered = now;
        span
    }

    /// Whether nothing of it has been put into a batch, so that it may be refused or given back without loss.
    pub fn waits(&self) -> bool {
        matches!(
            self.phase,
            Phase::Awaiting | Phase::Tokenizing | Phase::Twin | Phase::Waiting
        )
    }

    /// Whether it is begun at once: while a job waits that was resumed, a death of the process would be charged to it.
    pub fn is_urgent(&self) -> bool {
        matches!(self.lane, Lane::Probe | Lane::Resumed)
    }

    /// The lane in which it waits for a batch. Once it is begun, it takes its turns like any other.
    pub fn line(&self) -> Lane {
        if self.is_urgent() && self.begun.is_none() {
            Lane::Probe
        } else {
            self.lane
        }
    }

    /// Its inputs are tokenized and may be drawn. Of a streamed job they may be fewer than came, in whole chunks: the slice ends
    /// before one that is wrong, and the job goes on there.
    pub fn tokenized(&mut self, tokens: Vec<usize>) {
        if let Some(stream) = self
            .stream
            .as_mut()
            .filter(|_| tokens.len() < self.ticket.inputs && !tokens.is_empty())
        {
            stream.holds(tokens.len());
            stream.last = false;
        }
        self.undrawn = tokens.len();
        self.drawn = vec![false; tokens.len()];
        self.tokens = tokens;
        self.phase = Phase::Waiting;
    }

    /// Inputs that are in no batch yet, in order.
    pub fn undrawn_inputs(&self) -> impl Iterator<Item = usize> + '_ {
        (self.first_undrawn..self.tokens.len()).filter(|&input| !self.drawn[input])
    }

    /// An input goes into a batch.
    fn draw(&mut self, input: usize, now: Moment) {
        if self.begun.is_none() {
            self.begun = Some(now);
            self.entered = now;
        }
        debug_assert!(!self.drawn[input]);
        self.drawn[input] = true;
        self.undrawn -= 1;
        self.computing += 1;
        self.phase = Phase::Computing;
        while self.first_undrawn < self.drawn.len() && self.drawn[self.first_undrawn] {
            self.first_undrawn += 1;
        }
    }

    /// Ends its slice early. `None` if nothing is to be left out, or it was cut so before.
    pub fn cut(&mut self, cut: Cut) -> Option<LeftOut> {
        let stream = self.stream.as_mut().filter(|stream| stream.cut < Some(cut))?;
        stream.cut = Some(cut);
        let begun = self.drawn.iter().rposition(|&drawn| drawn)? + 1;
        let chunks = stream.chunks.count(begun);
        let before = self.tokens.len();
        let behind_chunk = before.min(stream.chunks.first(chunks));
        let left = match cut {
            Cut::BehindChunk => behind_chunk,
            Cut::WithinChunk => begun,
        };
        if left == before {
            return None;
        }
        stream.left.truncate(chunks);
        // None of those that are left out was drawn.
        let shorter = behind_chunk - left;
        stream.left[chunks - 1] -= shorter;
        let completed = shorter > 0 && stream.left[chunks - 1] == 0;
        let completed = completed.then(|| stream.extent(chunks - 1, left));
        stream.last = false;
        self.tokens.truncate(left);
        self.drawn.truncate(left);
        self.undrawn -= before - left;
        Some(LeftOut {
            inputs: before - left,
            completed,
        })
    }

    /// Whether its computation has begun and is not finished. One whose last chunks are on their way is.
    pub fn is_being_computed(&self) -> bool {
        self.phase == Phase::Computing && self.computing + self.undrawn > 0
    }

    /// Whether nothing of it is in an engine or before one, nor on its way to the sender.
    pub fn is_at_rest(&self) -> bool {
        let chunks = self.stream.as_ref().map_or(0, |stream| stream.unconfirmed);
        self.computing == 0 && self.undrawn == 0 && chunks == 0
    }

    /// An input has come out of an engine.
    pub fn computed(&mut self, result: Result<(), String>, input: usize) {
        self.computing -= 1;
        if let Err(message) = result
            && self.failure.is_none()
        {
            // As its sender counts.
            let before = self.stream.as_ref().map_or(0, |stream| stream.chunks.before());
            let message = format!("input {}: {message}", before.saturating_add(input));
            self.failure = Some(Refusal::new(crate::job::ErrorType::Internal, message).on("input"));
        }
    }
}

/// All jobs that are here, the deadlines of those that wait, and which of them are being computed.
#[derive(Clone, Debug, Default)]
pub struct Jobs {
    jobs: HashMap<JobKey, Job>,
    deadlines: BTreeSet<(Moment, JobKey)>,
    /// All that are being computed, and some that were: nothing of a job that is computed is drawn again, so one
    /// that has left the engines never comes back in here. Thousands may wait, and each turn asks for these few.
    begun: BTreeSet<JobKey>,
}

impl Jobs {
    /// Takes a job in.
    pub fn insert(&mut self, key: JobKey, job: Job) {
        if let Some(deadline) = job.ticket.deadline {
            self.deadlines.insert((deadline, key));
        }
        let before = self.jobs.insert(key, job);
        assert!(before.is_none(), "the shell gave number {} twice", key.0);
    }

    /// The job, if it is still here.
    pub fn get(&self, key: JobKey) -> Option<&Job> {
        self.jobs.get(&key)
    }

    /// The job, if it is still here.
    pub fn get_mut(&mut self, key: JobKey) -> Option<&mut Job> {
        self.jobs.get_mut(&key)
    }

    /// An input of the job goes into a batch.
    pub fn draw(&mut self, key: JobKey, input: usize, now: Moment) {
        let job = self.jobs.get_mut(&key).expect("a waiting job is here");
        job.draw(input, now);
        self.begun.insert(key);
    }

    /// Jobs whose computation has begun and is not finished.
    pub fn being_computed(&self) -> impl Iterator<Item = &Job> {
        let begun = self.begun.iter().filter_map(|key| self.jobs.get(key));
        begun.filter(|job| job.is_being_computed())
    }

    /// Those of them that came from a queue and have had a slice at work for so long, with inputs that are in no batch yet, and
    /// were not cut so before.
    pub fn long_slices(&self, cut: Cut, slice_max: Duration, now: Moment) -> Vec<JobKey> {
        let long = |key: &&JobKey| {
            self.jobs.get(key).is_some_and(|job| {
                let due = job.begun.is_some_and(|begun| now.since(begun) >= slice_max);
                let streams = job.stream.as_ref().is_some_and(|stream| stream.cut < Some(cut));
                due && streams && job.undrawn > 0 && job.failure.is_none() && job.source == Source::Queue
            })
        };
        self.begun.iter().filter(long).copied().collect()
    }

    /// Plain jobs from a queue that have been here for `held`, and at work for `worked`. A canary is judged by its engine.
    pub fn long_plain(&self, held: Duration, worked: Duration, now: Moment) -> Vec<JobKey> {
        let long = |key: &&JobKey| {
            self.jobs.get(key).is_some_and(|job| {
                let plain = job.stream.is_none() && job.lane != Lane::Probe;
                let here = job.source == Source::Queue && now.since(job.delivered) >= held;
                let at_work = job.begun.is_some_and(|begun| now.since(begun) >= worked);
                plain && here && at_work && job.is_being_computed()
            })
        };
        self.begun.iter().filter(long).copied().collect()
    }

    /// How many they are per lane, in the order of [`Lane::ALL`]. Forgets those that are no longer.
    pub fn count_being_computed(&mut self) -> [usize; Lane::COUNT] {
        let mut counts = [0; Lane::COUNT];
        self.begun.retain(|key| {
            let job = self.jobs.get(key).filter(|job| job.is_being_computed());
            job.inspect(|job| counts[job.lane as usize] += 1).is_some()
        });
        counts
    }

    /// The job leaves.
    pub fn remove(&mut self, key: JobKey) -> Option<Job> {
        let job = self.jobs.remove(&key)?;
        self.begun.remove(&key);
        self.forget_deadline(key, &job.ticket);
        Some(job)
    }

    /// The job no longer waits, so its deadline no longer matters.
    pub fn deadline_met(&mut self, key: JobKey) {
        if let Some(deadline) = self.jobs.get(&key).and_then(|job| job.ticket.deadline) {
            self.deadlines.remove(&(deadline, key));
        }
    }

    fn forget_deadline(&mut self, key: JobKey, ticket: &Ticket) {
        if let Some(deadline) = ticket.deadline {
            self.deadlines.remove(&(deadline, key));
        }
    }

    /// A waiting job whose deadline has passed.
    pub fn expired(&self, now: Moment) -> Option<JobKey> {
        self.deadlines
            .first()
            .filter(|(deadline, _)| *deadline <= now)
            .map(|&(_, key)| key)
    }

    /// The next deadline of a waiting job.
    pub fn next_deadline(&self) -> Option<Moment> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }

    /// Keys of all jobs, oldest first.
    pub fn keys(&self) -> Vec<JobKey> {
        let mut keys: Vec<JobKey> = self.jobs.keys().copied().collect();
        keys.sort_unstable();
        keys
    }

    /// All jobs in no particular order.
    pub fn values(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    /// Whether none is here.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::event::{CallerId, ModelId};
    use proptest::prelude::*;

    fn streamed(chunks: Chunks, inputs: usize) -> Job {
        let ticket = Ticket {
            model: ModelId(0),
            caller: CallerId(0),
            inputs,
            bytes: inputs,
            deadline: None,
            stream: Some(Streaming { chunks, last: true }),
        };
        let mut job = Job::new(Lane::Bulk, ticket, true, Source::Queue, Moment::ZERO);
        job.tokenized(vec![1; inputs]);
        job
    }

    /// An input is computed; the chunk that this completes.
    fn compute(job: &mut Job, input: usize) -> Option<(usize, usize)> {
        job.computed(Ok(()), input);
        let inputs = job.tokens.len();
        job.stream.as_mut().unwrap().computed(input, inputs)
    }

    #[test]
    fn a_chunk_that_is_cut_behind_what_is_computed_is_complete() {
        let mut job = streamed(Chunks::new(4, 0), 8);
        for input in 0..2 {
            job.draw(input, Moment::ZERO);
            assert_eq!(compute(&mut job, input), None);
        }
        let left_out = |inputs, completed| Some(LeftOut { inputs, completed });
        assert_eq!(job.cut(Cut::BehindChunk), left_out(4, None));
        assert_eq!(job.cut(Cut::BehindChunk), None);
        assert_eq!(job.cut(Cut::WithinChunk), left_out(2, Some((0, 2))));
        assert_eq!(job.cut(Cut::WithinChunk), None);
        assert!(job.is_at_rest());
    }

    /// A second copy of a job that was cut within a chunk had all its further chunks at other places.
    #[test]
    fn a_slice_that_begins_within_a_chunk_ends_it_first() {
        let mut job = streamed(Chunks::new(4, 6), 8);
        let chunks = (0..8).filter_map(|input| {
            job.draw(input, Moment::ZERO);
            compute(&mut job, input)
        });
        assert_eq!(chunks.collect::<Vec<_>>(), [(0, 2), (2, 4), (6, 2)]);
    }

    proptest! {
        /// Goal: wherever a slice begins and is cut, every input that is left in it is in exactly one chunk, in order; nothing that is
        /// begun is left out; and what was the last slice is no longer.
        #[test]
        fn chunks_hold_what_a_cut_leaves(
            chunk in 1usize..9,
            before in 0usize..20,
            inputs in 1usize..40,
            order in proptest::collection::vec((0usize..4, 0usize..5), 0..80),
            cuts in proptest::collection::vec((0usize..80, any::<bool>()), 0..3),
        ) {
            let mut job = streamed(Chunks::new(chunk, before), inputs);
            let mut drawn = Vec::new();
            let mut chunks = Vec::new();
            let mut cut_at = None;
            for turn in 0..order.len() + 2 * inputs {
                let (ahead, act) = order.get(turn).copied().unwrap_or((0, turn % 2));
                for &(_, within) in cuts.iter().filter(|(at, _)| *at == turn) {
                    let begun = job.drawn.iter().rposition(|&drawn| drawn).map(|last| last + 1);
                    let cut = if within { Cut::WithinChunk } else { Cut::BehindChunk };
                    if let Some(left_out) = job.cut(cut) {
                        prop_assert!(left_out.inputs > 0);
                        prop_assert!(Some(job.tokens.len()) >= begun);
                        prop_assert!(!within || Some(job.tokens.len()) == begun);
                        chunks.extend(left_out.completed);
                        cut_at = Some(job.tokens.len());
                    }
                }
                // Not always the first of those that wait: batches take texts of like length.
                let next = job.undrawn_inputs().nth(ahead).or(job.undrawn_inputs().next());
                match (act, next) {
                    (1.., Some(input)) => {
                        job.draw(input, Moment::ZERO);
                        drawn.push(input);
                    }
                    _ => {
                        let done = (!drawn.is_empty()).then(|| drawn.remove(ahead % drawn.len()));
                        chunks.extend(done.and_then(|input| compute(&mut job, input)));
                    }
                }
            }
            for input in drawn {
                chunks.extend(compute(&mut job, input));
            }
            prop_assert!(job.is_at_rest());
            chunks.sort_unstable();
            let held: Vec<usize> = chunks.iter().flat_map(|&(first, inputs)| first..first + inputs).collect();
            prop_assert_eq!(held, (0..cut_at.unwrap_or(inputs)).collect::<Vec<_>>());
            prop_assert!(chunks.iter().skip(1).all(|(first, _)| (before + first).is_multiple_of(chunk)));
            prop_assert_eq!(job.stream.unwrap().last, cut_at.is_none());
        }
    }
}
