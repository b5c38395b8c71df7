//! How many streams each user holds, so that one can't take them all.
//!
//! A user is who the relay's ticket names, whatever session, line or relay the stream came by. A stream counts from its ticket on until it
//! is over, also while it waits for its client.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The streams of each user who has any.
#[derive(Debug)]
pub(super) struct Users {
    limit: u32,
    streams: Mutex<HashMap<Arc<str>, u32>>,
}

/// One stream of a user's. Dropping it gives its place back.
#[derive(Debug)]
pub(super) struct Held {
    users: Arc<Users>,
    user: Arc<str>,
}

impl Users {
    /// Each may hold so many.
    pub(super) fn new(limit: u32) -> Arc<Self> {
        Arc::new(Self { limit, streams: Mutex::default() })
    }

    fn streams(&self) -> MutexGuard<'_, HashMap<Arc<str>, u32>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more stream of this user's, if there is one.
    pub(super) fn hold(self: &Arc<Self>, principal: &str) -> Option<Held> {
        let mut streams = self.streams();
        let user = match streams.get_key_value(principal) {
            Some((_, count)) if *count >= self.limit => return None,
            Some((user, _)) => Arc::clone(user),
            None => Arc::from(principal),
        };
        *streams.entry(Arc::clone(&user)).or_insert(0) += 1;
        Some(Held { users: Arc::clone(self), user })
    }
}

impl Held {
    /// Whose it is.
    pub(super) fn user(&self) -> Arc<str> {
        Arc::clone(&self.user)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut streams = self.users.streams();
        if let Some(count) = streams.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                streams.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_that_is_given_back_is_there_for_the_next_and_nobody_is_remembered() {
        let users = Users::new(2);
        let first = users.hold("alice").unwrap();
        let second = users.hold("alice").unwrap();
        assert!(users.hold("alice").is_none());
        assert!(users.hold("bob").is_some());
        drop(first);
        assert!(users.hold("alice").is_some());
        drop(second);
        assert!(users.streams().is_empty());
    }
}
