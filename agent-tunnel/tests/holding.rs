//! An agent that holds two sessions: the one takes over where the other is lost, and each is replaced before it ends.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod support;

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, SystemTime},
};

use support::{
    Cap, WITHIN, parts, read_to_end, read_until,
    relay::{AgentSession, Relay, certificate},
    whole::config,
};
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt as _, time::timeout};
use towline_agent::app::{self, Config, Holding, RelayConfig, Running, Status};
use towline_identity::dev::{DevIssuer, TokenRequest};
use towline_tunnel::{
    carrier::{
        dial::{Dialler, RelayAddress},
        keep_alive::KeepAlives,
        ladder::{Ladder, Memory, Network},
    },
    egress::Routes,
    ids::{ChannelId, StreamKey},
    inner::{InnerConnector, InnerStream},
    keys::SigningKey,
    mux::{CloseReason, MuxStream, OpenRequest},
    session::control::Control,
    ticket::{MAX_LIFE, Ticket},
};

/// A plain answer, or a watch that goes on for ever.
async fn apiserver() -> Cap {
    Cap::new(|mut connection| async move {
        while let Some(head) = connection.head().await? {
            if head.contains("watch=") {
                let answer = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n";
                connection.say(answer.as_bytes()).await?;
                return connection.drained().await;
            }
            connection.say(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await?;
        }
        Ok(())
    })
    .await
}

struct World {
    folder: TempDir,
    issuer: DevIssuer,
    cap: Cap,
    relay: Relay,
    run_key: SigningKey,
    agent: Running,
    /// The last byte of the address that this machine sends from.
    address: Arc<AtomicU8>,
    keep_alives: KeepAlives,
}

impl World {
    /// An agent with two sessions.
    async fn new() -> (Self, AgentSession, AgentSession) {
        Self::with(Duration::from_secs(3600)).await
    }

    /// The same, whose certificates last so long.
    async fn with(life: Duration) -> (Self, AgentSession, AgentSession) {
        let (folder, issuer) = (tempfile::tempdir().unwrap(), DevIssuer::start(0).await.unwrap());
        let (cap, mut relay) = (apiserver().await, Relay::new().await);
        {
            let mut manner = relay.manner.lock().unwrap();
            (manner.spares, manner.life) = (true, life);
        }
        let address = Arc::new(AtomicU8::new(1));
        let seen = Arc::clone(&address);
        let routes = move |_| Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, seen.load(Ordering::Relaxed))));
        let holding = Holding {
            spare_after: (Duration::ZERO, Duration::ZERO),
            look_every: Duration::from_millis(20),
            routes: Routes::of(routes),
            ..Holding::default()
        };
        let keep_alives = holding.keep_alives.clone();
        let authority = folder.path().join("relay-ca.pem");
        std::fs::write(&authority, &relay.ca_pem).unwrap();
        let joins = RelayConfig { ca_file: Some(authority), ..relay.config() };
        let config = Config { holding, ..config(&folder, &issuer, &cap, joins) };
        let agent = app::start(config).await.unwrap();
        let first = relay.session().await;
        let spare = relay.session().await;
        let run_key = SigningKey::generate();
        (Self { folder, issuer, cap, relay, run_key, agent, address, keep_alives }, first, spare)
    }

    fn authority(&self) -> PathBuf {
        self.folder.path().join("relay-ca.pem")
    }

    /// As the agent tells this network from others.
    fn network(&self) -> Network {
        let address = RelayAddress::parse(&format!("https://{}", self.relay.address)).unwrap();
        Ladder::new(Dialler::new(address, None).unwrap(), Memory::default()).network()
    }

    /// The agent holds this one for the session on which streams begin.
    async fn carries(&self, session: &AgentSession) {
        let mut status = self.agent.status();
        let channel = session.channel;
        let carries = status
            .wait_for(|status| matches!(status, Status::Connected { channel: on, .. } if *on == channel));
        timeout(WITHIN, carries).await.expect("it carries").unwrap();
    }

    async fn connect(&self, session: &AgentSession) -> InnerStream<MuxStream> {
        let cluster = self.agent.cluster();
        let mut request = OpenRequest::new(StreamKey::random(), cluster);
        let (principal, key) = (format!("{}#alice", self.issuer.url()), self.run_key.public().hash());
        let ticket = Ticket::new(cluster, principal, key, SystemTime::now(), MAX_LIFE);
        request.ticket = Some(ticket.sign(&self.relay.tickets));
        let stream = session.connection.open(request).unwrap();
        InnerConnector::new(cluster, &self.run_key).unwrap().connect(stream).await.unwrap()
    }

    fn head(&self, line: &str) -> String {
        let token = self.issuer.mint(&TokenRequest::new("alice", &["dev"], "towline-cluster")).unwrap();
        format!("{line} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n")
    }

    /// A request is answered through this session.
    async fn serves(&self, session: &AgentSession) {
        let mut stream = self.connect(session).await;
        stream.write_all(self.head("GET /api/v1/pods").as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(parts(&read_to_end(&mut stream).await.unwrap()), (200, "{}"));
    }

    /// A watch that was begun through this session, and goes on.
    async fn watch(&self, session: &AgentSession) -> InnerStream<MuxStream> {
        let mut watch = self.connect(session).await;
        watch.write_all(self.head("GET /api/v1/pods?watch=true").as_bytes()).await.unwrap();
        read_until(&mut watch, "{}\n\r\n").await;
        watch
    }
}

