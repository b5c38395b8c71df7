//! Ed25519 keys: a relay's identity and ticket key, a cluster's identity, an agent instance's, a client's run key.
//!
//! Every signature is over `"towline v1 " purpose NUL` and then the message, so that what one part signs never means
//! something to another.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use zeroize::Zeroizing;

use crate::{
    fault::{Fault, Report},
    ids::{ClusterId, KeyHash},
};

/// SubjectPublicKeyInfo (RFC 8410) of an Ed25519 key is this and 32 bytes.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// Length of an Ed25519 SubjectPublicKeyInfo.
pub const SPKI_LEN: usize = 44;
/// Length of an Ed25519 signature.
pub const SIGNATURE_LEN: usize = 64;

/// What a signature is for; part of what is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A relay proves its identity key on a channel.
    RelayHello,
    /// A client proves its run key on a channel.
    ClientProof,
    /// An agent instance proves its key on a channel.
    AgentProof,
    /// A cluster proves its identity key when it enrols.
    EnrolProof,
    /// A relay lets a client open a stream.
    Ticket,
    /// An organisation says who has which role (`role`).
    RoleDocument,
    /// A cluster makes the suffix of its roles' groups: nobody verifies it.
    RoleSuffix,
}

impl Purpose {
    fn label(self) -> &'static [u8] {
        match self {
            Self::RelayHello => b"towline v1 relay hello\0",
            Self::ClientProof => b"towline v1 client proof\0",
            Self::AgentProof => b"towline v1 agent proof\0",
            Self::EnrolProof => b"towline v1 enrol proof\0",
            Self::Ticket => b"towline v1 ticket\0",
            Self::RoleDocument => b"towline v1 role document\0",
            Self::RoleSuffix => b"towline v1 role suffix\0",
        }
    }

    pub(crate) fn message(self, parts: &[&[u8]]) -> Vec<u8> {
        let mut message = self.label().to_vec();
        for part in parts {
            message.extend_from_slice(part);
        }
        message
    }
}

/// A private Ed25519 key. Doesn't print, and its bytes are wiped when it is dropped.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
}

impl SigningKey {
    /// A new random key.
    pub fn generate() -> Self {
        let pair = Ed25519KeyPair::generate().expect("the system's random source answers");
        let pkcs8 = pair.to_pkcs8v1().expect("a key that was just made can be written");
        Self { pair, pkcs8: Zeroizing::new(pkcs8.as_ref().to_vec()) }
    }

    /// Reads a key from PKCS#8 DER.
    ///
    /// # Errors
    /// If the bytes are not an Ed25519 key.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_pkcs8(der).map_err(|_| KeyError)?;
        Ok(Self { pair, pkcs8: Zeroizing::new(der.to_vec()) })
    }

    /// Reads a key from PKCS#8 PEM.
    ///
    /// # Errors
    /// If the text is not PEM of an Ed25519 key.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| KeyError)?;
        Self::from_pkcs8(der.secret_pkcs8_der())
    }

    /// The key as PKCS#8 PEM: a secret.
    pub fn to_pem(&self) -> Zeroizing<String> {
        let body = data_encoding::BASE64.encode(&self.pkcs8);
        let mut pem = Zeroizing::new(String::from("-----BEGIN PRIVATE KEY-----\n"));
        for line in body.as_bytes().chunks(64) {
            pem.push_str(&String::from_utf8_lossy(line));
            pem.push('\n');
        }
        pem.push_str("-----END PRIVATE KEY-----\n");
        pem
    }

    /// The key in the file, or a new one written there (mode 0600) where there is none.
    ///
    /// # Errors
    /// If the file can't be read, written, is not a key, or can be read by others than its owner.
    pub fn load_or_create(path: &Path) -> Result<Self, Report> {
        match File::open(path) {
            Ok(file) => Self::load_open(path, file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::create(path),
            Err(error) => Err(Report::caused_by(Fault::FileUnreadable, path.display().to_string(), error)),
        }
    }

    fn load_open(path: &Path, mut file: File) -> Result<Self, Report> {
        let unreadable = |why: &str| Report::new(Fault::FileUnreadable, format!("{}: {why}", path.display()));
        let mode = file.metadata().map_err(|error| unreadable(&error.to_string()))?.mode();
        if mode & 0o077 != 0 {
            return Err(unreadable("a private key that others can read; chmod 600 it"));
        }
        let mut pem = Zeroizing::new(Vec::new());
        io::Read::read_to_end(&mut file, &mut pem).map_err(|error| unreadable(&error.to_string()))?;
        Self::from_pem(&pem).map_err(|_| unreadable("not an Ed25519 private key in PKCS#8 PEM"))
    }

    fn create(path: &Path) -> Result<Self, Report> {
        let key = Self::generate();
        write_secret(path, key.to_pem().as_bytes())?;
        Ok(key)
    }

    /// SubjectPublicKeyInfo, DER.
    pub fn spki(&self) -> [u8; SPKI_LEN] {
        let mut spki = [0; SPKI_LEN];
        spki[..12].copy_from_slice(&SPKI_PREFIX);
        spki[12..].copy_from_slice(self.pair.public_key().as_ref());
        spki
    }

    /// The public half.
    pub fn public(&self) -> VerifyingKey {
        VerifyingKey { spki: self.spki() }
    }

    /// Signs the parts, one after the other, for a purpose.
    pub fn sign(&self, purpose: Purpose, parts: &[&[u8]]) -> [u8; SIGNATURE_LEN] {
        let signature = self.pair.sign(&purpose.message(parts));
        let mut bytes = [0; SIGNATURE_LEN];
        bytes.copy_from_slice(signature.as_ref());
        bytes
    }

    /// For rustls.
    pub fn private_key_der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.pkcs8.to_vec()).into()
    }

    /// For making certificates.
    ///
    /// # Errors
    /// Never for a key that this type holds; rcgen's reading is fallible.
    pub fn for_certificates(&self) -> Result<rcgen::KeyPair, rcgen::Error> {
        let der = PrivatePkcs8KeyDer::from(self.pkcs8.as_slice());
        rcgen::KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ED25519)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public().hash())
    }
}

