//! A team: the engine thread that computes a batch, its leader, and one that has nothing else to do, its helper.
//!
//! A leader shares out one task at a time, and takes part in it. Both claim one share after another until none is left; the
//! leader waits for the shares that its helper has claimed, and for nothing else. So a helper that comes late or not at all,
//! that lost its processor or has work of its own does no harm: what it does not claim, the leader does.
//!
//! Nothing here knows what a task is. What crosses the threads goes through locks that are free whenever one of the two wants
//! them; the claims order who wants them when.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Shares of a task at most: their numbers are kept in bytes, and sets of them in 64 bits.
pub const SHARES: usize = 64;

/// How often a helper looks for the next task, and a leader for the end of the last share, without a pause: some 50 to 100 µs,
/// which is longer than what a leader does alone between two tasks of one short text and longer than a share. After that a
/// helper goes, and a leader lets others have the processor: the helper may need it.
const LOOKS: usize = 3000;

/// What a helper can do a share of.
pub trait Task: Send + Sync {
    /// Does the shares that `next` hands out, one after another, until there are none.
    fn help(&self, next: &mut dyn FnMut() -> Option<usize>);
}

/// What two threads write in turns, on cache lines of its own.
#[repr(align(128))]
#[derive(Default)]
struct Apart<T>(T);

/// One leader and, at times, one helper.
pub struct Team {
    /// See [`Claims`].
    claims: Apart<AtomicU64>,
    /// Shares that helpers have finished of the task.
    done: Apart<AtomicUsize>,
    /// Whether the leader is in the middle of something that it shares out.
    open: AtomicBool,
    /// Whether somebody helps.
    helped: AtomicBool,
    /// Whether somebody was asked to, and did not decline.
    expected: AtomicBool,
    task: Mutex<Option<Arc<dyn Task>>>,
    ask: Ask,
}

/// Asks an idle engine for its help; false if there is none.
type Ask = Box<dyn Fn(&Arc<Team>) -> bool + Send + Sync>;

/// What is left of a task, in one word, so that claiming is one exchange: in the upper half the number of the task, then four
/// bytes: the next share of the leader's half and its end, the next of the helper's half and its end.
///
/// ```text
///   leader's half            helper's half
///   +--------+---------+    +--------+---------+
///   | claimed|next  end|    | claimed|next  end|     each goes forward through its own half, so that weights are asked for
///   +--------+---------+    +--------+---------+     ahead; whoever is through takes from the end of the other's
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Claims {
    task: u32,
    halves: [(u8, u8); 2],
}

/// Whose half it is.
const LEADER: usize = 0;
const HELPER: usize = 1;

impl Claims {
    fn from_word(word: u64) -> Claims {
        let [a, b, c, d, ..] = word.to_le_bytes();
        Claims {
            task: (word >> 32) as u32,
            halves: [(a, b), (c, d)],
        }
    }

    fn word(self) -> u64 {
        let [(a, b), (c, d)] = self.halves;
        u64::from(self.task) << 32 | u64::from(u32::from_le_bytes([a, b, c, d]))
    }

    /// The next share for one of the two.
    fn claim(&mut self, who: usize) -> Option<usize> {
        let (next, end) = &mut self.halves[who];
        if next < end {
            *next += 1;
            return Some(usize::from(*next - 1));
        }
        let (next, end) = &mut self.halves[1 - who];
        if next < end {
            *end -= 1;
            return Some(usize::from(*end));
        }
        None
    }
}

impl Team {
    /// A team of a leader who finds helpers by `ask`.
    pub fn new(ask: impl Fn(&Arc<Team>) -> bool + Send + Sync + 'static) -> Arc<Team> {
        Arc::new(Team {
            claims: Apart::default(),
            done: Apart::default(),
            open: AtomicBool::default(),
            helped: AtomicBool::default(),
            expected: AtomicBool::default(),
            task: Mutex::default(),
            ask: Box::new(ask),
        })
    }

