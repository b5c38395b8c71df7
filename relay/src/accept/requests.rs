//! HTTP with a peer, until its requests led to a carrier, or beside it.

use std::{
    convert::Infallible,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{Either, Full};
use hyper::{
    body::Incoming, ext::Protocol, server::conn::http1, server::conn::http2, service::service_fn,
    upgrade::OnUpgrade,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    sync::mpsc,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use towline_tunnel::{
    carrier::{
        CHALLENGED, CONNECT_PATH, STREAMS_WAIT, SUBPROTOCOL,
        dial::Errand,
        http::{CONTENT_TYPE, HttpCarrier, OUTGOING},
        pair::{PAIR_PATH, PairId, sequence},
        pipe::{PipeReader, pipe},
        rung::Rung,
        websocket::{WebSocketCarrier, accept_key},
    },
    proto::CloseReason,
};

use super::pairs::{Pair, PairGuard};
use crate::{app::Relay, health::Readiness, metrics::Stage, throttle::Conduct};

/// Streams at once on one h2 connection: a dialler has one; a proxy in front may share a connection between some.
const H2_STREAMS: u32 = 16;
/// h2 requests reset before they were answered, after which the connection ends (CVE-2023-44487).
const H2_RESETS: usize = 16;

/// What stands before a carrier.
#[derive(Debug)]
pub struct Door {
    readiness: Arc<Readiness>,
    /// Whose budget and memory of addresses counts, and the peer's address; none where everybody may pass.
    kept_by: Option<(Arc<Relay>, IpAddr)>,
    /// When its turn came.
    pub(super) turn: Arc<OnceLock<Instant>>,
}

impl Door {
    /// One that everybody may pass.
    pub fn open(readiness: Arc<Readiness>) -> Self {
        Self { readiness, kept_by: None, turn: Arc::default() }
    }

    pub(super) fn of(relay: &Arc<Relay>, from: IpAddr) -> Self {
        let kept_by = Some((Arc::clone(relay), from));
        Self { readiness: relay.readiness(), kept_by, turn: Arc::default() }
    }

    /// Waits until the peer may pass; says when its turn came.
    ///
    /// # Errors
    /// When to come back.
    async fn pass(&self, headers: &HeaderMap) -> Result<Instant, Duration> {
        let Some((relay, from)) = &self.kept_by else { return Ok(Instant::now()) };
        let errand = if headers.contains_key(STREAMS_WAIT) { Errand::GoOn } else { Errand::Begin };
        let (budget, metrics) = (relay.budget(), relay.metrics());
        let begun = Instant::now();
        // As it is now: connections that were made before may ask long after.
        let passed = match relay.authenticator().conduct(*from) {
            // Tokens are for peers that may be let in.
            Conduct::Barred(wait) => Err(wait),
            Conduct::Wasteful => budget.spare(),
            Conduct::Good => {
                let _waits = metrics.waits();
                budget.enter(errand).await
            }
        };
        match passed {
            Ok(turn) => {
                let _first = self.turn.set(turn);
                metrics.accepted(errand, begun.elapsed());
            }
            Err(_) => metrics.refused(Stage::Connection, CloseReason::LimitReached),
        }
        passed
    }
}

/// Why a connection did not become a carrier.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// It is not HTTP, or broke.
    #[error(transparent)]
    Http(#[from] hyper::Error),
    /// RFC 6455, section 4.1: a client sends nothing before the server's answer.
    #[error("the peer sent bytes before the upgrade was answered")]
    Early,
}

/// What a request led to.
pub(super) enum Found {
    /// The connection becomes a websocket once it is no longer HTTP.
    Upgrade {
        on: OnUpgrade,
        /// Whether its dialler wants to know soon if nothing comes of what it sends.
        watched: bool,
    },
    /// A carrier that is this request.
    Carrier(Box<Streamed>),
    /// A websocket in this request's stream (RFC 8441), once it was answered.
    Tunnel {
        on: OnUpgrade,
        watched: bool,
        /// When its turn came.
        turn: Instant,
    },
    /// It is a part of this pair.
    Post(Arc<Pair>),
}

/// A carrier that is HTTP requests.
pub(super) struct Streamed {
    pub(super) carrier: HttpCarrier,
    pub(super) rung: Rung,
    pub(super) watched: bool,
    /// When its turn came.
    pub(super) turn: Instant,
    pub(super) pair: Option<PairGuard>,
}

/// What comes of a connection first.
#[expect(clippy::large_enum_variant, reason = "it is taken apart at once")]
pub(super) enum First<IO> {
    /// It ended, and all that was asked was answered.
    Nothing,
    WebSocket {
        carrier: WebSocketCarrier<IO>,
        watched: bool,
    },
    Found(Found),
}

/// The requests of one connection.
pub(super) struct Requests {
    /// Speaks HTTP; not polled again once it ended.
    pub(super) http: Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>,
    pub(super) finds: mpsc::Receiver<Found>,
    /// Answers what was asked, and nothing more.
    pub(super) leave: CancellationToken,
}

impl Requests {
    pub(super) fn new<IO>(io: IO, http2: bool, max_header_bytes: u64, door: Door) -> Self
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (found, finds) = mpsc::channel(H2_STREAMS as usize);
        let leave = CancellationToken::new();
        let http = http(io, http2, max_header_bytes, Arc::new(door), found, leave.clone());
        Self { http: Box::pin(http), finds, leave }
    }

    /// Waits for what leads to a carrier. Takes as long as the peer does.
    pub(super) async fn first<IO>(&mut self) -> Result<First<IO>, UpgradeError>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (found, ended) = tokio::select! {
            biased;
            Some(found) = self.finds.recv() => (found, false),
            ended = self.http.as_mut() => {
                ended?;
                match self.finds.try_recv() {
                    Ok(found) => (found, true),
                    Err(_) => return Ok(First::Nothing),
                }
            }
        };
        let Found::Upgrade { on, watched } = found else {
            return Ok(if ended { First::Nothing } else { First::Found(found) });
        };
        if !ended {
            self.http.as_mut().await?;
        }
        let Ok(parts) = on.await?.downcast::<TokioIo<IO>>() else {
            debug_assert!(false, "an upgraded connection is what was served");
            return Ok(First::Nothing);
        };
        if !parts.read_buf.is_empty() {
            return Err(UpgradeError::Early);
        }
        Ok(First::WebSocket { carrier: WebSocketCarrier::server(parts.io.into_inner()), watched })
    }
}

