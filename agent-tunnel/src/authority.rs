//! How long what a user has opened may go on: as long as a token of theirs lives, and no longer.
//!
//! A request is judged when it begins; `exec`, `logs -f` and a watch go on for hours. Each of them hangs on an authority: what one token's
//! user may do over one run of a client, until a time. A newer token of the same user, with any request or posted for that alone
//! (`POST` to [`RENEW_PATH`](towline_tunnel::inner::RENEW_PATH)), moves the time ahead. Once it has come, what hangs on the authority ends.
//! A request that is made with a role hangs on that as well ([`Hold`]). Where the provider is asked whether the account is still good
//! (`standing`), a no ends the authority, whatever its tokens say.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use towline_identity::{Identity, Question, Verifier};
use towline_tunnel::{
    clock::Clock,
    fault::{Fault, Report},
    ids::KeyHash,
};

use crate::standing::Asking;

/// Clocks may differ by less than the minute within which everything has to end.
const SKEW: Duration = Duration::from_secs(45);
/// The clock is looked at this often: a machine that slept, or whose clock was set, is noticed.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Authorities that nothing hangs on are looked for each time that this many more are there.
const SWEEP_EVERY: usize = 64;

/// Until when a token is worth something: its end, or so long after it was issued as is allowed; and for one whose end is ours to judge,
/// [`Life::skew`] more.
///
/// # Errors
/// If that time has come, or the token does not say when it was issued and has to.
pub fn until(life: Life, max_age: Option<Duration>, now: SystemTime) -> Result<SystemTime, Report> {
    let mut until = life.expires_at;
    let mut why = "";
    if let Some(age) = max_age {
        let issued = life.issued_at.ok_or_else(|| {
            Report::new(Fault::ClusterTokenRefused, "it does not say when it was issued (--max-token-age)")
        })?;
        let end = issued.checked_add(age).unwrap_or(until);
        if end < until {
            until = end;
            why = "it was issued longer ago than the agent allows (--max-token-age)";
        }
    }
    let until = until.checked_add(life.skew).unwrap_or(until);
    if now < until { Ok(until) } else { Err(Report::new(Fault::ClusterTokenExpired, why)) }
}

/// What a token says of its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// `iat`, if there is one.
    pub issued_at: Option<SystemTime>,
    /// `exp`.
    pub expires_at: SystemTime,
    /// How far clocks may differ.
    pub skew: Duration,
}

impl Life {
    /// Of a token that the agent has verified.
    pub fn of(identity: &Identity) -> Self {
        Self { issued_at: identity.issued_at, expires_at: identity.expires_at, skew: SKEW }
    }
}

/// Everybody's authorities.
#[derive(Debug)]
pub struct Authorities {
    clock: Clock,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    authorities: HashMap<(KeyHash, String), Weak<Authority>>,
    sweep_at: usize,
}

/// What one user has over one run of a client. What is opened holds it.
#[derive(Debug)]
pub struct Authority {
    clock: Clock,
    until: watch::Sender<SystemTime>,
    /// Cancelled when the identity provider no longer stands by the user or their token.
    disowned: CancellationToken,
    /// Who asks it, where it is asked.
    asking: Mutex<Option<Asking>>,
}

impl Authorities {
    /// None yet.
    pub fn new(clock: Clock) -> Self {
        Self { clock, known: Mutex::new(Known { authorities: HashMap::new(), sweep_at: SWEEP_EVERY }) }
    }

    /// One that nobody else can move: for a token that is not judged yet.
    pub fn alone(&self, until: SystemTime) -> Arc<Authority> {
        Arc::new(Authority {
            clock: self.clock.clone(),
            until: watch::Sender::new(until),
            disowned: CancellationToken::new(),
            asking: Mutex::default(),
        })
    }

    /// The authority of whoever holds this key and is this user, if something hangs on it.
    pub fn find(&self, run_key: KeyHash, user: &str) -> Option<Arc<Authority>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.authorities.get(&(run_key, user.to_owned())).and_then(Weak::upgrade)
    }

    /// The authority of whoever holds this key and is this user by their token: lasts until then at least.
    pub fn renew(&self, run_key: KeyHash, user: &str, until: SystemTime) -> Arc<Authority> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.authorities.len() >= known.sweep_at {
            known.authorities.retain(|_, authority| authority.strong_count() > 0);
            let room = known.authorities.len() + SWEEP_EVERY;
            known.authorities.shrink_to(room);
            known.sweep_at = room;
        }
        let name = (run_key, user.to_owned());
        // What the provider has ended stays ended; a token that it stands by begins anew.
        let living = known.authorities.get(&name).and_then(Weak::upgrade);
        if let Some(authority) = living.filter(|authority| !authority.disowned.is_cancelled()) {
            authority.until.send_if_modified(|held| {
                let later = until > *held;
                *held = until.max(*held);
                later
            });
            return authority;
        }
        let authority = self.alone(until);
        known.authorities.insert(name, Arc::downgrade(&authority));
        authority
    }
}

