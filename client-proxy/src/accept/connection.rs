//! One connection of a Kubernetes client.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use http::{
    HeaderValue, Request, Response, StatusCode,
    header::{CONNECTION, UPGRADE},
};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
    upgrade::OnUpgrade,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use towline_tunnel::{
    carrier::ReadAhead,
    drain::DrainWatcher,
    fault::{Fault, Report, is_read_raw},
    head::{GuardHandle, HeadGuard, MAX_HEAD, Patience, Steady},
    ids::ClusterId,
};
use tracing::field::display;

use super::{Hosts, rules};
use crate::{
    forward::{Arrival, Forwarder, ResponseBody, Unanswered, UpgradedCopy, refusal},
    local::{EndpointTls, caller},
};

/// Whoever connects wants something: TLS, and then a first request, within this time (THREATS T33).
const BEGIN_WITHIN: Duration = Duration::from_secs(10);
const PATIENCE: Patience = Patience { head: BEGIN_WITHIN, idle: Duration::from_secs(180) };
/// client-go opens one connection a host and puts everything on it, watches included.
const MAX_H2_STREAMS: u32 = 250;
/// What a client may send on one request, and on all of a connection, before it was passed on.
const H2_STREAM_WINDOW: u32 = 1 << 20;
const H2_CONNECTION_WINDOW: u32 = 4 << 20;
/// What waits for a slow reader of one request.
const H2_SEND_BUFFER: usize = 256 * 1024;
/// RESETs of a client that are not yet dealt with (CVE-2023-44487).
const H2_RESETS: usize = 64;
const H2_PING_EVERY: Duration = Duration::from_secs(30);
const H2_PONG_WITHIN: Duration = Duration::from_secs(20);

/// What all connections share.
#[derive(Debug)]
pub(super) struct Scope {
    pub(super) hosts: Hosts,
    pub(super) tls: Arc<EndpointTls>,
    pub(super) forwarder: Arc<Forwarder>,
}

/// What all requests of a connection share.
struct Caller {
    scope: Arc<Scope>,
    cluster: ClusterId,
    /// The guard of an HTTP/1.1 connection.
    guard: Option<GuardHandle>,
    has_asked: AtomicBool,
    /// What follows once the connection is no longer HTTP's.
    upgraded: Mutex<Option<UpgradedCopy>>,
}

/// Serves a connection to its end.
pub(super) async fn serve(tcp: TcpStream, scope: Arc<Scope>, drain: DrainWatcher) {
    let Ok(socket) = SockRef::from(&tcp).try_clone() else { return };
    let tls = match handshake(tcp, &scope.tls).await {
        Ok(tls) => tls,
        Err(report) => {
            tracing::debug!(%report, "a connection was refused");
            return;
        }
    };
    let connection = tls.get_ref().1;
    let Some(cluster) = connection.peer_certificates().and_then(|chain| chain.first()).and_then(caller)
    else {
        tracing::warn!("a client certificate of ours names no cluster");
        return;
    };
    if connection.alpn_protocol() == Some(b"h2") {
        serve_h2(tls, scope, cluster, drain).await;
    } else {
        let clean = serve_h1(tls, scope, cluster, drain).await;
        if !clean {
            // Go takes the end of a TCP connection for the end of the data, even without close_notify. A stream that
            // was cut must not look whole: the client gets a reset.
            let _gone = socket.set_linger(Some(Duration::ZERO));
        }
    }
}

async fn handshake(tcp: TcpStream, tls: &EndpointTls) -> Result<TlsStream<ReadAhead<TcpStream>>, Report> {
    let refused = |error: std::io::Error| Report::caused_by(Fault::LocalCallerUnknown, "", error);
    tcp.set_nodelay(true).map_err(refused)?;
    let acceptor = TlsAcceptor::from(tls.config(SystemTime::now())?);
    match timeout(BEGIN_WITHIN, acceptor.accept(ReadAhead::new(tcp))).await {
        Ok(accepted) => accepted.map_err(refused),
        Err(_elapsed) => Err(Report::new(Fault::RequestTimeout, "the TLS handshake")),
    }
}

/// Says whether the connection ended cleanly, as far as HTTP itself does not tell.
async fn serve_h1(
    tls: TlsStream<ReadAhead<TcpStream>>,
    scope: Arc<Scope>,
    cluster: ClusterId,
    drain: DrainWatcher,
) -> bool {
    let (guarded, guard) = HeadGuard::new(tls, PATIENCE);
    let (guarded, flight) = Steady::new(guarded);
    let caller = Arc::new(Caller::new(scope, cluster, Some(guard.clone())));
    let service = {
        let caller = Arc::clone(&caller);
        service_fn(move |request: Request<Incoming>| {
            if guard.refusal(request.headers()).is_some() {
                flight.is_last();
            }
            answer(Arc::clone(&caller), request)
        })
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .max_buf_size(MAX_HEAD + 1024)
        .serve_connection(TokioIo::new(guarded), service)
        .with_upgrades();
    tokio::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = caller.says_nothing() => return true,
        () = drain.begun() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended");
    }
    let upgraded = caller.upgraded.lock().unwrap_or_else(PoisonError::into_inner).take();
    match upgraded {
        Some(copy) => copy.await,
        None => true,
    }
}

