//! The organisation's public key, as people hand it on.

use data_encoding::BASE64;
use rustls::pki_types::{SubjectPublicKeyInfoDer, pem::PemObject as _};

use crate::keys::{KeyError, VerifyingKey};

/// Organisation keys that one agent or relay knows at once: the one in use, and the one that replaces it.
pub const MAX_KEYS: usize = 4;

/// Reads a public key: base64 of its SubjectPublicKeyInfo, or PEM (`openssl pkey -pubout`).
///
/// # Errors
/// If it is neither, or of another kind than Ed25519.
pub fn parse_key(text: &str) -> Result<VerifyingKey, KeyError> {
    let text = text.trim();
    if text.starts_with("-----BEGIN") {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(text.as_bytes()).map_err(|_| KeyError)?;
        return VerifyingKey::from_spki(&der);
    }
    VerifyingKey::from_spki(&BASE64.decode(text.as_bytes()).map_err(|_| KeyError)?)
}

/// The key as [`parse_key`] reads it, on one line.
pub fn print_key(key: &VerifyingKey) -> String {
    BASE64.encode(key.spki())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::SigningKey;

    #[test]
    fn a_public_key_reads_back_from_one_line_and_from_pem() {
        let key = SigningKey::generate().public();
        let line = print_key(&key);
        assert_eq!(parse_key(&format!("{line}\n")), Ok(key));
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{line}\n-----END PUBLIC KEY-----\n");
        assert_eq!(parse_key(&pem), Ok(key));
        for bad in ["", "x", &line[4..], "-----BEGIN PUBLIC KEY-----"] {
            assert_eq!(parse_key(bad), Err(KeyError), "{bad}");
        }
        assert_eq!(parse_key(&SigningKey::generate().to_pem()), Err(KeyError), "a private key is none");
    }
}
