//! `/healthz`, `/readyz` and `/metrics` on a listener of their own, apart from what peers reach.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use http::StatusCode;
use tokio::net::TcpListener;
use towline_tunnel::{
    drain::DrainWatcher,
    observe::{self, Answer, plain, scraped},
};

use crate::metrics::Metrics;

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
    pub fn answer(&self, path: &str) -> Option<Answer> {
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
    let answer = move |path: &str| match path {
        "/metrics" => scraped(metrics.page()),
        path => readiness.answer(path).unwrap_or_else(|| plain(StatusCode::NOT_FOUND, "not found\n")),
    };
    observe::serve(listener, answer, async move { drain.begun().await }).await;
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
