//! One connection at the relay, and how its streams go on over another: table entries, no task and no channel each.
//!
//! A frame is taken under its own connection's lock, which is released before the other connection's is taken: never
//! both at once, so no order of locks is needed. All frames of one stream and direction are carried by one reader,
//! so they stay in order.

mod endings;
mod frames;
mod kin;

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use towline_tunnel::{
    ids::{ChannelId, ClusterId, StreamKey},
    proto::{
        CloseReason, OpenRequest, ResumeRequest,
        frame::StreamId,
        leg::{Leg, LegConfig},
        link::{DEAD_AFTER, PING_AFTER},
    },
    role::DocumentId,
};

use kin::Kin;

use crate::{
    audit::Account,
    authenticate::{AgentPeer, ClientPeer, Peer},
    dial::Switchboard,
    metrics::Metrics,
    questions::Question,
    users::User,
};

/// Where a stream goes on.
#[derive(Clone, Debug)]
pub struct Route {
    /// The other connection.
    pub conn: Arc<RelayConn>,
    /// The stream's id there.
    pub stream: StreamId,
    /// The stream's name, the same at every hop: logs have it.
    pub key: StreamKey,
    /// The role documents that went with it to an agent.
    pub documents: Option<Arc<[DocumentId]>>,
}

/// What a client wants of an agent.
#[derive(Debug)]
pub enum Wanted {
    /// A new stream.
    Open(OpenRequest),
    /// One that it had before.
    Resume(ResumeRequest),
}

impl Wanted {
    /// The stream's name.
    pub fn key(&self) -> StreamKey {
        match self {
            Self::Open(request) => request.key,
            Self::Resume(request) => request.key,
        }
    }

    /// The cluster it leads to.
    pub fn cluster(&self) -> ClusterId {
        match self {
            Self::Open(request) => request.cluster,
            Self::Resume(request) => request.cluster,
        }
    }
}

/// Where a session comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Its id.
    pub channel: ChannelId,
    /// The other end's address and port.
    pub from: SocketAddr,
}

/// Whose the streams of a client's connection are.
#[derive(Debug)]
pub struct Owner {
    /// The user, on all of their sessions.
    pub user: Arc<User>,
    /// What this session opens.
    pub account: Account,
}

/// One authenticated connection of a client or an agent.
pub struct RelayConn {
    me: Weak<RelayConn>,
    /// None at the relay's own end of ways to identity providers.
    peer: Option<Peer>,
    /// Whose its streams are, if it is a client's.
    user: Option<Arc<User>>,
    arrival: Arrival,
    /// When it was made.
    began: (SystemTime, Instant),
    state: Mutex<State>,
    output: Notify,
    stop: CancellationToken,
    going: AtomicBool,
    answering: AtomicBool,
    switchboard: Arc<Switchboard>,
    questions: mpsc::Sender<Question>,
    open_timeout: Duration,
    kin: Kin,
}

struct State {
    leg: Leg<Route>,
    closed: bool,
    /// Streams whose agent has not answered, and when they were opened: in that order, since a client's ids rise.
    opening: BTreeMap<StreamId, Instant>,
    /// As last told to the metrics.
    counted: usize,
    /// For the audit, if it is a client's.
    account: Option<Account>,
}

impl fmt::Debug for RelayConn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RelayConn({})", self.channel())
    }
}

