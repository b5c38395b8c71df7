//! Agents without a cluster: real sessions, a real mux and real inner TLS; what stands behind them is simulated.

use std::{sync::Arc, time::SystemTime};

use anyhow::Context as _;
use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::JoinSet,
};
use towline_tunnel::{
    carrier::rung::Carrier,
    enrolment::{EnrolmentToken, JOIN},
    fault::Report,
    ids::{ClusterId, InstanceId, KeyHash},
    inner::InnerAcceptor,
    keys::SigningKey,
    mux::{Closed, Connection, EndpointConfig, MuxStream},
    session::{self, Identify, Session, message::Secret},
};

use super::way::Way;
use crate::far::Far;

/// Who an agent is: one instance of a cluster.
#[derive(Clone, Debug)]
pub struct Member {
    cluster: Arc<SigningKey>,
    instance: InstanceId,
    key: Arc<SigningKey>,
    certificate: Vec<u8>,
    relay: Option<KeyHash>,
}

impl Default for Member {
    fn default() -> Self {
        Self::new()
    }
}

impl Member {
    /// The first instance of a cluster that is not enrolled yet.
    pub fn new() -> Self {
        Self {
            cluster: Arc::new(SigningKey::generate()),
            instance: InstanceId::random(),
            key: Arc::new(SigningKey::generate()),
            certificate: Vec::new(),
            relay: None,
        }
    }

    /// Another instance of the same cluster, not yet let in.
    pub fn sibling(&self) -> Self {
        Self { cluster: Arc::clone(&self.cluster), relay: self.relay, ..Self::new() }
    }

    /// The cluster's id.
    pub fn cluster(&self) -> ClusterId {
        self.cluster.public().cluster_id()
    }

    /// Uses an enrolment token.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn join(&mut self, way: &Way, token: &EnrolmentToken) -> Result<Session<Carrier>, Report> {
        self.relay = Some(token.relay_key);
        self.enrol(way, &token.secret).await
    }

    /// Lets itself in with the cluster's key: a sibling of one that is enrolled.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn join_sibling(&mut self, way: &Way) -> Result<Session<Carrier>, Report> {
        self.enrol(way, &Secret::new(JOIN)).await
    }

    async fn enrol(&mut self, way: &Way, secret: &Secret) -> Result<Session<Carrier>, Report> {
        let identify =
            Identify::Enrol { secret, cluster: &self.cluster, instance: self.instance, key: &self.key };
        let session = begin(way, self.relay, identify).await?;
        self.certificate = session.welcome.certificate.clone().unwrap_or_default();
        Ok(session)
    }

    /// Comes back with its certificate.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn come_back(&self, way: &Way) -> Result<Session<Carrier>, Report> {
        let identify = Identify::Agent {
            cluster: self.cluster.public(),
            instance: self.instance,
            key: &self.key,
            certificate: &self.certificate,
            line: false,
            beside: &[],
        };
        begin(way, self.relay, identify).await
    }

    /// Takes inner TLS in the cluster's name.
    ///
    /// # Errors
    /// Never for a sound key.
    pub fn inner(&self) -> anyhow::Result<Arc<InnerAcceptor>> {
        let inner = InnerAcceptor::new(Arc::clone(&self.cluster), SystemTime::now());
        Ok(Arc::new(inner.context("inner TLS can't be set up")?))
    }
}

async fn begin(
    way: &Way,
    relay: Option<KeyHash>,
    identify: Identify<'_>,
) -> Result<Session<Carrier>, Report> {
    let (carrier, exporter) = way.dial().await?;
    // One that never joined knows no relay: no key has this hash.
    let pin = relay.unwrap_or_else(|| KeyHash::from_bytes([0; 32]));
    session::connect(carrier, exporter, pin, identify).await
}

/// What an agent does with a stream.
#[derive(Clone, Debug)]
pub enum Service {
    /// Keeps it, and reads nothing.
    Hold,
    /// Ends its direction at once, and waits for the other's end.
    End,
    /// The same inside inner TLS.
    EndInner(Arc<InnerAcceptor>),
    /// Gives it to the far end as it is.
    Far(Far),
    /// Gives it to the far end, inside inner TLS.
    FarInner(Far, Arc<InnerAcceptor>),
}

/// An agent with a session. Dropping it ends the session.
#[derive(Debug)]
pub struct Agent {
    connection: Connection,
    tasks: JoinSet<()>,
}

impl Agent {
    /// Serves streams on a session.
    pub fn serve(
        session: Session<Carrier>,
        member: &Member,
        mut config: EndpointConfig,
        service: Service,
    ) -> Self {
        config.instance = member.instance;
        let (connection, driver) = Connection::new(session.channel, BytesMut::new(), config);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let _ended: Closed = driver.run().await;
        });
        tasks.spawn(accept(connection.clone(), service));
        Self { connection, tasks }
    }

    /// Its end of the mux.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Waits until all that it does is cut.
    pub async fn end(mut self) {
        self.tasks.shutdown().await;
    }
}

async fn accept(connection: Connection, service: Service) {
    let mut streams = JoinSet::new();
    while let Ok((_, stream)) = connection.accept().await {
        while streams.try_join_next().is_some() {}
        let service = service.clone();
        streams.spawn(async move { serve(stream, service).await });
    }
}

/// A stream that breaks is its opener's matter, who sees it.
async fn serve(mut stream: MuxStream, service: Service) {
    match service {
        Service::Hold => std::future::pending().await,
        Service::End => {
            let _ended = end(&mut stream).await;
        }
        Service::EndInner(inner) => {
            if let Ok((mut stream, _)) = inner.accept(stream, SystemTime::now()).await {
                let _ended = end(&mut stream).await;
            }
        }
        Service::Far(far) => far.serve(Box::new(stream)).await,
        Service::FarInner(far, inner) => {
            if let Ok((stream, _)) = inner.accept(stream, SystemTime::now()).await {
                far.serve(Box::new(stream)).await;
            }
        }
    }
}

async fn end(stream: &mut (impl crate::path::Duplex + ?Sized)) -> std::io::Result<()> {
    stream.shutdown().await?;
    let mut rest = [0; 64];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}
