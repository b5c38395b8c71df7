//! Bodies on their way, and what their ends mean for the connection that carries them.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::BodyError;
use crate::dial::{InnerConnection, Pool, report_of};

/// What goes back to a Kubernetes client.
pub type ResponseBody = UnsyncBoxBody<Bytes, BodyError>;

/// Whether a request's body was taken whole.
#[derive(Clone, Debug, Default)]
pub(super) struct Sent(Arc<AtomicBool>);

impl Sent {
    pub(super) fn is_whole(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A request's body.
pub(super) struct Upload {
    body: Incoming,
    sent: Sent,
}

impl Upload {
    pub(super) fn new(body: Incoming) -> (Self, Sent) {
        let sent = Sent(Arc::new(AtomicBool::new(body.is_end_stream())));
        (Self { body, sent: sent.clone() }, sent)
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            let frame = ready!(Pin::new(&mut self.body).poll_frame(cx)).transpose()?;
            if frame.is_none() || self.body.is_end_stream() {
                self.sent.0.store(true, Ordering::Release);
            }
            // Trailers are headers that no rule looked at; the agent would refuse the request.
            match frame {
                Some(frame) if frame.is_trailers() => {}
                other => return Poll::Ready(other.map(Ok)),
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

/// An answer's body. Its connection goes back to the pool once both bodies ended; in any other case it is dropped,
/// which resets the stream.
pub(super) struct Download {
    body: Incoming,
    carrier: Option<(InnerConnection, Option<Arc<Pool>>)>,
    sent: Sent,
}

impl Download {
    pub(super) fn new(body: Incoming, connection: InnerConnection, pool: Arc<Pool>, sent: Sent) -> Self {
        let mut download = Self { body, carrier: Some((connection, Some(pool))), sent };
        if download.body.is_end_stream() {
            download.ended();
        }
        download
    }

    /// The last answer on its connection.
    pub(super) fn last(body: Incoming, connection: InnerConnection) -> Self {
        Self { body, carrier: Some((connection, None)), sent: Sent::default() }
    }

    fn ended(&mut self) {
        if let Some((connection, Some(pool))) = self.carrier.take()
            && self.sent.is_whole()
        {
            pool.put_back(connection);
        }
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Err(error)) => {
                let report = report_of(error);
                if let Some((connection, _)) = self.carrier.take() {
                    let at = connection.at;
                    tracing::warn!(%report, channel = %at.channel, stream = %at.stream, "an answer was cut short");
                }
                return Poll::Ready(Some(Err(report.into())));
            }
            None => self.ended(),
            Some(Ok(_)) if self.body.is_end_stream() => self.ended(),
            Some(Ok(_)) => {}
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
