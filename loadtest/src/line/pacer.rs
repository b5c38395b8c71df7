//! When bytes leave a queue and when they arrive, by arithmetic alone.

use std::time::Duration;

use tokio::time::Instant;
use towline_tunnel::backoff;

use super::Nature;

/// One direction of a line.
#[derive(Debug)]
pub(super) struct Pacer {
    nature: Nature,
    /// The last byte that was taken has left by then.
    busy_until: Instant,
    /// And has arrived by then: nothing overtakes.
    last_arrival: Instant,
}

/// What becomes of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    /// When they are at the other end.
    pub(super) arrives: Instant,
    /// When the queue has room for more.
    pub(super) room: Instant,
}

impl Pacer {
    pub(super) fn new(nature: Nature, now: Instant) -> Self {
        Self { nature, busy_until: now, last_arrival: now }
    }

    /// Takes so many bytes into the queue.
    pub(super) fn send(&mut self, bytes: usize, now: Instant) -> Sent {
        let takes = match self.nature.rate {
            Some(rate) => Duration::from_secs_f64(bytes as f64 * 8.0 / rate),
            None => Duration::ZERO,
        };
        self.busy_until = self.busy_until.max(now) + takes;
        let jitter = match self.nature.jitter {
            Duration::ZERO => Duration::ZERO,
            most => most.mul_f64(backoff::random() as f64 / u64::MAX as f64),
        };
        self.last_arrival = self.last_arrival.max(self.busy_until + self.nature.delay + jitter);
        let room = self.busy_until.checked_sub(self.nature.queue).unwrap_or(now).max(now);
        Sent { arrives: self.last_arrival, room }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn bytes_take_their_time_and_then_the_delay() {
        let now = Instant::now();
        // 8 Mbit/s: a kilobyte a millisecond.
        let mut pacer = Pacer::new(Nature::new(100 * MS, Some(8e6)), now);
        assert_eq!(pacer.send(10_000, now), Sent { arrives: now + 60 * MS, room: now });
        assert_eq!(pacer.send(30_000, now), Sent { arrives: now + 90 * MS, room: now + 20 * MS });
        // What was not used is gone.
        let later = now + 200 * MS;
        assert_eq!(pacer.send(1000, later).arrives, later + 51 * MS);
    }

    #[test]
    fn jitter_delays_and_never_reorders() {
        let now = Instant::now();
        let nature = Nature { jitter: 50 * MS, ..Nature::new(20 * MS, None) };
        let mut pacer = Pacer::new(nature, now);
        let arrivals: Vec<Instant> = (0..1000).map(|n| pacer.send(1, now + n * MS).arrives).collect();
        assert!(arrivals.is_sorted());
        let delays: Vec<Duration> = arrivals.iter().zip(0..).map(|(at, n)| *at - (now + n * MS)).collect();
        assert!(delays.iter().all(|delay| (10 * MS..=60 * MS).contains(delay)));
        assert!(delays.iter().min() < delays.iter().max());
    }
}
