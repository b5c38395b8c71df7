//! The sending half of a stream: what is queued, what was sent, what the far endpoint has.

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    blocks::Blocks,
    frame::{MAX_PAYLOAD, StreamId, put_data_header},
    resume::Arrived,
    window::MAX_WINDOW,
};

/// Bytes that either side may send before any credit came. Never withheld.
pub const FLOOR: u64 = 16 * 1024;

/// Offsets and bytes of one direction, as its sender sees them. Offsets count from the stream's begin.
///
/// At an endpoint, bytes stay `retained` until the far endpoint has `received` them, so that a resumed stream can
/// send them again. A relay retains nothing.
#[derive(Debug)]
pub struct SendHalf {
    retain: bool,
    retained: Blocks,
    unsent: Blocks,
    /// Offset of the first retained byte.
    base: u64,
    /// Offset of the next byte to send.
    sent: u64,
    /// Offset after the last byte queued.
    end: u64,
    /// Offset up to which the peer allows sending.
    limit: u64,
    fin_queued: bool,
    fin_sent: bool,
    fin_received: bool,
    /// The limit for which BLOCKED was already said.
    blocked_said: Option<u64>,
    /// Offset at which to say BLOCKED for someone else (a relay passes it on).
    blocked_passed: Option<u64>,
}

impl SendHalf {
    /// A new direction; `retain` at endpoints.
    pub fn new(retain: bool) -> Self {
        Self {
            retain,
            retained: Blocks::default(),
            unsent: Blocks::default(),
            base: 0,
            sent: 0,
            end: 0,
            limit: FLOOR,
            fin_queued: false,
            fin_sent: false,
            fin_received: false,
            blocked_said: None,
            blocked_passed: None,
        }
    }

    /// The relay's half of a direction that goes on where its receiver `arrived`; `limit` is how far it may go, and lets nothing
    /// through where it lies before that.
    pub fn passing_from(arrived: Arrived, limit: u64) -> Self {
        Self {
            base: arrived.bytes,
            sent: arrived.bytes,
            end: arrived.bytes,
            limit: limit.max(arrived.bytes),
            fin_queued: arrived.fin,
            fin_sent: arrived.fin,
            fin_received: arrived.fin,
            ..Self::new(false)
        }
    }

    /// Goes on, on another connection, where the far endpoint `arrived`: what it has is forgotten, the rest is sent again.
    /// False where it names bytes that are forgotten already or were never sent. A `limit` before that lets nothing through.
    #[must_use]
    pub fn rewind(&mut self, arrived: Arrived, limit: u64) -> bool {
        let whole = self.fin_sent && arrived.bytes == self.end;
        if arrived.bytes < self.base || arrived.bytes > self.sent || (arrived.fin && !whole) {
            return false;
        }
        self.forget(arrived.bytes);
        let again = std::mem::take(&mut self.retained);
        self.unsent.prepend(again);
        self.sent = self.base;
        (self.fin_sent, self.fin_received) = (arrived.fin, arrived.fin);
        self.limit = self.sent;
        self.blocked_said = None;
        self.raise_limit(limit);
        true
    }

    /// Queues bytes. Nothing may be queued after the end.
    pub fn push(&mut self, bytes: Bytes) {
        debug_assert!(!self.fin_queued, "nothing follows the end");
        if !bytes.is_empty() {
            self.end += bytes.len() as u64;
            self.unsent.push(bytes);
        }
    }

    /// Queues the end.
    pub fn finish(&mut self) {
        self.fin_queued = true;
    }

    /// Says BLOCKED on the frame that carries the last byte queued so far.
    pub fn pass_blocked(&mut self) {
        self.blocked_passed = Some(self.end);
    }

    /// Bytes queued and not sent.
    pub fn queued(&self) -> u64 {
        self.end - self.sent
    }

    /// Bytes held: queued, and sent but not yet received.
    pub fn held(&self) -> u64 {
        self.end - self.base
    }

    /// How much the far endpoint is known to have; one more once that is all and the end.
    pub fn confirmed(&self) -> u64 {
        self.base + u64::from(self.fin_received)
    }

    /// Offset of the next byte to send.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Whether the end is queued.
    pub fn is_finished(&self) -> bool {
        self.fin_queued
    }

