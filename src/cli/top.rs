//! `embeddings top`: the whole fleet by its heartbeats, live on a terminal, else in one look.
//!
//! ```text
//!   broker --- broker/hear ---> ears --- learn ---> logic/fleet ---> screen, or plain
//!                                        keys ---> ui ----------------^
//! ```
//! Nothing is asked of the workers, and nothing is changed: who may read the exchange of events sees the fleet.

mod ears;
mod live;
mod plain;
mod screen;
mod terminal;
mod ui;
mod words;

use super::{Paint, configuration, print};
use crate::args::{SortArg, TopArgs};
use crate::clock::Clock;
use crate::config::{BrokerConfig, Limits};
use crate::logic::fleet::{ECHO_INTERVAL, Fleet, Order};
use anyhow::Context;
use ears::{Line, learn};
use plain::Look;
use screen::Theme;
use serde_json::json;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};
use ui::Ui;

/// `EX_UNAVAILABLE` of sysexits.h: no broker, or no service has ever run there.
const EXIT_UNAVAILABLE: u8 = 69;
/// What a heartbeat may need beyond its interval where the worker does not say what it promises.
const SLACK: Duration = Duration::from_millis(1250);
/// One look takes no longer, whatever is promised.
const LOOK_MAX: Duration = Duration::from_secs(60);
/// One look ends when for so long nothing could be heard.
const DEAF_MAX: Duration = Duration::from_secs(5);

/// Runs the command.
///
/// # Errors
/// The configuration (exit 78), the terminal or stdout (1).
pub fn run(args: &TopArgs) -> anyhow::Result<ExitCode> {
    let config = configuration(&args.config)?.config;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    let code = runtime.block_on(top(args, &config.broker, &config.limits));
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}

async fn top(args: &TopArgs, broker: &BrokerConfig, limits: &Limits) -> anyhow::Result<ExitCode> {
    let clock = Clock::start();
    let line = match Line::open(broker).await {
        Ok(line) => line,
        Err(cause) => {
            let known = json!({"well": false, "broker": {"address": broker.shown(), "problem": cause}});
            let why = format!("cannot hear the workers at {}: {cause}", broker.shown());
            return Ok(super::failed_with(args.json, &[why], EXIT_UNAVAILABLE, known));
        }
    };
    let fleet = Fleet::new(limits.heartbeat_interval + SLACK, clock.now());
    let order = order(args.sort);
    if args.json || args.once || !is_terminal() {
        return look(args, order, line, fleet, broker, clock).await;
    }
    let ui = Ui {
        order,
        filter: args.filter.clone(),
        ..Ui::default()
    };
    let theme = Theme {
        colour: super::is_coloured(),
        broker: format!("{} · {}", broker.shown(), broker.prefix),
    };
    let shown = live::show(line, fleet, ui, theme, clock).await;
    shown.map(ExitCode::from).context("the terminal failed")
}

/// Listens for as long as any worker promises to be silent at most, then says what was heard.
async fn look(
    args: &TopArgs,
    order: Order,
    mut line: Line,
    mut fleet: Fleet,
    broker: &BrokerConfig,
    clock: Clock,
) -> anyhow::Result<ExitCode> {
    let began = clock.now();
    let mut ticks = interval(ECHO_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            _ = ticks.tick() => {
                line.hear(&mut fleet, clock);
                fleet.tick(clock.now());
            }
            Some(news) = line.news.recv() => learn(&mut fleet, news, clock.now()),
        }
        let now = clock.now();
        let deaf = fleet.deaf(now);
        let enough = match deaf {
            Some((since, _)) => since >= DEAF_MAX,
            None => fleet.has_listened(now),
        };
        if enough || now.since(began) >= LOOK_MAX {
            break;
        }
    }
    let now = clock.now();
    let look = Look {
        order,
        words: args.filter.clone(),
        broker: broker.shown(),
        listened: now.since(began),
        unix_ms: Clock::unix_ms(),
    };
    let said = if args.json {
        format!("{:#}\n", plain::json(&fleet, &look, now))
    } else {
        plain::people(&fleet, &look, Paint::stdout(), now)
    };
    let code = if fleet.is_up() {
        plain::exit_code(&fleet, &fleet.totals(now), now)
    } else {
        EXIT_UNAVAILABLE
    };
    line.close().await;
    print(&said)?;
    Ok(ExitCode::from(code))
}

/// Whether there is a terminal that can be drawn on and typed at.
fn is_terminal() -> bool {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb" || term.is_empty());
    !dumb && std::io::stdout().is_terminal() && std::io::stdin().is_terminal()
}

fn order(sort: SortArg) -> Order {
    match sort {
        SortArg::State => Order::Health,
        SortArg::Host => Order::Host,
        SortArg::Queue => Order::Queue,
        SortArg::Inflight => Order::Inflight,
        SortArg::Rate => Order::Rate,
        SortArg::Progress => Order::Progress,
        SortArg::Kill => Order::Kill,
    }
}
