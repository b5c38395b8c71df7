//! One shape of shutting down everywhere: stop taking new work, let what runs end, and know when it did.

use std::time::Duration;

use tokio::{sync::watch, time::timeout};

/// Starts a drain and waits for it.
#[derive(Debug)]
pub struct DrainTrigger {
    begun: watch::Sender<bool>,
}

/// Learns of a drain, and holds it open for as long as it (or a clone) lives.
#[derive(Clone, Debug)]
pub struct DrainWatcher {
    begun: watch::Receiver<bool>,
}

/// A trigger and its first watcher.
pub fn drain() -> (DrainTrigger, DrainWatcher) {
    let (sender, receiver) = watch::channel(false);
    (DrainTrigger { begun: sender }, DrainWatcher { begun: receiver })
}

impl DrainTrigger {
    /// Begins the drain: every watcher learns of it.
    pub fn begin(&self) {
        self.begun.send_replace(true);
    }

    /// Begins the drain and waits until no watcher lives, at most `deadline`; false where some still do.
    pub async fn drain(self, deadline: Duration) -> bool {
        self.begin();
        timeout(deadline, self.begun.closed()).await.is_ok()
    }
}

impl DrainWatcher {
    /// Waits until the drain begins (or its trigger is gone).
    pub async fn begun(&self) {
        let mut begun = self.begun.clone();
        let _gone = begun.wait_for(|begun| *begun).await;
    }

    /// Whether the drain has begun.
    pub fn has_begun(&self) -> bool {
        *self.begun.borrow()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_when_the_last_watcher_is_dropped() {
        let (trigger, watcher) = drain();
        let other = watcher.clone();
        let work = tokio::spawn(async move {
            other.begun().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        });
        drop(watcher);
        assert!(trigger.drain(Duration::from_secs(5)).await);
        work.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_does_not_wait_beyond_its_deadline() {
        let (trigger, watcher) = drain();
        assert!(!watcher.has_begun());
        assert!(!trigger.drain(Duration::from_secs(5)).await);
        watcher.begun().await;
    }
}