    /// For the leader: whether there is or will be a helper. Asks for one if not.
    pub fn gather(self: &Arc<Self>) -> bool {
        self.open.store(true, Ordering::Release);
        if self.expected.load(Ordering::Acquire) {
            return true;
        }
        // Before the question: who is asked may have come and gone when it returns.
        self.expected.store(true, Ordering::Release);
        let asked = (self.ask)(self);
        if !asked {
            self.expected.store(false, Ordering::Release);
        }
        asked
    }

    /// For the leader: lets the helper go.
    pub fn dismiss(&self) {
        self.open.store(false, Ordering::Release);
        *self.lock() = None;
    }

    /// For who was asked and has work of its own.
    pub fn decline(&self) {
        self.expected.store(false, Ordering::Release);
    }

    /// For the leader: shares out a task of so many shares, of which `own` does those that it is handed until there are no
    /// more. Returns, when all are done, which were the helper's: a bit for each.
    pub fn share(
        &self,
        shares: usize,
        task: Arc<dyn Task>,
        own: impl FnOnce(&mut dyn FnMut() -> Option<usize>),
    ) -> u64 {
        assert!(
            (1..=SHARES).contains(&shares),
            "{shares} shares of at most {SHARES}"
        );
        *self.lock() = Some(task);
        self.done.0.store(0, Ordering::Relaxed);
        let last = Claims::from_word(self.claims.0.load(Ordering::Relaxed));
        let (half, all) = (shares.div_ceil(2) as u8, shares as u8);
        let claims = Claims {
            task: last.task.wrapping_add(1),
            halves: [(0, half), (half, all)],
        };
        // Who claims a share sees the task and the count of what is done.
        self.claims.0.store(claims.word(), Ordering::Release);
        let mut others = u64::MAX >> (SHARES - shares);
        own(&mut || {
            let share = self.claim(LEADER)?;
            others &= !(1 << share);
            Some(share)
        });
        assert!(self.claim(LEADER).is_none(), "the leader does all that is left");
        let others_done = others.count_ones() as usize;
        let mut looks = 0;
        // Whoever has claimed shares holds no lock that this thread has, so it gets on.
        while self.done.0.load(Ordering::Acquire) < others_done {
            looks += 1;
            if looks < LOOKS {
                spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
        others
    }

    /// For an idle engine: does shares until the leader is through, has had nothing to share out for a while, or `leave` says
    /// that there is something else to do.
    pub fn help(&self, leave: &dyn Fn() -> bool) {
        if self.helped.swap(true, Ordering::Acquire) {
            return;
        }
        let mut looks = 0;
        while looks < LOOKS && self.open.load(Ordering::Acquire) && !leave() {
            looks += 1;
            let Some(first) = self.claim(HELPER) else {
                spin_loop();
                continue;
            };
            looks = 0;
            // The leader sets the next task when this share is done, not before.
            let task = self.lock().clone().expect("shares are those of a task");
            let (mut first, mut claimed) = (Some(first), 0);
            task.help(&mut || {
                let share = match first.take() {
                    None if leave() => None,
                    None => self.claim(HELPER),
                    first => first,
                };
                claimed += usize::from(share.is_some());
                share
            });
            // A task may hold a model, which its leader has to be able to let go.
            drop(task);
            self.done.0.fetch_add(claimed, Ordering::Release);
        }
        self.expected.store(false, Ordering::Release);
        self.helped.store(false, Ordering::Release);
    }

    fn claim(&self, who: usize) -> Option<usize> {
        let mut share = None;
        // What was claimed comes with the task that it is of, since a task's number never returns while somebody looks.
        let _ = self
            .claims
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
                let mut claims = Claims::from_word(word);
                share = claims.claim(who);
                share.map(|_| claims.word())
            });
        share
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<dyn Task>>> {
        // No code that can panic runs under this lock.
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
