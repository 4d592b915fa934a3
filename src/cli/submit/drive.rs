//! The only part of `submit` that speaks to the broker and reads the clock: it turns what happens into calls of
//! [`Flight`] and does what that decides. A lost connection is opened again, for as long as the patience lasts.

use super::board::Board;
use super::flight::{Flight, Piece};
use super::kept::Seam;
use super::lines::Read;
use super::pace::Backoff;
use crate::broker::client::{Client, Note};
use crate::broker::{BrokerError, Published};
use crate::clock::{Clock, Moment};
use crate::config::BrokerConfig;
use crate::job::Lane;
use futures_util::stream::{FuturesUnordered, StreamExt};
use signal_hook::consts::signal::{SIGINT, SIGTERM};
use signal_hook_tokio::Signals;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// How the client calls itself at the broker.
const NAME: &str = "embeddings submit";
/// A timer that fires so much too late tells that this process stood still (SIGSTOP, a machine asleep).
const LATE: Duration = Duration::from_secs(5);

/// Why the command ends before its input does.
#[derive(Debug)]
pub enum Stop {
    /// No broker, no service, or no patience left.
    Unavailable(String),
    /// It was asked to end by this signal.
    Signal(i32),
    /// The writer has ended; it knows why.
    Output,
    /// The output is not of this input.
    Refused(String),
}

/// What a run came to.
#[derive(Debug)]
pub enum Ended {
    /// The input is done.
    Input,
    /// What is in the output fits to the input; the rest of the input waits.
    Seam(Box<Seam>),
}

type Link = (Arc<Client>, mpsc::Receiver<Note>);
type Opening = Pin<Box<dyn Future<Output = Result<(Client, mpsc::Receiver<Note>), BrokerError>> + Send>>;

/// The way to the service.
pub struct Drive {
    broker: BrokerConfig,
    lane: Lane,
    /// After that the service need not begin a job any more.
    budget: Option<Duration>,
    board: Board,
    clock: Clock,
    signals: Signals,
    link: Option<Link>,
    /// The connection that is being opened, when there is none.
    opening: Option<Opening>,
    backoff: Backoff,
}

impl Drive {
    /// Connects. Here nobody is waited for: a wrong address should be told at once.
    pub async fn connect(
        broker: &BrokerConfig,
        lane: Lane,
        patience: Duration,
        board: Board,
        clock: Clock,
    ) -> Result<Drive, Stop> {
        let signals = Signals::new([SIGINT, SIGTERM])
            .map_err(|error| Stop::Unavailable(format!("signals cannot be handled: {error}")))?;
        let mut drive = Drive {
            broker: broker.clone(),
            lane,
            budget: (lane == Lane::Interactive).then_some(patience),
            board,
            clock,
            signals,
            link: None,
            opening: None,
            backoff: Backoff::default(),
        };
        let (client, notes) = tokio::select! {
            biased;
            Some(signal) = drive.signals.next() => return Err(Stop::Signal(signal)),
            opened = Client::connect(broker, lane, NAME) => opened.map_err(|error| {
                Stop::Unavailable(format!("cannot reach the broker at {}: {error}", broker.shown()))
            })?,
        };
        match client.consumers().await {
            Ok(Some(0)) => drive.board.say(&format!(
                "no service takes jobs from {} now; waiting up to {} s",
                client.queue(),
                patience.as_secs()
            )),
            Ok(Some(_)) => {}
            Ok(None) => {
                return Err(Stop::Unavailable(format!(
                    "queue {} does not exist: no service has run with this broker and prefix",
                    client.queue()
                )));
            }
            Err(error) => return Err(Stop::Unavailable(error.to_string())),
        }
        drive.link = Some((Arc::new(client), notes));
        Ok(drive)
    }

