//! How many streams each user holds, so that one can't take them all.
//!
//! A user is who a relay's ticket names, whatever session or line the stream came by. A relay can name anybody: what another one says of the
//! same user counts apart. A stream counts from its ticket on until it is over, also while it waits for its client.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use towline_tunnel::ids::KeyHash;

/// The hash of a relay's ticket key, and whom it names.
type User = (KeyHash, Arc<str>);

/// The streams of each user who has any.
#[derive(Debug)]
pub(super) struct Users {
    limit: u32,
    streams: Mutex<HashMap<User, u32>>,
}

/// One stream of a user's. Dropping it gives its place back.
#[derive(Debug)]
pub(super) struct Held {
    users: Arc<Users>,
    user: User,
}

impl Users {
    /// Each may hold so many.
    pub(super) fn new(limit: u32) -> Arc<Self> {
        Arc::new(Self { limit, streams: Mutex::default() })
    }

    fn streams(&self) -> MutexGuard<'_, HashMap<User, u32>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more stream of this user's, if there is one.
    pub(super) fn hold(self: &Arc<Self>, tickets: KeyHash, principal: &str) -> Option<Held> {
        let mut streams = self.streams();
        let user: User = (tickets, Arc::from(principal));
        let user = match streams.get_key_value(&user) {
            Some((_, count)) if *count >= self.limit => return None,
            Some((user, _)) => user.clone(),
            None => user,
        };
        *streams.entry(user.clone()).or_insert(0) += 1;
        Some(Held { users: Arc::clone(self), user })
    }
}

impl Held {
    /// Whose it is.
    pub(super) fn user(&self) -> Arc<str> {
        Arc::clone(&self.user.1)
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
        let [relay, other] = [KeyHash::of_spki(b"relay"), KeyHash::of_spki(b"other")];
        let first = users.hold(relay, "alice").unwrap();
        let second = users.hold(relay, "alice").unwrap();
        assert!(users.hold(relay, "alice").is_none());
        assert!(users.hold(relay, "bob").is_some());
        assert!(users.hold(other, "alice").is_some(), "one relay can't use up what another one's users have");
        drop(first);
        assert!(users.hold(relay, "alice").is_some());
        drop(second);
        assert!(users.streams().is_empty());
    }
}
