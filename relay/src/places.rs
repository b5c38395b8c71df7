//! How many sessions there may be: of everyone, of one address, of one user, of one process.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use towline_tunnel::{ids::KeyHash, mux::MAX_LINES, proto::CloseReason, session::Refused};

use crate::{authenticate::Peer, limits::Limits, throttle::network};

/// Whoever is refused for want of room should not come back at once.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Counts sessions against their limits.
#[derive(Clone, Debug)]
pub struct Places(Arc<PlacesInner>);

#[derive(Debug)]
struct PlacesInner {
    max: u32,
    max_per_address: u32,
    max_per_user: u32,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: u32,
    addresses: HashMap<IpAddr, u32>,
    users: HashMap<String, u32>,
    /// By the key that each process proved.
    processes: HashMap<KeyHash, OfProcess>,
}

/// How many sessions one process has.
#[derive(Debug, Default)]
struct OfProcess {
    own: u32,
    lines: u32,
}

/// One session's place; dropping it frees it.
#[derive(Debug)]
pub struct Place {
    of: Arc<PlacesInner>,
    address: IpAddr,
    user: Option<String>,
    process: Option<(KeyHash, bool)>,
}

fn take<K: Eq + Hash>(counts: &mut HashMap<K, u32>, key: K, max: u32) -> bool {
    let count = counts.entry(key).or_insert(0);
    let room = *count < max;
    *count += u32::from(room);
    room
}

fn give_back<K: Eq + Hash>(counts: &mut HashMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

fn full(flag: &str) -> Refused {
    let mut refused = Refused::new(CloseReason::LimitReached, format!("too many sessions ({flag})"));
    refused.delay = RETRY_AFTER;
    refused
}

impl Places {
    /// No session yet.
    pub fn new(limits: &Limits) -> Self {
        Self(Arc::new(PlacesInner {
            max: limits.max_sessions,
            max_per_address: limits.max_sessions_per_address,
            max_per_user: limits.max_sessions_per_user,
            taken: Mutex::default(),
        }))
    }

    /// A place for a session from this address.
    ///
    /// # Errors
    /// If there is none.
    pub fn enter(&self, address: IpAddr) -> Result<Place, Refused> {
        let address = network(address);
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.all >= self.0.max {
            return Err(full("--max-sessions"));
        }
        if !take(&mut taken.addresses, address, self.0.max_per_address) {
            return Err(full("--max-sessions-per-address"));
        }
        taken.all += 1;
        Ok(Place { of: Arc::clone(&self.0), address, user: None, process: None })
    }
}

impl Place {
    /// The session is this peer's: a client's counts as its user's, too. A line counts as its process's alone, which has a session
    /// of its own that was counted, and at most [`MAX_LINES`] lines.
    ///
    /// # Errors
    /// If there are too many, or a line's process has no session.
    pub fn of_peer(&mut self, peer: &Peer) -> Result<(), Refused> {
        let (process, user) = match peer {
            Peer::Client(client) => (client.run_key.hash(), Some(&client.caller.principal)),
            Peer::Agent(agent) => (agent.holder.key.hash(), None),
        };
        let line = peer.is_line();
        let mut taken = self.of.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if line {
            let Some(of) = taken.processes.get_mut(&process).filter(|of| of.own > 0) else {
                return Err(Refused::new(
                    CloseReason::Forbidden,
                    "a line is beside a session of the same process",
                ));
            };
            if of.lines >= MAX_LINES {
                return Err(full("lines of one process"));
            }
            of.lines += 1;
        } else {
            if let Some(user) = user {
                if !take(&mut taken.users, user.clone(), self.of.max_per_user) {
                    return Err(full("--max-sessions-per-user"));
                }
                self.user = Some(user.clone());
            }
            taken.processes.entry(process).or_default().own += 1;
        }
        self.process = Some((process, line));
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.of.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        give_back(&mut taken.addresses, &self.address);
        if let Some(user) = &self.user {
            give_back(&mut taken.users, user);
        }
        if let Some((process, line)) = self.process
            && let Some(of) = taken.processes.get_mut(&process)
        {
            *(if line { &mut of.lines } else { &mut of.own }) -= 1;
            if of.lines + of.own == 0 {
                taken.processes.remove(&process);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use towline_tunnel::keys::SigningKey;

    use super::*;
    use crate::{access::Caller, authenticate::ClientPeer};

    fn peer(user: &str, key: &SigningKey, line: bool) -> Peer {
        let caller = Caller { username: user.into(), principal: user.into(), groups: Vec::new() };
        let (run_key, expires_at) = (key.public(), std::time::SystemTime::now());
        Peer::Client(ClientPeer { caller, run_key, expires_at, program: String::new(), line })
    }

    #[test]
    fn lines_count_as_their_processs_and_need_its_session() {
        let places = Places::new(&Limits { max_sessions_per_user: 1, ..Limits::default() });
        let keys = [SigningKey::generate(), SigningKey::generate()];
        let enter = |process: usize, line| {
            let mut place = places.enter(IpAddr::from([192, 0, 2, 1]))?;
            place.of_peer(&peer("alice", &keys[process], line)).map(|()| place)
        };
        assert_eq!(enter(0, true).unwrap_err().reason, CloseReason::Forbidden, "no session yet");
        let own = enter(0, false).unwrap();
        let mut lines: Vec<Place> = (0..MAX_LINES).map(|_| enter(0, true).unwrap()).collect();
        assert_eq!(enter(0, true).unwrap_err().reason, CloseReason::LimitReached);
        assert_eq!(enter(1, true).unwrap_err().reason, CloseReason::Forbidden, "another process's");
        lines.pop();
        lines.push(enter(0, true).unwrap());
        drop(own);
        let _another = enter(1, false).expect("lines are no sessions of a person's");
        drop((lines, _another));
        assert!(places.0.taken.lock().unwrap().processes.is_empty());
    }

    #[test]
    fn sessions_are_counted_by_address_and_user_and_in_all() {
        let limits = Limits {
            max_sessions: 4,
            max_sessions_per_address: 2,
            max_sessions_per_user: 1,
            ..Limits::default()
        };
        let places = Places::new(&limits);
        let at = |n: u8| IpAddr::from([192, 0, 2, n]);
        let (one, two) = (SigningKey::generate(), SigningKey::generate());
        let mut first = places.enter(at(1)).unwrap();
        first.of_peer(&peer("alice", &one, false)).unwrap();
        let mut second = places.enter(at(1)).unwrap();
        assert!(second.of_peer(&peer("alice", &two, false)).unwrap_err().detail.contains("per-user"));
        assert!(places.enter(at(1)).unwrap_err().detail.contains("per-address"));
        let _others = [places.enter(at(2)).unwrap(), places.enter(at(3)).unwrap()];
        assert!(places.enter(at(4)).unwrap_err().detail.contains("--max-sessions)"));
        drop(first);
        second.of_peer(&peer("alice", &two, false)).unwrap();
        drop(second);
        let taken = places.0.taken.lock().unwrap();
        assert_eq!((taken.all, taken.addresses.len(), taken.users.len()), (2, 2, 0));
    }
}
