//! When to try again: full jitter, so that a fleet that was cut at once does not come back at once.

use std::time::Duration;

/// A peer's hint counts up to this: whoever speaks once must not silence others for good.
pub const MAX_HINT: Duration = Duration::from_secs(600);

/// On top of a hint comes at most this share of it, or [`LITTLE`] where that is more: hints are in whole seconds, and a relay
/// that gives each of many its turn must find them at about that time.
const SPREAD: f64 = 0.25;
const LITTLE: Duration = Duration::from_secs(1);

/// Delays between attempts: random between nothing and a ceiling that doubles ("full jitter").
///
/// A peer's hint comes on top: at least that long, and a little more by chance (a quarter of it, or a second). Whoever hints spreads already.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    /// The first ceiling is `base`, the last `cap`.
    pub fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, failures: 0 }
    }

    /// The delay after one more failure; `random` in 0..=u64::MAX decides.
    pub fn after_failure(&mut self, hint: Duration, random: u64) -> Duration {
        self.after_failure_within(self.cap, hint, random)
    }

    /// The same while the ceiling is no higher than `cap`, because somebody waits.
    pub fn after_failure_within(&mut self, cap: Duration, hint: Duration, random: u64) -> Duration {
        let ceiling = self.base.saturating_mul(1 << self.failures.min(20)).min(self.cap).min(cap);
        self.failures = self.failures.saturating_add(1);
        let hint = hint.min(MAX_HINT);
        let share = |limit: Duration| limit.mul_f64(random as f64 / u64::MAX as f64);
        if hint.is_zero() {
            share(ceiling)
        } else {
            hint + share(hint.mul_f64(SPREAD).max(ceiling.min(LITTLE)))
        }
    }

    /// It worked, for long enough to forget what was before.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A random number for [`Backoff::after_failure`].
pub fn random() -> u64 {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random source answers");
    u64::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceilings_double_up_to_the_cap_and_start_again() {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        let ceilings: Vec<_> =
            (0..8).map(|_| backoff.after_failure(Duration::ZERO, u64::MAX).as_millis()).collect();
        assert_eq!(ceilings, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        assert_eq!(backoff.after_failure(Duration::ZERO, 0), Duration::ZERO);
        let second = Duration::from_secs(1);
        assert_eq!(backoff.after_failure_within(second, Duration::ZERO, u64::MAX), second);
        assert!(backoff.after_failure_within(second, 5 * second, 0) >= 5 * second, "the hint counts");
        backoff.reset();
        assert_eq!(backoff.after_failure(Duration::ZERO, u64::MAX).as_millis(), 500);
    }

    #[test]
    fn a_hint_is_never_undercut() {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        let hint = Duration::from_secs(10);
        assert_eq!(backoff.after_failure(hint, 0), hint);
        assert_eq!(backoff.after_failure(hint, u64::MAX), hint + hint / 4);
        assert_eq!(backoff.after_failure(Duration::from_millis(u64::MAX), 0), MAX_HINT);
    }
}
