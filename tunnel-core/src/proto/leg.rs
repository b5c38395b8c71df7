//! One connection at the relay: streams pass through to another leg, as table entries without a task or a channel.
//!
//! A state machine without IO and clock, as [`super::endpoint`]. The relay feeds frames to [`Leg::on_frame`], carries
//! the [`LegEvent`] that comes of one to the leg that it names, and sends what [`Leg::fill`] appends. `R` says where
//! a stream goes on: the other leg and the stream's id there. No method calls another leg, so whoever drives two
//! never needs the locks of both at once.

mod inbound;
mod outbound;
mod resume;

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use bytes::Bytes;

use super::{
    CloseReason, OpenRequest, Opened, ResumeRequest, Resumed,
    budget::{Budgets, NO_SHARE},
    endpoint::Side,
    frame::StreamId,
    interactive::Turns,
    ledger::Ledger,
    link::{GoAway, Link},
    numbers::Numbers,
    schedule::Scheduler,
    send::{FLOOR, SendHalf},
    tables::give_back,
    window::Window,
};

/// A peer that opens streams is one user, whatever it writes into OPEN.
const PEERS_OWN: u64 = NO_SHARE;

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
    /// The peer takes a stream up. Answer as [`LegEvent::Open`].
    Resume {
        /// Its id on this leg.
        stream: StreamId,
        /// Which stream, and the proof.
        request: ResumeRequest,
    },
    /// The far endpoint goes on with the stream: [`Leg::resumed`] on the other leg.
    Resumed {
        /// The other leg.
        to: R,
        /// The answer.
        resumed: Resumed,
    },
    /// The peer takes the stream up elsewhere: [`Leg::detach`] on the other leg.
    Detached {
        /// The other leg.
        to: R,
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

/// How a stream begins on this leg; not yet sent.
#[derive(Debug)]
enum Begin {
    Open(OpenRequest),
    Resume(ResumeRequest),
}

/// What this leg's peer is answered; not yet sent.
#[derive(Debug)]
enum Answer {
    Opened(Opened),
    Resumed(Resumed),
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
    /// How far the sender may run ahead of what was written on.
    allowance: Window,
    /// Of a stream that this leg's peer opened: whoever types is at that end.
    turns: Turns,
    /// `received` of the far endpoint, and as last told.
    far_received: u64,
    told_received: u64,
    /// `received` of this leg's own peer, for the bytes that go out here.
    peer_received: u64,
    owes_credit: bool,
    /// Boxed, as what follows: an idle stream has none of them.
    begin: Option<Box<Begin>>,
    answer: Option<Box<Answer>>,
    /// RESUME is not answered yet: no DATA may come or go.
    resuming: bool,
    /// DETACHED must be sent, and nothing else.
    detached: bool,
    reset: Option<Box<(CloseReason, String)>>,
    ended: bool,
    dirty: bool,
}

impl<R> Stream<R> {
    /// Offset up to which this leg's peer may send now.
    fn reach(&self) -> u64 {
        self.far_limit.min(self.passed.saturating_add(self.allowance.size()))
    }
}

/// The state of one connection. See the module's text.
#[derive(Debug)]
pub struct Leg<R> {
    config: LegConfig,
    streams: HashMap<StreamId, Stream<R>>,
    numbers: Numbers,
    scheduler: Scheduler,
    budgets: Budgets,
    link: Link,
}

impl<R: Clone> Leg<R> {
    /// A connection that was established at `now`.
    pub fn new(config: LegConfig, now: Instant) -> Self {
        Self {
            numbers: Numbers::new(config.side, config.max_streams),
            link: Link::new(now, config.jitter),
            budgets: Budgets::new(config.ledger.clone()),
            config,
            streams: HashMap::new(),
            scheduler: Scheduler::default(),
        }
    }

    fn stream(share: u64, ledger: Ledger) -> Stream<R> {
        Stream {
            to: None,
            share,
            send: SendHalf::new(false),
            arrived: 0,
            fin_arrived: false,
            advertised: FLOOR,
            far_limit: FLOOR,
            passed: 0,
            allowance: Window::new(ledger),
            turns: Turns::default(),
            far_received: 0,
            told_received: 0,
            peer_received: 0,
            owes_credit: false,
            begin: None,
            answer: None,
            resuming: false,
            detached: false,
            reset: None,
            ended: false,
            dirty: false,
        }
    }

    /// Says where a stream goes on.
    pub fn bind(&mut self, id: StreamId, to: R, share: u64) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.to = Some(to);
            stream.share = share;
        }
    }

    fn new_id(&mut self) -> Result<StreamId, CloseReason> {
        if self.link.is_going() || !self.numbers.has_own() {
            return Err(CloseReason::Draining);
        }
        if self.numbers.is_full(self.streams.len()) {
            return Err(CloseReason::LimitReached);
        }
        Ok(self.numbers.take_own())
    }

    /// Opens a stream on this leg whose other half is `to`.
    ///
    /// # Errors
    /// If this leg takes no new streams.
    pub fn open(&mut self, request: OpenRequest, to: R) -> Result<StreamId, CloseReason> {
        self.open_for(None, request, to)
    }

    /// The same for a user, who is always the same one for the request's share: what is promised here counts in their ledger, too.
    ///
    /// # Errors
    /// If this leg takes no new streams.
    pub fn open_for(
        &mut self,
        user: Option<&Ledger>,
        mut request: OpenRequest,
        to: R,
    ) -> Result<StreamId, CloseReason> {
        self.begin(user, request.share, to, |stream| {
            stream.far_limit = stream.far_limit.max(request.limit);
            stream.advertised = stream.far_limit.min(stream.allowance.size()).max(FLOOR);
            request.limit = stream.advertised;
            Begin::Open(request)
        })
    }

    /// A new stream of ours, which begins with what `ask` makes of it.
    fn begin(
        &mut self,
        user: Option<&Ledger>,
        share: u64,
        to: R,
        ask: impl FnOnce(&mut Stream<R>) -> Begin,
    ) -> Result<StreamId, CloseReason> {
        let id = self.new_id()?;
        let mut stream = Self::stream(share, self.budgets.within(share, user));
        stream.begin = Some(Box::new(ask(&mut stream)));
        stream.to = Some(to);
        self.streams.insert(id, stream);
        self.mark(id);
        Ok(id)
    }

    /// The far endpoint has the stream that this leg's peer opened.
    pub fn opened(&mut self, id: StreamId, mut opened: Opened) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.far_limit = stream.far_limit.max(opened.limit);
        stream.advertised = stream.advertised.max(stream.reach());
        opened.limit = stream.advertised;
        stream.answer = Some(Box::new(Answer::Opened(opened)));
        self.mark(id);
    }

    /// Queues bytes for this leg's peer.
    pub fn forward(&mut self, id: StreamId, payload: Bytes, fin: bool, blocked: bool) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.ended || stream.send.is_finished() {
            return;
        }
        if !self.config.side.owns(id) {
            stream.turns.down(payload.len());
        }
        stream.send.push(payload);
        if blocked {
            stream.send.pass_blocked();
        }
        if fin {
            stream.send.finish();
        }
        if stream.send.is_ready() && stream.begin.is_none() {
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
        let gain = stream.reach().saturating_sub(stream.advertised);
        let step = gain >= stream.allowance.size() / 8 || stream.passed >= stream.advertised;
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
        if stream.begin.take().is_some() {
            // The peer never heard of it.
            self.forget_if_over(id);
        } else {
            stream.reset = Some(Box::new((reason, detail.to_owned())));
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
            give_back(&mut self.streams);
            self.scheduler.remove(id);
        }
    }

    /// When bytes came last.
    pub fn last_inbound(&self) -> Instant {
        self.link.last_inbound()
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

    /// Queues a CONTROL message; false where too many wait.
    pub fn control(&mut self, payload: Bytes) -> bool {
        self.link.control(payload)
    }

    /// Says that no new streams are taken; those that are open go on.
    pub fn go_away(&mut self, reason: CloseReason, delay: Duration, detail: &str) {
        self.link.goaway(self.numbers.highest_peer(), reason, delay, detail);
    }

    /// The connection is gone: where its streams went on, for [`Leg::detach`] there.
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
