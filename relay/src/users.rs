//! What one user has at this relay, over all of their sessions: streams, and what is promised for them.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use towline_tunnel::proto::ledger::Ledger;

use crate::limits::Limits;

/// Users who have nothing any more are looked for each time that this many more are there.
const SWEEP_EVERY: usize = 64;

/// Everybody who has a session, by principal.
#[derive(Debug)]
pub struct Users {
    max_streams: usize,
    max_buffered_bytes: u64,
    /// What all of them share.
    whole: Ledger,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    users: HashMap<String, Arc<User>>,
    sweep_at: usize,
}

/// One user.
#[derive(Debug)]
pub struct User {
    max_streams: usize,
    streams: AtomicUsize,
    ledger: Ledger,
}

impl Users {
    /// Nobody yet. What is promised to them all is promised in `whole`.
    pub fn new(limits: &Limits, whole: &Ledger) -> Self {
        Self {
            max_streams: limits.max_streams_per_user as usize,
            max_buffered_bytes: limits.max_buffered_bytes_per_user,
            whole: whole.clone(),
            known: Mutex::new(Known { users: HashMap::new(), sweep_at: SWEEP_EVERY }),
        }
    }

    /// The user with this principal.
    pub fn of(&self, principal: &str) -> Arc<User> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(user) = known.users.get(principal) {
            return Arc::clone(user);
        }
        if known.users.len() >= known.sweep_at {
            // An agent's session may still hold the ledger of a user who has gone: whoever comes back must find the same.
            known.users.retain(|_, user| Arc::strong_count(user) > 1 || user.ledger.is_used());
            let room = known.users.len() + SWEEP_EVERY;
            known.users.shrink_to(room);
            known.sweep_at = room;
        }
        let user = Arc::new(User {
            max_streams: self.max_streams,
            streams: AtomicUsize::new(0),
            ledger: Ledger::share_of(&self.whole, self.max_buffered_bytes),
        });
        known.users.insert(principal.to_owned(), Arc::clone(&user));
        user
    }
}

impl User {
    /// Whatever is promised for the user's streams, on either leg, is promised here, too.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The streams of one session, which were `before`, are `now` so many.
    pub fn count(&self, before: usize, now: usize) {
        if now >= before {
            self.streams.fetch_add(now - before, Ordering::Relaxed);
        } else {
            self.streams.fetch_sub(before - now, Ordering::Relaxed);
        }
    }

    /// Whether those that were counted are more than the user may have.
    pub fn has_too_many(&self) -> bool {
        self.streams.load(Ordering::Relaxed) > self.max_streams
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_one_however_many_sessions_and_is_forgotten_once_nothing_is_theirs() {
        let whole = Ledger::new(1 << 20);
        let users = Users::new(&Limits { max_streams_per_user: 5, ..Limits::default() }, &whole);
        let (one, two) = (users.of("alice"), users.of("alice"));
        one.count(0, 3);
        two.count(0, 2);
        assert!(!one.has_too_many());
        two.count(2, 3);
        assert!(one.has_too_many() && !users.of("bob").has_too_many());
        one.count(3, 0);
        assert!(!two.has_too_many());

        let promised = one.ledger().child(10);
        assert!(promised.reserve(10, true));
        drop((one, two));
        for other in 0..1000 {
            users.of(&other.to_string());
        }
        assert!(users.known.lock().unwrap().users.len() <= 2 * SWEEP_EVERY);
        assert_eq!(users.of("alice").ledger().promised(), 10, "an agent's session still holds it");
    }
    #[test]
    fn two_users_can_not_have_all_that_the_relay_promises() {
        let limits = Limits::default();
        let whole = Ledger::new(limits.max_buffered_bytes);
        let users = Users::new(&limits, &whole);
        let all = [users.of("alice"), users.of("bob"), users.of("carol")];
        let [alice, bob, carol] = all.each_ref().map(|user| whole.child_with(user.ledger(), u64::MAX));
        for user in [&alice, &bob] {
            while user.reserve(1 << 20, true) {}
        }
        assert_eq!(
            alice.promised(),
            limits.max_buffered_bytes_per_user,
            "who is alone has all of their limit"
        );
        assert!(carol.reserve(32 << 20, true), "{} of {}", whole.promised(), limits.max_buffered_bytes);
    }
}
