//! What the tests of this crate share: a raw-byte capture server in kube-apiserver's place, and an agent between it
//! and a caller, joined by a real mux.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

pub mod cap;
pub mod relay;
pub mod whole;

use std::{
    convert::Infallible,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
    task::{AbortHandle, JoinSet},
    time::timeout,
};
use towline_agent::{
    accept::Acceptor,
    dial::{Apiserver, ApiserverConfig},
    forward::{Access, Ending, Forwarder},
    metrics::Metrics,
    roles::{Groups, RoleSettings, Roles},
};
use towline_identity::{
    IssuerConfig, IssuerSettings, TrustSettings, Verifier,
    dev::{DevIssuer, TokenRequest},
};
use towline_tunnel::{
    audit::{AuditLog, Destination},
    clock::Clock,
    ids::{ChannelId, ClusterId, InstanceId, StreamKey},
    inner::{InnerAcceptor, InnerConnector, InnerStream},
    keys::SigningKey,
    mux::{Connection, EndpointConfig, Keeper, Ledger, MuxStream, OpenRequest, Side},
    ticket::{MAX_LIFE, Ticket},
};

pub use cap::Cap;

/// Nothing here takes longer.
pub const WITHIN: Duration = Duration::from_secs(20);

/// What the bench's agent lets one user hold.
pub const MAX_STREAMS_PER_USER: u32 = 200;

/// An agent that is joined to a caller, and kube-apiserver's stand-in behind it.
pub struct Bench {
    pub folder: TempDir,
    pub issuer: DevIssuer,
    pub cap: Cap,
    pub cluster: ClusterId,
    pub groups: Groups,
    pub relay: SigningKey,
    pub run_key: SigningKey,
    pub ending: Ending,
    pub metrics: Metrics,
    /// The relay's side of the agent's session.
    pub mux: Connection,
    pub agent_mux: Connection,
    /// Of the agent's streams.
    pub keeper: Keeper,
    acceptor: Arc<Acceptor>,
    drivers: [AbortHandle; 2],
    tasks: JoinSet<()>,
}

/// Streams that lose their connection wait for so long.
pub const KEEP_FOR: Duration = Duration::from_secs(5);

pub fn endpoint(side: Side) -> EndpointConfig {
    EndpointConfig {
        side,
        max_streams: 1000,
        ledger: Ledger::new(64 << 20),
        instance: InstanceId::random(),
        jitter: 0,
    }
}

impl Bench {
    pub async fn new(cap: Cap) -> Self {
        Self::with(cap, Access::default()).await
    }

    /// With an agent that gives its callers this access.
    pub async fn with(cap: Cap, access: Access) -> Self {
        Self::with_roles(cap, access, None).await
    }

    /// With an agent that takes roles, too.
    pub async fn with_roles(cap: Cap, access: Access, roles: Option<RoleSettings>) -> Self {
        Self::with_verifier(cap, access, roles, verifier).await
    }

    /// With an agent that judges tokens so.
    pub async fn with_verifier(
        cap: Cap,
        access: Access,
        roles: Option<RoleSettings>,
        verifier: impl FnOnce(&DevIssuer, &TempDir) -> Verifier,
    ) -> Self {
        let made = Self::towards(cap, None, access, roles, |issuer, folder| {
            Ok::<_, Infallible>(verifier(issuer, folder))
        });
        match made.await {
            Ok(bench) => bench,
            Err(never) => match never {},
        }
    }

