//! Frames, byte by byte (`docs/protocol.md`, "Frames").
//!
//! A frame is an 8-byte header, `type: u8, flags: u8, length: u16, stream: u32` (big-endian), and `length` bytes of
//! payload. Decoding checks all that can be checked without knowing the stream.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{
    CloseReason,
    reason::{MAX_DETAIL, bounded_detail},
};

/// Bytes of a frame's header.
pub const HEADER: usize = 8;

/// Longest payload of any frame: one inner TLS record of 16,298 bytes of plaintext fits (22 bytes of overhead).
pub const MAX_PAYLOAD: usize = 16_320;

/// A stream's number on one connection. The dialler's streams are odd, the acceptor's even; 0 is the connection.
pub type StreamId = u32;

/// On DATA: nothing follows.
pub const FIN: u8 = 0x01;
/// On DATA: these bytes exhaust the sender's limit and more is waiting.
pub const BLOCKED: u8 = 0x02;

mod kind {
    pub(super) const OPEN: u8 = 0x01;
    pub(super) const OPENED: u8 = 0x02;
    pub(super) const DATA: u8 = 0x03;
    pub(super) const CREDIT: u8 = 0x04;
    pub(super) const RESET: u8 = 0x05;
    pub(super) const RESUME: u8 = 0x06;
    pub(super) const RESUMED: u8 = 0x07;
    pub(super) const DETACHED: u8 = 0x08;
    pub(super) const PING: u8 = 0x09;
    pub(super) const PONG: u8 = 0x0a;
    pub(super) const GOAWAY: u8 = 0x0b;
    pub(super) const CONTROL: u8 = 0x0c;
    /// Types from here on may be passed over by who doesn't know them.
    pub(super) const FIRST_OPTIONAL: u8 = 0x80;
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Begins a stream. The payload is an [`super::open::OpenRequest`].
    Open {
        /// The new stream.
        stream: StreamId,
        /// Fields of the request.
        payload: Bytes,
    },
    /// The far endpoint has the stream. The payload is an [`super::open::Opened`].
    Opened {
        /// The stream.
        stream: StreamId,
        /// Fields of the answer.
        payload: Bytes,
    },
    /// Bytes of a stream, in order; their offset follows from those before.
    Data {
        /// The stream.
        stream: StreamId,
        /// The bytes; may be empty with `fin` or `blocked`.
        payload: Bytes,
        /// Nothing follows.
        fin: bool,
        /// The limit is exhausted and more is waiting.
        blocked: bool,
    },
    /// What the far endpoint has, and up to where the peer may send. Absolute offsets.
    Credit {
        /// The stream.
        stream: StreamId,
        /// Contiguous bytes in the far endpoint's memory; one more than the stream's length once FIN is there too.
        received: u64,
        /// Offset up to which may be sent.
        limit: u64,
    },
    /// Ends a stream at once, in both directions.
    Reset {
        /// The stream.
        stream: StreamId,
        /// Why.
        reason: CloseReason,
        /// A few words more; at most [`MAX_DETAIL`] bytes.
        detail: String,
    },
    /// Takes a stream up again on another connection.
    Resume {
        /// The stream's new id.
        stream: StreamId,
        /// Fields of the request.
        payload: Bytes,
    },
    /// A stream was taken up again.
    Resumed {
        /// The stream.
        stream: StreamId,
        /// Fields of the answer.
        payload: Bytes,
    },
    /// The stream's other leg is gone; it may be resumed.
    Detached {
        /// The stream.
        stream: StreamId,
    },
    /// Asks for a sign of life.
    Ping {
        /// Comes back in PONG.
        token: u64,
    },
    /// The sign of life.
    Pong {
        /// From PING.
        token: u64,
    },
    /// The sender takes no new streams above `last`.
    GoAway {
        /// The highest stream of the receiver's that is still served.
        last: StreamId,
        /// Why.
        reason: CloseReason,
        /// How long to wait before dialling again, in milliseconds.
        delay_ms: u32,
        /// A few words more.
        detail: String,
    },
    /// A message beside the streams; its body is `session::control`'s.
    Control {
        /// The message.
        payload: Bytes,
    },
    /// A frame of a type that may be passed over.
    Ignored,
}

