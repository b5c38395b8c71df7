//! How many sessions there may be: of everyone, of one address, of one user, of one process.
//!
//! An agent's sessions beside its first are counted apart, against the same limits: as many agents fit as without them, and each may have a
//! spare.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use towline_tunnel::{
    ids::{InstanceId, KeyHash},
    mux::MAX_LINES,
    proto::CloseReason,
    session::Refused,
};

use crate::{authenticate::Peer, limits::Limits, origin::Counts};

/// Whoever is refused for want of room should not come back at once.
const RETRY_AFTER: Duration = Duration::from_secs(10);
/// Sessions that one agent instance may have beside its lines. An agent needs one, or two at once where it wants to survive
/// the loss of either, and the successor of each while it is replaced; as many again may be dead without that the relay knows it yet.
pub const MAX_SESSIONS_PER_INSTANCE: u32 = 8;

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
    addresses: Counts,
    /// Sessions of agents beside another of the same process.
    beside: u32,
    beside_addresses: Counts,
    users: HashMap<String, u32>,
    processes: HashMap<Process, OfProcess>,
}

/// One run of a program.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Process {
    /// The key that it proved, and the principal of its token: two people with one key are two processes.
    Client(KeyHash, String),
    /// The instance that its certificate is for.
    Agent(InstanceId),
}

/// How many sessions one process has.
#[derive(Debug, Default)]
struct OfProcess {
    own: u32,
    /// How many of its own are counted apart.
    beside: u32,
    lines: u32,
}

/// One session's place; dropping it frees it.
#[derive(Debug)]
pub struct Place {
    of: Arc<PlacesInner>,
    address: IpAddr,
    /// Whose it is, once that is known, and how it is counted.
    process: Option<(Process, Kind)>,
}

/// How a session is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Own,
    /// One more of an agent's, beside its own.
    Beside,
    Line,
}

impl Process {
    fn of(peer: &Peer) -> Self {
        match peer {
            Peer::Client(client) => Self::Client(client.run_key.hash(), client.caller.principal.clone()),
            Peer::Agent(agent) => Self::Agent(agent.holder.instance),
        }
    }
}

impl Taken {
    fn enter(&mut self, process: &Process, max_per_user: u32) -> Result<(), Refused> {
        let known = self.processes.get(process);
        match process {
            Process::Client(_, user) => {
                // Lines that outlived its last session kept that one's place for the next.
                let kept = known.is_some_and(OfProcess::has_only_lines);
                if !kept && !take(&mut self.users, user.clone(), max_per_user) {
                    return Err(full("--max-sessions-per-user"));
                }
            }
            Process::Agent(_) => {
                if known.is_some_and(|known| known.own >= MAX_SESSIONS_PER_INSTANCE) {
                    return Err(full("of one agent instance"));
                }
            }
        }
        self.processes.entry(process.clone()).or_default().own += 1;
        Ok(())
    }

    /// An agent's session that entered as its process's, and stands beside another: it gives its place among all to the next.
    fn step_beside(&mut self, process: &Process, address: IpAddr, most: (u32, u32)) -> Result<Kind, Refused> {
        let Some(of) = self.processes.get_mut(process).filter(|of| of.own > of.beside + 1) else {
            return Ok(Kind::Own);
        };
        let room = match () {
            () if self.beside >= most.0 => Err(full("spare ones: --max-sessions")),
            () if !self.beside_addresses.add_within(address, most.1) => {
                Err(full("spare ones: --max-sessions-per-address"))
            }
            () => Ok(()),
        };
        if let Err(refused) = room {
            of.own -= 1;
            return Err(refused);
        }
        of.beside += 1;
        self.beside += 1;
        self.all -= 1;
        self.addresses.remove(address);
        Ok(Kind::Beside)
    }

