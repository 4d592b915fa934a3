//! How much of everything there may be by HTTP, and how long anything may take.

use std::time::Duration;

/// All of them, so that a test can make them small.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Connections that may stay, and no more than a quarter of the files that the process may open: whatever a crowd does,
    /// the broker can be reached.
    pub(super) connections: usize,
    /// Above that so many more are served once and closed: a crowd that only holds connections keeps no health check out.
    pub(super) spare: usize,
    /// Longest time for the head of a request, and for a connection to be idle.
    pub(super) head: Duration,
    /// The same for a connection above [`Bounds::connections`].
    pub(super) spare_head: Duration,
    /// Longest time for a body to arrive.
    pub(super) body: Duration,
    /// Longest wait for an answer while the loop turns. OpenAI's clients give up after as long.
    pub(super) answer: Duration,
    /// Longest time for a client to take in any further piece of its response.
    pub(super) write: Duration,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            connections: 1024,
            spare: 128,
            head: Duration::from_secs(30),
            spare_head: Duration::from_secs(3),
            body: Duration::from_secs(30),
            answer: Duration::from_secs(600),
            write: Duration::from_secs(30),
        }
    }
}
