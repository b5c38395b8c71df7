//! TLS of the local endpoint: mutual, 1.3.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rustls::{
    RootCertStore, ServerConfig,
    pki_types::CertificateDer,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use towline_tunnel::{
    fault::{Fault, Report},
    ids::ClusterId,
};

use super::Authority;

/// Life of the server's certificate, which is made anew in memory once half of it is over.
const SERVER_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
const NAME_SUFFIX: &str = ".client.towline.internal";

/// The name in the client certificate of a cluster's context.
pub(super) fn client_name(cluster: ClusterId) -> String {
    format!("{cluster}{NAME_SUFFIX}")
}

/// The cluster whose context this client certificate belongs to. The caller has verified the certificate.
pub fn caller(certificate: &CertificateDer<'_>) -> Option<ClusterId> {
    let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
    let mut names = parsed.valid_dns_names();
    let name = names.next()?;
    if names.next().is_some() {
        return None;
    }
    name.strip_suffix(NAME_SUFFIX)?.parse().ok()
}

/// The server's side of TLS, with a certificate that never gets old.
pub struct EndpointTls {
    authority: Authority,
    verifier: Arc<dyn ClientCertVerifier>,
    current: Mutex<(Arc<ServerConfig>, SystemTime)>,
}

impl std::fmt::Debug for EndpointTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EndpointTls").field("authority", &self.authority).finish_non_exhaustive()
    }
}

impl EndpointTls {
    /// TLS for whoever has a client certificate of this authority.
    ///
    /// # Errors
    /// If certificates can't be made.
    pub fn new(authority: Authority, now: SystemTime) -> Result<Self, Report> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.der()?).map_err(failed)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().map_err(failed)?;
        let config = config(&authority, &verifier, now)?;
        Ok(Self { authority, verifier, current: Mutex::new((config, now + SERVER_LIFE / 2)) })
    }

    /// The authority behind it.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// For the next connection.
    ///
    /// # Errors
    /// If a certificate can't be made.
    pub fn config(&self, now: SystemTime) -> Result<Arc<ServerConfig>, Report> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if now >= current.1 {
            *current = (config(&self.authority, &self.verifier, now)?, now + SERVER_LIFE / 2);
        }
        Ok(Arc::clone(&current.0))
    }
}

fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Report {
    Report::caused_by(Fault::Internal, "the local endpoint's TLS can't be set up", error)
}

fn config(
    authority: &Authority,
    verifier: &Arc<dyn ClientCertVerifier>,
    now: SystemTime,
) -> Result<Arc<ServerConfig>, Report> {
    let (certificate, key) = authority.server(now, SERVER_LIFE)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .with_client_cert_verifier(Arc::clone(verifier))
        .with_single_cert(vec![certificate], key.into())
        .map_err(failed)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
