//! Whether the relay is blind: all bytes that it handles, recorded after its outer TLS, are searched for what only the two
//! ends may know; and so are the bytes inside the inner TLS of the same run, where each must be found.
//!
//! The rig takes the relay's and the agent's own parts, and puts a recorder where one of them takes a connection from the
//! other. Nothing in the programs knows of it.

use std::{
    fs, io,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, ensure};
use bytes::BytesMut;
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpListener,
    task::JoinSet,
    time::Instant,
};
use tokio_rustls::TlsAcceptor;
use towline_agent::{
    dial::Apiserver,
    forward::{Caller, Ending, Forwarder},
    metrics::Metrics as AgentMetrics,
    stream::ResettableStream,
};
use towline_identity::{
    IssuerConfig, IssuerSettings, Verifier,
    dev::{DevIssuer, TokenRequest},
};
use towline_relay::{
    accept,
    app::{self, Config, Relay},
    enrol::{PublicAddress, TokenRequest as EnrolRequest, make_token},
    handshakes::Handshakes,
    limits::Limits,
    registry::{Role, RoleAssignment, SubjectKind},
    tls::TlsSource,
};
use towline_tunnel::{
    carrier::dial::{Dialler, RelayAddress},
    clock::Clock,
    ids::{ClusterId, InstanceId, KeyHash},
    inner::InnerAcceptor,
    keys::{SigningKey, VerifyingKey},
    mux::{Connection, EndpointConfig, Ledger, Side},
    session::{self, Identify},
    ticket::Ticket,
};

/// Bytes that passed, in both directions.
#[derive(Clone, Debug, Default)]
pub struct Tape(Arc<Mutex<Vec<u8>>>);

impl From<Vec<u8>> for Tape {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(bytes)))
    }
}

