//! Threads that make tokens of texts, for whoever has many.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

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
