//! What the shell tells the logic, and what the logic asks of the shell. Numbers and names only: texts,
//! token ids and vectors stay with the shell, which finds them by [`JobKey`].

use super::health::KillReason;
use super::pressure::{Change, Memory};
use crate::clock::Moment;
use crate::config::Limits;
use crate::job::chunks::Chunks;
use crate::job::{JobKey, Lane, Refusal};
use std::time::Duration;

/// Which loaded model, by its place in the shell's catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelId(pub usize);

/// Which engine thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EngineId(pub usize);

/// Which tokenizer thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenizerId(pub usize);

/// A thread that works on jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Worker {
    /// An engine.
    Engine(EngineId),
    /// A tokenizer.
    Tokenizer(TokenizerId),
}

/// One run of inputs through a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchId(pub u64);

/// Who sent a job, as far as that can be told: equal numbers are one caller. Only the shell knows names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallerId(pub u64);

/// What the logic needs to know of a well-formed job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The model it wants.
    pub model: ModelId,
    /// Whose it is.
    pub caller: CallerId,
    /// Number of its texts, at least 1.
    pub inputs: usize,
    /// Size of its body.
    pub bytes: usize,
    /// When its caller stops waiting.
    pub deadline: Option<Moment>,
    /// Whether its vectors are sent as they come, and how.
    pub stream: Option<Streaming>,
}

/// How a job's vectors are sent as they come. The inputs of one delivery are a slice of the whole job: what comes
/// behind it goes on as another message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streaming {
    /// Its chunks.
    pub chunks: Chunks,
    /// Whether this slice is the last.
    pub last: bool,
}

/// One input of one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Item {
    /// The job.
    pub job: JobKey,
    /// Index of the input in the job.
    pub input: usize,
    /// Tokens of the input, special tokens included.
    pub tokens: usize,
}

