//! Paths through the relay whose two ends are in this process.

use std::sync::Arc;

use towline_tunnel::{carrier::rung::Rung, ids::ClusterId, inner::InnerConnector};

use super::{
    Rig,
    agent::{Agent, Member, Service},
    client::Client,
    way::Via,
};
use crate::path::{Dialling, Io, Path};

/// Client → relay → agent, each a session of its own; a connection is a stream. What stands before the client and behind
/// the agent in the whole journey is left out: it is the part that towline's relay plays, TLS in and TLS out.
pub struct Simulated {
    name: String,
    client: Arc<Client>,
    cluster: ClusterId,
    inner: Option<InnerConnector>,
    relay: u32,
    agent: Agent,
}

impl Simulated {
    /// The relay alone: streams carry the bytes as they are, as a hop of haproxy would.
    ///
    /// # Errors
    /// If something is refused.
    pub async fn relay_alone(rig: &Rig) -> anyhow::Result<Self> {
        Self::new("relay alone", rig, false, Via::STRAIGHT).await
    }

    /// With inner TLS between client and agent: all that encrypts, in two processes.
    ///
    /// # Errors
    /// If something is refused.
    pub async fn end_to_end(rig: &Rig) -> anyhow::Result<Self> {
        Self::new("client, relay, agent", rig, true, Via::STRAIGHT).await
    }

    /// The same over a line: the agent's way to the relay leads through `line`.
    ///
    /// # Errors
    /// If something is refused.
    pub async fn over_a_line(rig: &Rig, line: std::net::SocketAddr) -> anyhow::Result<Self> {
        Self::new("towline", rig, true, Via { line: Some(line), ..Via::STRAIGHT }).await
    }

    /// The relay alone, both of whose sessions are on this carrier.
    ///
    /// # Errors
    /// If something is refused.
    pub async fn relay_by(rig: &Rig, rung: Rung) -> anyhow::Result<Self> {
        Self::new(&format!("relay alone by {rung}"), rig, false, Via { rung, ..Via::STRAIGHT }).await
    }

    async fn new(name: &str, rig: &Rig, with_inner: bool, via: Via) -> anyhow::Result<Self> {
        let (far, member) = (rig.far.far().clone(), Member::new());
        let service = if with_inner { Service::FarInner(far, member.inner()?) } else { Service::Far(far) };
        let agent = rig.agent_of(member.clone(), &cluster_name(), service, via).await?;
        let client = Arc::new(rig.client_of(member.cluster(), Via { line: None, ..via }).await?);
        let inner = with_inner.then(|| client.inner(member.cluster())).transpose()?;
        Ok(Self {
            name: name.to_owned(),
            client,
            cluster: member.cluster(),
            inner,
            relay: rig.relay.pid(),
            agent,
        })
    }

    /// The client's session.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The agent's.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// The cluster that streams lead to.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }
}

/// One that was not there before.
fn cluster_name() -> String {
    format!("load-{:x}", towline_tunnel::backoff::random())
}

impl Path for Simulated {
    fn name(&self) -> &str {
        &self.name
    }

    fn dial(&self) -> Dialling<'_> {
        Box::pin(async move {
            Ok(match &self.inner {
                None => Box::new(self.client.open(self.cluster)?) as Io,
                Some(inner) => Box::new(self.client.open_inner(self.cluster, inner).await?),
            })
        })
    }

    fn processes(&self) -> Vec<u32> {
        vec![self.relay]
    }
}

impl std::fmt::Debug for Simulated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Simulated({}, {})", self.name, self.cluster)
    }
}
