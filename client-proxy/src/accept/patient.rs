//! The end of a connection's input, kept from hyper until a refusal was said.
//!
//! hyper takes an end that it reads while an answer is on its way for a client that left, and drops the answer. Behind
//! a request that stands in for a refused one the head guard ends the input itself.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Told that the answer being made is the connection's last.
#[derive(Clone, Debug, Default)]
pub(super) struct LastAnswer(Arc<AtomicBool>);

impl LastAnswer {
    /// Before hyper reads on, which it does before it first polls the answer.
    pub(super) fn begins(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A connection as hyper sees it.
#[derive(Debug)]
pub(super) struct Patient<IO> {
    io: IO,
    last: LastAnswer,
}

impl<IO> Patient<IO> {
    pub(super) fn new(io: IO) -> (Self, LastAnswer) {
        let last = LastAnswer::default();
        (Self { io, last: last.clone() }, last)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Patient<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let ended = buf.filled().len() == before && buf.remaining() > 0;
        if ended && this.last.0.load(Ordering::Relaxed) {
            // Nothing needs to wake the reader: once the answer is written, hyper ends the connection.
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Patient<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
