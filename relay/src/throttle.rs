//! Refused credentials and unfinished handshakes, counted by where they come from.
//!
//! Not against guessing (tokens and secrets can't be guessed) but against the work that judging them makes. Many people
//! may share one address, so that the limit is generous, and success costs nothing.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

const WINDOW: Duration = Duration::from_secs(60);
/// Addresses counted at once; whoever has this many is not stopped by counting more.
const MAX_ADDRESSES: usize = 16_384;

/// What an address may expect after what came from it lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduct {
    /// Its turn, as everybody.
    Good,
    /// A turn that nobody else needs: it began many handshakes and did not finish them.
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
    windows: HashMap<IpAddr, Window>,
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
        let window = counted.windows.get(&network(address))?;
        let left = WINDOW.checked_sub(window.begun.elapsed())?;
        (window.failures >= self.per_minute).then_some(left)
    }

    /// Counts a failure.
    pub fn failed(&self, address: IpAddr) {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let network = network(address);
        if counted.windows.len() >= MAX_ADDRESSES && !counted.windows.contains_key(&network) {
            // Looking at all of them once a window is enough: more often, and counting itself would be the load.
            if counted.swept.is_none_or(|swept| swept.elapsed() >= WINDOW) {
                counted.swept = Some(Instant::now());
                counted.windows.retain(|_, window| window.begun.elapsed() < WINDOW);
            }
            if counted.windows.len() >= MAX_ADDRESSES {
                return;
            }
        }
        let fresh = || Window { begun: Instant::now(), failures: 0 };
        let window = counted.windows.entry(network).or_insert_with(fresh);
        if window.begun.elapsed() >= WINDOW {
            *window = fresh();
        }
        window.failures = window.failures.saturating_add(1);
    }
}

/// Whoever has an IPv6 address has the other 2⁶⁴ of its network too.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
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
        assert_eq!(network("::ffff:192.0.2.1".parse().unwrap()), "192.0.2.1".parse::<IpAddr>().unwrap());
        for n in 0..2 * MAX_ADDRESSES as u32 {
            throttle.failed(IpAddr::V4(n.into()));
        }
        assert!(throttle.counted.lock().unwrap().windows.len() <= MAX_ADDRESSES);
    }
}
