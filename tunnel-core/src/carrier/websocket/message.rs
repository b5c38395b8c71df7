//! Whole messages, text among them, by the tunnel's own framing: what conformance tests need, and no tunnel does.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    WebSocketCarrier,
    frame::{Breach, CloseCode, Opcode},
    framed::{Event, Framed},
    inbound::Kind,
};

/// What one look for bytes asks for.
const READ: usize = 4 * 1024;

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// UTF-8.
    Text(String),
    /// Bytes.
    Binary(Bytes),
}

/// A WebSocket connection as messages of at most 256 KiB.
#[derive(Debug)]
pub struct Messages<IO> {
    framed: Framed<IO>,
    kind: Kind,
    /// The message so far.
    payload: BytesMut,
    /// How much of it is known to be UTF-8.
    checked: usize,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Messages<IO> {
    /// Takes a carrier over from which nothing was read.
    pub fn new(carrier: WebSocketCarrier<IO>) -> Self {
        Self { framed: carrier.framed, kind: Kind::Binary, payload: BytesMut::new(), checked: 0 }
    }

    /// The next message; none once the peer has closed. Pings and the close frame are answered (RFC 6455,
    /// section 5.5), and a peer that breaks the rules is told so.
    ///
    /// # Errors
    /// If the peer broke the rules, or the connection.
    pub fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Message>>> {
        let mut space = [0; READ];
        loop {
            let mut buf = ReadBuf::new(&mut space);
            let event = match ready!(self.framed.poll_event(cx, &mut buf)) {
                Ok(event) => event,
                Err(error) => return Poll::Ready(Some(Err(error))),
            };
            let sound = match event {
                Event::Closed => return Poll::Ready(None),
                Event::Begin(kind) => {
                    self.kind = kind;
                    true
                }
                Event::Data => {
                    self.payload.extend_from_slice(buf.filled());
                    self.kind == Kind::Binary || self.check()
                }
                Event::End => {
                    let payload = std::mem::take(&mut self.payload);
                    self.checked = 0;
                    if self.kind == Kind::Binary {
                        return Poll::Ready(Some(Ok(Message::Binary(payload.freeze()))));
                    }
                    // What was not cut short in the middle of a character.
                    match String::from_utf8(payload.into()) {
                        Ok(text) => return Poll::Ready(Some(Ok(Message::Text(text)))),
                        Err(_) => false,
                    }
                }
            };
            if !sound {
                let breach = Breach { code: CloseCode::Invalid, what: "text that is not UTF-8" };
                return Poll::Ready(Some(Err(self.framed.refuse(cx, breach))));
            }
        }
    }

    /// Whether what came of a text may be the begin of UTF-8. It is refused no later than it can be known (section 8.1).
    fn check(&mut self) -> bool {
        match std::str::from_utf8(&self.payload[self.checked..]) {
            Ok(text) => self.checked += text.len(),
            Err(error) if error.error_len().is_none() => self.checked += error.valid_up_to(),
            Err(_) => return false,
        }
        true
    }

    /// Sends one message.
    ///
    /// # Errors
    /// If the connection is closed or breaks.
    pub async fn send_message(&mut self, message: Message) -> io::Result<()> {
        let (opcode, payload) = match &message {
            Message::Text(text) => (Opcode::Text, text.as_bytes()),
            Message::Binary(bytes) => (Opcode::Binary, &bytes[..]),
        };
        let parts = [IoSlice::new(payload)];
        poll_fn(|cx| self.framed.poll_message(cx, opcode, &parts, payload.len())).await?;
        poll_fn(|cx| self.framed.poll_flush(cx)).await
    }

    /// Says that no message follows.
    ///
    /// # Errors
    /// If the connection breaks.
    pub async fn close(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.framed.poll_close(cx)).await
    }
}
