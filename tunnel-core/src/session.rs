//! Who is at the other end of a hop (`docs/protocol-session.md`).
//!
//! Outer TLS gets through the firewall and proves nothing where a proxy inspects TLS or a load balancer ends it. So
//! the first messages inside the carrier bind the channel to the relay's identity key: the relay signs the TLS
//! exporter (RFC 9266) that it sees. If that is the dialler's own, outer TLS ends at the relay and is the session;
//! otherwise a session TLS 1.3 to the identity key runs inside the carrier. Only then does a credential travel.

mod accept;
mod challenge;
mod connect;
pub mod control;
mod look;
pub mod message;
pub mod question;
pub(crate) mod tls;

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

pub use accept::{AcceptError, Credential, RelayIdentity, accept, accept_watched};
use aws_lc_rs::digest::{Context as Digest, SHA256};
pub use connect::{Identify, Session, connect, connect_challenged};
pub use look::{Seen, look, look_closer, provoke};
pub use message::{Refused, Welcome};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::TlsStream;

use message::{MAX_MESSAGE, Message, MessageError};

/// The whole handshake, from the first byte in the carrier to WELCOME, takes no longer.
pub const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// A TLS exporter value for channel binding (RFC 9266, `tls-exporter`).
pub type Exporter = [u8; 32];

/// The exporter of a TLS connection, where it is TLS 1.3: older versions give no dependable one.
pub fn exporter<D>(connection: &rustls::ConnectionCommon<D>) -> Option<Exporter> {
    if connection.protocol_version() != Some(rustls::ProtocolVersion::TLSv1_3) {
        return None;
    }
    connection.export_keying_material([0; 32], b"EXPORTER-Channel-Binding", None).ok()
}

/// The carrier itself, or the session TLS inside it.
#[derive(Debug)]
pub enum Channel<IO> {
    /// Outer TLS is the session.
    Outer(IO),
    /// Session TLS runs inside the carrier.
    Tls(Box<TlsStream<IO>>),
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Channel<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Outer(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Channel<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Outer(io) => Pin::new(io).poll_write(cx, bytes),
            Self::Tls(io) => Pin::new(io).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Outer(io) => Pin::new(io).poll_flush(cx),
            Self::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Outer(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

/// All that was said before a credential travels, hashed: what proofs are over, besides the exporter.
#[derive(Clone)]
struct Transcript(Digest);

impl Transcript {
    fn new() -> Self {
        Self(Digest::new(&SHA256))
    }

    fn add(&mut self, encoded: &[u8]) {
        self.0.update(encoded);
    }

    fn hash(&self) -> [u8; 32] {
        let mut hash = [0; 32];
        hash.copy_from_slice(self.0.clone().finish().as_ref());
        hash
    }
}

async fn send<IO: AsyncWrite + Unpin>(io: &mut IO, encoded: &[u8]) -> io::Result<()> {
    io.write_all(encoded).await?;
    io.flush().await
}

/// Reads one message, and nothing beyond it; returns its bytes as they stood on the wire, too.
async fn receive<IO: AsyncRead + Unpin>(io: &mut IO) -> Result<(Message, Vec<u8>), ReceiveError> {
    let mut head = [0; 4];
    io.read_exact(&mut head).await?;
    let length = u32::from_be_bytes(head) as usize;
    if length == 0 || length > MAX_MESSAGE {
        return Err(MessageError::Length(length).into());
    }
    let mut encoded = vec![0; 4 + length];
    encoded[..4].copy_from_slice(&head);
    io.read_exact(&mut encoded[4..]).await?;
    Ok((message::decode(&encoded[4..])?, encoded))
}

/// Why no message could be read.
#[derive(Debug, thiserror::Error)]
enum ReceiveError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Message(#[from] MessageError),
}

#[cfg(test)]
mod tests;
