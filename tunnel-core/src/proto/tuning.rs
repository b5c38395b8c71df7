//! How large the windows of one user's streams on one connection are: all the same.
//!
//! What a window is judged by, whether the connection's reader waits, is the same for all streams of a connection, and so is what their
//! user may be promised. If each grew by itself, those that grow first would take all of that: equal streams would get unequal
//! shares. So one size is judged for all of them, once a round, and each takes it up when its sender says BLOCKED next.
//!
//! A reader that waits for a core looks like one that waits for the line. So where cores are short, windows grow larger than the line needs,
//! which bulk likes and whoever types does not. While somebody types, and so much comes that it can only be a short line, they are small.

use std::time::{Duration, Instant};

use super::{
    ledger::Ledger,
    window::{INITIAL_WINDOW, MAX_WINDOW},
};

/// What was measured over a longer time says little about now: the senders had nothing to send.
const STALE: Duration = Duration::from_secs(2);
/// Bytes a second on a connection above which windows become small while somebody types: 1 Gb/s. On a long line that is as fast, bulk has
/// about this much then.
pub const FAST: u64 = 125_000_000;
/// No smaller than this.
pub const NARROW_WINDOW: u64 = 64 * 1024;
/// Growth by less than this part of the size is not worth a judgement.
const LEAST_GROWTH: u64 = 8;

/// How a connection's reader has spent its time.
#[derive(Clone, Copy, Debug)]
pub struct Tally {
    /// Now.
    pub at: Instant,
    /// How long it has waited for bytes, in all.
    pub waited: Duration,
    /// Bytes of streams that it got, in all.
    pub brought: u64,
}

impl Tally {
    fn passed(&self, since: &Self) -> Duration {
        self.at.saturating_duration_since(since.at)
    }

    /// Whether more than [`FAST`] came since then.
    fn is_fast(&self, since: &Self) -> bool {
        let brought = self.brought.saturating_sub(since.brought);
        u128::from(brought) * 1_000_000_000 > u128::from(FAST) * self.passed(since).as_nanos()
    }
}

/// The size of one user's windows on one connection.
#[derive(Debug)]
pub(super) struct Tuning {
    size: u64,
    /// The size before it became small for somebody who types.
    before: Option<u64>,
    /// The last judgement.
    since: Option<Tally>,
    /// A round ends, and the size is judged, once a window is used up that was so in this round already: as long as the fastest stream
    /// takes from one end of its window to the other.
    round: u32,
    /// Windows that were used up in this round.
    used_up: u32,
}

impl Tuning {
    pub(super) fn new() -> Self {
        Self { size: INITIAL_WINDOW, before: None, since: None, round: 1, used_up: 0 }
    }

    /// A window of the size `own`, which was used up in the round `last` before this (0: in none), is so again. Returns the size it shall
    /// have, which is another promise in its ledger: [`Tuning::refused`] if there is less room.
    pub(super) fn used_up(&mut self, own: u64, last: &mut u32, ledger: &Ledger, tally: Tally) -> u64 {
        let again = std::mem::replace(last, self.round) == self.round;
        let typing = ledger.interactive().holds(tally.at);
        match (self.since, self.before) {
            (_, Some(before)) if !typing => {
                self.before = None;
                self.size = self.size.max(before);
            }
            (Some(since), _) if tally.passed(&since) <= STALE => {
                if !again {
                    self.used_up = self.used_up.saturating_add(1);
                }
                // What there was no room for says nothing of the size that it did not get.
                if !again || own < self.size {
                    return self.size;
                }
                self.judge(&since, &tally, typing, ledger);
            }
            // A stream that comes from another connection brings its size.
            (Some(_), _) => self.size = self.size.max(own),
            (None, _) => {
                self.size = self.size.max(own);
                if !typing {
                    self.grow(ledger);
                }
            }
        }
        self.since = Some(tally);
        self.round = self.round.wrapping_add(1).max(1);
        self.used_up = 1;
        *last = self.round;
        self.size
    }

    fn judge(&mut self, since: &Tally, tally: &Tally, typing: bool, ledger: &Ledger) {
        let (passed, waited) = (tally.passed(since), tally.waited.saturating_sub(since.waited));
        if typing && tally.is_fast(since) {
            self.before.get_or_insert(self.size);
            self.size = (self.size / 2).max(NARROW_WINDOW);
        } else if 2 * waited >= passed {
            self.grow(ledger);
        } else if 8 * waited < passed {
            self.size = (self.size / 2).max(INITIAL_WINDOW.min(self.size));
        }
    }

