//! Through the broker: the service as a caller meets it, beside whatever else it does meanwhile.
//!
//! One connection for each lane. Outside of a round nothing is under way, so the engine alone can be measured
//! between two of them.

use super::engine::ms;
use crate::broker::Published;
use crate::broker::client::{Client, Note};
use crate::clock::{Clock, Moment};
use crate::config::BrokerConfig;
use crate::job::Lane;
use crate::job::received::{Heard, Vectors};
use futures_util::future::join;
use futures_util::stream::{FuturesUnordered, StreamExt};
use serde_json::json;
use std::collections::HashSet;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

/// How it calls itself at the broker.
const NAME: &str = "embeddings bench";
/// Inputs of a bulk job, as many as a chunk of the service has by itself.
const JOB_INPUTS: usize = 32;
/// Bulk jobs under way, as many as the service works on at once by itself.
const JOBS: usize = 8;
/// Longest wait for the first answer: the model may have to be loaded for it.
const FIRST_MAX: Duration = Duration::from_secs(60);
/// Longest wait for any other.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// The way to the service.
pub struct Caller {
    runtime: Runtime,
    interactive: Lined,
    bulk: Lined,
    /// `None` for the service's default.
    model: Option<String>,
    run: String,
    jobs: u64,
    /// What the service computes with.
    pub fingerprint: String,
}

/// A connection for jobs of one lane.
struct Lined {
    client: Client,
    notes: mpsc::Receiver<Note>,
}

/// What a round of bulk jobs came to.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Bulk {
    /// Texts that became vectors.
    pub inputs: u64,
    /// Their tokens.
    pub tokens: u64,
    /// From the first job that was sent to the last answer.
    pub seconds: f64,
}

/// A job that is answered.
struct Answer {
    id: String,
    fingerprint: Option<std::sync::Arc<str>>,
    vectors: Vectors,
}

impl Caller {
    /// Connects, and has one text embedded.
    ///
    /// # Errors
    /// Why there is nothing to measure: no broker, no service, or no such model.
    pub fn connect(broker: &BrokerConfig, model: Option<String>) -> Result<Caller, String> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|error| format!("failed to start the runtime: {error}"))?;
        let (interactive, bulk) = runtime.block_on(async {
            let interactive = Lined::connect(broker, Lane::Interactive).await?;
            Ok::<_, String>((interactive, Lined::connect(broker, Lane::Bulk).await?))
        })?;
        let mut caller = Caller {
            runtime,
            interactive,
            bulk,
            model,
            run: format!("bench-{:016x}", rand::random::<u64>()),
            jobs: 0,
            fingerprint: String::new(),
        };
        caller.ask("Is anybody there?", FIRST_MAX)?;
        Ok(caller)
    }

    /// In which numbers the service computes; a part of the fingerprint.
    pub fn precision(&self) -> &str {
        self.fingerprint.rsplit(':').nth(1).unwrap_or("unknown")
    }

    /// Has texts embedded one at a time for so long: milliseconds from sending to the answer, at least one.
    ///
    /// # Errors
    /// Why the service could not be measured.
    pub fn single(&mut self, texts: &[String], span: Duration) -> Result<Vec<f64>, String> {
        let (clock, mut times) = (Clock::start(), Vec::new());
        let begin = clock.now();
        for text in texts.iter().cycle() {
            times.push(self.ask(text, ANSWER_MAX)?);
            if clock.now().since(begin) >= span {
                break;
            }
        }
        Ok(times)
    }

    /// Keeps bulk jobs under way for so long, and waits for the last of them.
    ///
    /// # Errors
    /// Why the service could not be measured.
    pub fn bulk(&mut self, texts: &[String], span: Duration) -> Result<Bulk, String> {
        let Caller {
            runtime,
            bulk,
            model,
            run,
            jobs,
            ..
        } = self;
        let mut texts = texts.iter().cycle();
        let mut job = || {
            *jobs += 1;
            let inputs: Vec<&str> = texts.by_ref().take(JOB_INPUTS).map(String::as_str).collect();
            (format!("{run}-{jobs}"), body(&inputs, model.as_deref()))
        };
        runtime.block_on(bulk.keep_busy(&mut job, span))
    }

    /// Says good-bye to the broker.
    pub fn close(self) {
        self.runtime
            .block_on(join(self.interactive.client.close(), self.bulk.client.close()));
        self.runtime.shutdown_timeout(Duration::from_secs(1));
    }

    /// One text on the interactive lane; milliseconds until its vector is here.
    fn ask(&mut self, text: &str, limit: Duration) -> Result<f64, String> {
        self.jobs += 1;
        let id = format!("{}-{}", self.run, self.jobs);
        let body = body(&[text], self.model.as_deref());
        let Lined { client, notes } = &mut self.interactive;
        let client = &*client;
        let (answer, ms) = self.runtime.block_on(async {
            let clock = Clock::start();
            let begin = clock.now();
            let sending = send(client, &id, &body, Some(limit));
            let hearing = async {
                let answer = hear(client, notes, limit).await?;
                Ok((answer, ms(clock.now().since(begin))))
            };
            // Both at once: the answer may come before the broker confirms that it has the job.
            let ((), heard) = tokio::try_join!(sending, hearing)?;
            Ok::<_, String>(heard)
        })?;
        if answer.id != id {
            return Err(format!("an answer to job {} came instead of {id}", answer.id));
        }
        if let Some(fingerprint) = answer.fingerprint {
            self.fingerprint = fingerprint.to_string();
        }
        Ok(ms)
    }
}

