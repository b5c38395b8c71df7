//! The relay's outer TLS: certificates from files, followed as they change, or an authority of the relay's own.
//!
//! Outer TLS gets through firewalls. Who the relay is, its identity key proves inside.

mod names;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::time::{MissedTickBehavior, interval};
use towline_tunnel::{
    fault::{Fault, Report},
    keys::write_secret,
};
use tracing::{info, warn};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// How often the files are looked at: two `stat` calls.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// An authority of the relay's own lasts this long.
const OWN_AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// A leaf of it lasts this long; each start makes a new one. Longer ones are refused by some TLS stacks.
const OWN_LEAF_LIFE: Duration = Duration::from_secs(397 * 24 * 3600);
const OWN_AUTHORITY: &str = "tls-ca.pem";
const OWN_AUTHORITY_KEY: &str = "tls-ca-key.pem";

/// Where the certificate comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsSource {
    /// PEM files, followed as they change.
    Files {
        /// The chain, leaf first.
        certificate: PathBuf,
        /// The leaf's private key.
        key: PathBuf,
    },
    /// An authority made in the data directory, for development and closed networks.
    SelfSigned {
        /// DNS names or IP addresses of the relay.
        names: Vec<String>,
        /// Where the authority is kept.
        data_dir: PathBuf,
    },
}

/// The relay's outer TLS.
#[derive(Clone)]
pub struct OuterTls {
    config: Arc<ServerConfig>,
    current: Arc<Current>,
    source: TlsSource,
    authority: Option<OwnAuthority>,
}

/// The authority that the relay made for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnAuthority {
    /// The file that clients and agents are given.
    pub path: PathBuf,
    /// What is in it.
    pub pem: String,
}

impl fmt::Debug for OuterTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OuterTls").field("source", &self.source).finish_non_exhaustive()
    }
}

impl OuterTls {
    /// Loads the certificate: TLS 1.3 and 1.2, `h2` and `http/1.1` by ALPN.
    ///
    /// # Errors
    /// If a file can't be read, is expired or not valid yet, or key and certificate don't belong together.
    pub fn load(source: TlsSource, now: SystemTime) -> Result<Self, Report> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let (certified, authority) = match &source {
            TlsSource::Files { certificate, key } => (from_files(certificate, key, &provider, now)?, None),
            TlsSource::SelfSigned { names, data_dir } => {
                let (certified, authority) = self_signed(data_dir, names, &provider, now)?;
                (certified, Some(authority))
            }
        };
        let current = Arc::new(Current(RwLock::new(Arc::new(certified))));
        let resolver: Arc<dyn ResolvesServerCert> = Arc::<Current>::clone(&current);
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| Report::caused_by(Fault::Internal, "outer TLS can't be set up", error))?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { config: Arc::new(config), current, source, authority })
    }

    /// For accepting connections; stays right when the certificate changes.
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// Whether peers that dial this host take the certificate, as it is now, for the relay's.
    pub fn covers(&self, host: &str) -> bool {
        self.current.leaf().is_some_and(|leaf| names::covers(&leaf, host))
    }

    /// The DNS names and IP addresses that it is for.
    pub fn names(&self) -> Vec<String> {
        self.current.leaf().map(|leaf| names::of(&leaf)).unwrap_or_default()
    }

    /// The relay's own authority, where it made one.
    pub fn own_authority(&self) -> Option<&OwnAuthority> {
        self.authority.as_ref()
    }

    /// Loads the files again when they change; never returns. What can't be loaded is reported, and the certificate
    /// that was good stays.
    pub async fn follow(self) {
        let TlsSource::Files { certificate, key } = &self.source else { return std::future::pending().await };
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = fingerprint(certificate, key);
        loop {
            ticks.tick().await;
            let found = fingerprint(certificate, key);
            if found == seen {
                continue;
            }
            // Certificate and key are two files: between the two writes they don't match, and the next look decides.
            seen = found;
            match from_files(certificate, key, self.config.crypto_provider(), SystemTime::now()) {
                Ok(certified) => {
                    self.current.replace(certified);
                    info!(certificate = %certificate.display(), "the TLS certificate was loaded again");
                }
                Err(report) => warn!(%report, "the changed TLS certificate can't be used; the old one stays"),
            }
        }
    }
}

/// What handshakes use now.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl Current {
    fn leaf(&self) -> Option<CertificateDer<'static>> {
        self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).cert.first().cloned()
    }

    fn replace(&self, certified: CertifiedKey) {
        *self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(certified);
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner)))
    }
}

/// Changes whenever one of the files does, be it in place, by rename, or by a swapped symlink above it.
fn fingerprint(certificate: &Path, key: &Path) -> [Option<(SystemTime, u64, u64)>; 2] {
    use std::os::unix::fs::MetadataExt as _;
    [certificate, key].map(|path| {
        let found = fs::metadata(path).ok()?;
        Some((found.modified().ok()?, found.len(), found.ino()))
    })
}

