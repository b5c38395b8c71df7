//! Refused credentials and handshakes that became no session, counted by where they come from.
//!
//! Not against guessing (tokens and secrets can't be guessed) but against the work that judging them makes. Many people
//! may share one address, so that the limit is generous, and success costs nothing.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::origin::Range;

const WINDOW: Duration = Duration::from_secs(60);
/// Ranges of addresses counted at once; whoever has this many is not stopped by counting more.
const MAX_RANGES: usize = 16_384;

/// What an address may expect after what came from it lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduct {
    /// Its turn, as everybody.
    Good,
    /// A turn that nobody else needs: many of its handshakes became no session.
    Wasteful,
    /// Nothing, for so long: too many of its credentials were refused.
    Barred(Duration),
}

/// Counts failures by address.
#[derive(Debug)]
pub struct FailureThrottle {
    per_minute: u32,
    counted: Mutex<Counted>,
}

#[derive(Debug, Default)]
struct Counted {
    windows: HashMap<Range, Window>,
    swept: Option<Instant>,
}

#[derive(Debug)]
struct Window {
    begun: Instant,
    failures: u32,
}

impl FailureThrottle {
    /// Allows so many failures a minute for one address.
    pub fn new(per_minute: u32) -> Self {
        Self { per_minute, counted: Mutex::default() }
    }

    /// How long this address must wait until it is listened to again, if it must.
    pub fn wait(&self, address: IpAddr) -> Option<Duration> {
        let counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let left = |range: Range| {
            let window = counted.windows.get(&range)?;
            let left = WINDOW.checked_sub(window.begun.elapsed())?;
            (window.failures >= self.per_minute.saturating_mul(range.shares())).then_some(left)
        };
        Range::all(address).filter_map(left).max()
    }

    /// Counts a failure.
    pub fn failed(&self, address: IpAddr) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        // The widest range first: there are fewest of them, and each stops all that is in it.
        Range::all(address).for_each(|range| counted.count(range));
    }
}

impl Counted {
    fn count(&mut self, range: Range) {
        if self.windows.len() >= MAX_RANGES && !self.windows.contains_key(&range) {
            // Looking at all of them once a window is enough: more often, and counting itself would be the load.
            if self.swept.is_none_or(|swept| swept.elapsed() >= WINDOW) {
                self.swept = Some(Instant::now());
                self.windows.retain(|_, window| window.begun.elapsed() < WINDOW);
            }
            if self.windows.len() >= MAX_RANGES {
                return;
            }
        }
        let fresh = || Window { begun: Instant::now(), failures: 0 };
        let window = self.windows.entry(range).or_insert_with(fresh);
        if window.begun.elapsed() >= WINDOW {
            *window = fresh();
        }
        window.failures = window.failures.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_address_waits_after_too_many_failures_and_only_that_one() {
        let throttle = FailureThrottle::new(3);
        let (here, there): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        for _ in 0..3 {
            assert_eq!(throttle.wait(here), None);
            throttle.failed(here);
        }
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(throttle.wait(here), Some(Duration::from_secs(40)));
        assert_eq!(throttle.wait(there), None);
        tokio::time::advance(Duration::from_secs(41)).await;
        assert_eq!(throttle.wait(here), None);
        throttle.failed(here);
        assert_eq!(throttle.wait(here), None, "counted afresh");
    }

    #[tokio::test(start_paused = true)]
    async fn one_ipv6_network_counts_as_one_and_memory_is_bounded() {
        let throttle = FailureThrottle::new(1);
        throttle.failed("2001:db8::1".parse().unwrap());
        assert!(throttle.wait("2001:db8::2".parse().unwrap()).is_some());
        assert!(throttle.wait("2001:db8:0:1::2".parse().unwrap()).is_none());
        for n in 0..2 * MAX_RANGES as u32 {
            throttle.failed(IpAddr::V4(n.into()));
        }
        assert!(throttle.counted.lock().unwrap().windows.len() <= MAX_RANGES);
    }
    #[tokio::test(start_paused = true)]
    async fn an_ipv6_site_is_stopped_whichever_of_its_networks_fail() {
        let throttle = FailureThrottle::new(10);
        let network = |n: u32| format!("2001:db8:1:{n:x}::1").parse::<IpAddr>().unwrap();
        for n in 0..40 {
            assert_eq!(throttle.wait(network(n)), None, "{n}");
            throttle.failed(network(n));
        }
        assert!(throttle.wait(network(60_000)).is_some(), "one that never failed");
        assert!(throttle.wait("2001:db8:2::1".parse().unwrap()).is_none(), "another site");
        tokio::time::advance(WINDOW + Duration::from_secs(1)).await;
        assert_eq!(throttle.wait(network(0)), None);
    }
}
