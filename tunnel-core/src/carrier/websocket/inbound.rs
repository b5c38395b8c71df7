//! What a peer's frames mean, one after the other; without IO, and without a buffer for their payload.

use super::{
    Role,
    frame::{Breach, CloseCode, Decoded, Header, MAX_CONTROL, Mask, Opcode, decode, decode_close},
};

/// Longest message and frame that are taken, in bytes. A peer of ours never comes near.
pub(super) const MAX_MESSAGE: u64 = 256 * 1024;

/// What a message holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Binary,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Read into [`Inbound::space`], and say how much with [`Inbound::filled`].
    Fill,
    /// A message begins.
    Begin(Kind),
    /// Up to so many bytes are the message's: read some, and have them unmasked by [`Inbound::unmask`].
    Data(usize),
    /// The message is whole.
    End,
    /// Answer with a pong; what came is in [`Inbound::control`].
    Ping,
    /// The peer says no more. The code it gave, if it did.
    Close(Option<u16>),
}

/// Reads frames. Holds no payload but that of one control frame.
#[derive(Debug)]
pub(super) struct Inbound {
    role: Role,
    state: State,
    /// The message that is under way, and its bytes so far.
    message: Option<u64>,
    /// A header, or a control frame's payload.
    small: [u8; MAX_CONTROL],
    /// How much of it is there, and how much must be.
    have: usize,
    need: usize,
    /// How much of it is the payload of the last control frame.
    control: usize,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Header,
    Control { opcode: Opcode, mask: Mask },
    Data { left: u64, fin: bool, mask: Mask },
}

impl Inbound {
    pub(super) fn new(role: Role) -> Self {
        Self {
            role,
            state: State::Header,
            message: None,
            small: [0; MAX_CONTROL],
            have: 0,
            need: 2,
            control: 0,
        }
    }

    /// Goes on as far as can be without more bytes.
    ///
    /// # Errors
    /// The peer broke the rules. Nothing may be asked of this any more then.
    pub(super) fn step(&mut self) -> Result<Step, Breach> {
        loop {
            match self.state {
                State::Header | State::Control { .. } if self.have < self.need => return Ok(Step::Fill),
                State::Header => match decode(&self.small[..self.have])? {
                    Decoded::Needs(need) => self.need = need,
                    Decoded::Whole(header, _) => {
                        if let Some(begun) = self.begin(&header)? {
                            return Ok(Step::Begin(begun));
                        }
                    }
                },
                State::Control { opcode, mut mask } => {
                    mask.apply(&mut self.small[..self.have]);
                    self.control = self.have;
                    self.next_header();
                    match opcode {
                        Opcode::Ping => return Ok(Step::Ping),
                        Opcode::Close => return Ok(Step::Close(decode_close(self.control())?)),
                        _ => {}
                    }
                }
                State::Data { left: 0, fin, .. } => {
                    self.next_header();
                    if fin {
                        self.message = None;
                        return Ok(Step::End);
                    }
                }
                State::Data { left, .. } => {
                    return Ok(Step::Data(usize::try_from(left).unwrap_or(usize::MAX)));
                }
            }
        }
    }

    /// Where the bytes that [`Step::Fill`] asks for belong.
    pub(super) fn space(&mut self) -> &mut [u8] {
        &mut self.small[self.have..self.need]
    }

    /// So many bytes were read into [`Inbound::space`].
    pub(super) fn filled(&mut self, count: usize) {
        self.have = self.need.min(self.have + count);
    }

    /// These bytes were read for [`Step::Data`], and no more than it says.
    pub(super) fn unmask(&mut self, bytes: &mut [u8]) {
        if let State::Data { left, mask, .. } = &mut self.state {
            if self.role == Role::Server {
                mask.apply(bytes);
            }
            *left = left.saturating_sub(bytes.len() as u64);
        }
    }

    /// The payload of the control frame that the last step told of.
    pub(super) fn control(&self) -> &[u8] {
        // The next header is not read before the next step.
        &self.small[..self.control]
    }

    fn next_header(&mut self) {
        (self.state, self.have, self.need) = (State::Header, 0, 2);
    }

    /// What a frame with this header is for; tells of a message that begins.
    fn begin(&mut self, header: &Header) -> Result<Option<Kind>, Breach> {
        if header.mask.is_some() != (self.role == Role::Server) {
            return Err(Breach::protocol("a client masks its frames, and a server never"));
        }
        let mask = header.mask.unwrap_or_default();
        let begun = match header.opcode {
            opcode @ (Opcode::Close | Opcode::Ping | Opcode::Pong) => {
                self.state = State::Control { opcode, mask };
                (self.have, self.need) = (0, usize::try_from(header.length).unwrap_or(usize::MAX));
                return Ok(None);
            }
            Opcode::Continuation => None,
            Opcode::Text => Some(Kind::Text),
            Opcode::Binary => Some(Kind::Binary),
        };
        let before = match (self.message, begun) {
            (Some(before), None) => before,
            (None, Some(_)) => 0,
            (None, None) => return Err(Breach::protocol("a continuation of nothing")),
            (Some(_), Some(_)) => return Err(Breach::protocol("a message within a message")),
        };
        let length = before.saturating_add(header.length);
        if length > MAX_MESSAGE {
            return Err(Breach { code: CloseCode::TooBig, what: "a message of more than 256 KiB" });
        }
        self.message = Some(length);
        self.state = State::Data { left: header.length, fin: header.fin, mask };
        Ok(begun)
    }
}
