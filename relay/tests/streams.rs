//! Streams through a real relay: passed on, refused one by one, ended with what they depend on.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod common;

use std::time::{Duration, SystemTime};

use common::{Bench, SOON, eventually, limits};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};
use towline_relay::limits::Limits;
use towline_tunnel::{
    ids::{ClusterId, InstanceId},
    keys::SigningKey,
    mux::{CloseReason, MuxStream, StreamError},
    session::{Identify, control::Control},
    ticket::Ticket,
};

/// Why reading from the stream fails.
async fn ending(stream: &mut MuxStream) -> CloseReason {
    refusal(stream).await.reason
}

/// The same, and what was said of it.
async fn refusal(stream: &mut MuxStream) -> StreamError {
    let mut rest = Vec::new();
    let error = timeout(SOON, stream.read_to_end(&mut rest)).await.unwrap().unwrap_err();
    error.get_ref().unwrap().downcast_ref::<StreamError>().unwrap().clone()
}

/// What an echo of these bytes takes; the stream must be open.
async fn echoes(stream: &mut MuxStream, bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    let mut back = vec![0; bytes.len()];
    timeout(SOON, stream.read_exact(&mut back)).await.unwrap().unwrap();
    assert_eq!(back, bytes);
}

#[tokio::test]
async fn a_stream_passes_both_ways_and_both_ends_are_told() {
    let bench = Bench::new(limits()).await;
    let agent = bench.echo("edge").await;
    bench.allow("alice", agent.cluster()).await;
    let client = bench.client("alice").await;
    let (mut reader, mut writer) = tokio::io::split(client.open(agent.cluster()));
    let sent: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let (_, got) = tokio::join!(
        async {
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
        },
        async {
            let mut got = Vec::new();
            timeout(SOON, reader.read_to_end(&mut got)).await.unwrap().unwrap();
            got
        }
    );
    assert!(got == sent, "{} of {} bytes came back, or others", got.len(), sent.len());
    drop((reader, writer));
    eventually("nothing is left of the stream", async || {
        client.connection.stream_count() == 0 && agent.connection.stream_count() == 0
    })
    .await;
}

#[tokio::test]
async fn t14_a_stream_to_a_cluster_without_a_role_is_refused_and_the_session_goes_on() {
    let bench = Bench::new(limits()).await;
    let (a, b) = (bench.echo("a").await, bench.echo("b").await);
    bench.allow("alice", a.cluster()).await;
    let client = bench.client("alice").await;
    let mut allowed = client.open(a.cluster());
    echoes(&mut allowed, b"before").await;
    let refused = refusal(&mut client.open(b.cluster())).await;
    assert_eq!(refused.reason, CloseReason::Forbidden);
    let command = "towline-relay role assign --user alice --role cluster-user --cluster b;";
    assert!(refused.detail.starts_with(command), "{}", refused.detail);
    let nowhere = ClusterId::of_spki(b"nowhere");
    assert_eq!(ending(&mut client.open(nowhere)).await, CloseReason::ClusterUnknown);
    echoes(&mut allowed, b"after").await;
    assert_eq!(b.connection.stream_count(), 0, "the other agent never heard of it");
}

#[tokio::test]
async fn an_agent_gets_a_ticket_for_exactly_this_client_and_learns_no_name_but_it() {
    let bench = Bench::new(limits()).await;
    let agent = bench.agent("edge").await;
    bench.allow("alice", agent.cluster()).await;
    let (token, run_key) = (bench.token("alice", &[]), SigningKey::generate());
    let identify = Identify::Client { token: &token, run_key: &run_key, line: false };
    let (connection, _driver, welcome) = bench.session(identify, InstanceId::random()).await.unwrap();
    let client = common::Client { connection, driver: _driver };
    let _stream = client.open(agent.cluster());
    let (request, _accepted) = timeout(SOON, agent.connection.accept()).await.unwrap().unwrap();
    assert_eq!(request.channel, Some(welcome.channel));
    assert_ne!(request.share, 0);
    let keys = towline_relay::keys::RelayKeys::load_or_create(&bench.folder.path().join("relay")).unwrap();
    let ticket =
        Ticket::verify(&request.ticket.unwrap(), &keys.ticket_key(), agent.cluster(), SystemTime::now())
            .unwrap();
    assert_eq!(ticket.check_peer(run_key.public().hash()), Ok(()));
    assert_eq!(ticket.principal, format!("{}#alice", bench.issuer.url()));
}

