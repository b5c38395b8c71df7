//! One connection at the relay: streams pass through to another leg, as table entries without a task or a channel.
//!
//! A state machine without IO and clock, as [`super::endpoint`]. The relay feeds frames to [`Leg::on_frame`], carries
//! the [`LegEvent`] that comes of one to the leg that it names, and sends what [`Leg::fill`] appends. `R` says where
//! a stream goes on: the other leg and the stream's id there. No method calls another leg, so whoever drives two
//! never needs the locks of both at once.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};

use super::{
    CloseReason, OpenRequest, Opened,
    endpoint::{BATCH, Side},
    frame::{self, Frame, StreamId},
    ledger::Ledger,
    link::{GoAway, Link, Violation},
    schedule::Scheduler,
    send::{FLOOR, SendHalf},
};

/// How far the relay lets a sender run ahead of what it has written on, while the ledger allows.
pub const INITIAL_ALLOWANCE: u64 = 256 * 1024;
/// The largest such allowance.
pub const MAX_ALLOWANCE: u64 = 4 * 1024 * 1024;

/// Limits of one leg.
#[derive(Clone, Debug)]
pub struct LegConfig {
    /// Who dialled. The relay is the acceptor of nearly all its connections.
    pub side: Side,
    /// Streams that may be open at once.
    pub max_streams: usize,
    /// What the relay promises in all.
    pub ledger: Ledger,
    /// Spreads the pings of a fleet.
    pub jitter: u8,
}

/// What a frame on one leg means for another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LegEvent<R> {
    /// The peer wants a stream. Answer with [`Leg::bind`] or [`Leg::reset`] before the next frame is taken.
    Open {
        /// Its id on this leg.
        stream: StreamId,
        /// What it asks for.
        request: OpenRequest,
    },
    /// The far endpoint has the stream: [`Leg::opened`] on the other leg.
    Opened {
        /// The other leg.
        to: R,
        /// The answer.
        opened: Opened,
    },
    /// Bytes: [`Leg::forward`] on the other leg.
    Data {
        /// The other leg.
        to: R,
        /// The bytes.
        payload: Bytes,
        /// Nothing follows.
        fin: bool,
        /// The sender waits for credit that only the far endpoint can give.
        blocked: bool,
    },
    /// Credit: [`Leg::credit`] on the other leg.
    Credit {
        /// The other leg.
        to: R,
        /// Contiguous bytes in the far endpoint's memory.
        received: u64,
        /// Offset up to which the far endpoint takes bytes.
        limit: u64,
    },
    /// The end: [`Leg::reset`] on the other leg.
    Reset {
        /// The other leg.
        to: R,
        /// Why.
        reason: CloseReason,
        /// A few words more.
        detail: String,
    },
    /// A message for the relay itself.
    Control(Bytes),
    /// The peer takes no new streams.
    GoAway(GoAway),
}

/// How far a leg has written a stream on: [`Leg::passed`] on the other leg.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress<R> {
    /// The other leg.
    pub to: R,
    /// Bytes written on since the stream's begin.
    pub written: u64,
}

/// A stream as one leg sees it.
#[derive(Debug)]
struct Stream<R> {
    to: Option<R>,
    share: u64,
    /// Bytes going out on this leg.
    send: SendHalf,
    /// Bytes that came in on this leg.
    arrived: u64,
    fin_arrived: bool,
    /// Offset up to which this leg's peer was told that it may send.
    advertised: u64,
    /// Offset up to which the far endpoint takes bytes.
    far_limit: u64,
    /// Bytes that the other leg has written on.
    passed: u64,
    allowance: u64,
    /// `received` of the far endpoint, and as last told.
    far_received: u64,
    told_received: u64,
    /// `received` of this leg's own peer, for the bytes that go out here.
    peer_received: u64,
    owes_credit: bool,
    open: Option<OpenRequest>,
    opened: Option<Opened>,
    reset: Option<(CloseReason, String)>,
    ended: bool,
    dirty: bool,
    ledger: Ledger,
}

impl<R> Drop for Stream<R> {
    fn drop(&mut self) {
        self.ledger.release(self.allowance - FLOOR);
    }
}

/// The state of one connection. See the module's text.
#[derive(Debug)]
pub struct Leg<R> {
    config: LegConfig,
    streams: HashMap<StreamId, Stream<R>>,
    next_own: StreamId,
    highest_peer: StreamId,
    scheduler: Scheduler,
    link: Link,
}

