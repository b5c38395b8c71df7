//! What a leg does with the frames that come.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{Leg, LegEvent, PEERS_OWN, Stream};
use crate::proto::{
    CloseReason, OpenRequest, Opened,
    fields::FieldError,
    frame::{Frame, StreamId},
    ledger::Ledger,
    link::{GoAway, Violation},
    numbers::Numbers,
    send::SendHalf,
};

impl<R: Clone> Leg<R> {
    /// Bytes came that were `waited` for since the last ones, or all the time since; perhaps less than a frame: on a slow line one frame
    /// takes longer than silence may last.
    pub fn inbound(&mut self, now: Instant, waited: Option<Duration>) {
        self.link.inbound(now, waited);
    }

    /// Takes one frame from the peer; what it means for another leg comes back.
    ///
    /// # Errors
    /// If the frame breaks the connection's rules: the connection must be closed with that reason.
    pub fn on_frame(&mut self, frame: Frame, now: Instant) -> Result<Option<LegEvent<R>>, Violation> {
        self.link.inbound(now, None);
        match frame {
            Frame::Open { stream, payload } => self.on_open(stream, &payload),
            Frame::Data { stream, payload, fin, blocked } => self.on_data(stream, payload, fin, blocked),
            Frame::Credit { stream, received, limit } => self.on_credit(stream, received, limit),
            Frame::Opened { stream, payload } => self.on_opened(stream, &payload),
            Frame::Reset { stream, reason, detail } => self.on_reset(stream, reason, detail),
            Frame::Detached { stream } => Ok(self.on_end(stream)?.map(|to| LegEvent::Detached { to })),
            Frame::Resume { stream, payload } => self.on_resume(stream, &payload),
            Frame::Resumed { stream, payload } => self.on_resumed(stream, &payload),
            Frame::Ping { token } => {
                self.link.ping(token);
                Ok(None)
            }
            Frame::Pong { .. } | Frame::Ignored => Ok(None),
            Frame::GoAway { last, reason, delay_ms, detail } => Ok(Some(LegEvent::GoAway(GoAway {
                last,
                reason,
                delay: Duration::from_millis(delay_ms.into()),
                detail,
            }))),
            Frame::Control { payload } => Ok(Some(LegEvent::Control(payload))),
        }
    }

    pub(super) fn check_new(&mut self, id: StreamId) -> Result<(), Violation> {
        self.numbers.take_peers(id, self.streams.len())
    }

