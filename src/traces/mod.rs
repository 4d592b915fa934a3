//! Spans of jobs that ended, out to a collector of OpenTelemetry's, where the configuration names one.
//!
//! ```text
//!   the loop ── a job that ended ──> queue, bounded ──> thread `traces`: batch, protobuf, POST ──> collector
//!              (never waits)       (full: dropped,      (a limit on every step,
//!                                      counted)           few attempts)
//! ```
//!
//! Nothing here bears on a job or on health: a collector that is slow, absent or wrong costs spans, which are counted, and a
//! line in the log when that begins and when it ends.

mod job;
mod post;
mod proto;

pub use job::{Asked, Job, Source};

use crate::clock::Clock;
use crate::job::trace::{Place, TraceParent};
use post::{Counts, Post};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::Duration;
use tokio::sync::oneshot;

/// Jobs that wait to be told of. Each takes about a kilobyte, so all of them as much as a body of a few megabytes.
const QUEUE: usize = 4096;

/// Where spans go, and who tells them.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The collector's address, without the path of the signal.
    pub endpoint: String,
    /// Of a hundred jobs whose callers say nothing of a trace, how many begin one.
    pub sample_percent: u8,
    /// The clock of the process.
    pub clock: Clock,
    /// This machine's name.
    pub host: String,
    /// The name of the unit, which is also that of an instance.
    pub unit: String,
}

/// Asks a collector to take no spans at all.
///
/// # Errors
/// In words: nobody answers there, or it would not take them.
pub fn probe(endpoint: &str) -> Result<(), String> {
    post::probe(endpoint)
}

/// What became of spans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// The collector took so many.
    pub sent: u64,
    /// So many were given up: the queue was full, or the collector would not have them.
    pub dropped: u64,
}

/// What became of spans so far, for whoever looks.
#[derive(Clone, Debug)]
pub struct Figures(Arc<Counts>);

impl Figures {
    /// Until now.
    pub fn told(&self) -> Told {
        Told {
            sent: self.0.sent.load(Ordering::Relaxed),
            dropped: self.0.dropped.load(Ordering::Relaxed),
        }
    }
}

/// The way out for spans.
#[derive(Debug)]
pub struct Traces {
    queue: SyncSender<Job>,
    counts: Arc<Counts>,
    thread: std::thread::Thread,
    ended: oneshot::Receiver<()>,
    sample_percent: u8,
}

