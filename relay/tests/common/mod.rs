//! A real relay on loopback, and peers that speak its protocol by the real library.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod ladder;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::BytesMut;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};
use towline_identity::{
    IssuerConfig, IssuerSettings,
    dev::{DevIssuer, TokenRequest},
};
use towline_relay::{
    app::{self, AuditConfig, Config, Running},
    enrol::{TokenRequest as EnrolRequest, make_token},
    limits::Limits,
    registry::{Role, RoleAssignment, SubjectKind},
    tls::TlsSource,
};
use towline_tunnel::{
    carrier::dial::Dialler,
    clock::Clock,
    fault::Report,
    ids::{ChannelId, ClusterId, InstanceId, StreamKey},
    issuer_host::IssuerHost,
    keys::SigningKey,
    mux::{Closed, Connection, EndpointConfig, Keeper, Ledger, MuxStream, OpenRequest, Side},
    session::{Identify, Session, connect, message::Secret},
};

/// What a test waits for at most.
pub(crate) const SOON: Duration = Duration::from_secs(10);

pub(crate) struct Bench {
    pub(crate) folder: TempDir,
    pub(crate) issuer: DevIssuer,
    pub(crate) relay: Running,
    /// What it was started with.
    pub(crate) config: Config,
    pub(crate) ca: PathBuf,
}

/// A connected cluster: its key, and the mux connection of its one agent.
pub(crate) struct Agent {
    pub(crate) identity: SigningKey,
    pub(crate) instance: InstanceId,
    pub(crate) channel: ChannelId,
    pub(crate) key: SigningKey,
    pub(crate) certificate: Vec<u8>,
    pub(crate) connection: Connection,
    pub(crate) driver: JoinHandle<Closed>,
}

impl Agent {
    pub(crate) fn cluster(&self) -> ClusterId {
        self.identity.public().cluster_id()
    }

    /// How another session of its instance begins, or a line of it.
    pub(crate) fn identify<'a>(&'a self, line: bool, beside: &'a [ChannelId]) -> Identify<'a> {
        Identify::Agent {
            cluster: self.identity.public(),
            instance: self.instance,
            key: &self.key,
            certificate: &self.certificate,
            line,
            beside,
        }
    }
}

pub(crate) struct Client {
    pub(crate) connection: Connection,
    pub(crate) driver: JoinHandle<Closed>,
}

impl Client {
    pub(crate) fn open(&self, cluster: ClusterId) -> MuxStream {
        self.connection.open(OpenRequest::new(StreamKey::random(), cluster)).unwrap()
    }
}

pub(crate) fn limits() -> Limits {
    Limits::default()
}

impl Bench {
    pub(crate) async fn new(limits: Limits) -> Self {
        Self::audited(limits, |_| AuditConfig::default()).await
    }

    /// One whose audit may stand in the bench's folder.
    pub(crate) async fn audited(limits: Limits, audit: impl FnOnce(&Path) -> AuditConfig) -> Self {
        Self::build(limits, audit, Vec::new()).await
    }

    /// One that leads agents to these identity providers.
    pub(crate) async fn leading_to(issuer_hosts: Vec<IssuerHost>) -> Self {
        Self::build(limits(), |_| AuditConfig::default(), issuer_hosts).await
    }

    async fn build(
        limits: Limits,
        audit: impl FnOnce(&Path) -> AuditConfig,
        issuer_hosts: Vec<IssuerHost>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let issuer = DevIssuer::start(0).await.unwrap();
        let issuer_ca = folder.path().join("issuer.pem");
        std::fs::write(&issuer_ca, issuer.ca_pem()).unwrap();
        let data_dir = folder.path().join("relay");
        std::fs::create_dir(&data_dir).unwrap();
        let config = Config {
            data_dir: data_dir.clone(),
            listen: "127.0.0.1:0".parse().unwrap(),
            metrics_listen: "127.0.0.1:0".parse().unwrap(),
            tls: TlsSource::SelfSigned { names: vec!["127.0.0.1".into()], data_dir },
            public: None,
            issuer: IssuerConfig::parse(IssuerSettings {
                issuer_url: issuer.url(),
                client_id: "towline-relay".into(),
                username_prefix: Some("-".into()),
                groups_claim: Some("groups".into()),
                signing_algs: vec!["ES256".into()],
                ca_file: Some(issuer_ca),
                ..IssuerSettings::default()
            })
            .unwrap()
            .into(),
            issuer_hosts,
            certificate_life: Duration::from_secs(3600),
            audit: audit(folder.path()),
            drain_timeout: Duration::from_secs(20),
            limits,
            clock: Clock::system(),
        };
        let relay = app::start(config.clone()).await.unwrap();
        let ca = folder.path().join("ca.pem");
        std::fs::write(&ca, relay.public().ca_pem.as_ref().unwrap()).unwrap();
        Self { folder, issuer, relay, config, ca }
    }

    /// A session on which nobody runs the mux: its process stands still.
    pub(crate) async fn still(&self, identify: Identify<'_>) -> Session<impl Sized> {
        let (carrier, exporter) = self.dialler().dial().await.unwrap();
        connect(carrier, exporter, self.relay.identity_hash(), identify).await.unwrap()
    }

