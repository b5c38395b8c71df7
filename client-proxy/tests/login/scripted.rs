//! An issuer over loopback TLS that answers what a test says, and notes what it was asked.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;
use towline_identity::dev::DevIssuer;
use url::form_urlencoded;

/// One question.
#[derive(Clone, Debug)]
pub struct Asked {
    pub target: String,
    pub authorization: Option<String>,
    /// The body, as a form.
    pub form: BTreeMap<String, String>,
}

/// One answer.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<String>) -> Self {
        Self { status, headers: vec![("content-type", "application/json".into())], body: body.into() }
    }

    pub fn json(value: &Value) -> Self {
        Self::new(200, value.to_string())
    }

    pub fn error(code: &str) -> Self {
        Self::new(400, json!({ "error": code, "error_description": "its own words" }).to_string())
    }

    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

type Script = Box<dyn FnMut(&Asked) -> Reply + Send>;

#[derive(Default)]
struct State {
    script: BTreeMap<String, Script>,
    asked: Vec<Asked>,
}

/// The issuer; it ends when it is dropped.
pub struct Scripted {
    pub ca_pem: String,
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    /// Has the keys.
    pub signer: Arc<DevIssuer>,
    _serving: AbortOnDropHandle<()>,
}

impl Scripted {
    pub async fn start() -> Self {
        let (ca_pem, acceptor) = certificates();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let serving = serve(listener, acceptor, Arc::clone(&state));
        let signer = Arc::new(DevIssuer::start(0).await.unwrap());
        let scripted = Self {
            ca_pem: format!("{ca_pem}\n{}", signer.ca_pem()),
            address,
            state,
            signer,
            _serving: AbortOnDropHandle::new(tokio::spawn(serving)),
        };
        scripted.introduce(json!({}));
        scripted
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// What the metadata says, beside the usual.
    pub fn introduce(&self, more: Value) {
        let url = self.url();
        let mut metadata = json!({
            "issuer": url,
            "authorization_endpoint": format!("{url}/authorize"),
            "token_endpoint": format!("{url}/token"),
            "device_authorization_endpoint": format!("{url}/device"),
            "revocation_endpoint": format!("{url}/revoke"),
            "jwks_uri": format!("{}/keys", self.signer.url()),
            "code_challenge_methods_supported": ["S256"],
        });
        for (name, value) in more.as_object().unwrap() {
            metadata[name] = value.clone();
        }
        self.on("/.well-known/openid-configuration", move |_| Reply::json(&metadata));
    }

    /// What is answered at a path.
    pub fn on(&self, path: &str, script: impl FnMut(&Asked) -> Reply + Send + 'static) {
        self.state.lock().unwrap().script.insert(path.to_owned(), Box::new(script));
    }

    /// Everything that was asked for at a path.
    pub fn asked(&self, path: &str) -> Vec<Asked> {
        let state = self.state.lock().unwrap();
        state.asked.iter().filter(|asked| asked.target.split('?').next() == Some(path)).cloned().collect()
    }

    /// An ID token's usual claims.
    pub fn claims(&self, client: &str) -> Value {
        claims(&self.url(), client)
    }

    pub fn sign(&self, claims: &Value) -> String {
        sign(&self.signer, claims)
    }
}

pub fn claims(issuer: &str, client: &str) -> Value {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    json!({ "iss": issuer, "sub": "ada", "aud": client, "iat": now, "exp": now + 3600, "email": "ada@example" })
}

pub fn sign(signer: &DevIssuer, claims: &Value) -> String {
    signer.sign(&json!({ "alg": "ES256", "typ": "JWT" }), &claims.to_string()).unwrap()
}

/// A token response with an ID token.
pub fn granted(id_token: &str, refresh: &str) -> Reply {
    Reply::json(&json!({
        "access_token": "canary-opaque", "token_type": "Bearer", "expires_in": 3600,
        "id_token": id_token, "refresh_token": refresh,
    }))
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, state: Arc<Mutex<State>>) {
    let mut connections = JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        let (acceptor, state) = (acceptor.clone(), Arc::clone(&state));
        connections.spawn(async move {
            let Ok(tls) = acceptor.accept(tcp).await else { return };
            let service = service_fn(|request| answer(request, Arc::clone(&state)));
            // A broken connection is the asker's to notice.
            let _ended =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(tls), service).await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
) -> hyper::Result<Response<Full<Bytes>>> {
    let header = request.headers().get("authorization").map(|value| value.to_str().unwrap().to_owned());
    let (target, path) = (request.uri().to_string(), request.uri().path().to_owned());
    let body = request.into_body().collect().await?.to_bytes();
    let form = form_urlencoded::parse(&body).into_owned().collect();
    let asked = Asked { target, authorization: header, form };
    let mut state = state.lock().unwrap();
    let reply = state.script.get_mut(&path).map_or(Reply::new(404, ""), |script| script(&asked));
    state.asked.push(asked);
    let mut response = Response::builder().status(reply.status);
    for (name, value) in reply.headers {
        response = response.header(name, value);
    }
    Ok(response.body(Full::from(reply.body)).unwrap())
}

/// An authority's PEM, and a server that it vouches for.
pub fn certificates() -> (String, TlsAcceptor) {
    let (ca, certificate, key) = certificate_files();
    let certificate =
        <rustls::pki_types::CertificateDer<'_> as rustls::pki_types::pem::PemObject>::from_pem_slice(
            certificate.as_bytes(),
        )
        .unwrap();
    let key = <PrivatePkcs8KeyDer<'_> as rustls::pki_types::pem::PemObject>::from_pem_slice(key.as_bytes())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key.into())
        .unwrap();
    (ca, TlsAcceptor::from(Arc::new(config)))
}

/// An authority, a certificate for 127.0.0.1 and its key, as PEM.
pub fn certificate_files() -> (String, String, String) {
    let mut authority = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let ca = authority.self_signed(&authority_key).unwrap().pem();
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &rcgen::Issuer::from_params(&authority, &authority_key)).unwrap();
    (ca, leaf.pem(), key.serialize_pem())
}
