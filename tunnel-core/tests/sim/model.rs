//! What applications did, and what they may therefore see.

use towline_tunnel::{
    ids::StreamKey,
    proto::{StreamId, endpoint::StreamError, resume::Claim},
};

/// One step of a script. Numbers are taken modulo what is there.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// `from` opens a stream to `to`; `eager` says which ends read whenever lines are pumped.
    Open { from: u8, to: u8, share: u8, eager: u8 },
    /// A writer gets so many bytes more to write.
    Write { stream: u8, dir: bool, bytes: u32 },
    /// A writer ends its direction once all is written.
    Finish { stream: u8, dir: bool },
    /// A reader takes at most so many bytes.
    Read { stream: u8, dir: bool, bytes: u32 },
    /// An application resets a stream.
    Reset { stream: u8, side: bool },
    /// An application lets go of a stream.
    Release { stream: u8, side: bool },
    /// One side of a line gives a batch to its kernel, as far as there is room.
    Send { line: u8, side: bool },
    /// Bytes on the way from one side of a line arrive, at most so many.
    Deliver { line: u8, side: bool, bytes: u16 },
    /// What one side of a line sends does not arrive when lines are pumped.
    Stall { line: u8, side: bool, on: bool },
    /// Lines that are not stalled carry all there is, so many times; eager readers read.
    Pump { times: u8 },
    /// Time passes.
    Advance { ms: u16 },
    /// A line is lost; what is on the way still arrives, or doesn't.
    Cut { line: u8, arrive: bool },
    /// One side takes no new streams.
    GoAway { line: u8, side: bool },
    /// The relay is started anew: all lines are lost at once.
    Restart,
    /// A client takes a stream up that lost its connection.
    Resume { stream: u8 },
    /// A client takes a stream off a connection that stands, and asks for it on another; `fresh` says who dials for that.
    Move { stream: u8, fresh: u8 },
    /// The time is over for a stream that lost its connection.
    Expire { stream: u8, side: bool },
    /// One side sends a CONTROL message.
    Control { line: u8, side: bool },
}

/// One direction of a stream.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// Bytes that the writer wants to write in all.
    pub(super) goal: u64,
    pub(super) written: u64,
    pub(super) wants_finish: bool,
    pub(super) finished: bool,
    pub(super) write_error: Option<StreamError>,
    pub(super) read: u64,
    pub(super) ended: bool,
    pub(super) read_error: Option<StreamError>,
    pub(super) eager: bool,
}

/// Where an application holds a stream: the end and the stream's id there.
pub(super) type Handle = (usize, StreamId);

/// A stream, as those who use it see it. Side 0 opened it; direction 0 leads away from side 0.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) key: StreamKey,
    /// The ends' places, whether or not the far one has it yet.
    pub(super) places: [usize; 2],
    pub(super) handles: [Option<Handle>; 2],
    pub(super) released: [bool; 2],
    pub(super) flows: [Flow; 2],
    /// Something happened that may end it with an error.
    pub(super) broken: bool,
    /// What each side keeps of it, to take it up elsewhere.
    pub(super) claims: [Claim; 2],
    /// Whether the sides keep it at all.
    pub(super) wants_keeping: bool,
    pub(super) kept: [bool; 2],
}

impl Stream {
    /// The byte at `offset` of direction `dir`.
    pub(super) fn byte(&self, dir: usize, offset: u64) -> u8 {
        let seed = self.key.as_bytes()[0].wrapping_add(dir as u8 * 101);
        (offset as u8).wrapping_mul(167)
            ^ ((offset >> 8) as u8).wrapping_mul(59)
            ^ ((offset >> 16) as u8)
            ^ seed
    }

    /// Whether an error in direction `dir` has a cause that the model knows.
    pub(super) fn may_fail(&self, dir: usize) -> bool {
        // Who let go of a stream reads no more of it.
        self.broken || self.released[1 - dir]
    }

    /// Whether nothing more is to be expected of direction `dir`.
    pub(super) fn is_settled(&self, dir: usize) -> bool {
        let flow = &self.flows[dir];
        let read = flow.ended || flow.read_error.is_some() || self.released[1 - dir];
        let written = flow.finished || flow.write_error.is_some() || self.released[dir];
        let given_up = self.flows[1].read_error.is_some() || (self.broken && self.released[0]);
        (read && written) || (self.handles[1].is_none() && given_up)
    }
}