impl RelayConn {
    /// A connection whose peer was authenticated, and whose owner is known if it is a client; questions that need more than memory
    /// come out of `questions`. Without a peer the other end is the relay's own, which opens nothing and asks nothing.
    pub fn new(
        peer: Option<Peer>,
        owner: Option<Owner>,
        arrival: Arrival,
        config: LegConfig,
        switchboard: Arc<Switchboard>,
        open_timeout: Duration,
        questions: mpsc::Sender<Question>,
    ) -> Arc<Self> {
        let began = (switchboard.now(), tokio::time::Instant::now().into_std());
        let leg = Leg::new(config, began.1);
        let (user, account) = owner.map(|owner| (owner.user, owner.account)).unzip();
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            peer,
            user,
            arrival,
            began,
            state: Mutex::new(State { leg, closed: false, opening: BTreeMap::new(), counted: 0, account }),
            output: Notify::new(),
            stop: CancellationToken::new(),
            going: AtomicBool::new(false),
            answering: AtomicBool::new(false),
            switchboard,
            questions,
            open_timeout,
            kin: Kin::default(),
        })
    }

    /// The relay's half of a connection with an end of its own.
    pub fn to_own_end(config: LegConfig, switchboard: Arc<Switchboard>, open_timeout: Duration) -> Arc<Self> {
        let arrival =
            Arrival { channel: ChannelId::random(), from: (std::net::Ipv4Addr::UNSPECIFIED, 0).into() };
        let (nobody, _) = mpsc::channel(1);
        Self::new(None, None, arrival, config, switchboard, open_timeout, nobody)
    }

    /// The channel's id, as all hops log it.
    pub fn channel(&self) -> ChannelId {
        self.arrival.channel
    }

    /// Where the other end is.
    pub fn from(&self) -> SocketAddr {
        self.arrival.from
    }

    /// When the session began, by the relay's clock.
    pub fn began_at(&self) -> SystemTime {
        self.began.0
    }

    /// When the session began, by the machine's.
    pub fn since(&self) -> Instant {
        self.began.1
    }

    /// When it began, and when bytes came last: a peer that lives answers PING.
    pub fn signs_of_life(&self) -> (Instant, Instant) {
        (self.began.1, self.lock().leg.last_inbound())
    }

    /// Whether anything came since it began.
    pub fn has_spoken(&self) -> bool {
        let (began, heard) = self.signs_of_life();
        heard > began
    }

    /// The agent at the other end, if it is one.
    pub fn agent(&self) -> Option<&AgentPeer> {
        match self.peer.as_ref()? {
            Peer::Agent(agent) => Some(agent),
            Peer::Client(_) => None,
        }
    }

    /// The client at the other end, if it is one.
    pub fn client(&self) -> Option<&ClientPeer> {
        match self.peer.as_ref()? {
            Peer::Client(client) => Some(client),
            Peer::Agent(_) => None,
        }
    }

    /// Whose streams those of a client are.
    pub fn user(&self) -> Option<&User> {
        self.user.as_deref()
    }

    /// Whether it is a line beside its process's session: it takes up streams, and none begins on it.
    pub fn is_line(&self) -> bool {
        self.peer.as_ref().is_some_and(Peer::is_line)
    }

    /// Whether a person's question is being answered on it: what that does may be the end of this very session, and is told first.
    pub fn is_answering(&self) -> bool {
        self.answering.load(Ordering::Acquire)
    }

    /// An answer is being found, or is on its way.
    pub fn set_answering(&self, answering: bool) {
        self.answering.store(answering, Ordering::Release);
    }

    /// Whether new streams may be opened on it.
    pub fn takes_streams(&self) -> bool {
        !self.going.load(Ordering::Relaxed)
    }

    /// Its streams to the cluster's agents, or to all.
    pub fn streams_to(&self, cluster: Option<ClusterId>) -> u32 {
        let leads = |route: &Route| {
            cluster.is_none_or(|id| route.conn.agent().is_some_and(|agent| agent.cluster.id == id))
        };
        let count = self.lock().leg.routes().filter(|(_, route)| leads(route)).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Streams that are open or not yet forgotten.
    pub fn stream_count(&self) -> usize {
        self.lock().leg.stream_count()
    }

    /// Cancelled when the connection shall end.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Says that no new streams are taken here; those that are open go on.
    pub fn go_away(&self, reason: CloseReason, delay: Duration, detail: &str) {
        self.going.store(true, Ordering::Relaxed);
        self.lock().leg.go_away(reason, delay, detail);
        self.output.notify_one();
    }

    /// The peer asks for a sign of life itself, after so long: this side does only where that did not come.
    fn keep_silent(&self, silence: Duration) {
        let silence = if silence <= PING_AFTER {
            PING_AFTER
        } else {
            // By chance it is up to a quarter less.
            (silence + PING_AFTER + DEAD_AFTER) * 4 / 3
        };
        self.lock().leg.keep_silent(silence);
        self.output.notify_one();
    }

    /// Asks the peer for a sign of life now: without one it is dead 5 s later.
    pub fn check(&self) {
        self.lock().leg.check(tokio::time::Instant::now().into_std());
        self.output.notify_one();
    }

    /// Queues a CONTROL message; false where too many wait.
    pub fn control(&self, payload: Bytes) -> bool {
        let queued = self.lock().leg.control(payload);
        self.output.notify_one();
        queued
    }

    /// Opens a stream on this connection, whose other half is `to`.
    ///
    /// # Errors
    /// If it takes none.
    pub fn open(&self, request: OpenRequest, to: Route) -> Result<StreamId, CloseReason> {
        let mut state = self.lock();
        if state.closed {
            return Err(CloseReason::AgentOffline);
        }
        let user = to.conn.user.clone();
        let stream = state.leg.open_for(user.as_deref().map(User::ledger), request, to);
        drop(state);
        self.output.notify_one();
        stream
    }

    /// Asks the agent at the other end to take a stream up, whose other half is `to`.
    ///
    /// # Errors
    /// If it takes none.
    pub fn resume(&self, request: ResumeRequest, to: Route) -> Result<StreamId, CloseReason> {
        let mut state = self.lock();
        if state.closed {
            return Err(CloseReason::AgentOffline);
        }
        let user = to.conn.user.clone();
        let stream = state.leg.resume_for(user.as_deref().map(User::ledger), request, to);
        drop(state);
        self.output.notify_one();
        stream
    }

    /// Hands on what the audit has not heard yet.
    pub fn note_account(&self) {
        if let Some(account) = &mut self.lock().account {
            account.note();
        }
    }

    /// The session has ended: the audit is told how.
    pub fn end_account(&self, how: &str) {
        if let Some(account) = &mut self.lock().account {
            account.end(how);
        }
    }

    /// The connection is gone: ends its streams on the other connections. Done by its session's guard.
    pub(crate) fn close(&self) {
        self.going.store(true, Ordering::Relaxed);
        let mut state = self.lock();
        state.closed = true;
        state.opening.clear();
        let routes = state.leg.close();
        self.count_streams(&mut state);
        drop(state);
        // Where its task was cut short, nothing more is known.
        self.end_account("it was cut short");
        for route in routes {
            route.conn.detach(route.stream);
        }
        self.stop.cancel();
    }

    /// The other half of a stream is gone: this one's peer may take it up again.
    fn detach(&self, stream: StreamId) {
        let mut state = self.lock();
        state.opening.remove(&stream);
        state.leg.detach(stream);
        drop(state);
        self.output.notify_one();
    }

    fn reset(&self, stream: StreamId, reason: CloseReason, detail: &str) {
        let mut state = self.lock();
        state.opening.remove(&stream);
        state.leg.reset(stream, reason, detail);
        drop(state);
        self.output.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it leads to the relay's own end.
    fn is_own(&self) -> bool {
        self.peer.is_none()
    }

    fn metrics(&self) -> &Metrics {
        self.switchboard.metrics()
    }

    /// A stream is counted once: on its client's connection.
    fn count_streams(&self, state: &mut State) {
        let now = state.leg.stream_count();
        if let Some(user) = &self.user
            && now != state.counted
        {
            user.count(state.counted, now);
            let change = i64::try_from(now).unwrap_or(0) - i64::try_from(state.counted).unwrap_or(0);
            self.metrics().streams.inc_by(change);
            state.counted = now;
        }
    }
}

#[cfg(test)]
mod tests;
