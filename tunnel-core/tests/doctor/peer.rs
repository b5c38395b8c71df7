//! A relay as far as its first messages go, and a network before it that a test spoils.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::SystemTime,
};

use http::{HeaderMap, HeaderName, HeaderValue};
use rustls::pki_types::PrivatePkcs8KeyDer;
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::task::AbortOnDropHandle;
use towline_tunnel::{
    carrier::{
        dial::RelayAddress,
        websocket::{WebSocketCarrier, accept_key},
    },
    doctor::{Names, Network},
    egress::Egress,
    ids::KeyHash,
    keys::SigningKey,
    mux::CloseReason,
    session::{
        self, Credential, Refused, RelayIdentity, Welcome, exporter,
        message::{Message, encode},
    },
};

/// What becomes of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frames {
    Pass,
    LostUp,
    LostDown,
    LargeLostUp,
    LargeLostDown,
}

/// What is wrong.
#[derive(Clone, Debug)]
pub(crate) struct Manner {
    /// The name in the certificate.
    pub(crate) certified: &'static str,
    /// Its first moment; 2020 where none is said.
    pub(crate) from: Option<SystemTime>,
    /// Its last year.
    pub(crate) until: i32,
    /// Outer TLS ends before the relay.
    pub(crate) intercepted: bool,
    /// There is no TLS at all.
    pub(crate) plain: bool,
    /// What the upgrade is answered with, if not with an upgrade.
    pub(crate) answer: Option<&'static str>,
    pub(crate) frames: Frames,
    pub(crate) other_version: bool,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            certified: "relay.test",
            from: None,
            until: 4000,
            intercepted: false,
            plain: false,
            answer: None,
            frames: Frames::Pass,
            other_version: false,
        }
    }
}

/// It serves until it is dropped.
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    pin: KeyHash,
    folder: TempDir,
    _serving: AbortOnDropHandle<()>,
}

struct Relay {
    manner: Manner,
    identity: RelayIdentity,
    tls: TlsAcceptor,
}

/// The hash of a key that nobody has.
pub(crate) fn no_key() -> KeyHash {
    KeyHash::of_spki(b"nobody's")
}

impl Peer {
    pub(crate) async fn start(manner: Manner) -> Self {
        let (ca, tls) = certificate(&manner);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), ca).unwrap();
        let key = Arc::new(SigningKey::generate());
        let pin = key.public().hash();
        let relay = Relay { manner, identity: RelayIdentity::new(key).unwrap(), tls };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = AbortOnDropHandle::new(tokio::spawn(serve(listener, Arc::new(relay))));
        Self { address, pin, folder, _serving: serving }
    }

    /// The way there, for somebody who has its authority and key.
    pub(crate) fn network(&self) -> Network {
        let relay = RelayAddress::parse(&format!("relay.test:{}", self.address.port())).unwrap();
        let address = self.address;
        Network {
            names: Names::new(move |_, _| Box::pin(async move { Ok(vec![address]) })),
            ..Network::straight(relay, self.pin, Some(self.folder.path().join("ca.pem")))
        }
    }
}

impl Peer {
    /// The authority of its certificate.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// The way to its address, by this way out, for somebody who has its authority and key.
    pub(crate) fn over(&self, egress: Egress) -> Network {
        let relay = RelayAddress::parse(&self.address.to_string()).unwrap();
        Network::over(egress, relay, self.pin, Some(self.ca_file()))
    }

    /// The way to what stands before it, which has a certificate of its own.
    pub(crate) fn behind(&self, front: SocketAddr, ca: &Path) -> Network {
        let relay = RelayAddress::parse(&front.to_string()).unwrap();
        Network::straight(relay, self.pin, Some(ca.to_owned()))
    }
}

fn certificate(manner: &Manner) -> (String, TlsAcceptor) {
    let mut authority = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    authority.distinguished_name.push(rcgen::DnType::CommonName, "Corp Proxy CA");
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let ca = authority.self_signed(&authority_key).unwrap().pem();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut leaf = rcgen::CertificateParams::new(vec![manner.certified.to_owned()]).unwrap();
    leaf.not_before = manner.from.map_or_else(|| rcgen::date_time_ymd(2020, 1, 1), Into::into);
    leaf.not_after = rcgen::date_time_ymd(manner.until, 1, 1);
    let leaf = leaf.signed_by(&key, &rcgen::Issuer::from_params(&authority, &authority_key)).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
        .unwrap();
    (ca, TlsAcceptor::from(Arc::new(config)))
}

