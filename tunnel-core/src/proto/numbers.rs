//! Which stream ids a connection's two sides have used: each side's own parity, rising, never again the same.

use super::{
    CloseReason,
    endpoint::Side,
    fields::FieldError,
    frame::StreamId,
    link::{Link, Violation},
};

/// The ids of one connection.
#[derive(Debug)]
pub(super) struct Numbers {
    side: Side,
    /// Streams that may be open at once.
    max_streams: usize,
    next_own: StreamId,
    highest_peer: StreamId,
}

impl Numbers {
    /// None used yet.
    pub(super) fn new(side: Side, max_streams: usize) -> Self {
        Self { side, max_streams, next_own: side.first(), highest_peer: 0 }
    }

    /// Whether this side has ids left.
    pub(super) fn has_own(&self) -> bool {
        self.next_own <= u32::MAX - 2
    }

    /// The next id of this side.
    pub(super) fn take_own(&mut self) -> StreamId {
        let id = self.next_own;
        self.next_own = self.next_own.saturating_add(2);
        id
    }

    /// The highest id that the peer has used.
    pub(super) fn highest_peer(&self) -> StreamId {
        self.highest_peer
    }

    /// Whether no further stream may be open beside `open`.
    pub(super) fn is_full(&self, open: usize) -> bool {
        open >= self.max_streams
    }

    /// A stream that the peer opens, beside `open` others, must have its parity and rise.
    pub(super) fn take_peers(&mut self, id: StreamId, open: usize) -> Result<(), Violation> {
        if self.side.owns(id) || id <= self.highest_peer {
            return Err(Violation::new(CloseReason::StreamIdInvalid, format!("stream {id} can't be opened")));
        }
        if open >= self.max_streams.saturating_mul(2) {
            return Err(Violation::new(CloseReason::LimitReached, "streams are opened faster than refused"));
        }
        self.highest_peer = id;
        Ok(())
    }

    /// What the peer wants with a new stream beside `open` others; or why that is refused, and a few words.
    pub(super) fn admit<T>(
        &self,
        wanted: Result<T, FieldError>,
        open: usize,
        link: &Link,
    ) -> Result<T, (CloseReason, String)> {
        let wanted = wanted.map_err(|error| (CloseReason::FrameMalformed, error.to_string()))?;
        if link.is_going() {
            return Err((CloseReason::Draining, String::new()));
        }
        if self.is_full(open) {
            return Err((CloseReason::LimitReached, "too many streams on this connection".into()));
        }
        Ok(wanted)
    }

    /// Frames of streams that are over still arrive for a while; of streams that never were, they are a violation.
    pub(super) fn was(&self, id: StreamId) -> Result<(), Violation> {
        let was = if self.side.owns(id) { id < self.next_own } else { id <= self.highest_peer };
        if was {
            Ok(())
        } else {
            Err(Violation::new(CloseReason::StreamIdInvalid, format!("stream {id} was never opened")))
        }
    }
}