async fn http<IO>(
    io: IO,
    http2: bool,
    max_header_bytes: u64,
    door: Arc<Door>,
    found: mpsc::Sender<Found>,
    leave: CancellationToken,
) -> hyper::Result<()>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let max_header = usize::try_from(max_header_bytes).unwrap_or(usize::MAX);
    let service = service_fn(move |request: Request<Incoming>| {
        let (door, found) = (Arc::clone(&door), found.clone());
        async move { Ok::<_, Infallible>(answer(request, &door, &found).await) }
    });
    if http2 {
        // Windows begin with what HTTP/2 has, for the connection as a whole, and grow with what is read of it: only carriers are read.
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(max_header).unwrap_or(u32::MAX))
            .max_concurrent_streams(H2_STREAMS)
            .max_pending_accept_reset_streams(H2_RESETS)
            .max_local_error_reset_streams(H2_RESETS)
            .adaptive_window(true)
            .max_send_buf_size(OUTGOING)
            .enable_connect_protocol()
            .serve_connection(TokioIo::new(io), service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = leave.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    } else {
        let connection = http1::Builder::new()
            .max_buf_size(max_header.max(8 * 1024))
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = leave.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    }
}

/// What is answered: a text, or what a carrier carries.
type Answer = Response<Either<Full<Bytes>, PipeReader>>;

async fn answer(request: Request<Incoming>, door: &Door, found: &mpsc::Sender<Found>) -> Answer {
    let kept_by = door.kept_by.as_ref();
    match (request.uri().path(), request.method(), kept_by) {
        (CONNECT_PATH, &Method::POST, Some(_)) if request.version() == http::Version::HTTP_2 => {
            stream(request, door, found).await
        }
        (CONNECT_PATH, &Method::CONNECT, Some(_)) => tunnel(request, door, found).await,
        (CONNECT_PATH, ..) => upgrade(request, door, found).await,
        (PAIR_PATH, &Method::GET, Some((relay, _))) => pair(&request, door, relay, found).await,
        (PAIR_PATH, &Method::POST, Some((relay, _))) => post(request, relay, found).await,
        (path, &(Method::GET | Method::HEAD), _) => match door.readiness.answer(path) {
            Some(answer) => answer.map(Either::Left),
            None => text(StatusCode::NOT_FOUND, "a towline relay; there is nothing here\n"),
        },
        _ => text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n"),
    }
}

async fn upgrade(mut request: Request<Incoming>, door: &Door, found: &mpsc::Sender<Found>) -> Answer {
    if request.version() != http::Version::HTTP_11 || *request.method() != Method::GET {
        return text(StatusCode::UPGRADE_REQUIRED, "a websocket upgrade with GET and HTTP/1.1 is needed\n");
    }
    let key = match accept_key(request.headers()) {
        Ok(key) => key,
        Err(wrong) => {
            let mut response = text(StatusCode::UPGRADE_REQUIRED, wrong);
            response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            return response;
        }
    };
    if let Err(delay) = door.pass(request.headers()).await {
        return later(delay);
    }
    let watched = request.headers().contains_key(CHALLENGED);
    let on = hyper::upgrade::on(&mut request);
    if found.try_send(Found::Upgrade { on, watched }).is_err() {
        return text(StatusCode::SERVICE_UNAVAILABLE, "too many requests at once\n");
    }
    let mut response = text(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    if let Ok(key) = HeaderValue::from_str(&key) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, key);
    }
    response
}

