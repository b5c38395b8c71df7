//! How long a network lets a connection be silent before it forgets it: found by trying, and remembered for each network.
//!
//! Only a connection that nobody needs at the moment is tried with: an agent's spare session. One on which streams begin asks for a sign of
//! life at least every [`PING_AFTER`], because it has to be known soon that it is dead.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::ladder::Network;
use crate::proto::link::PING_AFTER;

/// Silences that are tried. Beyond the last one little is saved, and some clouds' load balancers forget after four minutes.
const STEPS: [Duration; 8] = [
    Duration::from_secs(2),
    PING_AFTER,
    Duration::from_secs(10),
    Duration::from_secs(20),
    Duration::from_secs(40),
    Duration::from_secs(80),
    Duration::from_secs(160),
    Duration::from_secs(240),
];
/// Where trying begins.
const FIRST: usize = 1;
/// A connection may be lost in a silence for another reason; so many in a row at one step are no chance.
const LOST_IN_A_ROW: u8 = 2;
/// A connection that was lost after less was not lost for silence.
const LEAST: Duration = Duration::from_secs(2);
/// A step that was found too long is tried again after this: firewalls are changed, too.
const AGAIN_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Networks that are remembered.
const NETWORKS: usize = 16;

/// What is known of one network.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// The step that is tried or kept to.
    step: usize,
    /// The longest silence that was outlived.
    outlived: Duration,
    /// Connections that were lost in a row in this step's silence.
    lost: u8,
    /// Not beyond this step until then.
    most: Option<(usize, Instant)>,
}

impl Default for Known {
    fn default() -> Self {
        Self { step: FIRST, outlived: Duration::ZERO, lost: 0, most: None }
    }
}

/// What came of a connection's silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// Nothing.
    Nothing,
    /// This network lets a connection be silent for so long; longer is tried next.
    Outlives(Duration),
    /// It forgets connections that are silent for so long.
    Forgets(Duration),
}

impl Known {
    fn silence(&self) -> Duration {
        STEPS[self.step]
    }

    fn outlived(&mut self, silence: Duration, now: Instant) -> Learned {
        self.outlived = self.outlived.max(silence);
        if !is_of(silence, self.silence()) {
            return Learned::Nothing;
        }
        self.lost = 0;
        let next = self.step + 1;
        if self.most.is_some_and(|(_, until)| now >= until) {
            self.most = None;
        }
        if next >= STEPS.len() || self.most.is_some_and(|(most, _)| next > most) {
            return Learned::Nothing;
        }
        self.step = next;
        Learned::Outlives(silence)
    }

    fn lost(&mut self, silence: Duration, now: Instant) -> Learned {
        if silence < LEAST || silence <= self.outlived {
            return Learned::Nothing;
        }
        self.lost += 1;
        if self.lost < LOST_IN_A_ROW {
            return Learned::Nothing;
        }
        self.lost = 0;
        // The last step that is known to be short enough, where one is.
        let known = STEPS.iter().rposition(|step| is_of(self.outlived, *step)).unwrap_or(0);
        self.step = known.min(self.step.saturating_sub(1));
        self.most = Some((self.step, now + AGAIN_AFTER));
        Learned::Forgets(silence)
    }
}

/// Whether a silence was as long as this step asks for: its PING goes out by chance up to a quarter sooner.
fn is_of(silence: Duration, step: Duration) -> bool {
    silence >= step * 7 / 10
}

/// What was learned of networks, in memory. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct KeepAlives(Arc<Mutex<Vec<(Network, Known)>>>);

impl KeepAlives {
    /// How long a connection may be silent that nobody needs at the moment.
    pub fn spare(&self, network: &Network) -> Duration {
        self.known(network).silence()
    }

    /// The same of one on which streams begin: as long, and at most [`PING_AFTER`].
    pub fn carrying(&self, network: &Network) -> Duration {
        self.spare(network).min(PING_AFTER)
    }

    /// A connection was silent for so long, and gave a sign of life when it was asked for one.
    pub fn outlived(&self, network: &Network, silence: Duration) -> Learned {
        self.learn(network, |known| known.outlived(silence, Instant::now()))
    }

    /// A connection was lost, nobody said why, and it had been silent for so long.
    pub fn lost(&self, network: &Network, silence: Duration) -> Learned {
        self.learn(network, |known| known.lost(silence, Instant::now()))
    }