/// What became of a published answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirmation {
    /// The broker has it in a queue.
    Routed,
    /// Nobody listens any more.
    Returned,
    /// The broker would not take it.
    Rejected,
    /// The broker has said nothing for long, though it answers otherwise.
    Unconfirmed,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Time has passed; [`super::Logic::next_check`] says when this is wanted.
    Tick,
    /// Both connections are up, the topology is there, and consumers run.
    BrokerUp {
        /// Whether the broker has the queues for jobs that go on.
        resumable: bool,
    },
    /// The session is gone, and with it every delivery it made.
    BrokerDown,
    /// The broker has ended a session because a delivery was held for longer than this without an acknowledgement.
    HeldTooLong {
        /// Its limit.
        limit: Duration,
    },
    /// The broker answered a question of ours.
    BrokerProof,
    /// The broker told how a queue of ours stands; an answer, and so a proof as well.
    QueueSeen {
        /// Which queue.
        lane: Lane,
        /// Messages in it that nobody holds.
        ready: usize,
        /// Consumers that it has, ours among them if all is well.
        consumers: usize,
    },
    /// The broker says that it takes no messages (memory or disk alarm).
    BrokerBlocked,
    /// The broker takes messages again.
    BrokerUnblocked,
    /// A large message of this lane came and is being read; [`Event::Read`] follows.
    Reading {
        /// The lane.
        lane: Lane,
    },
    /// It is read; its [`Event::Delivered`] follows.
    Read {
        /// The lane.
        lane: Lane,
    },
    /// A message came. `answerable` says that it has a place to send an answer to.
    Delivered {
        /// The shell's new number for it.
        job: JobKey,
        /// The queue it came from.
        lane: Lane,
        /// A job, or what is wrong with it.
        arrival: Result<Ticket, Refusal>,
        /// False if a refusal can only be dead-lettered.
        answerable: bool,
        /// Which attempt this is; the first is 1.
        attempt: u32,
        /// It may have been worked on when a process died, or has failed: it must not take others down.
        suspect: bool,
        /// It was asked for by [`Action::LookAhead`]: no consumer's delivery, it says nothing of one.
        fetched: bool,
    },
    /// What [`Action::LookAhead`] asked for has come, as far as there was anything.
    LookedAhead,
    /// A caller asks on a connection of its own, and waits there for its answer.
    Called {
        /// The shell's new number for it.
        job: JobKey,
        /// A job, or what is wrong with it.
        arrival: Result<Ticket, Refusal>,
    },
    /// The caller of such a job has gone away.
    CallerGone {
        /// The job.
        job: JobKey,
    },
    /// The answer or refusal of such a job was given to its connection, or there was none any more.
    HandedOver {
        /// The job.
        job: JobKey,
        /// Whether anybody was there to take it.
        taken: bool,
    },
    /// A message came whose job is known to go on elsewhere.
    Superseded {
        /// The shell's new number for it.
        job: JobKey,
        /// The queue it came from.
        lane: Lane,
    },
    /// A tokenizer thread took up a job.
    TokenizerBegan {
        /// The thread.
        tokenizer: TokenizerId,
    },
    /// It has got a good way further in it.
    TokenizerStep {
        /// The thread.
        tokenizer: TokenizerId,
    },
    /// It is through with it, and free.
    TokenizerEnded {
        /// The thread.
        tokenizer: TokenizerId,
    },
    /// An idle thread answered [`Action::Try`].
    Tried(Worker),
    /// All inputs of a job are tokenized: their token counts, or what is wrong. Of a slice that another can follow, the whole
    /// chunks before the first input that is wrong, if there are any.
    Tokenized {
        /// The job.
        job: JobKey,
        /// Tokens of each input.
        result: Result<Vec<usize>, Refusal>,
    },
    /// Instead of tokens: another job that is here asks for the very same, and its answer will be this one's.
    /// [`Event::Recalled`] or [`Event::Parted`] follows.
    Twin {
        /// The job.
        job: JobKey,
    },
    /// That other job has ended, and left no answer.
    Parted {
        /// The job.
        job: JobKey,
    },
    /// Instead of tokens: the job was answered before, and the answer is at hand.
    Recalled {
        /// The job.
        job: JobKey,
    },
    /// An engine finished a step inside a batch, such as a layer.
    BatchStep {
        /// The engine.
        engine: EngineId,
    },
    /// An engine finished a batch: per item nothing or what is wrong, in the order of the items.
    BatchDone {
        /// The engine.
        engine: EngineId,
        /// The batch.
        batch: BatchId,
        /// Verdict on each item's vector.
        results: Vec<Result<(), String>>,
    },
    /// The broker answered for a published reply, chunk or move. The delivery of a job whose last word is
    /// [`Confirmation::Routed`] is being acknowledged, and [`Event::Acked`] follows.
    Confirmed {
        /// The job.
        job: JobKey,
        /// How.
        outcome: Confirmation,
    },
    /// The broker has the copy in the dead-letter queue.
    DeadLettered {
        /// The job.
        job: JobKey,
    },
    /// The acknowledgement has been written to the broker.
    Acked {
        /// The job.
        job: JobKey,
    },
    /// A canary's vector is not the one computed at start.
    CanaryWrong,
    /// Stop taking work, finish what is in flight.
    Drain,
    /// New limits.
    Reloaded(Limits),
    /// Memory in use, and the bound at which the kernel steps in.
    MemorySeen(Memory),
    /// The load of a model has got further.
    LoadStep,
    /// A model is in memory.
    Loaded {
        /// Which.
        model: ModelId,
        /// Memory that it takes, if that was seen.
        bytes: Option<u64>,
    },
    /// A model could not be loaded.
    LoadFailed {
        /// Which.
        model: ModelId,
        /// What is wrong.
        why: String,
    },
    /// A model is out of memory.
    Unloaded {
        /// Which.
        model: ModelId,
    },
}