    fn enter_line(&mut self, process: &Process) -> Result<(), Refused> {
        let Some(of) = self.processes.get_mut(process).filter(|of| of.own > 0) else {
            return Err(Refused::new(
                CloseReason::Forbidden,
                "a line is beside a session of the same process",
            ));
        };
        if of.lines >= MAX_LINES {
            return Err(full("lines of one process"));
        }
        of.lines += 1;
        Ok(())
    }

    fn leave(&mut self, process: &Process, kind: Kind) {
        let Some(of) = self.processes.get_mut(process) else { return };
        let before = of.places();
        match kind {
            Kind::Own => of.own -= 1,
            Kind::Beside => {
                of.own -= 1;
                of.beside -= 1;
            }
            Kind::Line => of.lines -= 1,
        }
        let after = of.places();
        if let Process::Client(_, user) = process
            && after < before
        {
            give_back(&mut self.users, user);
        }
        if after == 0 {
            self.processes.remove(process);
        }
    }
}

impl OfProcess {
    fn has_only_lines(&self) -> bool {
        self.own == 0 && self.lines > 0
    }

    /// What it counts as among its user's sessions. Lines need none beside a session, but never are without: otherwise a
    /// user would have any number of them by beginning one session after another and keeping each one's lines.
    fn places(&self) -> u32 {
        self.own + u32::from(self.has_only_lines())
    }
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
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.all >= self.0.max {
            return Err(full("--max-sessions"));
        }
        if !taken.addresses.add_within(address, self.0.max_per_address) {
            return Err(full("--max-sessions-per-address"));
        }
        taken.all += 1;
        Ok(Place { of: Arc::clone(&self.0), address, process: None })
    }
}

impl Place {
    /// The session is this peer's: a client's counts as its user's, too. A line counts as its process's alone, which has a session
    /// of its own that was counted, and at most [`MAX_LINES`] lines; if that session ends first, its place stays theirs. An agent's that
    /// stands beside another gives its place to others, and takes one of as many that are for such.
    ///
    /// # Errors
    /// If there are too many, or a line's process has no session.
    pub fn of_peer(&mut self, peer: &Peer) -> Result<(), Refused> {
        let process = Process::of(peer);
        let mut taken = self.of.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = if peer.is_line() {
            taken.enter_line(&process)?;
            Kind::Line
        } else {
            taken.enter(&process, self.of.max_per_user)?;
            match peer {
                Peer::Agent(agent) if !agent.beside.is_empty() => {
                    let most = (self.of.max, self.of.max_per_address);
                    taken.step_beside(&process, self.address, most)?
                }
                _ => Kind::Own,
            }
        };
        self.process = Some((process, kind));
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.of.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(self.process, Some((_, Kind::Beside))) {
            taken.beside -= 1;
            taken.beside_addresses.remove(self.address);
        } else {
            taken.all -= 1;
            taken.addresses.remove(self.address);
        }
        if let Some((process, kind)) = &self.process {
            taken.leave(process, *kind);
        }
    }
}

#[cfg(test)]
mod tests {
    use towline_tunnel::keys::SigningKey;

    use super::*;
    use crate::{
        access::Caller,
        authenticate::{AgentPeer, ClientPeer},
        certificates::Holder,
        registry::Cluster,
    };

    fn peer(user: &str, key: &SigningKey, line: bool) -> Peer {
        let caller = Caller { username: user.into(), principal: user.into(), groups: Vec::new() };
        let (run_key, expires_at) = (key.public(), std::time::SystemTime::now());
        Peer::Client(ClientPeer {
            caller,
            run_key,
            issued_at: None,
            expires_at,
            program: String::new(),
            line,
        })
    }

    fn agent(key: &SigningKey, instance: InstanceId, line: bool) -> Peer {
        let (now, public) = (std::time::SystemTime::now(), key.public());
        let cluster = Cluster {
            id: public.cluster_id(),
            name: "edge".into(),
            key: public,
            enrolled_at: now,
            enabled: true,
        };
        let (holder, certificate_ends) = (Holder { cluster: cluster.id, instance, key: public }, now);
        Peer::Agent(AgentPeer {
            cluster: Arc::new(cluster),
            holder,
            certificate_ends,
            program: String::new(),
            line,
            beside: Vec::new(),
        })
    }

