//! Where in the stream of requests we are.

use bytes::BytesMut;

use super::{
    HeadError, MAX_HEAD,
    rules::{Framing, check},
};

/// Longest line of a chunk's size: 15 hexadecimal digits and CR LF.
const MAX_SIZE_LINE: usize = 17;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In a head, of which this many bytes were searched for its end.
    Head { searched: usize },
    /// In a body of known length.
    Body { left: u64 },
    /// In the line of a chunk's size.
    ChunkSize,
    /// In a chunk and the CR LF after it.
    Chunk { left: u64 },
    /// In the CR LF after the last chunk.
    LastLine,
    /// An upgrade was asked for and is not yet answered.
    Undecided,
    /// The upgrade was accepted: no more requests, only bytes.
    Raw,
    /// No more requests are taken.
    Ended,
}

/// Reads the client's side of an HTTP/1.1 connection and passes on what is sound. No IO, no clock.
#[derive(Debug)]
pub struct RequestGuard {
    state: State,
}

impl Default for RequestGuard {
    fn default() -> Self {
        Self { state: State::Head { searched: 0 } }
    }
}

impl RequestGuard {
    /// At the begin of a connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves what may pass from `input` to `passed`; what can't be judged yet stays.
    ///
    /// # Errors
    /// The first thing that can be read in two ways. Nothing of that request passes, and nothing after it.
    pub fn feed(&mut self, input: &mut BytesMut, passed: &mut BytesMut) -> Result<(), HeadError> {
        while !input.is_empty() {
            let before = (self.state, input.len());
            if let Err(error) = self.step(input, passed) {
                self.state = State::Ended;
                input.clear();
                return Err(error);
            }
            if before == (self.state, input.len()) {
                break;
            }
        }
        Ok(())
    }

    fn step(&mut self, input: &mut BytesMut, passed: &mut BytesMut) -> Result<(), HeadError> {
        match self.state {
            State::Head { searched } => {
                let Some(end) = head_end(input, searched)? else {
                    self.state = State::Head { searched: input.len() };
                    return Ok(());
                };
                let head = input.split_to(end);
                self.state = match check(&head)? {
                    Framing::Length(0) => State::Head { searched: 0 },
                    Framing::Length(left) => State::Body { left },
                    Framing::Chunked => State::ChunkSize,
                    Framing::Upgrade => State::Undecided,
                };
                passed.extend_from_slice(&head);
            }
            State::Body { left } => {
                let left = pass(input, passed, left);
                self.state = if left == 0 { State::Head { searched: 0 } } else { State::Body { left } };
            }
            State::ChunkSize => {
                let Some(line) = line(input, MAX_SIZE_LINE)? else { return Ok(()) };
                let size = chunk_size(&input[..line - 2])?;
                passed.extend_from_slice(&input.split_to(line));
                self.state = if size == 0 { State::LastLine } else { State::Chunk { left: size + 2 } };
            }
            State::Chunk { left: 2 } => {
                let Some(line) = line(input, 2)? else { return Ok(()) };
                passed.extend_from_slice(&input.split_to(line));
                self.state = State::ChunkSize;
            }
            State::Chunk { left } => {
                self.state = State::Chunk { left: pass(input, passed, left - 2) + 2 };
            }
            State::LastLine => {
                // Trailers are refused: nobody here sends any, and they are headers that no rule looked at.
                let Some(line) = line(input, 2)? else { return Ok(()) };
                passed.extend_from_slice(&input.split_to(line));
                self.state = State::Head { searched: 0 };
            }
            State::Undecided => {}
            State::Raw => passed.unsplit(input.split()),
            State::Ended => input.clear(),
        }
        Ok(())
    }

    /// The answer to a request that asked for an upgrade: only if it was accepted does anything more pass.
    pub fn answered(&mut self, accepted: bool) {
        if self.state == State::Undecided {
            self.state = if accepted { State::Raw } else { State::Ended };
        }
    }

    /// Whether a head has begun and is not whole.
    pub fn is_inside_head(&self) -> bool {
        matches!(self.state, State::Head { searched: 1.. })
    }

    /// Whether the next byte would begin a head.
    pub fn is_between_requests(&self) -> bool {
        self.state == State::Head { searched: 0 }
    }

    /// Whether an upgrade waits for its answer.
    pub fn is_undecided(&self) -> bool {
        self.state == State::Undecided
    }

    /// Whether bytes pass as they are.
    pub fn is_raw(&self) -> bool {
        self.state == State::Raw
    }

    /// Whether no more requests are taken.
    pub fn has_ended(&self) -> bool {
        self.state == State::Ended
    }
}

/// The length of the head at the front, once its end came. What can never become a head is told at once.
fn head_end(input: &[u8], searched: usize) -> Result<Option<usize>, HeadError> {
    let from = searched.saturating_sub(3);
    // The first LF LF or LF CR LF ends it for a lenient reader; for us only CR LF CR LF does.
    let mut at = from;
    while let Some(found) = input[at..].iter().position(|byte| *byte == b'\n') {
        let lf = at + found;
        if lf == 0 || input[lf - 1] != b'\r' {
            return Err(HeadError::LineEnd);
        }
        if lf >= 3 && input[lf - 3..lf] == *b"\r\n\r" {
            return if lf < MAX_HEAD { Ok(Some(lf + 1)) } else { Err(HeadError::TooLarge) };
        }
        at = lf + 1;
    }
    if input.len() >= MAX_HEAD { Err(HeadError::TooLarge) } else { Ok(None) }
}

/// The length of the line at the front, CR LF included, once it came.
fn line(input: &[u8], max: usize) -> Result<Option<usize>, HeadError> {
    match input.iter().take(max).position(|byte| *byte == b'\n') {
        Some(lf) if lf > 0 && input[lf - 1] == b'\r' => Ok(Some(lf + 1)),
        Some(_) => Err(HeadError::Chunk),
        None if input.len() >= max => Err(HeadError::Chunk),
        None => Ok(None),
    }
}

/// Hexadecimal digits only: extensions are refused.
fn chunk_size(digits: &[u8]) -> Result<u64, HeadError> {
    let text = std::str::from_utf8(digits).map_err(|_| HeadError::Chunk)?;
    if text.is_empty() || text.len() > 15 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(HeadError::Chunk);
    }
    u64::from_str_radix(text, 16).map_err(|_| HeadError::Chunk)
}

fn pass(input: &mut BytesMut, passed: &mut BytesMut, left: u64) -> u64 {
    let part = input.len().min(usize::try_from(left).unwrap_or(usize::MAX));
    passed.unsplit(input.split_to(part));
    left - part as u64
}
