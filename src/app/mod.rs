//! The service put together: parts built from the configuration, started, turned, and drained in reverse.
//!
//! Reads top-down: [`serve`] builds, `turn::Loop` takes every event, asks [`crate::logic`] what to do,
//! and does it. `catalogue` holds the models, `desk` the data of the jobs that are here.

mod catalogue;
mod desk;
mod innocent;
mod lineages;
mod loader;
mod notices;
mod pulse;
mod results;
mod show;
mod spans;
mod trace;
mod turn;
mod twins;
mod window;
mod wrong;

use crate::broker::{self, BrokerEvent, CONSUMER_PREFETCH_MAX, Command, Prefetch, REFUSE_ROOM, Span};
use crate::clock::{Clock, Moment, millis};
use crate::config::{self, Config, Directories, EXIT_CONFIG, Inputs, Limits, Loaded, MAX_QUEUE_MAX};
use crate::engine::device;
use crate::engine::pool::Pool;
use crate::engine::tokenize::Tokenizers;
use crate::http;
use crate::job::Lane;
use crate::job::request::RequestLimits;
use crate::job::sentence;
use crate::logic::health::{Health, KillReason};
use crate::logic::{Logic, Setup};
use crate::telemetry::death::Death;
use crate::telemetry::{self, Logging, dying, history, journal};
use crate::traces::{self, Traces};
use crate::watchdog::{notify, thread};
use anyhow::Context;
use catalogue::Catalogue;
use signal_hook::consts::signal::SIGTERM;
use std::hash::RandomState;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::{error, warn};
use window::Window;

/// systemd gives up on a start that says nothing for this long; each step of loading says something.
const LOAD_STEP_MAX: Duration = Duration::from_secs(60);
/// Canaries and their answers under way at once.
const PROBE_PREFETCH: u16 = 8;
/// Largest request taken. With 2048 inputs this leaves 16 KiB for each; longer ones are cut anyway.
const BODY_BYTES_MAX: usize = 32 << 20;
/// Most texts of a request, whatever is configured; a body of [`BODY_BYTES_MAX`] has hardly room for more.
const INPUTS_MAX: usize = 1 << 20;
/// Threads for the broker's connections and for reading and writing JSON. One, so that it cannot stand still
/// half: with two, whatever the other happened to hold when it froze would be missed one by one, and late.
const IO_THREADS: usize = 1;
/// Threads for large bodies.
const BLOCKING_THREADS: usize = 4;
/// Their stacks: headers that are nested as deep as a frame allows are read, copied and dropped by recursion.
const IO_STACK_BYTES: usize = 64 << 20;
/// Log lines get this long to reach the journal before the process ends.
const FLUSH_MAX: Duration = Duration::from_millis(500);
/// When a start has calmed down: what the journal did not take of earlier deaths is sent again then.
const RESEND_PAUSE: Duration = Duration::from_secs(60);
/// First look for records that the journal did not take.
const RESEND_AFTER: Duration = Duration::from_secs(10);
/// How long that tries.
const RESEND_MAX: Duration = Duration::from_secs(2);
/// Events that wait for the loop; who sends more waits.
const EVENTS: usize = 1024;

/// Runs the service until it is told to stop. The exit codes are the contract's.
pub fn serve(inputs: &Inputs) -> ExitCode {
    let clock = Clock::start();
    let dirs = config::directories(inputs);
    let boxed = dying::prepare(&dirs.runtime, &dirs.state);
    let loaded = match config::load(inputs) {
        Ok(loaded) => loaded,
        Err(errors) => return refuse_config(&errors.to_string()),
    };
    let logging = match telemetry::init(&loaded.config.log.level) {
        Ok(logging) => logging,
        Err(error) => return refuse_config(&error.to_string()),
    };
    for warning in &loaded.warnings {
        warn!("{warning}");
    }
    if let Err(error) = boxed {
        warn!(%error, dir = %dirs.runtime.display(), "no black box; a sudden death will be told with less detail");
    }
    send_the_unsent(dirs.state);
    // A thread of its own for the loop, since the main thread's stack is the system's to choose (design 7).
    let running = std::thread::scope(|scope| {
        let start = std::thread::Builder::new().name("loop".into());
        let turning = start.spawn_scoped(scope, || run(clock, inputs, &loaded, logging))?;
        turning.join().map_err(|_| anyhow::anyhow!("the loop panicked"))?
    });
    let code = match running {
        Ok(code) => code,
        Err(failure) if is_corrupt(&failure) => {
            let mut death = Death::of(KillReason::EngineCorrupt.name());
            death.detail = format!("{failure:#}");
            tell!("{failure:#}");
            dying::record(death, KillReason::EngineCorrupt.exit_code());
            ExitCode::from(KillReason::EngineCorrupt.exit_code())
        }
        Err(failure) if is_settled(&failure) => refuse_config(&wrong::words(&failure, &loaded)),
        Err(failure) => {
            error!("{failure:#}");
            let mut death = Death::of("failed");
            death.detail = format!("{failure:#}");
            dying::record(death, 1);
            ExitCode::FAILURE
        }
    };
    telemetry::flush(FLUSH_MAX);
    code
}

