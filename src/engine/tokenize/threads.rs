//! Threads that make tokens of texts, for whoever has many: slice by slice, so that a large job holds up no other, and in
//! the order in which batches are drawn.

use crate::job::{JobKey, Lane};
use crate::logic::event::CallerId;
use crate::logic::lane::Lanes;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Does one slice of a job, some milliseconds of work, and says whether more is left. It calls its parameter as it gets on.
pub type Slices = Box<dyn FnMut(&mut dyn FnMut()) -> ControlFlow<()> + Send>;

/// A job for the tokenizer threads.
pub struct Task {
    /// Its name; there is one task of a job at a time.
    pub job: JobKey,
    /// What goes before it and behind it.
    pub lane: Lane,
    /// Callers of a lane take turns.
    pub caller: CallerId,
    /// What is to be done.
    pub slices: Slices,
}

/// Calls of a slice's step that make one report: a few milliseconds of work, and of a word of megabytes a
/// fraction of a second.
const STEPS_A_REPORT: u32 = 64;

/// What a tokenizer thread reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It took up a slice of a job.
    Began,
    /// It got on in it.
    Step,
    /// It is through with the slice.
    Ended,
    /// It was asked whether it still works.
    Tried,
}

/// Takes reports on the tokenizer's thread, with its number; only for a [`Progress::Step`] it must not wait.
pub type Report = Arc<dyn Fn(usize, Progress) + Send + Sync>;

/// Threads that turn text into tokens, named `tokenize-0` and so on, and one bounded queue for all of them. After each slice of a
/// job the next one is of whose turn it is ([`Lanes`]): a canary first, interactive before bulk, and bulk with its share.
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
    lanes: Lanes,
    /// Those that wait in `lanes`.
    tasks: HashMap<JobKey, Task>,
    /// Per thread, whether it owes an answer.
    asked: Vec<bool>,
    closed: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} jobs", self.tasks.len())
    }
}

impl State {
    fn push(&mut self, task: Task) {
        self.lanes.push(task.lane, task.caller, task.job);
        self.tasks.insert(task.job, task);
    }

    fn pop(&mut self) -> Option<Task> {
        let job = self.lanes.in_order().next()?;
        let task = self.tasks.remove(&job)?;
        self.lanes.drawn(task.lane, task.caller);
        self.lanes.remove(task.lane, task.caller, job);
        Some(task)
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
            lanes: Lanes::default(),
            tasks: HashMap::new(),
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
    pub fn submit(&self, task: Task) -> Result<(), Task> {
        let mut state = self.queue.lock();
        if state.tasks.len() >= self.queue.capacity {
            return Err(task);
        }
        state.push(task);
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
    Slice(Task),
    Answer,
    End,
}

fn next(index: usize, queue: &Queue) -> Next {
    let mut state = queue.lock();
    loop {
        if std::mem::take(&mut state.asked[index]) {
            return Next::Answer;
        }
        if let Some(task) = state.pop() {
            return Next::Slice(task);
        }
        if state.closed {
            return Next::End;
        }
        state = queue.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

fn work(index: usize, queue: &Queue, report: &Report) {
    loop {
        let mut task = match next(index, queue) {
            Next::Slice(task) => task,
            Next::Answer => {
                report(index, Progress::Tried);
                continue;
            }
            Next::End => return,
        };
        report(index, Progress::Began);
        let mut steps = 0;
        let left = (task.slices)(&mut || {
            steps += 1;
            if steps % STEPS_A_REPORT == 0 {
                report(index, Progress::Step);
            }
        });
        // Nobody needs to be woken for it: this thread asks for the next slice itself.
        if left.is_continue() {
            queue.lock().push(task);
        }
        report(index, Progress::Ended);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// What each slice was of, in order, when so many slices of each job are submitted while the only thread is held up.
    fn order(tasks: &[(u64, Lane, u64, usize)]) -> Vec<u64> {
        let (began, gate) = mpsc::channel::<()>();
        let (done, log) = mpsc::channel();
        let tokenizers = Tokenizers::start(1, 64, Arc::new(|_, _| {})).unwrap();
        let submit = |job, lane, caller, slices| {
            let task = Task {
                job: JobKey(job),
                lane,
                caller: CallerId(caller),
                slices,
            };
            assert!(tokenizers.submit(task).is_ok());
        };
        submit(
            0,
            Lane::Probe,
            0,
            Box::new(move |_| {
                let _ = gate.recv();
                ControlFlow::Break(())
            }),
        );
        for (job, lane, caller, slices) in tasks.iter().copied() {
            let (done, mut left) = (done.clone(), slices);
            submit(
                job,
                lane,
                caller,
                Box::new(move |_| {
                    let _ = done.send(job);
                    left -= 1;
                    if left == 0 {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                }),
            );
        }
        drop((began, done));
        drop(tokenizers);
        log.into_iter().collect()
    }

    /// A large job holds up no other for more than a slice: what somebody waits for overtakes it, and bulk keeps its share.
    #[test]
    fn slices_go_by_lane() {
        let bulk = (1, Lane::Bulk, 1, 3);
        let urgent = (2, Lane::Interactive, 2, 9);
        let seen = order(&[bulk, urgent, (3, Lane::Probe, 3, 1)]);
        assert_eq!(seen, [3, 2, 2, 2, 2, 2, 2, 2, 1, 2, 2, 1, 1]);
    }

    /// One caller's many large jobs do not bury the small one of another.
    #[test]
    fn callers_take_turns() {
        let mut tasks: Vec<_> = (1..=8).map(|job| (job, Lane::Interactive, 1, 4)).collect();
        tasks.push((9, Lane::Interactive, 2, 1));
        let seen = order(&tasks);
        assert!(seen.iter().position(|job| *job == 9) <= Some(1), "{seen:?}");
        assert_eq!(seen.len(), 33);
        // A caller's own jobs stay in the order in which they came.
        assert_eq!(seen.iter().filter(|job| **job == 1).count(), 4);
        assert!(seen.iter().rposition(|job| *job == 1) < seen.iter().position(|job| *job == 2));
    }
}