    /// With the kube-apiserver that a kubeconfig leads to, in place of its stand-in.
    ///
    /// # Errors
    /// The verifier's.
    pub async fn towards<E>(
        cap: Cap,
        kubeconfig: Option<PathBuf>,
        access: Access,
        roles: Option<RoleSettings>,
        verifier: impl FnOnce(&DevIssuer, &TempDir) -> Result<Verifier, E>,
    ) -> Result<Self, E> {
        let folder = tempfile::tempdir().unwrap();
        let issuer = DevIssuer::start(0).await.unwrap();
        let metrics = Metrics::new(Ledger::new(1 << 20));
        let verifier = verifier(&issuer, &folder)?;
        let path = kubeconfig.unwrap_or_else(|| cap.kubeconfig(&folder));
        let config = ApiserverConfig::Kubeconfig { path, context: None };
        let apiserver = Apiserver::new(&config, None).unwrap();
        let identity = Arc::new(SigningKey::generate());
        let cluster = identity.public().cluster_id();
        let roles = roles.map(|roles| Arc::new(Roles::new(roles, &identity)));
        let groups = Groups::of(&identity);
        let inner = InnerAcceptor::new(identity, SystemTime::now()).unwrap();
        // Each request's audit line, as a test may read it once the agent has gone.
        let audit = Destination::parse(folder.path().join("audit.log").to_str().unwrap(), 1 << 20, 1);
        let (audit, _writer) = AuditLog::open(&audit).unwrap();
        let forwarder = Forwarder::new(verifier, apiserver, access, metrics.clone(), Clock::system())
            .with_audit(audit)
            .with_roles(roles);
        let acceptor =
            Arc::new(Acceptor::new(inner, forwarder, metrics.clone(), Clock::system(), MAX_STREAMS_PER_USER));

        let (relay, ending) = (SigningKey::generate(), Ending::default());
        let (mut tasks, keeper) = (JoinSet::new(), Keeper::new(KEEP_FOR, 1000));
        let watched = keeper.clone();
        tasks.spawn(async move { match watched.watch().await {} });
        let (mux, agent_mux, drivers) = session(&mut tasks, &acceptor, &keeper, &relay, &ending);
        Ok(Self {
            folder,
            issuer,
            cap,
            cluster,
            groups,
            relay,
            run_key: SigningKey::generate(),
            ending,
            metrics,
            mux,
            agent_mux,
            keeper,
            acceptor,
            drivers,
            tasks,
        })
    }

    /// The session is lost without a word, and the agent has another one.
    pub fn lose_session(&mut self) {
        self.drivers.iter().for_each(AbortHandle::abort);
        let Self { tasks, acceptor, keeper, relay, ending, .. } = self;
        (self.mux, self.agent_mux, self.drivers) = session(tasks, acceptor, keeper, relay, ending);
    }

    pub fn principal(&self, subject: &str) -> String {
        format!("{}#{subject}", self.issuer.url())
    }

    pub fn ticket(&self) -> Bytes {
        self.ticket_of(self.principal("alice"))
    }

    /// Somebody's.
    pub fn ticket_of(&self, principal: String) -> Bytes {
        let run_key = self.run_key.public().hash();
        Ticket::new(self.cluster, principal, run_key, SystemTime::now(), MAX_LIFE).sign(&self.relay)
    }

    pub fn open(&self, ticket: Option<Bytes>) -> MuxStream {
        self.open_with(ticket, None)
    }

    /// With role documents.
    pub fn open_with(&self, ticket: Option<Bytes>, offer: Option<Bytes>) -> MuxStream {
        let mut request = OpenRequest::new(StreamKey::random(), self.cluster);
        request.ticket = ticket;
        request.offer = offer;
        request.channel = Some(ChannelId::random());
        self.mux.open(request).unwrap()
    }

    /// An inner connection of alice's.
    pub async fn connect(&self) -> InnerStream<MuxStream> {
        self.inner(self.open(Some(self.ticket()))).await
    }

    pub async fn inner(&self, stream: MuxStream) -> InnerStream<MuxStream> {
        let connector = InnerConnector::new(self.cluster, &self.run_key).unwrap();
        connector.connect(stream).await.unwrap()
    }

    pub fn token(&self) -> String {
        self.token_of("alice", &["dev"])
    }

    pub fn token_of(&self, subject: &str, groups: &[&str]) -> String {
        self.issuer.mint(&TokenRequest::new(subject, groups, "towline-cluster")).unwrap()
    }

    /// A token of alice's in which some claims are others.
    pub fn token_with(&self, changes: &Value) -> String {
        let mut request = TokenRequest::new("alice", &["dev"], "towline-cluster");
        request.claims = changes.as_object().unwrap().clone().into_iter().collect();
        self.issuer.mint(&request).unwrap()
    }

    /// A head with alice's token and these lines more, without a body.
    pub fn head(&self, line: &str, more: &str) -> String {
        format!("{line} HTTP/1.1\r\nHost: cluster\r\nAuthorization: Bearer {}\r\n{more}\r\n", self.token())
    }

    /// Sends these bytes on a connection of their own; all that comes back until it ends.
    pub async fn ask(&self, bytes: &str) -> String {
        self.ask_as(self.principal("alice"), bytes).await
    }

    /// On a connection that was opened for somebody.
    pub async fn ask_as(&self, principal: String, bytes: &str) -> String {
        let mut stream = self.inner(self.open(Some(self.ticket_of(principal)))).await;
        // The answer to a request that is refused unread comes while this still writes.
        let _cut = stream.write_all(bytes.as_bytes()).await;
        read_to_end(&mut stream).await.unwrap()
    }