impl<R: Clone> Leg<R> {
    /// A connection that was established at `now`.
    pub fn new(config: LegConfig, now: Instant) -> Self {
        Self {
            next_own: config.side.first(),
            link: Link::new(now, config.jitter),
            config,
            streams: HashMap::new(),
            highest_peer: 0,
            scheduler: Scheduler::default(),
        }
    }

    fn stream(&self, share: u64, ledger: Ledger) -> Stream<R> {
        let allowance =
            if ledger.reserve(INITIAL_ALLOWANCE - FLOOR, true) { INITIAL_ALLOWANCE } else { FLOOR };
        Stream {
            to: None,
            share,
            send: SendHalf::new(false),
            arrived: 0,
            fin_arrived: false,
            advertised: FLOOR,
            far_limit: FLOOR,
            passed: 0,
            allowance,
            far_received: 0,
            told_received: 0,
            peer_received: 0,
            owes_credit: false,
            open: None,
            opened: None,
            reset: None,
            ended: false,
            dirty: false,
            ledger,
        }
    }

    /// Bytes came, perhaps less than a frame: on a slow line one frame takes longer than silence may last.
    pub fn inbound(&mut self, now: Instant) {
        self.link.inbound(now);
    }

    /// Takes one frame from the peer; what it means for another leg comes back.
    ///
    /// # Errors
    /// If the frame breaks the connection's rules: the connection must be closed with that reason.
    pub fn on_frame(&mut self, frame: Frame, now: Instant) -> Result<Option<LegEvent<R>>, Violation> {
        self.link.inbound(now);
        match frame {
            Frame::Open { stream, payload } => self.on_open(stream, &payload),
            Frame::Data { stream, payload, fin, blocked } => self.on_data(stream, payload, fin, blocked),
            Frame::Credit { stream, received, limit } => self.on_credit(stream, received, limit),
            Frame::Opened { stream, payload } => self.on_opened(stream, &payload),
            Frame::Reset { stream, reason, detail } => self.on_reset(stream, reason, detail),
            Frame::Detached { stream } => self.on_reset(stream, CloseReason::Detached, String::new()),
            Frame::Resume { stream, .. } => {
                // Nothing is kept for streams of other connections, so whatever is asked for is lost.
                self.check_new(stream)?;
                Ok(self.refuse(stream, CloseReason::Lost, ""))
            }
            Frame::Resumed { stream, .. } => {
                self.known(stream)?;
                Ok(self.fail(stream, CloseReason::FrameMalformed, "RESUMED without RESUME"))
            }
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

    fn check_new(&mut self, id: StreamId) -> Result<(), Violation> {
        if self.config.side.owns(id) || id <= self.highest_peer {
            return Err(Violation::new(CloseReason::StreamIdInvalid, format!("stream {id} can't be opened")));
        }
        if self.streams.len() >= self.config.max_streams.saturating_mul(2) {
            return Err(Violation::new(CloseReason::LimitReached, "streams are opened faster than refused"));
        }
        self.highest_peer = id;
        Ok(())
    }

    /// Frames of streams that are over still arrive for a while; of streams that never were, they are a violation.
    fn known(&self, id: StreamId) -> Result<bool, Violation> {
        if self.streams.contains_key(&id) {
            return Ok(true);
        }
        let was = if self.config.side.owns(id) { id < self.next_own } else { id <= self.highest_peer };
        if was {
            Ok(false)
        } else {
            Err(Violation::new(CloseReason::StreamIdInvalid, format!("stream {id} was never opened")))
        }
    }

    fn refuse(&mut self, id: StreamId, reason: CloseReason, detail: &str) -> Option<LegEvent<R>> {
        let stream = self.stream(0, Ledger::new(0));
        self.streams.insert(id, stream);
        self.reset(id, reason, detail);
        None
    }

    /// This leg's peer broke a stream's rules: it is reset here, and on the other leg.
    fn fail(&mut self, id: StreamId, reason: CloseReason, detail: &str) -> Option<LegEvent<R>> {
        let to = self.streams.get(&id).and_then(|stream| stream.to.clone());
        self.reset(id, reason, detail);
        to.map(|to| LegEvent::Reset { to, reason, detail: detail.to_owned() })
    }

    fn on_open(&mut self, id: StreamId, payload: &Bytes) -> Result<Option<LegEvent<R>>, Violation> {
        self.check_new(id)?;
        let request = match OpenRequest::decode(payload) {
            Ok(request) => request,
            Err(error) => return Ok(self.refuse(id, CloseReason::FrameMalformed, &error.to_string())),
        };
        if self.link.is_going() {
            return Ok(self.refuse(id, CloseReason::Draining, ""));
        }
        if self.streams.len() >= self.config.max_streams {
            return Ok(self.refuse(id, CloseReason::LimitReached, "too many streams on this connection"));
        }
        let mut stream = self.stream(request.share, self.config.ledger.clone());
        stream.send.raise_limit(request.limit);
        self.streams.insert(id, stream);
        Ok(Some(LegEvent::Open { stream: id, request }))
    }

    fn on_opened(&mut self, id: StreamId, payload: &[u8]) -> Result<Option<LegEvent<R>>, Violation> {
        if !self.known(id)? {
            return Ok(None);
        }
        let opened = match Opened::decode(payload) {
            Ok(opened) if self.config.side.owns(id) => opened,
            Ok(_) => return Ok(self.fail(id, CloseReason::FrameMalformed, "OPENED was not expected")),
            Err(error) => return Ok(self.fail(id, CloseReason::FrameMalformed, &error.to_string())),
        };
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(None) };
        stream.send.raise_limit(opened.limit);
        if stream.send.is_ready() && stream.open.is_none() && !stream.ended {
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
        if !self.known(id)? {
            return Ok(None);
        }
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(None) };
        if stream.ended {
            return Ok(None);
        }
        let after = stream.arrived + payload.len() as u64;
        if stream.fin_arrived {
            return Ok(self.fail(id, CloseReason::DataAfterFin, ""));
        }
        if after > stream.advertised {
            return Ok(self.fail(id, CloseReason::CreditExceeded, ""));
        }
        stream.arrived = after;
        stream.fin_arrived = fin;
        if blocked && stream.passed + stream.allowance < stream.far_limit {
            // Our own clamp is what holds the sender back: more allowance, and nothing to ask of the far end.
            blocked = false;
            if stream.allowance < MAX_ALLOWANCE && stream.ledger.reserve(stream.allowance, false) {
                stream.allowance *= 2;
                self.renew(id, false);
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
        if !self.known(id)? {
            return Ok(None);
        }
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(None) };
        if stream.ended {
            return Ok(None);
        }
        if !stream.send.credit(received, limit) {
            return Ok(self.fail(id, CloseReason::FrameMalformed, "received more than was sent"));
        }
        stream.peer_received = stream.peer_received.max(received);
        if stream.send.is_ready() && stream.open.is_none() {
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
        if !self.known(id)? {
            return Ok(None);
        }
        self.scheduler.remove(id);
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(None) };
        // Kept while it stands in the link's list: otherwise that list would grow with each stream that comes and goes
        // while the writer stands still.
        stream.ended = true;
        stream.open = None;
        stream.reset = None;
        stream.send = SendHalf::new(false);
        let to = stream.to.take();
        self.forget_if_over(id);
        Ok(to.map(|to| LegEvent::Reset { to, reason, detail }))
    }

    /// Says where a stream goes on.
    pub fn bind(&mut self, id: StreamId, to: R, share: u64) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.to = Some(to);
            stream.share = share;
        }
    }

