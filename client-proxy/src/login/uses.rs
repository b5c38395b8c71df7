//! Uses of refresh tokens, which the program's end waits for.
//!
//! A provider that replaces refresh tokens takes one that comes twice for stolen, and ends the login. A command that is over sooner than the
//! provider has answered would lose the successor, and with it the login.

use std::time::Duration;

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

/// More than one process ever has at once: one for each audience.
const MOST: u32 = 64;
/// A question has 5 s; what it brought is kept before anything else is asked.
const WITHIN: Duration = Duration::from_secs(6);

/// All of this process's.
static USES: Uses = Uses::new();

#[derive(Debug)]
struct Uses(Semaphore);

impl Uses {
    const fn new() -> Self {
        Self(Semaphore::const_new(MOST as usize))
    }

    async fn begin(&self) -> Option<SemaphorePermit<'_>> {
        self.0.acquire().await.ok()
    }

    /// Whether those that had begun are over; no other one begins then.
    async fn finish(&self, within: Duration) -> bool {
        timeout(within, self.0.acquire_many(MOST))
            .await
            .is_ok_and(|all| all.map(SemaphorePermit::forget).is_ok())
    }
}

/// Before a refresh token is shown; to be held until its successor is kept. Never returns once the program ends.
pub(super) async fn begin() -> Option<SemaphorePermit<'static>> {
    USES.begin().await
}

/// Waits, for at most 6 s, until no refresh token is in use, and lets no further one be used: for the program's end.
pub(crate) async fn finish() {
    if !USES.finish(WITHIN).await {
        tracing::warn!(
            "the identity provider has not answered yet: if it replaces refresh tokens, run `towline login` again"
        );
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_end_waits_for_a_use_and_lets_no_other_one_begin() {
        let uses = Uses::new();
        let used = uses.begin().await;
        let began = Instant::now();
        let answered = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            drop(used);
        };
        let (finished, ()) = tokio::join!(uses.finish(WITHIN), answered);
        assert!(finished && began.elapsed() == Duration::from_secs(2));
        assert!(timeout(Duration::from_secs(3600), uses.begin()).await.is_err(), "the program ends");
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_that_does_not_answer_holds_the_end_up_no_longer_than_that() {
        let uses = Uses::new();
        let _used = uses.begin().await;
        let began = Instant::now();
        assert!(!uses.finish(WITHIN).await);
        assert_eq!(began.elapsed(), WITHIN);
    }
}
