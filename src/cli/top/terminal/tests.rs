//! Keys, and the terminal after a panic.

use super::*;
use ratatui::crossterm::event::KeyEvent;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

#[test]
fn keys_have_their_meaning() {
    let key = |code, modifiers| meaning(&Event::Key(KeyEvent::new(code, modifiers)));
    let none = KeyModifiers::NONE;
    assert_eq!(key(KeyCode::Char('q'), none), Some(Input::Key(Press::Char('q'))));
    assert_eq!(
        key(KeyCode::Char('G'), KeyModifiers::SHIFT),
        Some(Input::Key(Press::Char('G')))
    );
    assert_eq!(
        key(KeyCode::Char('c'), KeyModifiers::CONTROL),
        Some(Input::Key(Press::Interrupt))
    );
    assert_eq!(
        key(KeyCode::Char('z'), KeyModifiers::CONTROL),
        Some(Input::Suspend)
    );
    assert_eq!(key(KeyCode::Char('x'), KeyModifiers::CONTROL), None);
    assert_eq!(key(KeyCode::F(1), none), None);
    assert_eq!(meaning(&Event::Resize(80, 24)), Some(Input::Resized));
    let mut released = KeyEvent::new(KeyCode::Enter, none);
    released.kind = KeyEventKind::Release;
    assert_eq!(meaning(&Event::Key(released)), None);
}

/// The modes of a terminal, those that decide how it treats keys and lines.
fn modes(terminal: &OwnedFd) -> [libc::tcflag_t; 4] {
    // SAFETY: a structure of plain numbers may be all zeroes.
    let mut modes: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open for as long as the borrow, and the place is ours.
    let told = unsafe { libc::tcgetattr(terminal.as_raw_fd(), &raw mut modes) };
    assert_eq!(told, 0, "{}", io::Error::last_os_error());
    [modes.c_iflag, modes.c_oflag, modes.c_cflag, modes.c_lflag]
}

#[test]
#[ignore = "ends its process; the test below runs it at a terminal of its own"]
fn a_panic_at_a_terminal() {
    crate::telemetry::dying::abort_on_panic();
    let _screen = Screen::take().unwrap();
    panic!("while the screen is ours");
}

/// Goal: whoever's `top` panics can type in the same terminal, and reads why. Method: this test again, in a process that has a
/// pseudo-terminal and the hooks of the program.
#[test]
fn a_panic_gives_the_terminal_back() {
    let (mut ours, mut theirs) = (-1, -1);
    let none = std::ptr::null_mut();
    // SAFETY: both places are ours; the optional parts are left out.
    let opened = unsafe { libc::openpty(&mut ours, &mut theirs, none, none.cast(), none.cast()) };
    assert_eq!(opened, 0, "{}", io::Error::last_os_error());
    // SAFETY: the descriptors are fresh and belong to nobody else.
    let (mut ours, theirs) = unsafe { (File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
    let before = modes(&theirs);
    let end = || Stdio::from(theirs.try_clone().unwrap());
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "cli::top::terminal::tests::a_panic_at_a_terminal"]);
    command.args(["--ignored", "--nocapture"]);
    let mut child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
    // The command holds ends of the terminal for as long as it lives.
    drop(command);
    let status = child.wait().unwrap();
    assert_eq!(modes(&theirs), before, "keys and lines as before");
    // Reading ends with an error when nobody holds the other side any more; what was written is read first.
    drop(theirs);
    let mut said = Vec::new();
    let _ = ours.read_to_end(&mut said);
    let said = String::from_utf8_lossy(&said);
    assert_eq!(status.signal(), Some(libc::SIGABRT), "{said}");
    let taken = said.find("\x1b[?1049h").expect("the screen was taken over");
    let given = said.find("\x1b[?1049l").expect("and given back");
    let why = said.find("while the screen is ours").expect("it says why");
    assert!(taken < given && given < why, "on the screen that stays: {said:?}");
    assert!(
        said[given..].contains("\x1b[?25h"),
        "the cursor is to be seen: {said:?}"
    );
}
