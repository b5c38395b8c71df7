//! The receiving half of a stream at an endpoint: what came, what was read, and how much more may come.

use bytes::{Buf, Bytes};

use super::{
    CloseReason,
    blocks::Blocks,
    interactive::Interactive,
    ledger::Ledger,
    resume::Arrived,
    tuning::{Tally, Tuning},
    window::Window,
};

/// Offsets and bytes of one direction, as its receiver sees them.
#[derive(Debug)]
pub struct ReceiveHalf {
    window: Window,
    unread: Blocks,
    /// Contiguous bytes that came.
    received: u64,
    /// Bytes that the reader took.
    consumed: u64,
    /// Offset up to which the peer may send.
    limit: u64,
    fin: bool,
    /// `received` as last said.
    said: u64,
    /// The reader is gone: what comes is thrown away.
    discarding: bool,
}

impl ReceiveHalf {
    /// A new direction whose window is promised in `ledger`.
    pub fn new(ledger: Ledger) -> Self {
        let window = Window::new(ledger);
        Self {
            unread: Blocks::default(),
            received: 0,
            consumed: 0,
            limit: window.size(),
            window,
            fin: false,
            said: 0,
            discarding: false,
        }
    }

    /// Takes what came in DATA.
    ///
    /// # Errors
    /// If it exceeds the credit or follows the end.
    pub fn data(&mut self, payload: Bytes, fin: bool) -> Result<(), CloseReason> {
        if self.fin {
            return Err(CloseReason::DataAfterFin);
        }
        let after = self.received + payload.len() as u64;
        if after > self.limit {
            return Err(CloseReason::CreditExceeded);
        }
        self.received = after;
        self.fin = fin;
        if self.discarding {
            self.consumed = after;
        } else {
            self.unread.push(payload);
        }
        Ok(())
    }

    /// The sender said BLOCKED after what came.
    pub(super) fn blocked(&mut self, tally: Tally, tuning: &mut Tuning) {
        if !self.discarding {
            self.window.blocked(self.received, self.limit, self.unread(), tally, tuning);
        }
    }

    /// Moves bytes to the reader; 0 where none are there.
    pub fn read(&mut self, out: &mut [u8]) -> usize {
        let mut moved = 0;
        while moved < out.len()
            && let Some(mut part) = self.unread.pop(out.len() - moved)
        {
            let to = moved + part.len();
            part.copy_to_slice(&mut out[moved..to]);
            moved = to;
        }
        self.consumed += moved as u64;
        moved
    }

    /// The reader is gone. Credit goes on: the stream lives only until what it sends has arrived, and the peer may read
    /// only once it has written, or be gone as well.
    pub fn discard(&mut self) {
        self.discarding = true;
        self.unread.clear();
        self.consumed = self.received;
    }

    /// Whether the end came (bytes before it may still wait to be read).
    pub fn is_finished(&self) -> bool {
        self.fin
    }

    /// Whether everything came and was read.
    pub fn is_exhausted(&self) -> bool {
        self.fin && self.unread.is_empty()
    }