    /// Opens a stream on this leg whose other half is `to`.
    ///
    /// # Errors
    /// If this leg takes no new streams.
    pub fn open(&mut self, mut request: OpenRequest, to: R) -> Result<StreamId, CloseReason> {
        if self.link.is_going() || self.next_own > u32::MAX - 2 {
            return Err(CloseReason::Draining);
        }
        if self.streams.len() >= self.config.max_streams {
            return Err(CloseReason::LimitReached);
        }
        let id = self.next_own;
        self.next_own += 2;
        let mut stream = self.stream(request.share, self.config.ledger.clone());
        stream.far_limit = stream.far_limit.max(request.limit);
        stream.advertised = stream.far_limit.min(stream.allowance).max(FLOOR);
        request.limit = stream.advertised;
        stream.to = Some(to);
        stream.open = Some(request);
        self.streams.insert(id, stream);
        self.mark(id);
        Ok(id)
    }

    /// The far endpoint has the stream that this leg's peer opened.
    pub fn opened(&mut self, id: StreamId, mut opened: Opened) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.far_limit = stream.far_limit.max(opened.limit);
        stream.advertised = stream.advertised.max(stream.far_limit.min(stream.passed + stream.allowance));
        opened.limit = stream.advertised;
        stream.opened = Some(opened);
        self.mark(id);
    }

    /// Queues bytes for this leg's peer.
    pub fn forward(&mut self, id: StreamId, payload: Bytes, fin: bool, blocked: bool) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.ended || stream.send.is_finished() {
            return;
        }
        stream.send.push(payload);
        if blocked {
            stream.send.pass_blocked();
        }
        if fin {
            stream.send.finish();
        }
        if stream.send.is_ready() && stream.open.is_none() {
            self.scheduler.activate(id, stream.share);
        }
    }

    /// The far endpoint gave credit to this leg's peer.
    pub fn credit(&mut self, id: StreamId, received: u64, limit: u64) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.far_limit = stream.far_limit.max(limit);
        stream.far_received = stream.far_received.max(received);
        self.renew(id, true);
    }

    /// The other leg has written on `written` bytes.
    pub fn passed(&mut self, id: StreamId, written: u64) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.passed = stream.passed.max(written);
        self.renew(id, false);
    }

    /// Owes the peer a CREDIT if there is news. The far endpoint's own credits come coalesced and pass at once; what
    /// the relay's writing frees is told at an eighth of the allowance, or when all that was advertised is used.
    fn renew(&mut self, id: StreamId, at_once: bool) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.ended {
            return;
        }
        let limit = stream.far_limit.min(stream.passed + stream.allowance);
        let gain = limit.saturating_sub(stream.advertised);
        let step = gain >= stream.allowance / 8 || stream.passed >= stream.advertised;
        if (gain > 0 && (at_once || step)) || stream.far_received > stream.told_received {
            stream.owes_credit = true;
            self.mark(id);
        }
    }

    /// Ends a stream on this leg.
    pub fn reset(&mut self, id: StreamId, reason: CloseReason, detail: &str) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.ended {
            return;
        }
        stream.ended = true;
        stream.to = None;
        stream.send = SendHalf::new(false);
        self.scheduler.remove(id);
        if stream.open.take().is_some() {
            // The peer never heard of it.
            self.forget_if_over(id);
        } else {
            stream.reset = Some((reason, detail.to_owned()));
            self.mark(id);
        }
    }

    fn mark(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.dirty
        {
            stream.dirty = true;
            self.link.mark(id);
        }
    }

    /// A stream is over once both ends came, both were told as received, and all of that passed here.
    fn forget_if_over(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get(&id) else { return };
        let told_end = stream.fin_arrived && stream.told_received > stream.arrived;
        if !stream.dirty && (stream.ended || (stream.send.is_done() && told_end)) {
            self.streams.remove(&id);
            self.scheduler.remove(id);
        }
    }

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
        if let Some(request) = stream.open.take() {
            frame::encode(out, &Frame::Open { stream: id, payload: request.encode() });
            if stream.send.is_ready() {
                self.scheduler.activate(id, stream.share);
            }
        }
        if let Some((reason, detail)) = stream.reset.take() {
            frame::encode(out, &Frame::Reset { stream: id, reason, detail });
        } else if !stream.ended {
            if let Some(opened) = stream.opened.take() {
                frame::encode(out, &Frame::Opened { stream: id, payload: opened.encode() });
            }
            if std::mem::take(&mut stream.owes_credit) {
                stream.advertised =
                    stream.advertised.max(stream.far_limit.min(stream.passed + stream.allowance));
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
        self.link.deadline()
    }

    /// Does what time asks for.
    ///
    /// # Errors
    /// If the peer is dead: the connection must be closed.
    pub fn tick(&mut self, now: Instant) -> Result<(), Violation> {
        self.link.tick(now)
    }

    /// Queues a CONTROL message; false where too many wait.
    pub fn control(&mut self, payload: Bytes) -> bool {
        self.link.control(payload)
    }

    /// Says that no new streams are taken; those that are open go on.
    pub fn go_away(&mut self, reason: CloseReason, delay: Duration, detail: &str) {
        self.link.goaway(self.highest_peer, reason, delay, detail);
    }

    /// The connection is gone: where its streams went on, for [`Leg::reset`] there.
    pub fn close(&mut self) -> Vec<R> {
        self.scheduler = Scheduler::default();
        self.streams.drain().filter_map(|(_, mut stream)| stream.to.take()).collect()
    }

    /// The streams that go on somewhere, and where.
    pub fn routes(&self) -> impl Iterator<Item = (StreamId, &R)> {
        self.streams.iter().filter_map(|(id, stream)| Some((*id, stream.to.as_ref()?)))
    }

    /// Streams that are open or not yet forgotten.
    pub fn stream_count(&self) -> usize {
        self.streams.len()
    }

    /// Bytes queued for this leg's peer.
    pub fn held(&self) -> u64 {
        self.streams.values().map(|stream| stream.send.queued()).sum()
    }
}
