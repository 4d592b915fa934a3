//! Whether the broker takes messages at present.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The broker's saying that it takes no messages, shared by all that must be patient then.
#[derive(Clone, Debug, Default)]
pub(super) struct Blocked {
    /// Counts what the broker said: it takes nothing while the number is odd. Written by one task alone.
    changes: Arc<AtomicU64>,
}

impl Blocked {
    /// The broker says that it takes no messages, or that it takes them again.
    pub fn set(&self, blocked: bool) {
        if blocked != self.is_set() {
            self.changes.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether it takes none.
    pub fn is_set(&self) -> bool {
        self.changes() % 2 == 1
    }

    /// By which [`Blocked::was_set_since`] knows this moment.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    /// Whether it took none at some time since then.
    pub fn was_set_since(&self, changes: u64) -> bool {
        self.changes() != changes || changes % 2 == 1
    }

    /// Ends when the broker has taken messages for so long without a break. What was held back is answered for only some time
    /// after it takes them again.
    pub async fn clear_for(&self, span: Duration) {
        loop {
            let changes = self.changes();
            tokio::time::sleep(span).await;
            if !self.was_set_since(changes) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    /// A queue was set apart that had not confirmed for fifteen seconds, fourteen of which the broker had blocked everybody.
    #[tokio::test]
    async fn patience_begins_anew_when_the_broker_takes_messages_again() {
        const SPAN: Duration = Duration::from_millis(100);
        let (blocked, clock) = (Blocked::default(), Clock::start());
        let told = blocked.clone();
        let telling = tokio::spawn(async move {
            tokio::time::sleep(SPAN / 2).await;
            told.set(true);
            told.set(true);
            tokio::time::sleep(2 * SPAN).await;
            told.set(false);
            clock.now()
        });
        blocked.clear_for(SPAN).await;
        let ended = clock.now();
        assert!(telling.is_finished(), "it ended while nothing was taken");
        assert!(ended.since(telling.await.unwrap()) >= SPAN);
        assert!(!blocked.is_set() && blocked.was_set_since(0) && !blocked.was_set_since(2));
    }
}
