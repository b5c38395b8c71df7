//! What a leg sends, and when.

use std::time::Instant;

use bytes::BytesMut;

use super::{Answer, Begin, Leg, Progress};
use crate::proto::{
    endpoint::BATCH,
    frame::{self, Frame, StreamId},
    link::Violation,
};

impl<R: Clone> Leg<R> {
    /// Appends what can be sent now, at most about [`BATCH`] bytes; control frames come first. How far streams were
    /// written on is pushed to `progress`. Returns the bytes of stream payload.
    pub fn fill(&mut self, out: &mut BytesMut, progress: &mut Vec<Progress<R>>) -> usize {
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
            let more = stream.send.is_ready();
            if let (true, Some(to)) = (used > 0, stream.to.clone()) {
                progress.push(Progress { to, written: stream.send.sent() });
            }
            self.scheduler.done(turn, used, more);
        }
        payload
    }

    fn emit_control(&mut self, id: StreamId, out: &mut BytesMut) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.dirty = false;
        match stream.begin.take().map(|begin| *begin) {
            Some(Begin::Open(request)) => {
                frame::encode(out, &Frame::Open { stream: id, payload: request.encode() });
                if stream.send.is_ready() {
                    self.scheduler.activate(id, stream.share);
                }
            }
            Some(Begin::Resume(request)) => {
                frame::encode(out, &Frame::Resume { stream: id, payload: request.encode() });
            }
            None => {}
        }
        if std::mem::take(&mut stream.detached) {
            frame::encode(out, &Frame::Detached { stream: id });
        } else if let Some((reason, detail)) = stream.reset.take().map(|reset| *reset) {
            frame::encode(out, &Frame::Reset { stream: id, reason, detail });
        } else if !stream.ended {
            match stream.answer.take().map(|answer| *answer) {
                Some(Answer::Opened(opened)) => {
                    frame::encode(out, &Frame::Opened { stream: id, payload: opened.encode() });
                }
                Some(Answer::Resumed(resumed)) => {
                    frame::encode(out, &Frame::Resumed { stream: id, payload: resumed.encode() });
                }
                None => {}
            }
            if std::mem::take(&mut stream.owes_credit) {
                stream.advertised = stream.advertised.max(stream.reach());
                stream.allowance.settle(stream.advertised - stream.passed.min(stream.advertised));
                stream.told_received = stream.far_received;
                let (received, limit) = (stream.told_received, stream.advertised);
                frame::encode(out, &Frame::Credit { stream: id, received, limit });
            }
        }
        self.forget_if_over(id);
    }

    /// Whether [`Leg::fill`] has something to append.
    pub fn has_output(&self) -> bool {
        self.link.has_output() || !self.scheduler.is_idle()
    }

    /// A batch with `payload` bytes of streams is in the kernel.
    pub fn on_written(&mut self, payload: usize, now: Instant) {
        if payload > 0 {
            self.link.progress(now);
        }
    }

    /// When [`Leg::tick`] must be called next.
    pub fn deadline(&self) -> Instant {
        self.link.deadline(!self.streams.is_empty())
    }

    /// Does what time asks for.
    ///
    /// # Errors
    /// If the peer is dead: the connection must be closed.
    pub fn tick(&mut self, now: Instant) -> Result<(), Violation> {
        self.link.tick(now, !self.streams.is_empty())
    }
}
