//! HTTP/2 (RFC 9113): one POST whose body goes up while its answer's body comes down.
//!
//! For networks whose proxies strip `Upgrade` and speak HTTP/2. Extended CONNECT (RFC 8441) is not asked for: ADR 20.

use http::{Method, Request, Version, header};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    CHALLENGED, CONNECT_PATH, STREAMS_WAIT,
    dial::Errand,
    http::{CONTENT_TYPE, HttpCarrier, MAX_HEAD, OUTGOING, RequestError, Tasks, check_answer},
    pipe::pipe,
};

/// The protocol's name in ALPN (RFC 7301).
pub(super) const ALPN: &[u8] = b"h2";
/// What the relay may send unread. A session reads without waiting on anything: this bounds a flight, and not a buffer. 4 MiB are
/// 320 Mb/s at 100 ms.
const WINDOW: u32 = 4 << 20;

/// Asks the relay at the other end of this connection for a carrier. Takes as long as the peer does.
pub(super) async fn client<IO>(
    io: IO,
    authority: &str,
    errand: Errand,
    challenged: bool,
) -> Result<HttpCarrier, RequestError>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let tasks = Tasks::new();
    // Whoever stops waiting for the answer ends the connection.
    let guard = tasks.guard();
    let (mut requests, connection) = http2::Builder::new(tasks.clone())
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_header_list_size(MAX_HEAD)
        .max_send_buf_size(OUTGOING)
        .handshake(TokioIo::new(io))
        .await?;
    tasks.spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "an HTTP/2 connection ended");
        }
    });
    let (writer, body) = pipe(OUTGOING);
    let mut request = Request::builder()
        .method(Method::POST)
        .version(Version::HTTP_2)
        .uri(format!("https://{authority}{CONNECT_PATH}"))
        .header(header::CONTENT_TYPE, CONTENT_TYPE);
    if errand == Errand::GoOn {
        request = request.header(STREAMS_WAIT, "1");
    }
    if challenged {
        request = request.header(CHALLENGED, "1");
    }
    let request = request.body(body).map_err(|_| RequestError::Answer)?;
    let (head, incoming) = requests.send_request(request).await?.into_parts();
    check_answer(head.status, &head.headers)?;
    Ok(HttpCarrier::of_request(incoming, writer).with_tasks(guard).keeping(requests))
}