impl Authority {
    /// Until when, as of now.
    pub fn until(&self) -> SystemTime {
        *self.until.borrow()
    }

    /// Whether the provider is being asked about this already.
    pub fn asks(&self, question: &Question) -> bool {
        let asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        asking.as_ref().is_some_and(|asking| asking.is_about(question))
    }

    /// Has the provider asked about this, the newest token's, as long as something hangs on the authority.
    pub fn keep_asking(&self, question: Question, verifier: &Arc<Verifier>) {
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        match &*asking {
            Some(asking) => asking.go_on_with(question),
            None => {
                let begun =
                    Asking::begin(question, Arc::clone(verifier), self.clock.clone(), self.disowned.clone());
                *asking = Some(begun);
            }
        }
    }

    /// Waits until it has ended: its tokens, or the provider's word.
    pub async fn ended(&self) -> Ended {
        tokio::select! {
            () = self.disowned.cancelled() => Ended::Account,
            () = self.over() => Ended::Authority,
        }
    }

    /// Waits until the last token's time is over.
    async fn over(&self) {
        let mut until = self.until.subscribe();
        loop {
            let end = *until.borrow_and_update();
            let Ok(left) = end.duration_since(self.clock.now()) else { return };
            if left.is_zero() {
                return;
            }
            tokio::select! {
                () = sleep(left.min(LOOK_EVERY)) => {}
                // Its sender is this authority's own.
                _changed = until.changed() => {}
            }
        }
    }
}

/// The role that a request is made with.
#[derive(Clone, Debug)]
pub struct RoleHold {
    /// When the first of its documents ends, if one does.
    pub until: Option<SystemTime>,
    /// Cancelled when the relay no longer vouches for them.
    pub gone: CancellationToken,
}

/// What a request hangs on.
#[derive(Clone, Debug)]
pub struct Hold {
    authority: Arc<Authority>,
    role: Option<RoleHold>,
}

/// What of a hold has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The token.
    Authority,
    /// The account or token, by its provider's word.
    Account,
    /// The role.
    Role,
}

impl Hold {
    /// On an authority, and on a role where there is one.
    pub fn new(authority: Arc<Authority>, role: Option<RoleHold>) -> Self {
        Self { authority, role }
    }

    /// The authority.
    pub fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    /// Waits until either has ended.
    pub async fn ended(&self) -> Ended {
        tokio::select! {
            ended = self.authority.ended() => ended,
            () = self.role_ended() => Ended::Role,
        }
    }

