//! A relay and an agent in one process: sessions, streams, inner TLS, and an apiserver behind them.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;
use towline_tunnel::{
    carrier::websocket::{WebSocketCarrier, accept_key},
    ids::{ChannelId, ClusterId, InstanceId, KeyHash},
    inner::InnerAcceptor,
    keys::SigningKey,
    mux::{
        CloseReason, Connection, EXPORTER_LABEL, EndpointConfig, Keeper, Ledger, MuxStream, OpenRequest,
        Owner, ResumeKey, Side,
    },
    session::{self, Credential, Refused, RelayIdentity, Welcome, control::Control, exporter},
};

use super::Apiserver;

/// What the peer does and what it saw.
pub struct Script {
    pub apiserver: Apiserver,
    /// Every AUTH is refused with this.
    pub refuse_session: Mutex<Option<CloseReason>>,
    /// Every OPEN is refused with this.
    pub refuse_open: Mutex<Option<CloseReason>>,
    /// And says this.
    pub refusal: Mutex<&'static str>,
    /// The names that the relay knows.
    pub names: Mutex<HashMap<String, ClusterId>>,
    /// The relay tokens that were shown.
    pub tokens: Mutex<Vec<String>>,
    pub sessions: AtomicUsize,
    pub streams: AtomicUsize,
    /// Streams whose inner connection did not end cleanly.
    pub cut: AtomicUsize,
    /// Sessions that stand.
    pub connections: Mutex<Vec<Connection>>,
    /// Lines that were asked for, and those that stand.
    pub lines_asked: AtomicUsize,
    pub lines: Mutex<Vec<(Connection, AbortHandle)>>,
    pub refuse_lines: AtomicBool,
    /// Streams outlive their connection.
    pub keeps: AtomicBool,
    keeper: Keeper,
    instance: InstanceId,
    identity: RelayIdentity,
    acceptor: InnerAcceptor,
    tls: TlsAcceptor,
    authority_pem: String,
}

pub struct Peer {
    pub script: Arc<Script>,
    address: SocketAddr,
    server: Option<JoinHandle<()>>,
}

/// A certificate for `localhost` that is its own authority (PEM), and TLS with it.
pub fn certificate() -> (String, TlsAcceptor) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    (certificate.pem(), TlsAcceptor::from(Arc::new(config)))
}

impl Peer {
    pub async fn start() -> Self {
        let cluster = Arc::new(SigningKey::generate());
        Self::with_cluster_key(cluster).await
    }