    /// Whether the end was sent.
    pub fn is_fin_sent(&self) -> bool {
        self.fin_sent
    }

    /// Whether the far endpoint has everything, the end included.
    pub fn is_done(&self) -> bool {
        self.fin_received
    }

    /// Whether a frame can be sent now.
    pub fn is_ready(&self) -> bool {
        self.sent < self.end.min(self.limit) || self.fin_is_next() || self.wants_blocked()
    }

    fn fin_is_next(&self) -> bool {
        self.fin_queued && !self.fin_sent && self.sent == self.end
    }

    fn wants_blocked(&self) -> bool {
        self.sent == self.limit && self.end > self.sent && self.blocked_said != Some(self.limit)
    }

    /// What the peer said in CREDIT; false where it claims to have received what was never sent. Both numbers
    /// never fall; lower ones are old news.
    #[must_use]
    pub fn credit(&mut self, received: u64, limit: u64) -> bool {
        let reachable = self.sent + u64::from(self.fin_sent);
        if received > reachable {
            return false;
        }
        if received == self.end + 1 && self.fin_sent {
            self.fin_received = true;
        }
        self.forget(received.min(self.sent));
        self.raise_limit(limit);
        true
    }

    fn forget(&mut self, received: u64) {
        while self.base < received
            && let Some(part) = self.retained.pop((received - self.base) as usize)
        {
            self.base += part.len() as u64;
        }
    }

    /// Raises the limit (OPEN and OPENED carry the first one). Who retains goes no further beyond what was received
    /// than the largest window: otherwise a peer that takes everything and confirms nothing decides how much is held.
    pub fn raise_limit(&mut self, limit: u64) {
        let reach = if self.retain { self.base + MAX_WINDOW } else { u64::MAX };
        self.limit = self.limit.max(limit.min(reach));
    }

    /// Appends one DATA frame of at most `budget` bytes of payload, if there is one to send; returns the payload's length.
    pub fn emit(&mut self, out: &mut BytesMut, stream: StreamId, budget: usize) -> Option<usize> {
        if !self.is_ready() {
            return None;
        }
        let room = self.end.min(self.limit) - self.sent;
        let length = room.min(budget.min(MAX_PAYLOAD) as u64) as usize;
        let after = self.sent + length as u64;
        let fin = self.fin_queued && after == self.end;
        let exhausted = after == self.limit && self.end > after && self.blocked_said != Some(self.limit);
        let passed = self.blocked_passed.is_some_and(|offset| offset <= after);
        if exhausted {
            self.blocked_said = Some(self.limit);
        }
        if passed {
            self.blocked_passed = None;
        }
        put_data_header(out, stream, length, fin, exhausted || passed);
        self.copy(out, length);
        self.sent = after;
        self.fin_sent |= fin;
        if !self.retain {
            self.base = self.sent;
        }
        Some(length)
    }

