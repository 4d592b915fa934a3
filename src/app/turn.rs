//! The loop: every event in, the clock read once for each, every action done in one `match`. What costs another thread its
//! sleep is done once a turn, which may be of many events of the broker's.

mod called;
mod ended;
mod heard;
mod progress;
mod signals;
mod tokens;
mod told;
mod work;

pub use work::{Done, report, report_tokenizers, start_loader, watch_memory};

use super::catalogue::{Catalogue, CatalogueError, Way};
use super::desk::{Desk, Held};
use super::innocent::Innocent;
use super::lineages::Lineages;
use super::loader::{Loader, Order};
use super::notices::Notices;
use super::pulse::Pulse;
use super::results::Results;
use super::show::Show;
use super::trace::Trace;
use super::twins::Twins;
use super::window::{self, Question};
use super::{die, heed_sentence};
use crate::broker::{BrokerEvent, Command, Prefetch, Span};
use crate::clock::{Clock, Moment};
use crate::config::{Config, Inputs};
use crate::engine::pool::{Pool, Work};
use crate::engine::tokenize::Tokenizers;
use crate::http::{self, Board, Call};
use crate::job::request::decode;
use crate::job::{JobKey, Lane, Names};
use crate::logic::Logic;
use crate::logic::event::{
    Action, BatchId, CallerId, EngineId, Event, Item, ModelId, Onward, Outcome, Worker,
};
use crate::logic::health::KillReason;
use crate::logic::ledger::Stage;
use crate::telemetry::Logging;
use crate::telemetry::blackbox::Phase;
use crate::traces::Traces;
use crate::watchdog::{notify, thread::Truth};
use anyhow::Context;
use futures_util::StreamExt;
use heard::{Outside, outside};
use progress::Retries;
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGTERM};
use signal_hook_tokio::Signals;
use signals::Reload;
use std::collections::{HashMap, VecDeque};
use std::hash::RandomState;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{debug, error, info, warn};

/// Longest wait for the journal to take the last lines.
const FLUSH_MAX: Duration = Duration::from_millis(200);
/// Longest wait for a collector to take the last spans.
const SPANS_MAX: Duration = Duration::from_secs(1);
/// Longest wait for the connections to close after everything is settled.
const CLOSE_MAX: Duration = Duration::from_secs(3);

/// What the loop is made of.
pub struct Parts {
    pub clock: Clock,
    pub inputs: Inputs,
    pub config: Config,
    /// This machine's name.
    pub host: String,
    pub disconnect_kill: Span,
    pub confirm_patience: Span,
    /// What the next connection to the broker fetches ahead.
    pub prefetch: Prefetch,
    /// The largest `max_queue` that the prefetch of this process has room for.
    pub max_queue_max: usize,
    pub logging: Logging,
    pub catalogue: Catalogue,
    pub loader: Loader,
    pub logic: Logic,
    pub truth: Truth,
    pub pool: Pool,
    pub tokenizers: Tokenizers,
    pub work_done: mpsc::Sender<Done>,
    pub to_broker: mpsc::Sender<Command>,
    /// Those who ask for the status.
    pub questions: mpsc::Receiver<Question>,
    /// What is said to whoever looks by HTTP.
    pub board: Arc<Board>,
    /// HTTP, if it is on.
    pub http: Option<http::Server>,
    /// The way out for spans, if there is one.
    pub traces: Option<Traces>,
    /// Whether the broker task may take jobs that go on.
    pub resume: Arc<AtomicBool>,
    /// Models that have not been loaded yet.
    pub first_loads: VecDeque<Order>,
}

