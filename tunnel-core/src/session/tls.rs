//! Session TLS: TLS 1.3 to the relay's identity key, inside a carrier whose outer TLS ends elsewhere.

use std::sync::Arc;

use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use crate::{
    ids::KeyHash,
    keys::{SigningKey, VerifyingKey},
};

/// The name that session TLS and certificates of bare keys carry; it proves nothing.
const NAME: &str = "relay.towline.internal";

/// The cryptography of every session. AES-128-GCM comes first, as at browsers and haproxy: it has fewer rounds, and X25519 is no stronger.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

/// A certificate that only carries a key: signed by it, valid for ever, proving nothing by itself.
pub(crate) fn bare_certificate(
    key: &SigningKey,
    name: &str,
) -> Result<CertificateDer<'static>, rcgen::Error> {
    let mut params = rcgen::CertificateParams::new(vec![name.to_owned()])?;
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(4096, 1, 1);
    Ok(params.self_signed(&key.for_certificates()?)?.der().clone())
}

/// The key that a certificate carries.
pub(crate) fn certificate_key(certificate: &CertificateDer<'_>) -> Option<VerifyingKey> {
    let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
    VerifyingKey::from_spki(&parsed.subject_public_key_info()).ok()
}

pub(super) fn server_config(
    key: &SigningKey,
) -> Result<Arc<ServerConfig>, Box<dyn std::error::Error + Send + Sync>> {
    let certificate = bare_certificate(key, NAME)?;
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key.private_key_der())?;
    Ok(Arc::new(config))
}

pub(super) fn client_config(pin: KeyHash) -> Result<Arc<ClientConfig>, rustls::Error> {
    client_config_with(pin, provider())
}

/// The same with other cryptography.
pub(super) fn client_config_with(
    pin: KeyHash,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedKey { pin, provider }))
        .with_no_client_auth();
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

pub(super) fn server_name() -> ServerName<'static> {
    ServerName::try_from(NAME).expect("a constant DNS name")
}

/// Accepts exactly the server whose certificate carries the pinned key; TLS 1.3 proves that it holds it.
#[derive(Debug)]
struct PinnedKey {
    pin: KeyHash,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match certificate_key(end_entity) {
            Some(key) if key.hash() == self.pin => Ok(ServerCertVerified::assertion()),
            _ => Err(rustls::Error::InvalidCertificate(
                rustls::CertificateError::ApplicationVerificationFailure,
            )),
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

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        None
    }
}
