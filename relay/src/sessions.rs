//! Who is connected now: agents by cluster, everyone by address and user, and what the registry is told of it.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use towline_tunnel::{
    ids::{ClusterId, InstanceId, KeyHash},
    mux::MAX_LINES,
    proto::CloseReason,
    session::Refused,
};
use tracing::warn;

use crate::{
    authenticate::Peer,
    clock::Clock,
    forward::RelayConn,
    limits::Limits,
    registry::{PRESENCE_EVERY, Presence, Registry, Sighting},
    throttle::network,
};

/// Changes of presence are gathered for this long before they are written.
const GATHERED_FOR: Duration = Duration::from_secs(1);
/// Whoever is refused for want of room should not come back at once.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Nobody takes up a stream of a process that has been gone for so long.
const REMEMBERED_FOR: Duration = Duration::from_secs(600);

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

/// Every session that is open: agents by the cluster that they serve, and clients.
#[derive(Clone, Debug, Default)]
pub struct Sessions(Arc<SessionsInner>);

#[derive(Debug, Default)]
struct SessionsInner {
    open: Mutex<Open>,
    changed: Mutex<HashMap<InstanceId, Sighting>>,
    changes: Notify,
    ended: Notify,
}

#[derive(Debug, Default)]
struct Open {
    agents: HashMap<ClusterId, Vec<Arc<RelayConn>>>,
    clients: Vec<Arc<RelayConn>>,
    /// Agents' processes that are gone: when, and how many of their cluster's were connected then, they included.
    gone: HashMap<InstanceId, (Instant, usize)>,
}

impl Open {
    fn processes(&self, cluster: ClusterId) -> HashSet<InstanceId> {
        let agents = self.agents.get(&cluster).into_iter().flatten();
        agents.filter_map(|conn| Some(conn.agent()?.holder.instance)).collect()
    }
}

/// Where the process of an agent is.
#[derive(Debug)]
pub enum Process {
    /// It has a session that takes streams.
    Here(Arc<RelayConn>),
    /// It may come back.
    Away,
    /// As many as before are connected, and it is not among them: it was started anew, and what it held is gone.
    Replaced,
}

/// A session that is known; dropping it ends its streams and forgets it.
#[derive(Debug)]
pub struct SessionGuard {
    sessions: Sessions,
    conn: Arc<RelayConn>,
}

impl Sessions {
    /// Makes a session known.
    pub fn register(&self, conn: Arc<RelayConn>) -> SessionGuard {
        let mut open = self.lock();
        match conn.agent() {
            Some(agent) => open.agents.entry(agent.cluster.id).or_default().push(Arc::clone(&conn)),
            None => open.clients.push(Arc::clone(&conn)),
        }
        drop(open);
        if !conn.is_line() {
            self.note(&conn, Presence::Online);
        }
        SessionGuard { sessions: self.clone(), conn }
    }

    /// An agent session that takes new streams for this cluster; several take turns.
    pub fn agent_of(&self, cluster: ClusterId) -> Option<Arc<RelayConn>> {
        let mut open = self.lock();
        let agents = open.agents.get_mut(&cluster)?;
        let next = agents.iter().position(|conn| conn.takes_streams() && !conn.is_line())?;
        // Behind the others now: whose turn it is does not depend on what other clusters are asked for.
        let conn = agents.remove(next);
        agents.push(Arc::clone(&conn));
        Some(conn)
    }

    /// Where one process of a cluster's agent is. For a stream that comes `on_line`, on the one of its lines with the fewest streams, if
    /// it has one; otherwise on its own session.
    pub fn process(&self, cluster: ClusterId, instance: InstanceId, on_line: bool) -> Process {
        let open = self.lock();
        let takes = |conn: &&Arc<RelayConn>| {
            conn.takes_streams() && conn.agent().is_some_and(|agent| agent.holder.instance == instance)
        };
        let of_process = || open.agents.get(&cluster).into_iter().flatten().filter(takes);
        let line = || of_process().filter(|conn| conn.is_line()).min_by_key(|conn| conn.stream_count());
        // The newest of its own: an older one is on its way out.
        let own = || of_process().rev().find(|conn| !conn.is_line());
        if let Some(conn) = on_line.then(line).flatten().or_else(own) {
            return Process::Here(Arc::clone(conn));
        }
        // A process that has but lines is there, and will dial again.
        let processes = open.processes(cluster);
        match open.gone.get(&instance) {
            Some((_, before)) if !processes.contains(&instance) && processes.len() >= *before => {
                Process::Replaced
            }
            _ => Process::Away,
        }
    }

