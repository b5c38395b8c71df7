//! A client's and an agent's connection: joined directly, or by a relay's two legs with the real driver on each line.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use tokio::{sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;
use towline_tunnel::{
    ids::{ClusterId, InstanceId, StreamKey},
    mux::{
        CloseReason, Closed, Connection, EndpointConfig, Ledger, Machine, MuxStream, OpenRequest, Side, drive,
    },
    proto::{
        StreamId, frame,
        leg::{Leg, LegConfig, LegEvent, Progress},
        link::Violation,
    },
};

use super::{
    ends,
    line::{Like, line},
};

/// A stream at the relay: the leg, 0 for the client's and 1 for the agent's, and the id there.
type Hop = (usize, StreamId);

pub(crate) fn endpoint(side: Side) -> EndpointConfig {
    EndpointConfig {
        side,
        max_streams: 2_000,
        ledger: Ledger::new(256 << 20),
        instance: InstanceId::random(),
        jitter: 0,
    }
}

pub(crate) fn request() -> OpenRequest {
    OpenRequest::new(StreamKey::random(), ClusterId::of_spki(b"cluster"))
}

/// A relay as far as streams go: each leg behind a lock of its own, as in the relay itself.
pub(crate) struct Relay {
    legs: [Mutex<Leg<Hop>>; 2],
    output: [Notify; 2],
}

impl Relay {
    fn new() -> Arc<Self> {
        let now = tokio::time::Instant::now().into_std();
        let ledger = Ledger::new(256 << 20);
        let leg = || {
            let ledger = ledger.clone();
            Mutex::new(Leg::new(
                LegConfig { side: Side::Acceptor, max_streams: 2_000, ledger, jitter: 0 },
                now,
            ))
        };
        Arc::new(Self { legs: [leg(), leg()], output: [Notify::new(), Notify::new()] })
    }

    fn leg(&self, number: usize) -> MutexGuard<'_, Leg<Hop>> {
        self.legs[number].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell<T>(&self, number: usize, change: impl FnOnce(&mut Leg<Hop>) -> T) -> T {
        let done = change(&mut self.leg(number));
        self.output[number].notify_one();
        done
    }

    fn carry(&self, from: usize, event: LegEvent<Hop>) {
        match event {
            LegEvent::Open { stream, request } => {
                let to = 1 - from;
                match self.tell(to, |leg| leg.open(request, (from, stream))) {
                    Ok(id) => self.tell(from, |leg| leg.bind(stream, (to, id), 0)),
                    Err(reason) => self.tell(from, |leg| leg.reset(stream, reason, "")),
                }
            }
            LegEvent::Opened { to, opened } => self.tell(to.0, |leg| leg.opened(to.1, opened)),
            LegEvent::Data { to, payload, fin, blocked } => {
                self.tell(to.0, |leg| leg.forward(to.1, payload, fin, blocked));
            }
            LegEvent::Credit { to, received, limit } => {
                self.tell(to.0, |leg| leg.credit(to.1, received, limit))
            }
            LegEvent::Detached { to } => self.tell(to.0, |leg| leg.detach(to.1)),
            LegEvent::Reset { to, reason, detail } => self.tell(to.0, |leg| leg.reset(to.1, reason, &detail)),
            _ => {}
        }
    }

    /// A leg's connection is gone.
    fn close(&self, number: usize) {
        let hops = self.leg(number).close();
        for (leg, id) in hops {
            self.tell(leg, |leg| leg.reset(id, CloseReason::Detached, "the other line was cut"));
        }
    }

    /// Streams in the tables of both legs.
    pub(crate) fn stream_count(&self) -> usize {
        self.leg(0).stream_count() + self.leg(1).stream_count()
    }
}

/// One of its connections.
struct RelayConnection {
    relay: Arc<Relay>,
    number: usize,
}

impl Machine for RelayConnection {
    fn on_bytes(&self, bytes: &mut BytesMut, now: Instant, waited: Duration) -> Result<(), Violation> {
        self.relay.leg(self.number).inbound(now, Some(waited));
        while let Some(frame) = frame::decode(bytes)? {
            let event = self.relay.leg(self.number).on_frame(frame, now)?;
            if let Some(event) = event {
                self.relay.carry(self.number, event);
            }
        }
        self.relay.output[self.number].notify_one();
        Ok(())
    }

    fn fill(&self, out: &mut BytesMut) -> usize {
        let mut progress = Vec::new();
        let payload = self.relay.leg(self.number).fill(out, &mut progress);
        for Progress { to, written } in progress {
            self.relay.tell(to.0, |leg| leg.passed(to.1, written));
        }
        payload
    }

    fn on_written(&self, payload: usize, now: Instant) {
        self.relay.leg(self.number).on_written(payload, now);
    }

    fn deadline(&self) -> Instant {
        self.relay.leg(self.number).deadline()
    }

    fn tick(&self, now: Instant) -> Result<(), Violation> {
        self.relay.leg(self.number).tick(now)
    }

    fn output(&self) -> &Notify {
        &self.relay.output[self.number]
    }

    fn last_words(&self, reason: CloseReason, detail: &str) {
        self.relay.leg(self.number).go_away(reason, Duration::ZERO, detail);
    }
}

/// Both ends, and what is between them. Dropping it drops the drivers.
pub(crate) struct Path {
    pub(crate) client: Connection,
    pub(crate) agent: Connection,
    relay: Option<Arc<Relay>>,
    _tasks: JoinSet<()>,
}

impl Path {
    /// Joined by one line.
    pub(crate) fn direct(like: Like) -> Self {
        let (a, b) = line(like);
        let (client, client_driver) = Connection::new(a, BytesMut::new(), endpoint(Side::Dialler));
        let (agent, agent_driver) = Connection::new(b, BytesMut::new(), endpoint(Side::Acceptor));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { drop(client_driver.run().await) });
        tasks.spawn(async move { drop(agent_driver.run().await) });
        Self { client, agent, relay: None, _tasks: tasks }
    }

    /// With a relay between a client's line and an agent's.
    pub(crate) fn relayed(of_client: Like, of_agent: Like) -> Self {
        let relay = Relay::new();
        let mut tasks = JoinSet::new();
        let mut connections = [of_client, of_agent].into_iter().enumerate().map(|(number, like)| {
            let (near, far) = line(like);
            let (connection, driver) = Connection::new(near, BytesMut::new(), endpoint(Side::Dialler));
            tasks.spawn(async move { drop(driver.run().await) });
            let machine = RelayConnection { relay: Arc::clone(&relay), number };
            tasks.spawn(async move {
                let _closed: Closed = drive(far, &machine, BytesMut::new(), CancellationToken::new()).await;
                machine.relay.close(number);
            });
            connection
        });
        let client = connections.next().unwrap();
        let agent = connections.next().unwrap();
        drop(connections);
        Self { client, agent, relay: Some(relay), _tasks: tasks }
    }

    /// The two of them on lines that take no time.
    pub(crate) fn both(room: usize) -> [Self; 2] {
        let short = Like::short(room);
        [Self::direct(short), Self::relayed(short, short)]
    }

    /// A stream from client to agent, as both have it.
    pub(crate) async fn stream(&self) -> (MuxStream, MuxStream) {
        let near = self.client.open(request()).unwrap();
        let (_, far) = ends(self.agent.accept()).await.unwrap();
        (near, far)
    }

    /// Streams in all tables.
    pub(crate) fn streams(&self) -> usize {
        let relayed = self.relay.as_ref().map_or(0, |relay| relay.stream_count());
        self.client.stream_count() + self.agent.stream_count() + relayed
    }
}
