//! The proxy's side of inner TLS.

use std::{io, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::{ALPN, InnerStream, MAX_FRAGMENT, server_name};
use crate::{
    fault::{Fault, Report},
    ids::ClusterId,
    keys::SigningKey,
    session::tls::{bare_certificate, certificate_key, provider},
};

/// Sessions that can be resumed by a PSK with (EC)DHE; a handful of streams is opened at once.
const RESUMABLE: usize = 32;

/// Makes inner TLS sessions with one cluster's agents.
#[derive(Clone)]
pub struct InnerConnector {
    cluster: ClusterId,
    config: Arc<ClientConfig>,
}

impl std::fmt::Debug for InnerConnector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "InnerConnector({})", self.cluster)
    }
}

impl InnerConnector {
    /// Sessions of the client with this run key, with the cluster whose identity key has this hash.
    ///
    /// # Errors
    /// Never for a sound key; certificates and TLS configuration are fallible.
    pub fn new(cluster: ClusterId, run_key: &SigningKey) -> Result<Self, Report> {
        let config = config(cluster, run_key)
            .map_err(|error| Report::caused_by(Fault::Internal, "inner TLS can't be set up", error))?;
        Ok(Self { cluster, config: Arc::new(config) })
    }

    /// Begins a session on a stream.
    ///
    /// # Errors
    /// If the agent doesn't hold the cluster's key, the stream is refused, or it ends.
    pub async fn connect<IO>(&self, stream: IO) -> Result<InnerStream<IO>, Report>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let stream = connector.connect(server_name(self.cluster), stream).await.map_err(report)?;
        if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(Report::new(Fault::InnerTlsFailed, "the agent did not choose http/1.1"));
        }
        Ok(InnerStream::new(stream.into()))
    }
}

/// A refusal of the stream's comes first: it says more than that the handshake ended.
fn report(error: io::Error) -> Report {
    if let Some(inner) = error.get_ref() {
        if let Some(stream) = inner.downcast_ref::<crate::mux::StreamError>() {
            return stream.clone().into();
        }
        if let Some(rustls::Error::InvalidCertificate(_)) = inner.downcast_ref::<rustls::Error>() {
            return Report::caused_by(Fault::ClusterKeyMismatch, "", error);
        }
    }
    Report::caused_by(Fault::InnerTlsFailed, "", error)
}

fn config(
    cluster: ClusterId,
    run_key: &SigningKey,
) -> Result<ClientConfig, Box<dyn std::error::Error + Send + Sync>> {
    let certificate = bare_certificate(run_key, "client.towline.internal")?;
    let verifier = ClusterVerifier { cluster, provider: provider() };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(vec![certificate], run_key.private_key_der())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.max_fragment_size = Some(MAX_FRAGMENT);
    config.enable_early_data = false;
    config.resumption = Resumption::in_memory_sessions(RESUMABLE);
    Ok(config)
}

/// Accepts a leaf that is signed by the key whose hash is the pinned id, for the cluster's name, valid now.
#[derive(Debug)]
struct ClusterVerifier {
    cluster: ClusterId,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ClusterVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let refused =
            || rustls::Error::InvalidCertificate(rustls::CertificateError::ApplicationVerificationFailure);
        let [authority] = intermediates else { return Err(refused()) };
        if certificate_key(authority).map(|key| key.cluster_id()) != Some(self.cluster) {
            return Err(refused());
        }
        let anchor = anchor_from_trusted_cert(authority).map_err(|_| refused())?;
        let leaf = EndEntityCert::try_from(end_entity).map_err(|_| refused())?;
        leaf.verify_for_usage(
            self.provider.signature_verification_algorithms.all,
            &[anchor],
            &[],
            now,
            KeyUsage::server_auth(),
            None,
            None,
        )
        .map_err(|error| match error {
            webpki::Error::CertExpired { .. } => rustls::CertificateError::Expired.into(),
            webpki::Error::CertNotValidYet { .. } => rustls::CertificateError::NotValidYet.into(),
            _ => refused(),
        })?;
        leaf.verify_is_valid_for_subject_name(server_name).map_err(|_| refused())?;
        Ok(ServerCertVerified::assertion())
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
