//! An issuer's keys: discovered, cached, refreshed, and asked for no more often than is decent.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{JwkSet, KeyAlgorithm, PublicKeyUse},
};
use serde::Deserialize;
use tokio::time::Instant;

use crate::{Fetch, FetchError};

/// Keys are asked for anew this often.
pub(crate) const REFRESH: Duration = Duration::from_secs(3600);
/// The last good set is used for this long while the issuer can't be asked.
const KEEP: Duration = Duration::from_secs(24 * 3600);
/// An unknown key id makes us ask at most this often: a stranger's tokens can't make us a nuisance.
const UNKNOWN_KEY_PAUSE: Duration = Duration::from_secs(300);
/// As long as there are no keys at all, asking is retried this often.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// More keys than any issuer has.
const MAX_KEYS: usize = 100;

#[derive(Deserialize)]
struct Metadata {
    issuer: String,
    jwks_uri: String,
}

/// One key, and the algorithm it is bound to, if it is.
pub(crate) struct Key {
    pub(crate) decoding: DecodingKey,
    algorithm: Option<KeyAlgorithm>,
}

impl Key {
    /// Whether the issuer means this key for this algorithm.
    pub(crate) fn is_for(&self, algorithm: Algorithm) -> bool {
        self.algorithm.is_none_or(|bound| bound.to_string() == format!("{algorithm:?}"))
    }
}

type KeySet = HashMap<Option<String>, Arc<Key>>;

#[derive(Default)]
struct State {
    keys: Arc<KeySet>,
    fetched: Option<Instant>,
    asked: Option<Instant>,
}

/// The keys of one issuer.
pub(crate) struct Keys {
    issuer: String,
    fetch: Box<dyn Fetch>,
    state: Mutex<State>,
    /// One question at a time; those who wait find its answer.
    asking: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", self.issuer)
    }
}

impl Keys {
    pub(crate) fn new(issuer: String, fetch: Box<dyn Fetch>) -> Self {
        Self { issuer, fetch, state: Mutex::default(), asking: tokio::sync::Mutex::default() }
    }

    fn known(&self, id: &Option<String>) -> Option<Arc<Key>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = state.fetched.is_some_and(|fetched| fetched.elapsed() < KEEP);
        match id {
            Some(_) => state.keys.get(id).filter(|_| fresh).cloned(),
            // A token without a key id is the only key's, or nobody's.
            None if state.keys.len() == 1 => state.keys.values().next().filter(|_| fresh).cloned(),
            None => None,
        }
    }

    /// Whether the issuer may be asked now; claims the right to, before asking, and keeps it if that fails.
    fn claim(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let pause = if state.fetched.is_some() { UNKNOWN_KEY_PAUSE } else { FIRST_PAUSE };
        let may = state.asked.is_none_or(|asked| asked.elapsed() >= pause);
        if may {
            state.asked = Some(Instant::now());
        }
        may
    }

    /// The key with this id. Known ones cost no network; `Ok(None)` where the issuer has no such key.
    pub(crate) async fn find(&self, id: &Option<String>) -> Result<Option<Arc<Key>>, FetchError> {
        if let Some(key) = self.known(id) {
            return Ok(Some(key));
        }
        let _turn = self.asking.lock().await;
        if let Some(key) = self.known(id) {
            return Ok(Some(key));
        }
        if self.claim() {
            self.load().await?;
        } else if !self.has_keys() {
            return Err(FetchError {
                url: self.issuer.clone(),
                why: "the keys could not be had a moment ago".into(),
            });
        }
        Ok(self.known(id))
    }

    fn has_keys(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.fetched.is_some_and(|fetched| fetched.elapsed() < KEEP)
    }

    /// Asks for the keys anew; a failure leaves the last good set.
    pub(crate) async fn refresh(&self) -> Result<(), FetchError> {
        let _turn = self.asking.lock().await;
        self.load().await
    }

    async fn load(&self) -> Result<(), FetchError> {
        let base = self.issuer.trim_end_matches('/');
        let url = format!("{base}/.well-known/openid-configuration");
        let wrong = |url: &str, why: String| FetchError { url: url.to_owned(), why };
        let metadata: Metadata = serde_json::from_slice(&self.fetch.get(&url).await?)
            .map_err(|error| wrong(&url, format!("not OpenID metadata: {error}")))?;
        if metadata.issuer != self.issuer {
            return Err(wrong(&url, format!("says that it is the issuer {:?}", metadata.issuer)));
        }
        if !metadata.jwks_uri.starts_with("https://") {
            return Err(wrong(&url, "its jwks_uri is not https".into()));
        }
        let body = self.fetch.get(&metadata.jwks_uri).await?;
        let keys = parse(&body).map_err(|why| wrong(&metadata.jwks_uri, why))?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.keys = Arc::new(keys);
        state.fetched = Some(Instant::now());
        Ok(())
    }
}

fn parse(body: &[u8]) -> Result<KeySet, String> {
    #[derive(Deserialize)]
    struct Raw {
        keys: Vec<serde_json::Value>,
    }
    let raw: Raw = serde_json::from_slice(body).map_err(|error| format!("not a key set: {error}"))?;
    if raw.keys.len() > MAX_KEYS {
        return Err("has more than 100 keys".into());
    }
    // Keys of kinds that we don't know are not our business (RFC 7517, section 5).
    let known = raw.keys.into_iter().filter_map(|key| serde_json::from_value(key).ok()).collect();
    let set = JwkSet { keys: known };
    let keys: KeySet = set
        .keys
        .iter()
        .filter(|jwk| !matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption)))
        .filter(|jwk| !matches!(jwk.algorithm, jsonwebtoken::jwk::AlgorithmParameters::OctetKey(_)))
        .filter_map(|jwk| {
            let decoding = DecodingKey::from_jwk(jwk).ok()?;
            let key = Key { decoding, algorithm: jwk.common.key_algorithm };
            Some((jwk.common.key_id.clone(), Arc::new(key)))
        })
        .collect();
    if keys.is_empty() { Err("has no key that can be used".into()) } else { Ok(keys) }
}
