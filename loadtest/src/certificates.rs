//! An authority of the run's own, and one certificate for 127.0.0.1, for every leg of TLS that is not towline's.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

/// Files and configurations. The key is ECDSA P-256, as the relay's own and kube-apiserver's may be.
#[derive(Clone)]
pub struct Certificates {
    folder: PathBuf,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Certificates({})", self.folder.display())
    }
}

impl Certificates {
    /// Makes them, and writes them into a folder.
    ///
    /// # Errors
    /// If the folder can't be written.
    pub fn make(folder: &Path) -> anyhow::Result<Self> {
        let mut authority = rcgen::CertificateParams::new(Vec::<String>::new())?;
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        // Names of their own: OpenSSL takes one whose issuer and subject are the same for self-signed.
        authority.distinguished_name.push(rcgen::DnType::CommonName, "towline-loadtest authority");
        let authority_key = rcgen::KeyPair::generate()?;
        let ca = authority.self_signed(&authority_key)?;
        let key = rcgen::KeyPair::generate()?;
        let mut leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()])?;
        leaf.distinguished_name.push(rcgen::DnType::CommonName, "towline-loadtest");
        let leaf = leaf.signed_by(&key, &rcgen::Issuer::from_params(&authority, &authority_key))?;

        let certificates = Self {
            folder: folder.to_owned(),
            server: server(leaf.der().clone(), key.serialize_der())?,
            client: client(ca.der().clone())?,
        };
        fs::write(certificates.authority(), ca.pem())?;
        fs::write(certificates.chain(), leaf.pem())?;
        fs::write(certificates.key(), key.serialize_pem())?;
        fs::write(certificates.chain_and_key(), format!("{}{}", leaf.pem(), key.serialize_pem()))?;
        Ok(certificates)
    }

    /// The authority (PEM).
    pub fn authority(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// The certificate (PEM).
    pub fn chain(&self) -> PathBuf {
        self.folder.join("server.pem")
    }

    /// Its key (PEM, PKCS#8).
    pub fn key(&self) -> PathBuf {
        self.folder.join("server.key")
    }

    /// Both in one file.
    pub fn chain_and_key(&self) -> PathBuf {
        self.folder.join("both.pem")
    }

    /// Takes TLS connections with it.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.server))
    }

    /// Begins TLS with somebody who holds it.
    ///
    /// # Errors
    /// If that one does not.
    pub async fn connect(&self, tcp: TcpStream) -> anyhow::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from("127.0.0.1")?;
        Ok(TlsConnector::from(Arc::clone(&self.client)).connect(name, tcp).await?)
    }
}

fn server(
    leaf: rustls::pki_types::CertificateDer<'static>,
    key: Vec<u8>,
) -> anyhow::Result<Arc<ServerConfig>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![leaf], PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key)))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn client(ca: rustls::pki_types::CertificateDer<'static>) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(ca)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
