//! `/healthz`, `/readyz` and `/metrics` on a listener of their own, apart from what peers reach.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet, time::timeout};
use towline_tunnel::drain::DrainWatcher;
use tracing::debug;

use crate::metrics::Metrics;

/// Connections at once; further ones wait in the kernel. One Prometheus and one kubelet need two.
const CONNECTIONS: usize = 16;
/// A request's head must arrive within this time.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// A connection is closed after this time, whatever it does: scrapers dial again.
const CONNECTION_LIFE: Duration = Duration::from_secs(300);

/// Whether the relay takes new sessions, and what else is of interest.
#[derive(Debug, Default)]
pub struct Readiness {
    accepting: AtomicBool,
    registry: AtomicBool,
}

impl Readiness {
    /// Not yet accepting; the registry was just opened.
    pub fn new() -> Self {
        Self { accepting: AtomicBool::new(false), registry: AtomicBool::new(true) }
    }

    /// Says that new sessions are taken (the listener is bound), or no longer (drain).
    pub fn set_accepting(&self, accepting: bool) {
        self.accepting.store(accepting, Ordering::Relaxed);
    }

    /// Says whether the registry can be used. The relay stays ready without: what is known goes on.
    pub fn set_registry(&self, available: bool) {
        self.registry.store(available, Ordering::Relaxed);
    }

    /// The answer for `/healthz` or `/readyz`, if the path is one of them. Tells a peer nothing else.
    pub fn answer(&self, path: &str) -> Option<Response<Full<Bytes>>> {
        match path {
            "/healthz" => Some(plain(StatusCode::OK, "ok\n")),
            "/readyz" if !self.accepting.load(Ordering::Relaxed) => {
                Some(plain(StatusCode::SERVICE_UNAVAILABLE, "not accepting sessions\n"))
            }
            "/readyz" if !self.registry.load(Ordering::Relaxed) => Some(plain(
                StatusCode::OK,
                "ready; the registry is away: nothing new can be enrolled or assigned\n",
            )),
            "/readyz" => Some(plain(StatusCode::OK, "ready\n")),
            _ => None,
        }
    }
}

/// Serves until the drain begins; then lets answers that have begun end.
pub async fn serve(listener: TcpListener, metrics: Metrics, readiness: Arc<Readiness>, drain: DrainWatcher) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let place = Arc::clone(&places).acquire_owned();
        let accepted = tokio::select! {
            () = drain.begun() => break,
            accepted = async { (place.await, listener.accept().await) } => accepted,
        };
        while connections.try_join_next().is_some() {}
        let (place, (stream, _)) = match accepted {
            (Ok(place), Ok(accepted)) => (place, accepted),
            (_, Err(error)) => {
                // Mostly EMFILE: there is nothing to accept with until something closes.
                debug!(%error, "no connection could be accepted on the metrics listener");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
            (Err(_), _) => break,
        };
        let (metrics, readiness, drain) = (metrics.clone(), Arc::clone(&readiness), drain.clone());
        connections.spawn(async move {
            let _place = place;
            let service = service_fn(move |request| {
                let answer = answer(&request, &metrics, &readiness);
                async move { Ok::<_, Infallible>(answer) }
            });
            let mut connection = std::pin::pin!(
                http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_WITHIN)
                    .max_buf_size(16 * 1024)
                    .serve_connection(TokioIo::new(stream), service)
            );
            let served = timeout(CONNECTION_LIFE, async {
                tokio::select! {
                    served = connection.as_mut() => served,
                    () = drain.begun() => {
                        connection.as_mut().graceful_shutdown();
                        connection.as_mut().await
                    }
                }
            });
            if let Ok(Err(error)) = served.await {
                debug!(%error, "a connection on the metrics listener ended");
            }
        });
    }
    drop(listener);
    let ended = async { while connections.join_next().await.is_some() {} };
    let _cut = timeout(HEAD_WITHIN, ended).await;
}

fn answer<B>(request: &Request<B>, metrics: &Metrics, readiness: &Readiness) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
    }
    match request.uri().path() {
        "/metrics" => {
            let mut page = Response::new(Full::new(Bytes::from(metrics.page())));
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            page.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
            page
        }
        path => readiness.answer(path).unwrap_or_else(|| plain(StatusCode::NOT_FOUND, "not found\n")),
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };
    use towline_tunnel::{drain::drain, proto::ledger::Ledger};

    use super::*;

    async fn get(address: std::net::SocketAddr, target: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn health_readiness_and_metrics_are_told_until_the_drain() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (trigger, watcher) = drain();
        let readiness = Arc::new(Readiness::new());
        let metrics = Metrics::new(Ledger::new(1));
        let serving = tokio::spawn(serve(listener, metrics.clone(), Arc::clone(&readiness), watcher));

        assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 503"));
        readiness.set_accepting(true);
        assert!(get(address, "/readyz").await.ends_with("ready\n"));
        readiness.set_registry(false);
        let answer = get(address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("registry is away"), "{answer}");
        metrics.opens.inc();
        assert!(get(address, "/metrics").await.contains("towline_relay_opens_total 1"));
        assert!(get(address, "/else").await.starts_with("HTTP/1.1 404"));

        let _idle = TcpStream::connect(address).await.unwrap();
        assert!(trigger.drain(Duration::from_secs(10)).await, "an idle connection does not hold the drain");
        serving.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }
}
