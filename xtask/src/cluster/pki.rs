//! The cluster's certificates and keys.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// A user's client certificate.
#[derive(Clone, Debug)]
pub struct UserCertificate {
    /// The certificate (PEM).
    pub certificate: String,
    /// Its private key (PEM).
    pub key: String,
}

/// One authority for the apiserver, the kubelet's clients, and users.
#[derive(Debug)]
pub(super) struct Pki {
    folder: PathBuf,
    ca_pem: String,
    ca_key: KeyPair,
}

pub(super) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let sextet = (word >> (18 - 6 * place)) as usize & 63;
            text.push(if place <= chunk.len() { char::from(ALPHABET[sextet]) } else { '=' });
        }
    }
    text
}

/// Writes a file that only its owner reads.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path)?;
    file.write_all(bytes).with_context(|| format!("{} can't be written", path.display()))
}

impl Pki {
    pub(super) fn create(folder: &Path) -> anyhow::Result<Self> {
        let folder = folder.join("pki");
        fs::create_dir_all(&folder)?;
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name.push(DnType::CommonName, "towline test cluster");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign];
        let ca_key = KeyPair::generate()?;
        let ca_pem = params.self_signed(&ca_key)?.pem();
        fs::write(folder.join("ca.pem"), &ca_pem)?;
        write_private(&folder.join("ca.key"), ca_key.serialize_pem().as_bytes())?;
        let pki = Self { folder, ca_pem, ca_key };
        let names = [
            "127.0.0.1",
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "10.0.0.1",
        ];
        pki.issue("apiserver", "kube-apiserver", &[], &names, ExtendedKeyUsagePurpose::ServerAuth)?;
        pki.issue(
            "kubelet",
            "localhost",
            &[],
            &["127.0.0.1", "localhost"],
            ExtendedKeyUsagePurpose::ServerAuth,
        )?;
        pki.issue(
            "kubelet-client",
            "kube-apiserver-kubelet-client",
            &["system:masters"],
            &[],
            ExtendedKeyUsagePurpose::ClientAuth,
        )?;
        let service_accounts = KeyPair::generate()?;
        write_private(&pki.folder.join("service-accounts.key"), service_accounts.serialize_pem().as_bytes())?;
        fs::write(pki.folder.join("service-accounts.pem"), service_accounts.public_key_pem())?;
        Ok(pki)
    }

    pub(super) fn open(folder: &Path) -> anyhow::Result<Self> {
        let folder = folder.join("pki");
        let ca_pem = fs::read_to_string(folder.join("ca.pem"))?;
        let ca_key = KeyPair::from_pem(&fs::read_to_string(folder.join("ca.key"))?)?;
        Ok(Self { folder, ca_pem, ca_key })
    }

    /// 32 random hexadecimal digits.
    pub(super) fn random_token(&self) -> String {
        let mut bytes = [0; 16];
        aws_lc_rs::rand::fill(&mut bytes).expect("the system's random source answers");
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub(super) fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    fn certificate(
        &self,
        name: &str,
        groups: &[&str],
        names: &[&str],
        usage: ExtendedKeyUsagePurpose,
    ) -> anyhow::Result<UserCertificate> {
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        let issuer = Issuer::from_ca_cert_pem(&self.ca_pem, &self.ca_key)?;
        Ok(UserCertificate { certificate: params.signed_by(&key, &issuer)?.pem(), key: key.serialize_pem() })
    }

    fn issue(
        &self,
        file: &str,
        name: &str,
        groups: &[&str],
        names: &[&str],
        usage: ExtendedKeyUsagePurpose,
    ) -> anyhow::Result<()> {
        let issued = self.certificate(name, groups, names, usage)?;
        fs::write(self.folder.join(format!("{file}.pem")), issued.certificate)?;
        write_private(&self.folder.join(format!("{file}.key")), issued.key.as_bytes())
    }

    pub(super) fn user(&self, user: &str, groups: &[&str]) -> anyhow::Result<UserCertificate> {
        self.certificate(user, groups, &[], ExtendedKeyUsagePurpose::ClientAuth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_rfc_4648s() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
