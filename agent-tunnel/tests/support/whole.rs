//! A whole agent's surroundings: a relay's, an issuer's and kube-apiserver's stand-ins, a folder, and a caller.

use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use towline_agent::{
    app::{self, Config, Limits, RelayConfig, Running},
    dial::ApiserverConfig,
    forward::Access,
};
use towline_identity::dev::{DevIssuer, TokenRequest};
use towline_tunnel::{
    clock::Clock,
    egress::Egress,
    fault::Report,
    ids::{ClusterId, StreamKey},
    inner::{InnerConnector, InnerStream},
    keys::SigningKey,
    mux::{MuxStream, OpenRequest},
    ticket::{MAX_LIFE, Ticket},
};

use super::{
    Cap, issuer_config, read_to_end,
    relay::{AgentSession, Relay},
};

pub struct World {
    pub folder: TempDir,
    pub issuer: DevIssuer,
    pub cap: Cap,
    pub relay: Relay,
    pub run_key: SigningKey,
}

impl World {
    pub async fn with(cap: Cap) -> Self {
        let (folder, issuer) = (tempfile::tempdir().unwrap(), DevIssuer::start(0).await.unwrap());
        Self { folder, issuer, cap, relay: Relay::new().await, run_key: SigningKey::generate() }
    }

    pub fn config(&self) -> Config {
        config(&self.folder, &self.issuer, &self.cap, self.relay.config())
    }

    pub async fn start(&self) -> Running {
        app::start(self.config()).await.unwrap()
    }

    /// What this relay's ticket key says of alice.
    fn request(&self, cluster: ClusterId, tickets: &SigningKey) -> OpenRequest {
        let mut request = OpenRequest::new(StreamKey::random(), cluster);
        let (principal, key) = (format!("{}#alice", self.issuer.url()), self.run_key.public().hash());
        request.ticket =
            Some(Ticket::new(cluster, principal, key, SystemTime::now(), MAX_LIFE).sign(tickets));
        request
    }

    /// A stream of alice's through this session, whose ticket is signed so.
    pub fn open(&self, cluster: ClusterId, session: &AgentSession, tickets: &SigningKey) -> MuxStream {
        session.connection.open(self.request(cluster, tickets)).unwrap()
    }

    /// An inner connection of alice's on that.
    pub async fn inner(
        &self,
        cluster: ClusterId,
        stream: MuxStream,
    ) -> Result<InnerStream<MuxStream>, Report> {
        InnerConnector::new(cluster, &self.run_key).unwrap().connect(stream).await
    }

    /// An inner connection of alice's through this session of the relay's.
    pub async fn connect(&self, cluster: ClusterId, session: &AgentSession) -> InnerStream<MuxStream> {
        self.inner(cluster, self.open(cluster, session, &self.relay.tickets)).await.unwrap()
    }

    pub fn head(&self, line: &str) -> String {
        let token = self.issuer.mint(&TokenRequest::new("alice", &["dev"], "towline-cluster")).unwrap();
        format!("{line} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n")
    }

    /// What is answered on this inner connection.
    pub async fn answer(&self, mut stream: InnerStream<MuxStream>, path: &str) -> String {
        stream.write_all(self.head(&format!("GET {path}")).as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        read_to_end(&mut stream).await.unwrap()
    }
}

/// An agent with one relay, as it comes but for what is on this machine.
pub fn config(folder: &TempDir, issuer: &DevIssuer, cap: &Cap, relay: RelayConfig) -> Config {
    Config {
        data_dir: folder.path().join("agent"),
        state_secret: None,
        relay,
        second_relay: None,
        egress: Egress::direct(),
        issuer_via_relay: false,
        apiserver: ApiserverConfig::Kubeconfig { path: cap.kubeconfig(folder), context: None },
        impersonator: None,
        access: Access::default(),
        roles: None,
        issuer: issuer_config(issuer, folder).into(),
        metrics_listen: "127.0.0.1:0".parse().unwrap(),
        drain_timeout: Duration::from_secs(5),
        resume_timeout: Duration::from_secs(60),
        lines: app::default_lines(),
        holding: app::Holding::default(),
        audit: None,
        limits: Limits::default(),
        clock: Clock::system(),
    }
}
