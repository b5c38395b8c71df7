//! The whole agent against a relay's, an issuer's and kube-apiserver's stand-ins: joining, staying, leaving.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod support;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use support::{
    Cap, WITHIN, fault, parts, read_to_end, read_until,
    relay::{AgentSession, Relay, certificate, joins},
    whole::World,
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::timeout};
use tokio_util::task::AbortOnDropHandle;
use towline_agent::{
    app::{self, Config, RelayConfig, Running, Status},
    secret::StateSecret,
    state::DataDir,
};
use towline_identity::dev::DevIssuer;
use towline_tunnel::{
    fault::Fault,
    issuer_host::IssuerHost,
    keys::SigningKey,
    mux::{CloseReason, LineSettings},
    session::control::Control,
};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";

async fn world() -> World {
    World::with(Cap::answering(OK).await).await
}

async fn get(world: &World, agent: &Running, session: &AgentSession, path: &str) -> String {
    world.answer(world.connect(agent.cluster(), session).await, path).await
}

async fn left(session: &AgentSession) -> CloseReason {
    timeout(WITHIN, session.connection.closed()).await.unwrap().reason
}

#[tokio::test]
async fn an_agent_enrols_once_and_comes_back_by_its_clusters_key() {
    let mut world = world().await;
    let mut agent = world.start().await;
    agent.connected(WITHIN).await.unwrap();
    let session = world.relay.session().await;
    assert_eq!(session.by, "token");
    assert_eq!(parts(&get(&world, &agent, &session, "/api/v1/pods").await), (200, "{}"));
    let Status::Connected { name, .. } = agent.status().borrow().clone() else { panic!("not connected") };
    assert_eq!(name.as_deref(), Some("edge-7"));
    let (cluster, instance) = (agent.cluster(), session.instance);
    drop(agent);
    // The token stands in its file for ever; it is used once.
    let agent = world.start().await;
    let session = world.relay.session().await;
    assert_eq!((session.by, agent.cluster()), ("join", cluster));
    assert_ne!(session.instance, instance, "a process is an instance of its own");
    assert_eq!(
        parts(&get(&world, &agent, &session, "/api/v1/pods").await).0,
        200,
        "the pinned key judges tickets"
    );
}

/// Leads all streams that an agent opens to this address, whatever they ask for, and notes what they do ask for.
fn lead(session: &AgentSession, to: SocketAddr) -> (Arc<Mutex<Vec<String>>>, AbortOnDropHandle<()>) {
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let (connection, noted) = (session.connection.clone(), Arc::clone(&asked));
    let leading = tokio::spawn(async move {
        while let Ok((_, mut stream)) = connection.accept().await {
            let host = IssuerHost::read(&mut stream).await.unwrap();
            noted.lock().unwrap().push(host.to_string());
            tokio::spawn(async move {
                let mut tcp = TcpStream::connect(to).await.unwrap();
                tokio::io::copy_bidirectional(&mut stream, &mut tcp).await
            });
        }
    });
    (asked, AbortOnDropHandle::new(leading))
}

fn address(issuer: &DevIssuer) -> SocketAddr {
    issuer.url().strip_prefix("https://").unwrap().parse().unwrap()
}

#[tokio::test]
async fn an_agent_that_reaches_nothing_else_has_its_issuers_keys_through_the_relay() {
    let mut world = world().await;
    let agent = app::start(Config { issuer_via_relay: true, ..world.config() }).await.unwrap();
    let session = world.relay.session().await;
    let issuer = address(&world.issuer);
    let (asked, _leading) = lead(&session, issuer);
    assert_eq!(parts(&get(&world, &agent, &session, "/api/v1/pods").await).0, 200);
    let asked = asked.lock().unwrap().clone();
    assert!(!asked.is_empty() && asked.iter().all(|host| *host == issuer.to_string()), "{asked:?}");
}

