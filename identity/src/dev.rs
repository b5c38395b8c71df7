//! A development issuer: on loopback, with keys of its own, that gives anyone a token for anybody.
//!
//! For `towline dev` and tests. It refuses to be reached from elsewhere.

mod entra;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use bytes::Bytes;
use data_encoding::{BASE64, BASE64URL_NOPAD};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet, time::timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

pub use entra::{DevCaller, DevEntra};

/// What a token says.
#[derive(Clone, Debug)]
pub struct TokenRequest {
    /// `sub`.
    pub subject: String,
    /// `groups`.
    pub groups: Vec<String>,
    /// `aud`.
    pub audience: String,
    /// How long it lives.
    pub lifetime: Duration,
    /// More claims, or other values for the ones above.
    pub claims: BTreeMap<String, Value>,
}

impl TokenRequest {
    /// A token of one hour.
    pub fn new(subject: &str, groups: &[&str], audience: &str) -> Self {
        Self {
            subject: subject.to_owned(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            audience: audience.to_owned(),
            lifetime: Duration::from_secs(3600),
            claims: BTreeMap::new(),
        }
    }
}

struct Key {
    id: String,
    signing: EcdsaKeyPair,
    jwk: Value,
}

impl Key {
    fn generate(number: u32) -> io::Result<Self> {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(other)?;
        // An uncompressed point: 4, then both coordinates (SEC 1, section 2.3.3).
        let (x, y) = pair.public_key_raw()[1..].split_at(32);
        let id = format!("dev-{number}");
        let jwk = json!({
            "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": id,
            "x": BASE64URL_NOPAD.encode(x), "y": BASE64URL_NOPAD.encode(y),
        });
        let signing = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pair.serialize_der());
        Ok(Self { signing: signing.map_err(other)?, id, jwk })
    }
}

/// What introspection (RFC 7662) says; of whoever is not named, that the token is active.
#[derive(Debug, Default)]
struct Accounts {
    disabled: BTreeSet<String>,
    is_away: bool,
    asked: u64,
}

/// The client that may ask, and its secret.
const INTROSPECTING: (&str, &str) = ("towline-agent", "introspects");

/// The issuer; it stops when it is dropped.
pub struct DevIssuer {
    address: SocketAddr,
    ca_pem: String,
    keys: Arc<Mutex<Vec<Key>>>,
    requests: Arc<Mutex<u64>>,
    accounts: Arc<Mutex<Accounts>>,
    _serving: AbortOnDropHandle<()>,
}

impl std::fmt::Debug for DevIssuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DevIssuer({})", self.url())
    }
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(error)
}

impl DevIssuer {
    /// Starts on a port of loopback (0: any free one).
    ///
    /// # Errors
    /// If the port is taken.
    pub async fn start(port: u16) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
        let address = listener.local_addr()?;
        let (ca_pem, acceptor) = certificates()?;
        let keys = Arc::new(Mutex::new(vec![Key::generate(1)?]));
        let requests = Arc::new(Mutex::new(0));
        let accounts = Arc::new(Mutex::new(Accounts::default()));
        let state = (Arc::clone(&keys), Arc::clone(&requests), Arc::clone(&accounts));
        let answer = move |request, own| answer(request, own, state.clone());
        let serving = serve(listener, acceptor, answer);
        let serving = AbortOnDropHandle::new(tokio::spawn(serving));
        Ok(Self { address, ca_pem, keys, requests, accounts, _serving: serving })
    }

    /// The issuer's URL.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.address.port())
    }

    /// The authority of its certificate.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Documents that were asked for so far.
    pub fn requests(&self) -> u64 {
        *self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Client id and secret with which it can be asked whether a token is active, at `/introspect`.
    pub fn introspecting_client(&self) -> (&'static str, &'static str) {
        INTROSPECTING
    }

    fn accounts(&self) -> std::sync::MutexGuard<'_, Accounts> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether tokens of this subject are active from now on.
    pub fn set_active(&self, subject: &str, is_active: bool) {
        let mut accounts = self.accounts();
        if is_active {
            accounts.disabled.remove(subject);
        } else {
            accounts.disabled.insert(subject.to_owned());
        }
    }

    /// Whether introspection is answered with 503 from now on.
    pub fn set_away(&self, is_away: bool) {
        self.accounts().is_away = is_away;
    }

    /// How often it was asked whether a token is active.
    pub fn introspections(&self) -> u64 {
        self.accounts().asked
    }

    /// Signs with a new key from now on; the old ones stay in the key set.
    ///
    /// # Errors
    /// If no key can be made.
    pub fn rotate(&self) -> io::Result<()> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let number = keys.len() as u32 + 1;
        keys.push(Key::generate(number)?);
        Ok(())
    }

    /// A token.
    ///
    /// # Errors
    /// If it can't be signed.
    pub fn mint(&self, request: &TokenRequest) -> io::Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut claims = json!({
            "iss": self.url(),
            "sub": request.subject,
            "aud": request.audience,
            "iat": now,
            "nbf": now,
            "exp": now + request.lifetime.as_secs(),
            "groups": request.groups,
        });
        for (name, value) in &request.claims {
            claims[name] = value.clone();
        }
        self.sign(&json!({ "alg": "ES256", "typ": "JWT" }), &claims.to_string())
    }

    /// A token with exactly these claims, rightly signed; the header gets a `kid` where it has none.
    ///
    /// # Errors
    /// If it can't be signed.
    pub fn sign(&self, header: &Value, claims: &str) -> io::Result<String> {
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let key = keys.last().ok_or_else(|| io::Error::other("there is no key"))?;
        let mut header = header.clone();
        if header.get("kid").is_none() {
            header["kid"] = json!(key.id);
        }
        let signed = format!(
            "{}.{}",
            BASE64URL_NOPAD.encode(header.to_string().as_bytes()),
            BASE64URL_NOPAD.encode(claims.as_bytes())
        );
        let signature = key.signing.sign(&SystemRandom::new(), signed.as_bytes()).map_err(other)?;
        Ok(format!("{signed}.{}", BASE64URL_NOPAD.encode(signature.as_ref())))
    }
}