    pub async fn with_cluster_key(cluster: Arc<SigningKey>) -> Self {
        let (authority_pem, tls) = certificate();
        let script = Arc::new(Script {
            apiserver: Apiserver::default(),
            refuse_session: Mutex::default(),
            refuse_open: Mutex::default(),
            refusal: Mutex::new("by the script"),
            names: Mutex::default(),
            tokens: Mutex::default(),
            sessions: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            cut: AtomicUsize::new(0),
            connections: Mutex::default(),
            lines_asked: AtomicUsize::new(0),
            lines: Mutex::default(),
            refuse_lines: AtomicBool::new(false),
            keeps: AtomicBool::new(false),
            keeper: Keeper::new(Duration::from_secs(60), 100),
            instance: InstanceId::random(),
            identity: RelayIdentity::new(Arc::new(SigningKey::generate())).unwrap(),
            acceptor: InnerAcceptor::new(cluster, SystemTime::now()).unwrap(),
            tls,
            authority_pem,
        });
        let mut peer = Self { script, address: SocketAddr::from(([127, 0, 0, 1], 0)), server: None };
        peer.resume().await;
        peer
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn relay_key(&self) -> KeyHash {
        self.script.identity.public().hash()
    }

    pub fn cluster(&self) -> ClusterId {
        self.script.acceptor.cluster()
    }

    pub fn authority_pem(&self) -> &str {
        &self.script.authority_pem
    }

    /// As by kill -9: everything is gone at once.
    pub async fn kill(&mut self) {
        let server = self.server.take().unwrap();
        server.abort();
        let _aborted = server.await;
        self.script.connections.lock().unwrap().clear();
    }

    /// Listens again where it did.
    pub async fn resume(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        self.server = Some(tokio::spawn(serve(listener, Arc::clone(&self.script))));
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}

async fn serve(listener: TcpListener, script: Arc<Script>) {
    let mut sessions = JoinSet::new();
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let script = Arc::clone(&script);
        sessions.spawn(async move {
            let _ended = serve_session(tcp, script).await;
        });
    }
}

async fn serve_session(tcp: TcpStream, script: Arc<Script>) -> Option<()> {
    tcp.set_nodelay(true).ok()?;
    let mut tls = script.tls.accept(tcp).await.ok()?;
    let outer = exporter(tls.get_ref().1);
    let headers = read_head(&mut tls).await?;
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {}\r\nSec-WebSocket-Protocol: towline.v1\r\n\r\n",
        accept_key(&headers).unwrap()
    );
    tls.write_all(answer.as_bytes()).await.ok()?;
    tls.flush().await.ok()?;
    let carrier = WebSocketCarrier::server(tls);
    let judge = async |credential| {
        let Credential::Client { token, line, .. } = credential else { panic!("not a client") };
        if line {
            script.lines_asked.fetch_add(1, Ordering::SeqCst);
        }
        script.tokens.lock().unwrap().push(token.reveal_text().unwrap().to_owned());
        match *script.refuse_session.lock().unwrap() {
            Some(reason) => Err(Refused::new(reason, "by the script")),
            None if line && script.refuse_lines.load(Ordering::SeqCst) => {
                Err(Refused::new(CloseReason::LimitReached, "no lines"))
            }
            None => Ok((Welcome::new(ChannelId::random()), line)),
        }
    };
    let (channel, _, line) = session::accept(carrier, outer, &script.identity, judge).await.ok()?;
    script.sessions.fetch_add(1, Ordering::SeqCst);
    let config = EndpointConfig {
        side: Side::Acceptor,
        max_streams: 1000,
        ledger: Ledger::new(64 << 20),
        instance: script.instance,
        jitter: 0,
    };
    let (connection, driver) = Connection::kept(channel, BytesMut::new(), config, script.keeper.clone());
    let mut tasks = JoinSet::new();
    let driving = tasks.spawn(async move {
        driver.run().await;
    });
    if line {
        script.lines.lock().unwrap().push((connection.clone(), driving));
    } else {
        script.connections.lock().unwrap().push(connection.clone());
    }
    tasks.spawn(answer_questions(connection.clone(), Arc::clone(&script)));
    while let Ok((request, stream)) = connection.accept().await {
        script.streams.fetch_add(1, Ordering::SeqCst);
        tasks.spawn(serve_stream(request, stream, Arc::clone(&script)));
    }
    Some(())
}

async fn read_head(io: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<HeaderMap> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.ok()?);
    }
    let mut fields = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut fields);
    request.parse(&head).ok()?;
    let field = |field: &httparse::Header<'_>| {
        (
            HeaderName::from_bytes(field.name.as_bytes()).unwrap(),
            HeaderValue::from_bytes(field.value).unwrap(),
        )
    };
    Some(request.headers.iter().map(field).collect())
}

async fn answer_questions(connection: Connection, script: Arc<Script>) {
    while let Ok(payload) = connection.next_control().await {
        let (id, Control::Resolve { name }) = Control::decode(&payload).unwrap() else { continue };
        let known = script.names.lock().unwrap().get(&name).copied();
        let answer = match known {
            Some(cluster) => Control::Resolved { cluster, name, online: true },
            None => Control::Failed { reason: CloseReason::ClusterUnknown, detail: name },
        };
        assert!(connection.control(answer.encode(id)));
    }
}

async fn serve_stream(request: OpenRequest, stream: MuxStream, script: Arc<Script>) {
    if let Some(reason) = *script.refuse_open.lock().unwrap() {
        stream.reset(reason, *script.refusal.lock().unwrap());
        return;
    }
    if request.cluster != script.acceptor.cluster() && !script.apiserver.impostor.load(Ordering::SeqCst) {
        stream.reset(CloseReason::ClusterUnknown, "by the script");
        return;
    }
    let Ok((tls, _peer)) = script.acceptor.accept(stream, SystemTime::now()).await else { return };
    if script.keeps.load(Ordering::SeqCst) {
        let proofs = ResumeKey::new(&tls.exporter(EXPORTER_LABEL).unwrap());
        tls.carrier().keep(
            request.cluster,
            proofs,
            Some(Owner { user: "alice".into(), admit: Box::new(|_| Ok(())) }),
        );
    }
    let apiserver = script.apiserver.clone();
    let service = service_fn(move |request| apiserver.clone().answer(request));
    let connection = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(tls), service)
        .with_upgrades();
    if connection.await.is_err() {
        script.cut.fetch_add(1, Ordering::SeqCst);
    }
}

/// Long enough for what must not happen to happen.
pub const A_WHILE: Duration = Duration::from_millis(200);
