//! A TLS server that keeps every byte it was sent, and answers with the bytes that a test tells it to.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustls::{
    pki_types::PrivatePkcs8KeyDer,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::task::AbortOnDropHandle;

type Handling = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;
type Handler = Arc<dyn Fn(CapConnection) -> Handling + Send + Sync>;

/// The server; it ends when it is dropped.
pub struct Cap {
    pub address: SocketAddr,
    ca_pem: String,
    log: Arc<Mutex<Vec<Vec<u8>>>>,
    accepted: Arc<AtomicUsize>,
    serving: AbortOnDropHandle<()>,
}

/// One connection that it accepted.
pub struct CapConnection {
    pub stream: TlsStream<TcpStream>,
    /// The how-manieth it is, from 0.
    pub number: usize,
    log: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl CapConnection {
    pub async fn byte(&mut self) -> io::Result<Option<u8>> {
        let mut byte = [0];
        if self.stream.read(&mut byte).await? == 0 {
            return Ok(None);
        }
        self.log.lock().unwrap()[self.number].push(byte[0]);
        Ok(Some(byte[0]))
    }

    /// The next head, or nothing at a clean end.
    pub async fn head(&mut self) -> io::Result<Option<String>> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match self.byte().await? {
                Some(byte) => head.push(byte),
                None => return Ok(None),
            }
        }
        Ok(Some(String::from_utf8_lossy(&head).into_owned()))
    }

    pub async fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).await?;
        self.log.lock().unwrap()[self.number].extend_from_slice(&bytes);
        Ok(bytes)
    }

    pub async fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Waits until the peer ends its direction.
    pub async fn drained(&mut self) -> io::Result<()> {
        while self.byte().await?.is_some() {}
        Ok(())
    }

    /// Ends TCP without ending TLS, as a killed process does.
    pub async fn cut(self) -> io::Result<()> {
        let (mut tcp, _) = self.stream.into_inner();
        tcp.shutdown().await
    }
}

impl Cap {
    /// A server that handles each connection so.
    pub async fn new<F, Fut>(handle: F) -> Self
    where
        F: Fn(CapConnection) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = io::Result<()>> + Send + 'static,
    {
        Self::with_clients(WebPkiClientVerifier::no_client_auth(), handle).await
    }

    /// One that asks for a client certificate so.
    pub async fn with_clients<F, Fut>(clients: Arc<dyn ClientCertVerifier>, handle: F) -> Self
    where
        F: Fn(CapConnection) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = io::Result<()>> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |connection| Box::pin(handle(connection)));
        // kube-apiserver would choose h2 where it is offered.
        let (ca_pem, acceptor) = server(&[b"h2", b"http/1.1"], clients);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let accepted = Arc::default();
        let serving =
            tokio::spawn(serve(listener, acceptor, handler, Arc::clone(&log), Arc::clone(&accepted)));
        Self { address, ca_pem, log, accepted, serving: AbortOnDropHandle::new(serving) }
    }

    /// One that answers every request with these bytes, keeping the connection.
    pub async fn answering(answer: &'static str) -> Self {
        Self::new(move |mut connection| async move {
            while connection.head().await?.is_some() {
                connection.say(answer.as_bytes()).await?;
            }
            Ok(())
        })
        .await
    }

    /// One that answers SubjectAccessReviews with the bytes that `judge` says, and every other request by 200 and `{}`.
    pub async fn judging(judge: impl Fn(&Value) -> String + Send + Sync + 'static) -> Self {
        let judge = Arc::new(judge);
        Self::new(move |mut connection| {
            let judge = Arc::clone(&judge);
            async move {
                while let Some(head) = connection.head().await? {
                    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                    let body = connection.take(length.map_or(0, |length| length.parse().unwrap())).await?;
                    let answer =
                        if head.starts_with("POST /apis/authorization.k8s.io/v1/subjectaccessreviews ") {
                            judge(&serde_json::from_slice(&body).unwrap())
                        } else {
                            json("200 OK", "{}")
                        };
                    connection.say(answer.as_bytes()).await?;
                }
                Ok(())
            }
        })
        .await
    }

    /// All bytes that came, of each connection on which any came.
    pub fn seen(&self) -> Vec<String> {
        let log = self.log.lock().unwrap();
        log.iter()
            .filter(|bytes| !bytes.is_empty())
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
            .collect()
    }

    /// TCP connections that were made, whether or not TLS began or anything was sent.
    pub fn connections(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Those of them on which TLS began: a client that does not trust it ends before.
    pub fn tls_connections(&self) -> usize {
        self.log.lock().unwrap().len()
    }

    /// The server ends as a killed process does: every connection is cut.
    pub fn kill(&self) {
        self.serving.abort();
    }

    /// A kubeconfig that leads to it, with the token `agent-token`.
    pub fn kubeconfig(&self, folder: &TempDir) -> PathBuf {
        let path = folder.path().join("kubeconfig");
        let ca = folder.path().join("apiserver-ca.pem");
        std::fs::write(&ca, &self.ca_pem).unwrap();
        let text = format!(
            "current-context: c\nclusters: [{{name: c, cluster: {{server: 'https://{}', certificate-authority: '{}'}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\nusers: [{{name: u, user: {{token: agent-token}}}}]\n",
            self.address,
            ca.display()
        );
        std::fs::write(&path, text).unwrap();
        path
    }
}

/// An answer.
pub fn json(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// An answer to a SubjectAccessReview.
pub fn verdict(allowed: bool) -> String {
    json("201 Created", &format!(r#"{{"kind":"SubjectAccessReview","status":{{"allowed":{allowed}}}}}"#))
}

async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    handler: Handler,
    log: Arc<Mutex<Vec<Vec<u8>>>>,
    accepted: Arc<AtomicUsize>,
) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((tcp, _)) = listener.accept().await else { continue };
        accepted.fetch_add(1, Ordering::Relaxed);
        let (acceptor, handler, log) = (acceptor.clone(), Arc::clone(&handler), Arc::clone(&log));
        connections.spawn(async move {
            let Ok(stream) = acceptor.accept(tcp).await else { return };
            let number = {
                let mut log = log.lock().unwrap();
                log.push(Vec::new());
                log.len() - 1
            };
            // A connection that breaks is what the test is about, or shows in its outcome.
            let _ended = handler(CapConnection { stream, number, log }).await;
        });
    }
}

/// An authority, and a server of its for loopback that offers these protocols.
pub fn certificates(protocols: &[&[u8]]) -> (String, TlsAcceptor) {
    server(protocols, WebPkiClientVerifier::no_client_auth())
}

fn server(protocols: &[&[u8]], clients: Arc<dyn ClientCertVerifier>) -> (String, TlsAcceptor) {
    let mut authority = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let ca_pem = authority.self_signed(&authority_key).unwrap().pem();
    let leaf_key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&leaf_key, &rcgen::Issuer::from_params(&authority, &authority_key)).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![leaf.der().clone()], PrivatePkcs8KeyDer::from(leaf_key.serialize_der()).into())
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    (ca_pem, TlsAcceptor::from(Arc::new(config)))
}