/// The bytes are not a frame. The connection ends with this reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A length that this type can't have.
    #[error("frame type {kind:#04x} has length {length}")]
    Length {
        /// The type.
        kind: u8,
        /// The length.
        length: usize,
    },
    /// A type that must be understood, and isn't.
    #[error("frame type {0:#04x} is not known")]
    Unknown(u8),
    /// A flag that this type doesn't have.
    #[error("frame type {kind:#04x} has flags {flags:#04x}")]
    Flags {
        /// The type.
        kind: u8,
        /// The flags.
        flags: u8,
    },
    /// A stream id where none belongs, or none where one belongs.
    #[error("frame type {kind:#04x} has stream id {stream}")]
    Stream {
        /// The type.
        kind: u8,
        /// The id.
        stream: StreamId,
    },
    /// A detail that is not UTF-8.
    #[error("frame type {0:#04x} has a detail that is not UTF-8")]
    Text(u8),
}

impl Frame {
    /// The stream that it is about, if it is about one.
    pub fn stream(&self) -> Option<StreamId> {
        match self {
            Self::Open { stream, .. }
            | Self::Opened { stream, .. }
            | Self::Data { stream, .. }
            | Self::Credit { stream, .. }
            | Self::Reset { stream, .. }
            | Self::Resume { stream, .. }
            | Self::Resumed { stream, .. }
            | Self::Detached { stream } => Some(*stream),
            _ => None,
        }
    }
}

impl FrameError {
    /// The reason that GOAWAY carries.
    pub fn reason(self) -> CloseReason {
        match self {
            Self::Unknown(_) => CloseReason::FrameUnknown,
            Self::Stream { .. } => CloseReason::StreamIdInvalid,
            Self::Length { .. } | Self::Flags { .. } | Self::Text(_) => CloseReason::FrameMalformed,
        }
    }
}

/// Takes one whole frame off the front of `bytes`, or leaves them as they are if it isn't all there.
///
/// At most [`HEADER`] + [`MAX_PAYLOAD`] bytes are ever waited for.
///
/// # Errors
/// As soon as the header shows that no frame can come of it.
pub fn decode(bytes: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let Some(&[kind, flags, l1, l0, s3, s2, s1, s0]) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([l1, l0]));
    let stream = u32::from_be_bytes([s3, s2, s1, s0]);
    check_header(kind, flags, length, stream)?;
    if bytes.len() < HEADER + length {
        return Ok(None);
    }
    bytes.advance(HEADER);
    let payload = bytes.split_to(length).freeze();
    frame(kind, flags, stream, payload).map(Some)
}

fn check_header(kind: u8, flags: u8, length: usize, stream: StreamId) -> Result<(), FrameError> {
    if length > MAX_PAYLOAD {
        return Err(FrameError::Length { kind, length });
    }
    let (allowed_flags, length_ok, wants_stream) = match kind {
        kind::OPEN | kind::OPENED | kind::RESUME | kind::RESUMED => (0, true, true),
        kind::DATA => (FIN | BLOCKED, length > 0 || flags != 0, true),
        kind::CREDIT => (0, length == 16, true),
        kind::RESET => (0, (2..=2 + MAX_DETAIL).contains(&length), true),
        kind::DETACHED => (0, length == 0, true),
        kind::PING | kind::PONG => (0, length == 8, false),
        kind::GOAWAY => (0, (10..=10 + MAX_DETAIL).contains(&length), false),
        kind::CONTROL => (0, length > 0, false),
        kind::FIRST_OPTIONAL.. => return Ok(()),
        _ => return Err(FrameError::Unknown(kind)),
    };
    if flags & !allowed_flags != 0 {
        Err(FrameError::Flags { kind, flags })
    } else if (stream != 0) != wants_stream {
        Err(FrameError::Stream { kind, stream })
    } else if !length_ok {
        Err(FrameError::Length { kind, length })
    } else {
        Ok(())
    }
}

