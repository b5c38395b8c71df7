//! Signed requests: a token inside a token that its caller's key signed, once, for one host and moment.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use crate::{
    Algorithm, VerifyError,
    claims::time,
    key_set::Jwk,
    token::{Object, Unverified},
};

/// A proof is good for this long after its `ts`.
const MAX_AGE: Duration = Duration::from_secs(300);
/// How far the caller's clock may be ahead of ours.
const AHEAD: Duration = Duration::from_secs(60);
/// Nonces remembered; beyond that, proofs are refused rather than forgotten.
const MAX_NONCES: usize = 65_536;
/// Longest nonce, in bytes.
const MAX_NONCE: usize = 256;

/// Which proofs are taken.
#[derive(Clone, Debug)]
pub(crate) struct PopRules {
    /// `u`: the hosts that a proof may be for.
    pub(crate) hosts: Vec<String>,
    /// Whether a plain bearer is refused.
    pub(crate) required: bool,
}

/// A proof whose own signature holds: the token in it is still to be judged.
#[derive(Debug)]
pub(crate) struct Proof {
    thumbprint: String,
    nonce: String,
    signed_at: SystemTime,
}

impl Proof {
    /// The token inside.
    pub(crate) fn token<'a>(outer: &'a Unverified<'_>) -> Result<&'a str, VerifyError> {
        outer.claims.text("at").ok_or(VerifyError::Proof("has no token in it"))
    }

    /// Checks everything but the nonce, which is used up last.
    pub(crate) fn check(
        outer: &Unverified<'_>,
        rules: &PopRules,
        now: SystemTime,
    ) -> Result<Self, VerifyError> {
        if outer.algorithm != Algorithm::RS256 {
            return Err(VerifyError::Algorithm);
        }
        let claims = &outer.claims;
        let jwk = claims.get("cnf").and_then(|cnf| cnf.get("jwk")).cloned();
        let jwk: Jwk = jwk
            .and_then(|jwk| serde_json::from_value(jwk).ok())
            .ok_or(VerifyError::Proof("has no key in it"))?;
        let thumbprint = jwk.rsa_thumbprint().ok_or(VerifyError::Proof("has no RSA key in it"))?;
        let key = jwk.key(Algorithm::RS256).ok_or(VerifyError::Proof("has no RSA key of 2048 bits in it"))?;
        key.verify_sig(outer.signed.as_bytes(), &outer.signature).map_err(|_| VerifyError::Signature)?;
        let signed_at = time(claims, "ts")?.ok_or(VerifyError::Proof("has no time"))?;
        if signed_at + MAX_AGE <= now {
            return Err(VerifyError::Proof("is more than 5 minutes old"));
        }
        if signed_at > now + AHEAD {
            return Err(VerifyError::Proof("is from the future"));
        }
        let host = claims.text("u").unwrap_or_default();
        if !rules.hosts.iter().any(|known| known.eq_ignore_ascii_case(host)) {
            return Err(VerifyError::Proof("is for another host"));
        }
        let nonce = claims.text("nonce").filter(|nonce| !nonce.is_empty() && nonce.len() <= MAX_NONCE);
        let nonce = nonce.ok_or(VerifyError::Proof("has no nonce"))?.to_owned();
        Ok(Self { thumbprint, nonce, signed_at })
    }

    /// Whether the token inside is bound to the key that signed the proof.
    pub(crate) fn check_bound(&self, inner: &Object) -> Result<(), VerifyError> {
        let bound = inner.get("cnf").and_then(|cnf| cnf.get("kid")).and_then(serde_json::Value::as_str);
        if bound == Some(&self.thumbprint) {
            Ok(())
        } else {
            Err(VerifyError::Proof("is by another key than the token's"))
        }
    }
}

/// Nonces that were used, for as long as a proof with them would be good.
#[derive(Debug, Default)]
pub(crate) struct Nonces(Mutex<HashMap<(String, String), SystemTime>>);

impl Nonces {
    /// Uses a proof up.
    pub(crate) fn spend(&self, proof: Proof, now: SystemTime) -> Result<(), VerifyError> {
        let mut used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if used.len() >= MAX_NONCES {
            used.retain(|_, until| now < *until);
            if used.len() >= MAX_NONCES {
                return Err(VerifyError::Proof("can't be told from a replay: too many at once"));
            }
        }
        let until = proof.signed_at + MAX_AGE + AHEAD;
        if used.insert((proof.thumbprint, proof.nonce), until).is_some_and(|until| now < until) {
            return Err(VerifyError::Proof("was used before"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn proof(nonce: usize, signed_at: u64) -> Proof {
        Proof { thumbprint: "key".into(), nonce: nonce.to_string(), signed_at: at(signed_at) }
    }

    #[test]
    fn t24_a_nonce_is_used_up_for_as_long_as_a_proof_with_it_would_be_good() {
        let nonces = Nonces::default();
        nonces.spend(proof(1, 1000), at(1000)).unwrap();
        nonces.spend(proof(2, 1000), at(1000)).unwrap();
        let replayed = nonces.spend(proof(1, 1000), at(1359));
        assert_eq!(replayed, Err(VerifyError::Proof("was used before")));
        nonces.spend(proof(2, 1360), at(1360)).unwrap();
        let other_key = Proof { thumbprint: "other".into(), ..proof(2, 1360) };
        nonces.spend(other_key, at(1360)).unwrap();
    }

    #[test]
    fn t24_where_there_is_no_room_for_a_nonce_those_that_are_over_go_and_no_others() {
        let nonces = Nonces::default();
        nonces.spend(proof(0, 1000), at(1000)).unwrap();
        for nonce in 1..MAX_NONCES {
            nonces.spend(proof(nonce, 1001), at(1001)).unwrap();
        }
        let full = Err(VerifyError::Proof("can't be told from a replay: too many at once"));
        assert_eq!(nonces.spend(proof(MAX_NONCES, 1300), at(1359)), full);
        nonces.spend(proof(MAX_NONCES, 1300), at(1360)).unwrap();
        assert_eq!(nonces.spend(proof(MAX_NONCES + 1, 1300), at(1360)), full, "one was over");
        assert_eq!(nonces.0.lock().unwrap().len(), MAX_NONCES);
    }
}