impl Tape {
    fn record(&self, bytes: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Which of these texts are among them: as they are, in hexadecimal, or in base64 at any alignment.
    pub fn find<'a>(&self, canaries: &'a [(&'static str, String)]) -> Vec<&'a str> {
        let tape = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = |needle: &[u8]| tape.windows(needle.len()).any(|window| window == needle);
        canaries
            .iter()
            .filter(|(_, text)| disguises(text).iter().any(|needle| found(needle)))
            .map(|(name, _)| *name)
            .collect()
    }
}

/// How a text may stand in bytes.
fn disguises(text: &str) -> Vec<Vec<u8>> {
    let mut all =
        vec![text.as_bytes().to_vec(), data_encoding::HEXLOWER.encode(text.as_bytes()).into_bytes()];
    for pad in 0..3 {
        let padded = [&vec![b'x'; pad][..], text.as_bytes()].concat();
        let encoded = data_encoding::BASE64.encode(&padded).into_bytes();
        // The first and last characters depend on what is around.
        let (from, to) = ((pad * 4).div_ceil(3), encoded.len() - 4);
        all.push(encoded[from..to].to_vec());
    }
    all
}

/// A connection whose bytes are recorded.
#[derive(Debug)]
pub struct Recorded<IO> {
    io: IO,
    tape: Tape,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Recorded<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        this.tape.record(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Recorded<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.io).poll_write(cx, bytes))?;
        this.tape.record(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

/// Relay and agent with recorders between them. A real proxy and a real kubectl are used with it.
#[derive(Debug)]
pub struct Rig {
    /// All that the relay handled, after its outer TLS.
    pub outside: Tape,
    /// All that passed inside inner TLS.
    pub inside: Tape,
    /// For the proxy.
    pub relay_url: String,
    /// For the proxy.
    pub relay_key: KeyHash,
    /// For the proxy.
    pub relay_ca_file: PathBuf,
    /// For the proxy.
    pub cluster: ClusterId,
    issuer: DevIssuer,
    running: app::Running,
    folder: TempDir,
    tasks: JoinSet<()>,
}

/// Who calls: the relay knows the subject, and only the cluster knows the name and the group.
#[derive(Clone, Debug)]
pub struct Person {
    /// `sub` in both tokens.
    pub subject: String,
    /// `name` in the cluster token.
    pub name: String,
    /// In the cluster token.
    pub group: String,
}

impl Rig {
    /// Starts relay and agent. `apiserver` is where requests go.
    ///
    /// # Errors
    /// If something can't be started.
    pub async fn set(apiserver: Apiserver, person: &Person) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("towline-blind-").tempdir()?;
        let issuer = DevIssuer::start(0).await?;
        let issuer_ca = folder.path().join("issuer-ca.pem");
        fs::write(&issuer_ca, issuer.ca_pem())?;
        let trusts = |audience: &str, username_claim: Option<&str>| {
            IssuerConfig::parse(IssuerSettings {
                issuer_url: issuer.url(),
                client_id: audience.into(),
                username_claim: username_claim.map(Into::into),
                username_prefix: Some("-".into()),
                groups_claim: Some("groups".into()),
                signing_algs: vec!["ES256".into()],
                ca_file: Some(issuer_ca.clone()),
                ..IssuerSettings::default()
            })
        };
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let data_dir = folder.path().join("relay");
        fs::create_dir(&data_dir)?;
        let running = app::start(Config {
            data_dir: data_dir.clone(),
            listen: "127.0.0.1:0".parse()?,
            metrics_listen: "127.0.0.1:0".parse()?,
            tls: TlsSource::SelfSigned { names: vec!["127.0.0.1".into()], data_dir: data_dir.clone() },
            public: Some(RelayAddress::parse(&address.to_string())?),
            issuer: trusts("towline-relay", None)?.into(),
            issuer_hosts: Vec::new(),
            certificate_life: Duration::from_secs(3600),
            audit: towline_relay::app::AuditConfig::default(),
            drain_timeout: Duration::from_secs(1),
            limits: Limits::default(),
            clock: Clock::system(),
        })
        .await?;
        let (outside, inside) = (Tape::default(), Tape::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(listen(listener, Arc::clone(running.relay()), outside.clone()));
        let relay_ca_file = data_dir.join("tls-ca.pem");
        let verifier = Verifier::new(trusts("towline-cluster", Some("name"))?)?;
        let forwarder = Forwarder::new(
            verifier,
            apiserver,
            towline_agent::forward::Access::default(),
            AgentMetrics::new(Ledger::new(64 << 20)),
            Clock::system(),
        );
        let cluster = agent(&running, &relay_ca_file, person, forwarder, inside.clone(), &mut tasks).await?;
        Ok(Self {
            outside,
            inside,
            relay_url: format!("https://{address}"),
            relay_key: running.identity_hash(),
            relay_ca_file,
            cluster,
            issuer,
            running,
            folder,
            tasks,
        })
    }

    /// The person's two tokens, in files; the cluster token is a canary of its own.
    ///
    /// # Errors
    /// If they can't be made or written.
    pub fn tokens(&self, person: &Person) -> anyhow::Result<(PathBuf, PathBuf, String)> {
        let relay = self.issuer.mint(&TokenRequest::new(&person.subject, &[], "towline-relay"))?;
        let mut request = TokenRequest::new(&person.subject, &[&person.group], "towline-cluster");
        request.claims.insert("name".into(), person.name.clone().into());
        let cluster = self.issuer.mint(&request)?;
        let paths = (self.folder.path().join("relay-token"), self.folder.path().join("cluster-token"));
        fs::write(&paths.0, relay)?;
        fs::write(&paths.1, &cluster)?;
        Ok((paths.0, paths.1, cluster))
    }

    /// For the proxy's files.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Stops it.
    pub async fn end(mut self) {
        self.tasks.shutdown().await;
        self.running.drain().await;
    }
}

async fn listen(listener: TcpListener, relay: Arc<Relay>, tape: Tape) {
    let acceptor = TlsAcceptor::from(relay.tls());
    let places = Handshakes::new(100);
    let mut connections = JoinSet::new();
    while let Ok((stream, from)) = listener.accept().await {
        let (relay, acceptor, tape) = (Arc::clone(&relay), acceptor.clone(), tape.clone());
        let Some(turn) = places.enter(from.ip()) else { continue };
        connections.spawn(async move {
            let Some(place) = turn.come().await else { return };
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let exporter = session::exporter(stream.get_ref().1);
            let deadline = Instant::now() + Duration::from_secs(10);
            let from: SocketAddr = from;
            accept::connection(Recorded { io: stream, tape }, exporter, false, from, deadline, place, relay)
                .await;
        });
    }
}

/// Enrols a cluster, lets the person in, and serves streams as the agent does, with a recorder inside inner TLS.
async fn agent(
    running: &app::Running,
    ca_file: &std::path::Path,
    person: &Person,
    forwarder: Forwarder,
    tape: Tape,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<ClusterId> {
    let now = SystemTime::now();
    let request = EnrolRequest {
        name: "edge".parse()?,
        ttl: Duration::from_secs(60),
        replaces: false,
        address: PublicAddress { relay: running.public().relay.clone(), ca_pem: None },
    };
    let token = make_token(running.registry(), running.identity_hash(), request, now).await?;
    let (identity, key, instance) = (SigningKey::generate(), SigningKey::generate(), InstanceId::random());
    let dialler = Dialler::new(running.public().relay.clone(), Some(ca_file))?;
    let (carrier, exporter) = dialler.dial().await?;
    let identify = Identify::Enrol { secret: &token.secret, cluster: &identity, instance, key: &key };
    let session = session::connect(carrier, exporter, running.identity_hash(), identify).await?;
    let tickets = session.welcome.ticket_key.context("enrolment gives the relay's ticket key")?;
    let config = EndpointConfig {
        side: Side::Dialler,
        max_streams: 1000,
        ledger: Ledger::new(64 << 20),
        instance,
        jitter: 0,
    };
    let (connection, driver) = Connection::new(session.channel, BytesMut::new(), config);
    tasks.spawn(async move {
        driver.run().await;
    });
    let cluster = identity.public().cluster_id();
    let inner = InnerAcceptor::new(Arc::new(identity), now)?;
    tasks.spawn(serve(connection, tickets, inner, forwarder, tape));
    let assignment = RoleAssignment {
        kind: SubjectKind::User,
        subject: person.subject.clone(),
        role: Role::ClusterUser,
        cluster,
        expires_at: None,
    };
    running.registry().assign_role(&assignment, now).await?;
    Ok(cluster)
}

async fn serve(
    connection: Connection,
    tickets: VerifyingKey,
    inner: InnerAcceptor,
    forwarder: Forwarder,
    tape: Tape,
) {
    let shared = Arc::new((inner, forwarder));
    let mut streams = JoinSet::new();
    while let Ok((request, stream)) = connection.accept().await {
        let (shared, tape) = (Arc::clone(&shared), tape.clone());
        streams.spawn(async move {
            let (inner, forwarder) = &*shared;
            let now = SystemTime::now();
            let ticket = request.ticket.unwrap_or_default();
            let Ok(ticket) = Ticket::verify(&ticket, &tickets, inner.cluster(), now) else { return };
            let (stream, reset) = ResettableStream::new(stream);
            let Ok((io, peer)) = inner.accept(stream, now).await else { return };
            if ticket.check_peer(peer).is_err() {
                return;
            }
            let caller = Caller {
                principal: ticket.principal,
                run_key: peer,
                channel: request.channel,
                stream: request.key,
                offered: None,
            };
            forwarder.serve(Recorded { io, tape }, &caller, &reset, &Ending::default()).await;
        });
    }
}

/// Says whether a run was blind: nothing found outside, everything inside, and no less outside than inside.
///
/// # Errors
/// What was found where it must not be, or not where it must.
pub fn judge(outside: &Tape, inside: &Tape, canaries: &[(&'static str, String)]) -> anyhow::Result<()> {
    let seen = inside.find(canaries);
    let blind_spots: Vec<_> =
        canaries.iter().map(|(name, _)| *name).filter(|name| !seen.contains(name)).collect();
    ensure!(
        blind_spots.is_empty(),
        "the checker does not find {blind_spots:?} inside inner TLS, where they are"
    );
    let (out, within) = (outside.len(), inside.len());
    ensure!(
        out > within,
        "{out} bytes were recorded at the relay, and {within} inside: not all was recorded"
    );
    let leaked = outside.find(canaries);
    ensure!(leaked.is_empty(), "the relay saw {leaked:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_canary_is_found_in_any_disguise() {
        let canaries = [("word", "canary-7f3a91".to_owned())];
        for text in ["…canary-7f3a91…".to_owned(), data_encoding::HEXLOWER.encode(b"a canary-7f3a91!")] {
            let tape = Tape::default();
            tape.record(text.as_bytes());
            assert_eq!(tape.find(&canaries), ["word"], "{text}");
        }
        for before in ["", "a", "ab", "abc", "{\"k\":\""] {
            let tape = Tape::default();
            tape.record(
                data_encoding::BASE64.encode(format!("{before}canary-7f3a91 and more").as_bytes()).as_bytes(),
            );
            assert_eq!(tape.find(&canaries), ["word"], "{before:?}");
        }
        let tape = Tape::default();
        tape.record(b"nothing of the kind");
        assert!(tape.find(&canaries).is_empty());
    }
}
