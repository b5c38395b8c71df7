//! A client's connection and an agent's, without carriers, at times that the test says.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use tempfile::TempDir;
use towline_tunnel::{
    clock::Clock,
    ids::InstanceId,
    keys::SigningKey,
    mux::Machine as _,
    proto::{
        Arrived,
        endpoint::Side,
        frame::{self, Frame},
        ledger::Ledger,
    },
};

use super::*;
use crate::{
    access::{AccessControl, Caller},
    certificates::Holder,
    registry::{EnrolmentOffer, Registry, Revocation, Role, RoleAssignment, SubjectKind},
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
    registry: Registry,
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
            AccessControl::new(registry.clone()),
            sessions.clone(),
            Arc::new(SigningKey::generate()),
            Clock::new(|| at(1)),
            metrics.clone(),
        ));
        let conn = |peer| {
            let config =
                LegConfig { side: Side::Acceptor, max_streams: 10, ledger: Ledger::new(1 << 20), jitter: 0 };
            let (questions, _) = mpsc::channel(1);
            RelayConn::new(
                Some(peer),
                None,
                Arrival { channel: ChannelId::random(), from: ([192, 0, 2, 1], 1).into() },
                config,
                Arc::clone(&switchboard),
                OPEN_TIMEOUT,
                questions,
            )
        };
        let agent = conn(Peer::Agent(AgentPeer {
            cluster: Arc::clone(cluster),
            holder: Holder { cluster: cluster.id, instance: InstanceId::random(), key },
            certificate_ends: at(1000),
            program: String::new(),
            line: false,
            beside: Vec::new(),
        }));
        let client = conn(Peer::Client(ClientPeer {
            caller: Caller { username: "alice".into(), principal: "alice".into(), groups: Vec::new() },
            run_key: SigningKey::generate().public(),
            issued_at: Some(at(1)),
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
            registry,
            _known,
            begun: tokio::time::Instant::now().into_std(),
        }
    }

    fn open(&self, stream: StreamId) -> Frame {
        Frame::Open { stream, payload: OpenRequest::new(StreamKey::random(), self.cluster).encode() }
    }

    /// The client sends these, and everybody's answers go out: those to the client are returned.
    fn send(&self, frames: &[Frame]) -> Vec<Frame> {
        let mut bytes = BytesMut::new();
        frames.iter().for_each(|sent| frame::encode(&mut bytes, sent));
        self.client.on_bytes(&mut bytes, self.begun, Duration::ZERO).unwrap();
        let (mut bytes, mut told) = (BytesMut::new(), Vec::new());
        self.agent.fill(&mut bytes);
        bytes.clear();
        self.client.fill(&mut bytes);
        while let Some(frame) = frame::decode(&mut bytes).unwrap() {
            told.push(frame);
        }
        told
    }

    /// The client wants a stream back that the agent may have.
    fn resume(&self, stream: StreamId) -> Frame {
        let request = ResumeRequest {
            key: StreamKey::random(),
            cluster: self.cluster,
            limit: 1 << 14,
            share: 0,
            channel: None,
            ticket: None,
            offer: None,
            instance: self.agent.agent().unwrap().holder.instance,
            epoch: 1,
            arrived: Arrived { bytes: 0, fin: false },
            proof: [0; 32],
        };
        Frame::Resume { stream, payload: request.encode() }
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
    world.client.end_streams(|_| Some((CloseReason::Forbidden, "the role was removed")));
    assert_eq!(world.waiting(), 0);
    world.send(&[world.open(5)]);
    world.agent.close();
    assert_eq!(world.waiting(), 0);
    world.client.tick(world.begun + OPEN_TIMEOUT).unwrap();
    assert_eq!(world.timeouts(), 0);
}

/// A session that was let in before, and streams that wait at the agent: neither is of use after that.
#[tokio::test]
async fn a_revoked_users_stream_is_not_taken_up_again() {
    let world = World::new().await;
    assert!(world.send(&[world.resume(1)]).is_empty());
    assert_eq!(world.agent.stream_count(), 1, "the agent is asked");
    let revocation = Revocation {
        kind: SubjectKind::User,
        subject: "alice".into(),
        cluster: Some(world.cluster),
        issued_until: at(1),
        revoked_at: at(1),
        revoked_by: String::new(),
    };
    assert!(world.registry.revoke(&revocation).await.unwrap());
    world.registry.refresh().await.unwrap();
    let told = world.send(&[world.resume(3)]);
    assert!(
        matches!(told[..], [Frame::Reset { stream: 3, reason: CloseReason::UserRevoked, .. }]),
        "{told:?}"
    );
    assert_eq!(world.agent.stream_count(), 1, "nor does the agent hear of it");
    let client = world.client.client().unwrap();
    let why =
        |cluster| world.client.switchboard.allowed(client, cluster).err().map(|(reason, _)| (reason, ""));
    world.client.end_streams(why);
    assert_eq!(world.client.streams_to(None), 0);
}
