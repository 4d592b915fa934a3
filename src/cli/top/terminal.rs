//! The terminal itself: taken over and given back, however the command ends; keys in.

use super::ui::Press;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::crossterm::{cursor, execute};
use ratatui::layout::{Position, Rect};
use signal_hook::consts::signal::SIGTSTP;
use std::io::{self, Stdout};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// How often the thread that reads keys sees whether it is to end.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// A terminal that takes no more output (Ctrl-S) is left behind after this.
const PATIENCE: Duration = Duration::from_millis(200);
/// Keys that wait; more are dropped.
const KEYS: usize = 64;

/// Whether it is ours now. Whoever gives it back first clears this.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// What comes from the person.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// A key.
    Key(Press),
    /// The window has another size.
    Resized,
    /// Back to the shell for a while.
    Suspend,
}

/// The terminal while it is ours.
pub struct Screen {
    /// For drawing.
    pub terminal: Terminal<CrosstermBackend<Stdout>>,
    /// What is pressed.
    pub input: mpsc::Receiver<Input>,
    ended: Arc<AtomicBool>,
}

impl Screen {
    /// Takes the terminal over. A panic gives it back, too.
    ///
    /// # Errors
    /// The terminal does not do as it is told.
    pub fn take() -> io::Result<Screen> {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            give_back();
            before(panic);
        }));
        seize()?;
        let terminal = Terminal::new(CrosstermBackend::new(io::stdout())).inspect_err(|_| give_back())?;
        let (sender, input) = mpsc::channel(KEYS);
        let ended = Arc::new(AtomicBool::new(false));
        let until = ended.clone();
        std::thread::Builder::new()
            .name("keys".into())
            .spawn(move || read(&sender, &until))
            .inspect_err(|_| give_back())?;
        Ok(Screen {
            terminal,
            input,
            ended,
        })
    }

    /// Gives the terminal back and stops the process, as Ctrl-Z does with any other; takes it again when the process is
    /// continued. Where no shell could do that, the system does not stop it.
    ///
    /// # Errors
    /// The terminal does not do as it is told.
    pub fn suspend(&mut self) -> io::Result<()> {
        give_back();
        signal_hook::low_level::raise(SIGTSTP)?;
        seize()?;
        self.redraw()
    }

    /// Has all of it drawn anew, in the window's present size.
    ///
    /// # Errors
    /// The terminal does not say its size.
    pub fn redraw(&mut self) -> io::Result<()> {
        // Not `clear`, which asks the terminal where its cursor is: the answer would go to the thread that reads keys.
        let size = self.terminal.size()?;
        self.terminal.resize(Rect::from((Position::ORIGIN, size)))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        give_back();
    }
}

/// Has the terminal say every key at once, and shows a screen of ours.
fn seize() -> io::Result<()> {
    TAKEN.store(true, Ordering::SeqCst);
    enable_raw_mode()
        .and_then(|()| execute!(io::stdout(), EnterAlternateScreen, cursor::Hide))
        .inspect_err(|_| give_back())
}

/// Gives the terminal back as it was, once. The mode first: it needs no output, which may be held up.
pub fn give_back() {
    if !TAKEN.swap(false, Ordering::SeqCst) {
        return;
    }
    let _ = disable_raw_mode();
    let (done, wait) = std::sync::mpsc::channel();
    let told = std::thread::Builder::new().name("screen".into()).spawn(move || {
        let _ = execute!(io::stdout(), LeaveAlternateScreen, cursor::Show);
        let _ = done.send(());
    });
    if told.is_ok() {
        let _ = wait.recv_timeout(PATIENCE);
    }
}

/// Reads keys until the screen is given back, or cannot be read any more.
fn read(sender: &mpsc::Sender<Input>, ended: &AtomicBool) {
    while !ended.load(Ordering::SeqCst) {
        let event = match event::poll(LOOK_INTERVAL) {
            Ok(false) => continue,
            Ok(true) => event::read(),
            Err(error) => Err(error),
        };
        // Without keys there are still signals.
        let Ok(event) = event else { return };
        if let Some(input) = meaning(&event) {
            let _ = sender.try_send(input);
        }
    }
}

fn meaning(event: &Event) -> Option<Input> {
    let key = match event {
        Event::Resize(..) => return Some(Input::Resized),
        Event::Key(key) if key.kind != KeyEventKind::Release => key,
        _ => return None,
    };
    let ctrl = key.modifiers.contains(KeyModifiers::CONTROL);
    let press = match key.code {
        KeyCode::Char('c' | 'd') if ctrl => Press::Interrupt,
        KeyCode::Char('z') if ctrl => return Some(Input::Suspend),
        KeyCode::Char('l') if ctrl => return Some(Input::Resized),
        KeyCode::Char(c) if !ctrl => Press::Char(c),
        KeyCode::Enter => Press::Enter,
        KeyCode::Esc => Press::Escape,
        KeyCode::Backspace => Press::Back,
        KeyCode::Up => Press::Up,
        KeyCode::Down => Press::Down,
        KeyCode::PageUp => Press::PageUp,
        KeyCode::PageDown => Press::PageDown,
        KeyCode::Home => Press::Home,
        KeyCode::End => Press::End,
        _ => return None,
    };
    Some(Input::Key(press))
}

#[cfg(test)]
mod tests;
