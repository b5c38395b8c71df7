//! One connection at the relay, and how its streams go on over another: table entries, no task and no channel each.
//!
//! A frame is taken under its own connection's lock, which is released before the other connection's is taken: never
//! both at once, so no order of locks is needed. All frames of one stream and direction are carried by one reader,
//! so they stay in order.

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

use bytes::{Bytes, BytesMut};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use towline_tunnel::{
    ids::{ChannelId, ClusterId, StreamKey},
    mux::Machine,
    proto::{
        CloseReason, OpenRequest, ResumeRequest,
        frame::{self, StreamId},
        leg::{Leg, LegConfig, LegEvent, Progress},
        link::Violation,
    },
    role::DocumentId,
};
use tracing::{debug, info};

use kin::Kin;

use crate::{
    audit::Account,
    authenticate::{AgentPeer, ClientPeer, Peer},
    dial::Switchboard,
    metrics::{Metrics, Stage},
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
    /// come out of `questions`.
    pub fn new(
        peer: Peer,
        owner: Option<Owner>,
        arrival: Arrival,
        config: LegConfig,
        switchboard: Arc<Switchboard>,
        open_timeout: Duration,
        questions: mpsc::Sender<Question>,
    ) -> Arc<Self> {
        Self::of(Some(peer), owner, arrival, config, switchboard, open_timeout, questions)
    }

    /// The relay's half of a connection with an end of its own, which opens nothing and asks nothing.
    pub fn to_own_end(config: LegConfig, switchboard: Arc<Switchboard>, open_timeout: Duration) -> Arc<Self> {
        let arrival =
            Arrival { channel: ChannelId::random(), from: (std::net::Ipv4Addr::UNSPECIFIED, 0).into() };
        let (nobody, _) = mpsc::channel(1);
        Self::of(None, None, arrival, config, switchboard, open_timeout, nobody)
    }

    fn of(
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

    /// Ends those streams of a client that it may no longer have open, each for the reason that `why` gives.
    pub fn end_streams(&self, why: impl Fn(ClusterId) -> Option<(CloseReason, &'static str)>) {
        let mut ended = Vec::new();
        let mut state = self.lock();
        for (stream, route) in state.leg.routes() {
            if let Some(why) = route.conn.agent().and_then(|agent| why(agent.cluster.id)) {
                ended.push((stream, route.clone(), why));
            }
        }
        if ended.is_empty() {
            return;
        }
        for (stream, _, (reason, detail)) in &ended {
            state.opening.remove(stream);
            state.leg.reset(*stream, *reason, detail);
        }
        drop(state);
        self.output.notify_one();
        for (_, route, (reason, detail)) in ended {
            info!(channel = %self.channel(), stream = %route.key, reason = reason.text(), detail, "a stream was ended");
            route.conn.reset(route.stream, reason, "");
        }
    }

    /// Ends those streams of a client whose role documents no longer stand: their agents hold them to be there.
    pub fn end_streams_without(&self, stand: impl Fn(&[DocumentId]) -> bool) {
        let gone = |route: &Route| route.documents.as_deref().is_some_and(|documents| !stand(documents));
        let mut state = self.lock();
        let ended: Vec<(StreamId, Route)> = state
            .leg
            .routes()
            .filter(|(_, route)| gone(route))
            .map(|(id, route)| (id, route.clone()))
            .collect();
        for (stream, _) in &ended {
            state.opening.remove(stream);
            state.leg.reset(
                *stream,
                CloseReason::RoleEnded,
                "the organisation's role was removed or has ended",
            );
        }
        drop(state);
        if !ended.is_empty() {
            self.output.notify_one();
        }
        for (_, route) in ended {
            info!(channel = %self.channel(), stream = %route.key, "a stream was ended: a role document that came with it is gone");
            route.conn.reset(route.stream, CloseReason::RoleEnded, "");
        }
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

    /// Takes frames until there is none, or one that must be answered before the next.
    fn take(
        &self,
        bytes: &mut BytesMut,
        events: &mut Vec<LegEvent<Route>>,
        now: Instant,
        waited: &mut Option<Duration>,
    ) -> Result<bool, Violation> {
        let mut state = self.lock();
        state.leg.inbound(now, waited.take());
        let more = loop {
            let Some(frame) = frame::decode(bytes)? else { break false };
            let stream = frame.stream();
            if let Some(event) = state.leg.on_frame(frame, now)? {
                if matches!(event, LegEvent::Reset { .. } | LegEvent::Detached { .. })
                    && let Some(stream) = stream
                {
                    // Whoever no longer wants a stream waits for no answer.
                    state.opening.remove(&stream);
                }
                if let LegEvent::Data { to, payload, .. } = &event
                    && let (Some(account), Some(agent)) = (&mut state.account, to.conn.agent())
                {
                    account.carried(agent.cluster.id, payload.len() as u64, 0);
                }
                let stop = matches!(event, LegEvent::Open { .. } | LegEvent::Resume { .. });
                events.push(event);
                if stop {
                    break true;
                }
            }
        };
        self.count_streams(&mut state);
        let output = state.leg.has_output();
        drop(state);
        if output {
            self.output.notify_one();
        }
        Ok(more)
    }

    fn carry(&self, event: LegEvent<Route>, now: Instant) {
        let metrics = self.metrics();
        let passed_to = match event {
            LegEvent::Open { stream, request } => {
                return self.on_wanted(stream, Wanted::Open(request), now);
            }
            LegEvent::Resume { stream, request } => {
                return self.on_wanted(stream, Wanted::Resume(request), now);
            }
            LegEvent::Control(payload) => return self.on_control(&payload),
            LegEvent::GoAway(goaway) => {
                debug!(channel = %self.channel(), reason = goaway.reason.text(), "the peer takes no new streams");
                self.going.store(true, Ordering::Relaxed);
                return;
            }
            LegEvent::Opened { to, opened } => {
                to.conn.answered(to.stream, now);
                to.conn.lock().leg.opened(to.stream, opened);
                to
            }
            LegEvent::Resumed { to, resumed } => {
                to.conn.answered(to.stream, now);
                to.conn.lock().leg.resumed(to.stream, resumed);
                to
            }
            LegEvent::Data { to, payload, fin, blocked } => {
                let bytes = payload.len() as u64;
                let direction = if self.is_own() || to.conn.is_own() {
                    &metrics.issuer_bytes
                } else if self.client().is_some() {
                    &metrics.bytes_to_agents
                } else {
                    &metrics.bytes_to_clients
                };
                direction.inc_by(bytes);
                let mut state = to.conn.lock();
                if let (Some(account), Some(agent)) = (&mut state.account, self.agent()) {
                    account.carried(agent.cluster.id, 0, bytes);
                }
                state.leg.forward(to.stream, payload, fin, blocked);
                drop(state);
                to
            }
            LegEvent::Credit { to, received, limit } => {
                to.conn.lock().leg.credit(to.stream, received, limit);
                to
            }
            LegEvent::Detached { to } => {
                to.conn.answered(to.stream, now);
                to.conn.lock().leg.detach(to.stream);
                to
            }
            LegEvent::Reset { to, reason, detail } => {
                to.conn.answered(to.stream, now);
                to.conn.lock().leg.reset(to.stream, reason, &detail);
                to
            }
        };
        passed_to.conn.output.notify_one();
    }

    fn on_wanted(&self, stream: StreamId, wanted: Wanted, now: Instant) {
        let (key, cluster) = (wanted.key(), wanted.cluster());
        let Some(client) = self.client() else { return self.on_agents(stream, wanted) };
        if self.is_line() && matches!(wanted, Wanted::Open(_)) {
            return self.reset(stream, CloseReason::Forbidden, "no stream begins on a line");
        }
        let Some(me) = self.me.upgrade() else { return };
        let resumes = matches!(wanted, Wanted::Resume(_));
        // Before the agent hears of it: its answer may be here before this thread goes on.
        self.lock().opening.insert(stream, now);
        match self.switchboard.connect(
            client,
            self.channel(),
            wanted,
            Route { conn: me, stream, key, documents: None },
        ) {
            Ok(route) => {
                let documents = route.documents.clone();
                let mut state = self.lock();
                if let Some(account) = &mut state.account {
                    account.allowed(cluster, resumes, || self.switchboard.why(client, cluster));
                }
                state.leg.bind(stream, route, 0);
                drop(state);
                self.metrics().opens.inc();
                info!(channel = %self.channel(), stream = %key, %cluster, resumes, "a stream was opened");
                // The role may have gone between the decision and now, when nobody knew of the stream.
                if let Err((reason, _)) = self.switchboard.allowed(client, cluster) {
                    self.refuse_route(stream, reason);
                }
                if !documents.is_none_or(|documents| self.switchboard.stand(&documents)) {
                    self.refuse_route(stream, CloseReason::RoleEnded);
                }
            }
            Err((reason, detail)) => {
                self.metrics().refused(Stage::Stream, reason);
                if let Some(account) = &mut self.lock().account {
                    account.refused(cluster, reason, || {
                        (self.switchboard.why(client, cluster).0, detail.to_string())
                    });
                }
                info!(
                    channel = %self.channel(), stream = %key, %cluster, principal = client.caller.principal, reason = reason.text(),
                    detail = &*detail, "a stream was refused"
                );
                self.reset(stream, reason, &detail);
            }
        }
    }

    /// An agent opens a stream to an identity provider, and no other; the relay's own end opens none.
    fn on_agents(&self, stream: StreamId, wanted: Wanted) {
        let (Some(agent), Wanted::Open(request)) = (self.agent(), wanted) else {
            return self.reset(stream, CloseReason::Forbidden, "agents take up no streams");
        };
        if self.is_line() {
            return self.reset(stream, CloseReason::Forbidden, "no stream begins on a line");
        }
        let Some(me) = self.me.upgrade() else { return };
        let key = request.key;
        let from = Route { conn: me, stream, key, documents: None };
        match self.switchboard.issuers().open(agent, self.channel(), request, from) {
            Ok(route) => self.lock().leg.bind(stream, route, 0),
            Err((reason, detail)) => {
                self.metrics().refused(Stage::Stream, reason);
                info!(
                    channel = %self.channel(), stream = %key, cluster = %agent.cluster.id, reason = reason.text(),
                    detail = &*detail, "a way to an identity provider was refused"
                );
                self.reset(stream, reason, &detail);
            }
        }
    }

    /// The agent did not answer in time. What it then holds of the stream may still be taken up.
    fn time_out(&self, stream: StreamId) {
        let mut state = self.lock();
        let route = state.leg.routes().find(|(id, _)| *id == stream).map(|(_, route)| route.clone());
        state.leg.reset(stream, CloseReason::Timeout, "");
        drop(state);
        self.output.notify_one();
        if let Some(route) = route {
            route.conn.detach(route.stream);
        }
    }

    fn refuse_route(&self, stream: StreamId, reason: CloseReason) {
        let mut state = self.lock();
        state.opening.remove(&stream);
        let route = state.leg.routes().find(|(id, _)| *id == stream).map(|(_, route)| route.clone());
        state.leg.reset(stream, reason, "");
        drop(state);
        self.output.notify_one();
        if let Some(route) = route {
            route.conn.reset(route.stream, reason, "");
        }
    }

    /// The agent answered an OPEN, or refused it.
    fn answered(&self, stream: StreamId, now: Instant) {
        let opened = self.lock().opening.remove(&stream);
        if let Some(opened) = opened {
            self.metrics().open_seconds.observe(now.saturating_duration_since(opened).as_secs_f64());
        }
    }

    fn on_control(&self, payload: &Bytes) {
        let Some(peer) = &self.peer else { return };
        if self.on_kin(payload) {
            return;
        }
        let later = |question| self.questions.try_send(question).is_ok();
        let answer = self.switchboard.answer(peer, payload, later);
        if let Some(answer) = answer
            && !self.control(answer)
        {
            debug!(channel = %self.channel(), "an answer was dropped: too many wait");
        }
    }
}

impl Machine for RelayConn {
    fn on_bytes(&self, bytes: &mut BytesMut, now: Instant, waited: Duration) -> Result<(), Violation> {
        let mut events = Vec::new();
        let mut waited = Some(waited);
        loop {
            let more = self.take(bytes, &mut events, now, &mut waited);
            // What came before a violation was sound: it is carried.
            for event in events.drain(..) {
                self.carry(event, now);
            }
            if !more? {
                return Ok(());
            }
        }
    }

    fn fill(&self, out: &mut BytesMut) -> usize {
        let mut progress: Vec<Progress<Route>> = Vec::new();
        let mut state = self.lock();
        let payload = state.leg.fill(out, &mut progress);
        self.count_streams(&mut state);
        drop(state);
        for Progress { to, written } in progress {
            to.conn.lock().leg.passed(to.stream, written);
            to.conn.output.notify_one();
        }
        payload
    }

    fn on_written(&self, payload: usize, now: Instant) {
        self.lock().leg.on_written(payload, now);
    }

    fn deadline(&self) -> Instant {
        let state = self.lock();
        let link = state.leg.deadline();
        state.opening.values().next().map_or(link, |opened| link.min(*opened + self.open_timeout))
    }

    fn tick(&self, now: Instant) -> Result<(), Violation> {
        let mut late = Vec::new();
        let mut state = self.lock();
        while let Some(first) = state.opening.first_entry()
            && now >= *first.get() + self.open_timeout
        {
            late.push(first.remove_entry().0);
        }
        let ticked = state.leg.tick(now);
        drop(state);
        for stream in late {
            self.metrics().refused(Stage::Stream, CloseReason::Timeout);
            self.time_out(stream);
        }
        ticked
    }

    fn output(&self) -> &Notify {
        &self.output
    }

    fn last_words(&self, reason: CloseReason, detail: &str) {
        // Whoever stopped the connection may have queued a better reason.
        if reason == CloseReason::Draining && !self.takes_streams() {
            return;
        }
        self.lock().leg.go_away(reason, Duration::ZERO, detail);
    }
}

#[cfg(test)]
mod tests;