fn certificates() -> io::Result<(String, TlsAcceptor)> {
    let mut authority = rcgen::CertificateParams::new(Vec::<String>::new()).map_err(other)?;
    authority.distinguished_name.push(rcgen::DnType::CommonName, "towline development issuer");
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    let authority_key = rcgen::KeyPair::generate().map_err(other)?;
    let ca_pem = authority.self_signed(&authority_key).map_err(other)?.pem();
    let leaf_key = rcgen::KeyPair::generate().map_err(other)?;
    let leaf =
        rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).map_err(other)?;
    let issuer = rcgen::Issuer::from_params(&authority, &authority_key);
    let leaf = leaf.signed_by(&leaf_key, &issuer).map_err(other)?;
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(leaf_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(other)?
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key.into())
        .map_err(other)?;
    Ok((ca_pem, TlsAcceptor::from(Arc::new(config))))
}

type State = (Arc<Mutex<Vec<Key>>>, Arc<Mutex<u64>>, Arc<Mutex<Accounts>>);
type Answer = Result<Response<Full<Bytes>>, http::Error>;

/// Serves by TLS; `answer` gets each request and the address that it came to.
async fn serve<F, R>(listener: TcpListener, acceptor: TlsAcceptor, answer: F)
where
    F: Fn(Request<Incoming>, SocketAddr) -> R + Clone + Send + 'static,
    R: Future<Output = Answer> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        let Ok((tcp, _)) = listener.accept().await else { continue };
        while connections.try_join_next().is_some() {}
        if connections.len() >= 64 {
            continue;
        }
        let (acceptor, answer) = (acceptor.clone(), answer.clone());
        let Ok(own) = tcp.local_addr() else { continue };
        connections.spawn(async move {
            let Ok(Ok(tls)) = timeout(Duration::from_secs(5), acceptor.accept(tcp)).await else { return };
            let service = service_fn(move |request| answer(request, own));
            // A broken connection is the asker's to notice.
            let _ended = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(tls), service)
                .await;
        });
    }
}

async fn answer(request: Request<Incoming>, own: SocketAddr, (keys, requests, accounts): State) -> Answer {
    *requests.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    let url = format!("https://127.0.0.1:{}", own.port());
    let body = match request.uri().path() {
        "/.well-known/openid-configuration" => json!({
            "issuer": url,
            "jwks_uri": format!("{url}/keys"),
            "authorization_endpoint": format!("{url}/authorize"),
            "introspection_endpoint": format!("{url}/introspect"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        }),
        "/keys" => {
            let keys = keys.lock().unwrap_or_else(PoisonError::into_inner);
            json!({ "keys": keys.iter().map(|key| key.jwk.clone()).collect::<Vec<_>>() })
        }
        "/introspect" => match introspect(request, &accounts).await {
            Ok(body) => body,
            Err(status) => return Response::builder().status(status).body(Full::default()),
        },
        _ => return Response::builder().status(404).body(Full::default()),
    };
    Response::builder().header("content-type", "application/json").body(Full::from(body.to_string()))
}

/// RFC 7662, for clients that are who they say; otherwise the answer's status.
async fn introspect(request: Request<Incoming>, accounts: &Mutex<Accounts>) -> Result<Value, u16> {
    let (client, secret) = INTROSPECTING;
    let expected = format!("Basic {}", BASE64.encode(format!("{client}:{secret}").as_bytes()));
    let is_client = request.headers().get("authorization").is_some_and(|value| value == expected.as_str());
    let body = Limited::new(request.into_body(), 64 * 1024).collect().await.map_err(|_| 413_u16)?.to_bytes();
    let mut accounts = accounts.lock().unwrap_or_else(PoisonError::into_inner);
    accounts.asked += 1;
    match (accounts.is_away, is_client) {
        (true, _) => return Err(503),
        (false, false) => return Err(401),
        (false, true) => {}
    }
    let form = String::from_utf8_lossy(&body);
    let token = form.split('&').find_map(|field| field.strip_prefix("token=")).unwrap_or_default();
    let claims = token.split('.').nth(1).and_then(|part| BASE64URL_NOPAD.decode(part.as_bytes()).ok());
    let claims: Value = claims.and_then(|claims| serde_json::from_slice(&claims).ok()).unwrap_or_default();
    let Some(subject) = claims["sub"].as_str() else { return Ok(json!({ "active": false })) };
    Ok(match accounts.disabled.contains(subject) {
        true => json!({ "active": false }),
        false => json!({ "active": true, "sub": subject }),
    })
}