/// The next that is said on a session beside the questions for certificates.
async fn said(session: &AgentSession) -> Control {
    loop {
        let message = timeout(WITHIN, session.connection.next_control()).await.expect("it is said").unwrap();
        match Control::decode(&message).unwrap() {
            (_, Control::Renew { .. }) => {}
            (_, control) => return control,
        }
    }
}

async fn told_to_go(session: &AgentSession) -> CloseReason {
    timeout(WITHIN, session.connection.going_away()).await.expect("it is told").unwrap().reason
}

fn beside(of: &[&AgentSession]) -> Vec<ChannelId> {
    of.iter().map(|session| session.channel).collect()
}

#[tokio::test]
async fn t52_each_session_says_of_the_other_that_it_is_of_the_same_process() {
    let (world, first, spare) = World::new().await;
    assert_eq!((first.beside.len(), &spare.beside), (0, &beside(&[&first])));
    assert_eq!((spare.by, spare.instance), ("certificate", first.instance));
    assert_eq!(said(&first).await, Control::Beside { channel: spare.channel });
    world.carries(&first).await;
    assert_eq!(world.agent.metrics().sessions.get(), 2);
}

#[tokio::test]
async fn when_the_one_that_carries_is_lost_the_spare_one_does_at_once_and_another_is_dialled() {
    let (mut world, first, spare) = World::new().await;
    world.serves(&first).await;
    first.cut.cancel();
    assert_eq!(said(&spare).await, Control::Gone { channel: first.channel });
    world.carries(&spare).await;
    // Nothing was dialled for that.
    world.serves(&spare).await;
    let next = world.relay.session().await;
    assert_eq!(next.beside, beside(&[&spare]));
    world.carries(&spare).await;
    spare.cut.cancel();
    world.carries(&next).await;
    world.serves(&next).await;
}

/// What is known of the network says how long nobody need say anything on a session that nobody needs; one that carries is another matter.
#[tokio::test]
async fn a_spare_session_keeps_silent_for_as_long_as_the_network_lets_it_until_it_carries() {
    let (mut world, first, spare) = World::new().await;
    assert_eq!(said(&first).await, Control::Beside { channel: spare.channel });
    let network = world.network();
    world.keep_alives.outlived(&network, Duration::from_secs(5));
    assert_eq!(said(&spare).await, Control::KeepSilent { silence: Duration::from_secs(10) });
    world.keep_alives.outlived(&network, Duration::from_secs(10));
    assert_eq!(said(&spare).await, Control::KeepSilent { silence: Duration::from_secs(20) });
    assert_eq!(world.agent.metrics().spare_silence.get(), 20);

    first.cut.cancel();
    assert_eq!(said(&spare).await, Control::Gone { channel: first.channel });
    assert_eq!(said(&spare).await, Control::KeepSilent { silence: Duration::from_secs(5) });
    let next = world.relay.session().await;
    assert_eq!(said(&spare).await, Control::Beside { channel: next.channel });
    assert_eq!(said(&next).await, Control::KeepSilent { silence: Duration::from_secs(20) });
    world.serves(&spare).await;
}

/// Twice in a row, while the other lived: that is what silence does here, and both are silent for less from then on.
#[tokio::test]
async fn sessions_that_are_lost_in_their_silence_are_kept_alive_more_often() {
    let (mut world, first, spare) = World::new().await;
    let network = world.network();
    for _ in 0..2 {
        world.keep_alives.lost(&network, Duration::from_secs(4));
    }
    assert_eq!(said(&first).await, Control::Beside { channel: spare.channel });
    for session in [&spare, &first] {
        assert_eq!(said(session).await, Control::KeepSilent { silence: Duration::from_secs(2) });
    }
    spare.cut.cancel();
    let next = world.relay.session().await;
    assert_eq!(said(&next).await, Control::KeepSilent { silence: Duration::from_secs(2) });
}

#[tokio::test]
async fn a_lost_spare_session_changes_nothing_but_that_another_is_dialled() {
    let (mut world, first, spare) = World::new().await;
    spare.cut.cancel();
    let next = world.relay.session().await;
    assert_eq!(next.beside, beside(&[&first]));
    world.carries(&first).await;
    world.serves(&first).await;
}