/// The loop and what it owns.
pub struct Loop {
    parts: Parts,
    desk: Desk,
    /// Items of the batches in engines, to take their vectors in.
    batches: HashMap<BatchId, Vec<Item>>,
    /// Number of the session that stands, or stood last.
    session: u64,
    names: Names,
    /// Whether the broker has the queues for jobs that go on.
    resumable: bool,
    /// Ids of jobs that were here when a session was lost: that they come back says nothing against them.
    innocent: Innocent,
    results: Results,
    twins: Twins,
    /// What follows in this turn from what was done.
    pending: Vec<Event>,
    /// What the broker task is asked at its end.
    commands: Vec<Command>,
    lineages: Lineages,
    retries: Retries,
    ready: bool,
    draining: bool,
    drained: bool,
    reload: Reload,
    show: Show,
    /// What the last attempt to reach the broker came to, while there is no session.
    waiting: Option<String>,
    /// The last step of loading models for the first time, and when it was; until all have been there.
    loading: Option<(String, Moment)>,
    /// A model is being loaded for the first time.
    first_load: bool,
    /// Nobody has brought a job since that began.
    quiet: bool,
    /// Why the service cannot go on.
    failure: Option<CatalogueError>,
    pulse: Pulse,
    notices: Notices,
    /// Names of callers to numbers, differently in each process: nobody can choose whose number he gets.
    callers: RandomState,
    trace: Trace,
    /// Host and port of the broker.
    address: String,
    /// When the board was last written, and whether new work was welcome then.
    posted: Option<(Moment, bool)>,
    /// The loop has turned since, and it is to be written again in so long.
    unposted: Option<Duration>,
}

impl Loop {
    /// A loop that has not turned yet.
    pub fn new(parts: Parts) -> Loop {
        Loop {
            show: Show::new(&parts.catalogue),
            pulse: Pulse::new(
                &parts.config.limits,
                &parts.config.dirs,
                parts.host.clone(),
                &parts.catalogue,
            ),
            notices: Notices::new(parts.host.clone(), &parts.catalogue),
            callers: RandomState::new(),
            trace: Trace::new(&parts.catalogue.default_entry().name),
            names: Names::new(&parts.config.broker.prefix),
            address: window::address(&parts.config.broker.shown()),
            parts,
            desk: Desk::new(),
            batches: HashMap::new(),
            session: 0,
            innocent: Innocent::default(),
            results: Results::default(),
            twins: Twins::default(),
            pending: Vec::new(),
            commands: Vec::new(),
            lineages: Lineages::default(),
            retries: Retries::default(),
            resumable: false,
            ready: false,
            draining: false,
            drained: false,
            reload: Reload::default(),
            waiting: None,
            loading: Some(("loading models".into(), Moment::ZERO)),
            first_load: false,
            quiet: true,
            failure: None,
            posted: None,
            unposted: None,
        }
    }

