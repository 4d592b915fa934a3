//! A program at a terminal of its own, and what stands on its screen.

use embeddings::clock::{Clock, Moment};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A program at a terminal. Dropped, it is killed.
pub struct Pty {
    child: Child,
    master: File,
    slave: OwnedFd,
    screen: Arc<Mutex<Screen>>,
    before: libc::termios,
}

/// What a terminal shows, as far as our programs use it.
pub struct Screen {
    lines: Vec<Vec<char>>,
    at: (usize, usize),
    /// The alternate screen is shown.
    pub alternate: bool,
    /// The cursor is to be seen.
    pub cursor: bool,
    /// Half a sequence, or half a character.
    rest: Vec<u8>,
}

impl Pty {
    /// Starts the program at a terminal of this size.
    pub fn start(command: &mut Command, (columns, rows): (u16, u16)) -> Pty {
        let size = libc::winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let (mut master, mut slave) = (-1, -1);
        // SAFETY: the descriptors are places of ours, the name and the modes may be absent, the size outlives the call.
        let opened = unsafe {
            libc::openpty(
                &raw mut master,
                &raw mut slave,
                std::ptr::null_mut(),
                std::ptr::null(),
                &raw const size,
            )
        };
        assert_eq!(opened, 0, "{}", std::io::Error::last_os_error());
        // SAFETY: both were just opened, and nobody else owns them.
        let (master, slave) = unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
        let before = modes(&slave);
        let end = || Stdio::from(slave.try_clone().unwrap());
        command
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .env("TERM", "xterm-256color");
        // SAFETY: both calls are safe between fork and exec.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        let screen = Arc::new(Mutex::new(Screen::new(columns.into(), rows.into())));
        let (mut output, shown) = (master.try_clone().unwrap(), screen.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 65536];
            while let Ok(read @ 1..) = output.read(&mut bytes) {
                shown.lock().unwrap().take(&bytes[..read]);
            }
        });
        Pty {
            child,
            master,
            slave,
            screen,
            before,
        }
    }

    /// Types.
    pub fn types(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    /// Sends a signal to the program.
    pub fn signal(&self, signal: libc::c_int) {
        let pid = libc::pid_t::try_from(self.child.id()).unwrap();
        // SAFETY: the child is ours and not yet reaped, so the id is still its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// The window gets another size, as if somebody drew at its corner.
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = libc::winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        *self.screen.lock().unwrap() = Screen::new(columns.into(), rows.into());
        // SAFETY: the descriptor is open, the size outlives the call.
        let told = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        assert_eq!(told, 0);
    }

    /// What stands on the screen.
    pub fn text(&self) -> String {
        self.screen.lock().unwrap().text()
    }

    /// The first line with these words.
    pub fn line(&self, words: &str) -> Option<String> {
        let text = self.text();
        text.lines().find(|line| line.contains(words)).map(str::to_owned)
    }

    /// Waits until what stands there is so, and tells how long that took.
    pub fn until(&self, limit: Duration, what: &str, is_so: impl Fn(&str) -> bool) -> Duration {
        let clock = Clock::start();
        loop {
            let text = self.text();
            let waited = clock.now().since(Moment::ZERO);
            if is_so(&text) {
                return waited;
            }
            assert!(waited < limit, "waited too long for {what}:\n{text}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for its end.
    pub fn exit(&mut self, limit: Duration) -> ExitStatus {
        let clock = Clock::start();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            let waited = clock.now().since(Moment::ZERO);
            assert!(waited < limit, "still running:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Complains if the terminal is not as it was before the program came.
    pub fn is_given_back(&self) {
        let clock = Clock::start();
        let given_back = || {
            let screen = self.screen.lock().unwrap();
            !screen.alternate && screen.cursor
        };
        // What was written last may still be on its way to us.
        while !given_back() {
            assert!(
                clock.now().since(Moment::ZERO) < Duration::from_secs(2),
                "{}",
                self.text()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        let now = modes(&self.slave);
        let flags = |modes: &libc::termios| (modes.c_iflag, modes.c_oflag, modes.c_cflag, modes.c_lflag);
        assert_eq!(flags(&now), flags(&self.before));
    }

    /// The terminal takes no more output, or takes it again: what Ctrl-S and Ctrl-Q do.
    pub fn hold(&self, held: bool) {
        let action = if held { libc::TCOOFF } else { libc::TCOON };
        // SAFETY: the descriptor is open.
        assert_eq!(unsafe { libc::tcflow(self.slave.as_raw_fd(), action) }, 0);
    }

    /// Whether the terminal is in the hands of the program.
    pub fn is_raw(&self) -> bool {
        modes(&self.slave).c_lflag & libc::ICANON == 0
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn modes(terminal: &OwnedFd) -> libc::termios {
    // SAFETY: all zeros is a value of this plain struct, which the call fills.
    unsafe {
        let mut modes = std::mem::zeroed();
        assert_eq!(libc::tcgetattr(terminal.as_raw_fd(), &raw mut modes), 0);
        modes
    }
}

impl Screen {
    fn new(columns: usize, rows: usize) -> Screen {
        Screen {
            lines: vec![vec![' '; columns]; rows],
            at: (0, 0),
            alternate: false,
            cursor: true,
            rest: Vec::new(),
        }
    }

    fn text(&self) -> String {
        let lines = self.lines.iter().map(|line| line.iter().collect::<String>());
        lines
            .map(|line| line.trim_end().to_owned())
            .collect::<Vec<_>>()
            .join("\n")
    }

    fn take(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        let bytes = std::mem::take(&mut self.rest);
        let whole = match std::str::from_utf8(&bytes) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap(),
        };
        let mut left = whole;
        while let Some(c) = left.chars().next() {
            let tail = &left[c.len_utf8()..];
            left = match c {
                '\u{1b}' => match self.sequence(tail) {
                    Some(tail) => tail,
                    None => break,
                },
                '\r' => {
                    self.at.0 = 0;
                    tail
                }
                '\n' => {
                    self.at.1 += 1;
                    tail
                }
                c => {
                    let (column, row) = self.at;
                    if let Some(place) = self.lines.get_mut(row).and_then(|line| line.get_mut(column)) {
                        *place = c;
                    }
                    self.at.0 += 1;
                    tail
                }
            };
        }
        let taken = whole.len() - left.len();
        self.rest = bytes[taken..].to_vec();
    }

    /// Follows a sequence; what comes behind it, or `None` if it is not all there yet.
    fn sequence<'a>(&mut self, text: &'a str) -> Option<&'a str> {
        let Some(body) = text.strip_prefix('[') else {
            return text.get(1..);
        };
        let end = body.find(|c: char| c.is_ascii_alphabetic())?;
        let (parameters, last) = (&body[..end], &body[end..=end]);
        let mut numbers = parameters
            .split(';')
            .map(|number| number.parse().unwrap_or(1_usize));
        match (parameters, last) {
            (_, "H") => {
                let (row, column) = (numbers.next().unwrap_or(1), numbers.next().unwrap_or(1));
                self.at = (column.max(1) - 1, row.max(1) - 1);
            }
            ("2" | "", "J") => self.lines.iter_mut().for_each(|line| line.fill(' ')),
            ("?1049", "h" | "l") => self.alternate = last == "h",
            ("?25", "h" | "l") => self.cursor = last == "h",
            _ => {}
        }
        Some(&body[end + 1..])
    }
}
