//! The watchdog: what systemd is told, and the thread that ends a process which is of no use any more.
//!
//! [`notify`] is the only writer of the notify socket. [`thread`] only kills: it can never pet, so it
//! cannot keep a zombie alive. Between a worker and the monitor, the ring outside of it, lie the socket of
//! [`heartbeat`] and `listener`, and the hold on a `process`.

pub mod heartbeat;
#[cfg(target_os = "linux")]
pub mod listener;
pub mod notify;
#[cfg(target_os = "linux")]
pub mod process;
pub mod thread;