/// A public Ed25519 key, as SubjectPublicKeyInfo.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VerifyingKey {
    spki: [u8; SPKI_LEN],
}

impl VerifyingKey {
    /// Reads a SubjectPublicKeyInfo (DER).
    ///
    /// # Errors
    /// If it is not an Ed25519 key's.
    pub fn from_spki(spki: &[u8]) -> Result<Self, KeyError> {
        let spki: [u8; SPKI_LEN] = spki.try_into().map_err(|_| KeyError)?;
        if spki[..12] == SPKI_PREFIX { Ok(Self { spki }) } else { Err(KeyError) }
    }

    /// SubjectPublicKeyInfo, DER.
    pub fn spki(&self) -> &[u8; SPKI_LEN] {
        &self.spki
    }

    /// SHA-256 of the SubjectPublicKeyInfo.
    pub fn hash(&self) -> KeyHash {
        KeyHash::of_spki(&self.spki)
    }

    /// The id of the cluster whose identity key this is.
    pub fn cluster_id(&self) -> ClusterId {
        ClusterId::of_spki(&self.spki)
    }

    /// Whether `signature` is this key's, over these parts, for this purpose.
    #[must_use]
    pub fn verify(&self, purpose: Purpose, parts: &[&[u8]], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.spki[12..]).verify(&purpose.message(parts), signature).is_ok()
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({})", self.hash())
    }
}

/// Bytes are not an Ed25519 key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an Ed25519 key")]
pub struct KeyError;

/// Writes a secret to a new file of mode 0600, whole or not at all.
///
/// # Errors
/// If the file exists or can't be written.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), Report> {
    let unwritable =
        |error: io::Error| Report::caused_by(Fault::FileUnwritable, path.display().to_string(), error);
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        // Unlike rename, this fails where another process was quicker: nobody's key is ever replaced.
        fs::hard_link(&temporary, path)
    };
    let written = write();
    let _gone = fs::remove_file(&temporary);
    written.map_err(unwritable)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_signature_holds_for_its_purpose_and_message_only() {
        let key = SigningKey::generate();
        let signature = key.sign(Purpose::Ticket, &[b"a", b"b"]);
        assert!(key.public().verify(Purpose::Ticket, &[b"ab"], &signature));
        assert!(!key.public().verify(Purpose::AgentProof, &[b"ab"], &signature));
        assert!(!key.public().verify(Purpose::Ticket, &[b"ac"], &signature));
        assert!(!SigningKey::generate().public().verify(Purpose::Ticket, &[b"ab"], &signature));
        assert!(!key.public().verify(Purpose::Ticket, &[b"ab"], &signature[1..]));
    }

    #[test]
    fn a_key_is_kept_in_a_file_that_only_its_owner_reads() {
        let folder = std::env::temp_dir()
            .join(format!("towline-keys-{}", KeyHash::of_spki(&SigningKey::generate().spki())));
        fs::create_dir(&folder).unwrap();
        let path = folder.join("identity.pem");
        let first = SigningKey::load_or_create(&path).unwrap();
        let second = SigningKey::load_or_create(&path).unwrap();
        assert_eq!(first.public(), second.public());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let report = SigningKey::load_or_create(&path).unwrap_err();
        assert!(report.to_string().contains("others can read"), "{report}");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn t29_a_private_key_does_not_print() {
        let key = SigningKey::generate();
        let secret = data_encoding::HEXLOWER.encode(&key.pkcs8);
        let printed = format!("{key:?}");
        assert!(printed.contains(&key.public().hash().to_string()) && !printed.contains(&secret[40..]));
    }
}
