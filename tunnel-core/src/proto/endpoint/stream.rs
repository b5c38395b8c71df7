//! One stream of an endpoint.

use std::time::Instant;

use super::{Signal, StreamError, WasParked};
use crate::{
    ids::StreamKey,
    proto::{
        CloseReason, OpenRequest, Opened, ResumeRequest, Resumed, interactive::Turns, receive::ReceiveHalf,
        send::SendHalf,
    },
};

/// How far a stream has begun on its connection.
#[derive(Debug)]
pub(super) enum Phase {
    /// OPEN is not sent yet.
    Open(OpenRequest),
    /// RESUME is not sent yet.
    Resume(ResumeRequest),
    /// RESUME was sent, and waits for its answer.
    Resuming,
    /// Bytes flow.
    Live,
    /// Its connection, or the one with its other half, is gone. It may go on elsewhere.
    Parked,
}

#[derive(Debug)]
pub(super) struct Stream<S> {
    pub(super) send: SendHalf,
    pub(super) receive: ReceiveHalf,
    pub(super) share: u64,
    pub(super) phase: Phase,
    /// It is kept when its connection ends, under this name.
    pub(super) kept_as: Option<StreamKey>,
    /// OPENED must be sent.
    pub(super) owes_opened: bool,
    /// RESUMED must be sent.
    pub(super) owes_resumed: Option<Resumed>,
    /// Once this many bytes went in a direction the stream is bulk, and that is told.
    pub(super) bulk_at: u64,
    /// DETACHED must be sent, and nothing else: the stream goes on elsewhere.
    pub(super) detached: bool,
    /// RESET, not yet sent.
    pub(super) reset: Option<(CloseReason, String)>,
    /// The stream is over, and why.
    pub(super) ended: Option<StreamError>,
    /// In the link's list of streams with control frames.
    pub(super) dirty: bool,
    /// In the list of streams that owe `received` at the next tick.
    pub(super) owing: bool,
    /// The application let go of it.
    pub(super) released: bool,
    pub(super) opened: Option<Opened>,
    pub(super) turns: Turns,
    pub(super) signal: S,
}

impl<S: Signal> Stream<S> {
    pub(super) fn new(receive: ReceiveHalf, share: u64) -> Stream<S> {
        Stream {
            send: SendHalf::new(true),
            receive,
            share,
            phase: Phase::Live,
            kept_as: None,
            owes_opened: false,
            owes_resumed: None,
            bulk_at: u64::MAX,
            detached: false,
            reset: None,
            ended: None,
            dirty: false,
            owing: false,
            released: false,
            opened: None,
            turns: Turns::default(),
            signal: S::default(),
        }
    }

    /// DATA of so many bytes went from the client to the agent (`up`), or came from there, at about this time.
    pub(super) fn turned(&mut self, up: bool, bytes: usize, at: Instant) {
        if !up {
            self.turns.down(bytes);
        } else if self.turns.up(bytes, at) {
            self.receive.interactive().note(at);
        }
    }

    /// Whether DATA and CREDIT may be sent and come.
    pub(super) fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live)
    }

    /// Whether DATA can be sent now.
    pub(super) fn is_ready(&self) -> bool {
        self.is_live() && self.send.is_ready()
    }

    /// Whether both directions are whole: nothing more is needed from the peer.
    pub(super) fn is_whole(&self) -> bool {
        self.send.is_done() && self.receive.is_finished()
    }

    /// Whether it can go on elsewhere.
    pub(super) fn can_be_kept(&self) -> bool {
        self.kept_as.is_some() && self.ended.is_none() && !self.is_whole()
    }

    /// Takes it off its connection; it waits to go on elsewhere.
    pub(super) fn park(&mut self) {
        self.phase = Phase::Parked;
        self.owes_resumed = None;
        (self.dirty, self.owing) = (false, false);
    }

    /// For whoever keeps streams, if this is a kept one.
    pub(super) fn was_parked(&self) -> Option<WasParked> {
        let moved = self.send.confirmed() + self.receive.received_now();
        self.kept_as.map(|key| WasParked { key, moved })
    }

    /// The stream is over, unless it was already. Nothing more is sent; what came can still be read before the error.
    pub(super) fn end(&mut self, error: StreamError) {
        self.ended.get_or_insert(error);
        self.send = SendHalf::new(true);
        self.signal.readable();
        self.signal.writable();
    }
}
