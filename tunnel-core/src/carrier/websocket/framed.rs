//! WebSocket frames over IO: what the carrier and single messages have in common.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    Role,
    frame::{Breach, CloseCode, MAX_HEADER, Opcode, encode},
    inbound::{Inbound, Kind, Step},
    outbound::Outbound,
};

/// Longest message that is written, so that rustls takes it whole with its header: 64 KiB, four records.
pub(super) const WRITE_MESSAGE: usize = 64 * 1024 - MAX_HEADER;
/// Parts of a message that are handed on without gathering them, the header among them.
const PARTS: usize = 8;

/// What came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A message begins.
    Begin(Kind),
    /// Bytes of it were appended to the reader's buffer.
    Data,
    /// It is whole.
    End,
    /// The peer has closed, and was answered.
    Closed,
}

/// A WebSocket connection after its upgrade.
///
/// Holds no buffer for what is read, but what was there beyond a frame's end; and none for what is written, but what
/// the IO below would not take.
#[derive(Debug)]
pub(super) struct Framed<IO> {
    io: IO,
    /// What was read and is not judged yet.
    early: BytesMut,
    inbound: Inbound,
    outbound: Outbound,
    /// The reader has something to answer.
    answering: bool,
    /// The peer's close frame came.
    closing: bool,
    /// Nothing more will be read.
    over: bool,
    /// Who waits until the IO takes more.
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// Who wants to write: the reader has answers to send.
#[derive(Clone, Copy)]
enum Who {
    Reader,
    Writer,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Framed<IO> {
    /// `early` is what came behind the upgrade.
    pub(super) fn new(io: IO, role: Role, early: BytesMut) -> Self {
        Self {
            io,
            early,
            inbound: Inbound::new(role),
            outbound: Outbound::new(role),
            answering: false,
            closing: false,
            over: false,
            reader: None,
            writer: None,
        }
    }

    /// What comes next. `buf` must have space. Pings and the close frame are answered (RFC 6455, section 5.5); a pong
    /// that can't be written at once does not hold up reading.
    ///
    /// # Errors
    /// If the peer broke the rules, which it is told, or the connection. From then on all is [`Event::Closed`].
    pub(super) fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<Event>> {
        loop {
            if self.over {
                return Poll::Ready(Ok(Event::Closed));
            }
            if self.answering {
                self.answering = self.poll_flush_by(Who::Reader, cx).is_pending();
            }
            if self.closing {
                if self.answering {
                    return Poll::Pending;
                }
                self.over = true;
                continue;
            }
            match self.inbound.step() {
                Ok(Step::Fill) => ready!(self.poll_fill(cx))?,
                Ok(Step::Data(left)) => {
                    ready!(self.poll_data(cx, left, buf))?;
                    return Poll::Ready(Ok(Event::Data));
                }
                Ok(Step::Begin(kind)) => return Poll::Ready(Ok(Event::Begin(kind))),
                Ok(Step::End) => return Poll::Ready(Ok(Event::End)),
                Ok(Step::Ping) => {
                    self.outbound.answer(self.inbound.control());
                    self.answering = true;
                }
                Ok(Step::Close(code)) => {
                    self.outbound.close(code, "");
                    (self.answering, self.closing) = (true, true);
                }
                Err(breach) => return Poll::Ready(Err(self.refuse(cx, breach))),
            }
        }
    }

    /// Tells the peer how it broke the rules with a close frame (section 7.4.1); reading is over.
    pub(super) fn refuse(&mut self, cx: &mut Context<'_>, breach: Breach) -> io::Error {
        self.over = true;
        self.outbound.close(Some(breach.code.into()), breach.what);
        // Best effort: the peer may not be reading.
        let _flushed = self.poll_flush_by(Who::Reader, cx);
        io::Error::new(io::ErrorKind::InvalidData, breach)
    }

    /// Writes a message of these parts, or as much of their begin as one message holds; returns how much. What the IO
    /// does not take at once is kept: until it is gone, nothing more is taken here.
    ///
    /// # Errors
    /// If this end has closed, or the connection breaks.
    pub(super) fn poll_message(
        &mut self,
        cx: &mut Context<'_>,
        opcode: Opcode,
        parts: &[IoSlice<'_>],
        most: usize,
    ) -> Poll<io::Result<usize>> {
        if self.outbound.is_closed() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, "the websocket is closed")));
        }
        self.poll_writing(Who::Writer, cx, |this, cx| {
            ready!(this.poll_drain(cx))?;
            let mut slices = [IoSlice::new(&[]); PARTS];
            let mut length = 0;
            for (slice, part) in slices[1..].iter_mut().zip(parts.iter().filter(|part| !part.is_empty())) {
                let part = &part[..part.len().min(most - length)];
                *slice = IoSlice::new(part);
                length += part.len();
            }
            let header = this.outbound.header(opcode, length);
            if header.mask.is_some() || !this.io.is_write_vectored() {
                this.outbound.message(&header, slices[1..].iter().map(|part| &**part));
                return match this.poll_drain(cx) {
                    Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                    _ => Poll::Ready(Ok(length)),
                };
            }
            let mut head = [0; MAX_HEADER];
            let mut space = &mut head[..];
            encode(&mut space, &header);
            let unused = space.len();
            slices[0] = IoSlice::new(&head[..MAX_HEADER - unused]);
            let mut rest = &mut slices[..];
            let mut begun = false;
            while rest.iter().any(|slice| !slice.is_empty()) {
                match Pin::new(&mut this.io).poll_write_vectored(cx, rest) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(count)) => IoSlice::advance_slices(&mut rest, count),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending if !begun => return Poll::Pending,
                    Poll::Pending => {
                        // The header says how much follows: the rest is not the caller's any more.
                        this.outbound.rest(rest.iter().map(|part| &**part));
                        break;
                    }
                }
                begun = true;
            }
            Poll::Ready(Ok(length))
        })
    }

    /// Until all that was written is with the kernel.
    ///
    /// # Errors
    /// If the connection breaks.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush_by(Who::Writer, cx)
    }

    /// Says, once, that nothing follows.
    ///
    /// # Errors
    /// If the connection breaks.
    pub(super) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outbound.close(Some(CloseCode::Normal.into()), "");
        self.poll_flush(cx)
    }

    /// Reads a part of a header or of a control frame, and nothing beyond.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let space = self.inbound.space();
        let count = if self.early.is_empty() {
            let mut space = ReadBuf::new(space);
            let read = ready!(Pin::new(&mut self.io).poll_read(cx, &mut space));
            let count = space.filled().len();
            self.read(read, count)?;
            count
        } else {
            let count = space.len().min(self.early.len());
            self.early.copy_to_slice(&mut space[..count]);
            self.forget_early();
            count
        };
        self.inbound.filled(count);
        Poll::Ready(Ok(()))
    }

    /// Reads payload to where it is wanted: at most `left` bytes.
    fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
        left: usize,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let begin = buf.filled().len();
        if self.early.is_empty() {
            let read = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
            let count = buf.filled().len() - begin;
            self.read(read, count)?;
            // The buffer can't be cut to the frame without writing zeros to it first. What of it belongs to the next
            // frame is rarely much: our own peers begin a frame with a TLS record, and no record is read beyond.
            if count > left {
                self.early.extend_from_slice(&buf.filled()[begin + left..]);
                buf.set_filled(begin + left);
            }
        } else {
            let count = left.min(self.early.len()).min(buf.remaining());
            buf.put_slice(&self.early[..count]);
            self.early.advance(count);
            self.forget_early();
        }
        self.inbound.unmask(&mut buf.filled_mut()[begin..]);
        Poll::Ready(Ok(()))
    }

    /// What became of reading `count` bytes; without a close frame, the end is an error.
    fn read(&mut self, read: io::Result<()>, count: usize) -> io::Result<()> {
        let ended = || io::Error::new(io::ErrorKind::UnexpectedEof, "the peer ended without a close frame");
        let read = read.and_then(|()| if count == 0 { Err(ended()) } else { Ok(()) });
        self.over |= read.is_err();
        read
    }

    fn forget_early(&mut self) {
        if self.early.is_empty() {
            self.early = BytesMut::new();
        }
    }

    fn poll_flush_by(&mut self, who: Who, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_writing(who, cx, |this, cx| {
            ready!(this.poll_drain(cx))?;
            this.outbound.release();
            Pin::new(&mut this.io).poll_flush(cx)
        })
    }

    /// Until the IO has taken what is queued.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outbound.is_idle() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, self.outbound.queued()))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.outbound.sent(count),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Polls the IO for writing. It remembers one waker only: if the other side waits too, both are to be woken.
    fn poll_writing<T>(
        &mut self,
        who: Who,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Self, &mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        let other = match who {
            Who::Reader => &self.writer,
            Who::Writer => &self.reader,
        };
        let polled = match other {
            Some(other) if !other.will_wake(cx.waker()) => {
                let both = Waker::from(Arc::new(Both(cx.waker().clone(), other.clone())));
                poll(self, &mut Context::from_waker(&both))
            }
            _ => poll(self, cx),
        };
        let waits = polled.is_pending().then(|| cx.waker().clone());
        match who {
            Who::Reader => self.reader = waits,
            Who::Writer => self.writer = waits,
        }
        polled
    }
}

/// Wakes the reader and the writer.
struct Both(Waker, Waker);

impl Wake for Both {
    fn wake(self: Arc<Self>) {
        self.0.wake_by_ref();
        self.1.wake_by_ref();
    }
}
