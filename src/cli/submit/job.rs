//! One job from request to vectors: sent, answered or retried as the answer asks, within its time.

use super::lines::Batch;
use crate::args::SubmitArgs;
use crate::broker::client::{AskError, Client, Reply};
use crate::clock::{Clock, Moment};
use crate::job::ErrorType;
use crate::job::reply::{Received, ReceivedError, ReceivedItem};
use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Pause before a retry where nothing says how long it should be.
const PAUSE_DEFAULT: Duration = Duration::from_secs(1);

/// Why no further job makes sense: no broker, or nobody behind it.
#[derive(Debug)]
pub struct Fatal(pub String);

/// What became of a batch.
#[derive(Debug)]
pub struct Done {
    /// As it was read.
    pub batch: Batch,
    /// Vectors for all its lines, or the reason why there are none.
    pub result: Result<Answered, String>,
}

/// Vectors of a batch.
#[derive(Debug, Default)]
pub struct Answered {
    /// In the order of the lines.
    pub vectors: Vec<Vec<f32>>,
    /// Indices of the lines that were cut.
    pub truncated: Vec<usize>,
    /// Tokens the model read.
    pub tokens: u64,
    /// Equal fingerprints mean comparable vectors.
    pub fingerprint: Option<String>,
}

/// Makes jobs of batches.
pub struct Jobs<'a> {
    client: &'a Client,
    clock: &'a Clock,
    model: Option<&'a str>,
    patience: Duration,
    run: u64,
    next: AtomicU64,
}

#[derive(Serialize)]
struct Body<'a> {
    input: Vec<&'a str>,
    encoding_format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_type: Option<&'static str>,
}

/// What to do with an answer, or with there being none.
enum Next {
    Done(Result<Answered, String>),
    Retry(Duration, String),
}

impl<'a> Jobs<'a> {
    /// Jobs with the command's model and time-out, under ids that no other run uses.
    pub fn new(client: &'a Client, args: &'a SubmitArgs, clock: &'a Clock) -> Jobs<'a> {
        Jobs {
            client,
            clock,
            model: args.model.as_deref(),
            patience: Duration::from_secs(args.timeout),
            run: rand::random(),
            next: AtomicU64::new(0),
        }
    }

    /// Embeds a batch; retries while it is asked to and its time lasts.
    pub async fn embed(&self, batch: Batch, input_type: Option<&'static str>) -> Result<Done, Fatal> {
        if batch.lines.is_empty() {
            let result = Ok(Answered::default());
            return Ok(Done { batch, result });
        }
        let body = Body {
            input: batch.lines.iter().map(|line| line.text.as_str()).collect(),
            encoding_format: "base64",
            model: self.model,
            input_type,
        };
        let body = serde_json::to_vec(&body).expect("writing plain data to memory cannot fail");
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let id = format!("submit-{:016x}-{number}", self.run);
        let give_up = self.clock.now() + self.patience;
        let result = loop {
            let answers = self.client.answers();
            let left = give_up.since(self.clock.now());
            match self.judge(
                self.client.ask(&id, &body, left).await,
                batch.lines.len(),
                answers,
            )? {
                Next::Done(result) => break result,
                Next::Retry(pause, cause) => {
                    if pause >= self.left(give_up) {
                        let patience = self.patience.as_secs();
                        break Err(format!("{cause}; gave up after {patience} s"));
                    }
                    tokio::time::sleep(pause).await;
                }
            }
        };
        Ok(Done { batch, result })
    }

    fn left(&self, give_up: Moment) -> Duration {
        give_up.since(self.clock.now())
    }

    fn judge(&self, outcome: Result<Reply, AskError>, lines: usize, answers: u64) -> Result<Next, Fatal> {
        match outcome {
            Ok(reply) => Ok(read(reply, lines)),
            Err(error @ AskError::Full(_)) => Ok(Next::Retry(PAUSE_DEFAULT, error.to_string())),
            Err(error @ AskError::Silence(_)) if self.client.answers() == answers => Err(Fatal(format!(
                "no service answers on {}: {error}",
                self.client.queue()
            ))),
            Err(error @ (AskError::Silence(_) | AskError::Unreadable(_))) => {
                Ok(Next::Done(Err(error.to_string())))
            }
            Err(error @ (AskError::Broker(_) | AskError::Lost(_) | AskError::NoQueue(_))) => {
                Err(Fatal(error.to_string()))
            }
        }
    }
}

fn read(reply: Reply, lines: usize) -> Next {
    match reply.received {
        Received::Result {
            data,
            usage,
            truncated,
            ..
        } => Next::Done(in_order(data, lines).map(|vectors| Answered {
            vectors,
            truncated,
            tokens: usage.total_tokens,
            fingerprint: reply.fingerprint,
        })),
        Received::Error { error } if may_retry(&error) => {
            let pause = error.retry_after_ms.map_or(PAUSE_DEFAULT, Duration::from_millis);
            Next::Retry(pause, said(&error))
        }
        Received::Error { error } => Next::Done(Err(said(&error))),
    }
}

fn may_retry(error: &ReceivedError) -> bool {
    [ErrorType::Overloaded.name(), ErrorType::Draining.name()].contains(&error.r#type.as_str())
}

fn said(error: &ReceivedError) -> String {
    format!("{} {}: {}", error.code, error.r#type, error.message)
}

/// The vectors in the order of the inputs, if there is exactly one for each.
fn in_order(data: Vec<ReceivedItem>, lines: usize) -> Result<Vec<Vec<f32>>, String> {
    let (count, mut vectors) = (data.len(), vec![Vec::new(); lines]);
    for item in data {
        match vectors.get_mut(item.index) {
            Some(place) if place.is_empty() => *place = item.embedding,
            _ => return Err(format!("the answer has a vector {} out of place", item.index)),
        }
    }
    if vectors.iter().any(Vec::is_empty) {
        return Err(format!("the answer has {count} vectors for {lines} inputs"));
    }
    Ok(vectors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(json: &str) -> Reply {
        Reply {
            received: serde_json::from_str(json).unwrap(),
            fingerprint: None,
        }
    }

    /// Goal: an answer is believed only if it has one vector for each line, each in its place.
    #[test]
    fn vectors_find_their_lines() {
        let good = r#"{"data":[{"index":1,"embedding":[2.0]},{"index":0,"embedding":"AACAPw=="}],
            "usage":{"total_tokens":9},"truncated":[],"model":"m"}"#;
        let Next::Done(Ok(answer)) = read(reply(good), 2) else {
            panic!("a good answer")
        };
        assert_eq!((answer.vectors, answer.tokens), (vec![vec![1.0], vec![2.0]], 9));
        assert!(matches!(read(reply(good), 3), Next::Done(Err(_))));
        let twice = good.replace("\"index\":1", "\"index\":0");
        assert!(matches!(read(reply(&twice), 2), Next::Done(Err(_))));
    }

    /// Goal: an overload is retried when it says so, a wrong request never.
    #[test]
    fn only_passing_troubles_are_retried() {
        let busy = r#"{"error":{"code":429,"type":"overloaded","message":"m","retry_after_ms":70}}"#;
        let Next::Retry(pause, _) = read(reply(busy), 1) else {
            panic!("a retry")
        };
        assert_eq!(pause, Duration::from_millis(70));
        let wrong = r#"{"error":{"code":404,"type":"model_not_found","message":"no model x"}}"#;
        let Next::Done(Err(cause)) = read(reply(wrong), 1) else {
            panic!("no retry")
        };
        assert_eq!(cause, "404 model_not_found: no model x");
    }
}
