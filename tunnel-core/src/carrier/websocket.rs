//! WebSocket (RFC 6455) as a byte pipe: binary messages whose boundaries mean nothing.
//!
//! The framing is our own, in both roles. What is read is decrypted into the caller's buffer and unmasked there; what
//! is written goes out with its header, without being gathered, unless it must be masked.

pub mod frame;
mod framed;
mod handshake;
mod inbound;
mod message;
mod outbound;

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::dial::Errand;
use frame::{Breach, CloseCode, Opcode};
use framed::{Event, Framed, WRITE_MESSAGE};
pub use handshake::{HandshakeError, accept_key};
use inbound::Kind;
pub use message::{Message, Messages};

/// Which end this is: a client masks what it sends (section 5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Client,
    Server,
}

/// A WebSocket connection as bytes. Ends with a close frame; a peer's close frame is the end of reading.
#[derive(Debug)]
pub struct WebSocketCarrier<IO> {
    framed: Framed<IO>,
    /// What ended reading while bytes were there to be returned first.
    failed: Option<io::Error>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> WebSocketCarrier<IO> {
    /// The relay's side, once it has answered the upgrade.
    pub fn server(io: IO) -> Self {
        Self::new(io, Role::Server, BytesMut::new())
    }

    /// Sends the upgrade and waits for its answer.
    ///
    /// # Errors
    /// If what answers is not a towline relay, or the connection fails.
    pub async fn client(io: IO, authority: &str, errand: Errand) -> Result<Self, HandshakeError> {
        Self::client_asking(io, authority, errand, false).await
    }

    /// The same by a dialler that may not know whether websockets get through.
    pub(super) async fn client_asking(
        mut io: IO,
        authority: &str,
        errand: Errand,
        challenged: bool,
    ) -> Result<Self, HandshakeError> {
        let early = handshake::upgrade(&mut io, authority, errand, challenged).await?;
        Ok(Self::new(io, Role::Client, early))
    }

    /// The dialler's side, once something else than HTTP/1.1 has answered the upgrade.
    pub(super) fn client_over(io: IO) -> Self {
        Self::new(io, Role::Client, BytesMut::new())
    }

    fn new(io: IO, role: Role, early: BytesMut) -> Self {
        Self { framed: Framed::new(io, role, early), failed: None }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocketCarrier<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(error) = this.failed.take() {
            return Poll::Ready(Err(error));
        }
        let begin = buf.filled().len();
        // As much as is there, over any number of frames: each return costs the mux a turn.
        while buf.remaining() > 0 {
            let error = match this.framed.poll_event(cx, buf) {
                Poll::Ready(Ok(Event::Begin(Kind::Binary) | Event::Data | Event::End)) => continue,
                Poll::Ready(Ok(Event::Closed)) => break,
                Poll::Pending if buf.filled().len() > begin => break,
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(Event::Begin(Kind::Text))) => {
                    let breach = Breach { code: CloseCode::Unsupported, what: "binary messages only" };
                    this.framed.refuse(cx, breach)
                }
                Poll::Ready(Err(error)) => error,
            };
            if buf.filled().len() == begin {
                return Poll::Ready(Err(error));
            }
            this.failed = Some(error);
            break;
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocketCarrier<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if parts.iter().all(|part| part.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        self.get_mut().framed.poll_message(cx, Opcode::Binary, parts, WRITE_MESSAGE)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().framed.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().framed.poll_close(cx)
    }
}

#[cfg(test)]
mod tests;
