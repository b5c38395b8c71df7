//! Getting an issuer's documents: https, a deadline, a bound, no redirects, a trust store of its own.

use std::{io, path::Path, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

/// One document takes no longer.
const WITHIN: Duration = Duration::from_secs(5);
/// No issuer's metadata, keys or page of groups are larger.
const MAX_BODY: usize = 1024 * 1024;

/// Why a document was not had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{url}: {why}")]
pub struct FetchError {
    /// What was asked for.
    pub url: String,
    /// Why it did not come.
    pub why: String,
}

impl FetchError {
    pub(crate) fn new(url: &str, why: impl ToString) -> Self {
        Self { url: url.to_owned(), why: why.to_string() }
    }
}

/// A boxed future, so that the traits below can be objects.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Asks for documents.
pub trait Fetch: Send + Sync {
    /// The answer to a request for an absolute URL, whatever its status. Redirects are answers like any other.
    fn send(&self, request: Request<Bytes>) -> Pending<'_, Result<Response<Bytes>, FetchError>>;
}

/// The body at this URL.
///
/// # Errors
/// If there is no answer, or it is no 200.
pub(crate) async fn get(fetch: &dyn Fetch, url: &str) -> Result<Bytes, FetchError> {
    let request = Request::get(url).body(Bytes::new()).map_err(|_| FetchError::new(url, "not a URL"))?;
    let response = fetch.send(request).await?;
    if response.status() != StatusCode::OK {
        return Err(FetchError::new(url, format!("answered {}", response.status())));
    }
    Ok(response.into_body())
}

/// A byte stream to some host.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// Reaches hosts: directly, or where an issuer is blocked or intercepted, through a relay's stream. TLS is end to end
/// over whatever comes back, so who carries it need not be trusted.
pub trait Dial: Send + Sync {
    /// A byte stream to this host and port.
    fn dial<'a>(&'a self, host: &'a str, port: u16) -> Pending<'a, io::Result<Box<dyn ByteStream>>>;
}

impl<F, R, S> Dial for F
where
    F: Fn(&str, u16) -> R + Send + Sync,
    R: Future<Output = io::Result<S>> + Send + 'static,
    S: ByteStream + 'static,
{
    fn dial<'a>(&'a self, host: &'a str, port: u16) -> Pending<'a, io::Result<Box<dyn ByteStream>>> {
        let dialled = self(host, port);
        Box::pin(async move { Ok(Box::new(dialled.await?) as Box<dyn ByteStream>) })
    }
}

/// Dials directly.
#[derive(Clone, Copy, Debug)]
pub struct Direct;

impl Dial for Direct {
    fn dial<'a>(&'a self, host: &'a str, port: u16) -> Pending<'a, io::Result<Box<dyn ByteStream>>> {
        Box::pin(async move {
            let tcp = TcpStream::connect((host, port)).await?;
            Ok(Box::new(tcp) as Box<dyn ByteStream>)
        })
    }
}

/// Whom an issuer's certificate must be from. A proxy's authority is never among them: whoever could forge keys could
/// be anyone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Roots {
    /// The system's.
    #[default]
    System,
    /// Exactly those in this PEM text.
    Pem(String),
}

impl Roots {
    /// Reads a PEM file.
    ///
    /// # Errors
    /// If it can't be read or holds no certificate.
    pub fn read(path: &Path) -> Result<Self, FetchError> {
        let url = path.display().to_string();
        let pem = std::fs::read_to_string(path).map_err(|error| FetchError::new(&url, error))?;
        let roots = Self::Pem(pem);
        roots.store().map_err(|error| FetchError::new(&url, error.why))?;
        Ok(roots)
    }

    fn store(&self) -> Result<RootCertStore, FetchError> {
        let mut roots = RootCertStore::empty();
        match self {
            Self::Pem(pem) => {
                let certificates: Vec<CertificateDer<'_>> = CertificateDer::pem_slice_iter(pem.as_bytes())
                    .collect::<Result<_, _>>()
                    .map_err(|cause| FetchError::new("certificate authorities", cause))?;
                let (added, _) = roots.add_parsable_certificates(certificates);
                if added == 0 {
                    return Err(FetchError::new("certificate authorities", "holds no certificate"));
                }
            }
            Self::System => {
                let (added, _) =
                    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if added == 0 {
                    tracing::warn!(
                        "this system has no certificate authorities: no issuer will be trusted (install ca-certificates, or name a CA file)"
                    );
                }
            }
        }
        Ok(roots)
    }
}

/// Asks by https, and where it was told to, by http on one address only.
pub struct HttpsFetch {
    tls: TlsConnector,
    dial: Arc<dyn Dial>,
    plain: Option<String>,
}

impl std::fmt::Debug for HttpsFetch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HttpsFetch")
    }
}

impl HttpsFetch {
    /// Trusts exactly these authorities.
    ///
    /// # Errors
    /// If they hold no certificate.
    pub fn new(roots: &Roots, dial: Arc<dyn Dial>) -> Result<Self, FetchError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|cause| FetchError::new("", cause))?
            .with_root_certificates(roots.store()?)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), dial, plain: None })
    }

    /// Asks this one authority (`169.254.169.254`), the machine's own metadata service, without TLS, for it has none.
    #[must_use]
    pub(crate) fn with_plain(mut self, authority: &str) -> Self {
        self.plain = Some(authority.to_owned());
        self
    }

    async fn exchange(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, String> {
        let uri = request.uri().clone();
        let authority = uri.authority().ok_or("not an absolute URL")?.clone();
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let secure = uri.scheme_str() == Some("https");
        if !secure && self.plain.as_deref() != Some(authority.as_str()) {
            return Err("not an https URL".into());
        }
        let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let stream =
            self.dial.dial(host, port).await.map_err(|error| format!("can't be reached: {error}"))?;
        let stream: Box<dyn ByteStream> = if secure {
            let name = ServerName::try_from(host.to_owned()).map_err(|_| "its host is no name")?;
            Box::new(self.tls.connect(name, stream).await.map_err(|error| chain(&error))?)
        } else {
            stream
        };
        let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        *request.uri_mut() = path.parse().map_err(|_| "not a URL")?;
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| "not a URL")?;
        request.headers_mut().insert(header::HOST, host);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| chain(&error))?;
        let _driven = AbortOnDropHandle::new(tokio::spawn(async move {
            // Its end shows in the answer.
            let _ended = connection.await;
        }));
        let response = sender.send_request(request.map(Full::new)).await.map_err(|error| chain(&error))?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_BODY).collect().await.map_err(|error| error.to_string())?;
        Ok(Response::from_parts(parts, body.to_bytes()))
    }
}

/// The whole chain of causes: the last one says most.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

impl Fetch for HttpsFetch {
    fn send(&self, request: Request<Bytes>) -> Pending<'_, Result<Response<Bytes>, FetchError>> {
        Box::pin(async move {
            let url = request.uri().to_string();
            match timeout(WITHIN, self.exchange(request)).await {
                Ok(Ok(response)) => Ok(response),
                Ok(Err(why)) => Err(FetchError { url, why }),
                Err(_elapsed) => Err(FetchError { url, why: "no answer within 5 s".into() }),
            }
        })
    }
}
