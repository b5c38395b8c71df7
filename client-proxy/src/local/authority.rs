//! The local authority and the certificates that it signs.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject as _};
use towline_tunnel::{
    fault::{Fault, Report},
    ids::ClusterId,
    session::message::Secret,
};

use super::state::StateFolder;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// The authority outlives what is cached of it in other programs; it can sign for the loopback address only.
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// A client certificate's life; what is left of it at a start is at least [`RENEW_BEFORE`].
const CLIENT_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
const RENEW_BEFORE: Duration = Duration::from_secs(120 * 24 * 3600);
/// For clocks that were set back.
const BACKDATED: Duration = Duration::from_secs(24 * 3600);
const AUTHORITY_FILE: &str = "authority.pem";

/// Signs the local endpoint's certificates. One for each state folder.
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
    state: StateFolder,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.state.path().display())
    }
}

/// A certificate and its key, both PEM.
#[derive(Clone, Debug)]
pub struct ClientIdentity {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: Secret,
}

fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Report {
    Report::caused_by(Fault::Internal, "local certificates can't be made", error)
}

impl Authority {
    /// The authority in the folder, or a new one where there is none, it is damaged, or its time is nearly over.
    ///
    /// # Errors
    /// If the folder can't be read or written.
    pub fn load_or_create(state: &StateFolder, now: SystemTime) -> Result<Self, Report> {
        let _lock = state.lock()?;
        let kept = state.read(AUTHORITY_FILE)?.and_then(|text| Pair::read(&text));
        let pair = match kept.filter(|pair| pair.is_good(now, RENEW_BEFORE)) {
            Some(pair) => pair,
            None => {
                let pair = new_authority(now)?;
                state.write(AUTHORITY_FILE, pair.to_pem().as_bytes())?;
                pair
            }
        };
        let key = KeyPair::from_pem(&pair.key).map_err(failed)?;
        let issuer = Issuer::from_ca_cert_pem(&pair.certificate, key).map_err(failed)?;
        Ok(Self { pem: pair.certificate, issuer, state: state.clone() })
    }

    /// The authority's certificate (PEM).
    pub fn pem(&self) -> &str {
        &self.pem
    }

    pub(super) fn der(&self) -> Result<CertificateDer<'static>, Report> {
        CertificateDer::from_pem_slice(self.pem.as_bytes()).map_err(failed)
    }

    /// The client certificate of the context of this cluster: the one that is kept, or a new one.
    ///
    /// # Errors
    /// If the folder can't be read or written.
    pub fn client(&self, cluster: ClusterId, now: SystemTime) -> Result<ClientIdentity, Report> {
        let _lock = self.state.lock()?;
        let file = format!("{cluster}.pem");
        let kept = self.state.read(&file)?.and_then(|text| Pair::read(&text));
        let ours = |pair: &Pair| pair.is_good(now, RENEW_BEFORE) && pair.is_signed_by(&self.pem);
        let pair = match kept.filter(ours) {
            Some(pair) => pair,
            None => {
                let mut params =
                    CertificateParams::new(vec![super::endpoint::client_name(cluster)]).map_err(failed)?;
                params.distinguished_name.push(DnType::CommonName, cluster.to_string());
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
                let pair = self.sign(params, now, CLIENT_LIFE)?;
                self.state.write(&file, pair.to_pem().as_bytes())?;
                pair
            }
        };
        Ok(ClientIdentity { certificate: pair.certificate, key: Secret::new(pair.key) })
    }

    /// A server certificate for the loopback address; kept in memory only.
    pub(super) fn server(
        &self,
        now: SystemTime,
        life: Duration,
    ) -> Result<(CertificateDer<'static>, PrivatePkcs8KeyDer<'static>), Report> {
        let names = ["127.0.0.1", "::1", "localhost"].map(str::to_owned);
        let mut params = CertificateParams::new(names).map_err(failed)?;
        params.distinguished_name.push(DnType::CommonName, "towline local endpoint");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let pair = self.sign(params, now, life)?;
        let certificate = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).map_err(failed)?;
        let key = PrivatePkcs8KeyDer::from_pem_slice(pair.key.as_bytes()).map_err(failed)?;
        Ok((certificate, key))
    }

    fn sign(&self, mut params: CertificateParams, now: SystemTime, life: Duration) -> Result<Pair, Report> {
        let key = KeyPair::generate().map_err(failed)?;
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + life).into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

fn new_authority(now: SystemTime) -> Result<Pair, Report> {
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::new(Vec::<String>::new()).map_err(failed)?;
    params.distinguished_name.push(DnType::CommonName, "towline local authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + AUTHORITY_LIFE).into();
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// A certificate and its key, which stand in one file so that they always belong together.
struct Pair {
    certificate: String,
    key: String,
}

impl Pair {
    fn read(text: &Secret) -> Option<Self> {
        let text = text.reveal_text()?;
        let (certificate, key) = text.split_at(text.find("-----BEGIN PRIVATE KEY-----")?);
        Some(Self { certificate: certificate.to_owned(), key: key.to_owned() })
    }

    fn to_pem(&self) -> String {
        format!("{}{}", self.certificate, self.key)
    }

    /// Whether it can be read, the key is the certificate's, and it is valid from now for at least `left` more.
    fn is_good(&self, now: SystemTime, left: Duration) -> bool {
        let good = || {
            let der = CertificateDer::from_pem_slice(self.certificate.as_bytes()).ok()?;
            let (_, parsed) = x509_parser::parse_x509_certificate(&der).ok()?;
            let key = KeyPair::from_pem(&self.key).ok()?;
            let seconds = |time: SystemTime| {
                i64::try_from(time.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs()).ok()
            };
            let validity = parsed.validity();
            Some(
                rcgen::PublicKeyData::subject_public_key_info(&key) == parsed.public_key().raw
                    && validity.not_before.timestamp() <= seconds(now)?
                    && validity.not_after.timestamp() >= seconds(now + left)?,
            )
        };
        good().unwrap_or(false)
    }

    fn is_signed_by(&self, authority: &str) -> bool {
        let signed = || {
            let der = CertificateDer::from_pem_slice(self.certificate.as_bytes()).ok()?;
            let authority = CertificateDer::from_pem_slice(authority.as_bytes()).ok()?;
            let anchor = webpki::anchor_from_trusted_cert(&authority).ok()?;
            let provider = rustls::crypto::aws_lc_rs::default_provider();
            let leaf = webpki::EndEntityCert::try_from(&der).ok()?;
            let (_, parsed) = x509_parser::parse_x509_certificate(&der).ok()?;
            // Judged at its begin: whether it is still valid is another question.
            let begin = u64::try_from(parsed.validity().not_before.timestamp()).ok()?;
            leaf.verify_for_usage(
                provider.signature_verification_algorithms.all,
                &[anchor],
                &[],
                rustls::pki_types::UnixTime::since_unix_epoch(Duration::from_secs(begin) + DAY),
                webpki::KeyUsage::client_auth(),
                None,
                None,
            )
            .ok()
            .map(|_path| ())
        };
        signed().is_some()
    }
}
