//! One end of a connection whose streams end here: the client's proxy, the agent.
//!
//! A state machine without IO and clock. Whoever drives it feeds frames to [`Endpoint::on_frame`], sends what
//! [`Endpoint::fill`] appends, and calls [`Endpoint::tick`] at [`Endpoint::deadline`]. The relay's counterpart is
//! [`super::leg`].

mod inbound;
mod lines;
mod outbound;
mod resume;
mod stream;

pub use resume::{Event, Moving, WasParked};

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;

use self::stream::{Phase, Stream};
use super::{
    CloseReason, OpenRequest, Opened,
    budget::Budgets,
    frame::StreamId,
    ledger::Ledger,
    link::{GoAway, Link},
    numbers::Numbers,
    receive::ReceiveHalf,
    schedule::Scheduler,
    tables::give_back,
};
use crate::ids::{InstanceId, StreamKey};

/// Bytes that the application may queue on a stream beyond what was sent.
pub const SEND_QUEUE: u64 = 128 * 1024;
/// A batch ends once it has this many bytes.
pub const BATCH: usize = 64 * 1024;
/// `received` reaches the sender within this time, so that it can forget.
pub const RECEIVED_WITHIN: Duration = Duration::from_secs(1);

/// Who dialled; decides the parity of stream ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Opens odd streams.
    Dialler,
    /// Opens even streams.
    Acceptor,
}

impl Side {
    /// The first stream id that this side opens.
    pub fn first(self) -> StreamId {
        match self {
            Self::Dialler => 1,
            Self::Acceptor => 2,
        }
    }

    /// Whether `stream` is one that this side opens.
    pub fn owns(self, stream: StreamId) -> bool {
        stream % 2 == self.first() % 2
    }
}

/// Limits and names of one endpoint.
#[derive(Clone, Debug)]
pub struct EndpointConfig {
    /// Who dialled.
    pub side: Side,
    /// Streams that may be open at once, both sides' together.
    pub max_streams: usize,
    /// What all connections of this process promise together.
    pub ledger: Ledger,
    /// This process, told in OPENED.
    pub instance: InstanceId,
    /// Spreads the pings of a fleet.
    pub jitter: u8,
}

/// Told when a stream can go on. The async layer keeps wakers in it; tests need nothing.
pub trait Signal: Default {
    /// Bytes, an end or an error can be read.
    fn readable(&mut self) {}
    /// Bytes can be written, or an error is there.
    fn writable(&mut self) {}
}

impl Signal for () {}

/// Why a stream ended other than by two clean ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stream ended: {}{}{detail}", reason.text(), if detail.is_empty() { "" } else { ": " })]
pub struct StreamError {
    /// Why.
    pub reason: CloseReason,
    /// A few words more, from the peer.
    pub detail: String,
}

/// What reading from a stream gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// This many bytes.
    Bytes(usize),
    /// The end: the peer sent FIN, and everything before it was read.
    End,
    /// Nothing now.
    Wait,
}

/// The state of one connection. See the module's text.
#[derive(Debug)]
pub struct Endpoint<S> {
    config: EndpointConfig,
    streams: HashMap<StreamId, Stream<S>>,
    numbers: Numbers,
    incoming: VecDeque<(StreamId, OpenRequest)>,
    scheduler: Scheduler,
    budgets: Budgets,
    link: Link,
    owing: Vec<StreamId>,
    received_due: Option<Instant>,
    control_in: VecDeque<Bytes>,
    goaway: Option<GoAway>,
    closed: Option<StreamError>,
    /// Kept streams that are over.
    over: Vec<StreamKey>,
    /// Kept streams that were parked.
    parked: Vec<WasParked>,
    /// Kept streams that became bulk.
    bulk: Vec<StreamKey>,
}

impl<S: Signal> Endpoint<S> {
    /// A connection that was established at `now`.
    pub fn new(config: EndpointConfig, now: Instant) -> Self {
        Self {
            numbers: Numbers::new(config.side, config.max_streams),
            link: Link::new(now, config.jitter),
            budgets: Budgets::new(config.ledger.clone()),
            config,
            streams: HashMap::new(),
            incoming: VecDeque::new(),
            scheduler: Scheduler::default(),
            owing: Vec::new(),
            received_due: None,
            control_in: VecDeque::new(),
            goaway: None,
            closed: None,
            over: Vec::new(),
            parked: Vec::new(),
            bulk: Vec::new(),
        }
    }