    fn dialler(&self) -> Dialler {
        Dialler::new(self.relay.public().relay.clone(), Some(&self.ca)).unwrap()
    }

    pub(crate) async fn session(
        &self,
        identify: Identify<'_>,
        side_instance: InstanceId,
    ) -> Result<(Connection, JoinHandle<Closed>, towline_tunnel::session::Welcome), Report> {
        self.begin(identify, side_instance, None).await
    }

    /// A session whose streams may go on with `keeper`.
    pub(crate) async fn begin(
        &self,
        identify: Identify<'_>,
        side_instance: InstanceId,
        keeper: Option<&Keeper>,
    ) -> Result<(Connection, JoinHandle<Closed>, towline_tunnel::session::Welcome), Report> {
        let (carrier, exporter) = self.dialler().dial().await?;
        let Session { channel, welcome } =
            connect(carrier, exporter, self.relay.identity_hash(), identify).await?;
        let config = EndpointConfig {
            side: Side::Dialler,
            max_streams: 1000,
            ledger: Ledger::new(64 << 20),
            instance: side_instance,
            jitter: 0,
        };
        let (connection, driver) = match keeper {
            Some(keeper) => Connection::kept(channel, BytesMut::new(), config, keeper.clone()),
            None => Connection::new(channel, BytesMut::new(), config),
        };
        Ok((connection, tokio::spawn(driver.run()), welcome))
    }

    pub(crate) async fn enrolment_secret(&self, name: &str) -> Secret {
        let request = EnrolRequest {
            name: name.parse().unwrap(),
            ttl: Duration::from_secs(60),
            replaces: false,
            address: self.relay.public().clone(),
        };
        let now = std::time::SystemTime::now();
        make_token(self.relay.registry(), self.relay.identity_hash(), request, now).await.unwrap().secret
    }

    pub(crate) async fn agent(&self, name: &str) -> Agent {
        let (identity, key) = (SigningKey::generate(), SigningKey::generate());
        let instance = InstanceId::random();
        let secret = self.enrolment_secret(name).await;
        let identify = Identify::Enrol { secret: &secret, cluster: &identity, instance, key: &key };
        let (connection, driver, welcome) = self.session(identify, instance).await.unwrap();
        let (channel, certificate) = (welcome.channel, welcome.certificate.unwrap());
        Agent { identity, instance, channel, key, certificate, connection, driver }
    }

    /// One more session of an agent's instance, that says it stands beside these.
    pub(crate) async fn beside(&self, agent: &Agent, beside: &[ChannelId]) -> (Connection, ChannelId) {
        let (connection, _driver, welcome) =
            self.session(agent.identify(false, beside), agent.instance).await.unwrap();
        assert!(welcome.spares, "an agent may have a spare");
        (connection, welcome.channel)
    }

    /// An agent that sends back on each stream what comes on it.
    pub(crate) async fn echo(&self, name: &str) -> Agent {
        let agent = self.agent(name).await;
        let connection = agent.connection.clone();
        tokio::spawn(async move {
            while let Ok((_, stream)) = connection.accept().await {
                tokio::spawn(async move {
                    let (mut reader, mut writer) = tokio::io::split(stream);
                    if tokio::io::copy(&mut reader, &mut writer).await.is_ok() {
                        let _gone = writer.shutdown().await;
                    }
                });
            }
        });
        agent
    }

    /// What the relay's page says of something.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let mut stream = TcpStream::connect(self.relay.metrics_address()).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).await.unwrap();
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {page}")).trim().parse().unwrap()
    }

    pub(crate) fn token(&self, user: &str, groups: &[&str]) -> Secret {
        Secret::new(self.issuer.mint(&TokenRequest::new(user, groups, "towline-relay")).unwrap())
    }

    pub(crate) async fn client(&self, user: &str) -> Client {
        let (token, run_key) = (self.token(user, &[]), SigningKey::generate());
        let identify = Identify::Client { token: &token, run_key: &run_key, line: false };
        let (connection, driver, _) = self.session(identify, InstanceId::random()).await.unwrap();
        Client { connection, driver }
    }

    pub(crate) fn assignment(&self, user: &str, cluster: ClusterId) -> RoleAssignment {
        RoleAssignment {
            kind: SubjectKind::User,
            subject: user.into(),
            role: Role::ClusterUser,
            cluster,
            expires_at: None,
        }
    }

    pub(crate) async fn allow(&self, user: &str, cluster: ClusterId) {
        let assignment = self.assignment(user, cluster);
        self.relay.registry().assign_role(&assignment, std::time::SystemTime::now()).await.unwrap();
    }
}

/// What was said on a connection before has come: a CONTROL message that nobody understands is answered.
pub(crate) async fn heard(connection: &Connection) {
    assert!(connection.control(vec![0_u8, 0, 0, 0, 1].into()));
    tokio::time::timeout(SOON, connection.next_control()).await.unwrap().unwrap();
}

/// Looks again until it holds; fails after [`SOON`].
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let within = tokio::time::timeout(SOON, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(within.await.is_ok(), "{what} within {SOON:?}");
}