    /// One that says that it stands beside another of its process's.
    fn spare(key: &SigningKey, instance: InstanceId) -> Peer {
        let Peer::Agent(agent) = agent(key, instance, false) else { unreachable!() };
        Peer::Agent(AgentPeer { beside: vec![towline_tunnel::ids::ChannelId(1)], ..agent })
    }

    fn enter(places: &Places, peer: &Peer) -> Result<Place, Refused> {
        let mut place = places.enter(IpAddr::from([192, 0, 2, 1]))?;
        place.of_peer(peer).map(|()| place)
    }

    fn refused(places: &Places, peer: &Peer) -> CloseReason {
        enter(places, peer).unwrap_err().reason
    }

    #[test]
    fn lines_count_as_their_processs_and_need_its_session() {
        let places = Places::new(&Limits { max_sessions_per_user: 2, ..Limits::default() });
        let keys = [SigningKey::generate(), SigningKey::generate()];
        let (session, line) = (peer("alice", &keys[0], false), peer("alice", &keys[0], true));
        assert_eq!(refused(&places, &line), CloseReason::Forbidden, "no session yet");
        let own = enter(&places, &session).unwrap();
        let mut lines: Vec<Place> = (0..MAX_LINES).map(|_| enter(&places, &line).unwrap()).collect();
        assert_eq!(refused(&places, &line), CloseReason::LimitReached);
        assert_eq!(
            refused(&places, &peer("alice", &keys[1], true)),
            CloseReason::Forbidden,
            "another process's"
        );
        lines.pop();
        lines.push(enter(&places, &line).unwrap());
        let another =
            enter(&places, &peer("alice", &keys[1], false)).expect("lines are no sessions of a person's");
        drop((own, lines, another));
        let taken = places.0.taken.lock().unwrap();
        assert!(taken.processes.is_empty() && taken.users.is_empty());
    }

    #[test]
    fn lines_that_outlive_their_session_keep_its_place() {
        const MOST: u32 = 3;
        let places = Places::new(&Limits { max_sessions_per_user: MOST, ..Limits::default() });
        let mut lines = Vec::new();
        let keys: Vec<SigningKey> = (0..=MOST).map(|_| SigningKey::generate()).collect();
        for key in &keys[..MOST as usize] {
            let own = enter(&places, &peer("alice", key, false)).unwrap();
            lines.push(enter(&places, &peer("alice", key, true)).unwrap());
            drop(own);
        }
        let last = keys.last().unwrap();
        assert_eq!(refused(&places, &peer("alice", last, false)), CloseReason::LimitReached);
        enter(&places, &peer("bob", last, false)).expect("another user's places");
        assert_eq!(
            refused(&places, &peer("alice", &keys[0], true)),
            CloseReason::Forbidden,
            "nothing but lines"
        );
        // Whose session was cut comes back at its own place, and once only.
        let back = enter(&places, &peer("alice", &keys[0], false)).unwrap();
        assert_eq!(refused(&places, &peer("alice", &keys[0], false)), CloseReason::LimitReached);
        drop(back);
        assert_eq!(refused(&places, &peer("alice", last, false)), CloseReason::LimitReached);
        lines.pop();
        enter(&places, &peer("alice", last, false)).expect("the last line of a process gives its place back");
        drop(lines);
        assert!(places.0.taken.lock().unwrap().users.is_empty());
    }

    #[test]
    fn a_run_key_is_no_process_without_its_principal() {
        let places = Places::new(&Limits::default());
        let key = SigningKey::generate();
        let _alice = enter(&places, &peer("alice", &key, false)).unwrap();
        assert_eq!(refused(&places, &peer("mallory", &key, true)), CloseReason::Forbidden);
    }

