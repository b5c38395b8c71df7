//! A Kubernetes client that has a kubeconfig of ours.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use data_encoding::BASE64;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use serde_norway::Value;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

#[derive(Clone)]
pub struct Kubectl {
    pub address: SocketAddr,
    /// `/clusters/ID`.
    pub prefix: String,
    config: ClientConfig,
}

pub struct H2(hyper::client::conn::http2::SendRequest<Body>);
pub struct H1(hyper::client::conn::http1::SendRequest<Body>);

pub fn empty() -> Body {
    full("")
}

pub fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

impl Kubectl {
    /// The context of this number in a kubeconfig.
    pub fn new(kubeconfig: &str, context: usize) -> Self {
        let config: Value = serde_norway::from_str(kubeconfig).unwrap();
        let decoded = |value: &Value| BASE64.decode(value.as_str().unwrap().as_bytes()).unwrap();
        let cluster = &config["clusters"][context]["cluster"];
        let user = &config["users"][context]["user"];
        let mut roots = RootCertStore::empty();
        let authority = decoded(&cluster["certificate-authority-data"]);
        roots.add(CertificateDer::from_pem_slice(&authority).unwrap()).unwrap();
        let certificate = CertificateDer::from_pem_slice(&decoded(&user["client-certificate-data"])).unwrap();
        let key = PrivateKeyDer::from_pem_slice(&decoded(&user["client-key-data"])).unwrap();
        let tls =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_client_auth_cert(vec![certificate], key)
                .unwrap();
        let server: http::Uri = cluster["server"].as_str().unwrap().parse().unwrap();
        let address = server.authority().unwrap().as_str().parse().unwrap();
        Self { address, prefix: server.path().to_owned(), config: tls }
    }

    pub async fn tls(&self, alpn: &[u8]) -> TlsStream<TcpStream> {
        let mut config = self.config.clone();
        config.alpn_protocols = vec![alpn.to_vec()];
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
    }

    pub async fn h2(&self) -> H2 {
        let tls = self.tls(b"h2").await;
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await.unwrap();
        tokio::spawn(connection);
        H2(sender)
    }

    pub async fn h1(&self) -> H1 {
        let tls = self.tls(b"http/1.1").await;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        H1(sender)
    }

    pub fn request(&self, method: &str, path: &str, body: Body) -> Request<Body> {
        let uri = format!("https://{}{}{path}", self.address, self.prefix);
        Request::builder().method(method).uri(uri).body(body).unwrap()
    }

    pub fn get(&self, path: &str) -> Request<Body> {
        self.request("GET", path, empty())
    }

    pub fn upgrade(&self, path: &str, protocol: &str) -> Request<Body> {
        let mut request = self.request("POST", path, empty());
        request.headers_mut().insert("connection", "Upgrade".parse().unwrap());
        request.headers_mut().insert("upgrade", protocol.parse().unwrap());
        request
    }
}

impl H2 {
    pub async fn send(&mut self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        self.0.ready().await?;
        self.0.send_request(request).await
    }
}

impl H1 {
    pub async fn send(&mut self, mut request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        let authority = request.uri().authority().unwrap().as_str().parse().unwrap();
        request.headers_mut().entry("host").or_insert(authority);
        *request.uri_mut() = request.uri().path_and_query().unwrap().as_str().parse().unwrap();
        self.0.ready().await?;
        self.0.send_request(request).await
    }
}

pub async fn text(response: Response<Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// The code of the fault in a `Status`.
pub async fn code(response: Response<Incoming>) -> String {
    let status: serde_json::Value = serde_json::from_str(&text(response).await).unwrap();
    assert_eq!(status["kind"], "Status");
    status["details"]["causes"][0]["reason"].as_str().unwrap().to_owned()
}