#[tokio::test]
async fn a_cluster_without_an_agent_is_offline_and_back_once_it_dials() {
    let bench = Bench::new(limits()).await;
    let agent = bench.echo("edge").await;
    let cluster = agent.cluster();
    bench.allow("alice", cluster).await;
    let client = bench.client("alice").await;
    let mut open = client.open(cluster);
    echoes(&mut open, b"hello").await;
    agent.connection.close();
    assert_eq!(ending(&mut open).await, CloseReason::Detached);
    eventually("the agent is gone", async || {
        ending(&mut client.open(cluster)).await == CloseReason::AgentOffline
    })
    .await;
    let (connection, _driver, _) = bench.session(agent.identify(false, &[]), agent.instance).await.unwrap();
    eventually("a stream arrives at the agent that came back", async || {
        let _stream = client.open(cluster);
        timeout(Duration::from_millis(200), connection.accept()).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_streams_at_the_agent() {
    let bench = Bench::new(limits()).await;
    let agent = bench.agent("edge").await;
    bench.allow("alice", agent.cluster()).await;
    let client = bench.client("alice").await;
    let _held = client.open(agent.cluster());
    let (_, mut stream) = timeout(SOON, agent.connection.accept()).await.unwrap().unwrap();
    client.driver.abort();
    assert_eq!(ending(&mut stream).await, CloseReason::Detached);
}

#[tokio::test]
async fn an_agent_that_does_not_answer_is_given_up() {
    let bench = Bench::new(Limits { open_timeout: Duration::from_millis(100), ..limits() }).await;
    let (identity, key, instance) = (SigningKey::generate(), SigningKey::generate(), InstanceId::random());
    let secret = bench.enrolment_secret("edge").await;
    let identify = Identify::Enrol { secret: &secret, cluster: &identity, instance, key: &key };
    let _still = bench.still(identify).await;
    let cluster = identity.public().cluster_id();
    bench.allow("alice", cluster).await;
    let client = bench.client("alice").await;
    eventually("the open times out", async || {
        ending(&mut client.open(cluster)).await == CloseReason::Timeout
    })
    .await;
}

#[tokio::test]
async fn a_role_that_is_removed_ends_its_streams_and_no_others() {
    let bench = Bench::new(limits()).await;
    let (a, b) = (bench.echo("a").await, bench.echo("b").await);
    bench.allow("alice", a.cluster()).await;
    bench.allow("alice", b.cluster()).await;
    let client = bench.client("alice").await;
    let (mut to_a, mut to_b) = (client.open(a.cluster()), client.open(b.cluster()));
    echoes(&mut to_a, b"1").await;
    echoes(&mut to_b, b"2").await;
    let assignment = bench.assignment("alice", a.cluster());
    assert!(bench.relay.registry().remove_role(&assignment).await.unwrap());
    assert_eq!(ending(&mut to_a).await, CloseReason::Forbidden);
    echoes(&mut to_b, b"3").await;
}

#[tokio::test]
async fn a_revoked_instance_loses_its_session_and_can_not_come_back() {
    let bench = Bench::new(limits()).await;
    let agent = bench.agent("edge").await;
    bench.relay.registry().revoke_instance(agent.instance, SystemTime::now()).await.unwrap();
    let closed = timeout(SOON, agent.connection.closed()).await.unwrap();
    assert!(matches!(closed.reason, CloseReason::CertificateRefused | CloseReason::Detached), "{closed:?}");
    let refused = bench.session(agent.identify(false, &[]), agent.instance).await.unwrap_err();
    assert_eq!(refused.fault, towline_tunnel::fault::Fault::AgentCertificateRefused, "{refused}");
}

#[tokio::test]
async fn t31_an_enrolment_token_that_was_used_is_refused_on_the_wire() {
    let bench = Bench::new(limits()).await;
    let secret = bench.enrolment_secret("edge").await;
    // The same cluster: another one would be refused because the name is taken.
    let cluster = SigningKey::generate();
    let enrol = async || {
        let key = SigningKey::generate();
        let instance = InstanceId::random();
        let identify = Identify::Enrol { secret: &secret, cluster: &cluster, instance, key: &key };
        bench.session(identify, instance).await.map(|(connection, driver, _)| (connection, driver))
    };
    let _first = enrol().await.unwrap();
    let refused = enrol().await.unwrap_err();
    assert_eq!(refused.fault, towline_tunnel::fault::Fault::EnrolTokenRefused);
}

#[tokio::test]
async fn names_are_resolved_and_certificates_renewed_beside_the_streams() {
    let bench = Bench::new(limits()).await;
    let agent = bench.agent("edge").await;
    bench.allow("alice", agent.cluster()).await;
    let client = bench.client("alice").await;
    let ask = async |connection: &towline_tunnel::mux::Connection, question: Control| {
        assert!(connection.control(question.encode(7)));
        let answer = timeout(SOON, connection.next_control()).await.unwrap().unwrap();
        let (id, answer) = Control::decode(&answer).unwrap();
        assert_eq!(id, 7);
        answer
    };
    let resolve = |name: &str| Control::Resolve { name: name.into() };
    let resolved = ask(&client.connection, resolve("edge")).await;
    assert_eq!(resolved, Control::Resolved { cluster: agent.cluster(), name: "edge".into(), online: true });
    bench.agent("elsewhere").await;
    let refused = ask(&client.connection, resolve("elsewhere")).await;
    let Control::Failed { reason: CloseReason::Forbidden, detail } = refused else { panic!("{refused:?}") };
    assert!(detail.contains("--user alice --role cluster-user --cluster elsewhere;"), "{detail}");
    let unknown = ask(&client.connection, resolve("other")).await;
    assert!(matches!(unknown, Control::Failed { reason: CloseReason::ClusterUnknown, .. }), "{unknown:?}");
    let key = agent.key.public();
    assert!(matches!(ask(&agent.connection, Control::Renew { key }).await, Control::Renewed { .. }));
    let stolen = ask(&agent.connection, Control::Renew { key: SigningKey::generate().public() }).await;
    assert!(matches!(stolen, Control::Failed { reason: CloseReason::CertificateRefused, .. }), "{stolen:?}");
    let not_yours = ask(&client.connection, Control::Renew { key }).await;
    assert!(matches!(not_yours, Control::Failed { reason: CloseReason::Forbidden, .. }), "{not_yours:?}");
}

#[tokio::test]
async fn a_drain_refuses_newcomers_and_lets_streams_end() {
    let bench = Bench::new(limits()).await;
    let agent = bench.echo("edge").await;
    bench.allow("alice", agent.cluster()).await;
    let client = bench.client("alice").await;
    let mut stream = client.open(agent.cluster());
    echoes(&mut stream, b"before").await;
    let address = bench.relay.address();
    let drain = tokio::spawn(bench.relay.drain());
    let goaway = timeout(SOON, client.connection.going_away()).await.unwrap().unwrap();
    assert_eq!(goaway.reason, CloseReason::Draining);
    assert!(!client.connection.is_open());
    echoes(&mut stream, b"during").await;
    eventually("the listener is closed", async || tokio::net::TcpStream::connect(address).await.is_err())
        .await;
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    timeout(SOON, stream.read_to_end(&mut rest)).await.unwrap().unwrap();
    drop(stream);
    assert!(timeout(SOON, drain).await.unwrap().unwrap(), "all streams ended by themselves");
}

#[tokio::test]
async fn a_user_has_so_many_sessions_and_a_session_so_many_streams() {
    let bench = Bench::new(Limits { max_sessions_per_user: 1, max_streams_per_client: 2, ..limits() }).await;
    let agent = bench.echo("edge").await;
    bench.allow("alice", agent.cluster()).await;
    let client = bench.client("alice").await;
    let (token, run_key) = (bench.token("alice", &[]), SigningKey::generate());
    let identify = Identify::Client { token: &token, run_key: &run_key, line: false };
    let refused = bench.session(identify, InstanceId::random()).await.unwrap_err();
    assert_eq!(refused.fault, towline_tunnel::fault::Fault::RelayLimit, "{refused}");
    let (mut one, mut two) = (client.open(agent.cluster()), client.open(agent.cluster()));
    echoes(&mut one, b"1").await;
    echoes(&mut two, b"2").await;
    assert_eq!(ending(&mut client.open(agent.cluster())).await, CloseReason::LimitReached);
    echoes(&mut one, b"1").await;
}

#[tokio::test]
async fn a_user_has_so_many_streams_on_all_sessions_together() {
    let bench = Bench::new(Limits { max_streams_per_user: 3, ..limits() }).await;
    let (a, b) = (bench.echo("a").await, bench.echo("b").await);
    for user in ["alice", "bob"] {
        bench.allow(user, a.cluster()).await;
        bench.allow(user, b.cluster()).await;
    }
    let sessions = [bench.client("alice").await, bench.client("alice").await];
    let mut held = Vec::new();
    for (session, agent) in [(0, &a), (1, &a), (1, &b)] {
        let mut stream = sessions[session].open(agent.cluster());
        echoes(&mut stream, b"x").await;
        held.push(stream);
    }
    for session in &sessions {
        let mut refused = session.open(b.cluster());
        let error = timeout(SOON, refused.read(&mut [0])).await.unwrap().unwrap_err();
        let error = error.get_ref().unwrap().downcast_ref::<StreamError>().unwrap();
        assert_eq!(error.reason, CloseReason::LimitReached);
        assert!(error.detail.contains("--max-streams-per-user"), "{error:?}");
    }
    echoes(&mut bench.client("bob").await.open(a.cluster()), b"another user's").await;
    // A session that ends gives back what was its, and so does a stream.
    let [first, second] = sessions;
    first.connection.close();
    held.remove(0);
    eventually("there is room for one", async || {
        let mut stream = second.open(b.cluster());
        let opened = stream.write_all(b"x").await.is_ok() && stream.read_u8().await.is_ok();
        if opened {
            held.push(stream);
        }
        opened
    })
    .await;
    assert_eq!(ending(&mut second.open(b.cluster())).await, CloseReason::LimitReached);
    held.pop();
    eventually("and for another one", async || {
        let mut stream = second.open(b.cluster());
        stream.write_all(b"x").await.is_ok() && stream.read_u8().await.is_ok()
    })
    .await;
}

/// What the relay promises for one user has a bound, however many sessions and agents they use; what is below 16 KiB is never withheld,
/// and others get as much as before.
#[tokio::test]
async fn a_user_is_promised_so_many_bytes_on_all_sessions_together() {
    const MOST: u64 = 1 << 20;
    const EACH: usize = 10;
    let bench = Bench::new(Limits { max_buffered_bytes_per_user: MOST, ..limits() }).await;
    let agents = [bench.echo("a").await, bench.echo("b").await];
    for agent in &agents {
        bench.allow("alice", agent.cluster()).await;
        bench.allow("bob", agent.cluster()).await;
    }
    let promised = async || bench.metric("towline_relay_buffered_bytes").await;
    let sessions = [bench.client("alice").await, bench.client("alice").await];
    let mut held = Vec::new();
    for (session, agent) in sessions.iter().zip(&agents) {
        for _ in 0..EACH {
            let mut stream = session.open(agent.cluster());
            echoes(&mut stream, &[1; 16_000]).await;
            held.push(stream);
        }
    }
    let hers = promised().await;
    assert!(hers <= MOST, "{hers} for {} streams", held.len());
    assert!(hers > MOST / 2, "{hers}: what there is is used");
    let bob = bench.client("bob").await;
    let mut his = bob.open(agents[0].cluster());
    echoes(&mut his, b"x").await;
    assert!(promised().await > hers, "another user's streams are promised more");
    for stream in &mut held {
        echoes(stream, &[2; 100_000]).await;
    }
    drop((held, his));
    eventually("all is given back", async || promised().await == 0).await;
}