    fn copy(&mut self, out: &mut BytesMut, mut length: usize) {
        while length > 0 {
            let Some(part) = self.unsent.pop(length) else { break };
            length -= part.len();
            out.put_slice(&part);
            if self.retain {
                self.retained.push(part);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::frame::{Frame, decode};

    fn emit(half: &mut SendHalf, budget: usize) -> Option<Frame> {
        let mut out = BytesMut::new();
        half.emit(&mut out, 1, budget)?;
        decode(&mut out).unwrap()
    }

    fn data(payload: Vec<u8>, fin: bool, blocked: bool) -> Option<Frame> {
        Some(Frame::Data { stream: 1, payload: payload.into(), fin, blocked })
    }

    #[test]
    fn t50_a_limit_before_what_arrived_lets_nothing_through() {
        let mut half = SendHalf::new(true);
        half.push(vec![7; 100].into());
        half.finish();
        assert_eq!(emit(&mut half, 1 << 20), data(vec![7; 100], true, false));
        // Whoever has a role may ask for this with a proof that is right: the end was never confirmed.
        assert!(half.rewind(Arrived { bytes: 100, fin: false }, 0));
        assert_eq!(emit(&mut half, 1 << 20), data(Vec::new(), true, false));
        let mut passing = SendHalf::passing_from(Arrived { bytes: 100, fin: false }, 0);
        passing.finish();
        assert_eq!(emit(&mut passing, 1 << 20), data(Vec::new(), true, false));
        let mut passing = SendHalf::passing_from(Arrived { bytes: 100, fin: false }, 0);
        passing.push(vec![7; 5].into());
        assert_eq!(emit(&mut passing, 1 << 20), data(Vec::new(), false, true));
        assert!(passing.credit(100, 103));
        assert_eq!(emit(&mut passing, 1 << 20), data(vec![7; 3], false, true));
    }

    #[test]
    fn no_more_than_the_limit_is_sent_and_blocked_is_said_once() {
        let mut half = SendHalf::new(true);
        half.push(vec![7; FLOOR as usize + 5].into());
        assert_eq!(emit(&mut half, 1 << 20), data(vec![7; MAX_PAYLOAD], false, false));
        assert_eq!(emit(&mut half, 1 << 20), data(vec![7; FLOOR as usize - MAX_PAYLOAD], false, true));
        assert_eq!(emit(&mut half, 1 << 20), None);
        assert!(half.credit(0, FLOOR + 2));
        assert_eq!(emit(&mut half, 1 << 20), data(vec![7; 2], false, true));
        half.finish();
        assert!(half.credit(0, FLOOR + 100));
        assert_eq!(emit(&mut half, 1 << 20), data(vec![7; 3], true, false));
        assert!(!half.is_ready() && !half.is_done());
        assert!(half.credit(FLOOR + 6, FLOOR + 100));
        assert!(half.is_done());
        assert_eq!(half.held(), 0);
    }

    #[test]
    fn bytes_written_after_the_limit_was_used_up_say_blocked_too() {
        let mut half = SendHalf::new(true);
        half.push(vec![7; FLOOR as usize].into());
        while emit(&mut half, 1 << 20).is_some() {}
        half.push(Bytes::from_static(b"x"));
        assert_eq!(emit(&mut half, 1 << 20), data(vec![], false, true));
        assert_eq!(emit(&mut half, 1 << 20), None);
    }

    #[test]
    fn what_was_received_is_forgotten_and_nothing_else() {
        let mut half = SendHalf::new(true);
        half.push(Bytes::from_static(b"abc"));
        half.push(Bytes::from_static(b"def"));
        assert_eq!(emit(&mut half, 100), data(b"abcdef".to_vec(), false, false));
        assert!(half.credit(4, FLOOR));
        assert_eq!(half.held(), 2);
        assert_eq!(half.retained.clone().pop(9).unwrap(), "ef");
        assert!(!half.credit(7, FLOOR));
        assert!(half.credit(2, 0));
        assert_eq!(half.held(), 2);
    }

    #[test]
    fn what_did_not_arrive_is_sent_again_elsewhere() {
        let mut half = SendHalf::new(true);
        half.push(Bytes::from_static(b"abcdef"));
        half.finish();
        assert_eq!(emit(&mut half, 4), data(b"abcd".to_vec(), false, false));
        assert!(half.credit(1, FLOOR));
        let at = |bytes, fin| Arrived { bytes, fin };
        assert!(!half.rewind(at(0, false), FLOOR), "forgotten");
        assert!(!half.rewind(at(5, false), FLOOR), "never sent");
        assert!(!half.rewind(at(4, true), FLOOR), "no end was sent");
        assert!(half.rewind(at(2, false), 4));
        assert_eq!(emit(&mut half, 9), data(b"cd".to_vec(), false, true));
        assert!(half.credit(4, FLOOR));
        assert_eq!(emit(&mut half, 9), data(b"ef".to_vec(), true, false));
        assert!(half.rewind(at(6, false), FLOOR), "the end alone was lost");
        assert_eq!(emit(&mut half, 9), data(vec![], true, false));
        assert!(half.rewind(at(6, true), FLOOR));
        assert!(half.is_done() && !half.is_ready());
    }

    #[test]
    fn an_end_alone_is_an_empty_frame() {
        let mut half = SendHalf::new(false);
        half.finish();
        assert_eq!(emit(&mut half, 100), data(vec![], true, false));
        assert_eq!(emit(&mut half, 100), None);
        assert!(!half.credit(2, 0));
        assert!(half.credit(1, 0));
        assert!(half.is_done());
    }
}
