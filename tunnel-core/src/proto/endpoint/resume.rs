//! Streams that outlive their connection (`docs/protocol.md`, "Resume").
//!
//! A stream that is *kept* is parked when its connection, or the one with its other half, ends: it can be read and written as before, and
//! sends nothing. Whoever drives the endpoints takes it out of one ([`Endpoint::detach`]) and puts it into another: the client by
//! [`Endpoint::resume`], the agent by [`Endpoint::accept_resume`] once the RESUME is found to be genuine.

use bytes::Bytes;

use super::{
    Endpoint, Signal, StreamError,
    stream::{Phase, Stream},
};
use crate::{
    ids::{InstanceId, StreamKey},
    proto::{
        CloseReason, ResumeRequest, Resumed, frame::StreamId, ledger::Ledger, link::Violation,
        receive::ReceiveHalf, resume::Claim,
    },
};

/// What a frame asks of whoever keeps streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer takes a stream up: [`Endpoint::accept_resume`] or [`Endpoint::refuse_resume`].
    Resume {
        /// Its id on this connection.
        stream: StreamId,
        /// Which stream, and the proof.
        request: ResumeRequest,
    },
    /// The answer to RESUME: [`Endpoint::resumed`] or, if the proof doesn't fit, [`Endpoint::reset`].
    Resumed {
        /// The stream's id on this connection.
        stream: StreamId,
        /// The name it is kept under.
        key: StreamKey,
        /// The answer.
        resumed: Resumed,
    },
}

/// A kept stream whose connection, or the one with its other half, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WasParked {
    /// The name it is kept under.
    pub key: StreamKey,
    /// How far it was: bytes that came, and own ones that the far endpoint is known to have; each direction's end is one more. Never falls.
    pub moved: u64,
}

/// A stream between two connections.
#[derive(Debug)]
pub struct Moving<S>(pub(super) Stream<S>);

impl<S: Signal> Endpoint<S> {
    /// From now on the stream is kept under this name when its connection ends. False where it is over already.
    pub fn keep(&mut self, id: StreamId, key: StreamKey) -> bool {
        match self.streams.get_mut(&id) {
            Some(stream) if stream.ended.is_none() && self.closed.is_none() => {
                stream.kept_as = Some(key);
                true
            }
            _ => false,
        }
    }

    /// The process that holds the stream's far end, seen from the client: our own, or what OPENED said.
    pub fn instance_of(&self, id: StreamId) -> Option<InstanceId> {
        if self.config.side.owns(id) {
            self.opened(id).map(|opened| opened.instance)
        } else {
            Some(self.config.instance)
        }
    }

    /// The names of kept streams that were forgotten since this was asked last: nobody needs them any more.
    pub fn take_over(&mut self) -> Vec<StreamKey> {
        std::mem::take(&mut self.over)
    }

    /// Kept streams that were parked since this was asked last.
    pub fn take_parked(&mut self) -> Vec<WasParked> {
        std::mem::take(&mut self.parked)
    }

    /// How far a kept stream is, if it waits to go on elsewhere.
    pub fn parked(&self, id: StreamId) -> Option<WasParked> {
        self.streams.get(&id).filter(|stream| matches!(stream.phase, Phase::Parked))?.was_parked()
    }

    /// Whether the stream waits to go on elsewhere.
    pub fn is_parked(&self, id: StreamId) -> bool {
        self.streams.get(&id).is_some_and(|stream| matches!(stream.phase, Phase::Parked))
    }

    /// Whether RESUME was asked for and is not answered.
    pub fn is_resuming(&self, id: StreamId) -> bool {
        self.streams.get(&id).is_some_and(|stream| {
            stream.ended.is_none() && matches!(stream.phase, Phase::Resume(_) | Phase::Resuming)
        })
    }