    /// The stream, unless it is over.
    pub(super) fn live<'a>(
        streams: &'a mut HashMap<StreamId, Stream<R>>,
        numbers: &Numbers,
        id: StreamId,
    ) -> Result<Option<&'a mut Stream<R>>, Violation> {
        let Some(stream) = streams.get_mut(&id) else { return numbers.was(id).map(|()| None) };
        Ok(Some(stream).filter(|stream| !stream.ended))
    }

    fn refuse(&mut self, id: StreamId, reason: CloseReason, detail: &str) {
        self.streams.insert(id, Self::stream(0, Ledger::new(0)));
        self.reset(id, reason, detail);
    }

    /// This leg's peer broke a stream's rules: it is reset here, and on the other leg.
    pub(super) fn fail(&mut self, id: StreamId, reason: CloseReason, detail: &str) -> Option<LegEvent<R>> {
        let to = self.streams.get(&id).and_then(|stream| stream.to.clone());
        self.reset(id, reason, detail);
        to.map(|to| LegEvent::Reset { to, reason, detail: detail.to_owned() })
    }

    fn on_open(&mut self, id: StreamId, payload: &Bytes) -> Result<Option<LegEvent<R>>, Violation> {
        self.check_new(id)?;
        let Some(request) = self.admitted(id, OpenRequest::decode(payload)) else { return Ok(None) };
        let mut stream = Self::stream(request.share, self.budgets.of(PEERS_OWN));
        stream.send.raise_limit(request.limit);
        self.streams.insert(id, stream);
        Ok(Some(LegEvent::Open { stream: id, request }))
    }

    /// What this leg's peer wants with a new stream, unless it is refused.
    pub(super) fn admitted<T>(&mut self, id: StreamId, wanted: Result<T, FieldError>) -> Option<T> {
        let admitted = self.numbers.admit(wanted, self.streams.len(), &self.link);
        admitted.map_err(|(reason, detail)| self.refuse(id, reason, &detail)).ok()
    }

    fn on_opened(&mut self, id: StreamId, payload: &[u8]) -> Result<Option<LegEvent<R>>, Violation> {
        if Self::live(&mut self.streams, &self.numbers, id)?.is_none() {
            return Ok(None);
        }
        let opened = match Opened::decode(payload) {
            Ok(opened) if self.config.side.owns(id) => opened,
            Ok(_) => return Ok(self.fail(id, CloseReason::FrameMalformed, "OPENED was not expected")),
            Err(error) => return Ok(self.fail(id, CloseReason::FrameMalformed, &error.to_string())),
        };
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(None) };
        stream.send.raise_limit(opened.limit);
        if stream.send.is_ready() && stream.begin.is_none() {
            self.scheduler.activate(id, stream.share);
        }
        Ok(stream.to.clone().map(|to| LegEvent::Opened { to, opened }))
    }

    fn on_data(
        &mut self,
        id: StreamId,
        payload: Bytes,
        fin: bool,
        mut blocked: bool,
    ) -> Result<Option<LegEvent<R>>, Violation> {
        let Some(stream) = Self::live(&mut self.streams, &self.numbers, id)? else { return Ok(None) };
        let after = stream.arrived + payload.len() as u64;
        if stream.resuming {
            return Ok(self.fail(id, CloseReason::FrameMalformed, "DATA before RESUMED"));
        }
        if stream.fin_arrived {
            return Ok(self.fail(id, CloseReason::DataAfterFin, ""));
        }
        if after > stream.advertised {
            return Ok(self.fail(id, CloseReason::CreditExceeded, ""));
        }
        stream.arrived = after;
        stream.fin_arrived = fin;
        self.link.brought(payload.len());
        if !self.config.side.owns(id) && stream.turns.up(payload.len(), self.link.last_inbound()) {
            stream.allowance.interactive().note(self.link.last_inbound());
        }
        if blocked {
            let ours = stream.passed + stream.allowance.size();
            // Where our own clamp is what holds the sender back, there is nothing to ask of the far end.
            blocked = ours >= stream.far_limit;
            // Where it would be the next to do so, it grows along: not one after the other, a round trip each.
            let far_window = stream.far_limit.saturating_sub(stream.far_received);
            if !blocked || stream.allowance.size() <= far_window {
                let user = if self.config.side.owns(id) { stream.share } else { PEERS_OWN };
                let (tally, tuning) = (self.link.tally(), self.budgets.tuning(user));
                if stream.allowance.blocked(after, stream.advertised, 0, tally, tuning) {
                    self.renew(id, false);
                }
            }
        }
        let Some(to) = self.streams.get(&id).and_then(|stream| stream.to.clone()) else { return Ok(None) };
        Ok(Some(LegEvent::Data { to, payload, fin, blocked }))
    }

    fn on_credit(
        &mut self,
        id: StreamId,
        received: u64,
        limit: u64,
    ) -> Result<Option<LegEvent<R>>, Violation> {
        let Some(stream) = Self::live(&mut self.streams, &self.numbers, id)? else { return Ok(None) };
        if !stream.send.credit(received, limit) {
            return Ok(self.fail(id, CloseReason::FrameMalformed, "received more than was sent"));
        }
        stream.peer_received = stream.peer_received.max(received);
        if stream.send.is_ready() && stream.begin.is_none() {
            self.scheduler.activate(id, stream.share);
        }
        let event = stream.to.clone().map(|to| LegEvent::Credit { to, received, limit });
        self.forget_if_over(id);
        Ok(event)
    }

    fn on_reset(
        &mut self,
        id: StreamId,
        reason: CloseReason,
        detail: String,
    ) -> Result<Option<LegEvent<R>>, Violation> {
        Ok(self.on_end(id)?.map(|to| LegEvent::Reset { to, reason, detail }))
    }

    /// The peer has done with a stream. Returns where it went on.
    fn on_end(&mut self, id: StreamId) -> Result<Option<R>, Violation> {
        let Some(stream) = self.streams.get_mut(&id) else { return self.numbers.was(id).map(|()| None) };
        self.scheduler.remove(id);
        // Kept while it stands in the link's list: otherwise that list would grow with each stream that comes and goes
        // while the writer stands still.
        stream.ended = true;
        stream.begin = None;
        stream.reset = None;
        stream.send = SendHalf::new(false);
        let to = stream.to.take();
        self.forget_if_over(id);
        Ok(to)
    }
}
