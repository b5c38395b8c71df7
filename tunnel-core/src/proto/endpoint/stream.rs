//! One stream of an endpoint.

use super::{Signal, StreamError};
use crate::proto::{CloseReason, OpenRequest, Opened, receive::ReceiveHalf, send::SendHalf};

#[derive(Debug)]
pub(super) struct Stream<S> {
    pub(super) send: SendHalf,
    pub(super) receive: ReceiveHalf,
    pub(super) share: u64,
    /// OPEN, not yet sent.
    pub(super) open: Option<OpenRequest>,
    /// OPENED must be sent.
    pub(super) owes_opened: bool,
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
    pub(super) signal: S,
}

impl<S: Signal> Stream<S> {
    pub(super) fn new(receive: ReceiveHalf, share: u64) -> Stream<S> {
        Stream {
            send: SendHalf::new(true),
            receive,
            share,
            open: None,
            owes_opened: false,
            reset: None,
            ended: None,
            dirty: false,
            owing: false,
            released: false,
            opened: None,
            signal: S::default(),
        }
    }

    pub(super) fn owes_open(&self) -> bool {
        self.open.is_some()
    }

    /// The stream is over, unless it was already. Nothing more is sent; what came can still be read before the error.
    pub(super) fn end(&mut self, error: StreamError) {
        self.ended.get_or_insert(error);
        self.send = SendHalf::new(true);
        self.signal.readable();
        self.signal.writable();
    }
}
