//! A WebSocket echo server behind the relay's own HTTP, upgrade and framing: what a conformance test can talk to.

use std::{future::poll_fn, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};
use towline_relay::{
    accept::{self, Door},
    health::Readiness,
    limits::Limits,
};
use towline_tunnel::carrier::{CONNECT_PATH, tune, websocket::Messages};

/// No case of a conformance test takes longer.
const CONNECTION_WITHIN: Duration = Duration::from_secs(60);

/// A server that sends back each message as it came. Dropping it ends it.
#[derive(Debug)]
pub struct Echo {
    address: SocketAddr,
    _serving: JoinSet<()>,
}

impl Echo {
    /// Listens on loopback.
    ///
    /// # Errors
    /// If no port can be had.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no port for the echo server")?;
        let address = listener.local_addr()?;
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let readiness = Arc::new(Readiness::new());
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                let readiness = Arc::clone(&readiness);
                connections.spawn(async move { timeout(CONNECTION_WITHIN, serve(tcp, &readiness)).await });
            }
        });
        Ok(Self { address, _serving: serving })
    }

    /// Where a client connects to.
    pub fn url(&self) -> String {
        format!("ws://{}{CONNECT_PATH}", self.address)
    }
}

async fn serve(tcp: TcpStream, readiness: &Arc<Readiness>) -> anyhow::Result<()> {
    tune(&tcp)?;
    let limit = Limits::default().max_header_bytes;
    let Some(carrier) = accept::upgrade(tcp, false, limit, Door::open(Arc::clone(readiness))).await? else {
        return Ok(());
    };
    let mut messages = Messages::new(carrier);
    while let Some(message) = poll_fn(|cx| messages.poll_message(cx)).await {
        messages.send_message(message?).await?;
    }
    Ok(messages.close().await?)
}
