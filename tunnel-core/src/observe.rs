//! What a program tells those who watch it: metrics for Prometheus, and a page over HTTP for probes and scrapers.

mod metrics;

use std::{convert::Infallible, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
pub use metrics::{Present, Process, page};
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// Connections at once; further ones wait in the kernel. One Prometheus and one kubelet need two.
const CONNECTIONS: usize = 16;
/// A request's head must arrive within this time.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// A connection is closed after this time, whatever it does: scrapers dial again.
const CONNECTION_LIFE: Duration = Duration::from_secs(300);
/// Mostly there are too few descriptors: nothing can be accepted until something closes.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// An answer to a probe or a scraper.
pub type Answer = Response<Full<Bytes>>;

/// Answers GET and HEAD with what `answer` makes of the path, until `stop`; then lets answers that have begun end.
pub async fn serve<F>(listener: TcpListener, answer: F, stop: impl Future<Output = ()>)
where
    F: Fn(&str) -> Answer + Send + Sync + 'static,
{
    let (answer, stopped) = (Arc::new(answer), CancellationToken::new());
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let place = Arc::clone(&places).acquire_owned();
        let accepted = tokio::select! {
            () = stop.as_mut() => break,
            accepted = async { (place.await, listener.accept().await) } => accepted,
        };
        while connections.try_join_next().is_some() {}
        let (place, stream) = match accepted {
            (Ok(place), Ok((stream, _))) => (place, stream),
            (_, Err(error)) => {
                debug!(%error, "no connection could be accepted on the metrics listener");
                sleep(ACCEPT_AGAIN).await;
                continue;
            }
            (Err(_), _) => break,
        };
        let (answer, stopped) = (Arc::clone(&answer), stopped.clone());
        connections.spawn(async move {
            let _place = place;
            let service = service_fn(move |request| {
                let answer = answered(&request, &*answer);
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
                    () = stopped.cancelled() => {
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
    stopped.cancel();
    let ended = async { while connections.join_next().await.is_some() {} };
    let _cut = timeout(HEAD_WITHIN, ended).await;
}

fn answered<B>(request: &Request<B>, answer: &impl Fn(&str) -> Answer) -> Answer {
    match *request.method() {
        Method::GET | Method::HEAD => answer(request.uri().path()),
        _ => plain(StatusCode::METHOD_NOT_ALLOWED, "GET only\n"),
    }
}

/// Plain text.
pub fn plain(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// A page of metrics (OpenMetrics text 1.0).
pub fn scraped(page: String) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(page)));
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::*;
    use crate::drain::drain;

    #[tokio::test]
    async fn it_answers_get_until_the_end_and_an_idle_connection_does_not_hold_that() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (trigger, watcher) = drain();
        let answer = |path: &str| plain(StatusCode::OK, format!("this is {path}"));
        let serving = tokio::spawn(serve(listener, answer, async move { watcher.begun().await }));
        let ask = async |line: &str| {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let request = format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        assert!(ask("GET /healthz").await.ends_with("this is /healthz"));
        assert!(ask("POST /healthz").await.starts_with("HTTP/1.1 405"));
        assert!(ask("GET /a?b").await.ends_with("this is /a"));

        let _idle = TcpStream::connect(address).await.unwrap();
        assert!(trigger.drain(Duration::from_secs(10)).await);
        serving.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }
}
