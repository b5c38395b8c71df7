//! What this end still has to say: bytes that the carrier below has not taken, the latest ping's answer, the end.

use bytes::{Buf, BytesMut};

use super::{
    Role,
    frame::{CloseCode, Header, MAX_CONTROL, MAX_HEADER, Mask, Opcode, encode},
};

/// What is copied and then masked at once: it is still in the processor's cache.
const MASK_AT_ONCE: usize = 8 * 1024;

/// Frames on their way out. What is queued ends with a frame's end, so that another frame can always follow: at most
/// one message, one pong and a close frame.
#[derive(Debug)]
pub(super) struct Outbound {
    role: Role,
    queued: BytesMut,
    /// The payload of the latest ping, while its answer has no place in the queue: earlier ones need none (RFC 6455,
    /// section 5.5.3).
    pong: Option<Vec<u8>>,
    closed: bool,
}

impl Outbound {
    pub(super) fn new(role: Role) -> Self {
        Self { role, queued: BytesMut::new(), pong: None, closed: false }
    }

    /// A close frame was queued: nothing may follow it.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Nothing waits any more.
    pub(super) fn is_idle(&self) -> bool {
        self.queued.is_empty() && self.pong.is_none()
    }

    /// What goes out next.
    pub(super) fn queued(&mut self) -> &[u8] {
        if self.queued.is_empty()
            && let Some(payload) = self.pong.take()
        {
            self.control(Opcode::Pong, &payload);
        }
        &self.queued
    }

    /// So many bytes of it are out.
    pub(super) fn sent(&mut self, count: usize) {
        self.queued.advance(count);
    }

    /// Gives back the memory for what was queued.
    pub(super) fn release(&mut self) {
        if self.queued.is_empty() {
            self.queued = BytesMut::new();
        }
    }

    /// Answers a ping.
    pub(super) fn answer(&mut self, ping: &[u8]) {
        if !self.closed {
            self.pong = Some(ping.to_vec());
        }
    }

    /// Queues a close frame, unless there is one.
    pub(super) fn close(&mut self, code: Option<u16>, reason: &str) {
        if self.closed {
            return;
        }
        (self.closed, self.pong) = (true, None);
        let mut payload = Vec::new();
        if let Some(code) = code {
            payload.extend_from_slice(&code.to_be_bytes());
            payload.extend_from_slice(reason.as_bytes());
        }
        payload.truncate(MAX_CONTROL);
        self.control(Opcode::Close, &payload);
    }

    /// The header of a message with so many bytes; what it is masked with is new each time (section 5.3).
    pub(super) fn header(&self, opcode: Opcode, length: usize) -> Header {
        let mask = (self.role == Role::Client).then(|| {
            let mut mask = [0; 4];
            aws_lc_rs::rand::fill(&mut mask).expect("the system's random source answers");
            Mask(mask)
        });
        Header { fin: true, opcode, mask, length: length as u64 }
    }

    /// Queues a message whose payload is these parts, one after the other.
    pub(super) fn message<'a>(&mut self, header: &Header, parts: impl Iterator<Item = &'a [u8]>) {
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        self.queued.reserve(MAX_HEADER.saturating_add(length));
        encode(&mut self.queued, header);
        let mut mask = header.mask;
        for piece in parts.flat_map(|part| part.chunks(MASK_AT_ONCE)) {
            let begin = self.queued.len();
            self.queued.extend_from_slice(piece);
            if let Some(mask) = &mut mask {
                mask.apply(&mut self.queued[begin..]);
            }
        }
    }

    /// Queues the rest of a message whose begin is out.
    pub(super) fn rest<'a>(&mut self, parts: impl Iterator<Item = &'a [u8]>) {
        for part in parts {
            self.queued.extend_from_slice(part);
        }
    }

    fn control(&mut self, opcode: Opcode, payload: &[u8]) {
        let header = self.header(opcode, payload.len());
        self.message(&header, std::iter::once(payload));
    }
}

impl From<CloseCode> for u16 {
    fn from(code: CloseCode) -> Self {
        code as u16
    }
}