/// A relay that leads elsewhere decides nothing: TLS ends at the issuer, by its own authorities.
#[tokio::test]
async fn t42_a_relay_that_serves_keys_of_its_own_is_not_believed() {
    let mut world = world().await;
    let agent = app::start(Config { issuer_via_relay: true, ..world.config() }).await.unwrap();
    let session = world.relay.session().await;
    let forger = DevIssuer::start(0).await.unwrap();
    let (asked, _leading) = lead(&session, address(&forger));
    let answer = get(&world, &agent, &session, "/api/v1/pods").await;
    assert_eq!(parts(&answer).0, 503, "{answer}");
    assert!(answer.contains("TL-IDN-005") && !asked.lock().unwrap().is_empty(), "{answer}");
    assert!(
        world.cap.seen().iter().all(|head| !head.contains("/api/v1/pods")),
        "nothing reached the apiserver"
    );
}

#[tokio::test]
async fn a_session_that_was_lost_is_replaced_by_the_same_instance_with_its_certificate() {
    let mut world = world().await;
    let agent = world.start().await;
    let first = world.relay.session().await;
    first.cut.cancel();
    let second = world.relay.session().await;
    assert_eq!((second.by, second.instance), ("certificate", first.instance));
    assert_eq!(parts(&get(&world, &agent, &second, "/api/v1/pods").await).0, 200);
    // Withdrawn: the cluster's key vouches for another instance.
    world.relay.manner.lock().unwrap().certificates = false;
    second.cut.cancel();
    let third = world.relay.session().await;
    assert_eq!(third.by, "join");
    assert_ne!(third.instance, first.instance);
    support::eventually("one session is counted", || agent.metrics().sessions.get() == 1).await;
}

#[tokio::test]
async fn t31_a_token_that_is_refused_ends_the_agent_with_the_reason() {
    let world = world().await;
    world.relay.manner.lock().unwrap().secret = None;
    let mut agent = world.start().await;
    let report = agent.connected(WITHIN).await.unwrap_err();
    assert_eq!((report.fault, report.exit_code()), (Fault::EnrolTokenRefused, 12));
    assert!(report.to_string().contains("used before"), "{report}");
    assert_eq!(timeout(WITHIN, agent.ended()).await.unwrap().unwrap_err().fault, Fault::EnrolTokenRefused);
}

#[tokio::test]
async fn an_agent_that_was_stopped_right_after_it_enrolled_is_let_in() {
    let mut world = world().await;
    let agent = world.start().await;
    world.relay.session().await;
    drop(agent);
    // It may not have come so far as to write it.
    let _gone = std::fs::remove_file(world.folder.path().join("agent/relay.json"));
    let _agent = world.start().await;
    assert_eq!(world.relay.session().await.by, "join");
}

#[tokio::test]
async fn without_a_token_an_agent_that_never_enrolled_says_what_is_missing() {
    let world = world().await;
    let report = app::start(Config { relay: RelayConfig::default(), ..world.config() }).await.unwrap_err();
    assert_eq!(report.fault, Fault::ConfigInvalid);
    assert!(report.to_string().contains("towline-relay enroll"), "{report}");
}

#[tokio::test]
async fn a_busy_metrics_port_fails_the_start() {
    let world = world().await;
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let metrics_listen = holder.local_addr().unwrap();
    let report = app::start(Config { metrics_listen, ..world.config() }).await.unwrap_err();
    assert_eq!(report.fault, Fault::PortBusy);
    assert_eq!(*world.relay.dialled.lock().unwrap(), 0);
}

#[tokio::test]
async fn t43_another_relay_than_the_tokens_learns_nothing() {
    let world = world().await;
    let mut token = world.relay.token();
    token.relay_key = SigningKey::generate().public().hash();
    let mut agent = app::start(Config { relay: joins(token), ..world.config() }).await.unwrap();
    let mut status = agent.status();
    let told = status.wait_for(|status| matches!(status, Status::Away(Some(_))));
    let told = timeout(WITHIN, told).await.unwrap().unwrap().clone();
    let Status::Away(Some(report)) = told else { panic!("{told:?}") };
    assert_eq!(report.fault, Fault::RelayKeyMismatch);
    assert!(world.relay.manner.lock().unwrap().secret.is_some(), "the secret was not sent");
    assert!(agent.connected(Duration::from_millis(1)).await.is_err());
}

