//! The monitor's end of its socket: datagrams with the process that sent them, as the kernel knows it.

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg, sockopt};
use std::fs::Permissions;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

/// Longest datagram taken; a heartbeat has some 400 bytes, and names can be long.
pub const DATAGRAM_BYTES_MAX: usize = 4096;
/// Workers of the same user and group may send.
const MODE: u32 = 0o660;

/// A bound socket. Dropped, it takes its file away.
#[derive(Debug)]
pub struct Listener {
    socket: UnixDatagram,
    path: PathBuf,
}

/// One datagram.
#[derive(Debug)]
pub struct Datagram {
    /// Who sent it. The kernel says so; a sender cannot lie about it.
    pub pid: u32,
    /// Its length in the buffer; `None` if it did not fit.
    pub bytes: Option<usize>,
}

impl Listener {
    /// Binds to `path`, in the place of a socket that nobody listens to any more.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] if somebody does listen there; whatever else the system says.
    pub fn bind(path: &Path) -> io::Result<Listener> {
        if UnixDatagram::unbound()?.connect(path).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        // Under another name first: when the socket appears at its place it is complete.
        let fresh = path.with_extension("new");
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = UnixDatagram::bind(&fresh)?;
        socket.set_nonblocking(true)?;
        sockopt::set_socket_passcred(&socket, true)?;
        std::fs::set_permissions(&fresh, Permissions::from_mode(MODE))?;
        std::fs::rename(&fresh, path)?;
        Ok(Listener {
            socket,
            path: path.to_owned(),
        })
    }

    /// The next datagram that has come, if one has. One without a known sender is passed over.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Datagram>> {
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let message = match recvmsg(&self.socket, &mut [IoSliceMut::new(buffer)], &mut control, flags) {
                Ok(message) => message,
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let pid = control.drain().find_map(|part| match part {
                RecvAncillaryMessage::ScmCredentials(sender) => {
                    u32::try_from(sender.pid.as_raw_nonzero().get()).ok()
                }
                _ => None,
            });
            if let Some(pid) = pid {
                let whole = !message.flags.contains(ReturnFlags::TRUNC);
                let bytes = whole.then_some(message.bytes);
                return Ok(Some(Datagram { pid, bytes }));
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
