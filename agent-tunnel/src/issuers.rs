//! The way to identity providers: out, as everything else; or, where nothing but the relay is reached, by streams through it
//! (`--issuer-via-relay`). TLS is between the agent and the provider on either.

use std::{io, net::IpAddr, sync::Arc};

use tokio::{io::AsyncWriteExt as _, sync::watch};
use tokio_util::either::Either;
use towline_identity::{FetchError, Trust, Verifier};
use towline_tunnel::{
    egress::{Egress, EgressStream},
    ids::{ClusterId, StreamKey},
    issuer_host::IssuerHost,
    mux::{Connection, MuxStream, OpenRequest},
};

/// The session with the relay on which streams begin now, if there is one.
pub(crate) type Sessions = watch::Receiver<Option<Connection>>;

/// How issuers are reached.
#[derive(Clone, Debug)]
pub(crate) struct IssuerWay {
    egress: Egress,
    relay: Option<(ClusterId, Sessions)>,
}

impl IssuerWay {
    /// Straight, or through proxies.
    pub(crate) fn out(egress: Egress) -> Self {
        Self { egress, relay: None }
    }

    /// Through the relay of this cluster's agent.
    pub(crate) fn through_relay(egress: Egress, cluster: ClusterId, sessions: Sessions) -> Self {
        Self { egress, relay: Some((cluster, sessions)) }
    }

    /// Judges tokens by keys that are had on this way.
    ///
    /// # Errors
    /// If an issuer's authorities can't be used.
    pub(crate) fn verifier(self, trust: Trust) -> Result<Verifier, FetchError> {
        Verifier::over(trust, Arc::new(move |host: &str, port: u16| self.dial(host, port)))
    }

    /// A connection for TLS. Whoever asks has a deadline.
    fn dial(
        &self,
        host: &str,
        port: u16,
    ) -> impl Future<Output = io::Result<Either<EgressStream, MuxStream>>> + Send + 'static + use<> {
        // The machine's own metadata service is nowhere else.
        let is_own = matches!(host.parse(), Ok(IpAddr::V4(address)) if address.is_link_local());
        let relay = self.relay.clone().filter(|_| !is_own);
        let host_there = IssuerHost::new(host, port);
        let out = self.egress.open(host, port);
        async move {
            let Some((cluster, sessions)) = relay else { return out.await.map(Either::Left) };
            let host = host_there.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
            through(sessions, cluster, &host).await.map(Either::Right)
        }
    }
}

/// Opens a stream on the session that stands, or on the next one.
async fn through(mut sessions: Sessions, cluster: ClusterId, host: &IssuerHost) -> io::Result<MuxStream> {
    let stands = |session: &Option<Connection>| session.as_ref().is_some_and(Connection::is_open);
    let session = sessions.wait_for(stands).await.map(|session| session.clone());
    let gone = || io::Error::new(io::ErrorKind::NotConnected, "there is no session with the relay");
    let session = session.ok().flatten().ok_or_else(gone)?;
    let mut stream = session.open(OpenRequest::new(StreamKey::random(), cluster))?;
    stream.write_all(&host.preamble()).await?;
    Ok(stream)
}