    pub(super) fn park(&mut self, id: StreamId) {
        self.scheduler.remove(id);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.park();
            self.parked.extend(stream.was_parked());
        }
    }

    pub(super) fn on_detached(&mut self, id: StreamId) -> Result<(), Violation> {
        if self.known(id)? {
            match self.streams.get(&id) {
                Some(stream) if matches!(stream.phase, Phase::Parked) => {}
                Some(stream) if stream.can_be_kept() => self.park(id),
                // Whole here; if its peer does not know that, it asks.
                Some(stream) if stream.kept_as.is_some() && stream.ended.is_none() => {}
                _ => return self.on_reset(id, CloseReason::Detached, String::new()),
            }
        }
        Ok(())
    }

    /// Takes a kept stream out, to put it into another endpoint or under another id of this one. A peer that still believes in
    /// it is told that it is gone here, and what it sends is passed over.
    pub fn detach(&mut self, id: StreamId) -> Option<Moving<S>> {
        // One that is whole here may not be so for its peer, which then asks for the news of that.
        let stream = self.streams.get(&id)?;
        if stream.kept_as.is_none() || stream.ended.is_some() {
            return None;
        }
        let mut stream = self.streams.remove(&id)?;
        self.scheduler.remove(id);
        if stream.is_live() && self.closed.is_none() {
            self.refuse(id, CloseReason::Detached, "the stream goes on elsewhere");
        }
        stream.park();
        Some(Moving(stream))
    }

    /// Takes a stream up on this connection.
    ///
    /// # Errors
    /// If this connection takes no streams: the stream is parked here, under that id.
    pub fn resume(&mut self, moving: Moving<S>, claim: &mut Claim) -> Result<StreamId, StreamId> {
        let Moving(mut stream) = moving;
        let taken = self.closed.is_none()
            && self.goaway.is_none()
            && !self.link.is_going()
            && self.numbers.has_own()
            && !self.numbers.is_full(self.streams.len());
        let id = self.numbers.take_own();
        if taken {
            let arrived = stream.receive.arrived();
            stream.phase = Phase::Resume(claim.ask(arrived, stream.receive.limit()));
        }
        self.streams.insert(id, stream);
        self.mark(id);
        if taken { Ok(id) } else { Err(id) }
    }

    pub(super) fn on_resume(&mut self, id: StreamId, payload: &Bytes) -> Result<Option<Event>, Violation> {
        self.check_new(id)?;
        let request = self.admitted(id, ResumeRequest::decode(payload));
        Ok(request.map(|request| Event::Resume { stream: id, request }))
    }

    /// The stream that RESUME names goes on here. False, and the stream ends, where the peer lacks what was forgotten.
    pub fn accept_resume(
        &mut self,
        id: StreamId,
        moving: Moving<S>,
        claim: &Claim,
        request: &ResumeRequest,
    ) -> bool {
        let Moving(mut stream) = moving;
        let fits = stream.send.rewind(request.arrived, request.limit);
        stream.share = request.share;
        stream.phase = Phase::Live;
        if fits {
            let arrived = stream.receive.arrived();
            stream.owes_resumed = Some(claim.answer(request, arrived, stream.receive.limit()));
        }
        self.streams.insert(id, stream);
        if fits {
            self.mark(id);
        } else {
            self.reset(id, CloseReason::Lost, "bytes are asked for that are gone");
        }
        fits
    }

    /// RESUME is refused.
    pub fn refuse_resume(&mut self, id: StreamId, reason: CloseReason, detail: &str) {
        self.refuse(id, reason, detail);
    }

    pub(super) fn on_resumed(&mut self, id: StreamId, payload: &[u8]) -> Result<Option<Event>, Violation> {
        if !self.known(id)? {
            return Ok(None);
        }
        let Some(stream) = self.streams.get(&id) else { return Ok(None) };
        if stream.ended.is_some() {
            return Ok(None);
        }
        match (&stream.phase, stream.kept_as, Resumed::decode(payload)) {
            (Phase::Resuming, Some(key), Ok(resumed)) => {
                return Ok(Some(Event::Resumed { stream: id, key, resumed }));
            }
            (Phase::Resuming, _, Err(error)) => {
                self.reset(id, CloseReason::FrameMalformed, &error.to_string());
            }
            _ => self.reset(id, CloseReason::FrameMalformed, "RESUMED without RESUME"),
        }
        Ok(None)
    }

    /// The answer to RESUME is the far endpoint's. False, and the stream ends, where that lacks what was forgotten.
    pub fn resumed(&mut self, id: StreamId, resumed: &Resumed) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else { return false };
        if !matches!(stream.phase, Phase::Resuming) || stream.ended.is_some() {
            return false;
        }
        if !stream.send.rewind(resumed.arrived, resumed.limit) {
            self.reset(id, CloseReason::Lost, "bytes are asked for that are gone");
            return false;
        }
        stream.phase = Phase::Live;
        if stream.is_ready() {
            self.scheduler.activate(id, stream.share);
        }
        self.mark(id);
        self.end_half_closed(id);
        self.forget_if_over(id);
        true
    }

    /// The time is over of a stream that waits to go on elsewhere. False where it goes on by now.
    pub fn give_up(&mut self, id: StreamId, reason: CloseReason, detail: &str) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else { return true };
        match stream.phase {
            _ if stream.ended.is_some() => {}
            Phase::Parked => {
                stream.phase = Phase::Live;
                stream.end(StreamError { reason, detail: detail.to_owned() });
                self.forget_if_over(id);
            }
            Phase::Resume(_) | Phase::Resuming => self.reset(id, reason, detail),
            Phase::Open(_) | Phase::Live => return false,
        }
        true
    }

    /// A stream that is only there to say its RESET.
    pub(super) fn stub() -> Stream<S> {
        let mut stream = Stream::new(ReceiveHalf::new(Ledger::new(0)), 0);
        stream.released = true;
        stream
    }
}
