//! Streams that have become bulk, and leave their connection for another while both stand (`docs/protocol.md`, "Lines").

use super::{Endpoint, Moving, Signal, StreamError, stream::Stream};
use crate::{
    ids::StreamKey,
    proto::{CloseReason, frame::StreamId},
};

impl<S: Signal> Stream<S> {
    /// Told once in the stream's life.
    pub(super) fn became_bulk(&mut self) -> Option<StreamKey> {
        self.bulk_at = u64::MAX;
        self.kept_as
    }

    /// Whether it gains by going on elsewhere: bytes may still flow, and both ends will know of it when it is asked for there.
    fn can_leave(&self) -> bool {
        let flows = !(self.send.is_finished() && self.receive.is_finished());
        self.is_live() && self.can_be_kept() && flows && !self.released
    }
}

impl<S: Signal> Endpoint<S> {
    /// [`Endpoint::take_bulk`] will name this kept stream, once, when it has carried so many bytes in one direction.
    pub fn tell_bulk(&mut self, id: StreamId, after: u64) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.bulk_at = after;
        }
    }

    /// The names of kept streams that became bulk since this was asked last.
    pub fn take_bulk(&mut self) -> Vec<StreamKey> {
        std::mem::take(&mut self.bulk)
    }

    /// Takes a stream out of its own accord, to put it into another endpoint by [`Endpoint::resume`]; the peer is told that it is
    /// detached, and waits for that. None where the stream is not kept, is on its way already, or is as good as over.
    pub fn leave(&mut self, id: StreamId) -> Option<Moving<S>> {
        if self.closed.is_some() || !self.streams.get(&id)?.can_leave() {
            return None;
        }
        let mut stream = self.streams.remove(&id)?;
        self.scheduler.remove(id);
        let mut stub = Self::stub();
        stub.end(StreamError { reason: CloseReason::Detached, detail: String::new() });
        stub.detached = true;
        self.streams.insert(id, stub);
        self.mark(id);
        stream.park();
        Some(Moving(stream))
    }
}