#[tokio::test]
async fn where_the_relay_sends_the_one_that_carries_away_the_spare_one_carries() {
    let (world, first, spare) = World::new().await;
    let watch = world.watch(&first).await;
    first.connection.go_away(CloseReason::Draining, Duration::from_secs(30), "");
    world.carries(&spare).await;
    world.serves(&spare).await;
    assert_eq!(first.connection.stream_count(), 1, "the watch is still there");
    drop(watch);
}

/// The hints of both count, and the sooner one is followed.
#[tokio::test]
async fn an_agent_whose_sessions_are_both_sent_away_comes_back_at_the_first_turn_it_was_given() {
    let (mut world, first, spare) = World::new().await;
    let begun = std::time::Instant::now();
    spare.connection.go_away(CloseReason::Draining, Duration::from_secs(300), "");
    first.connection.go_away(CloseReason::Draining, Duration::from_secs(1), "");
    let next = world.relay.session().await;
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    assert!(next.beside.is_empty(), "neither takes streams");
    world.carries(&next).await;
}

#[tokio::test]
async fn a_renewed_certificate_brings_a_successor_before_the_old_sessions_go() {
    let (mut world, first, spare) = World::with(Duration::from_secs(2)).await;
    let watch = world.watch(&first).await;
    let id = loop {
        let question = timeout(WITHIN, first.connection.next_control()).await.unwrap().unwrap();
        match Control::decode(&question).unwrap() {
            (id, Control::Renew { .. }) => break id,
            (_, Control::Beside { .. }) => {}
            (_, other) => panic!("{other:?}"),
        }
    };
    assert!(first.connection.is_open() && spare.connection.is_open());
    let next = Control::Renewed { certificate: certificate(Duration::from_secs(20)) };
    assert!(first.connection.control(next.encode(id)));
    let successor = world.relay.session().await;
    assert_eq!(successor.beside, beside(&[&first, &spare]), "it stood before they went");
    for old in [&first, &spare] {
        assert_eq!(told_to_go(old).await, CloseReason::Draining);
    }
    world.carries(&successor).await;
    world.serves(&successor).await;
    assert_eq!(first.connection.stream_count(), 1, "the watch goes on where it is");
    let spare = world.relay.session().await;
    assert_eq!(spare.beside, beside(&[&successor]));
    drop(watch);
    timeout(WITHIN, first.connection.closed()).await.expect("without streams it is not needed");
}

#[tokio::test]
async fn other_certificate_authorities_bring_a_successor_and_unusable_ones_none() {
    let (mut world, first, spare) = World::new().await;
    std::fs::write(world.authority(), "this is no certificate").unwrap();
    world.serves(&first).await;
    let (other, _) = support::cap::certificates(&[b"http/1.1"]);
    std::fs::write(world.authority(), format!("{}{other}", world.relay.ca_pem)).unwrap();
    let successor = world.relay.session().await;
    assert_eq!(successor.beside, beside(&[&first, &spare]));
    for old in [&first, &spare] {
        assert_eq!(told_to_go(old).await, CloseReason::Draining);
    }
    world.carries(&successor).await;
    world.serves(&successor).await;
}

/// Authorities by which the relay is not trusted any more: what stands goes on.
#[tokio::test]
async fn where_no_successor_can_be_had_the_old_sessions_stay() {
    let (world, first, spare) = World::new().await;
    let (other, _) = support::cap::certificates(&[b"http/1.1"]);
    let dialled = *world.relay.dialled.lock().unwrap();
    std::fs::write(world.authority(), other).unwrap();
    support::eventually("a successor is tried", || *world.relay.dialled.lock().unwrap() > dialled).await;
    world.serves(&first).await;
    assert!(first.connection.is_open() && spare.connection.is_open());
    assert!(first.connection.goaway().is_none());
}

#[tokio::test]
async fn another_address_of_this_machine_brings_a_successor_and_streams_leave_the_old_sessions_at_once() {
    let (mut world, first, spare) = World::new().await;
    let _watch = world.watch(&first).await;
    world.address.store(2, Ordering::Relaxed);
    let successor = world.relay.session().await;
    assert_eq!(successor.beside, beside(&[&first, &spare]), "it stood before they went");
    for old in [&first, &spare] {
        timeout(WITHIN, old.connection.closed()).await.expect("it may hear nothing any more");
    }
    world.carries(&successor).await;
    world.serves(&successor).await;
    assert_eq!(world.agent.metrics().streams.get(), 1, "the watch waits for its client");
    assert_eq!(world.cap.seen().iter().filter(|head| head.contains("watch=")).count(), 1);
}

#[tokio::test]
async fn an_agent_that_drains_says_so_on_both_sessions() {
    let (world, first, spare) = World::new().await;
    let World { agent, .. } = world;
    let draining = tokio::spawn(agent.drain());
    for session in [&first, &spare] {
        assert_eq!(told_to_go(session).await, CloseReason::Draining);
        timeout(WITHIN, session.connection.closed()).await.unwrap();
    }
    assert!(timeout(WITHIN, draining).await.unwrap().unwrap());
}