    fn known(&self, network: &Network) -> Known {
        self.lock().iter().find(|(of, _)| of == network).map(|(_, known)| *known).unwrap_or_default()
    }

    fn learn(&self, network: &Network, learn: impl FnOnce(&mut Known) -> Learned) -> Learned {
        let mut networks = self.lock();
        let at = networks.iter().position(|(of, _)| of == network).unwrap_or_else(|| {
            if networks.len() >= NETWORKS {
                networks.remove(0);
            }
            networks.push((network.clone(), Known::default()));
            networks.len() - 1
        });
        learn(&mut networks[at].1)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Network, Known)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(of: u64) -> Duration {
        Duration::from_secs(of)
    }

    /// A spare session on a network that forgets after `forgets`: what is found after so many of its PINGs or ends.
    fn tried(known: &mut Known, forgets: Duration, times: usize, now: Instant) -> Duration {
        for _ in 0..times {
            let silence = known.silence();
            if silence < forgets {
                known.outlived(silence, now);
            } else {
                known.lost(forgets, now);
            }
        }
        known.silence()
    }

    #[test]
    fn the_longest_silence_that_a_network_outlives_is_found_and_kept_to() {
        let now = Instant::now();
        for (forgets, found) in [(30, 20), (60, 40), (240, 160), (350, 240), (100_000, 240), (4, 2), (15, 10)]
        {
            let mut known = Known::default();
            assert_eq!(
                tried(&mut known, seconds(forgets), 20, now),
                seconds(found),
                "forgets after {forgets} s"
            );
            assert_eq!(tried(&mut known, seconds(forgets), 1_000, now), seconds(found), "and stays so");
        }
    }

    #[test]
    fn one_connection_that_is_lost_is_no_reason() {
        let (mut known, now) = (Known::default(), Instant::now());
        assert_eq!(known.outlived(seconds(5), now), Learned::Outlives(seconds(5)));
        assert_eq!(known.silence(), seconds(10));
        assert_eq!(known.lost(seconds(10), now), Learned::Nothing);
        assert_eq!(known.outlived(seconds(10), now), Learned::Outlives(seconds(10)), "the next one lived");
        assert_eq!(known.lost(seconds(20), now), Learned::Nothing);
        assert_eq!(known.lost(seconds(8), now), Learned::Nothing, "that much is outlived here");
        assert_eq!(known.lost(seconds(18), now), Learned::Forgets(seconds(18)));
        assert_eq!(known.silence(), seconds(10));
    }

    #[test]
    fn what_was_too_long_is_tried_again_after_a_day() {
        let (mut known, now) = (Known::default(), Instant::now());
        assert_eq!(tried(&mut known, seconds(30), 20, now), seconds(20));
        // The firewall was changed.
        assert_eq!(tried(&mut known, seconds(1_000), 20, now + AGAIN_AFTER / 2), seconds(20));
        assert_eq!(tried(&mut known, seconds(1_000), 20, now + AGAIN_AFTER), seconds(240));
    }

    #[test]
    fn a_ping_that_went_out_a_quarter_sooner_counts() {
        let (mut known, now) = (Known::default(), Instant::now());
        assert_eq!(known.outlived(seconds(1), now), Learned::Nothing);
        assert_eq!(known.outlived(PING_AFTER * 3 / 4, now), Learned::Outlives(PING_AFTER * 3 / 4));
        known.outlived(seconds(8), now);
        assert_eq!(known.silence(), seconds(20));
        known.lost(seconds(12), now);
        known.lost(seconds(12), now);
        assert_eq!(known.silence(), seconds(10), "the step that held, and not one below");
    }

    #[test]
    fn each_network_has_its_own_and_so_many_are_remembered() {
        let keep_alives = KeepAlives::default();
        for n in 0..40 {
            keep_alives.outlived(&Network::of_tests(n), seconds(5));
        }
        assert_eq!(keep_alives.lock().len(), NETWORKS);
        assert_eq!(keep_alives.spare(&Network::of_tests(39)), seconds(10));
        assert_eq!(keep_alives.carrying(&Network::of_tests(39)), PING_AFTER);
        assert_eq!(keep_alives.spare(&Network::of_tests(200)), PING_AFTER, "of which nothing is known");
        for _ in 0..2 {
            keep_alives.lost(&Network::of_tests(100), seconds(4));
        }
        assert_eq!(keep_alives.carrying(&Network::of_tests(100)), seconds(2), "shorter is so for all");
    }
}