async fn serve(listener: TcpListener, relay: Arc<Relay>) {
    let mut connections = JoinSet::new();
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let relay = Arc::clone(&relay);
        // What becomes of it is for the dialler to find out.
        connections.spawn(async move { relay.connection(tcp).await });
    }
}

impl Relay {
    async fn connection(&self, mut tcp: TcpStream) -> Option<()> {
        if self.manner.plain {
            tcp.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await.ok()?;
            return Some(());
        }
        let mut tls = self.tls.accept(tcp).await.ok()?;
        let seen = exporter(tls.get_ref().1);
        let outer = if self.manner.intercepted { Some([1; 32]) } else { seen };
        let headers = read_head(&mut tls).await?;
        let now = jiff::Timestamp::try_from(SystemTime::now()).unwrap();
        let date = now.strftime("%a, %d %b %Y %H:%M:%S GMT");
        if let Some(answer) = self.manner.answer {
            let answer =
                format!("HTTP/1.1 {answer}\r\nDate: {date}\r\nServer: script\r\nContent-Length: 0\r\n\r\n");
            tls.write_all(answer.as_bytes()).await.ok()?;
            tls.flush().await.ok()?;
            return Some(());
        }
        let Ok(key) = accept_key(&headers) else {
            let answer = format!(
                "HTTP/1.1 426 Upgrade Required\r\nDate: {date}\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n"
            );
            tls.write_all(answer.as_bytes()).await.ok()?;
            tls.flush().await.ok()?;
            return Some(());
        };
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nDate: {date}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {key}\r\nSec-WebSocket-Protocol: towline.v1\r\n\r\n"
        );
        tls.write_all(answer.as_bytes()).await.ok()?;
        tls.flush().await.ok()?;
        let mut carrier =
            WebSocketCarrier::server(Box::pin(Lossy { tls, frames: self.manner.frames, dead: false }));
        if self.manner.other_version {
            carrier.read_u8().await.ok()?;
            let refused = Refused::new(CloseReason::VersionUnsupported, "");
            carrier.write_all(&encode(&Message::Refused(refused))).await.ok()?;
            carrier.flush().await.ok()?;
            let mut rest = [0; 64];
            while carrier.read(&mut rest).await.ok()? > 0 {}
            return Some(());
        }
        let judge = async |_: Credential| -> Result<(Welcome, ()), Refused> {
            panic!("nobody who only looks says who they are")
        };
        let _ended = session::accept(carrier, outer, &self.identity, judge).await;
        Some(())
    }
}

async fn read_head(io: &mut (impl AsyncRead + Unpin)) -> Option<HeaderMap> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.ok()?);
    }
    let text = String::from_utf8(head).ok()?;
    let fields = text.lines().skip(1).filter_map(|line| line.split_once(": "));
    Some(
        fields
            .map(|(name, value)| (HeaderName::try_from(name).unwrap(), HeaderValue::try_from(value).unwrap()))
            .collect(),
    )
}

/// Longer pieces are large.
const LARGE: usize = 1024;

/// A middlebox that takes part of what passes.
struct Lossy {
    tls: TlsStream<TcpStream>,
    frames: Frames,
    /// Something large came: nothing passes any more.
    dead: bool,
}

impl AsyncRead for Lossy {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        loop {
            let before = buf.filled().len();
            ready!(Pin::new(&mut me.tls).poll_read(cx, buf))?;
            let read = buf.filled().len() - before;
            me.dead |= me.frames == Frames::LostUp || me.frames == Frames::LargeLostUp && read > LARGE;
            if !me.dead || read == 0 {
                return Poll::Ready(Ok(()));
            }
            buf.set_filled(before);
        }
    }
}

impl AsyncWrite for Lossy {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let lost = me.frames == Frames::LostDown || me.frames == Frames::LargeLostDown && bytes.len() > LARGE;
        if lost { Poll::Ready(Ok(bytes.len())) } else { Pin::new(&mut me.tls).poll_write(cx, bytes) }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tls).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tls).poll_shutdown(cx)
    }
}
