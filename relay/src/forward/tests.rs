//! A client's connection and an agent's, without carriers, at times that the test says.

use std::time::{SystemTime, UNIX_EPOCH};

use tempfile::TempDir;
use towline_tunnel::{
    clock::Clock,
    ids::InstanceId,
    keys::SigningKey,
    proto::{endpoint::Side, frame::Frame, ledger::Ledger},
};

use super::*;
use crate::{
    access::{AccessControl, Caller},
    certificates::Holder,
    registry::{EnrolmentOffer, Registry, Role, RoleAssignment, SubjectKind},
    sessions::{SessionGuard, Sessions},
};

/// Before the first PING is due.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);

struct World {
    _folder: TempDir,
    cluster: ClusterId,
    metrics: Metrics,
    client: Arc<RelayConn>,
    agent: Arc<RelayConn>,
    _known: SessionGuard,
    begun: Instant,
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::open(folder.path()).await.unwrap();
        let offer = EnrolmentOffer {
            secret_hash: [1; 32],
            name: "edge".parse().unwrap(),
            replaces: false,
            expires_at: at(10),
        };
        registry.offer_enrolment(&offer, at(0)).await.unwrap();
        let key = SigningKey::generate().public();
        registry.enrol(&offer.secret_hash, &key, at(0)).await.unwrap();
        let known = registry.snapshot();
        let cluster = known.cluster_named("edge").unwrap();
        let assignment = RoleAssignment {
            kind: SubjectKind::User,
            subject: "alice".into(),
            role: Role::ClusterUser,
            cluster: cluster.id,
            expires_at: None,
        };
        registry.assign_role(&assignment, at(0)).await.unwrap();
        let (sessions, metrics) = (Sessions::default(), Metrics::new(Ledger::new(1 << 30)));
        let switchboard = Arc::new(Switchboard::new(
            AccessControl::new(registry),
            sessions.clone(),
            Arc::new(SigningKey::generate()),
            Clock::new(|| at(1)),
            metrics.clone(),
        ));
        let conn = |peer| {
            let config =
                LegConfig { side: Side::Acceptor, max_streams: 10, ledger: Ledger::new(1 << 20), jitter: 0 };
            let (renewals, _) = mpsc::channel(1);
            RelayConn::new(
                peer,
                None,
                ChannelId::random(),
                config,
                Arc::clone(&switchboard),
                OPEN_TIMEOUT,
                renewals,
            )
        };
        let agent = conn(Peer::Agent(AgentPeer {
            cluster: Arc::clone(cluster),
            holder: Holder { cluster: cluster.id, instance: InstanceId::random(), key },
            certificate_ends: at(1000),
            program: String::new(),
            line: false,
        }));
        let client = conn(Peer::Client(ClientPeer {
            caller: Caller { username: "alice".into(), principal: "alice".into(), groups: Vec::new() },
            run_key: SigningKey::generate().public(),
            expires_at: at(1000),
            program: String::new(),
            line: false,
        }));
        let _known = sessions.register(Arc::clone(&agent));
        Self {
            _folder: folder,
            cluster: cluster.id,
            metrics,
            client,
            agent,
            _known,
            begun: tokio::time::Instant::now().into_std(),
        }
    }

    fn open(&self, stream: StreamId) -> Frame {
        Frame::Open { stream, payload: OpenRequest::new(StreamKey::random(), self.cluster).encode() }
    }

    /// The client sends these, and everybody's answers go out.
    fn send(&self, frames: &[Frame]) {
        let mut bytes = BytesMut::new();
        frames.iter().for_each(|sent| frame::encode(&mut bytes, sent));
        self.client.on_bytes(&mut bytes, self.begun, Duration::ZERO).unwrap();
        for conn in [&self.client, &self.agent] {
            bytes.clear();
            conn.fill(&mut bytes);
        }
    }

    fn waiting(&self) -> usize {
        self.client.lock().opening.len()
    }

    fn timeouts(&self) -> usize {
        let line = "towline_relay_refusals_total{stage=\"stream\",reason=\"timeout\"} ";
        let page = self.metrics.page();
        page.lines().find_map(|found| found.strip_prefix(line)).map_or(0, |count| count.parse().unwrap())
    }
}

#[tokio::test]
async fn a_stream_that_its_client_gives_up_waits_for_no_answer() {
    let world = World::new().await;
    world.send(&[world.open(1)]);
    // A flood behind one that the agent leaves without an answer.
    for stream in (3..20_000).step_by(2) {
        let given_up = match stream % 5 {
            0 => Frame::Reset { stream, reason: CloseReason::Cancelled, detail: String::new() },
            1 => Frame::Detached { stream },
            // An answer to itself.
            2 => Frame::Opened { stream, payload: Bytes::new() },
            3 => Frame::Resumed { stream, payload: Bytes::new() },
            // Past its credit.
            _ => Frame::Credit { stream, received: u64::MAX, limit: 0 },
        };
        world.send(&[world.open(stream), given_up]);
        assert_eq!(world.waiting(), 1);
    }
    assert_eq!(world.client.deadline(), world.begun + OPEN_TIMEOUT);
    world.client.tick(world.begun + OPEN_TIMEOUT).unwrap();
    assert_eq!((world.waiting(), world.timeouts()), (0, 1), "nobody waited for the others");
}

#[tokio::test]
async fn what_ends_with_its_agent_or_its_role_waits_for_no_answer() {
    let world = World::new().await;
    world.send(&[world.open(1), world.open(3)]);
    assert_eq!(world.waiting(), 2);
    world.client.end_streams_not(|_| false);
    assert_eq!(world.waiting(), 0);
    world.send(&[world.open(5)]);
    world.agent.close();
    assert_eq!(world.waiting(), 0);
    world.client.tick(world.begun + OPEN_TIMEOUT).unwrap();
    assert_eq!(world.timeouts(), 0);
}
