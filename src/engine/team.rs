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

/// How often a helper looks for the next task, and a leader for the end of the last share, without a pause: some 300 µs where a
/// look takes 27 ns (Zen 4). That is longer than what a leader does alone between two tasks, a few microseconds for a short
/// text and some 100 for 128 rows, and longer than most shares. After that a helper goes, and a leader lets others have the
/// processor: the helper may need it.
const LOOKS: usize = 10_000;

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
    /// that there is something else to do. How many it did.
    pub fn help(&self, leave: &dyn Fn() -> bool) -> u64 {
        if self.helped.swap(true, Ordering::Acquire) {
            return 0;
        }
        let (mut looks, mut shares) = (0, 0);
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
            shares += claimed as u64;
            self.done.0.fetch_add(claimed, Ordering::Release);
        }
        // In this order: whoever is asked because nobody is expected must not find that somebody helps.
        self.helped.store(false, Ordering::Release);
        self.expected.store(false, Ordering::Release);
        shares
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Barrier;
    use std::thread;

    /// A task that counts how often each of its shares was done, and does something after each.
    struct Counted<F> {
        done: Vec<AtomicUsize>,
        after: F,
    }

    impl<F: Fn(usize) + Send + Sync + 'static> Counted<F> {
        fn new(shares: usize, after: F) -> Arc<Self> {
            let done = (0..shares).map(|_| AtomicUsize::new(0)).collect();
            Arc::new(Counted { done, after })
        }

        fn each_once(&self) -> bool {
            self.done.iter().all(|done| done.load(Ordering::Relaxed) == 1)
        }
    }

    impl<F: Fn(usize) + Send + Sync> Task for Counted<F> {
        fn help(&self, next: &mut dyn FnMut() -> Option<usize>) {
            while let Some(share) = next() {
                self.done[share].fetch_add(1, Ordering::Relaxed);
                (self.after)(share);
            }
        }
    }

    fn team() -> Arc<Team> {
        let team = Team::new(|_| true);
        assert!(team.gather());
        team
    }

    proptest! {
        // Goal: each share is claimed once, and forward by whom it was meant for. Method: any number of shares, claimed in any
        // order of the two.
        #[test]
        fn shares_are_claimed_once(shares in 1..=SHARES, order in prop::collection::vec(0..2_usize, 130)) {
            let (half, all) = (shares.div_ceil(2) as u8, shares as u8);
            let mut claims = Claims { task: 7, halves: [(0, half), (half, all)] };
            let mut claimed = vec![];
            for who in order {
                let share = claims.claim(who);
                prop_assert_eq!(claims, Claims::from_word(claims.word()));
                prop_assert_eq!(share.is_none(), claimed.len() == shares);
                claimed.extend(share);
            }
            claimed.sort_unstable();
            prop_assert!(claimed.into_iter().eq(0..shares));
        }
    }

    // Goal: a leader whom nobody helps does everything, and waits for nobody.
    #[test]
    fn a_leader_does_it_alone() {
        let team = team();
        for shares in [1, 2, 7, SHARES] {
            let task = Counted::new(shares, |_| ());
            assert_eq!(team.share(shares, task.clone(), |next| task.help(next)), 0);
            assert!(task.each_once());
        }
        team.dismiss();
    }

    // Goal: a helper that is called goes after the share that it does, and the leader does the rest. Method: the helper is
    // called in the middle of its first share, and the leader begins only then.
    #[test]
    fn a_helper_goes_when_it_is_called() {
        let (team, called) = (team(), Arc::new(AtomicBool::new(false)));
        let begun = Arc::new(Barrier::new(2));
        let task = {
            let (called, begun) = (called.clone(), begun.clone());
            Counted::new(6, move |share| {
                if share == 3 && !called.swap(true, Ordering::Relaxed) {
                    begun.wait();
                }
            })
        };
        let helper = {
            let team = team.clone();
            thread::spawn(move || {
                // Until the leader has set the task: it is no part of this test how long a helper looks for one.
                while !called.load(Ordering::Relaxed) {
                    team.help(&|| called.load(Ordering::Relaxed));
                }
            })
        };
        let theirs = team.share(6, task.clone(), |next| {
            begun.wait();
            task.help(next);
        });
        assert_eq!(theirs, 1 << 3, "the first of the helper's half");
        assert!(task.each_once());
        helper.join().unwrap();
        assert!(!team.helped.load(Ordering::Relaxed) && !team.expected.load(Ordering::Relaxed));
    }

    // Goal: a helper goes when its leader is through, and takes the task along nowhere. Method: it is in the middle of its
    // share when the leader begins to wait for it.
    #[test]
    fn a_helper_is_let_go() {
        let team = team();
        let begun = Arc::new(Barrier::new(2));
        let task = {
            let begun = begun.clone();
            let once = AtomicBool::new(false);
            Counted::new(2, move |share| {
                if share == 1 && !once.swap(true, Ordering::Relaxed) {
                    begun.wait();
                }
            })
        };
        let through = Arc::new(AtomicBool::new(false));
        let helper = {
            let (team, through) = (team.clone(), through.clone());
            thread::spawn(move || {
                while !through.load(Ordering::Acquire) {
                    team.help(&|| false);
                }
            })
        };
        let theirs = team.share(2, task.clone(), |next| {
            begun.wait();
            task.help(next);
        });
        assert!(theirs & 0b10 != 0, "the helper had begun it: {theirs:b}");
        team.dismiss();
        assert_eq!(Arc::strong_count(&task), 1, "nobody but this test holds it");
        through.store(true, Ordering::Release);
        helper.join().unwrap();
        assert!(task.each_once());
    }

    // Goal: whoever comes and goes whenever, every share of every task is done once, and the leader knows whose it was. Method:
    // three helpers that come again and again and are called away at random, many tasks of random sizes.
    #[test]
    fn every_share_is_done_once() {
        const TASKS: usize = 2000;
        let team = Team::new(|_| true);
        let through = Arc::new(AtomicBool::new(false));
        let random = |state: &mut u64| {
            // Marsaglia's xorshift.
            *state ^= *state << 13;
            *state ^= *state >> 7;
            *state ^= *state << 17;
            *state
        };
        let helpers: Vec<_> = (1..4_u64)
            .map(|seed| {
                let (team, through) = (team.clone(), through.clone());
                thread::spawn(move || {
                    let state = std::cell::Cell::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
                    let chance = || {
                        let mut next = state.get();
                        let chance = random(&mut next).is_multiple_of(50);
                        state.set(next);
                        chance
                    };
                    while !through.load(Ordering::Acquire) {
                        team.help(&chance);
                        if chance() {
                            thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let mut state = 42;
        for _ in 0..TASKS {
            let shares = 1 + random(&mut state) as usize % SHARES;
            team.gather();
            let task = Counted::new(shares, |_| ());
            let mut ours = 0_u64;
            let theirs = team.share(shares, task.clone(), |next| {
                task.help(&mut || next().inspect(|share| ours |= 1 << share));
            });
            assert!(task.each_once());
            assert_eq!((ours & theirs, ours | theirs), (0, u64::MAX >> (SHARES - shares)));
            if random(&mut state).is_multiple_of(9) {
                team.dismiss();
                assert_eq!(Arc::strong_count(&task), 1, "nobody but this test holds it");
            }
        }
        through.store(true, Ordering::Release);
        helpers.into_iter().for_each(|helper| helper.join().unwrap());
    }
}