#[tokio::test]
async fn a_certificate_is_renewed_over_the_session() {
    let mut world = world().await;
    // Two thirds of next to nothing: due at once.
    world.relay.manner.lock().unwrap().life = Duration::from_secs(2);
    let _agent = world.start().await;
    let session = world.relay.session().await;
    let question = timeout(WITHIN, session.connection.next_control()).await.unwrap().unwrap();
    let (id, Control::Renew { .. }) = Control::decode(&question).unwrap() else { panic!("{question:?}") };
    let next = Control::Renewed { certificate: certificate(Duration::from_secs(2)) };
    assert!(session.connection.control(next.encode(id)));
    let again = timeout(WITHIN, session.connection.next_control()).await.unwrap().unwrap();
    assert_eq!(Control::decode(&again).unwrap().0, id + 1);
}

/// A watch that never ends by itself.
async fn watched() -> Cap {
    Cap::new(|mut connection| async move {
        let head = connection.head().await?.unwrap_or_default();
        let kind = if head.contains("watch=") { "application/json" } else { "text/plain" };
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{{}}\n\r\n"
        );
        connection.say(answer.as_bytes()).await?;
        connection.drained().await
    })
    .await
}

#[tokio::test]
async fn when_the_relay_goes_a_replacement_is_dialled_while_streams_go_on() {
    let mut world = World::with(watched().await).await;
    let agent = world.start().await;
    let old = world.relay.session().await;
    let mut watch = world.connect(agent.cluster(), &old).await;
    watch.write_all(world.head("GET /api/v1/pods?watch=true").as_bytes()).await.unwrap();
    read_until(&mut watch, "{}\n\r\n").await;
    old.connection.go_away(CloseReason::Draining, Duration::ZERO, "");
    let new = world.relay.session().await;
    assert_eq!((new.by, new.instance), ("certificate", old.instance));
    assert_eq!(old.connection.stream_count(), 1, "the watch is still there");
    drop(watch);
    left(&old).await;
    support::eventually("the old one is gone", || agent.metrics().sessions.get() == 1).await;
}

#[tokio::test]
async fn an_agent_that_drains_says_so_finishes_and_ends() {
    let mut world = World::with(watched().await).await;
    let config = Config { drain_timeout: Duration::from_millis(300), ..world.config() };
    let agent = app::start(config).await.unwrap();
    let session = world.relay.session().await;
    let mut streams = Vec::new();
    for line in ["GET /api/v1/pods?watch=true", "GET /log?follow=true"] {
        let mut stream = world.connect(agent.cluster(), &session).await;
        stream.write_all(world.head(line).as_bytes()).await.unwrap();
        read_until(&mut stream, "{}\n\r\n").await;
        streams.push(stream);
    }
    let draining = tokio::spawn(agent.drain());
    let said = timeout(WITHIN, session.connection.going_away()).await.unwrap().unwrap();
    assert_eq!(said.reason, CloseReason::Draining);
    assert!(!draining.is_finished());
    assert_eq!(read_to_end(&mut streams[0]).await.unwrap(), "0\r\n\r\n", "a watch ends");
    assert!(read_to_end(&mut streams[1]).await.is_err(), "what is cut is no end");
    assert!(timeout(WITHIN, draining).await.unwrap().unwrap());
    left(&session).await;
}

/// A kube-apiserver that keeps one Secret and gives one account's tokens.
async fn with_secret(conflicts: usize) -> Cap {
    let data = std::sync::Arc::new(std::sync::Mutex::new((serde_json::Map::new(), conflicts)));
    Cap::new(move |mut connection| {
        let data = std::sync::Arc::clone(&data);
        async move {
            while let Some(head) = connection.head().await? {
                let length =
                    head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                let body = connection.take(length.unwrap_or(0)).await?;
                let (code, answer) = respond(&head, &body, &mut data.lock().unwrap());
                let answer = answer.to_string();
                let head = format!("HTTP/1.1 {code} X\r\nContent-Length: {}\r\n\r\n{answer}", answer.len());
                connection.say(head.as_bytes()).await?;
            }
            Ok(())
        }
    })
    .await
}