async fn serve_h2(
    tls: TlsStream<ReadAhead<TcpStream>>,
    scope: Arc<Scope>,
    cluster: ClusterId,
    drain: DrainWatcher,
) {
    let caller = Arc::new(Caller::new(scope, cluster, None));
    let service = {
        let caller = Arc::clone(&caller);
        service_fn(move |request| answer(Arc::clone(&caller), request))
    };
    let connection = http2::Builder::new(OwnedTasks::default())
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
        .max_concurrent_streams(MAX_H2_STREAMS)
        .initial_stream_window_size(H2_STREAM_WINDOW)
        .initial_connection_window_size(H2_CONNECTION_WINDOW)
        .max_send_buf_size(H2_SEND_BUFFER)
        .max_pending_accept_reset_streams(H2_RESETS)
        .max_local_error_reset_streams(H2_RESETS)
        .keep_alive_interval(H2_PING_EVERY)
        .keep_alive_timeout(H2_PONG_WITHIN)
        .serve_connection(TokioIo::new(tls), service);
    tokio::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = caller.says_nothing() => return,
        () = drain.begun() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended");
    }
}

impl Caller {
    fn new(scope: Arc<Scope>, cluster: ClusterId, guard: Option<GuardHandle>) -> Self {
        Self { scope, cluster, guard, has_asked: AtomicBool::new(false), upgraded: Mutex::new(None) }
    }

    /// Ends if no request comes at the begin; never ends otherwise.
    async fn says_nothing(&self) {
        sleep(BEGIN_WITHIN).await;
        if self.has_asked.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }
}

async fn answer(
    caller: Arc<Caller>,
    request: Request<Incoming>,
) -> Result<Response<ResponseBody>, Infallible> {
    caller.has_asked.store(true, Ordering::Relaxed);
    let asked = request.extensions().get::<OnUpgrade>().cloned();
    // With or without `Connection: upgrade`, which hyper asks for: the guard lets nothing pass behind it.
    let is_last = request.headers().contains_key(UPGRADE);
    let read_raw = is_read_raw(rules::within_cluster(request.uri().path()), request.headers());
    let (mut response, copy) = match forward(&caller, request).await {
        Ok(answered) => answered,
        Err(Unanswered { report, at, .. }) => {
            let (channel, stream) = (at.map(|at| display(at.channel)), at.map(|at| display(at.stream)));
            tracing::info!(channel, stream, %report, cluster = %caller.cluster, "request failed");
            (refusal(&report, read_raw), None)
        }
    };
    if is_last && caller.guard.is_some() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        // The guard, left undecided, lets nothing more pass (THREATS T9), and the connection ends after this
        // answer. Told of the refusal it would end the input at once, which hyper takes for a client that left.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if let Some((guard, asked)) = caller.guard.as_ref().zip(asked) {
        let then = copy.unwrap_or_else(|| Box::pin(end(asked)));
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            guard.answered_upgrade(true);
        }
        *caller.upgraded.lock().unwrap_or_else(PoisonError::into_inner) = Some(then);
    }
    Ok(response)
}

/// Ends a connection that asked for an upgrade in vain: hyper hands it out all the same, and does not end it.
async fn end(connection: OnUpgrade) -> bool {
    let end = async {
        // Where the connection broke there is nothing to end.
        if let Ok(connection) = connection.await {
            let _ended = TokioIo::new(connection).shutdown().await;
        }
    };
    let _late = timeout(BEGIN_WITHIN, end).await;
    true
}

async fn forward(
    caller: &Caller,
    request: Request<Incoming>,
) -> Result<(Response<ResponseBody>, Option<UpgradedCopy>), Unanswered> {
    let (parts, body) = request.into_parts();
    if let Some(error) = caller.guard.as_ref().and_then(|guard| guard.refusal(&parts.headers)) {
        return Err(Report::from(error).into());
    }
    caller.scope.hosts.check(&parts)?;
    rules::check_head(&parts)?;
    let (cluster, path) = rules::split(parts.uri.path_and_query(), caller.cluster)?;
    if cluster != caller.cluster {
        let own = caller.cluster;
        let what = format!("its certificate is for cluster {own}");
        return Err(Report::new(Fault::LocalCallerUnknown, what).into());
    }
    caller.scope.forwarder.forward(Arrival { cluster, path, parts, body }).await
}

/// Runs what hyper spawns for one connection, and ends it with the connection.
#[derive(Clone, Default)]
struct OwnedTasks(Arc<Mutex<JoinSet<()>>>);

impl<F> hyper::rt::Executor<F> for OwnedTasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}
