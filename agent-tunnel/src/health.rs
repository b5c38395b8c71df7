//! `/healthz`, `/readyz` and `/metrics`, on loopback: the one place where an agent listens at all.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet, time::timeout};

use crate::{metrics::Metrics, rights::Findings};

/// Connections at once; further ones wait in the kernel.
const CONNECTIONS: usize = 16;
/// A request's head must arrive within this time.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// A connection is closed after this time, whatever it does: scrapers dial again.
const CONNECTION_LIFE: Duration = Duration::from_secs(300);
/// Mostly there are too few descriptors: nothing can be accepted until something closes.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Serves for as long as somebody runs it.
pub async fn serve(listener: TcpListener, metrics: Metrics, findings: Findings) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "no connection could be accepted on the metrics listener");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let (metrics, findings) = (metrics.clone(), findings.clone());
        connections.spawn(async move {
            let _place = place;
            let service = service_fn(move |request| {
                let answer = answer(&request, &metrics, &findings);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_WITHIN)
                .max_buf_size(16 * 1024)
                .serve_connection(TokioIo::new(stream), service);
            // A connection that breaks is the scraper's to notice.
            let _ended = timeout(CONNECTION_LIFE, connection).await;
        });
    }
}

fn answer<B>(request: &Request<B>, metrics: &Metrics, findings: &Findings) -> Response<Full<Bytes>> {
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
        "/healthz" => plain(StatusCode::OK, "ok\n"),
        "/readyz" if metrics.sessions.get() > 0 => plain(StatusCode::OK, format!("ready\n{findings}")),
        "/readyz" => plain(StatusCode::SERVICE_UNAVAILABLE, "no session with the relay\n"),
        _ => plain(StatusCode::NOT_FOUND, "not found\n"),
    }
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
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
    use towline_tunnel::proto::ledger::Ledger;

    use super::*;

    #[tokio::test]
    async fn health_readiness_and_metrics_are_told() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Metrics::new(Ledger::new(1));
        let _serving = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(serve(
            listener,
            metrics.clone(),
            Findings::default(),
        )));
        let get = async |target: &str| {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        assert!(get("/healthz").await.starts_with("HTTP/1.1 200"));
        assert!(get("/readyz").await.starts_with("HTTP/1.1 503"));
        metrics.sessions.inc();
        assert!(get("/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(get("/metrics").await.contains("towline_agent_sessions 1"));
        assert!(get("/else").await.starts_with("HTTP/1.1 404"));
    }
}
