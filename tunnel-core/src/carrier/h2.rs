//! HTTP/2 (RFC 9113): one request whose body goes up while its answer's body comes down.
//!
//! For networks whose proxies strip `Upgrade` and speak HTTP/2. Where extended CONNECT is offered (RFC 8441) it is asked for
//! first, for a websocket; what offers it and does not pass it on is asked for a POST, on the same connection.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, Version, header, request};
use http_body_util::{Either, Empty};
use hyper::{client::conn::http2, ext::Protocol, upgrade::Upgraded};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    CHALLENGED, CONNECT_PATH, STREAMS_WAIT, SUBPROTOCOL,
    dial::Errand,
    http::{CONTENT_TYPE, HttpCarrier, MAX_HEAD, OUTGOING, RequestError, Tasks, check_answer, check_status},
    pipe::{PipeReader, pipe},
    websocket::WebSocketCarrier,
};

/// The protocol's name in ALPN (RFC 7301).
pub(super) const ALPN: &[u8] = b"h2";
/// What the relay may send unread. A session reads without waiting on anything: this bounds a flight, and not a buffer. 4 MiB are
/// 320 Mb/s at 100 ms.
const WINDOW: u32 = 4 << 20;
/// Extended CONNECT has this long, and leaves as long to the POST.
const CONNECT_WITHIN: Duration = Duration::from_millis(1500);

type Requests = http2::SendRequest<Either<PipeReader, Empty<Bytes>>>;

/// What came of the request.
pub(super) enum Asked {
    /// A POST was answered.
    Post(HttpCarrier),
    /// Extended CONNECT was.
    Tunnel(Box<Tunnel>),
}

/// A websocket inside a stream of HTTP/2 (RFC 8441).
#[derive(Debug)]
pub struct Tunnel {
    carrier: WebSocketCarrier<TokioIo<Upgraded>>,
    _requests: Requests,
    _tasks: DropGuard,
}

impl AsyncRead for Tunnel {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().carrier).poll_read(cx, into)
    }
}

impl AsyncWrite for Tunnel {
    crate::write_through::write_through!(carrier);
}

/// Asks the relay at the other end of this connection for a carrier. Takes as long as the peer does.
pub(super) async fn client<IO>(
    io: IO,
    authority: &str,
    errand: Errand,
    challenged: bool,
) -> Result<Asked, RequestError>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let tasks = Tasks::new();
    // Whoever stops waiting for the answer ends the connection.
    let guard = tasks.guard();
    let (io, introduced) = Introduced::new(io);
    let (mut requests, connection) = http2::Builder::new(tasks.clone())
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_header_list_size(MAX_HEAD)
        .max_send_buf_size(OUTGOING)
        .handshake(TokioIo::new(io))
        .await?;
    introduced.cancelled().await;
    let offers_connect = connection.is_extended_connect_protocol_enabled();
    tasks.spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "an HTTP/2 connection ended");
        }
    });
    let head = |method| {
        let mut request = Request::builder()
            .method(method)
            .version(Version::HTTP_2)
            .uri(format!("https://{authority}{CONNECT_PATH}"));
        if errand == Errand::GoOn {
            request = request.header(STREAMS_WAIT, "1");
        }
        if challenged {
            request = request.header(CHALLENGED, "1");
        }
        request
    };
    if offers_connect {
        match timeout(CONNECT_WITHIN, connect(&mut requests, head(Method::CONNECT))).await {
            Ok(Ok(carrier)) => {
                return Ok(Asked::Tunnel(Box::new(Tunnel { carrier, _requests: requests, _tasks: guard })));
            }
            Ok(Err(RequestError::Busy(delay))) => return Err(RequestError::Busy(delay)),
            Ok(Err(error)) => tracing::debug!(%error, "extended CONNECT was offered, and refused"),
            Err(_elapsed) => tracing::debug!("extended CONNECT was offered, and is not answered"),
        }
    }
    let carrier = post(&mut requests, head(Method::POST)).await?;
    Ok(Asked::Post(carrier.with_tasks(guard).keeping(requests)))
}

async fn post(requests: &mut Requests, head: request::Builder) -> Result<HttpCarrier, RequestError> {
    let (writer, body) = pipe(OUTGOING);
    let request = head.header(header::CONTENT_TYPE, CONTENT_TYPE).body(Either::Left(body));
    let answer = requests.send_request(request.map_err(|_| RequestError::Answer)?).await?;
    let (head, incoming) = answer.into_parts();
    check_answer(head.status, &head.headers)?;
    let mut carrier = HttpCarrier::of_request(incoming, writer);
    let mut greeting = [0; SUBPROTOCOL.len()];
    carrier.read_exact(&mut greeting).await.map_err(|_ended| RequestError::Answer)?;
    if greeting == SUBPROTOCOL.as_bytes() { Ok(carrier) } else { Err(RequestError::Answer) }
}

/// RFC 8441, section 5.
async fn connect(
    requests: &mut Requests,
    head: request::Builder,
) -> Result<WebSocketCarrier<TokioIo<Upgraded>>, RequestError> {
    let request = head
        .extension(Protocol::from_static("websocket"))
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL)
        .body(Either::Right(Empty::new()));
    let mut answer = requests.send_request(request.map_err(|_| RequestError::Answer)?).await?;
    check_status(answer.status(), answer.headers())?;
    let mut said = answer.headers().get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let is_ours = said.next().is_some_and(|name| name.as_bytes() == SUBPROTOCOL.as_bytes());
    if answer.status() != StatusCode::OK || !is_ours || said.next().is_some() {
        return Err(RequestError::Answer);
    }
    let upgraded = hyper::upgrade::on(&mut answer).await?;
    Ok(WebSocketCarrier::client_over(TokioIo::new(upgraded)))
}

/// A connection that tells when its peer's first frame was read and taken: SETTINGS (section 3.4), which say what it offers.
struct Introduced<IO> {
    io: IO,
    /// Of the first frame: its head as far as it came, and then what is missing of the rest.
    first: First,
    taken: CancellationToken,
}

enum First {
    Head(Vec<u8>),
    Rest(usize),
}

/// Of a frame's head (section 4.1).
const FRAME_HEAD: usize = 9;

impl<IO> Introduced<IO> {
    fn new(io: IO) -> (Self, CancellationToken) {
        let taken = CancellationToken::new();
        (Self { io, first: First::Head(Vec::new()), taken: taken.clone() }, taken)
    }
}

impl First {
    fn came(&mut self, mut bytes: &[u8]) {
        if let Self::Head(head) = self {
            let taken = bytes.len().min(FRAME_HEAD - head.len());
            head.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if head.len() < FRAME_HEAD {
                return;
            }
            *self = Self::Rest(usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]));
        }
        if let Self::Rest(rest) = self {
            *rest = rest.saturating_sub(bytes.len());
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Introduced<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        // Who reads on has taken what it read.
        if matches!(me.first, First::Rest(0)) && !me.taken.is_cancelled() {
            me.taken.cancel();
        }
        let before = into.filled().len();
        let read = Pin::new(&mut me.io).poll_read(cx, into);
        if !me.taken.is_cancelled() && read.is_ready() {
            me.first.came(&into.filled()[before..]);
            // It introduces itself no more.
            if into.filled().len() == before {
                me.taken.cancel();
            }
        }
        read
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Introduced<IO> {
    crate::write_through::write_through!(io);
}

#[cfg(test)]
mod tests;