    /// Whether an agent of this cluster is connected.
    pub fn is_online(&self, cluster: ClusterId) -> bool {
        self.lock().agents.get(&cluster).is_some_and(|agents| agents.iter().any(|conn| !conn.is_line()))
    }

    /// All sessions that are open now.
    pub fn all(&self) -> Vec<Arc<RelayConn>> {
        let open = self.lock();
        open.agents.values().flatten().chain(&open.clients).cloned().collect()
    }

    /// Waits until no session of a client has streams, or all are gone.
    pub async fn quiet(&self) {
        loop {
            let ended = self.0.ended.notified();
            if self.lock().clients.iter().all(|conn| conn.stream_count() == 0) {
                return;
            }
            // Streams end without telling this place: looked at again shortly.
            tokio::select! {
                () = ended => {}
                () = sleep(Duration::from_millis(100)) => {}
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Open> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, conn: &RelayConn, presence: Presence) {
        let Some(agent) = conn.agent() else { return };
        let instance = agent.holder.instance;
        let sighting = Sighting { instance, presence, program: agent.program.clone() };
        self.0.changed.lock().unwrap_or_else(PoisonError::into_inner).insert(instance, sighting);
        self.0.changes.notify_one();
    }

    /// Tells the registry who comes and goes; never returns. Sessions don't depend on it.
    pub async fn follow(self, registry: Registry, clock: Clock) {
        loop {
            tokio::select! {
                () = self.0.changes.notified() => sleep(GATHERED_FOR).await,
                () = sleep(PRESENCE_EVERY) => {
                    for conn in self.all().iter().filter(|conn| !conn.is_line()) {
                        self.note(conn, Presence::Online);
                    }
                }
            }
            self.write_changes(&registry, &clock).await;
        }
    }

    /// Writes what changed since the last time.
    pub async fn write_changes(&self, registry: &Registry, clock: &Clock) {
        let changed = std::mem::take(&mut *self.0.changed.lock().unwrap_or_else(PoisonError::into_inner));
        if changed.is_empty() {
            return;
        }
        let sightings: Vec<Sighting> = changed.into_values().collect();
        if let Err(error) = registry.note_presence(&sightings, clock.now()).await {
            warn!(%error, "who is online was not noted");
        }
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        let conn = &self.conn;
        let mut open = self.sessions.lock();
        match conn.agent() {
            Some(agent) => {
                let cluster = agent.cluster.id;
                let before = open.processes(cluster).len();
                if let Some(agents) = open.agents.get_mut(&cluster) {
                    agents.retain(|other| !Arc::ptr_eq(other, conn));
                    if agents.is_empty() {
                        open.agents.remove(&cluster);
                    }
                }
                if !open.processes(cluster).contains(&agent.holder.instance) {
                    let now = Instant::now();
                    open.gone.retain(|_, (since, _)| now.duration_since(*since) < REMEMBERED_FOR);
                    open.gone.insert(agent.holder.instance, (now, before));
                }
            }
            None => open.clients.retain(|other| !Arc::ptr_eq(other, conn)),
        }
        let another = conn.agent().is_some_and(|agent| {
            open.agents.get(&agent.cluster.id).is_some_and(|agents| {
                agents.iter().any(|other| {
                    !other.is_line()
                        && other.agent().is_some_and(|other| other.holder.instance == agent.holder.instance)
                })
            })
        });
        drop(open);
        // A replacement that came before this one went is still there.
        if !another && !conn.is_line() {
            self.sessions.note(conn, Presence::Away);
        }
        conn.close();
        self.sessions.0.ended.notify_waiters();
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
