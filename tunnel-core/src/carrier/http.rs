//! Carriers that are HTTP requests: what they share at both ends.
//!
//! One direction is a body that is read, the other a pipe that HTTP takes a body from.

use std::{
    any::Any,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};

use super::pipe::{PipeReader, PipeWriter};

/// What is written and not yet taken by HTTP, in bytes: little, so that the scheduler decides what goes next.
pub const OUTGOING: usize = 64 * 1024;
/// Largest head of a message that is read, in bytes.
pub(super) const MAX_HEAD: u32 = 64 * 1024;
/// What a carrier's tasks have to say goodbye, once it is dropped.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Where bytes come from.
#[derive(Debug)]
enum Source {
    /// The body of one message, and what of it was not asked for yet.
    Body(Incoming, Bytes),
    /// The bodies of several.
    Pipe(PipeReader),
}

/// A carrier of HTTP requests as bytes.
#[derive(Debug)]
pub struct HttpCarrier {
    source: Source,
    writer: PipeWriter,
    /// Over once the other direction is.
    broken: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    /// What HTTP would close the connection without.
    _requests: Option<Box<dyn Any + Send + Sync>>,
    _tasks: Option<DropGuard>,
}

impl HttpCarrier {
    /// One request with its answer, both streamed (HTTP/2).
    pub fn of_request(incoming: Incoming, writer: PipeWriter) -> Self {
        Self {
            source: Source::Body(incoming, Bytes::new()),
            writer,
            broken: None,
            _requests: None,
            _tasks: None,
        }
    }

    /// Several requests up, whose bodies come out of a pipe, and one answer down: the relay's side of a pair.
    pub fn of_pair(up: PipeReader, writer: PipeWriter) -> Self {
        Self { source: Source::Pipe(up), writer, broken: None, _requests: None, _tasks: None }
    }

    /// Ends what runs beside it with the carrier.
    pub(super) fn with_tasks(mut self, tasks: DropGuard) -> Self {
        self._tasks = Some(tasks);
        self
    }

    /// Keeps this as long as the carrier.
    pub(super) fn keeping(mut self, requests: impl Any + Send + Sync) -> Self {
        self._requests = Some(Box::new(requests));
        self
    }

    /// Reads no further once this is cancelled.
    pub(super) fn until(mut self, broken: CancellationToken) -> Self {
        self.broken = Some(Box::pin(broken.cancelled_owned()));
        self
    }
}

impl AsyncRead for HttpCarrier {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let before = into.filled().len();
        let read = match &mut me.source {
            Source::Pipe(pipe) => Pin::new(pipe).poll_read(cx, into),
            Source::Body(body, rest) => poll_body(body, rest, cx, into),
        };
        match read {
            Poll::Pending if into.filled().len() > before => Poll::Ready(Ok(())),
            Poll::Pending => {
                if let Some(broken) = &mut me.broken {
                    ready!(broken.as_mut().poll(cx));
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                Poll::Pending
            }
            done => done,
        }
    }
}

/// As much as is there, over any number of frames.
fn poll_body(
    body: &mut Incoming,
    rest: &mut Bytes,
    cx: &mut Context<'_>,
    into: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    while into.remaining() > 0 {
        if rest.is_empty() {
            match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                None => break,
                Some(Ok(frame)) => *rest = frame.into_data().unwrap_or_default(),
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            }
        }
        let taken = into.remaining().min(rest.len());
        into.put_slice(&rest[..taken]);
        rest.advance(taken);
    }
    Poll::Ready(Ok(()))
}

impl AsyncWrite for HttpCarrier {
    crate::write_through::write_through!(writer);
}

/// Runs what HTTP needs beside a carrier; all of it ends shortly after the carrier.
#[derive(Clone, Debug)]
pub(super) struct Tasks(CancellationToken);

impl Tasks {
    pub(super) fn new() -> Self {
        Self(CancellationToken::new())
    }

    /// All of them end shortly after this is dropped.
    pub(super) fn guard(&self) -> DropGuard {
        self.0.clone().drop_guard()
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let ended = self.0.clone();
        tokio::spawn(async move {
            let late = async {
                ended.cancelled().await;
                tokio::time::sleep(LAST_WORDS).await;
            };
            tokio::select! {
                () = task => {}
                () = late => {}
            }
        });
    }
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.spawn(task);
    }
}

/// Why a request did not become a carrier.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// What answers does not speak the version of HTTP that is needed.
    #[error("{0} was not agreed on")]
    Version(&'static str),
    /// The connection broke, or its peer does not speak HTTP.
    #[error("the request was not answered")]
    Http(#[from] hyper::Error),
    /// Something answers, and is no relay that takes this.
    #[error("the request was answered {0}")]
    Status(StatusCode),
    /// A relay that has too much to do says when to come back (RFC 9110, section 10.2.3).
    #[error("the relay is busy; it asks to come back in {0:?}")]
    Busy(Duration),
    /// It answers something else.
    #[error("the answer is not a relay's")]
    Answer,
}

/// Judges the head of an answer that should be a carrier.
pub(super) fn check_answer(status: StatusCode, headers: &HeaderMap) -> Result<(), RequestError> {
    check_status(status, headers)?;
    let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    if kind == Some(CONTENT_TYPE.as_bytes()) { Ok(()) } else { Err(RequestError::Answer) }
}

/// The same where there is no body.
pub(super) fn check_status(status: StatusCode, headers: &HeaderMap) -> Result<(), RequestError> {
    if status == StatusCode::OK {
        return Ok(());
    }
    let busy = matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS);
    let seconds = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    match seconds.filter(|_| busy) {
        Some(seconds) => Err(RequestError::Busy(Duration::from_secs(seconds))),
        None => Err(RequestError::Status(status)),
    }
}

/// What a carrier's bodies are. A proxy that scans or compresses texts leaves it alone.
pub const CONTENT_TYPE: &str = "application/octet-stream";
