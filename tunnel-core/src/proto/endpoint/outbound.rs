//! What an endpoint sends, and when.

use std::time::Instant;

use bytes::BytesMut;

use super::{BATCH, Endpoint, SEND_QUEUE, Signal, stream::Phase};
use crate::proto::{
    Opened,
    frame::{self, Frame, StreamId},
    link::Violation,
};

impl<S: Signal> Endpoint<S> {
    /// Appends what can be sent now, at most about [`BATCH`] bytes. Control frames come first.
    /// Returns the bytes of stream payload among it.
    pub fn fill(&mut self, out: &mut BytesMut) -> usize {
        self.link.emit(out);
        while out.len() < BATCH
            && let Some(id) = self.link.next_dirty()
        {
            self.emit_control(id, out);
        }
        let mut payload = 0;
        while out.len() < BATCH
            && let Some(turn) = self.scheduler.turn()
        {
            let Some(stream) = self.streams.get_mut(&turn.stream) else {
                self.scheduler.remove(turn.stream);
                continue;
            };
            let used = stream.send.emit(out, turn.stream, turn.budget).unwrap_or(0);
            payload += used;
            // No clock is here, and the last bytes that came will do: beside bulk that is a moment ago.
            stream.turned(self.config.side.owns(turn.stream), used, self.link.last_inbound());
            if stream.send.sent() >= stream.bulk_at {
                self.bulk.extend(stream.became_bulk());
            }
            let more = stream.is_ready();
            if stream.send.queued() < SEND_QUEUE {
                stream.signal.writable();
            }
            self.scheduler.done(turn, used, more);
        }
        payload
    }

    fn emit_control(&mut self, id: StreamId, out: &mut BytesMut) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.dirty = false;
        match &stream.phase {
            Phase::Open(request) => {
                frame::encode(out, &Frame::Open { stream: id, payload: request.encode() });
                stream.phase = Phase::Live;
                if stream.is_ready() {
                    self.scheduler.activate(id, stream.share);
                }
            }
            Phase::Resume(request) => {
                frame::encode(out, &Frame::Resume { stream: id, payload: request.encode() });
                stream.phase = Phase::Resuming;
            }
            Phase::Resuming | Phase::Live | Phase::Parked => {}
        }
        if std::mem::take(&mut stream.detached) {
            frame::encode(out, &Frame::Detached { stream: id });
        } else if let Some((reason, detail)) = stream.reset.take() {
            frame::encode(out, &Frame::Reset { stream: id, reason, detail });
        } else if stream.ended.is_none() && stream.is_live() {
            if let Some(resumed) = stream.owes_resumed.take() {
                frame::encode(out, &Frame::Resumed { stream: id, payload: resumed.encode() });
                if stream.is_ready() {
                    self.scheduler.activate(id, stream.share);
                }
            }
            if std::mem::take(&mut stream.owes_opened) {
                let opened = Opened { instance: self.config.instance, limit: stream.receive.limit() };
                frame::encode(out, &Frame::Opened { stream: id, payload: opened.encode() });
            }
            if stream.receive.owes_credit() || stream.receive.owes_received() {
                let (received, limit) = stream.receive.credit();
                frame::encode(out, &Frame::Credit { stream: id, received, limit });
            }
        }
        self.forget_if_over(id);
    }

    /// Whether [`Endpoint::fill`] has something to append.
    pub fn has_output(&self) -> bool {
        self.link.has_output() || !self.scheduler.is_idle()
    }

    /// A batch with `payload` bytes of streams is in the kernel.
    pub fn on_written(&mut self, payload: usize, now: Instant) {
        if payload > 0 {
            self.link.progress(now);
        }
    }

    /// When [`Endpoint::tick`] must be called next.
    pub fn deadline(&self) -> Instant {
        let link = self.link.deadline(!self.streams.is_empty());
        self.received_due.map_or(link, |due| due.min(link))
    }

    /// Does what time asks for.
    ///
    /// # Errors
    /// If the peer is dead: the connection must be closed.
    pub fn tick(&mut self, now: Instant) -> Result<(), Violation> {
        if self.received_due.is_some_and(|due| due <= now) {
            self.received_due = None;
            for id in std::mem::take(&mut self.owing) {
                let Some(stream) = self.streams.get_mut(&id) else { continue };
                stream.owing = false;
                if stream.ended.is_none() && stream.receive.owes_received() {
                    self.mark(id);
                }
            }
        }
        self.link.tick(now, !self.streams.is_empty())
    }
}