    /// Whether bytes wait to be read.
    pub fn is_readable(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Whether the stream's user types.
    pub(super) fn interactive(&self) -> &Interactive {
        self.window.interactive()
    }

    /// Contiguous bytes that came since the stream's begin.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Bytes that wait to be read.
    pub fn unread(&self) -> u64 {
        self.received - self.consumed
    }

    /// What CREDIT says as `received`: one more than the length once the end is there.
    pub(super) fn received_now(&self) -> u64 {
        self.received + u64::from(self.fin)
    }

    /// Whether `received` has news that the sender should have within a second.
    pub fn owes_received(&self) -> bool {
        self.received_now() > self.said
    }

    /// Whether a CREDIT should go at once: an eighth of the window was consumed, or the end came.
    pub fn owes_credit(&self) -> bool {
        if self.fin {
            return self.owes_received();
        }
        let size = self.window.size();
        (self.consumed + size).saturating_sub(self.limit) >= size / 8
    }

    /// The numbers of a CREDIT that is sent now.
    pub fn credit(&mut self) -> (u64, u64) {
        if !self.fin {
            self.limit = self.limit.max(self.consumed + self.window.size());
            self.window.settle(self.limit - self.consumed);
        }
        self.said = self.received_now();
        (self.said, self.limit)
    }

    /// How much came, for RESUME and RESUMED; it counts as said.
    pub fn arrived(&mut self) -> Arrived {
        self.credit();
        Arrived { bytes: self.received, fin: self.fin }
    }

    /// Offset up to which the peer may send.
    pub fn limit(&self) -> u64 {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::proto::{
        send::FLOOR,
        window::{INITIAL_WINDOW, MAX_WINDOW},
    };

    fn tally() -> Tally {
        Tally { at: Instant::now(), waited: Duration::ZERO, brought: 0 }
    }

    fn half() -> ReceiveHalf {
        ReceiveHalf::new(Ledger::new(64 << 20))
    }

    fn fill(half: &mut ReceiveHalf, bytes: u64, blocked: bool) {
        half.data(vec![1; bytes as usize].into(), false).unwrap();
        if blocked {
            half.blocked(tally(), &mut Tuning::new());
        }
    }

    fn drain(half: &mut ReceiveHalf) -> usize {
        half.read(&mut vec![0; 1 << 24])
    }

    #[test]
    fn data_past_the_credit_or_after_the_end_is_refused() {
        let mut half = half();
        fill(&mut half, INITIAL_WINDOW, false);
        assert_eq!(half.data(Bytes::from_static(b"x"), false), Err(CloseReason::CreditExceeded));
        half.data(Bytes::new(), true).unwrap();
        assert_eq!(half.data(Bytes::new(), true), Err(CloseReason::DataAfterFin));
    }

    #[test]
    fn credit_comes_back_at_an_eighth_and_counts_from_what_was_read() {
        let mut half = half();
        fill(&mut half, INITIAL_WINDOW / 8, false);
        assert!(!half.owes_credit() && half.owes_received());
        assert_eq!(drain(&mut half), INITIAL_WINDOW as usize / 8);
        assert!(half.owes_credit());
        assert_eq!(half.credit(), (INITIAL_WINDOW / 8, INITIAL_WINDOW / 8 + INITIAL_WINDOW));
        assert!(!half.owes_credit() && !half.owes_received());
    }

    #[test]
    fn a_window_grows_when_blocked_only_if_the_reader_keeps_up() {
        let mut half = half();
        fill(&mut half, INITIAL_WINDOW, true);
        assert_eq!(half.window.size(), INITIAL_WINDOW, "nothing was read");
        drain(&mut half);
        half.credit();
        let (mut tally, mut tuning) = (tally(), Tuning::new());
        for _ in 0..10 {
            let all = half.limit() - half.received;
            half.data(vec![1; all as usize - 1].into(), false).unwrap();
            drain(&mut half);
            tally = Tally {
                at: tally.at + Duration::from_millis(9),
                waited: tally.waited + Duration::from_millis(8),
                brought: tally.brought + all,
            };
            half.data(Bytes::from_static(b"x"), false).unwrap();
            half.blocked(tally, &mut tuning);
            drain(&mut half);
            half.credit();
        }
        assert_eq!(half.window.size(), MAX_WINDOW);
    }

    #[test]
    fn the_ledger_gets_back_what_a_stream_was_promised() {
        let ledger = Ledger::new(INITIAL_WINDOW);
        let first = ReceiveHalf::new(ledger.clone());
        assert_eq!(first.limit(), INITIAL_WINDOW);
        let second = ReceiveHalf::new(ledger.clone());
        assert_eq!(second.limit(), FLOOR, "the floor is never withheld");
        drop((first, second));
        assert_eq!(ledger.promised(), 0);
    }

    #[test]
    fn what_comes_for_a_reader_that_is_gone_is_thrown_away_and_credited() {
        let mut half = half();
        fill(&mut half, 100, false);
        half.discard();
        fill(&mut half, INITIAL_WINDOW - 100, true);
        assert_eq!(half.unread(), 0);
        assert!(half.owes_credit());
        assert_eq!(half.credit(), (INITIAL_WINDOW, 2 * INITIAL_WINDOW));
    }
}
