//! A proxy that its relay sends away comes back when it was told, and not before, whoever waits for it.

#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod support;

use std::time::{Duration, Instant};

use support::{Home, Kubectl, Peer, peer::certificate, soon};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_util::task::AbortOnDropHandle;
use towline::app::start;
use towline_tunnel::drain::drain;

/// Beyond what backoff alone would make of the first failures (at most 0.25 s, and then 0.5 s), and of a request that waits.
const TOLD: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_proxy_that_is_sent_away_comes_back_when_it_was_told_whoever_waits() {
    let mut peer = Peer::start().await;
    let home = Home::new(&peer);
    let (pem, acceptor) = certificate();
    std::fs::write(home.path("ca.pem"), format!("{}{pem}", peer.authority_pem())).unwrap();
    let (_trigger, watcher) = drain();
    let running = soon("the start", start(home.config(&peer), watcher)).await.unwrap();
    let kubectl = Kubectl::new(&running.kubeconfig(), 0);
    let mut client = kubectl.h2().await;
    // The relay comes back, and is asked by too many.
    peer.kill().await;
    let listener = TcpListener::bind(peer.address()).await.unwrap();
    let _impatient = AbortOnDropHandle::new(tokio::spawn(async move {
        while client.send(kubectl.get("/version")).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }));
    let mut sent_away: Option<Instant> = None;
    for _ in 0..3 {
        let (tcp, _) = soon("the proxy", listener.accept()).await.unwrap();
        let away = sent_away.map(|since| since.elapsed());
        assert!(away.is_none_or(|away| away >= TOLD), "it came after {away:?}");
        let mut tls = acceptor.accept(tcp).await.unwrap();
        assert!(tls.read(&mut [0; 4096]).await.unwrap() > 0);
        sent_away = Some(Instant::now());
        let answer = format!(
            "HTTP/1.1 503 Service Unavailable\r\nRetry-After: {}\r\nContent-Length: 0\r\n\r\n",
            TOLD.as_secs()
        );
        tls.write_all(answer.as_bytes()).await.unwrap();
        tls.shutdown().await.unwrap();
    }
}
