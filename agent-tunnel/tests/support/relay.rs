//! A relay as far as an agent sees one: outer TLS, WebSocket, the session's beginning, the mux.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use towline_agent::app::RelayConfig;
use towline_tunnel::{
    carrier::{
        dial::RelayAddress,
        websocket::{WebSocketCarrier, accept_key},
    },
    enrolment::{EnrolmentToken, JOIN},
    ids::{ChannelId, InstanceId},
    keys::SigningKey,
    mux::{CloseReason, Connection, Side},
    session::{self, Credential, Refused, RelayIdentity, Welcome, exporter, message::Secret},
};

use super::{WITHIN, endpoint};

/// A session that an agent began.
pub struct AgentSession {
    pub connection: Connection,
    /// How it was let in: `token`, `join` or `certificate`.
    pub by: &'static str,
    pub instance: InstanceId,
    /// It is a line, beside the agent's session.
    pub line: bool,
    pub channel: ChannelId,
    /// Those that it says it stands beside.
    pub beside: Vec<ChannelId>,
    /// Cuts the TCP connection.
    pub cut: CancellationToken,
}

/// How it treats agents; tests change it.
pub struct Manner {
    /// The one secret that is good, until it was used.
    pub secret: Option<Vec<u8>>,
    /// Whether the cluster may join by its key.
    pub enrolled: bool,
    /// Whether certificates are accepted.
    pub certificates: bool,
    /// How long certificates last.
    pub life: Duration,
    /// Whether lines are accepted.
    pub lines: bool,
    /// Whether it knows spare sessions.
    pub spares: bool,
}

pub struct Relay {
    pub address: SocketAddr,
    pub identity: Arc<SigningKey>,
    pub tickets: Arc<SigningKey>,
    pub manner: Arc<Mutex<Manner>>,
    /// Connections that were made, whatever became of them.
    pub dialled: Arc<Mutex<usize>>,
    pub ca_pem: String,
    sessions: mpsc::Receiver<AgentSession>,
    _serving: AbortOnDropHandle<()>,
}

