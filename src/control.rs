//! The status socket: whoever may reach it connects, gets one JSON document, and is disconnected.
//!
//! Nothing is read from a caller, and one thread serves them one after the other, so that callers can
//! neither hold nor flood the service: the rest wait in the kernel's queue. What is said comes from
//! elsewhere; where that has no answer, the caller gets none either, which is an answer too.

use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// The socket's name in the runtime directory.
pub const SOCKET: &str = "status.sock";
/// Who may connect: every user of the machine (connecting needs the right to write).
const MODE: u32 = 0o666;
/// A caller that does not read gets no more time than this; an answer fits into the socket's buffer.
const WRITE_MAX: Duration = Duration::from_secs(1);
/// Pause when no connection can be accepted, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Largest answer that a caller takes.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Binds the socket in the runtime directory, which is made where it is missing. What a dead process
/// has left is replaced; a socket on which somebody answers is not.
///
/// # Errors
/// What the system says, or that another process holds the socket.
pub fn bind(runtime: &Path) -> io::Result<UnixListener> {
    std::fs::create_dir_all(runtime)?;
    let path = runtime.join(SOCKET);
    if UnixStream::connect(&path).is_ok() {
        let taken = format!("{}: another process answers here", path.display());
        return Err(io::Error::new(ErrorKind::AddrInUse, taken));
    }
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(MODE))?;
    Ok(listener)
}

/// Answers on the socket from a thread of its own, for as long as the process lives.
///
/// # Errors
/// No thread.
pub fn serve(
    listener: UnixListener,
    mut answer: impl FnMut() -> Option<String> + Send + 'static,
) -> io::Result<()> {
    let serve = move || {
        loop {
            let Ok((mut caller, _)) = listener.accept() else {
                thread::sleep(ACCEPT_PAUSE);
                continue;
            };
            let patience = caller.set_write_timeout(Some(WRITE_MAX));
            if let (Ok(()), Some(answer)) = (patience, answer()) {
                // A caller that has gone has lost its interest.
                let _ = caller.write_all(answer.as_bytes());
            }
        }
    };
    thread::Builder::new().name("status".into()).spawn(serve)?;
    Ok(())
}

/// What asking came to.
#[derive(Debug)]
pub enum Asked {
    /// The document.
    Answer(Vec<u8>),
    /// Somebody took the connection and closed it without a word: its loop does not turn.
    Unanswered {
        /// The process.
        pid: Option<u32>,
    },
    /// Not a word in time: nothing in the process runs.
    Silent {
        /// The process.
        pid: Option<u32>,
    },
    /// No process listens.
    Nobody,
}

/// Asks the process that listens at `path`, and waits no longer than `limit` for all of it.
///
/// # Errors
/// Where it cannot be known whether somebody listens, such as for want of permission.
pub fn ask(path: &Path, limit: Duration) -> io::Result<Asked> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut pid = None;
        match tokio::time::timeout(limit, asking(path.to_owned(), &mut pid)).await {
            Ok(Ok(answer)) if answer.is_empty() => Ok(Asked::Unanswered { pid }),
            Ok(Ok(answer)) => Ok(Asked::Answer(answer)),
            Ok(Err(error)) => match error.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => Ok(Asked::Nobody),
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Ok(Asked::Unanswered { pid }),
                // The kernel's queue of callers is full: somebody listens, and does not accept.
                ErrorKind::WouldBlock => Ok(Asked::Silent { pid }),
                _ => Err(error),
            },
            Err(_) => Ok(Asked::Silent { pid }),
        }
    })
}

async fn asking(path: PathBuf, pid: &mut Option<u32>) -> io::Result<Vec<u8>> {
    let stream = tokio::net::UnixStream::connect(path).await?;
    let listens = stream.peer_cred().ok().and_then(|peer| peer.pid());
    *pid = listens.and_then(|pid| u32::try_from(pid).ok());
    let mut answer = Vec::new();
    let mut buffer = [0; 16 << 10];
    while answer.len() < ANSWER_BYTES_MAX {
        stream.readable().await?;
        match stream.try_read(&mut buffer) {
            Ok(0) => break,
            Ok(bytes) => answer.extend_from_slice(&buffer[..bytes]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[test]
    fn a_caller_gets_the_document_and_a_stale_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = dir.path().join("run/embeddings");
        let path = runtime.join(SOCKET);
        assert!(matches!(ask(&path, LIMIT).unwrap(), Asked::Nobody));
        drop(bind(&runtime).unwrap());
        assert!(path.exists(), "a dead process leaves its socket");
        assert!(matches!(ask(&path, LIMIT).unwrap(), Asked::Nobody));
        let document = "x".repeat(100_000);
        let said = document.clone();
        serve(bind(&runtime).unwrap(), move || Some(said.clone())).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);
        match ask(&path, LIMIT).unwrap() {
            Asked::Answer(answer) => assert_eq!(answer, document.as_bytes()),
            other => panic!("{other:?}"),
        }
        let taken = bind(&runtime).unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AddrInUse, "a living one is not replaced");
    }

    #[test]
    fn no_answer_is_told_from_no_word_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SOCKET);
        let frozen = bind(dir.path()).unwrap();
        let own = Some(std::process::id());
        match ask(&path, Duration::from_millis(50)).unwrap() {
            Asked::Silent { pid } => assert_eq!(pid, own),
            other => panic!("{other:?}"),
        }
        serve(frozen, || None).unwrap();
        match ask(&path, LIMIT).unwrap() {
            Asked::Unanswered { pid } => assert_eq!(pid, own),
            other => panic!("{other:?}"),
        }
    }
}
