//! The byte stream that dialling out yields: the same to a carrier, whichever way it was had.

use std::{
    io::{self, IoSlice},
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

/// A tuned connection to a destination: TCP itself, or what a proxy carries.
#[derive(Debug)]
pub struct EgressStream {
    io: Io,
    /// What came right behind a proxy's answer.
    early: Bytes,
}

#[derive(Debug)]
enum Io {
    Tcp(TcpStream),
    /// TLS to the proxy, which carries the destination's own.
    Tls(Box<TlsStream<TcpStream>>),
}

impl EgressStream {
    /// Over plain TCP.
    pub(super) fn tcp(stream: TcpStream) -> Self {
        Self { io: Io::Tcp(stream), early: Bytes::new() }
    }

    /// Over TLS to a proxy.
    pub(super) fn tls(stream: TlsStream<TcpStream>) -> Self {
        Self { io: Io::Tls(Box::new(stream)), early: Bytes::new() }
    }

    /// The same, with bytes that were read already and are to be read first.
    pub(super) fn with_early(mut self, early: Bytes) -> Self {
        self.early = early;
        self
    }
}

impl EgressStream {
    /// Where it leads as far as this machine's routes go: the destination itself, or a proxy.
    pub fn peer(&self) -> Option<IpAddr> {
        let tcp = match &self.io {
            Io::Tcp(stream) => stream,
            Io::Tls(stream) => stream.get_ref().0,
        };
        Some(tcp.peer_addr().ok()?.ip())
    }
}

impl Io {
    fn inner(&mut self) -> Pin<&mut (dyn Both + '_)> {
        Pin::new(match self {
            Self::Tcp(stream) => stream,
            Self::Tls(stream) => &mut **stream,
        })
    }
}

trait Both: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Both for T {}

impl AsyncRead for EgressStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        if me.early.is_empty() {
            return me.io.inner().poll_read(cx, into);
        }
        let taken = into.remaining().min(me.early.len());
        into.put_slice(&me.early[..taken]);
        me.early.advance(taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for EgressStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().io.inner().poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().io.inner().poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Tcp(stream) => stream.is_write_vectored(),
            Io::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().io.inner().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().io.inner().poll_shutdown(cx)
    }
}
