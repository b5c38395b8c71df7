//! `/healthz`, `/readyz` and `/metrics`, on loopback: the one place where an agent listens at all.

use http::StatusCode;
use tokio::net::TcpListener;
use towline_tunnel::observe::{self, Answer, plain, scraped};

use crate::{metrics::Metrics, rights::Findings};

/// Serves for as long as somebody runs it.
pub async fn serve(listener: TcpListener, metrics: Metrics, findings: Findings) {
    let answer = move |path: &str| answer(path, &metrics, &findings);
    observe::serve(listener, answer, std::future::pending()).await;
}

fn answer(path: &str, metrics: &Metrics, findings: &Findings) -> Answer {
    match path {
        "/metrics" => scraped(metrics.page()),
        "/healthz" => plain(StatusCode::OK, "ok\n"),
        "/readyz" if metrics.sessions.get() > 0 => plain(StatusCode::OK, format!("ready\n{findings}")),
        "/readyz" => plain(StatusCode::SERVICE_UNAVAILABLE, "no session with the relay\n"),
        _ => plain(StatusCode::NOT_FOUND, "not found\n"),
    }
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