fn from_files(
    certificate: &Path,
    key: &Path,
    provider: &CryptoProvider,
    now: SystemTime,
) -> Result<CertifiedKey, Report> {
    let wrong = |path: &Path, why: &dyn fmt::Display| {
        Report::new(Fault::FileUnreadable, format!("{}: {why}", path.display()))
    };
    let read = |path: &Path| fs::read(path).map_err(|error| wrong(path, &error));
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&read(certificate)?)
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(certificate, &format!("not PEM: {error}")))?;
    let Some(leaf) = chain.first() else { return Err(wrong(certificate, &"holds no certificate")) };
    check_time(leaf, now).map_err(|why| wrong(certificate, &why))?;
    let private = PrivateKeyDer::from_pem_slice(&read(key)?)
        .map_err(|error| wrong(key, &format!("holds no private key in PEM: {error}")))?;
    CertifiedKey::from_der(chain, private, provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            wrong(key, &format!("is not the key of the certificate in {}", certificate.display()))
        }
        other => wrong(certificate, &other),
    })
}

fn check_time(certificate: &CertificateDer<'_>, now: SystemTime) -> Result<(), String> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|error| format!("not a certificate: {error}"))?;
    let now =
        now.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    let date =
        |time: i64| jiff::Timestamp::from_second(time).map_or_else(|_| time.to_string(), |at| at.to_string());
    let validity = parsed.validity();
    if validity.not_after.timestamp() < now {
        return Err(format!("the certificate expired on {}", date(validity.not_after.timestamp())));
    }
    if validity.not_before.timestamp() > now {
        return Err(format!("the certificate is not valid before {}", date(validity.not_before.timestamp())));
    }
    Ok(())
}

/// A leaf for these names, made now and kept in memory, under the authority that is kept in the data directory.
fn self_signed(
    data_dir: &Path,
    names: &[String],
    provider: &CryptoProvider,
    now: SystemTime,
) -> Result<(CertifiedKey, OwnAuthority), Report> {
    let path = data_dir.join(OWN_AUTHORITY);
    let failed =
        |error: rcgen::Error| Report::caused_by(Fault::Internal, "no certificate can be made", error);
    let unreadable = |path: &Path, why: &dyn fmt::Display| {
        Report::new(Fault::FileUnreadable, format!("{}: {why}", path.display()))
    };
    let (pem, key) = own_authority(data_dir, now)?;
    let authority =
        CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| unreadable(&path, &error))?;
    let issuer = Issuer::from_ca_cert_der(&authority, key).map_err(|error| unreadable(&path, &error))?;

    let leaf_key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::new(names.to_vec()).map_err(|error| {
        Report::new(Fault::ConfigInvalid, format!("no certificate for {}: {error}", names.join(", ")))
    })?;
    params.not_before = (now - Duration::from_secs(300)).into();
    params.not_after = (now + OWN_LEAF_LIFE).into();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, names.first().map_or("towline relay", String::as_str));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let leaf = params.signed_by(&leaf_key, &issuer).map_err(failed)?;
    let private = PrivatePkcs8KeyDer::from(leaf_key.serialize_der());
    let certified = CertifiedKey::from_der(vec![leaf.der().clone(), authority], private.into(), provider)
        .map_err(|error| {
            Report::caused_by(Fault::Internal, "a certificate that was just made is unusable", error)
        })?;
    Ok((certified, OwnAuthority { path, pem }))
}

fn own_authority(data_dir: &Path, now: SystemTime) -> Result<(String, KeyPair), Report> {
    let failed =
        |error: rcgen::Error| Report::caused_by(Fault::Internal, "no certificate can be made", error);
    let (path, key_path) = (data_dir.join(OWN_AUTHORITY), data_dir.join(OWN_AUTHORITY_KEY));
    match (fs::read_to_string(&path), fs::read_to_string(&key_path)) {
        (Ok(pem), Ok(key)) => {
            let key = KeyPair::from_pem(&key).map_err(|error| {
                Report::new(
                    Fault::FileUnreadable,
                    format!("{}: not a private key: {error}", key_path.display()),
                )
            })?;
            return Ok((pem, key));
        }
        (Err(error), Err(other))
            if error.kind() == io::ErrorKind::NotFound && other.kind() == io::ErrorKind::NotFound => {}
        (Err(error), _) => {
            return Err(Report::caused_by(Fault::FileUnreadable, path.display().to_string(), error));
        }
        (_, Err(error)) => {
            return Err(Report::caused_by(Fault::FileUnreadable, key_path.display().to_string(), error));
        }
    }
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::default();
    params.not_before = (now - Duration::from_secs(300)).into();
    params.not_after = (now + OWN_AUTHORITY_LIFE).into();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "towline relay's own authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let pem = params.self_signed(&key).map_err(failed)?.pem();
    write_secret(&key_path, key.serialize_pem().as_bytes())?;
    write_secret(&path, pem.as_bytes())?;
    Ok((pem, key))
}

#[cfg(test)]
mod tests;