impl Relay {
    pub async fn new() -> Self {
        let (ca_pem, acceptor) = super::cap::certificates(&[b"http/1.1"]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let manner = Manner {
            secret: Some(vec![7; 32]),
            enrolled: false,
            certificates: true,
            life: Duration::from_secs(3600),
            lines: true,
            spares: false,
        };
        let manner = Arc::new(Mutex::new(manner));
        let (identity, tickets) = (Arc::new(SigningKey::generate()), Arc::new(SigningKey::generate()));
        let (sender, sessions) = mpsc::channel(16);
        let dialled = Arc::default();
        let serving = Serving {
            acceptor,
            identity: Arc::new(RelayIdentity::new(Arc::clone(&identity)).unwrap()),
            tickets: Arc::clone(&tickets),
            manner: Arc::clone(&manner),
            dialled: Arc::clone(&dialled),
            sender,
        };
        let serving = AbortOnDropHandle::new(tokio::spawn(serving.listen(listener)));
        Self { address, identity, tickets, manner, dialled, ca_pem, sessions, _serving: serving }
    }

    pub fn token(&self) -> EnrolmentToken {
        EnrolmentToken {
            relay: RelayAddress::parse(&format!("https://{}", self.address)).unwrap(),
            relay_key: self.identity.public().hash(),
            secret: Secret::new([7; 32]),
            expires: SystemTime::now() + Duration::from_secs(3600),
            ca_pem: Some(self.ca_pem.clone()),
        }
    }

    /// What has an agent join it.
    pub fn config(&self) -> RelayConfig {
        joins(self.token())
    }

    /// The next session that an agent begins.
    pub async fn session(&mut self) -> AgentSession {
        timeout(WITHIN, self.sessions.recv()).await.expect("an agent comes in time").unwrap()
    }
}

pub fn joins(token: EnrolmentToken) -> RelayConfig {
    RelayConfig { enrolment: Some(token), ..RelayConfig::default() }
}

/// How it was let in, which instance, whether as a line, and beside which.
type Judged = (&'static str, InstanceId, bool, Vec<ChannelId>);

struct Serving {
    acceptor: TlsAcceptor,
    identity: Arc<RelayIdentity>,
    tickets: Arc<SigningKey>,
    manner: Arc<Mutex<Manner>>,
    dialled: Arc<Mutex<usize>>,
    sender: mpsc::Sender<AgentSession>,
}

impl Serving {
    async fn listen(self, listener: TcpListener) {
        let serving = Arc::new(self);
        let mut connections = JoinSet::new();
        loop {
            let Ok((tcp, _)) = listener.accept().await else { continue };
            *serving.dialled.lock().unwrap() += 1;
            let serving = Arc::clone(&serving);
            // A connection that breaks shows in what the agent does next.
            connections.spawn(async move { serving.connection(tcp).await });
        }
    }

    async fn connection(&self, tcp: TcpStream) -> Option<()> {
        let tls = upgrade(self.acceptor.accept(tcp).await.ok()?).await?;
        let outer = exporter(tls.get_ref().1);
        let carrier = WebSocketCarrier::server(tls);
        let judge = async |credential| self.judge(credential);
        let (channel, welcome, (by, instance, line, beside)) =
            session::accept(carrier, outer, &self.identity, judge).await.ok()?;
        let (connection, driver) = Connection::new(channel, BytesMut::new(), endpoint(Side::Acceptor));
        let cut = CancellationToken::new();
        let session = AgentSession {
            connection,
            by,
            instance,
            line,
            channel: welcome.channel,
            beside,
            cut: cut.clone(),
        };
        self.sender.send(session).await.ok()?;
        tokio::select! {
            _closed = driver.run() => {}
            () = cut.cancelled() => {}
        }
        Some(())
    }

    fn judge(&self, credential: Credential) -> Result<(Welcome, Judged), Refused> {
        let mut manner = self.manner.lock().unwrap();
        let mut welcome = Welcome::new(ChannelId::random());
        welcome.name = Some("edge-7".into());
        welcome.spares = manner.spares;
        let (by, instance, line, beside) = match credential {
            Credential::Enrol { secret, instance, .. } => {
                let by = if secret.reveal() == JOIN {
                    "join"
                } else if manner.secret.take_if(|good| good == secret.reveal()).is_some() {
                    manner.enrolled = true;
                    "token"
                } else {
                    return Err(Refused::new(CloseReason::EnrolmentRefused, "the token was used before"));
                };
                if !manner.enrolled {
                    return Err(Refused::new(CloseReason::EnrolmentRefused, "not enrolled here"));
                }
                welcome.ticket_key = Some(self.tickets.public());
                welcome.certificate = Some(certificate(manner.life));
                (by, instance, false, Vec::new())
            }
            Credential::Agent { line: true, .. } if !manner.lines => {
                return Err(Refused::new(CloseReason::LimitReached, "no lines"));
            }
            Credential::Agent { instance, line, beside, .. } if manner.certificates => {
                ("certificate", instance, line, beside)
            }
            _ => return Err(Refused::new(CloseReason::CertificateRefused, "revoked")),
        };
        Ok((welcome, (by, instance, line, beside)))
    }
}

/// A certificate that ends after this time; nobody but an agent reads it.
pub fn certificate(life: Duration) -> Vec<u8> {
    let mut params = rcgen::CertificateParams::default();
    params.not_after = (SystemTime::now() + life).into();
    params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

async fn upgrade(mut tls: TlsStream<TcpStream>) -> Option<TlsStream<TcpStream>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(tls.read_u8().await.ok()?);
    }
    let mut headers = http::HeaderMap::new();
    for line in String::from_utf8(head).ok()?.lines().skip(1) {
        if let Some((name, value)) = line.split_once(": ") {
            headers.append(http::HeaderName::try_from(name).ok()?, value.parse().ok()?);
        }
    }
    let accept = accept_key(&headers).ok()?;
    let now = jiff::Timestamp::try_from(SystemTime::now()).ok()?;
    let date = now.strftime("%a, %d %b %Y %H:%M:%S GMT");
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nDate: {date}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: towline.v1\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    );
    tls.write_all(Bytes::from(answer).as_ref()).await.ok()?;
    tls.flush().await.ok()?;
    Some(tls)
}