/// What the shell shall do, in the order given.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Bring a model into memory.
    Load {
        /// Which.
        model: ModelId,
    },
    /// Give a model's memory back; no job needs it.
    Unload {
        /// Which.
        model: ModelId,
    },
    /// Tokenize all inputs of the job.
    Tokenize {
        /// The job.
        job: JobKey,
    },
    /// Run these inputs through the model.
    StartBatch {
        /// On this engine.
        engine: EngineId,
        /// Ahead of all that it holds: between two layers of the batch that runs.
        first: bool,
        /// Under this number.
        batch: BatchId,
        /// With this model.
        model: ModelId,
        /// In this order.
        items: Vec<Item>,
    },
    /// Take in messages from the bulk lane's queue, beyond what its consumer holds; [`Event::LookedAhead`] follows.
    LookAhead {
        /// At most so many.
        jobs: usize,
        /// And one in so many of those that are there.
        one_in: usize,
        /// No further one once they may come to need so much memory, in bytes, by [`memory_of`](super::pressure::memory_of).
        memory: u64,
    },
    /// Publish the job's vectors to its sender. A last word, as [`Action::Finish`] and [`Action::Refuse`] are: once the broker has it
    /// in a queue, the delivery is to be acknowledged without asking again.
    Answer {
        /// The job.
        job: JobKey,
    },
    /// Publish a chunk of the job's vectors to its sender.
    Chunk {
        /// The job.
        job: JobKey,
        /// Its first input in this slice.
        first: usize,
        /// How many.
        inputs: usize,
    },
    /// The job's slice ends before this input: what lies behind goes on with what comes behind the slice.
    Cut {
        /// The job.
        job: JobKey,
        /// Inputs that are left in the slice.
        inputs: usize,
    },
    /// Publish to the job's sender that all chunks are out; a last word.
    Finish {
        /// The job.
        job: JobKey,
    },
    /// Publish what is left of the job to a queue of ours, from which it goes on.
    Move {
        /// The job.
        job: JobKey,
        /// How.
        onward: Onward,
    },
    /// Publish a refusal to the job's sender; a last word.
    Refuse {
        /// The job.
        job: JobKey,
        /// What to say.
        refusal: Refusal,
    },
    /// Publish a copy of the message to the dead-letter queue.
    DeadLetter {
        /// The job.
        job: JobKey,
        /// Why.
        refusal: Refusal,
    },
    /// Acknowledge the delivery of a job whose last word found no queue, or that had none.
    Ack {
        /// The job.
        job: JobKey,
    },
    /// Give the delivery back to its queue and forget it.
    Requeue {
        /// The job.
        job: JobKey,
    },
    /// Forget the job: it is settled, or its delivery is void.
    Forget {
        /// The job.
        job: JobKey,
        /// How it ended, for counters and logs.
        outcome: Outcome,
    },
    /// Send a canary: through the broker, or straight to admission while the broker blocks us.
    SendCanary {
        /// False while the broker blocks us.
        through_broker: bool,
        /// For this model.
        model: ModelId,
    },
    /// Engines are to rest between two layers, for others on the machine; if they rest already, longer.
    Rest {
        /// Until then.
        until: Moment,
    },
    /// Ask a thread that has had nothing to do for a while to answer with [`Event::Tried`].
    Try(Worker),
    /// Give the session up and begin a new one: a consumer of ours is missing from its queue.
    Reconnect {
        /// The queue's lane.
        lane: Lane,
    },
    /// Tell the world, once, that a lane's backpressure is on or off from now on.
    Backpressure(Change),
    /// Tell systemd that the service is ready. Once.
    Ready,
    /// Tell systemd that real work went all the way round.
    Pet,
    /// Everything in flight is settled after [`Event::Drain`].
    Drained,
    /// End the process.
    Kill(KillReason),
}

/// How a job goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Onward {
    /// As it is, but alone.
    Suspect,
    /// As it came, from the lane's own queue.
    Back,
    /// Behind this slice, all of whose chunks are confirmed.
    NextSlice,
    /// With the same inputs again, alone and after a pause: this is how it failed.
    Retry(Refusal),
}

/// How a job ended here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Its vectors are in its sender's queue, or on its connection.
    Answered,
    /// Its answer found no queue any more, or no connection.
    Returned,
    /// A refusal or error was sent.
    Refused,
    /// It is in the dead-letter queue.
    DeadLettered,
    /// It goes on from another queue of ours.
    MovedOn,
    /// It went back to its queue.
    Requeued,
    /// Its session ended; the broker will deliver it again.
    Lost,
    /// A canary of ours that took the short way.
    Probe,
}

impl Outcome {
    /// How many there are.
    pub const COUNT: usize = 8;
    /// All of them.
    pub const ALL: [Outcome; Outcome::COUNT] = [
        Outcome::Answered,
        Outcome::Returned,
        Outcome::Refused,
        Outcome::DeadLettered,
        Outcome::MovedOn,
        Outcome::Requeued,
        Outcome::Lost,
        Outcome::Probe,
    ];

    /// The name used in metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Outcome::Answered => "answered",
            Outcome::Returned => "returned",
            Outcome::Refused => "refused",
            Outcome::DeadLettered => "dead_lettered",
            Outcome::MovedOn => "moved_on",
            Outcome::Requeued => "requeued",
            Outcome::Lost => "lost",
            Outcome::Probe => "probe",
        }
    }
}