    /// Opens a stream; bytes may be written at once.
    ///
    /// # Errors
    /// If the connection is closed or going away, ids are used up, or too many streams are open.
    pub fn open(&mut self, mut request: OpenRequest) -> Result<StreamId, StreamError> {
        let refuse = |reason, detail: &str| Err(StreamError { reason, detail: detail.to_owned() });
        if let Some(closed) = &self.closed {
            return Err(closed.clone());
        }
        if let Some(goaway) = &self.goaway {
            return refuse(goaway.reason, "the peer takes no new streams");
        }
        if self.link.is_going() || !self.numbers.has_own() {
            return refuse(CloseReason::Draining, "this connection takes no new streams");
        }
        if self.numbers.is_full(self.streams.len()) {
            return refuse(CloseReason::LimitReached, "too many streams on this connection");
        }
        let id = self.numbers.take_own();
        let share = request.share;
        let receive = ReceiveHalf::new(self.budgets.of(share));
        request.limit = receive.limit();
        let mut stream = Stream::new(receive, share);
        stream.phase = Phase::Open(request);
        self.streams.insert(id, stream);
        self.mark(id);
        Ok(id)
    }

    /// The next stream that the peer opened.
    pub fn accept(&mut self) -> Option<(StreamId, OpenRequest)> {
        self.incoming.pop_front()
    }

    /// Queues bytes; takes as many as there is room for, 0 if the stream must wait.
    ///
    /// # Errors
    /// If the stream is over or its end was already queued.
    pub fn write(&mut self, id: StreamId, bytes: &[u8]) -> Result<usize, StreamError> {
        let stream = Self::live(&mut self.streams, id, &self.closed)?;
        if stream.send.is_finished() {
            return Err(StreamError { reason: CloseReason::DataAfterFin, detail: String::new() });
        }
        let room = SEND_QUEUE.saturating_sub(stream.send.queued()) as usize;
        let part = room.min(bytes.len());
        if part > 0 {
            stream.send.push(Bytes::copy_from_slice(&bytes[..part]));
            if stream.is_ready() {
                self.scheduler.activate(id, stream.share);
            }
        }
        Ok(part)
    }

    /// Queues the end.
    ///
    /// # Errors
    /// If the stream is over.
    pub fn finish(&mut self, id: StreamId) -> Result<(), StreamError> {
        let stream = Self::live(&mut self.streams, id, &self.closed)?;
        if !stream.send.is_finished() {
            stream.send.finish();
            if stream.is_ready() {
                self.scheduler.activate(id, stream.share);
            }
        }
        Ok(())
    }

    /// Reads into `out`.
    ///
    /// # Errors
    /// If the stream is over and its end did not come: what was read may be cut short.
    pub fn read(&mut self, id: StreamId, out: &mut [u8]) -> Result<Read, StreamError> {
        let Some(stream) = self.streams.get_mut(&id) else { return Err(gone(&self.closed)) };
        // What came whole stays readable, whatever happened to the stream since.
        if stream.receive.is_exhausted() {
            return Ok(Read::End);
        }
        let moved = stream.receive.read(out);
        if let (0, Some(ended)) = (moved, &stream.ended) {
            return Err(ended.clone());
        }
        if stream.ended.is_none() && stream.receive.owes_credit() {
            self.mark(id);
        }
        Ok(if moved == 0 { Read::Wait } else { Read::Bytes(moved) })
    }

    /// Where the async layer keeps its wakers.
    pub fn signal(&mut self, id: StreamId) -> Option<&mut S> {
        self.streams.get_mut(&id).map(|stream| &mut stream.signal)
    }

    /// OPENED, once it came.
    pub fn opened(&self, id: StreamId) -> Option<Opened> {
        self.streams.get(&id).and_then(|stream| stream.opened)
    }

    /// Bytes queued and not yet sent.
    pub fn unsent(&self, id: StreamId) -> u64 {
        self.streams.get(&id).map_or(0, |stream| stream.send.queued())
    }