    /// Twice as much, or as much as there is for each of those that will ask for it.
    fn grow(&mut self, ledger: &Ledger) {
        let more = self.size.min(ledger.room() / u64::from(self.used_up.max(1)));
        if more >= self.size / LEAST_GROWTH {
            self.size = (self.size + more).min(MAX_WINDOW);
        }
    }

    /// There was no room for a window of this size, but for its `own`. What it lacks the others give up, in equal parts: otherwise who comes
    /// last would have least.
    pub(super) fn refused(&mut self, own: u64) {
        let lacks = self.size.saturating_sub(own);
        let fair = self.size - lacks / (u64::from(self.used_up) + 1);
        self.size = fair.max(INITIAL_WINDOW).min(self.size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{send::FLOOR, window::Window};

    const STEP: Duration = Duration::from_millis(10);

    /// Streams of one user on one connection, whose reader waits for the line all the time.
    struct Streams {
        tuning: Tuning,
        ledger: Ledger,
        tally: Tally,
        windows: Vec<(Window, u64)>,
    }

    impl Streams {
        fn new(count: usize, ledger: u64) -> Self {
            let tally = Tally { at: Instant::now(), waited: Duration::ZERO, brought: 0 };
            let mut streams =
                Self { tuning: Tuning::new(), ledger: Ledger::new(ledger), tally, windows: Vec::new() };
            streams.come(count);
            streams
        }

        fn come(&mut self, count: usize) {
            self.windows.extend((0..count).map(|_| (Window::new(self.ledger.clone()), 0)));
        }

        fn sizes(&self) -> Vec<u64> {
            self.windows.iter().map(|(window, _)| window.size() / 1024).collect()
        }

        /// Each window is used up once and read; the sizes in KiB after that.
        fn round(&mut self) -> Vec<u64> {
            for (window, at) in &mut self.windows {
                self.tally.at += STEP;
                self.tally.waited += STEP;
                *at += window.size();
                window.blocked(*at, *at, 0, self.tally, &mut self.tuning);
                window.settle(0);
            }
            self.sizes()
        }
    }

    #[test]
    fn equal_streams_have_equal_windows_and_all_that_there_is_for_them() {
        let mut streams = Streams::new(16, 32 << 20);
        for _ in 0..10 {
            streams.round();
        }
        let sizes = streams.sizes();
        assert!(sizes.iter().all(|size| *size == sizes[0]), "{sizes:?}");
        let growth = (32 << 20) / 4 * 3;
        assert!(
            (growth * 9 / 10..=growth).contains(&streams.ledger.promised()),
            "{}",
            streams.ledger.promised()
        );
    }

    #[test]
    fn one_round_doubles_once_however_many_streams_say_blocked_in_it() {
        let mut streams = Streams::new(4, 1 << 30);
        assert_eq!(streams.round(), [512; 4]);
        assert_eq!(streams.round(), [1024; 4]);
        assert_eq!(streams.round(), [2048; 4]);
    }

    #[test]
    fn who_comes_later_has_what_the_others_have_after_one_window() {
        let mut streams = Streams::new(1, 1 << 30);
        let grown = (0..4).map(|_| streams.round()).last().unwrap()[0];
        assert_eq!(grown, 4096);
        streams.come(1);
        assert_eq!(streams.round(), [8192; 2]);
    }

    #[test]
    fn where_a_newcomer_has_no_room_the_others_make_some() {
        let mut streams = Streams::new(3, 32 << 20);
        for _ in 0..10 {
            streams.round();
        }
        assert_eq!(streams.sizes(), [8192; 3]);
        streams.come(9);
        for _ in 0..20 {
            streams.round();
        }
        let sizes = streams.sizes();
        // Three quarters of 32 MiB for twelve.
        assert!(sizes.iter().all(|size| (1900..=2064).contains(size)), "{sizes:?}");
    }

    #[test]
    fn a_window_of_the_floor_takes_nobody_s_size_down() {
        let mut streams = Streams::new(2, 512 * 1024);
        assert_eq!(streams.round(), [256; 2]);
        streams.come(1);
        for _ in 0..5 {
            assert_eq!(streams.round(), [256, 256, FLOOR / 1024]);
        }
    }

    #[test]
    fn a_stream_that_comes_from_another_connection_keeps_its_size() {
        let mut streams = Streams::new(1, 1 << 30);
        for _ in 0..4 {
            streams.round();
        }
        streams.tuning = Tuning::new();
        assert_eq!(streams.round(), [8192]);
    }
}
