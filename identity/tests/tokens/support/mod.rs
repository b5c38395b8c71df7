//! A scripted issuer over loopback TLS: answers what a test says, and notes what it was asked.

pub mod entra;
pub mod sign;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

/// One question.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    pub target: String,
    pub authorization: Option<String>,
    pub metadata: Option<String>,
    pub body: String,
}

/// One answer.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub retry_after: Option<String>,
    pub body: String,
}

impl Reply {
    pub fn json(value: &serde_json::Value) -> Self {
        Self { status: 200, retry_after: None, body: value.to_string() }
    }

    pub fn status(status: u16) -> Self {
        Self { status, retry_after: None, body: String::new() }
    }
}

type Script = Box<dyn Fn(&Asked) -> Reply + Send>;

#[derive(Default)]
struct State {
    /// The last that fits wins.
    script: Vec<(String, Script)>,
    asked: Vec<Asked>,
}

/// The server; it ends when it is dropped.
pub struct Scripted {
    pub address: SocketAddr,
    pub ca_pem: String,
    state: Arc<Mutex<State>>,
    _serving: AbortOnDropHandle<()>,
}

impl Scripted {
    pub async fn start() -> Self {
        let (ca_pem, acceptor) = certificates();
        Self::serve(ca_pem, Some(acceptor)).await
    }

    /// Without TLS, as a machine's metadata service.
    pub async fn start_plain() -> Self {
        Self::serve(String::new(), None).await
    }

    async fn serve(ca_pem: String, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let serving = AbortOnDropHandle::new(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let (tls, shared) = (tls.clone(), Arc::clone(&shared));
                connections.spawn(async move {
                    match tls {
                        Some(tls) => {
                            if let Ok(tls) = tls.accept(tcp).await {
                                converse(tls, shared).await;
                            }
                        }
                        None => converse(tcp, shared).await,
                    }
                });
            }
        }));
        Self { address, ca_pem, state, _serving: serving }
    }

    pub fn origin(&self) -> String {
        format!("https://{}", self.address)
    }

    /// What is answered to targets that begin so.
    pub fn on(&self, begin: &str, script: impl Fn(&Asked) -> Reply + Send + 'static) {
        let mut state = self.state.lock().unwrap();
        state.script.retain(|(known, _)| known != begin);
        state.script.push((begin.to_owned(), Box::new(script)));
    }

    pub fn on_json(&self, begin: &str, value: serde_json::Value) {
        self.on(begin, move |_| Reply::json(&value));
    }

    /// Metadata and keys of an issuer below this path.
    pub fn publish(&self, path: &str, issuer: &str, keys: &[serde_json::Value]) {
        let place = format!("{}{path}/keys", self.origin());
        self.on_json(
            &format!("{path}/.well-known/openid-configuration"),
            serde_json::json!({ "issuer": issuer, "jwks_uri": place }),
        );
        self.on_json(&format!("{path}/keys"), serde_json::json!({ "keys": keys }));
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.state.lock().unwrap().asked.clone()
    }

    /// Targets that were asked for and begin so.
    pub fn count(&self, begin: &str) -> usize {
        self.asked().iter().filter(|asked| asked.target.starts_with(begin)).count()
    }
}

async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, state: Arc<Mutex<State>>) {
    let service = service_fn(|request: Request<Incoming>| {
        let state = Arc::clone(&state);
        async move {
            let header = |name: &str| {
                request.headers().get(name).map(|value| value.to_str().unwrap_or_default().to_owned())
            };
            let mut asked = Asked {
                method: request.method().to_string(),
                target: request.uri().to_string(),
                authorization: header("authorization"),
                metadata: header("metadata"),
                body: String::new(),
            };
            let body = request.into_body().collect().await?.to_bytes();
            asked.body = String::from_utf8_lossy(&body).into_owned();
            let mut state = state.lock().unwrap();
            let last = state.script.iter().rev().find(|(begin, _)| asked.target.starts_with(begin));
            let reply = last.map_or(Reply::status(404), |(_, script)| script(&asked));
            state.asked.push(asked);
            let mut response = Response::builder().status(reply.status);
            if let Some(pause) = reply.retry_after {
                response = response.header("retry-after", pause);
            }
            Ok::<_, hyper::Error>(response.body(Full::new(Bytes::from(reply.body))).unwrap())
        }
    });
    // A broken connection is the asker's to notice.
    let _ended =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

fn certificates() -> (String, TlsAcceptor) {
    let mut authority = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let ca_pem = authority.self_signed(&authority_key).unwrap().pem();
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &rcgen::Issuer::from_params(&authority, &authority_key)).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
        .unwrap();
    (ca_pem, TlsAcceptor::from(Arc::new(config)))
}
