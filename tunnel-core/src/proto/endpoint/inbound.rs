//! What an endpoint does with the frames that come.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{
    Endpoint, Event, RECEIVED_WITHIN, Signal, StreamError,
    stream::{Phase, Stream},
};
use crate::{
    backoff::MAX_HINT,
    proto::{
        CloseReason, OpenRequest, Opened,
        fields::FieldError,
        frame::{Frame, StreamId},
        link::{GoAway, MAX_CONTROL, Violation},
        receive::ReceiveHalf,
    },
};

impl<S: Signal> Endpoint<S> {
    /// Bytes came that were `waited` for since the last ones, or all the time since; perhaps less than a frame: on a slow line one frame
    /// takes longer than silence may last.
    pub fn inbound(&mut self, now: Instant, waited: Option<Duration>) {
        self.link.inbound(now, waited);
    }

    /// Takes one frame from the peer. An event that comes of it must be answered before the next frame is taken.
    ///
    /// # Errors
    /// If the frame breaks the connection's rules: the connection must be closed with that reason.
    pub fn on_frame(&mut self, frame: Frame, now: Instant) -> Result<Option<Event>, Violation> {
        self.link.inbound(now, None);
        match frame {
            Frame::Open { stream, payload } => self.on_open(stream, &payload)?,
            Frame::Data { stream, payload, fin, blocked } => {
                self.on_data(stream, payload, fin, blocked, now)?;
            }
            Frame::Credit { stream, received, limit } => self.on_credit(stream, received, limit)?,
            Frame::Opened { stream, payload } => self.on_opened(stream, &payload)?,
            Frame::Reset { stream, reason, detail } => self.on_reset(stream, reason, detail)?,
            Frame::Detached { stream } => self.on_detached(stream)?,
            Frame::Resume { stream, payload } => return self.on_resume(stream, &payload),
            Frame::Resumed { stream, payload } => return self.on_resumed(stream, &payload),
            Frame::Ping { token } => self.link.ping(token),
            Frame::Pong { .. } | Frame::Ignored => {}
            Frame::GoAway { last, reason, delay_ms, detail } => {
                let delay = Duration::from_millis(delay_ms.into()).min(MAX_HINT);
                self.on_goaway(GoAway { last, reason, delay, detail });
            }
            Frame::Control { payload } => {
                if self.control_in.len() >= MAX_CONTROL {
                    return Err(Violation::new(CloseReason::LimitReached, "too many CONTROL messages"));
                }
                self.control_in.push_back(payload);
            }
        }
        Ok(None)
    }

    pub(super) fn check_new(&mut self, id: StreamId) -> Result<(), Violation> {
        self.numbers.take_peers(id, self.streams.len())
    }

    /// Whether there is such a stream; one that is over is no violation.
    pub(super) fn known(&self, id: StreamId) -> Result<bool, Violation> {
        if self.streams.contains_key(&id) { Ok(true) } else { self.numbers.was(id).map(|()| false) }
    }

    pub(super) fn refuse(&mut self, id: StreamId, reason: CloseReason, detail: &str) {
        self.streams.insert(id, Self::stub());
        self.reset(id, reason, detail);
    }

    fn on_open(&mut self, id: StreamId, payload: &Bytes) -> Result<(), Violation> {
        self.check_new(id)?;
        let Some(request) = self.admitted(id, OpenRequest::decode(payload)) else { return Ok(()) };
        let mut stream = Stream::new(ReceiveHalf::new(self.budgets.of(request.share)), request.share);
        stream.send.raise_limit(request.limit);
        stream.owes_opened = true;
        self.streams.insert(id, stream);
        self.mark(id);
        self.incoming.push_back((id, request));
        Ok(())
    }

    /// What the peer wants with a new stream, unless it is refused.
    pub(super) fn admitted<T>(&mut self, id: StreamId, wanted: Result<T, FieldError>) -> Option<T> {
        let admitted = self.numbers.admit(wanted, self.streams.len(), &self.link);
        admitted.map_err(|(reason, detail)| self.refuse(id, reason, &detail)).ok()
    }

