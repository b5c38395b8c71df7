//! A client's proof by a certificate's key, in place of a secret.

use std::{
    fmt,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{
    digest::{SHA256, digest},
    rand::SystemRandom,
    signature::{RSA_PSS_SHA256, RsaKeyPair},
};
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::{Value, json};

/// A client assertion is good for this long.
const ASSERTION_LIFE: Duration = Duration::from_secs(300);

/// A client assertion (RFC 7523, section 2.2) for the token endpoint `endpoint`, PS256 by the RSA key of a certificate: both
/// are PEM files. A secret for five minutes.
///
/// # Errors
/// If a file can't be read, or the key is none that signs.
pub fn client_assertion(
    client: &str,
    endpoint: &str,
    certificate: &Path,
    key: &Path,
    now: SystemTime,
) -> Result<String, String> {
    let certificate = CertificateDer::from_pem_file(certificate)
        .map_err(|error| format!("{}: {error}", certificate.display()))?;
    let wrong = |error: &dyn fmt::Display| format!("{}: {error}", key.display());
    let pair = match PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(&error))? {
        PrivateKeyDer::Pkcs8(der) => RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()),
        PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der()),
        _ => return Err(wrong(&"not an RSA key")),
    };
    let pair = pair.map_err(|error| wrong(&error))?;
    let begin = now.duration_since(UNIX_EPOCH).map_err(|_| "the clock is before 1970")?.as_secs();
    let mut id = [0; 16];
    aws_lc_rs::rand::fill(&mut id).map_err(|_| "there is no randomness")?;
    let thumbprint = BASE64URL_NOPAD.encode(digest(&SHA256, &certificate).as_ref());
    let part = |value: Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let text = format!(
        "{}.{}",
        part(json!({ "alg": "PS256", "typ": "JWT", "x5t#S256": thumbprint })),
        part(json!({
            "aud": endpoint, "iss": client, "sub": client, "jti": HEXLOWER.encode(&id),
            "nbf": begin, "iat": begin, "exp": begin + ASSERTION_LIFE.as_secs(),
        }))
    );
    let mut signature = vec![0; pair.public_modulus_len()];
    pair.sign(&RSA_PSS_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature)
        .map_err(|_| "the key can't sign")?;
    Ok(format!("{text}.{}", BASE64URL_NOPAD.encode(&signature)))
}
