//! Where kube-apiserver is and whom to trust there.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use http::Uri;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use towline_tunnel::{
    fault::{Fault, Report},
    session::message::Secret,
};

use super::follow::Followed;

/// Where the kubelet puts a pod's service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The server of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) host: String,
    pub(super) port: u16,
    /// As it stands in `Host`.
    pub(super) authority: String,
    /// What stands before every path; empty, or begins with `/` and doesn't end with it.
    pub(super) prefix: String,
}

impl Server {
    pub(super) fn parse(url: &str) -> Result<Self, Report> {
        let wrong =
            |why: &str| Report::new(Fault::ConfigInvalid, format!("kube-apiserver's URL {url:?}: {why}"));
        let uri: Uri = url.parse().map_err(|_| wrong("not a URL"))?;
        if uri.scheme_str() != Some("https") {
            return Err(wrong("only https is safe for the agent's credential"));
        }
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'));
        let authority = authority.ok_or_else(|| wrong("not a host and port"))?;
        if uri.query().is_some() {
            return Err(wrong("it has a query"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self {
            host,
            port: authority.port_u16().unwrap_or(443),
            authority: authority.as_str().to_owned(),
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

/// Bytes that stand in the configuration itself, or in a file that is read again when it changes.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Material {
    Data(Vec<u8>),
    File(PathBuf),
}

impl Material {
    fn read(&self) -> Result<Vec<u8>, Report> {
        match self {
            Self::Data(bytes) => Ok(bytes.clone()),
            Self::File(path) => fs::read(path).map_err(|error| unreadable(path, error)),
        }
    }

    fn file(&self) -> Option<&Path> {
        match self {
            Self::Data(_) => None,
            Self::File(path) => Some(path),
        }
    }

    fn name(&self) -> String {
        self.file().map_or_else(|| "the kubeconfig's data".to_owned(), |path| path.display().to_string())
    }
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

fn unreadable(path: &Path, error: std::io::Error) -> Report {
    Report::caused_by(Fault::AgentCredential, path.display().to_string(), error)
}

/// A bearer token of the agent's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    None,
    Fixed(Secret),
    File(PathBuf),
}

/// The authorities that may vouch for the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    System,
    Only(Material),
}

/// A client certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClientCertificate {
    pub(super) chain: Material,
    pub(super) key: Material,
}

/// All that is known about a cluster's apiserver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) server: Server,
    /// The name that its certificate must have, where it isn't the host's.
    pub(super) tls_name: Option<String>,
    pub(super) trust: Trust,
    pub(super) client: Option<ClientCertificate>,
    pub(super) token: Token,
}

impl Target {
    /// The cluster whose pod this process is in.
    pub(super) fn in_cluster() -> Result<Self, Report> {
        let variable = |name: &str| {
            env::var(name).ok().filter(|value| !value.is_empty()).ok_or_else(|| {
                Report::new(
                    Fault::ConfigInvalid,
                    format!("{name} is not set, so this is no pod: give --kubeconfig"),
                )
            })
        };
        let (host, port) = (variable("KUBERNETES_SERVICE_HOST")?, variable("KUBERNETES_SERVICE_PORT")?);
        Self::of_account(&host, &port, Path::new(ACCOUNT))
    }

    fn of_account(host: &str, port: &str, folder: &Path) -> Result<Self, Report> {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        Ok(Self {
            server: Server::parse(&format!("https://{host}:{port}"))?,
            tls_name: None,
            trust: Trust::Only(Material::File(folder.join("ca.crt"))),
            client: None,
            token: Token::File(folder.join("token")),
        })
    }
}

/// TLS towards the server, made anew when certificates or keys change.
pub(super) struct Tls {
    trust: Trust,
    client: Option<ClientCertificate>,
    config: Followed<Arc<ClientConfig>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("trust", &self.trust).field("client", &self.client).finish()
    }
}

impl Tls {
    pub(super) fn new(trust: Trust, client: Option<ClientCertificate>) -> Result<Self, Report> {
        let mut materials: Vec<&Material> = Vec::new();
        if let Trust::Only(authorities) = &trust {
            materials.push(authorities);
        }
        if let Some(client) = &client {
            materials.extend([&client.chain, &client.key]);
        }
        let files = materials.into_iter().filter_map(Material::file).map(Path::to_owned).collect();
        let config = Followed::new(files, || build(&trust, client.as_ref()))?;
        Ok(Self { trust, client, config })
    }

