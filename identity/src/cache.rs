//! Tokens that were verified, so that a burst of requests costs one signature.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use aws_lc_rs::digest::{SHA256, digest};

use crate::Accepted;

/// Tokens kept; a bound, since callers choose how many there are.
const CAPACITY: usize = 4096;

#[derive(Debug)]
struct Entry {
    accepted: Accepted,
    until: SystemTime,
}

#[derive(Debug, Default)]
struct Kept {
    entries: HashMap<TokenHash, Entry>,
    generation: u64,
}

/// What is kept of a token is its hash.
#[derive(Debug, Default)]
pub(crate) struct Verified(Mutex<Kept>);

pub(crate) type TokenHash = [u8; 32];

pub(crate) fn hash(token: &str) -> TokenHash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    hash
}

impl Verified {
    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn find(&self, token: &TokenHash, now: SystemTime) -> Option<Accepted> {
        self.kept().entries.get(token).filter(|entry| now < entry.until).map(|entry| entry.accepted.clone())
    }

    /// Taken before a token is judged: by which keys.
    pub(crate) fn generation(&self) -> u64 {
        self.kept().generation
    }

    /// Keeps a verdict, unless keys changed while it was found.
    pub(crate) fn keep(
        &self,
        token: TokenHash,
        accepted: Accepted,
        until: SystemTime,
        (generation, now): (u64, SystemTime),
    ) {
        let mut kept = self.kept();
        if kept.generation != generation {
            return;
        }
        if kept.entries.len() >= CAPACITY {
            kept.entries.retain(|_, entry| now < entry.until);
        }
        if kept.entries.len() >= CAPACITY {
            kept.entries.clear();
        }
        kept.entries.insert(token, Entry { accepted, until });
    }

    /// Keys changed: what the old ones said no longer counts.
    pub(crate) fn clear(&self) {
        let mut kept = self.kept();
        kept.entries.clear();
        kept.generation += 1;
    }
}
