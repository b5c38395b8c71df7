//! Getting an issuer's documents: https, a deadline, a bound, no redirects, a trust store of its own.

use std::{path::Path, pin::Pin, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::time::timeout;

/// One document takes no longer.
const WITHIN: Duration = Duration::from_secs(5);
/// No issuer's metadata or keys are larger.
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

/// Gets documents. Besides https there is the way through a relay's stream, where the issuer is out of reach.
pub trait Fetch: Send + Sync {
    /// The body at this URL.
    fn get<'a>(
        &'a self,
        url: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Bytes, FetchError>> + Send + 'a>>;
}

/// Gets documents by https.
#[derive(Debug)]
pub struct HttpsFetch {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
}

impl HttpsFetch {
    /// Trusts exactly the authorities in `ca_file`, or the system's where there is none. A proxy's authority is never
    /// among them: whoever could forge keys could be anyone.
    ///
    /// # Errors
    /// If the file can't be read or holds no certificate.
    pub fn new(ca_file: Option<&Path>) -> Result<Self, FetchError> {
        let mut roots = RootCertStore::empty();
        match ca_file {
            Some(path) => {
                let error = |why: String| FetchError { url: path.display().to_string(), why };
                let certificates: Vec<CertificateDer<'_>> = CertificateDer::pem_file_iter(path)
                    .and_then(Iterator::collect)
                    .map_err(|cause| error(cause.to_string()))?;
                let (added, _) = roots.add_parsable_certificates(certificates);
                if added == 0 {
                    return Err(error("holds no certificate".into()));
                }
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|cause| FetchError { url: String::new(), why: cause.to_string() })?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_only()
            .enable_http1()
            .build();
        Ok(Self { client: Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector) })
    }

    async fn fetch(&self, url: &str) -> Result<Bytes, String> {
        let uri: http::Uri = url.parse().map_err(|_| "not a URL")?;
        let response = self.client.get(uri).await.map_err(|error| chain(&error))?;
        if response.status() != http::StatusCode::OK {
            return Err(format!("answered {}", response.status()));
        }
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
        Ok(body.map_err(|error| error.to_string())?.to_bytes())
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
    fn get<'a>(
        &'a self,
        url: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Bytes, FetchError>> + Send + 'a>> {
        Box::pin(async move {
            match timeout(WITHIN, self.fetch(url)).await {
                Ok(Ok(body)) => Ok(body),
                Ok(Err(why)) => Err(FetchError { url: url.to_owned(), why }),
                Err(_elapsed) => Err(FetchError { url: url.to_owned(), why: "no answer within 5 s".into() }),
            }
        })
    }
}
