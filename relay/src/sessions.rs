//! Who is connected now, and what the registry is told of it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use towline_tunnel::{
    clock::Clock,
    ids::{ChannelId, ClusterId, InstanceId},
};
use tracing::warn;

use crate::{
    forward::RelayConn,
    registry::{PRESENCE_EVERY, Presence, Registry, Sighting},
};

/// Changes of presence are gathered for this long before they are written.
const GATHERED_FOR: Duration = Duration::from_secs(1);
/// Nobody takes up a stream of a process that has been gone for so long.
const REMEMBERED_FOR: Duration = Duration::from_secs(600);
/// A session that a stranger had beside another of its instance is looked at for so long after its end: as long as the other may take to
/// show that it lives.
const SUSPECTED_FOR: Duration = Duration::from_secs(30);
/// So many sessions of an instance on which nobody said anything may end in a row beside one that does not know them: an agent that never
/// learned that its session had begun makes one, and the next one by and by.
const SILENT_ENDS: u32 = 3;
/// Between the first of them and the last.
const SILENT_WITHIN: Duration = Duration::from_secs(120);
/// An instance that was refused one session more is looked at for so long: whoever is refused comes back every 10 s.
const CROWDED_FOR: Duration = Duration::from_secs(60);

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
    /// The same sessions by their channels.
    by_channel: HashMap<ChannelId, Arc<RelayConn>>,
    clients: Vec<Arc<RelayConn>>,
    /// Agents' processes that are gone: when, and how many of their cluster's were connected then, they included.
    gone: HashMap<InstanceId, (Instant, usize)>,
    /// Sessions that ended while one stood that did not know them, one of an instance, and when.
    suspects: HashMap<InstanceId, (Instant, Arc<RelayConn>)>,
    /// How many of such ended without a word, since when.
    silent: HashMap<InstanceId, (Instant, u32)>,
    /// Instances that were refused one session more than they may have, and when.
    crowded: HashMap<InstanceId, Instant>,
}

impl Open {
    /// An agent's session has ended beside an older one of its instance that did not say that it is of its process: for all that is known,
    /// it was another's, where somebody was at its other end, or where one after the other ended so.
    fn suspect(&mut self, cluster: ClusterId, instance: InstanceId, conn: &Arc<RelayConn>) {
        let older = |other: &&Arc<RelayConn>| {
            let same = other.agent().is_some_and(|agent| agent.holder.instance == instance);
            same && !other.is_line() && other.takes_streams() && other.since() < conn.since()
        };
        let mut older = self.agents.get(&cluster).into_iter().flatten().filter(older);
        if conn.is_line() || older.all(|other| other.is_kin(conn)) {
            return;
        }
        if conn.has_spoken() || self.is_one_of_many(instance) {
            self.suspects.entry(instance).or_insert_with(|| (Instant::now(), Arc::clone(conn)));
        }
    }

    /// One more of an instance's sessions has ended without a word.
    fn is_one_of_many(&mut self, instance: InstanceId) -> bool {
        self.silent.retain(|_, (since, _)| since.elapsed() < SILENT_WITHIN);
        let (_, count) = self.silent.entry(instance).or_insert_with(|| (Instant::now(), 0));
        *count += 1;
        *count >= SILENT_ENDS
    }

    /// Whether new streams may begin on one of a cluster's sessions now: it takes some, and is neither a line nor a spare beside one
    /// that does. It costs no more than the few others that a session may name: a cluster has thousands, and everybody waits for it.
    fn carries(by_channel: &HashMap<ChannelId, Arc<RelayConn>>, conn: &RelayConn) -> bool {
        let takes = |conn: &RelayConn| conn.takes_streams() && !conn.is_line();
        let mut named = conn.agent().into_iter().flat_map(|agent| &agent.beside);
        takes(conn)
            && !named.any(|channel| {
                by_channel.get(channel).is_some_and(|other| takes(other) && conn.is_beside(other))
            })
    }

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
            Some(agent) => {
                open.agents.entry(agent.cluster.id).or_default().push(Arc::clone(&conn));
                open.by_channel.insert(conn.channel(), Arc::clone(&conn));
            }
            None => open.clients.push(Arc::clone(&conn)),
        }
        drop(open);
        if !conn.is_line() {
            self.note(&conn, Presence::Online);
        }
        SessionGuard { sessions: self.clone(), conn }
    }

    /// An agent session that takes new streams for this cluster; several instances take turns. A spare one gets none while the one
    /// that it stands beside takes some.
    pub fn agent_of(&self, cluster: ClusterId) -> Option<Arc<RelayConn>> {
        let mut open = self.lock();
        let Open { agents, by_channel, .. } = &mut *open;
        let agents = agents.get_mut(&cluster)?;
        let next = agents.iter().position(|conn| Open::carries(by_channel, conn))?;
        // Behind the others now, with those that were passed over: whose turn it is does not depend on what other clusters are asked for.
        agents.rotate_left(next + 1);
        agents.last().cloned()
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
        // That on which its new streams begin, and of several the newest: an older one is on its way out.
        let own = || {
            let own = of_process().filter(|conn| !conn.is_line());
            own.max_by_key(|conn| (Open::carries(&open.by_channel, conn), conn.since()))
        };
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

    /// The session with this channel, if it is known to be of the same process as `of`.
    pub fn kin(&self, of: &RelayConn, channel: ChannelId) -> Option<Arc<RelayConn>> {
        self.lock().by_channel.get(&channel).filter(|conn| conn.is_kin(of)).cloned()
    }

    /// Whether an agent of this cluster is connected.
    pub fn is_online(&self, cluster: ClusterId) -> bool {
        self.lock().agents.get(&cluster).is_some_and(|agents| agents.iter().any(|conn| !conn.is_line()))
    }

    /// Since when an agent of this cluster has been connected, as long as its sessions here know; none where none is.
    pub fn online_since(&self, cluster: ClusterId) -> Option<SystemTime> {
        let open = self.lock();
        let agents = open.agents.get(&cluster)?;
        agents.iter().filter(|conn| !conn.is_line()).map(|conn| conn.began_at()).min()
    }

    /// All sessions that are open now.
    pub fn all(&self) -> Vec<Arc<RelayConn>> {
        let open = self.lock();
        open.agents.values().flatten().chain(&open.clients).cloned().collect()
    }

    /// Sessions that ended a moment ago beside one that did not know them.
    pub fn suspects(&self) -> Vec<Arc<RelayConn>> {
        let mut open = self.lock();
        open.suspects.retain(|_, (ended, _)| ended.elapsed() < SUSPECTED_FOR);
        open.suspects.values().map(|(_, conn)| Arc::clone(conn)).collect()
    }

    /// Notes that an instance was refused a session because it has as many as it may.
    pub fn note_crowded(&self, instance: InstanceId) {
        self.lock().crowded.insert(instance, Instant::now());
    }

    /// Instances of which that was so a moment ago.
    pub fn crowded(&self) -> HashSet<InstanceId> {
        let mut open = self.lock();
        open.crowded.retain(|_, refused| refused.elapsed() < CROWDED_FOR);
        open.crowded.keys().copied().collect()
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
                open.by_channel.remove(&conn.channel());
                let cluster = agent.cluster.id;
                let before = open.processes(cluster).len();
                if let Some(agents) = open.agents.get_mut(&cluster) {
                    agents.retain(|other| !Arc::ptr_eq(other, conn));
                    if agents.is_empty() {
                        open.agents.remove(&cluster);
                    }
                }
                open.suspect(cluster, agent.holder.instance, conn);
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