    /// Ends a stream at once.
    pub fn reset(&mut self, id: StreamId, reason: CloseReason, detail: &str) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.ended.is_some() {
            return;
        }
        stream.end(StreamError { reason, detail: detail.to_owned() });
        if !stream.receive.is_finished() {
            stream.receive.discard();
        }
        self.scheduler.remove(id);
        match stream.phase {
            Phase::Resuming | Phase::Live if self.closed.is_none() => {
                stream.reset = Some((reason, detail.to_owned()));
                self.mark(id);
            }
            // The peer never heard of it, has forgotten it, or can't be told.
            _ => {
                stream.phase = Phase::Live;
                self.forget_if_over(id);
            }
        }
    }

    /// The application let go of a stream. Unless both ends are clean it is reset, but what was already finished
    /// is delivered first.
    pub fn release(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.released = true;
        if stream.ended.is_none() && !stream.send.is_finished() {
            self.reset(id, CloseReason::Cancelled, "");
        } else if stream.ended.is_none() {
            stream.receive.discard();
            if stream.receive.owes_credit() {
                self.mark(id);
            }
            self.end_half_closed(id);
        }
        self.forget_if_over(id);
    }

    /// A released stream whose bytes all arrived needs nothing more from the peer.
    fn end_half_closed(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get(&id)
            && stream.released
            && stream.send.is_done()
            && !stream.receive.is_finished()
        {
            self.reset(id, CloseReason::Cancelled, "");
        }
    }

    fn live<'a>(
        streams: &'a mut HashMap<StreamId, Stream<S>>,
        id: StreamId,
        closed: &Option<StreamError>,
    ) -> Result<&'a mut Stream<S>, StreamError> {
        let stream = streams.get_mut(&id).ok_or_else(|| gone(closed))?;
        match &stream.ended {
            Some(ended) => Err(ended.clone()),
            None => Ok(stream),
        }
    }

    fn mark(&mut self, id: StreamId) {
        // Nobody empties the list of a connection that is gone.
        if self.closed.is_none()
            && let Some(stream) = self.streams.get_mut(&id)
            && !stream.dirty
        {
            stream.dirty = true;
            self.link.mark(id);
        }
    }

    fn forget_if_over(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get(&id) else { return };
        // Nobody hears of what was received on a connection that is gone.
        let clean = stream.is_whole() && (self.closed.is_some() || !stream.receive.owes_received());
        let over = match &stream.ended {
            Some(_) => stream.reset.is_none() && !stream.dirty,
            None => clean && !stream.dirty,
        };
        if over && stream.released {
            self.over.extend(stream.kept_as);
            self.streams.remove(&id);
            give_back(&mut self.streams);
            self.scheduler.remove(id);
        }
    }

    /// From now on this side asks for a sign of life after so long without one while no stream is open. While
    /// one is, it is after 5 s, as before.
    pub fn keep_silent(&mut self, silence: Duration) {
        self.link.keep_silent(silence);
    }

    /// Asks for a sign of life now: a peer that gives none is dead 5 s later.
    pub fn check(&mut self, now: Instant) {
        self.link.check(now);
    }

    /// When bytes came last.
    pub fn last_inbound(&self) -> Instant {
        self.link.last_inbound()
    }

    /// The longest silence that was ended by asking for a sign of life, and that one came after.
    pub fn outlived(&self) -> Duration {
        self.link.outlived()
    }

    /// Queues a CONTROL message; false where too many wait.
    pub fn control(&mut self, payload: Bytes) -> bool {
        self.link.control(payload)
    }

    /// The next CONTROL message from the peer.
    pub fn next_control(&mut self) -> Option<Bytes> {
        self.control_in.pop_front()
    }

    /// Says that no new streams are taken; those that are open go on.
    pub fn go_away(&mut self, reason: CloseReason, delay: Duration, detail: &str) {
        self.link.goaway(self.numbers.highest_peer(), reason, delay, detail);
    }

    /// What the peer said in GOAWAY.
    pub fn peer_goaway(&self) -> Option<&GoAway> {
        self.goaway.as_ref()
    }

    /// The connection is gone: every stream that is not whole ends with this reason.
    pub fn close(&mut self, reason: CloseReason, detail: &str) {
        self.close_all(reason, detail, false);
    }

    /// The connection is gone, and not because this side wanted it: streams that can be kept are parked, the others
    /// end with this reason.
    pub fn close_and_park(&mut self, reason: CloseReason, detail: &str) {
        self.close_all(reason, detail, true);
    }

    fn close_all(&mut self, reason: CloseReason, detail: &str, park: bool) {
        if self.closed.is_some() {
            return;
        }
        let error = StreamError { reason, detail: detail.to_owned() };
        self.closed = Some(error.clone());
        for (id, _) in self.incoming.drain(..) {
            // Nobody took it, so nobody will let go of it.
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.released = true;
            }
        }
        for stream in self.streams.values_mut() {
            if park && stream.can_be_kept() {
                stream.park();
                self.parked.extend(stream.was_parked());
            } else if stream.kept_as.is_none() || !stream.is_whole() {
                stream.end(error.clone());
                stream.phase = Phase::Live;
            }
            stream.reset = None;
            stream.dirty = false;
        }
        self.scheduler = Scheduler::default();
        let over = &mut self.over;
        self.streams.retain(|_, stream| {
            let stays = !stream.released || matches!(stream.phase, Phase::Parked);
            if !stays {
                over.extend(stream.kept_as);
            }
            stays
        });
    }

    /// Why the connection is gone, once it is.
    pub fn closed(&self) -> Option<&StreamError> {
        self.closed.as_ref()
    }

    /// Streams that are open or not yet forgotten.
    pub fn stream_count(&self) -> usize {
        self.streams.len()
    }

    /// Bytes held for all streams: unread, unsent, and sent but not yet received.
    pub fn held(&self) -> u64 {
        self.streams.values().map(|stream| stream.send.held() + stream.receive.unread()).sum()
    }
}

fn gone(closed: &Option<StreamError>) -> StreamError {
    closed.clone().unwrap_or_else(|| StreamError {
        reason: CloseReason::Cancelled,
        detail: "the stream is over".into(),
    })
}

#[cfg(test)]
mod tests;
