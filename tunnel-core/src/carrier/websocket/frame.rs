//! WebSocket frames (RFC 6455, section 5.2): headers, masks and close codes, without IO.

use bytes::{Buf, BufMut};

/// Longest header: two bytes, a 64-bit length, a mask.
pub const MAX_HEADER: usize = 14;
/// Longest payload of a control frame (section 5.5).
pub const MAX_CONTROL: usize = 125;

/// What a frame is. The others of the 16 codes are reserved, and refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// More of the message that the frames before began.
    Continuation = 0x0,
    /// Begins a message of UTF-8.
    Text = 0x1,
    /// Begins a message of bytes.
    Binary = 0x2,
    /// The end (section 5.5.1).
    Close = 0x8,
    /// Asks for a pong with the same payload.
    Ping = 0x9,
    /// Answers a ping.
    Pong = 0xa,
}

impl Opcode {
    fn of(code: u8) -> Option<Self> {
        Some(match code {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xa => Self::Pong,
            _ => return None,
        })
    }

    /// Control frames stand between the fragments of a message, and are whole themselves.
    pub fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

/// Status codes of a close frame that this end sends (section 7.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum CloseCode {
    /// All is said.
    Normal = 1000,
    /// The peer broke the rules of framing.
    Protocol = 1002,
    /// A kind of message that is not taken here.
    Unsupported = 1003,
    /// Text that is not UTF-8.
    Invalid = 1007,
    /// A message that is too long.
    TooBig = 1009,
}

/// How a peer broke the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("websocket: {what}")]
pub struct Breach {
    /// What the close frame says.
    pub code: CloseCode,
    /// The rule, in a few words.
    pub what: &'static str,
}

impl Breach {
    /// A breach of the rules of framing.
    pub const fn protocol(what: &'static str) -> Self {
        Self { code: CloseCode::Protocol, what }
    }
}

/// The four bytes that a client's payload is XORed with, beginning with the one that is next (section 5.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mask(pub [u8; 4]);

impl Mask {
    /// Masks or unmasks the next bytes of the payload.
    pub fn apply(&mut self, bytes: &mut [u8]) {
        let [a, b, c, d] = self.0;
        let key = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
        let turned = bytes.len() % 4;
        // Whole words in a loop without branches: the compiler makes vectors of it.
        let (words, rest) = bytes.as_chunks_mut::<8>();
        for word in words {
            *word = (u64::from_ne_bytes(*word) ^ key).to_ne_bytes();
        }
        for (byte, mask) in rest.iter_mut().zip(self.0.iter().cycle()) {
            *byte ^= mask;
        }
        self.0.rotate_left(turned);
    }
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The message's last frame.
    pub fin: bool,
    /// What the frame is.
    pub opcode: Opcode,
    /// What the payload is masked with: a client's always, a server's never.
    pub mask: Option<Mask>,
    /// Bytes of payload; below 2⁶³.
    pub length: u64,
}

/// What the bytes so far say of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// This many bytes of it must be there, from its begin.
    Needs(usize),
    /// The header, and how many bytes it took.
    Whole(Header, usize),
}

/// Reads a header off the front of `bytes`. It is judged as soon as its first two bytes are there, its length once
/// that is. Lengths that are written longer than need be are taken.
///
/// # Errors
/// A reserved bit or opcode, a control frame in fragments or too long, a length of 2⁶³ or more.
pub fn decode(bytes: &[u8]) -> Result<Decoded, Breach> {
    let &[first, second, ref rest @ ..] = bytes else { return Ok(Decoded::Needs(2)) };
    if first & 0x70 != 0 {
        return Err(Breach::protocol("a reserved bit is set"));
    }
    let Some(opcode) = Opcode::of(first & 0x0f) else {
        return Err(Breach::protocol("an unknown opcode"));
    };
    let (fin, masked, short) = (first & 0x80 != 0, second & 0x80 != 0, second & 0x7f);
    if opcode.is_control() && !fin {
        return Err(Breach::protocol("a control frame in fragments"));
    }
    if opcode.is_control() && usize::from(short) > MAX_CONTROL {
        return Err(Breach::protocol("a control frame of more than 125 bytes"));
    }
    let extended = match short {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let whole = 2 + extended + if masked { 4 } else { 0 };
    let mut rest = rest;
    if rest.len() < extended {
        return Ok(Decoded::Needs(whole));
    }
    let length = match extended {
        2 => rest.get_u16().into(),
        8 => rest.get_u64(),
        _ => short.into(),
    };
    if length >> 63 != 0 {
        return Err(Breach::protocol("a length of 2^63 or more"));
    }
    let mask = match (masked, rest) {
        (false, _) => None,
        (true, &[a, b, c, d, ..]) => Some(Mask([a, b, c, d])),
        (true, _) => return Ok(Decoded::Needs(whole)),
    };
    Ok(Decoded::Whole(Header { fin, opcode, mask, length }, whole))
}

/// Appends a header, its length in as few bytes as may be. At most [`MAX_HEADER`] bytes.
pub fn encode(out: &mut impl BufMut, header: &Header) {
    out.put_u8(if header.fin { 0x80 } else { 0 } | header.opcode as u8);
    let masked = if header.mask.is_some() { 0x80 } else { 0 };
    match header.length {
        short @ 0..=125 => out.put_u8(masked | short as u8),
        middle @ 126..=0xffff => {
            out.put_u8(masked | 126);
            out.put_u16(middle as u16);
        }
        long => {
            out.put_u8(masked | 127);
            out.put_u64(long);
        }
    }
    if let Some(Mask(mask)) = header.mask {
        out.put_slice(&mask);
    }
}

/// The code of a close frame with this payload; none where it has none.
///
/// # Errors
/// A code that may not be sent, half a code, or a reason that is not UTF-8.
pub fn decode_close(payload: &[u8]) -> Result<Option<u16>, Breach> {
    let (code, reason) = match payload {
        [] => return Ok(None),
        [_] => return Err(Breach::protocol("a close frame with half a code")),
        &[high, low, ref reason @ ..] => (u16::from_be_bytes([high, low]), reason),
    };
    // Section 7.4: 1004 to 1006 and 1015 are never sent, 1012 to 1014 were registered later.
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(Breach::protocol("a close code that may not be sent"));
    }
    match std::str::from_utf8(reason) {
        Ok(_) => Ok(Some(code)),
        Err(_) => Err(Breach { code: CloseCode::Invalid, what: "a close reason that is not UTF-8" }),
    }
}

#[cfg(test)]
mod tests;
