//! How far ahead a sender may be of its reader, and when that distance changes.
//!
//! A window that is too small starves the line; one that is too large fills the queues on the way, and whoever types waits behind them. No
//! round trip is measured. The sender says BLOCKED when it stands still for want of credit. Where the connection's reader then had nothing
//! to do for much of the time, the line could have brought more: the window doubles. Where the reader was busy throughout, more would only
//! wait in the kernel's buffers: the window is halved. All streams of a user on a connection have one size ([`super::tuning`]).

use super::{
    interactive::Interactive,
    ledger::Ledger,
    send::FLOOR,
    tuning::{Tally, Tuning},
};

/// A stream's window, and the relay's allowance for one, once it is opened and while the ledger allows.
pub const INITIAL_WINDOW: u64 = 256 * 1024;
/// The largest.
pub const MAX_WINDOW: u64 = 8 * 1024 * 1024;

/// What a sender was promised beyond the floor.
#[derive(Debug)]
pub(super) struct Window {
    ledger: Ledger,
    size: u64,
    /// Taken from the ledger: what the size promises, and what an earlier, larger one did.
    reserved: u64,
    /// The round of the tuning in which it was used up last.
    round: u32,
    /// BLOCKED before this offset was said of a window that has changed since.
    judged: u64,
}

impl Window {
    /// [`INITIAL_WINDOW`], or the floor where the ledger is full.
    pub(super) fn new(ledger: Ledger) -> Self {
        let size = if ledger.reserve(INITIAL_WINDOW - FLOOR, true) { INITIAL_WINDOW } else { FLOOR };
        Self { ledger, size, reserved: size - FLOOR, round: 0, judged: 0 }
    }

    /// Bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Whether the user whose bytes these are types.
    pub(super) fn interactive(&self) -> &Interactive {
        self.ledger.interactive()
    }

    /// The sender used up its credit at the offset `arrived`; it was last told `limit`, and the reader has `unread` bytes before it. True
    /// where the window grew.
    pub(super) fn blocked(
        &mut self,
        arrived: u64,
        limit: u64,
        unread: u64,
        tally: Tally,
        tuning: &mut Tuning,
    ) -> bool {
        if arrived <= self.judged || unread > self.size / 2 {
            return false;
        }
        self.judged = limit;
        let size = tuning.used_up(self.size, &mut self.round, &self.ledger, tally);
        if size <= self.size {
            self.size = size;
            return false;
        }
        let before = self.size;
        if !self.grow_to(size) {
            self.grow_to((before + self.ledger.room()).min(size));
            tuning.refused(self.size);
        }
        self.size > before
    }

    fn grow_to(&mut self, size: u64) -> bool {
        let wanted = size.saturating_sub(FLOOR + self.reserved);
        if !self.ledger.reserve(wanted, false) {
            return false;
        }
        self.size = size;
        self.reserved += wanted;
        true
    }