    fn on_opened(&mut self, id: StreamId, payload: &[u8]) -> Result<(), Violation> {
        if !self.known(id)? {
            return Ok(());
        }
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        match Opened::decode(payload) {
            Ok(opened) if self.config.side.owns(id) && stream.opened.is_none() => {
                stream.opened = Some(opened);
                self.limit_raised(id, 0, opened.limit)
            }
            Ok(_) => {
                self.reset(id, CloseReason::FrameMalformed, "OPENED was not expected");
                Ok(())
            }
            Err(error) => {
                self.reset(id, CloseReason::FrameMalformed, &error.to_string());
                Ok(())
            }
        }
    }

    fn on_data(
        &mut self,
        id: StreamId,
        payload: Bytes,
        fin: bool,
        blocked: bool,
        now: Instant,
    ) -> Result<(), Violation> {
        if !self.known(id)? {
            return Ok(());
        }
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        match stream.phase {
            _ if stream.ended.is_some() => return Ok(()),
            Phase::Live => {}
            // On its way when the other half went.
            Phase::Parked => return Ok(()),
            Phase::Open(_) | Phase::Resume(_) | Phase::Resuming => {
                self.reset(id, CloseReason::FrameMalformed, "DATA before RESUMED");
                return Ok(());
            }
        }
        let bytes = payload.len();
        self.link.brought(bytes);
        if let Err(reason) = stream.receive.data(payload, fin) {
            self.reset(id, reason, "");
            return Ok(());
        }
        if blocked {
            stream.receive.blocked(self.link.tally(), self.budgets.tuning(stream.share));
        }
        stream.turned(!self.config.side.owns(id), bytes, now);
        if stream.receive.received() >= stream.bulk_at {
            self.bulk.extend(stream.became_bulk());
        }
        stream.signal.readable();
        if stream.receive.owes_credit() {
            self.mark(id);
        } else if stream.receive.owes_received() && !stream.owing {
            stream.owing = true;
            self.owing.push(id);
            self.received_due.get_or_insert(now + RECEIVED_WITHIN);
        }
        Ok(())
    }

    fn on_credit(&mut self, id: StreamId, received: u64, limit: u64) -> Result<(), Violation> {
        if self.known(id)? { self.limit_raised(id, received, limit) } else { Ok(()) }
    }

    fn limit_raised(&mut self, id: StreamId, received: u64, limit: u64) -> Result<(), Violation> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        if stream.ended.is_some() || !stream.is_live() {
            return Ok(());
        }
        if !stream.send.credit(received, limit) {
            self.reset(id, CloseReason::FrameMalformed, "received more than was sent");
            return Ok(());
        }
        if stream.is_ready() {
            self.scheduler.activate(id, stream.share);
        }
        self.end_half_closed(id);
        self.forget_if_over(id);
        Ok(())
    }

    pub(super) fn on_reset(
        &mut self,
        id: StreamId,
        reason: CloseReason,
        detail: String,
    ) -> Result<(), Violation> {
        if !self.known(id)? {
            return Ok(());
        }
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        match stream.phase {
            // What was refused may be granted later, or by another relay.
            Phase::Resuming if reason.may_pass() && stream.can_be_kept() => {
                self.park(id);
                return Ok(());
            }
            Phase::Parked => return Ok(()),
            _ => {}
        }
        stream.reset = None;
        stream.end(StreamError { reason, detail });
        self.scheduler.remove(id);
        self.forget_if_over(id);
        Ok(())
    }

    fn on_goaway(&mut self, goaway: GoAway) {
        let beyond: Vec<StreamId> = self
            .streams
            .keys()
            .copied()
            .filter(|id| self.config.side.owns(*id) && *id > goaway.last)
            .collect();
        for id in beyond {
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            if matches!(stream.phase, Phase::Resume(_) | Phase::Resuming) && stream.can_be_kept() {
                self.park(id);
            } else if stream.ended.is_none() && !matches!(stream.phase, Phase::Parked) {
                stream.phase = Phase::Live;
                stream.end(StreamError { reason: goaway.reason, detail: goaway.detail.clone() });
                self.scheduler.remove(id);
                self.forget_if_over(id);
            }
        }
        self.goaway = Some(goaway);
    }
}
