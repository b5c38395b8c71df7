//! An agent that its relay sends away comes back when it was told, and not before.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod support;

use std::time::{Duration, Instant};

use support::{Cap, WITHIN, cap::certificates, relay::Relay, whole::config};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::timeout,
};
use towline_agent::app::{self, RelayConfig};
use towline_identity::dev::DevIssuer;
use towline_tunnel::carrier::dial::RelayAddress;

/// Beyond what backoff alone would make of the first failures: at most 0.5 s, and then 1 s.
const TOLD: Duration = Duration::from_secs(2);

#[tokio::test]
async fn an_agent_that_is_sent_away_comes_back_when_it_was_told() {
    let (ca_pem, acceptor) = certificates(&[b"http/1.1"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (issuer, cap, relay) =
        (DevIssuer::start(0).await.unwrap(), Cap::answering("").await, Relay::new().await);
    std::fs::write(folder.path().join("busy.pem"), ca_pem).unwrap();
    let relay = RelayConfig {
        address: Some(RelayAddress::parse(&format!("https://{}", listener.local_addr().unwrap())).unwrap()),
        ca_file: Some(folder.path().join("busy.pem")),
        ..relay.config()
    };
    let _agent = app::start(config(&folder, &issuer, &cap, relay)).await.unwrap();
    let mut sent_away: Option<Instant> = None;
    for _ in 0..3 {
        let (tcp, _) = timeout(WITHIN, listener.accept()).await.expect("the agent comes").unwrap();
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