impl Lined {
    async fn connect(broker: &BrokerConfig, lane: Lane) -> Result<Lined, String> {
        let (client, notes) = Client::connect(broker, lane, NAME)
            .await
            .map_err(|error| format!("cannot reach the broker at {}: {error}", broker.shown()))?;
        match client.consumers().await.map_err(|error| error.to_string())? {
            Some(0) => Err(format!("no service takes jobs from {} now", client.queue())),
            Some(_) => Ok(Lined { client, notes }),
            None => Err(format!(
                "queue {} does not exist: no service has run with this broker and prefix",
                client.queue()
            )),
        }
    }

    /// Sends jobs as answers come, until the time is over, and then waits for what is under way. Answers of several
    /// jobs may come all at once, so any other span than the whole would count some without their time.
    async fn keep_busy(
        &mut self,
        job: &mut impl FnMut() -> (String, Vec<u8>),
        span: Duration,
    ) -> Result<Bulk, String> {
        let Lined { client, notes } = self;
        let client = &*client;
        let (clock, mut bulk) = (Clock::start(), Bulk::default());
        let passed = || clock.now().since(Moment::ZERO);
        let mut waited_for = HashSet::new();
        let mut sends = FuturesUnordered::new();
        loop {
            while (passed() < span || bulk == Bulk::default()) && waited_for.len() < JOBS {
                let (id, body) = job();
                waited_for.insert(id.clone());
                sends.push(async move { send(client, &id, &body, None).await });
            }
            if waited_for.is_empty() && sends.is_empty() {
                return Ok(bulk);
            }
            tokio::select! {
                biased;
                answer = hear(client, notes, ANSWER_MAX), if !waited_for.is_empty() => {
                    let Answer { id, vectors, .. } = answer?;
                    if waited_for.remove(&id) {
                        bulk.inputs += vectors.data.len() as u64;
                        bulk.tokens += vectors.usage.total_tokens;
                        bulk.seconds = passed().as_secs_f64();
                    }
                }
                Some(sent) = sends.next(), if !sends.is_empty() => sent?,
            }
        }
    }
}

/// Hands a job to the broker, which says in time that it has it. A broker that blocks publishers would never say.
async fn send(client: &Client, id: &str, body: &[u8], budget: Option<Duration>) -> Result<(), String> {
    let sent = tokio::time::timeout(ANSWER_MAX, client.send(id, body, budget)).await;
    match sent.map_err(|_| silent(client, ANSWER_MAX))? {
        // Unconfirmed is not lost: the answer may come all the same.
        Ok(Published::Routed | Published::Unconfirmed) => Ok(()),
        Ok(Published::Returned) => Err(format!("queue {} has gone", client.queue())),
        Ok(Published::Rejected) => Err(format!("queue {} is full", client.queue())),
        Err(error) => Err(error.to_string()),
    }
}

/// What is said where nothing comes.
fn silent(client: &Client, limit: Duration) -> String {
    if client.is_blocked() {
        return "the broker blocks publishing (memory or disk alarm)".to_owned();
    }
    let (queue, seconds) = (client.queue(), limit.as_secs());
    format!("the service behind {queue} has not answered for {seconds} s")
}

/// The next answer with vectors.
async fn hear(client: &Client, notes: &mut mpsc::Receiver<Note>, limit: Duration) -> Result<Answer, String> {
    loop {
        let note = tokio::time::timeout(limit, notes.recv())
            .await
            .map_err(|_| silent(client, limit))?;
        match note {
            None => return Err("the connection to the broker has ended".to_owned()),
            Some(Note::Lost(cause)) => return Err(format!("lost the connection to the broker: {cause}")),
            Some(Note::Heard {
                id,
                fingerprint,
                heard,
            }) => match heard.map_err(|error| format!("an answer cannot be read: {error}"))? {
                Heard::Result(vectors) => {
                    return Ok(Answer {
                        id,
                        fingerprint,
                        vectors,
                    });
                }
                Heard::Error(error) => {
                    return Err(format!(
                        "the service answers {} {}: {}",
                        error.code, error.r#type, error.message
                    ));
                }
                // Nothing here is streamed.
                Heard::Chunk(_) | Heard::Progress(_) | Heard::Done(_) => {}
            },
        }
    }
}

fn body(inputs: &[&str], model: Option<&str>) -> Vec<u8> {
    let mut body = json!({"input": inputs, "encoding_format": "base64"});
    if let Some(model) = model {
        body["model"] = model.into();
    }
    body.to_string().into_bytes()
}