/// Whether a model cannot embed the simplest sentence: that is no matter of the configuration.
fn is_corrupt(failure: &anyhow::Error) -> bool {
    matches!(
        failure.downcast_ref(),
        Some(catalogue::CatalogueError::Canary { .. })
    )
}

/// Whether the configuration is at fault, or a model that cannot be loaded however often it is tried.
fn is_settled(failure: &anyhow::Error) -> bool {
    if failure.downcast_ref::<wrong::BadFile>().is_some() {
        return true;
    }
    failure
        .downcast_ref()
        .is_some_and(catalogue::CatalogueError::is_settled)
}

/// Whether a start ends with 78 for what can be seen of a configured model before its weights are read.
pub fn refuses(config: &Config, model: &str) -> bool {
    catalogue::look(config, model).is_err_and(|failure| failure.is_settled())
}

/// Later, and aside: records of earlier deaths that a journal in trouble did not take.
fn send_the_unsent(state: std::path::PathBuf) {
    let unsent = |state: &std::path::Path| {
        let deaths = history::last(state, history::KEPT_MAX);
        deaths.iter().any(|death| death.unsent)
    };
    let later = move || {
        std::thread::sleep(RESEND_AFTER);
        while unsent(&state) {
            if let Ok(mut history) = history::History::open(&state)
                && history.send_the_unsent(std::path::Path::new(journal::SOCKET), None, RESEND_MAX)
            {
                let _ = history.save();
            }
            std::thread::sleep(RESEND_PAUSE);
        }
    };
    let _ = std::thread::Builder::new().name("records".into()).spawn(later);
}

/// A configuration that cannot work: said where people look, and never restarted (exit 78).
fn refuse_config(errors: &str) -> ExitCode {
    for line in errors.lines() {
        tell!("{line}");
    }
    notify::status(&format!("refused · {errors}"));
    let mut death = Death::of("config_error");
    death.detail = errors.to_owned();
    dying::record(death, EXIT_CONFIG);
    ExitCode::from(EXIT_CONFIG)
}