    #[test]
    fn an_agent_instance_has_few_sessions_and_each_instance_its_own() {
        let places = Places::new(&Limits::default());
        let key = SigningKey::generate();
        let (one, two) = (InstanceId::random(), InstanceId::random());
        let mut held: Vec<Place> = (0..MAX_SESSIONS_PER_INSTANCE)
            .map(|_| enter(&places, &agent(&key, one, false)).unwrap())
            .collect();
        let full = enter(&places, &agent(&key, one, false)).unwrap_err();
        assert!(
            full.reason == CloseReason::LimitReached && full.detail.contains("agent instance"),
            "{full:?}"
        );
        assert!(!full.delay.is_zero(), "not to come back at once");
        held.push(enter(&places, &agent(&key, one, true)).expect("lines are counted apart"));
        assert_eq!(refused(&places, &agent(&key, two, true)), CloseReason::Forbidden, "another instance");
        held.push(enter(&places, &agent(&key, two, false)).unwrap());
        held.remove(0);
        held.push(enter(&places, &agent(&key, one, false)).unwrap());
        drop(held);
        assert!(places.0.taken.lock().unwrap().processes.is_empty());
    }

    #[test]
    fn as_many_agents_fit_as_without_spares_and_each_may_have_one() {
        let limits = Limits { max_sessions: 3, max_sessions_per_address: 3, ..Limits::default() };
        let places = Places::new(&limits);
        let key = SigningKey::generate();
        let instances = [(); 4].map(|()| InstanceId::random());
        let mut held = Vec::new();
        for instance in &instances[..2] {
            held.push(enter(&places, &agent(&key, *instance, false)).unwrap());
            held.push(enter(&places, &spare(&key, *instance)).unwrap());
        }
        let own = enter(&places, &agent(&key, instances[2], false)).expect("spares took nobody's place");
        assert_eq!(refused(&places, &agent(&key, instances[3], false)), CloseReason::LimitReached);
        drop(own);
        // Saying so without another session of one's own gains nothing.
        let own = enter(&places, &spare(&key, instances[2])).unwrap();
        assert_eq!(refused(&places, &agent(&key, instances[3], false)), CloseReason::LimitReached);
        drop(own);
        // The first goes: what is left is spare no more once the next comes, which has the place.
        drop(held.remove(0));
        held.push(enter(&places, &spare(&key, instances[0])).unwrap());
        {
            let taken = places.0.taken.lock().unwrap();
            assert_eq!((taken.all, taken.beside), (2, 2));
        }
        held.push(enter(&places, &spare(&key, instances[0])).unwrap());
        let full = enter(&places, &spare(&key, instances[0])).unwrap_err();
        assert!(full.detail.contains("spare ones"), "{full:?}");
        drop(held);
        let taken = places.0.taken.lock().unwrap();
        let at = IpAddr::from([192, 0, 2, 1]);
        assert_eq!((taken.all, taken.beside, taken.processes.len()), (0, 0, 0));
        assert_eq!((taken.addresses.load(at), taken.beside_addresses.load(at)), (0, 0));
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
        assert_eq!((taken.all, taken.users.len()), (2, 0));
        assert_eq!((taken.addresses.load(at(1)), taken.addresses.load(at(2))), (0, Counts::share(1)));
    }

    #[test]
    fn an_ipv6_site_has_the_sessions_of_a_few_addresses() {
        let places = Places::new(&Limits { max_sessions_per_address: 2, ..Limits::default() });
        let network = |n: u32| format!("2001:db8:1:{n:x}::1").parse::<IpAddr>().unwrap();
        let held: Vec<Place> = (0..100).map_while(|n| places.enter(network(n)).ok()).collect();
        assert_eq!(held.len(), 8);
        assert!(places.enter(network(999)).unwrap_err().detail.contains("per-address"));
        let _other = places.enter("2001:db8:2::1".parse().unwrap()).expect("another site");
        drop(held);
        places.enter(network(0)).unwrap();
    }
}
