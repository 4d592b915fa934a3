//! Between a connection and the loop: what is asked, what is answered, and that somebody has gone away.

use super::board::Board;
use crate::job::reply::Answer;
use crate::job::request::{Properties, Request};
use crate::job::trace::TraceParent;
use crate::job::{ErrorType, JobKey, Refusal};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc::{self, OwnedPermit, error::TrySendError};
use tokio::sync::oneshot;

/// How often one who waits looks whether the loop still turns.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// A loop that has said nothing for this long is not waited for. Longer than `late_after`, so that a pause is no error.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// A job as a connection brings it.
#[derive(Debug)]
pub struct Ask {
    /// Its number.
    pub job: JobKey,
    /// Its id, as the caller wrote it or made up here.
    pub id: String,
    /// Where its caller is.
    pub caller: IpAddr,
    /// The caller's budget, in the words of a message's properties.
    pub properties: Properties,
    /// Size of the body.
    pub bytes: usize,
    /// What it asks for, or what is wrong.
    pub request: Result<Request, Refusal>,
    /// Where its answer goes.
    pub reply: oneshot::Sender<Reply>,
}

/// The answer to a job.
#[derive(Debug)]
pub struct Reply {
    /// What is given.
    pub given: Given,
    /// What is said of the trace that the job belongs to.
    pub traceparent: Option<TraceParent>,
}

/// What is given to a job's caller.
#[derive(Debug)]
pub enum Given {
    /// Vectors, and the fingerprint of the model that made them.
    Vectors(Answer, String),
    /// None, and why.
    Refused(Refusal),
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// The loop takes nothing in, or has not turned for so long.
    Hangs(Duration),
    /// There is no loop yet.
    Starting,
    /// The loop has come to its end.
    Stopping,
    /// It turns, and the job is not done after so long.
    Late(Duration),
}

/// What connections tell the loop.
#[derive(Debug)]
pub enum Call {
    /// Somebody asks.
    Ask(Box<Ask>),
    /// Nobody waits for this any more: who asked has gone away, or was told of this error in the answer's stead.
    Gone(JobKey, Option<ErrorType>),
}

/// The way to the loop.
#[derive(Debug)]
pub(super) struct Line {
    calls: mpsc::Sender<Call>,
    board: Arc<Board>,
    answer_max: Duration,
    next: AtomicU64,
}

/// One who waits. Dropped before the answer is there, it tells that nobody waits any more; its place in the channel is taken
/// when it asks, so that this is never lost however far the loop is behind.
struct Waiting {
    job: JobKey,
    gone: Option<OwnedPermit<Call>>,
    told: Option<ErrorType>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(place) = self.gone.take() {
            place.send(Call::Gone(self.job, self.told));
        }
    }
}

impl Line {
    pub(super) fn new(calls: mpsc::Sender<Call>, board: Arc<Board>, answer_max: Duration) -> Line {
        Line {
            calls,
            board,
            answer_max,
            next: AtomicU64::new(JobKey::CALLED + 1),
        }
    }

    /// Asks, and waits for the answer for as long as there may be one. Dropped meanwhile, the job is given up.
    pub(super) async fn ask(
        &self,
        id: String,
        caller: IpAddr,
        properties: Properties,
        bytes: usize,
        request: Result<Request, Refusal>,
    ) -> Result<Reply, Unanswered> {
        if self.board.seen().0.tally.is_none() {
            return Err(Unanswered::Starting);
        }
        let job = JobKey(self.next.fetch_add(1, Ordering::Relaxed));
        let (reply, mut answer) = oneshot::channel();
        let ask = Box::new(Ask {
            job,
            id,
            caller,
            properties,
            bytes,
            request,
            reply,
        });
        let place = match self.calls.clone().try_reserve_owned() {
            Ok(place) => place,
            Err(TrySendError::Full(_)) => return Err(self.hangs()),
            Err(TrySendError::Closed(_)) => return Err(Unanswered::Stopping),
        };
        let mut waiting = Waiting {
            job,
            gone: None,
            told: None,
        };
        match self.calls.try_send(Call::Ask(ask)) {
            Ok(()) => waiting.gone = Some(place),
            Err(TrySendError::Full(_)) => return Err(self.hangs()),
            Err(TrySendError::Closed(_)) => return Err(Unanswered::Stopping),
        }
        let mut waited = Duration::ZERO;
        loop {
            match tokio::time::timeout(LOOK_INTERVAL, &mut answer).await {
                Ok(Ok(reply)) => {
                    waiting.gone = None;
                    return Ok(reply);
                }
                // The loop has let go of the job without a word: it is closing.
                Ok(Err(_)) => return Err(Unanswered::Stopping),
                Err(_) => waited += LOOK_INTERVAL,
            }
            if self.board.seen().1 > SILENCE_MAX {
                return Err(self.hangs());
            }
            if waited >= self.answer_max {
                waiting.told = Some(ErrorType::DeadlineExceeded);
                return Err(Unanswered::Late(self.answer_max));
            }
        }
    }

    fn hangs(&self) -> Unanswered {
        Unanswered::Hangs(self.board.seen().1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, Moment};
    use crate::http::Posted;
    use crate::logic::tally::Tally;
    use std::net::Ipv4Addr;

    const ANSWER_MAX: Duration = LOOK_INTERVAL;

    fn line(places: usize) -> (Line, mpsc::Receiver<Call>) {
        let (calls, told) = mpsc::channel(places);
        let board = Board::new(Clock::start());
        board.post(Posted {
            tally: Some(Box::new(Tally::new(Moment::ZERO))),
            ..Posted::default()
        });
        (Line::new(calls, Arc::new(board), ANSWER_MAX), told)
    }

    fn ask(line: &Line) -> impl Future<Output = Result<Reply, Unanswered>> {
        let nowhere = Err(Refusal::invalid("input", "none"));
        line.ask(
            "id".into(),
            Ipv4Addr::LOCALHOST.into(),
            Properties::default(),
            1,
            nowhere,
        )
    }

    /// Goal: who goes away is always told of, also by a channel that is full by then.
    #[tokio::test]
    async fn a_caller_that_goes_away_is_told_of() {
        let (line, mut told) = line(2);
        let hasty = tokio::time::timeout(Duration::from_millis(20), ask(&line)).await;
        assert!(hasty.is_err(), "nobody answers");
        let Some(Call::Ask(first)) = told.recv().await else {
            panic!("the job comes first")
        };
        assert!(matches!(told.recv().await, Some(Call::Gone(job, None)) if job == first.job));
        assert!(first.reply.is_closed());
    }

    /// Goal: the loop knows of a job that was too late what its caller was told, for the job's span. Method: a loop that says how
    /// it is, and answers nobody.
    #[tokio::test]
    async fn an_answer_that_is_too_late_is_told_of() {
        let (line, mut told) = line(2);
        assert_eq!(ask(&line).await.err(), Some(Unanswered::Late(ANSWER_MAX)));
        assert!(matches!(told.recv().await, Some(Call::Ask(_))));
        let gone = told.recv().await;
        assert!(
            matches!(gone, Some(Call::Gone(_, Some(ErrorType::DeadlineExceeded)))),
            "{gone:?}"
        );
    }

    /// Goal: a loop that takes nothing in costs a caller no time.
    #[tokio::test]
    async fn a_full_line_refuses_at_once() {
        let (line, _told) = line(1);
        assert!(matches!(ask(&line).await, Err(Unanswered::Hangs(_))));
    }
}