/// Extended CONNECT (RFC 8441, section 5): what follows is a websocket. Without `:protocol` it asks for a proxy, and there is none.
async fn tunnel(mut request: Request<Incoming>, door: &Door, found: &mpsc::Sender<Found>) -> Answer {
    let is = |name, value: &str| {
        let mut values = request.headers().get_all(name).iter();
        values.next().is_some_and(|said| said.as_bytes() == value.as_bytes()) && values.next().is_none()
    };
    let protocol = request.extensions().get::<Protocol>().map(Protocol::as_str);
    let is_websocket = protocol == Some("websocket") && is(header::SEC_WEBSOCKET_VERSION, "13");
    if !is_websocket || !is(header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL) {
        return text(StatusCode::BAD_REQUEST, "a websocket of the protocol towline.v1 is needed\n");
    }
    let turn = match door.pass(request.headers()).await {
        Ok(turn) => turn,
        Err(delay) => return later(delay),
    };
    let watched = request.headers().contains_key(CHALLENGED);
    let on = hyper::upgrade::on(&mut request);
    if found.try_send(Found::Tunnel { on, watched, turn }).is_err() {
        return text(StatusCode::SERVICE_UNAVAILABLE, "too many requests at once\n");
    }
    let mut response = text(StatusCode::OK, "");
    response.headers_mut().remove(header::CONTENT_TYPE);
    response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    response
}

/// A POST that is a carrier: its body up, its answer's down.
async fn stream(request: Request<Incoming>, door: &Door, found: &mpsc::Sender<Found>) -> Answer {
    let turn = match door.pass(request.headers()).await {
        Ok(turn) => turn,
        Err(delay) => return later(delay),
    };
    let watched = request.headers().contains_key(CHALLENGED);
    let (mut writer, body) = pipe(OUTGOING);
    // As of a pair: some proxies keep the answer's head until its body begins.
    if writer.write_all(SUBPROTOCOL.as_bytes()).await.is_err() {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "");
    }
    let carrier = HttpCarrier::of_request(request.into_body(), writer);
    let streamed = Streamed { carrier, rung: Rung::Http2, watched, turn, pair: None };
    begin(streamed, body, found)
}

/// A GET whose answer carries what goes down.
async fn pair(
    request: &Request<Incoming>,
    door: &Door,
    relay: &Arc<Relay>,
    found: &mpsc::Sender<Found>,
) -> Answer {
    let Some(id) = PairId::of(request.headers()) else {
        return text(StatusCode::BAD_REQUEST, "a pair is named by 32 hexadecimal digits\n");
    };
    let turn = match door.pass(request.headers()).await {
        Ok(turn) => turn,
        Err(delay) => return later(delay),
    };
    let Some((guard, up)) = relay.pairs().begin(id) else {
        return text(StatusCode::CONFLICT, "there is a pair of this name, or there are too many\n");
    };
    let watched = request.headers().contains_key(CHALLENGED);
    let (mut writer, body) = pipe(OUTGOING);
    // The pipe is empty, and has room for it. A proxy that keeps a head until a body begins has no reason to, then.
    if writer.write_all(id.as_bytes()).await.is_err() {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "");
    }
    let carrier = HttpCarrier::of_pair(up, writer);
    let streamed = Streamed { carrier, rung: Rung::Pair, watched, turn, pair: Some(guard) };
    begin(streamed, body, found)
}

fn begin(streamed: Streamed, body: PipeReader, found: &mpsc::Sender<Found>) -> Answer {
    if found.try_send(Found::Carrier(Box::new(streamed))).is_err() {
        return text(StatusCode::SERVICE_UNAVAILABLE, "too many requests at once\n");
    }
    let mut response = Response::new(Either::Right(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
    // nginx passes on what comes, as it comes.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// A part of what goes up a pair; answered once it was passed on.
async fn post(request: Request<Incoming>, relay: &Relay, found: &mpsc::Sender<Found>) -> Answer {
    let id = PairId::of(request.headers());
    let (Some(id), Some(number)) = (id, sequence(request.headers())) else {
        return text(StatusCode::BAD_REQUEST, "a part has its pair's name and its number\n");
    };
    let Some(pair) = relay.pairs().of(id) else {
        return text(StatusCode::NOT_FOUND, "there is no such pair\n");
    };
    if found.try_send(Found::Post(Arc::clone(&pair))).is_err() {
        return text(StatusCode::SERVICE_UNAVAILABLE, "too many requests at once\n");
    }
    match pair.take(number, request.into_body()).await {
        Ok(()) => {
            let mut response = text(StatusCode::NO_CONTENT, "");
            response.headers_mut().remove(header::CONTENT_TYPE);
            response
        }
        Err(status) => text(status, "the pair has ended\n"),
    }
}

/// RFC 9110, section 10.2.3. The connection ends: its peer comes back with another one.
fn later(delay: Duration) -> Answer {
    let mut response = text(StatusCode::SERVICE_UNAVAILABLE, "too many at once: come back later\n");
    let seconds = delay.as_secs() + u64::from(delay.subsec_nanos() > 0);
    let headers = response.headers_mut();
    headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn text(status: StatusCode, text: &'static str) -> Answer {
    let mut response = Response::new(Either::Left(Full::new(Bytes::from_static(text.as_bytes()))));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