    /// For the next connection.
    pub(super) fn config(&self) -> Arc<ClientConfig> {
        self.config.current(|| build(&self.trust, self.client.as_ref()))
    }
}

fn build(trust: &Trust, client: Option<&ClientCertificate>) -> Result<Arc<ClientConfig>, Report> {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| Report::caused_by(Fault::Internal, "TLS can't be set up", error))?
        .with_root_certificates(roots(trust)?);
    let mut config = match client {
        None => builder.with_no_client_auth(),
        Some(client) => {
            let wrong =
                |what: &str| Report::new(Fault::AgentCredential, format!("{}: {what}", client.chain.name()));
            let key = PrivateKeyDer::from_pem_slice(&client.key.read()?).map_err(|_| {
                Report::new(Fault::AgentCredential, format!("{}: no PEM private key", client.key.name()))
            })?;
            let chain = certificates(&client.chain)?;
            builder.with_client_auth_cert(chain, key).map_err(|error| wrong(&error.to_string()))?
        }
    };
    // Nothing else is spoken here, and kube-apiserver would choose h2.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn roots(trust: &Trust) -> Result<RootCertStore, Report> {
    let mut roots = RootCertStore::empty();
    match trust {
        Trust::System => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        Trust::Only(authorities) => {
            let (added, _) = roots.add_parsable_certificates(certificates(authorities)?);
            if added == 0 {
                return Err(Report::new(
                    Fault::AgentCredential,
                    format!("{}: holds no authority that can be used", authorities.name()),
                ));
            }
        }
    }
    Ok(roots)
}

fn certificates(material: &Material) -> Result<Vec<CertificateDer<'static>>, Report> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&material.read()?).collect();
    found.ok().filter(|found| !found.is_empty()).ok_or_else(|| {
        Report::new(Fault::AgentCredential, format!("{}: no PEM certificate", material.name()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_servers_are_read_with_their_prefix() {
        let server = Server::parse("https://[::1]:6443/k8s/clusters/c-1/").unwrap();
        assert_eq!((server.host.as_str(), server.port), ("::1", 6443));
        assert_eq!(server.authority, "[::1]:6443");
        assert_eq!(server.prefix, "/k8s/clusters/c-1");
        let server = Server::parse("https://api.example").unwrap();
        assert_eq!(
            (server.port, server.authority.as_str(), server.prefix.as_str()),
            (443, "api.example", "")
        );
        for bad in ["http://a", "https://", "https://u:p@a", "https://a/?x", "a:6443", ""] {
            assert!(Server::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_pods_service_account_is_followed_by_file() {
        let target = Target::of_account("fd00::1", "443", Path::new("/account")).unwrap();
        assert_eq!(target.server.host, "fd00::1");
        assert_eq!(target.trust, Trust::Only(Material::File("/account/ca.crt".into())));
        assert_eq!(target.token, Token::File("/account/token".into()));
        let report = Tls::new(target.trust, None).unwrap_err();
        assert!(report.to_string().contains("/account/ca.crt"), "{report}");
    }

    #[test]
    fn t29_keys_of_a_kubeconfig_do_not_print() {
        let client = ClientCertificate {
            chain: Material::Data(b"chain".to_vec()),
            key: Material::Data(b"canary".to_vec()),
        };
        let token = Token::Fixed(Secret::new("canary"));
        let printed = format!("{client:?} {token:?}");
        assert!(!printed.contains("canary") && !printed.contains("99, 97"), "{printed}");
    }
}
