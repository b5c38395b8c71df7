//! A bounded pipe between whoever writes bytes and the HTTP library that takes them as a body, or the other way round.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A pipe that holds at most so many bytes.
pub fn pipe(bound: usize) -> (PipeWriter, PipeReader) {
    let state = State { bytes: BytesMut::new(), bound, end: None, seen: false, reads: None, writes: None };
    let shared = Arc::new(Shared(Mutex::new(state)));
    (PipeWriter(Arc::clone(&shared)), PipeReader(shared))
}

#[derive(Debug)]
struct Shared(Mutex<State>);

#[derive(Debug)]
struct State {
    bytes: BytesMut,
    bound: usize,
    end: Option<End>,
    /// The reader was told of the end.
    seen: bool,
    reads: Option<Waker>,
    writes: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The writer said so.
    Clean,
    /// One of both went away, or the pipe was broken.
    Broken,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, end: End) {
        let mut state = self.lock();
        if state.end.is_none() {
            state.end = Some(end);
        }
        state.wake_both();
    }
}

impl State {
    fn wake_both(&mut self) {
        for waker in [self.reads.take(), self.writes.take()].into_iter().flatten() {
            waker.wake();
        }
    }

    /// All that is there, up to `most`; none at a clean end.
    fn take(&mut self, cx: &Context<'_>, most: usize) -> Poll<io::Result<Option<Bytes>>> {
        if !self.bytes.is_empty() {
            let taken = self.bytes.len().min(most);
            let bytes = self.bytes.split_to(taken).freeze();
            if self.bytes.is_empty() {
                // An idle pipe holds no buffer.
                self.bytes = BytesMut::new();
            }
            if let Some(waker) = self.writes.take() {
                waker.wake();
            }
            return Poll::Ready(Ok(Some(bytes)));
        }
        match self.end {
            None => {
                self.reads = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Some(End::Broken) => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            Some(End::Clean) => self.seen = true,
        }
        if let Some(waker) = self.writes.take() {
            waker.wake();
        }
        Poll::Ready(Ok(None))
    }
}

/// The end that is written to. Flushed is what the reader took. Dropped without a shutdown, it breaks the pipe.
#[derive(Debug)]
pub struct PipeWriter(Arc<Shared>);

impl AsyncWrite for PipeWriter {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.0.lock();
        if state.end.is_some() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let taken = state.bound.saturating_sub(state.bytes.len()).min(bytes.len());
        if taken == 0 && !bytes.is_empty() {
            state.writes = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.bytes.extend_from_slice(&bytes[..taken]);
        if let Some(waker) = state.reads.take() {
            waker.wake();
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        if state.bytes.is_empty() {
            return Poll::Ready(Ok(()));
        }
        if state.end == Some(End::Broken) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        state.writes = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Done once the reader has seen the end.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        match state.end {
            Some(End::Broken) => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Some(End::Clean) if state.seen => return Poll::Ready(Ok(())),
            Some(End::Clean) => {}
            None => {
                state.end = Some(End::Clean);
                if let Some(waker) = state.reads.take() {
                    waker.wake();
                }
            }
        }
        state.writes = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for PipeWriter {
    fn drop(&mut self) {
        self.0.end(End::Broken);
    }
}

/// The end that is read from, as bytes or as the body of a message. Dropped, it breaks the pipe.
#[derive(Debug)]
pub struct PipeReader(Arc<Shared>);

impl PipeReader {
    /// What breaks the pipe, from elsewhere.
    pub fn breaker(&self) -> Breaker {
        Breaker(Arc::clone(&self.0))
    }

    /// All that was written, up to `most` bytes, once there is something; none at the end.
    ///
    /// # Errors
    /// If the pipe broke.
    pub(crate) async fn next(&mut self, most: usize) -> io::Result<Option<Bytes>> {
        std::future::poll_fn(|cx| self.0.lock().take(cx, most)).await
    }
}

impl AsyncRead for PipeReader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.lock().take(cx, into.remaining()).map_ok(|bytes| {
            if let Some(bytes) = bytes {
                into.put_slice(&bytes);
            }
        })
    }
}

impl Body for PipeReader {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.0.lock().take(cx, usize::MAX).map(|taken| taken.transpose().map(|bytes| bytes.map(Frame::data)))
    }
}

impl Drop for PipeReader {
    fn drop(&mut self) {
        // After a clean end nothing is lost.
        if !self.0.lock().seen {
            let mut state = self.0.lock();
            state.end = Some(End::Broken);
            state.wake_both();
        }
    }
}

/// Breaks a pipe: its reader is told once it took what was written before.
#[derive(Clone, Debug)]
pub struct Breaker(Arc<Shared>);

impl Breaker {
    /// Now; a pipe that has ended stays so.
    pub fn break_off(&self) {
        self.0.end(End::Broken);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_pipe_holds_its_bound_and_a_flush_waits_until_it_was_taken() {
        let (mut writer, mut reader) = pipe(10);
        assert_eq!(writer.write(&[7; 25]).await.unwrap(), 10);
        assert!(writer.write(&[7]).now_or_never().is_none(), "it is full");
        assert!(writer.flush().now_or_never().is_none(), "nobody took it");
        let mut part = [0; 4];
        reader.read_exact(&mut part).await.unwrap();
        assert!(writer.flush().now_or_never().is_none());
        assert_eq!(writer.write(&[8; 9]).await.unwrap(), 4);
        assert_eq!(reader.next(usize::MAX).await.unwrap().unwrap().len(), 10);
        writer.flush().await.unwrap();
    }

    #[tokio::test]
    async fn an_end_that_was_said_is_one_and_any_other_is_an_error() {
        let (mut writer, mut reader) = pipe(10);
        writer.write_all(b"last").await.unwrap();
        let mut all = Vec::new();
        let (ended, read) = tokio::join!(writer.shutdown(), reader.read_to_end(&mut all));
        assert!(ended.is_ok() && read.is_ok() && all == b"last");

        let (mut writer, mut reader) = pipe(10);
        writer.write_all(b"cut").await.unwrap();
        drop(writer);
        assert!(reader.read_to_end(&mut all).await.is_err());
        assert!(all.ends_with(b"cut"), "what came before it is read");

        let (mut writer, reader) = pipe(10);
        writer.write_all(b"lost").await.unwrap();
        drop(reader);
        assert!(writer.flush().await.is_err() && writer.write(b"x").await.is_err());

        let (_writer, mut reader) = pipe(10);
        reader.breaker().break_off();
        assert!(reader.read(&mut [0]).await.is_err());
    }
}