    /// The sender may still send `promised` bytes: what was reserved for more is given back.
    pub(super) fn settle(&mut self, promised: u64) {
        let needed = promised.max(self.size) - FLOOR;
        if self.reserved > needed {
            self.ledger.release(self.reserved - needed);
            self.reserved = needed;
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.ledger.release(self.reserved);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::proto::{
        interactive::HOLDS,
        tuning::{FAST, NARROW_WINDOW},
    };

    const STEP: Duration = Duration::from_millis(100);

    /// A sender that says BLOCKED once each [`STEP`], at the limit that it was told.
    struct Sender {
        window: Window,
        tuning: Tuning,
        tally: Tally,
        at: u64,
    }

    impl Sender {
        fn new(ledger: &Ledger) -> Self {
            let tally = Tally { at: Instant::now(), waited: Duration::ZERO, brought: 0 };
            Self { window: Window::new(ledger.clone()), tuning: Tuning::new(), tally, at: 0 }
        }

        /// The same at an offset that it chooses, before which `unread` bytes wait.
        fn says(&mut self, at: u64, unread: u64) -> bool {
            self.window.blocked(at, at, unread, self.tally, &mut self.tuning)
        }

        /// The same while so many bytes a second come, and whether somebody types.
        fn beside(&mut self, rate: u64, typing: bool) -> u64 {
            if typing {
                self.window.interactive().note(self.tally.at + STEP);
            }
            self.tally.brought += rate / 10;
            self.blocked(90)
        }

        /// The reader waited for so many hundredths of the time since the last.
        fn blocked(&mut self, idle: u32) -> u64 {
            self.tally.at += STEP;
            self.tally.waited += STEP * idle / 100;
            self.at += self.window.size();
            self.says(self.at, 0);
            self.window.settle(0);
            self.window.size()
        }
    }

    #[test]
    fn it_grows_while_the_reader_has_nothing_to_do_and_no_further_than_the_largest() {
        let ledger = Ledger::new(64 << 20);
        let mut sender = Sender::new(&ledger);
        let sizes: Vec<u64> = (0..7).map(|_| sender.blocked(90) / INITIAL_WINDOW).collect();
        assert_eq!(sizes, [2, 4, 8, 16, 32, 32, 32]);
        assert_eq!(ledger.promised(), MAX_WINDOW - FLOOR);
        drop(sender);
        assert_eq!(ledger.promised(), 0);
    }

    #[test]
    fn it_shrinks_while_the_reader_is_busy_and_stays_where_it_is_neither() {
        let ledger = Ledger::new(64 << 20);
        let mut sender = Sender::new(&ledger);
        assert_eq!((0..3).map(|_| sender.blocked(90)).last(), Some(8 * INITIAL_WINDOW));
        assert_eq!(sender.blocked(30), 8 * INITIAL_WINDOW);
        let sizes: Vec<u64> = (0..5).map(|_| sender.blocked(5) / INITIAL_WINDOW).collect();
        assert_eq!(sizes, [4, 2, 1, 1, 1]);
        assert_eq!(ledger.promised(), INITIAL_WINDOW - FLOOR);
    }

    #[test]
    fn what_was_promised_before_it_shrank_stays_reserved_until_it_is_used() {
        let ledger = Ledger::new(64 << 20);
        let mut sender = Sender::new(&ledger);
        sender.blocked(90);
        sender.blocked(90);
        sender.tally.at += STEP;
        assert!(!sender.says(sender.at + 1, 0));
        sender.window.settle(4 * INITIAL_WINDOW);
        assert_eq!(ledger.promised(), 4 * INITIAL_WINDOW - FLOOR);
        sender.window.settle(3 * INITIAL_WINDOW);
        assert_eq!(ledger.promised(), 3 * INITIAL_WINDOW - FLOOR);
        sender.window.settle(0);
        assert_eq!(
            (ledger.promised(), sender.window.size()),
            (2 * INITIAL_WINDOW - FLOOR, 2 * INITIAL_WINDOW)
        );
    }

    #[test]
    fn one_window_is_judged_once_and_a_reader_that_lags_gets_no_more() {
        let ledger = Ledger::new(64 << 20);
        let mut sender = Sender::new(&ledger);
        assert_eq!(sender.blocked(90), 2 * INITIAL_WINDOW);
        // Said before the sender knew of the larger window.
        assert!(!sender.says(sender.at, 0));
        sender.tally.at += STEP;
        sender.tally.waited += STEP;
        assert!(!sender.says(sender.at + 1, INITIAL_WINDOW + 1));
        assert_eq!(sender.window.size(), 2 * INITIAL_WINDOW);
    }

    #[test]
    fn while_somebody_types_what_is_fast_is_narrow_and_soon_after_it_is_as_before() {
        let ledger = Ledger::new(64 << 20);
        let mut sender = Sender::new(&ledger);
        let sizes: Vec<u64> = (0..3).map(|_| sender.beside(2 * FAST, false) / NARROW_WINDOW).collect();
        assert_eq!(sizes, [8, 16, 32]);
        let sizes: Vec<u64> = (0..6).map(|_| sender.beside(2 * FAST, true) / NARROW_WINDOW).collect();
        assert_eq!(sizes, [16, 8, 4, 2, 1, 1]);
        assert_eq!(ledger.promised(), NARROW_WINDOW - FLOOR);
        let steps = (1..).find(|_| sender.beside(2 * FAST, false) > NARROW_WINDOW).unwrap();
        assert_eq!(sender.window.size(), 32 * NARROW_WINDOW, "at once");
        assert!(STEP * steps <= HOLDS + STEP);
        assert_eq!(sender.beside(2 * FAST, false), 64 * NARROW_WINDOW, "and on from there");
    }

    #[test]
    fn while_somebody_types_a_slow_line_gets_the_window_that_it_needs() {
        let ledger = Ledger::new(64 << 20);
        let mut sender = Sender::new(&ledger);
        sender.beside(FAST / 2, true);
        let sizes: Vec<u64> = (0..6).map(|_| sender.beside(FAST / 2, true) / INITIAL_WINDOW).collect();
        assert_eq!(sizes, [2, 4, 8, 16, 32, 32]);
    }

    #[test]
    fn a_window_that_was_wide_takes_what_there_is_where_the_ledger_is_full_by_then() {
        let ledger = Ledger::new(4 << 20);
        let mut sender = Sender::new(&ledger);
        assert_eq!((0..3).map(|_| sender.beside(2 * FAST, false)).last(), Some(2 << 20));
        assert_eq!((0..5).map(|_| sender.beside(2 * FAST, true)).last(), Some(NARROW_WINDOW));
        assert!(ledger.reserve(2 << 20, true));
        sender.tally.at += 2 * HOLDS;
        assert_eq!(sender.blocked(90), NARROW_WINDOW + (1 << 20) - (NARROW_WINDOW - FLOOR), "what there is");
        assert_eq!(ledger.promised(), 3 << 20);
        ledger.release(2 << 20);
        assert_eq!((0..9).map(|_| sender.blocked(90)).last(), Some((3 << 20) + FLOOR));
    }

    #[test]
    fn after_a_pause_nothing_is_concluded() {
        let ledger = Ledger::new(64 << 20);
        let mut sender = Sender::new(&ledger);
        sender.blocked(90);
        sender.tally.at += Duration::from_secs(10);
        sender.tally.waited += Duration::from_secs(10);
        assert_eq!(sender.blocked(0), 2 * INITIAL_WINDOW);
        assert_eq!(sender.blocked(90), 4 * INITIAL_WINDOW);
    }

    #[test]
    fn a_full_ledger_leaves_the_floor_and_stops_growth() {
        let ledger = Ledger::new(INITIAL_WINDOW);
        let (mut first, second) = (Sender::new(&ledger), Sender::new(&ledger));
        assert_eq!((first.window.size(), second.window.size()), (INITIAL_WINDOW, FLOOR));
        assert_eq!(first.blocked(90), INITIAL_WINDOW);
    }
}