    async fn role_ended(&self) {
        let Some(role) = &self.role else { return std::future::pending().await };
        let over = async {
            let Some(until) = role.until else { return std::future::pending().await };
            // No skew is added: who signed it chose the time, and could have chosen another.
            while let Ok(left) = until.duration_since(self.authority.clock.now())
                && !left.is_zero()
            {
                sleep(left.min(LOOK_EVERY)).await;
            }
        };
        tokio::select! {
            () = over => {}
            () = role.gone.cancelled() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::time::timeout;
    use towline_tunnel::keys::SigningKey;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn life(issued: Option<u64>, expires: u64) -> Life {
        Life { issued_at: issued.map(at), expires_at: at(expires), skew: SKEW }
    }

    #[test]
    fn a_token_lasts_to_its_end_or_as_long_as_is_allowed_and_never_a_minute_longer() {
        let hour = Some(Duration::from_secs(3600));
        assert_eq!(until(life(None, 1000), None, at(10)).unwrap(), at(1045));
        assert_eq!(until(life(Some(0), 9000), hour, at(10)).unwrap(), at(3645));
        assert_eq!(until(life(Some(0), 1000), hour, at(10)).unwrap(), at(1045));
        for (life, max_age, now) in [
            (life(None, 1000), None, 1045),
            (life(Some(0), 1000), hour, 1045),
            (life(Some(0), 90_000), hour, 3645),
            (Life { skew: Duration::ZERO, ..life(Some(0), 90_000) }, hour, 3600),
        ] {
            let report = until(life, max_age, at(now)).unwrap_err();
            assert_eq!(report.fault, Fault::ClusterTokenExpired);
            until(life, max_age, at(now - 1)).unwrap();
        }
        let silent = until(life(None, 1000), hour, at(10)).unwrap_err();
        assert_eq!(silent.fault, Fault::ClusterTokenRefused);
        assert!(silent.to_string().contains("--max-token-age"), "{silent}");
    }

    /// Wall-clock time that goes with tokio's, which the test stops, and can be moved by itself.
    fn clock() -> (Clock, Arc<AtomicU64>) {
        let (begun, moved) = (tokio::time::Instant::now(), Arc::new(AtomicU64::new(0)));
        let by = Arc::clone(&moved);
        (Clock::new(move || at(by.load(Ordering::Relaxed)) + begun.elapsed()), moved)
    }

    #[tokio::test(start_paused = true)]
    async fn what_hangs_on_it_ends_with_the_last_token_and_at_that_time() {
        let (clock, _) = clock();
        let authorities = Authorities::new(clock.clone());
        let key = SigningKey::generate().public().hash();
        let authority = authorities.renew(key, "alice", at(100));
        let renewed = authorities.renew(key, "alice", at(300));
        assert!(Arc::ptr_eq(&authority, &renewed));
        authorities.renew(key, "alice", at(200));
        let others = authorities.renew(key, "bob", at(50));
        assert_eq!((authority.until(), others.until()), (at(300), at(50)));
        others.ended().await;
        assert_eq!(clock.now(), at(50));
        authority.ended().await;
        assert_eq!(clock.now(), at(300));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_waits_hears_of_a_newer_token_and_of_a_clock_that_was_set() {
        let (clock, moved) = clock();
        let authorities = Authorities::new(clock.clone());
        let key = SigningKey::generate().public().hash();
        let authority = authorities.renew(key, "alice", at(100));
        let waits = tokio::spawn({
            let authority = Arc::clone(&authority);
            async move { authority.ended().await }
        });
        sleep(Duration::from_secs(99)).await;
        authorities.renew(key, "alice", at(1000));
        sleep(Duration::from_secs(300)).await;
        assert!(!waits.is_finished());
        moved.store(700, Ordering::Relaxed);
        timeout(Duration::from_secs(6), waits).await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_made_with_a_role_ends_with_whichever_is_over_first() {
        let (clock, moved) = clock();
        let authorities = Authorities::new(clock.clone());
        let authority = authorities.renew(SigningKey::generate().public().hash(), "alice", at(1000));
        let gone = CancellationToken::new();
        let hold = |until: Option<u64>| {
            Hold::new(Arc::clone(&authority), Some(RoleHold { until: until.map(at), gone: gone.clone() }))
        };
        assert_eq!(hold(Some(100)).ended().await, Ended::Role);
        assert_eq!(clock.now(), at(100));
        let waits = tokio::spawn({
            let hold = hold(Some(900));
            async move { hold.ended().await }
        });
        tokio::task::yield_now().await;
        moved.store(850, Ordering::Relaxed);
        assert_eq!(timeout(Duration::from_secs(6), waits).await.unwrap().unwrap(), Ended::Role);
        moved.store(0, Ordering::Relaxed);
        assert_eq!(hold(Some(2000)).ended().await, Ended::Authority);
        assert_eq!(clock.now(), at(1000));
        moved.store(0, Ordering::Relaxed);
        gone.cancel();
        let lasting = authorities.renew(SigningKey::generate().public().hash(), "bob", at(9000));
        assert_eq!(Hold::new(lasting, Some(RoleHold { until: None, gone })).ended().await, Ended::Role);
    }

    #[tokio::test]
    async fn authorities_that_nothing_hangs_on_are_forgotten() {
        let authorities = Authorities::new(Clock::system());
        let held = authorities.renew(SigningKey::generate().public().hash(), "held", at(100));
        for n in 0..1000_u32 {
            let key = SigningKey::generate().public().hash();
            drop(authorities.renew(key, &n.to_string(), at(100)));
        }
        assert!(authorities.known.lock().unwrap().authorities.len() <= 2 * SWEEP_EVERY);
        assert_eq!(held.until(), at(100));
    }
}
