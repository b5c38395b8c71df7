//! Which carrier it is.

use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{dial::OuterTls, h2::Tunnel, http::HttpCarrier, websocket::WebSocketCarrier};

/// A way to carry bytes, in the order in which they are tried: the first costs least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rung {
    /// WebSocket over HTTP/1.1 (RFC 6455).
    WebSocket,
    /// One request over HTTP/2 that goes on for as long as the carrier: extended CONNECT (RFC 8441) where it is offered, or a POST.
    Http2,
    /// An HTTP/1.1 GET whose answer does, and POSTs.
    Pair,
}

impl Rung {
    /// All, the first to try first.
    pub const ALL: [Self; 3] = [Self::WebSocket, Self::Http2, Self::Pair];

    /// As logs and metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Http2 => "http2",
            Self::Pair => "pair",
        }
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A dialler's carrier, whichever got through.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are of the first kind, and its path has no pointer more"
)]
pub enum Carrier {
    /// The first rung.
    WebSocket(WebSocketCarrier<OuterTls>),
    /// Requests with bodies.
    Http(HttpCarrier),
    /// A websocket in a stream of HTTP/2.
    Tunnel(Box<Tunnel>),
}

impl AsyncRead for Carrier {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::WebSocket(io) => Pin::new(io).poll_read(cx, into),
            Self::Http(io) => Pin::new(io).poll_read(cx, into),
            Self::Tunnel(io) => Pin::new(io).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for Carrier {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::WebSocket(io) => Pin::new(io).poll_write(cx, bytes),
            Self::Http(io) => Pin::new(io).poll_write(cx, bytes),
            Self::Tunnel(io) => Pin::new(io).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::WebSocket(io) => Pin::new(io).poll_write_vectored(cx, parts),
            Self::Http(io) => Pin::new(io).poll_write_vectored(cx, parts),
            Self::Tunnel(io) => Pin::new(io).poll_write_vectored(cx, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::WebSocket(io) => io.is_write_vectored(),
            Self::Http(io) => io.is_write_vectored(),
            Self::Tunnel(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::WebSocket(io) => Pin::new(io).poll_flush(cx),
            Self::Http(io) => Pin::new(io).poll_flush(cx),
            Self::Tunnel(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::WebSocket(io) => Pin::new(io).poll_shutdown(cx),
            Self::Http(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tunnel(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
