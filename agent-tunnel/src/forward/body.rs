//! Bodies on their way through: counted, passed on as they come, and broken where they were cut.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use prometheus_client::metrics::counter::Counter;
use towline_tunnel::{
    fault::Fault,
    head::{Answering, Reading},
    mux::CloseReason,
};
use tracing::{debug, warn};

use super::{Caller, Cut, Hanging, watch::Framing};
use crate::{dial::ApiserverBody, impersonate::AuditId, stream::ResetReason};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request's body. An error in it breaks the request on the way out: kube-apiserver never takes a part for the whole.
pub(super) struct Sent {
    body: Incoming,
    bytes: Counter,
    reading: Option<Reading>,
    hanging: Option<Arc<Hanging>>,
}

impl Sent {
    pub(super) fn new(body: Incoming, bytes: Counter, reading: Reading) -> Self {
        let reading = (!body.is_end_stream()).then_some(reading);
        Self { body, bytes, reading, hanging: None }
    }

    /// Holds this for as long as it is not whole.
    pub(super) fn hang(&mut self, hanging: Arc<Hanging>) {
        self.hanging = (!self.body.is_end_stream()).then_some(hanging);
    }
}

impl Body for Sent {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            this.bytes.inc_by(data.len() as u64);
        }
        if this.body.is_end_stream() || frame.is_none() {
            this.reading = None;
            this.hanging = None;
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body, whoever gives it, for as long as it is not whole.
pub(super) struct Answer {
    body: Either<Full<Bytes>, Streamed>,
    _answering: Answering,
}

impl Answer {
    pub(super) fn new(body: Either<Full<Bytes>, Streamed>, answering: Answering) -> Self {
        Self { body, _answering: answering }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of kube-apiserver's answer.
pub(super) struct Streamed {
    body: ApiserverBody,
    /// Of a watch, where it can be ended.
    framing: Option<Framing>,
    bytes: Counter,
    passed: u64,
    cut: Pin<Box<dyn Future<Output = Cut> + Send>>,
    reset: ResetReason,
    caller: Caller,
    audit_id: AuditId,
}

impl Streamed {
    pub(super) fn new(
        body: ApiserverBody,
        framing: Option<Framing>,
        bytes: Counter,
        cut: impl Future<Output = Cut> + Send + 'static,
        reset: ResetReason,
        caller: Caller,
        audit_id: AuditId,
    ) -> Self {
        Self { body, framing, bytes, passed: 0, cut: Box::pin(cut), reset, caller, audit_id }
    }

    /// The answer ends here though kube-apiserver would go on.
    fn end_early(&mut self, why: Cut) -> Option<Result<Frame<Bytes>, BoxError>> {
        let (reason, why) = why.reason();
        let (stream, audit_id, bytes) = (self.caller.stream, self.audit_id, self.passed);
        if self.framing.is_some_and(|framing| framing.is_between_events()) {
            debug!(%stream, %audit_id, bytes, why, "a watch was ended");
            return None;
        }
        warn!(%stream, %audit_id, bytes, why, "an answer was cut");
        self.reset.set(reason, why);
        Some(Err(why.into()))
    }
}

impl fmt::Debug for Streamed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streamed").field("audit_id", &self.audit_id).field("passed", &self.passed).finish()
    }
}

impl Body for Streamed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if let Poll::Ready(why) = this.cut.as_mut().poll(cx) {
            return Poll::Ready(this.end_early(why));
        }
        match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    this.bytes.inc_by(data.len() as u64);
                    this.passed += data.len() as u64;
                    if let Some(framing) = &mut this.framing {
                        framing.observe(data);
                    }
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                // hyper drops the connection without an end now, and the stream says why.
                this.reset.set(CloseReason::Truncated, Fault::ApiserverCut.title());
                let (stream, audit_id, bytes) = (this.caller.stream, this.audit_id, this.passed);
                warn!(%stream, %audit_id, bytes, %error, "kube-apiserver cut its answer short");
                Poll::Ready(Some(Err(error.into())))
            }
            None => {
                let (stream, audit_id, bytes) = (this.caller.stream, this.audit_id, this.passed);
                debug!(%stream, %audit_id, bytes, "answer ended");
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