    /// Brings the input through until it ends, or its seam is reached. Whatever comes back, the pieces that were
    /// handed on are whole lines in order.
    pub async fn run(
        &mut self,
        flight: &mut Flight,
        input: &mut mpsc::Receiver<Read>,
        pieces: &mpsc::Sender<Piece>,
    ) -> Result<Ended, Stop> {
        let mut input_open = true;
        let mut seam = None;
        let mut sends = FuturesUnordered::new();
        let mut held: Option<Piece> = None;
        loop {
            held = held.or_else(|| flight.take());
            if held.is_none() && flight.is_empty() {
                if let Some(seam) = seam {
                    return Ok(Ended::Seam(seam));
                }
                if !input_open {
                    return Ok(Ended::Input);
                }
            }
            let now = self.clock.now();
            while let Some((client, _)) = &self.link
                && let Some(sending) = flight.next(now)
            {
                let (client, budget) = (client.clone(), self.budget);
                sends.push(async move {
                    let sent = client.send(&sending.id, &sending.body, budget).await;
                    (sending.id, sent)
                });
            }
            let wants = input_open && seam.is_none() && flight.has_room();
            let wake = flight.wake(self.link.is_some());
            tokio::select! {
                // What was heard goes before what was not: time counts as passed only when nothing came.
                biased;
                Some(signal) = self.signals.next() => return Err(Stop::Signal(signal)),
                note = hear(&mut self.link) => match note {
                    Note::Heard { id, fingerprint, heard } => {
                        self.backoff = Backoff::default();
                        flight.heard(&id, fingerprint, heard, draw(), self.clock.now());
                        self.show(flight);
                    }
                    Note::Lost(cause) => {
                        sends = FuturesUnordered::new();
                        self.lost(&cause, flight);
                    }
                },
                Some((id, sent)) = sends.next(), if !sends.is_empty() => {
                    let queue = self.link.as_ref().map_or("", |(client, _)| client.queue());
                    match sent {
                        // Unconfirmed is not lost: the answer may come all the same.
                        Ok(Published::Routed | Published::Unconfirmed) => {}
                        Ok(Published::Returned) => {
                            flight.not_taken(&id, format!("queue {queue} does not exist"), draw(), self.clock.now());
                        }
                        Ok(Published::Rejected) => {
                            flight.not_taken(&id, format!("queue {queue} is full"), draw(), self.clock.now());
                        }
                        Err(error) => {
                            sends = FuturesUnordered::new();
                            self.lost(&error.to_string(), flight);
                        }
                    }
                },
                permit = pieces.reserve(), if held.is_some() => match permit {
                    Ok(permit) => permit.send(held.take().expect("looked at before")),
                    Err(_) => return Err(Stop::Output),
                },
                read = input.recv(), if wants => match read {
                    Some(Read::Batch(batch)) => flight.offer(batch, self.clock.now()),
                    Some(Read::Seam(found)) => seam = Some(found),
                    Some(Read::Refused(why)) => return Err(Stop::Refused(why)),
                    None => input_open = false,
                },
                opened = open(&mut self.opening) => {
                    self.opening = None;
                    match opened {
                        Ok((client, notes)) => {
                            self.board.say("connected to the broker again");
                            self.link = Some((Arc::new(client), notes));
                        }
                        Err(error) => self.reopen(&error.to_string()),
                    }
                }
                () = until(wake, self.clock) => {
                    let now = self.clock.now();
                    if wake.is_some_and(|wake| now.since(wake) > LATE) {
                        flight.was_stopped(now);
                    }
                    if let Some(cause) = flight.gives_up(now) {
                        return Err(Stop::Unavailable(self.why(cause)));
                    }
                }
            }
        }
    }

    /// Says good-bye to the broker.
    pub async fn close(self) {
        if let Some((client, _)) = self.link {
            client.close().await;
        }
    }

    /// Waits for work on another thread, unless a signal comes.
    pub async fn unless_signalled<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Stop> {
        tokio::select! {
            biased;
            Some(signal) = self.signals.next() => Err(Stop::Signal(signal)),
            done = work => Ok(done),
        }
    }

    fn lost(&mut self, cause: &str, flight: &mut Flight) {
        self.link = None;
        let again = flight.lost(self.clock.now());
        let jobs = match again {
            0 => String::new(),
            1 => ", one job is to be sent again".into(),
            _ => format!(", {again} jobs are to be sent again"),
        };
        self.board
            .say(&format!("lost the connection to the broker: {cause}{jobs}"));
        self.reopen(cause);
    }

    fn reopen(&mut self, cause: &str) {
        self.board.trouble(format!("waiting for the broker: {cause}"));
        let pause = self.backoff.next(draw());
        let (broker, lane) = (self.broker.clone(), self.lane);
        self.opening = Some(Box::pin(async move {
            tokio::time::sleep(pause).await;
            Client::connect(&broker, lane, NAME).await
        }));
    }

    fn show(&self, flight: &Flight) {
        self.board.trouble(match flight.trouble() {
            Some((attempt, error)) => format!("attempt {attempt}: {error}"),
            None if flight.is_slowed() => format!("overloaded, {} jobs at a time", flight.limit()),
            None => String::new(),
        });
    }

    fn why(&self, cause: String) -> String {
        match &self.link {
            None => format!("no connection to the broker: {cause}"),
            Some((client, _)) if client.is_blocked() => {
                format!("the broker blocks publishing (memory or disk alarm): {cause}")
            }
            Some((client, _)) => format!("no service answers on {}: {cause}", client.queue()),
        }
    }
}

async fn hear(link: &mut Option<Link>) -> Note {
    match link {
        None => std::future::pending().await,
        Some((_, notes)) => {
            let ended = || Note::Lost("the connection has ended".into());
            notes.recv().await.unwrap_or_else(ended)
        }
    }
}

async fn open(opening: &mut Option<Opening>) -> Result<(Client, mpsc::Receiver<Note>), BrokerError> {
    match opening {
        None => std::future::pending().await,
        Some(opening) => opening.await,
    }
}

async fn until(moment: Option<Moment>, clock: Clock) {
    match moment {
        None => std::future::pending().await,
        Some(moment) => tokio::time::sleep(moment.since(clock.now())).await,
    }
}

/// A random number from 0 to 1.
fn draw() -> f64 {
    rand::random()
}
