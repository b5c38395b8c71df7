//! A mux stream that says why it ends when it is dropped before its end.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use towline_tunnel::mux::{CloseReason, MuxStream};

/// Why a stream is to be reset, should it be dropped. The stream itself is inside TLS inside HTTP by the time this is
/// known; this stays outside.
#[derive(Clone, Debug, Default)]
pub struct ResetReason(Arc<Mutex<Option<(CloseReason, String)>>>);

impl ResetReason {
    /// From now on dropping the stream tells the peer this.
    pub fn set(&self, reason: CloseReason, detail: impl Into<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((reason, detail.into()));
    }

    /// From now on dropping it is its end as far as it was shut down, and a cancellation otherwise.
    pub fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn take(&self) -> Option<(CloseReason, String)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The stream.
#[derive(Debug)]
pub struct ResettableStream {
    stream: MuxStream,
    reason: ResetReason,
}

impl ResettableStream {
    /// Wraps a stream.
    pub fn new(stream: MuxStream) -> (Self, ResetReason) {
        let reason = ResetReason::default();
        (Self { stream, reason: reason.clone() }, reason)
    }

    /// The stream itself.
    pub fn stream(&self) -> &MuxStream {
        &self.stream
    }
}

impl Drop for ResettableStream {
    fn drop(&mut self) {
        if let Some((reason, detail)) = self.reason.take() {
            self.stream.reset(reason, &detail);
        }
    }
}

impl AsyncRead for ResettableStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for ResettableStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
