//! Clients without kubectl: real sessions, a real mux and real inner TLS.

use std::sync::Arc;

use anyhow::Context as _;
use bytes::BytesMut;
use tokio::time::{Duration, Instant, sleep};
use tokio_util::task::AbortOnDropHandle;
use towline_tunnel::{
    ids::{ClusterId, KeyHash, StreamKey},
    inner::{InnerConnector, InnerStream},
    keys::SigningKey,
    mux::{Closed, Connection, EndpointConfig, MuxStream, OpenRequest},
    session::{self, Identify, message::Secret},
};

use super::way::Way;

/// An agent on this machine answers within this.
const OPENED_WITHIN: Duration = Duration::from_secs(10);

/// A client with a session. Dropping it ends the session.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    run_key: Arc<SigningKey>,
    _driver: AbortOnDropHandle<Closed>,
}

impl Client {
    /// Begins a session.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn connect(
        way: &Way,
        relay: KeyHash,
        token: &Secret,
        config: EndpointConfig,
    ) -> anyhow::Result<Self> {
        let run_key = Arc::new(SigningKey::generate());
        let (carrier, exporter) = way.dial().await?;
        let identify = Identify::Client { token, run_key: &run_key, line: false };
        let session = session::connect(carrier, exporter, relay, identify).await?;
        let (connection, driver) = Connection::new(session.channel, BytesMut::new(), config);
        Ok(Self { connection, run_key, _driver: AbortOnDropHandle::new(tokio::spawn(driver.run())) })
    }

    /// Its end of the mux.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Opens a stream; what is written travels at once.
    ///
    /// # Errors
    /// If the session is over, or has too many.
    pub fn open(&self, cluster: ClusterId) -> anyhow::Result<MuxStream> {
        Ok(self.connection.open(OpenRequest::new(StreamKey::random(), cluster))?)
    }

    /// Makes inner TLS with a cluster; to be used again, so that sessions are resumed as the proxy does.
    ///
    /// # Errors
    /// Never for a sound key.
    pub fn inner(&self, cluster: ClusterId) -> anyhow::Result<InnerConnector> {
        InnerConnector::new(cluster, &self.run_key).context("inner TLS can't be set up")
    }

    /// Opens a stream, and begins inner TLS on it.
    ///
    /// # Errors
    /// If the stream is refused, or the agent is another.
    pub async fn open_inner(
        &self,
        cluster: ClusterId,
        inner: &InnerConnector,
    ) -> anyhow::Result<InnerStream<MuxStream>> {
        Ok(inner.connect(self.open(cluster)?).await?)
    }
}

/// Waits for the agent's answer to OPEN.
///
/// # Errors
/// If the stream is refused.
pub async fn opened(mut stream: MuxStream) -> anyhow::Result<MuxStream> {
    use std::task::Poll;
    use tokio::io::{AsyncRead as _, ReadBuf};
    let deadline = Instant::now() + OPENED_WITHIN;
    while stream.opened().is_none() {
        // A refusal shows when reading. Nothing comes from an agent that was not asked.
        let mut byte = [0];
        let read = std::future::poll_fn(|cx| {
            let mut buffer = ReadBuf::new(&mut byte);
            match std::pin::Pin::new(&mut stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                _ => Poll::Ready(Ok(())),
            }
        });
        read.await?;
        anyhow::ensure!(Instant::now() < deadline, "no answer to OPEN within {OPENED_WITHIN:?}");
        sleep(Duration::from_millis(1)).await;
    }
    Ok(stream)
}
