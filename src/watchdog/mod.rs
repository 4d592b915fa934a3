//! The watchdog: what systemd is told, and the thread that ends a process which is of no use any more.
//!
//! [`notify`] is the only writer of the notify socket. [`thread`] only kills: it can never pet, so it
//! cannot keep a zombie alive.

pub mod notify;
pub mod thread;