fn respond(
    head: &str,
    body: &[u8],
    (data, conflicts): &mut (serde_json::Map<String, serde_json::Value>, usize),
) -> (u16, serde_json::Value) {
    use serde_json::json;
    if head.starts_with("POST /api/v1/namespaces/towline/serviceaccounts/deputy/token ") {
        let status = json!({ "token": "deputy-token", "expirationTimestamp": "2999-01-01T00:00:00Z" });
        return (201, json!({ "status": status }));
    }
    if head.starts_with("PATCH ") {
        let patch: serde_json::Value = serde_json::from_slice(body).unwrap();
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        if *conflicts > 0 {
            *conflicts -= 1;
            let other = SigningKey::generate();
            data.insert(
                "identity-key.pem".into(),
                json!(data_encoding::BASE64.encode(other.to_pem().as_bytes())),
            );
            return (409, json!({ "kind": "Status", "message": "changed" }));
        }
        for (name, value) in patch["data"].as_object().unwrap() {
            data.insert(name.clone(), value.clone());
        }
    }
    (200, json!({ "metadata": { "resourceVersion": "7" }, "data": data }))
}

#[tokio::test]
async fn a_pod_finds_its_clusters_identity_and_relay_in_the_secret() {
    for conflicts in [0, 1] {
        let mut world = World::with(with_secret(conflicts).await).await;
        let secret = || Some(StateSecret::parse("towline/state").unwrap());
        let config = |world: &World, folder: &str| Config {
            data_dir: world.folder.path().join(folder),
            state_secret: secret(),
            ..world.config()
        };
        let first = app::start(config(&world, "pod-1")).await.unwrap();
        assert_eq!(world.relay.session().await.by, "token");
        support::eventually("it is kept", || world.cap.seen().concat().matches("PATCH ").count() == 2).await;
        let cluster = first.cluster();
        drop(first);
        let second =
            app::start(Config { relay: RelayConfig::default(), ..config(&world, "pod-2") }).await.unwrap();
        assert_eq!(second.cluster(), cluster);
        assert_eq!(world.relay.session().await.by, "join");
        let report = app::start(Config { state_secret: secret(), ..config(&world, "pod-1") }).await;
        assert!(report.is_ok(), "the same folder again");
    }
}

#[tokio::test]
async fn a_second_relay_is_kept_in_the_secret_and_forgotten_there_with_its_setting() {
    let mut world = World::with(with_secret(0).await).await;
    let mut second = Relay::new().await;
    let config = |world: &World, folder: &str, second_relay| Config {
        data_dir: world.folder.path().join(folder),
        state_secret: Some(StateSecret::parse("towline/state").unwrap()),
        second_relay,
        ..world.config()
    };
    let patches = |world: &World| world.cap.seen().concat().matches("PATCH ").count();
    let agent = app::start(config(&world, "pod-1", Some(second.config()))).await.unwrap();
    assert_eq!((world.relay.session().await.by, second.session().await.by), ("token", "token"));
    support::eventually("all is kept", || patches(&world) == 3).await;
    drop(agent);
    let agent = app::start(config(&world, "pod-2", Some(RelayConfig::default()))).await.unwrap();
    assert_eq!((world.relay.session().await.by, second.session().await.by), ("join", "join"));
    drop(agent);
    drop(app::start(config(&world, "pod-3", None)).await.unwrap());
    assert_eq!(patches(&world), 4, "it is forgotten");
    let report = app::start(config(&world, "pod-4", Some(RelayConfig::default()))).await.unwrap_err();
    assert!(report.to_string().contains("--second-enrolment-token-file"), "{report}");
}

/// The folder's key is what clients have pinned; whatever else is written to the Secret meanwhile, it stays.
#[tokio::test]
async fn an_identity_that_was_there_outlives_a_conflict_over_the_secret() {
    let world = World::with(with_secret(1).await).await;
    let folder = world.folder.path().join("pod-1");
    let kept = DataDir::open(&folder).unwrap().identity().unwrap().public();
    let config = Config {
        data_dir: folder.clone(),
        state_secret: Some(StateSecret::parse("towline/state").unwrap()),
        ..world.config()
    };
    let report = app::start(config).await.unwrap_err();
    assert_eq!(report.fault, Fault::ConfigInvalid, "the Secret holds another's now: {report}");
    assert!(DataDir::open(&folder).unwrap().has_identity());
    assert_eq!(DataDir::open(&folder).unwrap().identity().unwrap().public(), kept);
}