fn frame(kind: u8, flags: u8, stream: StreamId, mut payload: Bytes) -> Result<Frame, FrameError> {
    Ok(match kind {
        kind::OPEN => Frame::Open { stream, payload },
        kind::OPENED => Frame::Opened { stream, payload },
        kind::DATA => Frame::Data { stream, payload, fin: flags & FIN != 0, blocked: flags & BLOCKED != 0 },
        kind::CREDIT => Frame::Credit { stream, received: payload.get_u64(), limit: payload.get_u64() },
        kind::RESET => {
            let reason = CloseReason::from_code(payload.get_u16());
            Frame::Reset { stream, reason, detail: text(kind, &payload)? }
        }
        kind::RESUME => Frame::Resume { stream, payload },
        kind::RESUMED => Frame::Resumed { stream, payload },
        kind::DETACHED => Frame::Detached { stream },
        kind::PING => Frame::Ping { token: payload.get_u64() },
        kind::PONG => Frame::Pong { token: payload.get_u64() },
        kind::GOAWAY => {
            let last = payload.get_u32();
            let reason = CloseReason::from_code(payload.get_u16());
            let delay_ms = payload.get_u32();
            Frame::GoAway { last, reason, delay_ms, detail: text(kind, &payload)? }
        }
        kind::CONTROL => Frame::Control { payload },
        _ => Frame::Ignored,
    })
}

fn text(kind: u8, bytes: &[u8]) -> Result<String, FrameError> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| FrameError::Text(kind))
}

fn put_header(out: &mut BytesMut, kind: u8, flags: u8, length: usize, stream: StreamId) {
    debug_assert!(length <= MAX_PAYLOAD, "a frame's payload is bounded by whoever makes it");
    out.reserve(HEADER + length);
    out.put_u8(kind);
    out.put_u8(flags);
    out.put_u16(length as u16);
    out.put_u32(stream);
}

/// Appends the header of a DATA frame whose `length` bytes of payload the caller appends next.
pub fn put_data_header(out: &mut BytesMut, stream: StreamId, length: usize, fin: bool, blocked: bool) {
    let flags = if fin { FIN } else { 0 } | if blocked { BLOCKED } else { 0 };
    put_header(out, kind::DATA, flags, length, stream);
}

/// Appends a frame.
pub fn encode(out: &mut BytesMut, frame: &Frame) {
    let with = |out: &mut BytesMut, kind, stream, payload: &[u8]| {
        put_header(out, kind, 0, payload.len(), stream);
        out.put_slice(payload);
    };
    match frame {
        Frame::Open { stream, payload } => with(out, kind::OPEN, *stream, payload),
        Frame::Opened { stream, payload } => with(out, kind::OPENED, *stream, payload),
        Frame::Resume { stream, payload } => with(out, kind::RESUME, *stream, payload),
        Frame::Resumed { stream, payload } => with(out, kind::RESUMED, *stream, payload),
        Frame::Control { payload } => with(out, kind::CONTROL, 0, payload),
        Frame::Detached { stream } => with(out, kind::DETACHED, *stream, &[]),
        Frame::Ping { token } => with(out, kind::PING, 0, &token.to_be_bytes()),
        Frame::Pong { token } => with(out, kind::PONG, 0, &token.to_be_bytes()),
        Frame::Data { stream, payload, fin, blocked } => {
            put_data_header(out, *stream, payload.len(), *fin, *blocked);
            out.put_slice(payload);
        }
        Frame::Credit { stream, received, limit } => {
            put_header(out, kind::CREDIT, 0, 16, *stream);
            out.put_u64(*received);
            out.put_u64(*limit);
        }
        Frame::Reset { stream, reason, detail } => {
            let detail = bounded_detail(detail);
            put_header(out, kind::RESET, 0, 2 + detail.len(), *stream);
            out.put_u16(reason.code());
            out.put_slice(detail.as_bytes());
        }
        Frame::GoAway { last, reason, delay_ms, detail } => {
            let detail = bounded_detail(detail);
            put_header(out, kind::GOAWAY, 0, 10 + detail.len(), 0);
            out.put_u32(*last);
            out.put_u16(reason.code());
            out.put_u32(*delay_ms);
            out.put_slice(detail.as_bytes());
        }
        Frame::Ignored => {}
    }
}

#[cfg(test)]
mod tests;
