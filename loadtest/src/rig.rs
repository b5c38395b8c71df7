//! What a measurement runs on: a relay in a process of its own, an identity provider, the far end; and, in this process,
//! simulated agents and clients that are made of the real code for everything but what stands behind them.

pub mod agent;
pub mod client;
pub mod paths;
pub mod programs;
pub mod relay;
pub mod way;

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use towline_identity::dev::{DevIssuer, TokenRequest};
use towline_tunnel::{
    carrier::dial::{Dialler, RelayAddress},
    ids::{ClusterId, StreamKey},
    mux::{EndpointConfig, Ledger, OpenRequest, Side},
    session::message::Secret,
};

use self::{
    agent::{Agent, Member, Service},
    client::Client,
    relay::Relay,
    way::{Via, Way},
};
use crate::{certificates::Certificates, far::FarEnd};

/// Audience of the tokens for the relay.
pub const RELAY_AUDIENCE: &str = "towline-relay";
/// Audience of the tokens for clusters.
pub const CLUSTER_AUDIENCE: &str = "towline-cluster";
/// As whom clients are known to the relay and to the cluster.
pub const USER: &str = "load";
/// A role that was just assigned reaches the relay within this.
const LET_IN_WITHIN: Duration = Duration::from_secs(10);
/// What an agent and a proxy promise at most, as they have it.
const PROMISES: u64 = 256 << 20;
/// What an agent takes at most, as it has it.
const STREAMS: usize = 16_384;

/// All of it. Dropping it ends it.
#[derive(Debug)]
pub struct Rig {
    /// The relay.
    pub relay: Relay,
    /// Who gives tokens.
    pub issuer: DevIssuer,
    /// What stands behind agents.
    pub far: FarEnd,
    folder: TempDir,
}

impl Rig {
    /// Starts it; `flags` are more flags of `towline-relay serve`.
    ///
    /// # Errors
    /// If something can't be started.
    pub async fn start(flags: &[&str]) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("towline-load-").tempdir()?;
        let issuer = DevIssuer::start(0).await.context("the issuer can't be started")?;
        let issuer_ca = folder.path().join("issuer-ca.pem");
        std::fs::write(&issuer_ca, issuer.ca_pem())?;
        let far = FarEnd::start(Certificates::make(folder.path())?).await?;
        let relay = Relay::start(&folder.path().join("relay"), &issuer.url(), &issuer_ca, flags)?;
        Ok(Self { relay, issuer, far, folder })
    }

    /// Where everything of it is.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The way to the relay, or to what leads there.
    ///
    /// # Errors
    /// If the relay's authority can't be read.
    pub fn way(&self, via: Via) -> anyhow::Result<Way> {
        let address = via.line.unwrap_or_else(|| self.relay.address()).to_string();
        let dialler = Dialler::new(RelayAddress::parse(&address)?, Some(&self.relay.authority()))?;
        Ok(Way::new(dialler, via.rung))
    }

    /// Enrols a simulated agent's cluster under a name, lets clients open it, and connects the agent.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn agent_of(
        &self,
        mut member: Member,
        name: &str,
        service: Service,
        via: Via,
    ) -> anyhow::Result<Agent> {
        let token = self.relay.enroll(name)?;
        let session = member.join(&self.way(via)?, &token).await?;
        self.relay.let_in(USER, name)?;
        Ok(Agent::serve(session, &member, endpoint(), service))
    }

    /// A simulated client, connected.
    ///
    /// # Errors
    /// If it is refused.
    pub async fn client(&self, via: Via) -> anyhow::Result<Client> {
        let token = Secret::new(self.token(RELAY_AUDIENCE)?);
        Client::connect(&self.way(via)?, self.relay.key(), &token, endpoint()).await
    }

    /// A token of [`USER`]'s.
    ///
    /// # Errors
    /// If it can't be signed.
    pub fn token(&self, audience: &str) -> anyhow::Result<String> {
        let mut request = TokenRequest::new(USER, &[], audience);
        request.lifetime = Duration::from_secs(6 * 3600);
        Ok(self.issuer.mint(&request)?)
    }

    /// A client that may open the cluster: waits until the relay knows that.
    ///
    /// # Errors
    /// If it does not come to know.
    pub async fn client_of(&self, cluster: ClusterId, via: Via) -> anyhow::Result<Client> {
        let client = self.client(via).await?;
        let deadline = Instant::now() + LET_IN_WITHIN;
        loop {
            let stream = client.connection().open(OpenRequest::new(StreamKey::random(), cluster))?;
            match client::opened(stream).await {
                Ok(_stream) => return Ok(client),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_not_yet) => sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

/// As the agent and the proxy have it.
pub fn endpoint() -> EndpointConfig {
    EndpointConfig {
        side: Side::Dialler,
        max_streams: STREAMS,
        ledger: Ledger::new(PROMISES),
        instance: towline_tunnel::ids::InstanceId::random(),
        jitter: towline_tunnel::backoff::random().to_be_bytes()[0],
    }
}