    /// A GET whose connection ends behind it.
    pub async fn get(&self, path: &str, more: &str) -> String {
        self.ask(&self.head(&format!("GET {path}"), &format!("Connection: close\r\n{more}"))).await
    }
}

/// A session of the agent: the relay's side of it, and the agent's.
fn session(
    tasks: &mut JoinSet<()>,
    acceptor: &Arc<Acceptor>,
    keeper: &Keeper,
    relay: &SigningKey,
    ending: &Ending,
) -> (Connection, Connection, [AbortHandle; 2]) {
    let (a, b) = duplex(256 * 1024);
    let (mux, relay_driver) = Connection::new(a, BytesMut::new(), endpoint(Side::Acceptor));
    let (agent_mux, agent_driver) =
        Connection::kept(b, BytesMut::new(), endpoint(Side::Dialler), keeper.clone());
    let drivers = [
        tasks.spawn(async move { drop(relay_driver.run().await) }),
        tasks.spawn(async move { drop(agent_driver.run().await) }),
    ];
    tasks.spawn(Arc::clone(acceptor).accept(agent_mux.clone(), relay.public(), ending.clone()));
    (mux, agent_mux, drivers)
}

fn verifier(issuer: &DevIssuer, folder: &TempDir) -> Verifier {
    Verifier::new(issuer_config(issuer, folder)).unwrap()
}

/// The same, which asks the issuer each second whether a token is still active.
pub fn asking_verifier(issuer: &DevIssuer, folder: &TempDir) -> Verifier {
    let (client, secret) = issuer.introspecting_client();
    let path = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let secret = path("introspection-secret", secret);
    let file = format!(
        "apiVersion: towline.dev/v1\nkind: IntrospectionConfiguration\nissuers:\n\
         - {{url: '{}', clientId: {client}, clientSecretFile: {}, everySeconds: 1}}\n",
        issuer.url(),
        secret.display()
    );
    let settings = TrustSettings {
        oidc: Some(issuer_settings(issuer, folder)),
        introspection_config: Some(path("introspection.yaml", &file)),
        ..TrustSettings::default()
    };
    Verifier::new(settings.load().unwrap()).unwrap()
}

pub fn issuer_config(issuer: &DevIssuer, folder: &TempDir) -> IssuerConfig {
    IssuerConfig::parse(issuer_settings(issuer, folder)).unwrap()
}

fn issuer_settings(issuer: &DevIssuer, folder: &TempDir) -> IssuerSettings {
    let ca_file: PathBuf = folder.path().join("issuer-ca.pem");
    std::fs::write(&ca_file, issuer.ca_pem()).unwrap();
    IssuerSettings {
        issuer_url: issuer.url(),
        client_id: "towline-cluster".into(),
        username_prefix: Some("-".into()),
        groups_claim: Some("groups".into()),
        signing_algs: vec!["ES256".into()],
        ca_file: Some(ca_file),
        ..IssuerSettings::default()
    }
}

pub async fn read_to_end(stream: &mut InnerStream<MuxStream>) -> std::io::Result<String> {
    let mut got = Vec::new();
    timeout(WITHIN, stream.read_to_end(&mut got)).await.expect("it ends in time")?;
    Ok(String::from_utf8_lossy(&got).into_owned())
}

/// Reads until what was read ends so.
pub async fn read_until(stream: &mut InnerStream<MuxStream>, end: &str) -> String {
    let mut got = Vec::new();
    let read = async {
        while !got.ends_with(end.as_bytes()) {
            got.push(stream.read_u8().await.unwrap());
        }
    };
    if timeout(WITHIN, read).await.is_err() {
        panic!("{end:?} does not come; until now {:?}", String::from_utf8_lossy(&got));
    }
    String::from_utf8(got).unwrap()
}

/// Polls until it holds.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + WITHIN;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The status line's code, and the body, of an answer.
pub fn parts(answer: &str) -> (u16, &str) {
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (code.unwrap_or_else(|| panic!("no answer: {answer:?}")), body)
}

/// The fault that an answer's `Status` object names.
pub fn fault(answer: &str) -> (u16, String) {
    let (code, body) = parts(answer);
    let status: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("no Status: {answer}"));
    assert_eq!((status["kind"].as_str(), status["code"].as_u64()), (Some("Status"), Some(code.into())));
    (code, status["details"]["causes"][0]["reason"].as_str().unwrap().to_owned())
}
