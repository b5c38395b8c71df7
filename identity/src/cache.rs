//! Tokens that were verified, so that a burst of requests costs one signature.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use aws_lc_rs::digest::{SHA256, digest};

use crate::Identity;

/// Tokens kept; a bound, since callers choose how many there are.
const CAPACITY: usize = 4096;

/// What is kept of a token is its hash.
#[derive(Debug, Default)]
pub(crate) struct Verified(Mutex<HashMap<[u8; 32], Identity>>);

pub(crate) type TokenHash = [u8; 32];

pub(crate) fn hash(token: &str) -> TokenHash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    hash
}

impl Verified {
    pub(crate) fn find(&self, token: &TokenHash, now: SystemTime) -> Option<Identity> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(token).filter(|identity| now < identity.expires_at).cloned()
    }

    pub(crate) fn keep(&self, token: TokenHash, identity: Identity, now: SystemTime) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= CAPACITY {
            kept.retain(|_, identity| now < identity.expires_at);
        }
        if kept.len() >= CAPACITY {
            kept.clear();
        }
        kept.insert(token, identity);
    }

    /// The keys changed: what the old ones said no longer counts.
    pub(crate) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
