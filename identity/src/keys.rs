//! An issuer's keys: discovered, cached, refreshed, and asked for no more often than is decent.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::Deserialize;
use tokio::time::Instant;

use crate::{
    Algorithm, Fetch, FetchError, fetch,
    key_set::{Key, KeySet},
};

/// Keys are asked for anew this often.
pub(crate) const REFRESH: Duration = Duration::from_secs(3600);
/// The last good set is used for this long while the issuer can't be asked.
const KEEP: Duration = Duration::from_secs(24 * 3600);
/// An unknown key id makes us ask at most this often: a stranger's tokens can't make us a nuisance.
const UNKNOWN_KEY_PAUSE: Duration = Duration::from_secs(300);
/// As long as there are no keys at all, asking is retried this often.
const FIRST_PAUSE: Duration = Duration::from_secs(2);

#[derive(Deserialize)]
struct Metadata {
    issuer: String,
    jwks_uri: String,
}

/// Where keys are, and whose they must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeySource {
    /// The issuer that the metadata must name.
    pub(crate) issuer: String,
    /// The metadata's URL.
    pub(crate) metadata: String,
    /// The only host that keys may be at, where that is known beforehand.
    pub(crate) keys_host: Option<String>,
}

impl KeySource {
    /// OpenID Connect Discovery 1.0, section 4, or the URL that was configured instead.
    pub(crate) fn discovery(issuer: &str, metadata: Option<&str>) -> Self {
        let metadata = metadata.map_or_else(
            || format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/')),
            str::to_owned,
        );
        Self { issuer: issuer.to_owned(), metadata, keys_host: None }
    }
}

#[derive(Default)]
struct State {
    keys: Arc<KeySet>,
    fetched: Option<Instant>,
    asked: Option<Instant>,
}

/// The keys of one issuer.
pub(crate) struct Keys {
    source: KeySource,
    fetch: Arc<dyn Fetch>,
    state: Mutex<State>,
    /// One question at a time; those who wait find its answer.
    asking: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", self.source.issuer)
    }
}

impl Keys {
    pub(crate) fn new(source: KeySource, fetch: Arc<dyn Fetch>) -> Self {
        Self { source, fetch, state: Mutex::default(), asking: tokio::sync::Mutex::default() }
    }

    pub(crate) fn issuer(&self) -> &str {
        &self.source.issuer
    }

    fn known(&self, id: Option<&str>, algorithm: Algorithm) -> Option<Arc<Key>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let usable = state.fetched.is_some_and(|fetched| fetched.elapsed() < KEEP);
        state.keys.find(id, algorithm).filter(|_| usable)
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
    pub(crate) async fn find(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<Option<Arc<Key>>, FetchError> {
        if let Some(key) = self.known(id, algorithm) {
            return Ok(Some(key));
        }
        let _turn = self.asking.lock().await;
        if let Some(key) = self.known(id, algorithm) {
            return Ok(Some(key));
        }
        if self.claim() {
            self.load().await?;
        } else if !self.has_keys() {
            return Err(FetchError::new(&self.source.issuer, "the keys could not be had a moment ago"));
        }
        Ok(self.known(id, algorithm))
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
        let url = &self.source.metadata;
        let metadata: Metadata = serde_json::from_slice(&fetch::get(&*self.fetch, url).await?)
            .map_err(|error| FetchError::new(url, format!("not OpenID metadata: {error}")))?;
        if metadata.issuer != self.source.issuer {
            return Err(FetchError::new(url, format!("says that it is the issuer {:?}", metadata.issuer)));
        }
        let place = metadata.jwks_uri.parse::<http::Uri>().ok();
        let place = place.filter(|uri| uri.scheme_str() == Some("https"));
        let authority = place.as_ref().and_then(|uri| uri.authority()).map(http::uri::Authority::as_str);
        let Some(authority) = authority else {
            return Err(FetchError::new(url, "its jwks_uri is not https"));
        };
        if self.source.keys_host.as_deref().is_some_and(|host| host != authority) {
            return Err(FetchError::new(url, format!("its jwks_uri is elsewhere, at {authority:?}")));
        }
        let body = fetch::get(&*self.fetch, &metadata.jwks_uri).await?;
        let keys = KeySet::parse(&body).map_err(|why| FetchError::new(&metadata.jwks_uri, why))?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.keys = Arc::new(keys);
        state.fetched = Some(Instant::now());
        Ok(())
    }
}
