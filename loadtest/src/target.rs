//! An apiserver as a kubeconfig names it, asked as kubectl asks: HTTP/2 over TLS with a client certificate.

use std::{fs, path::Path, sync::Arc};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use serde_norway::Value;
use tokio::{net::TcpStream, task::JoinHandle};
use tokio_rustls::TlsConnector;

use crate::path::Io;

/// Where requests go, and as whom.
#[derive(Clone)]
pub struct Target {
    base: Uri,
    tls: Arc<ClientConfig>,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Target({})", self.base)
    }
}

/// A connection; dropping it ends it.
#[derive(Debug)]
pub struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    base: Uri,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Target {
    /// The current context's cluster and user; certificates must stand in the file itself. `protocol` is what is asked
    /// for by ALPN: `h2` or `http/1.1`.
    ///
    /// # Errors
    /// If the file can't be read, or is made otherwise.
    pub fn of_kubeconfig(path: &Path, protocol: &[u8]) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let config: Value = serde_norway::from_str(&text)?;
        let current = config["current-context"].as_str().context("no current context")?;
        let named = |list: &str, name: &str, what: &str| -> anyhow::Result<Value> {
            let entries = config[list].as_sequence().with_context(|| format!("no {list}"))?;
            let found = entries.iter().find(|entry| entry["name"].as_str() == Some(name));
            Ok(found.with_context(|| format!("no {name} in {list}"))?[what].clone())
        };
        let context = named("contexts", current, "context")?;
        let name = |key: &str| context[key].as_str().with_context(|| format!("the context has no {key}"));
        let (cluster, user) =
            (named("clusters", name("cluster")?, "cluster")?, named("users", name("user")?, "user")?);
        let pem = |value: &Value, key: &str| -> anyhow::Result<Vec<u8>> {
            let data = value[key].as_str().with_context(|| format!("no {key}"))?;
            Ok(data_encoding::BASE64.decode(data.as_bytes())?)
        };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem(&cluster, "certificate-authority-data")?) {
            roots.add(certificate?)?;
        }
        let chain = CertificateDer::pem_slice_iter(&pem(&user, "client-certificate-data")?)
            .collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(&pem(&user, "client-key-data")?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        tls.alpn_protocols = vec![protocol.to_vec()];
        let base = cluster["server"].as_str().context("no server")?.parse()?;
        Ok(Self { base, tls: Arc::new(tls) })
    }

    /// Host and port.
    pub fn host(&self) -> &str {
        self.base.authority().map_or("", http::uri::Authority::as_str)
    }

    /// What stands before the path of each request.
    pub fn prefix(&self) -> &str {
        self.base.path().trim_end_matches('/')
    }

    /// A new connection: TCP, TLS.
    ///
    /// # Errors
    /// If one of them fails.
    pub async fn dial(&self) -> anyhow::Result<Io> {
        let authority = self.base.authority().context("a server has an address")?;
        let tcp = TcpStream::connect(authority.as_str()).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(authority.host().to_owned())?;
        Ok(Box::new(TlsConnector::from(Arc::clone(&self.tls)).connect(name, tcp).await?))
    }

    /// A new connection: TCP, TLS, HTTP/2.
    ///
    /// # Errors
    /// If any of them fails.
    pub async fn connect(&self) -> anyhow::Result<Connection> {
        let io = TokioIo::new(self.dial().await?);
        let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
        let driver = tokio::spawn(async move {
            let _ended = connection.await;
        });
        Ok(Connection { sender, base: self.base.clone(), driver })
    }
}

impl Connection {
    /// Asks for a path, and reads the whole answer; its length.
    ///
    /// # Errors
    /// If it is not 200.
    pub async fn get(&mut self, path: &str) -> anyhow::Result<usize> {
        let prefix = self.base.path().trim_end_matches('/');
        let authority = self.base.authority().context("a server has an address")?;
        let uri = format!("https://{authority}{prefix}{path}");
        let request =
            Request::get(uri).header(header::ACCEPT, "application/json").body(Empty::<Bytes>::new())?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        ensure!(status == http::StatusCode::OK, "{path}: {status}: {}", String::from_utf8_lossy(&body));
        Ok(body.len())
    }
}
