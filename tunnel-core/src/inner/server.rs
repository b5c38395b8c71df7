//! The agent's side of inner TLS.

use std::{
    fmt, io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rustls::{
    DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{CryptoProvider, verify_tls13_signature},
    pki_types::{CertificateDer, UnixTime},
    server::{
        ServerSessionMemoryCache,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

use super::{ALPN, InnerStream, MAX_FRAGMENT, dns_name};
use crate::{
    fault::{Fault, Report},
    ids::{ClusterId, KeyHash},
    keys::SigningKey,
    session::tls::{certificate_key, provider},
};

/// How long a leaf is valid; it is made anew in memory once half of that is over.
const LEAF_LIFE: Duration = Duration::from_secs(24 * 3600);
/// How far the client's clock may be behind.
const LEAF_BACKDATED: Duration = Duration::from_secs(3600);
/// Sessions that can be resumed; bounded, because any client can fill it.
const RESUMABLE: usize = 4096;

/// Accepts inner TLS sessions in the name of one cluster.
pub struct InnerAcceptor {
    cluster: ClusterId,
    identity: Arc<SigningKey>,
    current: Mutex<(Arc<ServerConfig>, SystemTime)>,
}

impl fmt::Debug for InnerAcceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InnerAcceptor({})", self.cluster)
    }
}

impl InnerAcceptor {
    /// Prepares a leaf that is valid from `now`.
    ///
    /// # Errors
    /// Never for a sound key; certificates and TLS configuration are fallible.
    pub fn new(identity: Arc<SigningKey>, now: SystemTime) -> Result<Self, Report> {
        let cluster = identity.public().cluster_id();
        let config = config(&identity, cluster, now)?;
        Ok(Self { cluster, identity, current: Mutex::new((Arc::new(config), now + LEAF_LIFE / 2)) })
    }

    /// The cluster's id.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    fn config(&self, now: SystemTime) -> Result<Arc<ServerConfig>, Report> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if now >= current.1 {
            *current = (Arc::new(config(&self.identity, self.cluster, now)?), now + LEAF_LIFE / 2);
        }
        Ok(Arc::clone(&current.0))
    }

    /// Begins a session on a stream; whose run key the peer has proven comes with it.
    ///
    /// # Errors
    /// If the handshake fails or the peer proves no key.
    pub async fn accept<IO>(&self, stream: IO, now: SystemTime) -> Result<(InnerStream<IO>, KeyHash), Report>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let failed = |error: io::Error| Report::caused_by(Fault::InnerTlsFailed, "", error);
        let stream = TlsAcceptor::from(self.config(now)?).accept(stream).await.map_err(failed)?;
        if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(Report::new(Fault::InnerTlsFailed, "the peer did not ask for http/1.1"));
        }
        let peer =
            stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).and_then(certificate_key);
        match peer {
            Some(key) => Ok((InnerStream::new(stream.into()), key.hash())),
            None => Err(Report::new(Fault::InnerTlsFailed, "the peer proved no key")),
        }
    }
}

fn config(identity: &SigningKey, cluster: ClusterId, now: SystemTime) -> Result<ServerConfig, Report> {
    build(identity, cluster, now)
        .map_err(|error| Report::caused_by(Fault::Internal, "inner TLS can't be set up", error))
}

fn build(
    identity: &SigningKey,
    cluster: ClusterId,
    now: SystemTime,
) -> Result<ServerConfig, Box<dyn std::error::Error + Send + Sync>> {
    let mut authority = rcgen::CertificateParams::new(Vec::<String>::new())?;
    authority.distinguished_name.push(rcgen::DnType::CommonName, cluster.to_string());
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    authority.not_before = (now - LEAF_BACKDATED).into();
    authority.not_after = (now + LEAF_LIFE).into();
    let identity_pair = identity.for_certificates()?;
    let authority_certificate = authority.self_signed(&identity_pair)?;

    let leaf_key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
    let mut leaf = rcgen::CertificateParams::new(vec![dns_name(cluster)])?;
    leaf.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    leaf.not_before = (now - LEAF_BACKDATED).into();
    leaf.not_after = (now + LEAF_LIFE).into();
    let issuer = rcgen::Issuer::from_params(&authority, &identity_pair);
    let leaf_certificate = leaf.signed_by(&leaf_key, &issuer)?;

    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(leaf_key.serialize_der());
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(AnyKey { provider: provider() }))
        .with_single_cert(
            vec![leaf_certificate.der().clone(), authority_certificate.der().clone()],
            key.into(),
        )?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.max_fragment_size = Some(MAX_FRAGMENT);
    config.max_early_data_size = 0;
    config.session_storage = ServerSessionMemoryCache::new(RESUMABLE);
    Ok(config)
}

/// Any Ed25519 key will do, once its possession is proven: whose it must be says the ticket.
#[derive(Debug)]
struct AnyKey {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AnyKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        match certificate_key(end_entity) {
            Some(_) => Ok(ClientCertVerified::assertion()),
            None => Err(rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding)),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
