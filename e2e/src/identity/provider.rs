//! The certified provider as a process, and the people who fill in its forms.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use tokio::runtime::Handle;
use towline_identity::dev::DevIssuer;

use crate::process::pause;

#[path = "../../../client-proxy/tests/login/person.rs"]
#[allow(
    clippy::unwrap_used,
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "it belongs to the tests of the client's logins: where a page is not as it should be, it panics, and a row fails"
)]
mod person;

/// Node.js starts slowly on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// A login is a dozen pages.
const PAGES_WITHIN: Duration = Duration::from_secs(60);
/// The secret of the provider's machine client, as its program has it.
const MACHINE_SECRET: &str = "canary-secret-of-the-robot";
/// What a job of GitHub's asks with.
pub(super) const RUNNER_TOKEN: &str = "canary-token-of-the-runner";
/// The workload whose tokens are a proof of the client `robot-federated`, and what they are for (as Entra has it).
pub(super) const WORKLOAD: &str = "system:serviceaccount:ci:deployer";
/// See [`WORKLOAD`].
pub(super) const EXCHANGE: &str = "api://AzureADTokenExchange";

/// Files of its folder.
const CLIENT_CERTIFICATE: &str = "client.crt";
/// See [`CLIENT_CERTIFICATE`].
const CLIENT_KEY: &str = "client.key";

/// The provider; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Provider {
    pub(super) url: String,
    pub(super) ca_pem: String,
    child: Child,
    folder: TempDir,
}

impl Provider {
    /// Starts it, installed in the cache if it was not yet. It takes tokens of `federated` for its client `robot-federated`.
    pub(super) fn start(federated: &DevIssuer) -> anyhow::Result<Self> {
        let installed = xtask::idp::ensure()?;
        let folder = tempfile::Builder::new().prefix("towline-idp-").tempdir()?;
        let at = |name: &str| folder.path().join(name);
        let (ca_pem, certificate, key) = certificate()?;
        let (client_certificate, client_key) = client_certificate()?;
        for (name, text) in [
            ("ca.pem", &*ca_pem),
            ("tls.crt", &certificate),
            ("tls.key", &key),
            ("secret", MACHINE_SECRET),
            (CLIENT_CERTIFICATE, &client_certificate),
            (CLIENT_KEY, &client_key),
            ("federated-ca.pem", federated.ca_pem()),
        ] {
            fs::write(at(name), text)?;
        }
        let child = Command::new("node")
            .arg(&installed.server)
            .args([at("tls.crt"), at("tls.key")])
            .env("IDP_LIBRARY", &installed.library)
            .env("IDP_CLIENT_CERTIFICATE", at(CLIENT_CERTIFICATE))
            .env("IDP_FEDERATED_ISSUER", federated.url())
            .env("IDP_FEDERATED_SUBJECT", WORKLOAD)
            .env("IDP_RUNNER_TOKEN", RUNNER_TOKEN)
            .env("NODE_EXTRA_CA_CERTS", at("federated-ca.pem"))
            // It ends with its standard input.
            .stdin(Stdio::piped())
            .stdout(File::create(at("said"))?)
            .stderr(File::create(at("errors"))?)
            .spawn()
            .context("Node.js 20 or later is needed")?;
        let mut provider = Self { url: String::new(), ca_pem, child, folder };
        let since = Instant::now();
        loop {
            let said = fs::read_to_string(provider.file("said"))?;
            if let Some(url) = said.lines().find_map(|line| line.strip_prefix("ready "))
                && said.ends_with('\n')
            {
                provider.url = url.to_owned();
                return Ok(provider);
            }
            let errors = fs::read_to_string(provider.file("errors"))?;
            let runs = provider.child.try_wait()?.is_none();
            ensure!(runs && since.elapsed() < READY_WITHIN, "the provider does not start: {errors}");
            pause(Duration::from_millis(20));
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The authority of its certificate.
    pub(super) fn ca_file(&self) -> PathBuf {
        self.file("ca.pem")
    }

    /// Holds the secret of its client `robot`.
    pub(super) fn secret_file(&self) -> PathBuf {
        self.file("secret")
    }

    /// The certificate of its client `robot-certificate`, and its key.
    pub(super) fn client_certificate(&self) -> (PathBuf, PathBuf) {
        (self.file(CLIENT_CERTIFICATE), self.file(CLIENT_KEY))
    }

    /// Where a job of GitHub's asks for its ID tokens.
    pub(super) fn actions_url(&self) -> String {
        format!("{}/actions/token?api-version=2.0", self.url)
    }

    /// Whether it took the federated token with this `jti`.
    pub(super) fn took_federated(&self, jti: &str) -> anyhow::Result<bool> {
        let said = fs::read_to_string(self.file("said"))?;
        Ok(said.lines().any(|line| line.strip_prefix("federated ") == Some(jti)))
    }

    /// A person's browser goes to this page, and through all that follow.
    pub(super) fn visit(&self, runtime: &Handle, url: &str, person: &str) -> anyhow::Result<()> {
        let mut browser = person::Browser::new(&self.ca_pem);
        let walked = async { tokio::time::timeout(PAGES_WITHIN, browser.walk(url, person)).await };
        let page = runtime.block_on(walked).context("the pages do not end")?;
        ensure!(page.status < 400, "{}: {} {}", page.url.path(), page.status, page.body);
        Ok(())
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// An authority, a certificate for 127.0.0.1 and its key, as PEM.
fn certificate() -> anyhow::Result<(String, String, String)> {
    let mut authority = rcgen::CertificateParams::new(Vec::<String>::new())?;
    // OpenSSL takes a certificate whose issuer has its own name for self-signed.
    authority.distinguished_name.push(rcgen::DnType::CommonName, "the provider's authority");
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    let authority_key = rcgen::KeyPair::generate()?;
    let ca = authority.self_signed(&authority_key)?.pem();
    let key = rcgen::KeyPair::generate()?;
    let mut leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
    leaf.distinguished_name.push(rcgen::DnType::CommonName, "the provider");
    let leaf = leaf.signed_by(&key, &rcgen::Issuer::from_params(&authority, &authority_key))?;
    Ok((ca, leaf.pem(), key.serialize_pem()))
}

/// A client's own certificate, which nobody signed but itself, and its RSA key, as PEM.
fn client_certificate() -> anyhow::Result<(String, String)> {
    let key = rcgen::KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)?;
    let certificate = rcgen::CertificateParams::new(Vec::<String>::new())?.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}