fn run(clock: Clock, inputs: &Inputs, loaded: &Loaded, logging: Logging) -> anyhow::Result<ExitCode> {
    let config = &loaded.config;
    let mut limits = config.limits;
    // A larger one was warned of.
    limits.max_queue = limits.max_queue.min(MAX_QUEUE_MAX);
    let token = wrong::token(loaded)?;
    wrong::roots(loaded)?;
    let window = Window::open(clock, host(), config);
    let runtime = runtime()?;
    // After a reload there may be more bulk jobs.
    let waiting_max: usize = prefetch(limits.max_queue, CONSUMER_PREFETCH_MAX)
        .iter()
        .map(|&n| usize::from(n))
        .sum();
    let prefetch = prefetch(limits.max_queue, limits.max_inflight);
    let requests_max = usize::from(prefetch[Lane::Interactive as usize]);
    let (calls, called) = mpsc::channel(2 * requests_max);
    let request = RequestLimits {
        // The catalogue knows what is configured for which model, and hears of a reload.
        inputs_max: INPUTS_MAX,
        stream_inputs_max: INPUTS_MAX,
        body_bytes_max: BODY_BYTES_MAX,
    };
    let traces = traces(clock, config).context("failed to start the thread for spans")?;
    let figures = traces.as_ref().map(Traces::figures);
    let http = config.http.listen.map(|listen| {
        let _inside = runtime.enter();
        http::start(http::Setup {
            clock,
            listen,
            token: token.as_deref().map(http::Token::new),
            board: window.board(),
            sources: sources(config, figures),
            models: config.model_names(),
            limits: request,
            bodies_bytes_max: bodies_bytes_max(&limits),
            requests_max,
            calls: calls.clone(),
        })
    });
    let catalogue = Catalogue::survey(config)?;
    let model = catalogue.default_entry().name.clone();
    let engines = if config.engine.threads == 0 {
        device::threads()
    } else {
        config.engine.threads
    };
    if engines > device::threads() {
        let allowed = device::threads();
        warn!(
            "engine.threads = {engines} is above the {allowed} that affinity and cgroup allow: they wait for each other"
        );
    }
    let (work_done, work_events) = mpsc::channel(EVENTS);
    let report = turn::report(work_done.clone());
    let pool = Pool::start(engines, clock, report).context("failed to start engine threads")?;
    let tokenizer_threads = device::threads();
    let tokenizers = Tokenizers::start(
        tokenizer_threads,
        // After a cut the jobs of the lost session still lie in the queue, to be passed over.
        4 * waiting_max + 1,
        turn::report_tokenizers(work_done.clone()),
    )
    .context("failed to start tokenizer threads")?;

    let first_loads = catalogue.first_orders();
    let loader = turn::start_loader(work_done.clone()).context("failed to start the loading thread")?;
    turn::watch_memory(work_done.clone()).context("failed to start the memory thread")?;
    if notify::is_service() && notify::period().is_none() {
        warn!("systemd does not watch this service (no WatchdogSec=): one ring less");
    }
    let logic = Logic::new(
        Setup {
            limits,
            engines,
            tokenizers: tokenizer_threads,
            prefetch: prefetch.map(usize::from),
            batch_tokens: config.engine.batch_tokens,
            models: catalogue.setups(),
            default: catalogue.default_id(),
            pet_spacing: notify::period().map_or(Duration::ZERO, |period| period / 8),
        },
        clock.now(),
    );
    let truth = thread::Truth::new(logic.health().clone(), clock.now());
    let (watched, dirs) = (model.clone(), config.dirs.clone());
    thread::spawn(
        truth.clone(),
        clock,
        limits.watchdog_interval,
        limits.liveness_max_stall,
        move |reason, health, now| {
            if reason == KillReason::DrainTimeout {
                heed_sentence(&dirs);
            }
            die(reason, health, &watched, now);
        },
    )
    .context("failed to start the watchdog thread")?;

    let code = runtime.block_on(async {
        let disconnect_kill = Span::new(limits.disconnect_kill);
        let confirm_patience = Span::new(confirm_patience(&limits));
        let host = host();
        let prefetch = Prefetch::new(prefetch);
        let resume = Arc::new(AtomicBool::new(false));
        let setup = broker::Setup {
            config: config.broker.clone(),
            prefetch: prefetch.clone(),
            request,
            disconnect_kill: disconnect_kill.clone(),
            confirm_patience: confirm_patience.clone(),
            resume: resume.clone(),
            hasher: RandomState::new(),
            direct: Arc::default(),
            name: format!("embeddings@{host}.{}", std::process::id()),
        };
        let (to_broker, commands) = mpsc::channel::<Command>(4 * (waiting_max + EVENTS));
        let (from_broker, broker_events) = mpsc::channel::<BrokerEvent>(EVENTS);
        let session = broker::start(setup, from_broker, commands);
        let parts = turn::Parts {
            clock,
            inputs: inputs.clone(),
            config: config.clone(),
            host,
            disconnect_kill,
            confirm_patience,
            prefetch,
            max_queue_max: limits.max_queue,
            logging,
            catalogue,
            loader,
            logic,
            truth,
            pool,
            tokenizers,
            work_done,
            to_broker,
            questions: window.turning(),
            board: window.board(),
            http,
            traces,
            resume,
            first_loads,
        };
        turn::Loop::new(parts)
            .run(broker_events, called, work_events, session)
            .await
    });
    // With the last of these the loop would take the line for closed.
    drop(calls);
    // Threads of large bodies may still run; they hold nothing that matters any more.
    runtime.shutdown_background();
    code
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(IO_THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_stack_size(IO_STACK_BYTES)
        .thread_name_fn(|| {
            static NUMBER: AtomicUsize = AtomicUsize::new(0);
            format!("io-{}", NUMBER.fetch_add(1, Ordering::Relaxed))
        })
        .enable_all()
        .build()
        .context("failed to start the runtime")
}

/// The way out for spans, if the configuration names a collector.
fn traces(clock: Clock, config: &config::Config) -> std::io::Result<Option<Traces>> {
    let setup = |endpoint: &String| traces::Setup {
        endpoint: endpoint.clone(),
        sample_percent: config.traces.sample_percent,
        clock,
        host: host(),
        unit: config.dirs.unit.clone(),
    };
    let setup = config.traces.otlp_endpoint.as_ref().map(setup);
    setup.map(Traces::start).transpose()
}

/// Where HTTP reads what the loop must not read.
fn sources(config: &config::Config, figures: Option<traces::Figures>) -> http::Sources {
    let state = config.dirs.state.clone();
    http::Sources {
        host: host(),
        process: || http::Process {
            rss_bytes: telemetry::rss_bytes(),
            cpu_seconds: Some(telemetry::process::cpu_seconds()),
            open_fds: telemetry::process::open_fds(),
            max_fds: telemetry::process::max_fds(),
        },
        deaths: Arc::new(move || history::kills(&state, history::KEPT_MAX)),
        spans: Arc::new(move || {
            let told = figures.as_ref().map(traces::Figures::told).unwrap_or_default();
            (told.sent, told.dropped)
        }),
        kills_max: history::SHOWN_MAX,
        storm: telemetry::storm::STORM.0,
        watchdog: notify::period(),
    }
}

/// How long a reply queue may leave an answer unconfirmed: given up well before that could look like a stall of ours.
fn confirm_patience(limits: &Limits) -> Duration {
    limits.liveness_max_stall / 2
}

/// Bytes of bodies that may be here by HTTP at once: one of the largest at least.
fn bodies_bytes_max(limits: &Limits) -> usize {
    limits.max_queue_bytes.max(BODY_BYTES_MAX)
}

/// This machine's name; asked of the kernel, since our unit hides the files that have it.
fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Unacknowledged deliveries per lane, in the order of [`Lane::ALL`]: of interactive jobs as many as may
/// queue and some to refuse, of bulk jobs enough to keep the engines busy while the backlog stays in the broker.
fn prefetch(max_queue: usize, max_inflight: usize) -> [u16; Lane::COUNT] {
    Lane::ALL.map(|lane| match lane {
        Lane::Probe => PROBE_PREFETCH,
        Lane::Interactive => (max_queue + REFUSE_ROOM) as u16,
        Lane::Bulk => (max_inflight * 2).min(CONSUMER_PREFETCH_MAX) as u16,
        // What is delivered is at work: a process that dies charges no other job of this lane.
        Lane::Resumed => 1,
    })
}

/// A process that the monitor ends does not exit with 0, which would read as the wish of an administrator, and
/// systemd would leave it at that. It dies of the monitor's signal, and the monitor's sentence is its record.
fn heed_sentence(dirs: &Directories) {
    if dirs
        .monitor()
        .join(sentence::file_name(std::process::id()))
        .exists()
    {
        let _ = signal_hook::low_level::emulate_default_handler(SIGTERM);
    }
}

/// Ends the process at once, with a record.
fn die(reason: KillReason, health: Option<&Health>, model: &str, now: Moment) -> ! {
    let mut death = Death::of(reason.name());
    death.stage = reason.stage().unwrap_or_default().into();
    death.model = model.into();
    if let Some(health) = health {
        death.last_progress_age_ms = Some(millis(health.progress_age(now)));
        death.broker_proof_age_ms = health.proof_age(now).map(millis);
        death.detail = health.detail(reason, now).unwrap_or_default();
        death.inside = health.inside().map(|(stage, n)| format!("{stage}={n}")).join(" ");
    }
    dying::end(death, reason.exit_code())
}