impl Traces {
    /// Starts the thread. Nothing is asked of the collector before there is something to tell.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start(setup: Setup) -> std::io::Result<Traces> {
        let (queue, jobs) = sync_channel(QUEUE);
        let (end, ended) = oneshot::channel();
        let counts = Arc::<Counts>::default();
        let sample_percent = setup.sample_percent;
        let post = Post::new(setup, counts.clone());
        let work = move || {
            post.run(&jobs);
            let _ = end.send(());
        };
        let thread = std::thread::Builder::new().name("traces".into()).spawn(work)?;
        Ok(Traces {
            queue,
            counts,
            thread: thread.thread().clone(),
            ended,
            sample_percent,
        })
    }

    /// What became of spans, for whoever looks.
    pub fn figures(&self) -> Figures {
        Figures(self.counts.clone())
    }

    /// Where a job stands in a trace of which we tell: below its caller's span if that is kept. A job whose caller says
    /// nothing of a trace begins one if chance wills it.
    pub fn place(&self, caller: Option<&TraceParent>) -> Option<Place> {
        let span = rand::random::<u64>().max(1);
        match caller {
            Some(caller) => caller.is_sampled().then(|| Place::below(caller, span)),
            None => {
                let chosen = rand::random_range(0..100) < self.sample_percent;
                chosen.then(|| Place::root(rand::random::<u128>().max(1), span))
            }
        }
    }

    /// Tells of a job that has ended. Never waits.
    pub fn tell(&self, job: Job) {
        if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) = self.queue.try_send(job) {
            self.counts.overrun(job.spans());
        }
    }

    /// Sends what is left, for no longer than `limit`. What the collector has not taken by then is lost with the process.
    pub async fn close(self, limit: Duration) {
        self.counts.closing.store(true, Ordering::Release);
        drop(self.queue);
        self.thread.unpark();
        let _ = tokio::time::timeout(limit, self.ended).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Moment;
    use crate::job::{ErrorType, Lane};
    use crate::logic::event::Outcome;
    use crate::logic::ledger::Stage;

    /// Nobody listens at port 1.
    fn traces(sample_percent: u8) -> Traces {
        Traces::start(Setup {
            endpoint: "http://127.0.0.1:1".into(),
            sample_percent,
            clock: Clock::start(),
            host: "host".into(),
            unit: "embeddings".into(),
        })
        .unwrap()
    }

    fn job(source: Source, refused: Option<ErrorType>, outcome: Outcome) -> Job {
        Job {
            place: Place::root(1, 2),
            source,
            id: "id".into(),
            lane: Lane::Interactive,
            outcome,
            attempt: 1,
            asked: None,
            refused: refused.map(|error| (error, None)),
            came_unix_ms: 0,
            came: Moment::ZERO,
            ended: Moment::ZERO,
            steps: vec![(Stage::Admitted, Moment::ZERO), (Stage::Published, Moment::ZERO)],
        }
    }

    /// Goal: with nobody to take spans, telling costs no time and no memory beyond the queue, every span is counted, and the
    /// end comes when it should.
    #[tokio::test]
    async fn what_finds_no_place_is_counted_and_nobody_waits() {
        let traces = traces(0);
        let figures = traces.figures();
        let clock = Clock::start();
        let jobs = 2 * QUEUE + 1000;
        for _ in 0..jobs {
            traces.tell(job(Source::Http, None, Outcome::Answered));
        }
        // The thread may have taken a batch out meanwhile.
        let dropped = figures.told().dropped;
        assert!(dropped >= 3 * (jobs - QUEUE - 1000) as u64, "{dropped}");
        traces.close(Duration::from_millis(500)).await;
        let took = clock.now().since(Moment::ZERO);
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert_eq!(figures.told().sent, 0);
    }

    #[test]
    fn the_caller_decides_what_is_kept_and_chance_where_it_says_nothing() {
        let parent = |flags| {
            let text = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}");
            TraceParent::parse(&text).unwrap()
        };
        let (none, all) = (traces(0), traces(100));
        for traces in [&none, &all] {
            assert_eq!(traces.place(Some(&parent("00"))), None);
            let place = traces.place(Some(&parent("01"))).unwrap();
            assert_eq!(place.parent, Some(0x00f0_67aa_0ba9_02b7));
        }
        assert!((0..1000).all(|_| none.place(None).is_none()));
        assert!((0..1000).all(|_| all.place(None).is_some_and(|place| place.parent.is_none())));
    }

    /// Goal: by the broker whatever has no vectors is an error; by HTTP a caller's own mistake is not.
    #[test]
    fn errors_are_those_of_the_conventions() {
        let queue = || Source::Queue {
            name: "q".into(),
            correlation_id: None,
            bytes: 1,
        };
        let (wrong, broken) = (Some(ErrorType::InvalidRequest), Some(ErrorType::Internal));
        for (source, refused, outcome, error) in [
            (queue(), None, Outcome::Answered, None),
            (queue(), wrong, Outcome::Refused, Some("invalid_request")),
            (queue(), broken, Outcome::MovedOn, Some("internal")),
            (queue(), None, Outcome::Lost, Some("lost")),
            (queue(), None, Outcome::Requeued, None),
            (Source::Http, wrong, Outcome::Refused, None),
            (Source::Http, broken, Outcome::Refused, Some("internal")),
        ] {
            assert_eq!(
                job(source, refused, outcome).error(),
                error,
                "{refused:?} {outcome:?}"
            );
        }
    }
}
