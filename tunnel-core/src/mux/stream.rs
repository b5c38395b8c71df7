//! A stream as bytes.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    connection::Shared,
    keeper::{Owner, Place},
};
use crate::{
    fault::Report,
    ids::{ClusterId, StreamKey},
    proto::{
        CloseReason, Opened, StreamId,
        endpoint::{Endpoint, Read, StreamError},
        resume::{Claim, ResumeKey},
    },
};

/// One stream of a connection.
///
/// Shutting it down sends FIN after what was written; the other direction stays open. Dropping it resets it, unless
/// it was shut down: then what was written is still delivered. Reading gives an end only where the peer sent FIN;
/// a stream that ends otherwise gives an error whose inner error is a [`StreamError`]. One that is kept ([`MuxStream::keep`]) waits
/// while it is between two connections.
#[derive(Debug)]
pub struct MuxStream {
    place: Arc<Place>,
    key: StreamKey,
}

/// Looks at a stream that is inside something else by now.
#[derive(Clone, Debug)]
pub struct StreamView(Arc<Place>);

impl StreamView {
    /// Whether the stream has no connection now, and waits for one: what is written stays here, and nothing comes.
    pub fn is_waiting(&self) -> bool {
        self.0.with(|endpoint, id| endpoint.is_parked(id) || endpoint.is_resuming(id))
    }

    /// Whether the stream was moved to a line, among bulk.
    pub fn has_moved(&self) -> bool {
        self.0.has_moved()
    }
}

impl MuxStream {
    pub(super) fn new(shared: Arc<Shared>, id: StreamId, key: StreamKey) -> Self {
        Self { place: Arc::new(Place::new(shared, id)), key }
    }

    /// Its number on the connection that it is on now.
    pub fn id(&self) -> StreamId {
        self.place.lock().id
    }

    /// Its name, the same on every hop.
    pub fn key(&self) -> StreamKey {
        self.key
    }

    /// The far endpoint's answer to OPEN, once it came.
    pub fn opened(&self) -> Option<Opened> {
        self.place.with(|endpoint, id| endpoint.opened(id))
    }

    /// From now on it outlives its connection, if that was made with a [`Keeper`](super::Keeper): it can be taken up by whoever holds
    /// the key of its proofs. For after the inner handshake. At the agent, its owner decides beside that whether a RESUME's
    /// ticket lets its caller in.
    pub fn keep(&self, cluster: ClusterId, proofs: ResumeKey, owner: Option<Owner>) {
        if let Some(instance) = self.place.with(|endpoint, id| endpoint.instance_of(id)) {
            self.place.keep(Claim::new(self.key, cluster, instance, proofs), owner);
        }
    }

    /// For whoever hands the stream on and still wants to know how it is.
    pub fn view(&self) -> StreamView {
        StreamView(Arc::clone(&self.place))
    }

    /// Ends it at once in both directions, and says why.
    pub fn reset(&self, reason: CloseReason, detail: &str) {
        self.place.with(|endpoint, id| endpoint.reset(id, reason, detail));
    }
}

impl Drop for MuxStream {
    fn drop(&mut self) {
        self.place.with(Endpoint::release);
    }
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        let kind = match error.reason {
            CloseReason::Detached | CloseReason::PeerDead | CloseReason::Lost => {
                io::ErrorKind::ConnectionAborted
            }
            CloseReason::Truncated => io::ErrorKind::UnexpectedEof,
            CloseReason::Timeout => io::ErrorKind::TimedOut,
            CloseReason::Forbidden | CloseReason::Unauthenticated => io::ErrorKind::PermissionDenied,
            _ => io::ErrorKind::ConnectionReset,
        };
        io::Error::new(kind, error)
    }
}

impl From<StreamError> for Report {
    fn from(error: StreamError) -> Self {
        let detail = if error.detail.is_empty() { error.reason.text().to_owned() } else { error.detail };
        Report::new(error.reason.fault(), detail)
    }
}

impl AsyncRead for MuxStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        self.place.with(|endpoint, id| match endpoint.read(id, buf.initialize_unfilled()) {
            Ok(Read::Bytes(n)) => {
                buf.advance(n);
                Poll::Ready(Ok(()))
            }
            Ok(Read::End) => Poll::Ready(Ok(())),
            Ok(Read::Wait) => {
                if let Some(wakers) = endpoint.signal(id) {
                    wakers.reader = Some(cx.waker().clone());
                }
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error.into())),
        })
    }
}

impl AsyncWrite for MuxStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.place.with(|endpoint, id| match endpoint.write(id, bytes) {
            Ok(0) => {
                if let Some(wakers) = endpoint.signal(id) {
                    wakers.writer = Some(cx.waker().clone());
                }
                Poll::Pending
            }
            Ok(n) => Poll::Ready(Ok(n)),
            Err(error) => Poll::Ready(Err(error.into())),
        })
    }

    /// Written bytes are on their way without being asked.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.place.with(Endpoint::finish).map_err(io::Error::from))
    }
}
