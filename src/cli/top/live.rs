//! The live table: what is heard, what is pressed and the clock in, a drawing out.

use super::ears::{Line, learn};
use super::screen::{self, Theme};
use super::terminal::{self, Input, Screen};
use super::ui::{Ui, Wish};
use crate::clock::{Clock, Moment};
use crate::logic::fleet::{ECHO_INTERVAL, Fleet, Key};
use futures_util::StreamExt;
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGTERM};
use signal_hook_tokio::Signals;
use std::io;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval, sleep};

/// From a signal to the end, where a terminal that takes no output holds the drawing up.
const GRACE: Duration = Duration::from_secs(1);

/// Shows the table until it is ended; the exit code.
///
/// # Errors
/// The terminal.
pub async fn show(
    mut line: Line,
    mut fleet: Fleet,
    mut ui: Ui,
    theme: Theme,
    clock: Clock,
) -> io::Result<u8> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let (ending, mut ended) = tokio::sync::watch::channel(None);
    let mut screen = Screen::take()?;
    // On a thread of its own: drawing waits for the terminal, and a signal must not.
    let guard = tokio::spawn(async move {
        if let Some(signal) = signals.next().await {
            let code = u8::try_from(128 + signal).unwrap_or(1);
            let _ = ending.send(Some(code));
            sleep(GRACE).await;
            terminal::give_back();
            signal_hook::low_level::exit(code.into());
        }
    });
    let mut ticks = interval(ECHO_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_stale = true;
    let code = loop {
        // Not for each heartbeat: of a large fleet there are more than anyone can see.
        if std::mem::take(&mut is_stale) {
            let now = clock.now();
            screen
                .terminal
                .draw(|frame| screen::draw(frame, &fleet, &mut ui, &theme, now))?;
        }
        tokio::select! {
            biased;
            _ = ended.changed() => break ended.borrow().unwrap_or(1),
            Some(input) = screen.input.recv() => {
                is_stale = true;
                if !take(input, &mut ui, &mut fleet, &mut screen, clock.now())? {
                    break 0;
                }
            }
            _ = ticks.tick() => {
                is_stale = true;
                line.hear(&mut fleet, clock);
                fleet.tick(clock.now());
            }
            Some(news) = line.news.recv() => learn(&mut fleet, news, clock.now()),
        }
    };
    drop(screen);
    line.close().await;
    guard.abort();
    Ok(code)
}

/// Does what was pressed. False if that was to end.
fn take(input: Input, ui: &mut Ui, fleet: &mut Fleet, screen: &mut Screen, now: Moment) -> io::Result<bool> {
    let press = match input {
        Input::Key(press) => press,
        Input::Resized => return screen.redraw().map(|()| true),
        Input::Suspend => return screen.suspend().map(|()| true),
    };
    let rows = fleet.rows(ui.order, &ui.filter, now);
    let keys: Vec<Key> = rows.iter().map(|view| view.key.clone()).collect();
    match ui.press(press, &keys) {
        Wish::None => {}
        Wish::Quit => return Ok(false),
        Wish::Forget(key) => fleet.forget(&key),
    }
    Ok(true)
}