#[tokio::test]
async fn requests_go_with_the_impersonators_token_and_state_with_the_agents_own() {
    let mut world = World::with(with_secret(0).await).await;
    let config = Config {
        impersonator: Some("towline/deputy".into()),
        state_secret: Some(StateSecret::parse("towline/state").unwrap()),
        ..world.config()
    };
    let agent = app::start(config).await.unwrap();
    let session = world.relay.session().await;
    for _ in 0..3 {
        assert_eq!(parts(&get(&world, &agent, &session, "/api/v1/pods").await).0, 200);
    }
    let seen = world.cap.seen().concat();
    let heads: Vec<_> = seen.split("\r\n\r\n").collect();
    for head in &heads {
        if head.contains("GET /api/v1/pods HTTP") {
            assert!(head.contains("authorization: Bearer deputy-token"), "{head}");
        } else if head.contains("/selfsubject") {
            // Each account asks about itself.
        } else if head.contains("authorization: ") {
            assert!(head.contains("authorization: Bearer agent-token"), "{head}");
        }
    }
    assert_eq!(seen.matches("GET /api/v1/pods HTTP").count(), 3);
    assert_eq!(seen.matches("/deputy/token HTTP").count(), 1, "a token is kept while it is good");
}

#[tokio::test]
async fn an_impersonator_that_gives_no_token_is_told_as_the_agents_fault() {
    let mut world = World::with(Cap::answering(
        "HTTP/1.1 403 Forbidden\r\nContent-Length: 50\r\n\r\n{\"kind\":\"Status\",\"message\":\"deputy is off limits\"} ",
    ).await).await;
    let config = Config { impersonator: Some("towline/deputy".into()), ..world.config() };
    let agent = app::start(config).await.unwrap();
    let session = world.relay.session().await;
    let answer = get(&world, &agent, &session, "/api/v1/pods").await;
    assert_eq!(fault(&answer), (503, "TL-AGT-001".into()));
    assert!(answer.contains("deputy is off limits"), "{answer}");
}

/// Every stream that carried a request is bulk.
fn with_lines(world: &World, max: u32) -> Config {
    let idle = Duration::from_millis(300);
    Config { lines: LineSettings { idle, ..LineSettings::new(max, 1000) }, ..world.config() }
}

#[tokio::test]
async fn a_stream_that_carries_much_makes_the_agent_dial_a_line_that_ends_when_idle() {
    let mut world = world().await;
    let agent = app::start(with_lines(&world, 1)).await.unwrap();
    let session = world.relay.session().await;
    assert!(!session.line);
    for _ in 0..2 {
        assert_eq!(parts(&get(&world, &agent, &session, "/api/v1/pods").await).0, 200);
        let line = world.relay.session().await;
        assert!(line.line && line.by == "certificate" && line.instance == session.instance);
        let counted = || (agent.metrics().sessions.get(), agent.metrics().lines.get());
        support::eventually("it is counted apart", || counted() == (1, 1)).await;
        left(&line).await;
        support::eventually("it is not counted any more", || agent.metrics().lines.get() == 0).await;
    }
    assert!(session.connection.is_open());
}

#[tokio::test]
async fn an_agent_whose_lines_are_refused_serves_on_and_does_not_dial_at_once_again() {
    let mut world = world().await;
    world.relay.manner.lock().unwrap().lines = false;
    let agent = app::start(with_lines(&world, 3)).await.unwrap();
    let session = world.relay.session().await;
    let begun = std::time::Instant::now();
    for _ in 0..30 {
        assert_eq!(parts(&get(&world, &agent, &session, "/api/v1/pods").await).0, 200);
    }
    // Full jitter, from a second on: 30 streams do not make 30 attempts.
    let dialled = *world.relay.dialled.lock().unwrap();
    assert!((2..20).contains(&dialled), "{dialled} connections in {:?}", begun.elapsed());
    assert!(session.connection.is_open());
}

#[tokio::test]
async fn an_agent_that_drains_takes_its_lines_with_it() {
    let mut world = world().await;
    let idle = Duration::from_secs(600);
    let lines = LineSettings { idle, ..LineSettings::new(1, 1000) };
    let agent = app::start(Config { lines, ..world.config() }).await.unwrap();
    let session = world.relay.session().await;
    assert_eq!(parts(&get(&world, &agent, &session, "/api/v1/pods").await).0, 200);
    let line = world.relay.session().await;
    assert!(timeout(WITHIN, agent.drain()).await.unwrap());
    left(&session).await;
    left(&line).await;
}
