//! An inner TLS session as bytes, whose only clean end is close_notify followed by the stream's end.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsStream;

use crate::{
    fault::{Fault, Report},
    session::Exporter,
    write_through::write_through,
};

/// Decrypted bytes. Shutting down sends close_notify and then ends the stream's own direction; the other stays open.
#[derive(Debug)]
pub struct InnerStream<IO> {
    tls: TlsStream<IO>,
    ended: bool,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> InnerStream<IO> {
    pub(super) fn new(tls: TlsStream<IO>) -> Self {
        Self { tls, ended: false }
    }

    /// The stream that carries the session.
    pub fn carrier(&self) -> &IO {
        self.tls.get_ref().0
    }

    /// A key that only the two ends of this session share (RFC 8446, section 7.5).
    ///
    /// # Errors
    /// If the handshake is not finished.
    pub fn exporter(&self, label: &[u8]) -> Result<Exporter, rustls::Error> {
        match &self.tls {
            TlsStream::Client(tls) => tls.get_ref().1.export_keying_material([0; 32], label, None),
            TlsStream::Server(tls) => tls.get_ref().1.export_keying_material([0; 32], label, None),
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for InnerStream<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ended || buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut this.tls).poll_read(cx, buf));
        // rustls reports an end without close_notify by itself; say what it means to people.
        match read {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Poll::Ready(Err(truncated("the stream ended without close_notify")));
            }
            other => other?,
        }
        if buf.filled().len() > before {
            return Poll::Ready(Ok(()));
        }
        // close_notify came: the end is clean once the stream below ended cleanly too.
        let mut rest = [0; 16];
        let mut rest = ReadBuf::new(&mut rest);
        ready!(Pin::new(this.tls.get_mut().0).poll_read(cx, &mut rest))?;
        if !rest.filled().is_empty() {
            return Poll::Ready(Err(truncated("bytes follow close_notify")));
        }
        this.ended = true;
        Poll::Ready(Ok(()))
    }
}

fn truncated(detail: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, Report::new(Fault::StreamTruncated, detail))
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for InnerStream<IO> {
    write_through!(tls);
}
