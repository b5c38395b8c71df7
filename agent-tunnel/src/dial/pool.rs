//! Connections that wait for their next request.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1},
};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::RequestBody;

/// Connections that wait at once; more than this are closed when their answer is whole.
const MAX_IDLE: usize = 64;
/// kube-apiserver closes a connection after 90 s without a request: we are well ahead of it, so that none of ours is
/// sent into a connection that it is just closing.
pub(super) const IDLE: Duration = Duration::from_secs(45);

/// One connection, and the task that moves its bytes.
#[derive(Debug)]
pub(super) struct Line {
    sender: http1::SendRequest<RequestBody>,
    _driver: AbortOnDropHandle<()>,
    idle_since: Instant,
}

impl Line {
    pub(super) fn new(sender: http1::SendRequest<RequestBody>, driver: AbortOnDropHandle<()>) -> Self {
        Self { sender, _driver: driver, idle_since: Instant::now() }
    }

    pub(super) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        self.sender.try_send_request(request).await
    }

    fn is_stale(&self) -> bool {
        self.sender.is_closed() || self.idle_since.elapsed() >= IDLE
    }
}

/// Idle connections, the most recently used last.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<Vec<Line>>);

impl Pool {
    fn lines(&self) -> MutexGuard<'_, Vec<Line>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that can take a request now.
    pub(super) fn take(&self) -> Option<Line> {
        let mut lines = self.lines();
        lines.retain(|line| !line.is_stale());
        let ready = lines.iter().rposition(|line| line.sender.is_ready())?;
        Some(lines.remove(ready))
    }

    pub(super) fn prune(&self) {
        self.lines().retain(|line| !line.is_stale());
    }

    pub(super) fn idle(&self) -> usize {
        self.lines().len()
    }

    fn give_back(&self, mut line: Line) {
        line.idle_since = Instant::now();
        let mut lines = self.lines();
        if lines.len() < MAX_IDLE && !line.sender.is_closed() {
            lines.push(line);
        }
    }
}

/// The body of an answer. Holds its connection, and gives it back once the body is whole; dropped before, it closes the
/// connection, which tells kube-apiserver that nobody waits any more.
#[derive(Debug)]
pub struct ApiserverBody {
    body: Incoming,
    line: Option<Line>,
    pool: Option<Arc<Pool>>,
}

impl ApiserverBody {
    pub(super) fn new(body: Incoming, line: Line, pool: Option<Arc<Pool>>) -> Self {
        Self { body, line: Some(line), pool }
    }

    fn give_back(&mut self) {
        if let (Some(line), Some(pool)) = (self.line.take(), &self.pool) {
            pool.give_back(line);
        }
    }
}

impl Body for ApiserverBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Some(Ok(_)) => {}
            Some(Err(_)) => this.line = None,
            None => this.give_back(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for ApiserverBody {
    /// A reader that knows the length stops before it is told of the end.
    fn drop(&mut self) {
        if self.body.is_end_stream() {
            self.give_back();
        }
    }
}
