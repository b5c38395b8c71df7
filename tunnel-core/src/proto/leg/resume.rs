//! Streams that are taken up again, as the relay sees them (`docs/protocol.md`, "Resume").
//!
//! The relay keeps nothing of a stream whose connection is gone. A RESUME makes a new entry whose offsets begin where the two endpoints say.

use bytes::Bytes;

use super::{Answer, Begin, Leg, LegEvent, PEERS_OWN, Stream};
use crate::proto::{
    CloseReason, ResumeRequest, Resumed, frame::StreamId, ledger::Ledger, link::Violation, resume::Arrived,
    send::SendHalf,
};

impl<R> Stream<R> {
    /// This leg's peer has been told all that its far endpoint has `arrived`, and goes on from there, up to `far_limit` and the
    /// relay's allowance. Returns up to where that is.
    fn go_on_from(&mut self, arrived: Arrived, far_limit: u64) -> u64 {
        self.arrived = arrived.bytes;
        self.passed = arrived.bytes;
        self.fin_arrived = arrived.fin;
        self.far_received = arrived.with_fin();
        self.told_received = self.far_received;
        // A peer may say anything: nothing is to be allowed before what arrived.
        self.far_limit = far_limit.max(arrived.bytes);
        self.advertised = self.reach();
        self.advertised
    }
}

impl<R: Clone> Leg<R> {
    pub(super) fn on_resume(
        &mut self,
        id: StreamId,
        payload: &Bytes,
    ) -> Result<Option<LegEvent<R>>, Violation> {
        self.check_new(id)?;
        let Some(request) = self.admitted(id, ResumeRequest::decode(payload)) else { return Ok(None) };
        let mut stream = Self::stream(request.share, self.budgets.of(PEERS_OWN));
        stream.send = SendHalf::passing_from(request.arrived, request.limit);
        // Nothing may come before RESUMED was passed on.
        stream.resuming = true;
        self.streams.insert(id, stream);
        Ok(Some(LegEvent::Resume { stream: id, request }))
    }

    pub(super) fn on_resumed(
        &mut self,
        id: StreamId,
        payload: &[u8],
    ) -> Result<Option<LegEvent<R>>, Violation> {
        let Some(stream) = Self::live(&mut self.streams, &self.numbers, id)? else { return Ok(None) };
        match Resumed::decode(payload) {
            Ok(resumed) if self.config.side.owns(id) && std::mem::take(&mut stream.resuming) => {
                stream.send = SendHalf::passing_from(resumed.arrived, resumed.limit);
                let event = stream.to.clone().map(|to| LegEvent::Resumed { to, resumed });
                // Both directions may have been whole before.
                self.forget_if_over(id);
                Ok(event)
            }
            Ok(_) => Ok(self.fail(id, CloseReason::FrameMalformed, "RESUMED without RESUME")),
            Err(error) => Ok(self.fail(id, CloseReason::FrameMalformed, &error.to_string())),
        }
    }

    /// Asks this leg's peer to take a stream up, whose other half is `to`.
    ///
    /// # Errors
    /// If this leg takes no new streams.
    pub fn resume(&mut self, request: ResumeRequest, to: R) -> Result<StreamId, CloseReason> {
        self.resume_for(None, request, to)
    }

    /// The same for a user, as [`Leg::open_for`].
    ///
    /// # Errors
    /// If this leg takes no new streams.
    pub fn resume_for(
        &mut self,
        user: Option<&Ledger>,
        mut request: ResumeRequest,
        to: R,
    ) -> Result<StreamId, CloseReason> {
        self.begin(user, request.share, to, |stream| {
            request.limit = stream.go_on_from(request.arrived, request.limit);
            stream.resuming = true;
            Begin::Resume(request)
        })
    }

    /// The far endpoint goes on with the stream that this leg's peer took up.
    pub fn resumed(&mut self, id: StreamId, mut resumed: Resumed) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.ended {
            return;
        }
        stream.resuming = false;
        resumed.limit = stream.go_on_from(resumed.arrived, resumed.limit);
        stream.answer = Some(Box::new(Answer::Resumed(resumed)));
        self.mark(id);
    }

    /// The other half of a stream is gone: this leg's peer may take the stream up again.
    pub fn detach(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.ended {
            return;
        }
        stream.ended = true;
        stream.to = None;
        stream.send = SendHalf::new(false);
        self.scheduler.remove(id);
        match stream.begin.take() {
            // The peer never heard of it.
            Some(_) => self.forget_if_over(id),
            None => {
                stream.detached = true;
                self.mark(id);
            }
        }
    }
}
