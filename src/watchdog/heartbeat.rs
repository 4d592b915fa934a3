//! The worker's end of the monitor's socket. Sending costs nothing and waits for nobody: a monitor that is
//! not there is no fault of the worker.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

/// Sends datagrams to a path. Each is addressed anew, so that a monitor may come, go and come again.
#[derive(Debug)]
pub struct Sender {
    socket: io::Result<UnixDatagram>,
    path: PathBuf,
}

impl Sender {
    /// A sender to the socket at `path`, which need not be there yet.
    pub fn new(path: PathBuf) -> Sender {
        let open = || {
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        Sender { socket: open(), path }
    }

    /// Hands one datagram over, or says at once why not.
    ///
    /// # Errors
    /// Nobody listens, its queue is full, or the system refuses.
    pub fn send(&self, body: &[u8]) -> io::Result<()> {
        let socket = self
            .socket
            .as_ref()
            .map_err(|error| io::Error::from(error.kind()))?;
        socket.send_to(body, &self.path).map(drop)
    }
}