    /// Turns until everything is drained.
    pub async fn run(
        mut self,
        mut broker: mpsc::Receiver<BrokerEvent>,
        mut calls: mpsc::Receiver<Call>,
        mut work: mpsc::Receiver<Done>,
        session: JoinHandle<()>,
    ) -> anyhow::Result<ExitCode> {
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).context("failed to listen for signals")?;
        self.load_next();
        while !self.drained {
            let now = self.parts.clock.now();
            let mut wait = self.parts.logic.next_check(now).since(now);
            wait = wait.min(self.pulse.rest(now));
            if let Some(rest) = self.unposted {
                wait = wait.min(rest);
            }
            // Cancelling any of these loses nothing: `recv` and `next` are cancel-safe.
            let event = tokio::select! {
                biased;
                // First, and no flood: one thread asks, waits for the answer, and pauses.
                Some(question) = self.parts.questions.recv() => self.answer(question),
                Some(done) = work.recv() => self.work_done(done),
                Some(signal) = signals.next() => self.signalled(signal),
                heard = outside(&mut broker, &mut calls) => match heard {
                    Outside::Broker(Some(event)) => {
                        self.hear(event, &mut broker);
                        None
                    }
                    Outside::Broker(None) => anyhow::bail!("the broker task is gone"),
                    Outside::Call(call) => self.called(call),
                },
                () = tokio::time::sleep(wait) => Some(Event::Tick),
            };
            if let Some(event) = event {
                self.turn(event);
            }
            self.load_next();
            self.hand_on();
            if let Some(failure) = self.failure.take() {
                // Whose engines may be at work for others: joining them would be waiting.
                std::mem::forget(self.parts.pool);
                return Err(failure.into());
            }
        }
        // Closing the command channel ends the session, and with it what is left unacknowledged.
        drop(self.parts.to_broker);
        // Whoever asks now is told that the doors are being closed.
        drop(self.parts.questions);
        drop(calls);
        let http = async {
            if let Some(http) = self.parts.http {
                http.close(CLOSE_MAX).await;
            }
        };
        let traces = async {
            if let Some(traces) = self.parts.traces {
                traces.close(SPANS_MAX).await;
            }
        };
        let _ = tokio::join!(tokio::time::timeout(CLOSE_MAX, session), http, traces);
        let ended = &self.parts.logic.tally().jobs;
        let total = |outcome: Outcome| ended.iter().map(|lane| lane[outcome as usize]).sum::<u64>();
        info!(
            answered = total(Outcome::Answered),
            refused = total(Outcome::Refused),
            requeued = total(Outcome::Requeued),
            moved_on = total(Outcome::MovedOn),
            "stopped"
        );
        crate::telemetry::flush(FLUSH_MAX);
        heed_sentence(&self.parts.config.dirs);
        // Nothing is left to lose, and joining threads would be waiting for one that hangs.
        signal_hook::low_level::exit(0)
    }

    /// One turn.
    fn turn(&mut self, event: Event) {
        self.step(event);
        self.turned();
    }

    /// One event for the logic, and what follows from it at once.
    fn step(&mut self, event: Event) {
        let now = self.parts.clock.now();
        self.parts.logic.watched(self.parts.truth.last_look());
        let mut events: VecDeque<Event> = [event].into_iter().chain(self.pending.drain(..)).collect();
        let mut actions = Vec::new();
        while let Some(event) = events.pop_front() {
            self.parts.logic.step(event, now, &mut actions);
            for action in actions.drain(..) {
                let event = self.perform(action, now);
                events.extend(event.into_iter().chain(self.pending.drain(..)));
            }
        }
    }

    /// Lets everybody see what the turn has come to.
    fn turned(&mut self) {
        let now = self.parts.clock.now();
        if self.loading.is_some() && !self.parts.logic.starts() {
            self.models_proven(now);
        }
        self.parts.truth.update(self.parts.logic.health());
        self.show.turned(&self.parts.logic, now);
        if let Some(heartbeat) = self.pulse.turned(&self.parts.logic, now) {
            self.command(heartbeat);
        }
        while let Some(notice) = self.notices.due(&self.parts.logic) {
            self.command(notice);
        }
        self.trace.turned(&self.parts.logic, &self.desk, now);
        self.post(now);
    }

    fn perform(&mut self, action: Action, now: Moment) -> Option<Event> {
        match action {
            Action::Load { model } => {
                info!(model = self.parts.catalogue.entry(model).name, "loading a model");
                let order = self.parts.catalogue.load_order(model);
                self.order(order);
            }
            Action::Unload { model } => {
                let order = self.parts.catalogue.unload_order(model);
                order.map(|order| self.order(order))?;
            }
            Action::Tokenize { job } => {
                let held = self.desk.get_mut(&job)?;
                held.enters(Stage::Admitted, held.arrived);
                return self.tokenize(job);
            }
            Action::StartBatch {
                engine,
                first,
                batch,
                model,
                items,
            } => {
                for item in &items {
                    if let Some(held) = self.desk.get_mut(&item.job) {
                        held.enters(Stage::Computed, now);
                    }
                }
                self.start_batch((engine, first), batch, model, items);
            }
            Action::Answer { job } if self.desk.get(&job)?.receipt.is_none() => {
                return self.hand_over(job, None);
            }
            Action::Answer { job } => {
                self.desk.get_mut(&job)?.enters(Stage::Published, now);
                let publication =
                    self.desk
                        .get_mut(&job)?
                        .answer(job, &self.parts.catalogue, &mut self.results);
                self.part_twins(job);
                publication.map(|publication| self.command(Command::Publish(publication)))?;
            }
            Action::Chunk { job, first, inputs } => {
                let publication =
                    self.desk
                        .get_mut(&job)?
                        .chunk(job, first..first + inputs, &self.parts.catalogue);
                publication.map(|publication| self.command(Command::Publish(publication)))?;
            }
            Action::Cut { job, inputs } => {
                let held = self.desk.get_mut(&job)?;
                held.cut(inputs);
                info!(job = %held.id, trace_id = held.trace_id(), inputs, "a slice ends early");
            }
            Action::Finish { job } => {
                let unix_ms = Clock::unix_ms();
                self.desk.get_mut(&job)?.enters(Stage::Published, now);
                let publication = self.desk.get_mut(&job)?.done(job, &self.parts.catalogue, unix_ms);
                publication.map(|publication| self.command(Command::Publish(publication)))?;
            }
            Action::Move { job, onward } => {
                let held = self.desk.get_mut(&job)?;
                held.enters(Stage::Published, now);
                let error = match &onward {
                    Onward::Retry(refusal) => {
                        held.fails(refusal);
                        warn!(job = %held.id, trace_id = held.trace_id(), attempt = held.attempts(), %refusal, "failed, to be tried again");
                        Some(refusal.to_string())
                    }
                    Onward::Suspect => {
                        debug!(job = %held.id, trace_id = held.trace_id(), "goes on alone");
                        None
                    }
                    Onward::NextSlice | Onward::Back => None,
                };
                let publication = held.onward(job, onward, &self.names);
                if let Some(error) = error {
                    self.retry_told(job, &error);
                }
                publication.map(|publication| self.command(Command::Publish(publication)))?;
            }
            Action::Refuse { job, refusal } => {
                let held = self.desk.get_mut(&job)?;
                held.fails(&refusal);
                debug!(job = %held.id, trace_id = held.trace_id(), %refusal, "refused");
                if held.receipt.is_none() {
                    return self.hand_over(job, Some(refusal));
                }
                held.enters(Stage::Published, now);
                let publication = held.refusal(job, refusal);
                publication.map(|publication| self.command(Command::Publish(publication)))?;
            }
            Action::DeadLetter { job, refusal } => {
                let held = self.desk.get_mut(&job)?;
                held.fails(&refusal);
                held.enters(Stage::Published, now);
                warn!(job = %held.id, trace_id = held.trace_id(), %refusal, "dead-lettered");
                let publication = held.dead_letter(job, refusal);
                publication.map(|publication| self.command(Command::Publish(publication)))?;
            }
            Action::Ack { job } => {
                let held = self.desk.get_mut(&job)?;
                held.enters(Stage::Acked, now);
                let receipt = held.receipt.clone()?;
                self.command(Command::Ack { job, receipt });
            }
            Action::Requeue { job } => {
                let receipt = self.desk.get(&job)?.receipt.clone()?;
                self.command(Command::Requeue { receipt });
            }
            Action::Forget { job, outcome } => self.forget(job, outcome, now),
            Action::SendCanary {
                through_broker,
                model,
            } => return self.send_canary(through_broker, model, now),
            Action::Rest { until } => self.parts.pool.rest(until),
            Action::Try(Worker::Engine(engine)) => self.parts.pool.ask(engine.0),
            Action::Try(Worker::Tokenizer(tokenizer)) => self.parts.tokenizers.ask(tokenizer.0),
            Action::Reconnect { lane } => {
                warn!(lane = lane.name(), "our consumer is missing from its queue");
                let session = self.session;
                self.command(Command::Reconnect { session, lane });
            }
            Action::LookAhead { jobs, one_in, memory } => {
                let session = self.session;
                self.command(Command::LookAhead {
                    session,
                    jobs,
                    one_in,
                    memory,
                });
            }
            Action::Backpressure(change) => self.notices.changed(&change, &self.parts.logic),
            Action::Ready => {
                self.ready = true;
                self.trace.phase(Phase::Ready);
                info!(after_ms = now.as_millis(), "ready");
                self.show.ready(&self.parts.logic, now);
            }
            Action::Pet => {
                notify::pet();
                self.trace.pet(now);
            }
            Action::Drained => {
                self.drained = true;
                self.parts.truth.retire();
            }
            Action::Kill(reason) => {
                if reason == KillReason::DrainTimeout {
                    heed_sentence(&self.parts.config.dirs);
                }
                die(reason, Some(self.parts.logic.health()), self.show.model(), now);
            }
        }
        None
    }

    /// For the broker task, at the end of the turn.
    fn command(&mut self, command: Command) {
        self.commands.push(command);
    }

    /// Hands the turn's commands to the broker task, which wakes once for all of them.
    fn hand_on(&mut self) {
        for command in self.commands.drain(..) {
            // The channel holds more than the prefetch allows to be under way; a full one means that the
            // broker task hangs, and the ledger will say so.
            if self.parts.to_broker.try_send(command).is_err() {
                error!("the broker task does not take commands");
            }
        }
    }

    fn order(&self, order: Order) {
        if !self.parts.loader.order(order) {
            error!("the loading thread does not take orders");
        }
    }

    /// Whoever waits for this job's answer has it, or waits for it no longer.
    fn part_twins(&mut self, job: JobKey) {
        for job in self.twins.ended(job) {
            let Some(held) = self.desk.get_mut(&job) else {
                continue;
            };
            held.recalled = held.key().and_then(|key| self.results.recall(&key));
            self.pending.push(match held.recalled {
                Some(_) => Event::Recalled { job },
                None => Event::Parted { job },
            });
        }
    }

    fn start_batch(
        &mut self,
        (engine, first): (EngineId, bool),
        batch: BatchId,
        model: ModelId,
        items: Vec<Item>,
    ) {
        let Some(model) = self.parts.catalogue.model(model) else {
            error!("a batch of a model that is not in memory");
            return;
        };
        // One that is left out would give its neighbours' vectors to the wrong inputs. None is: the logic draws from jobs that it
        // has, of which the desk forgets nothing before the logic does.
        let sequence = |item: &Item| {
            let held = self.desk.get(&item.job);
            let sequence = held.and_then(|held| held.sequences.get(item.input));
            sequence
                .expect("what is drawn has its tokens on the desk")
                .clone()
        };
        let sequences = items.iter().map(sequence).collect();
        self.trace.begins(items.iter().map(|item| item.job), &self.desk);
        self.batches.insert(batch, items);
        if self
            .parts
            .pool
            .submit(
                engine.0,
                Work {
                    batch: batch.0,
                    model,
                    sequences,
                    urgent: first,
                },
            )
            .is_err()
        {
            error!(engine = engine.0, "the engine does not take work");
        }
    }

    fn send_canary(&mut self, through_broker: bool, model: ModelId, now: Moment) -> Option<Event> {
        let body = self.parts.catalogue.canary(model);
        if through_broker {
            self.command(Command::SendCanary { body });
            return None;
        }
        let limits = crate::job::request::RequestLimits {
            inputs_max: 1,
            stream_inputs_max: 1,
            body_bytes_max: body.len(),
        };
        let request = decode(&Default::default(), &body, limits).expect("a canary is well formed");
        let plan = self
            .parts
            .catalogue
            .plan(&request, Way::Broker)
            .expect("a canary can be planned");
        let ticket = plan.ticket(CallerId::default(), 1, body.len(), None, None);
        let job = self.parts.logic.local_key();
        self.desk.insert(job, Held::local(plan, request.input, now));
        Some(Event::Delivered {
            job,
            lane: Lane::Probe,
            arrival: Ok(ticket),
            answerable: false,
            attempt: 1,
            suspect: false,
            fetched: false,
        })
    }
}
