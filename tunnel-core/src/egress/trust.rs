//! Whom outer TLS is trusted from: the system's roots, and those of files that are read again when they change.
//!
//! Files are looked at with each dial, by their content: a Kubernetes volume swaps a link, and neither the file's name nor always
//! its time tells. What can't be used any more changes nothing: the last good roots stay, and the log says so.

use std::{
    collections::HashMap,
    fmt,
    io::Read as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::{
    fault::{Fault, Report},
    session::tls::provider,
};

/// More than all public authorities together.
const MAX_FILE: u64 = 4 << 20;
/// A root is warned of this long before its end: time to have another one made and handed out.
const EXPIRES_SOON: Duration = Duration::from_secs(30 * 24 * 3600);
/// It is warned of this often.
const WARN_EVERY: Duration = Duration::from_secs(24 * 3600);

/// Roots for the outer TLS of carriers and of proxies; never for issuers, which have a trust store of their own.
#[derive(Clone)]
pub struct TrustStore(Arc<Inner>);

struct Inner {
    files: Vec<PathBuf>,
    state: Mutex<State>,
}

struct State {
    /// As the files were when the roots were made of them.
    read: Vec<Vec<u8>>,
    /// Files that can't be used since then, as they were: told once.
    refused: Option<String>,
    roots: Arc<RootCertStore>,
    ends: Vec<End>,
    warned: Option<SystemTime>,
    /// By the protocol that is offered.
    configs: HashMap<&'static [u8], Arc<ClientConfig>>,
}

/// When a root of a file ends.
#[derive(Clone, Debug, PartialEq, Eq)]
struct End {
    subject: String,
    file: PathBuf,
    /// Seconds since 1970.
    at: i64,
}

impl fmt::Debug for TrustStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TrustStore").field(&self.0.files).finish()
    }
}

impl TrustStore {
    /// The system's roots, and those of these PEM files.
    ///
    /// # Errors
    /// If a file can't be read or holds no certificate.
    pub fn new(files: Vec<PathBuf>) -> Result<Self, Report> {
        let read = read_all(&files)?;
        let (roots, ends) = parse_all(&files, &read)?;
        if roots.is_empty() {
            tracing::warn!(
                "this system has no certificate authorities: no relay will be trusted (install ca-certificates, or give --relay-ca-file)"
            );
        }
        let state = State {
            read,
            refused: None,
            roots: Arc::new(roots),
            ends,
            warned: None,
            configs: HashMap::new(),
        };
        Ok(Self(Arc::new(Inner { files, state: Mutex::new(state) })))
    }

    /// The roots as the files are now.
    pub fn roots(&self) -> Arc<RootCertStore> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.look(&mut state);
        Arc::clone(&state.roots)
    }

    /// TLS that offers one protocol (RFC 7301), such as `http/1.1`. Sessions are resumed as long as the roots stay.
    ///
    /// # Errors
    /// If TLS can't be set up.
    pub fn client_config(&self, protocol: &'static [u8]) -> Result<Arc<ClientConfig>, Report> {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.look(&mut state);
        state.warn(SystemTime::now());
        if let Some(config) = state.configs.get(protocol) {
            return Ok(Arc::clone(config));
        }
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| Report::caused_by(Fault::Internal, "TLS can't be set up", error))?
            .with_root_certificates(Arc::clone(&state.roots))
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        let config = Arc::new(config);
        state.configs.insert(protocol, Arc::clone(&config));
        Ok(config)
    }
}

impl Inner {
    /// Takes up files that changed.
    fn look(&self, state: &mut State) {
        if self.files.is_empty() {
            return;
        }
        let fresh = match read_all(&self.files) {
            Ok(read) if read == state.read => {
                state.refused = None;
                return;
            }
            Ok(read) => parse_all(&self.files, &read).map(|parsed| (read, parsed)),
            Err(report) => Err(report),
        };
        match fresh {
            Ok((read, (roots, ends))) => {
                tracing::info!(files = ?self.files, roots = roots.len(), "certificate authorities were read again");
                *state = State {
                    read,
                    refused: None,
                    roots: Arc::new(roots),
                    ends,
                    warned: None,
                    configs: HashMap::new(),
                };
            }
            Err(report) => {
                let why = report.to_string();
                if state.refused.as_ref() != Some(&why) {
                    tracing::warn!(%report, "certificate authorities changed and can't be used; those that were read before stay");
                    state.refused = Some(why);
                }
            }
        }
    }
}

impl State {
    /// Warns of roots that end soon, or have ended.
    fn warn(&mut self, now: SystemTime) {
        if self.warned.is_some_and(|at| now.duration_since(at).is_ok_and(|since| since < WARN_EVERY)) {
            return;
        }
        self.warned = Some(now);
        for end in ending(&self.ends, now) {
            let days = (end.at - seconds(now)).div_euclid(24 * 3600);
            let (subject, file) = (&end.subject, end.file.display());
            if days < 0 {
                tracing::warn!(%subject, %file, "a certificate authority has expired: what it signed is refused");
            } else {
                tracing::warn!(%subject, %file, days, "a certificate authority expires soon: add its successor to the file");
            }
        }
    }
}

fn ending(ends: &[End], now: SystemTime) -> impl Iterator<Item = &End> {
    let soon = seconds(now + EXPIRES_SOON);
    ends.iter().filter(move |end| end.at < soon)
}

fn seconds(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

fn unreadable(path: &Path, why: &str) -> Report {
    Report::new(Fault::FileUnreadable, format!("{}: {why}", path.display()))
}

fn read_all(files: &[PathBuf]) -> Result<Vec<Vec<u8>>, Report> {
    let read = |path: &PathBuf| {
        let failed = |error: std::io::Error| unreadable(path, &error.to_string());
        let mut bytes = Vec::new();
        std::fs::File::open(path)
            .map_err(failed)?
            .take(MAX_FILE + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(unreadable(path, "is larger than 4 MiB"));
        }
        Ok(bytes)
    };
    files.iter().map(read).collect()
}

fn parse_all(files: &[PathBuf], read: &[Vec<u8>]) -> Result<(RootCertStore, Vec<End>), Report> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let mut ends = Vec::new();
    for (path, bytes) in files.iter().zip(read) {
        let certificates: Vec<CertificateDer<'_>> = CertificateDer::pem_slice_iter(bytes)
            .collect::<Result<_, _>>()
            .map_err(|error| unreadable(path, &error.to_string()))?;
        if certificates.is_empty() {
            return Err(unreadable(path, "holds no PEM certificate"));
        }
        for certificate in certificates {
            if let Ok((_, parsed)) = X509Certificate::from_der(&certificate) {
                ends.push(End {
                    subject: parsed.subject().to_string(),
                    file: path.clone(),
                    at: parsed.validity().not_after.timestamp(),
                });
            }
            roots.add(certificate).map_err(|error| unreadable(path, &error.to_string()))?;
        }
    }
    Ok((roots, ends))
}

#[cfg(test)]
mod tests;
