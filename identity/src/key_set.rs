//! A JSON Web Key Set (RFC 7517) as keys that are ready to verify with.

use std::sync::Arc;

use aws_lc_rs::signature::ParsedPublicKey;
use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;

use crate::Algorithm;

/// More keys than any issuer has.
const MAX_KEYS: usize = 100;

/// A public key as its issuer publishes it. Private members, certificates and what else may stand there are not read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Jwk {
    kty: String,
    crv: Option<String>,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    /// Entra: the issuer that the key signs for, maybe with `{tenantid}` in it.
    issuer: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// One key, parsed for each algorithm that it may be used with.
#[derive(Debug)]
pub(crate) struct Key {
    id: Option<String>,
    /// Whom it signs for, where its set says so.
    pub(crate) issuer: Option<String>,
    ready: Vec<(Algorithm, ParsedPublicKey)>,
}

impl Key {
    /// The key for this algorithm, if its issuer means it for that.
    pub(crate) fn for_algorithm(&self, algorithm: Algorithm) -> Option<&ParsedPublicKey> {
        self.ready.iter().find(|(found, _)| *found == algorithm).map(|(_, key)| key)
    }
}

/// The keys of one issuer.
#[derive(Debug, Default)]
pub(crate) struct KeySet(Vec<Arc<Key>>);

impl KeySet {
    /// By id; a token without one is the only key's, or nobody's. Where keys of several kinds share an id (RFC 7517,
    /// section 4.5), the one for the algorithm.
    pub(crate) fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Option<Arc<Key>> {
        if id.is_none() && self.0.len() > 1 {
            return None;
        }
        let mut named = self.0.iter().filter(|key| id.is_none() || key.id.as_deref() == id);
        let fitting = named.clone().find(|key| key.for_algorithm(algorithm).is_some());
        fitting.or_else(|| named.next()).cloned()
    }

    /// Reads a set.
    ///
    /// # Errors
    /// If it is none, is too large, or has no key that can be used.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Raw {
            keys: Vec<serde_json::Value>,
        }
        let raw: Raw = serde_json::from_slice(body).map_err(|error| format!("not a key set: {error}"))?;
        if raw.keys.len() > MAX_KEYS {
            return Err("has more than 100 keys".into());
        }
        // Keys of kinds that we don't know are not our business (RFC 7517, section 5).
        let keys: Vec<Key> = raw
            .keys
            .into_iter()
            .filter_map(|key| serde_json::from_value::<Jwk>(key).ok())
            .filter_map(|jwk| jwk.parse())
            .collect();
        if keys.is_empty() {
            return Err("has no key that can be used".into());
        }
        Ok(Self(keys.into_iter().map(Arc::new).collect()))
    }
}

impl Jwk {
    fn parse(self) -> Option<Key> {
        let verifies = |ops: &Vec<String>| ops.iter().any(|op| op == "verify");
        if self.purpose.as_deref().is_some_and(|purpose| purpose != "sig")
            || !self.key_ops.as_ref().is_none_or(verifies)
        {
            return None;
        }
        let ready: Vec<_> = Algorithm::ALL
            .into_iter()
            .filter(|algorithm| self.alg.as_deref().is_none_or(|bound| bound == algorithm.name()))
            .filter_map(|algorithm| Some((algorithm, self.key(algorithm)?)))
            .collect();
        (!ready.is_empty()).then_some(Key { id: self.kid, issuer: self.issuer, ready })
    }

    /// The key for this algorithm, whatever the set says about its use.
    pub(crate) fn key(&self, algorithm: Algorithm) -> Option<ParsedPublicKey> {
        let (kind, curve) = algorithm.key_type();
        if self.kty != kind || self.crv.as_deref() != curve {
            return None;
        }
        let bytes = |text: &Option<String>| {
            BASE64URL_NOPAD.decode(text.as_deref().unwrap_or_default().as_bytes()).ok()
        };
        match kind {
            "RSA" => algorithm.rsa_key(&bytes(&self.n)?, &bytes(&self.e)?),
            "EC" => {
                // Uncompressed, both coordinates of the curve's full length (RFC 7518, section 6.2.1.2).
                let length = match curve {
                    Some("P-256") => 32,
                    Some("P-384") => 48,
                    _ => 66,
                };
                let (x, y) = (bytes(&self.x)?, bytes(&self.y)?);
                (x.len() == length && y.len() == length)
                    .then(|| [&[4][..], &x, &y].concat())
                    .and_then(|point| algorithm.point_key(&point))
            }
            _ => algorithm.point_key(&bytes(&self.x)?),
        }
    }

    /// Its RFC 7638 thumbprint, by SHA-256, in base64url; RSA keys only.
    pub(crate) fn rsa_thumbprint(&self) -> Option<String> {
        let (n, e) = (self.n.as_deref()?, self.e.as_deref()?);
        let plain = |text: &str| BASE64URL_NOPAD.decode(text.as_bytes()).is_ok();
        if self.kty != "RSA" || !plain(n) || !plain(e) {
            return None;
        }
        let canonical = format!(r#"{{"e":"{e}","kty":"RSA","n":"{n}"}}"#);
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, canonical.as_bytes());
        Some(BASE64URL_NOPAD.encode(hash.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thumbprint_is_rfc_7638s() {
        let jwk: Jwk = serde_json::from_str(
            r#"{"kty":"RSA","e":"AQAB","alg":"RS256","kid":"2011-04-29","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"}"#,
        )
        .unwrap();
        assert_eq!(jwk.rsa_thumbprint().unwrap(), "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs");
        assert!(jwk.key(Algorithm::RS256).is_some());
        assert!(jwk.key(Algorithm::ES256).is_none());
        let set = format!(
            r#"{{"keys":[{},{{"kty":"oct","k":"AA","kid":"h"}},{{"kty":"LMS"}},7]}}"#,
            r#"{"kty":"RSA","e":"AQAB","use":"enc","kid":"a","n":"AQ"}"#
        );
        assert_eq!(KeySet::parse(set.as_bytes()).unwrap_err(), "has no key that can be used");
    }

    #[test]
    fn keys_too_short_or_off_the_curve_are_none() {
        let one = BASE64URL_NOPAD.encode(&[1; 32]);
        let short = BASE64URL_NOPAD.encode(&[0xff; 128]);
        for jwk in [
            format!(r#"{{"kty":"EC","crv":"P-256","x":"{one}","y":"{one}"}}"#),
            format!(r#"{{"kty":"EC","crv":"P-521","x":"{one}","y":"{one}"}}"#),
            format!(r#"{{"kty":"RSA","n":"{short}","e":"AQAB"}}"#),
            format!(r#"{{"kty":"OKP","crv":"Ed448","x":"{one}"}}"#),
        ] {
            assert!(KeySet::parse(format!(r#"{{"keys":[{jwk}]}}"#).as_bytes()).is_err(), "{jwk}");
        }
    }
}
