//! Keys, and the terminal after a panic.

use super::*;
use ratatui::crossterm::event::KeyEvent;
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

#[test]
#[ignore = "ends its process; the test below runs it at a terminal of its own"]
fn a_panic_at_a_terminal() {
    crate::telemetry::dying::abort_on_panic();
    let _screen = Screen::take().unwrap();
    panic!("while the screen is ours");
}

/// Goal: whoever's `top` panics can type in the same terminal, and reads why. Method: the test above with the hooks of the program,
/// below a shell that `script` gives a pseudo-terminal; `stty` tells its modes before and after.
#[test]
fn a_panic_gives_the_terminal_back() {
    let dir = tempfile::tempdir().unwrap();
    let (before, after) = (dir.path().join("before"), dir.path().join("after"));
    let ran = Command::new("script")
        .args(["--quiet", "--return", "--command"])
        .arg(
            "stty -a >\"$BEFORE\"
             \"$TEST\" --exact cli::top::terminal::tests::a_panic_at_a_terminal --ignored --nocapture
             code=$?; stty -a >\"$AFTER\"; exit $code",
        )
        .arg("/dev/null")
        .env("BEFORE", &before)
        .env("AFTER", &after)
        .env("TEST", std::env::current_exe().unwrap())
        .env("SHELL", "/bin/sh")
        .stdin(Stdio::null())
        .output()
        .expect("script is a part of every Debian");
    let said = String::from_utf8_lossy(&ran.stdout);
    assert_eq!(ran.status.code(), Some(128 + 6), "it is aborted: {said}");
    let modes = |path| std::fs::read_to_string(path).unwrap();
    assert_eq!(modes(&after), modes(&before), "keys and lines as before");
    let taken = said.find("\x1b[?1049h").expect("the screen was taken over");
    let given = said.find("\x1b[?1049l").expect("and given back");
    let why = said.find("while the screen is ours").expect("it says why");
    assert!(taken < given && given < why, "on the screen that stays: {said:?}");
    assert!(
        said[given..].contains("\x1b[?25h"),
        "the cursor is to be seen: {said:?}"
    );
}
