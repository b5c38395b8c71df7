//! An agent with two relays: each is served as if it were the only one, and neither has a say at the other.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod support;

use std::time::Duration;

use support::{
    Cap, WITHIN, eventually, parts,
    relay::{AgentSession, Relay, joins},
    whole::World,
};
use tokio::time::timeout;
use towline_agent::{
    app::{self, Config, RelayConfig, Running, Status},
    preflight::examine,
};
use towline_tunnel::{
    doctor::Status as Seen, enrolment::EnrolmentToken, fault::Fault, ids::ChannelId, session::message::Secret,
};

struct Two {
    world: World,
    second: Relay,
}

impl Two {
    async fn new() -> Self {
        let cap = Cap::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await;
        Self { world: World::with(cap).await, second: Relay::new().await }
    }

    fn config(&self) -> Config {
        Config { second_relay: Some(self.second.config()), ..self.world.config() }
    }

    async fn start(&self) -> Running {
        app::start(self.config()).await.unwrap()
    }

    /// A request through a session of the second relay's.
    async fn through_second(&self, agent: &Running, session: &AgentSession) -> String {
        let cluster = agent.cluster();
        let stream = self.world.open(cluster, session, &self.second.tickets);
        self.world.answer(self.world.inner(cluster, stream).await.unwrap(), "/api/v1/pods").await
    }

    async fn through_first(&self, agent: &Running, session: &AgentSession) -> String {
        self.world.answer(self.world.connect(agent.cluster(), session).await, "/api/v1/pods").await
    }
}

async fn connected_by(agent: &Running, channel: ChannelId) {
    let mut status = agent.status();
    let by =
        status.wait_for(|status| matches!(status, Status::Connected { channel: on, .. } if *on == channel));
    timeout(WITHIN, by).await.expect("it says so").unwrap();
}

/// As Prometheus reads it.
fn is_connected(agent: &Running, relay: &str) -> Option<bool> {
    let line = format!("towline_agent_relay_connected{{relay=\"{relay}\"}} ");
    agent.metrics().page().lines().find_map(|found| Some(found.strip_prefix(&line)? == "1"))
}

#[tokio::test]
async fn both_are_served_and_what_happens_at_one_is_nothing_to_the_other() {
    let mut two = Two::new().await;
    let agent = two.start().await;
    let (first, second) = (two.world.relay.session().await, two.second.session().await);
    assert_eq!((first.by, second.by), ("token", "token"));
    assert_ne!(first.instance, second.instance, "neither can tell by that that the other has it, too");
    connected_by(&agent, first.channel).await;
    assert_eq!(parts(&two.through_first(&agent, &first).await), (200, "{}"));
    assert_eq!(parts(&two.through_second(&agent, &second).await), (200, "{}"));
    assert_eq!((is_connected(&agent, "first"), is_connected(&agent, "second")), (Some(true), Some(true)));

    // The first goes, and stays away.
    {
        let mut manner = two.world.relay.manner.lock().unwrap();
        (manner.certificates, manner.enrolled) = (false, false);
    }
    first.cut.cancel();
    connected_by(&agent, second.channel).await;
    assert_eq!(parts(&two.through_second(&agent, &second).await), (200, "{}"));
    eventually("it is counted", || is_connected(&agent, "first") == Some(false)).await;
    assert_eq!(is_connected(&agent, "second"), Some(true));

    // And comes back.
    {
        let mut manner = two.world.relay.manner.lock().unwrap();
        (manner.certificates, manner.enrolled) = (true, true);
    }
    let first = two.world.relay.session().await;
    connected_by(&agent, first.channel).await;
    assert_eq!(parts(&two.through_first(&agent, &first).await), (200, "{}"));
    assert!(second.connection.is_open());
    assert!(agent.drain().await);
}

/// What one relay signs is worth nothing at the other: it has let in whom it chose.
#[tokio::test]
async fn t45_a_ticket_of_one_relay_opens_nothing_through_the_other() {
    let mut two = Two::new().await;
    let agent = two.start().await;
    let (first, second) = (two.world.relay.session().await, two.second.session().await);
    let cluster = agent.cluster();
    for (session, tickets) in [(&first, &two.second.tickets), (&second, &two.world.relay.tickets)] {
        let stream = two.world.open(cluster, session, tickets);
        assert!(two.world.inner(cluster, stream).await.is_err());
    }
    let counted = format!("towline_agent_refusals_total{{fault=\"{}\"}} 2", Fault::TicketMismatch.code());
    assert!(agent.metrics().page().contains(&counted), "{}", agent.metrics().page());
    let heard = two.world.cap.seen().concat().to_lowercase();
    assert!(!heard.contains("impersonate-"), "kube-apiserver has heard of neither: {heard}");
}

#[tokio::test]
async fn it_comes_back_to_both_by_its_clusters_key_and_without_tokens() {
    let mut two = Two::new().await;
    let agent = two.start().await;
    let cluster = agent.cluster();
    for file in ["relay.json", "second-relay.json"] {
        let kept = two.world.folder.path().join("agent").join(file);
        eventually("it is kept", || kept.exists()).await;
    }
    let _first_time = (two.world.relay.session().await, two.second.session().await);
    drop(agent);
    let config = Config {
        relay: RelayConfig::default(),
        second_relay: Some(RelayConfig::default()),
        ..two.world.config()
    };
    let agent = app::start(config).await.unwrap();
    assert_eq!((two.world.relay.session().await.by, two.second.session().await.by), ("join", "join"));
    assert_eq!(agent.cluster(), cluster);
    drop(agent);
    // Whoever configures one only has one only, whatever is kept of another.
    let agent = app::start(Config { relay: RelayConfig::default(), ..two.world.config() }).await.unwrap();
    two.world.relay.session().await;
    assert_eq!((is_connected(&agent, "first").is_some(), is_connected(&agent, "second")), (true, None));
    drop(agent);
    let config = Config { second_relay: Some(RelayConfig::default()), ..two.world.config() };
    let report = app::start(config).await.unwrap_err();
    assert_eq!(report.fault, Fault::ConfigInvalid, "that one is forgotten: {report}");
}

#[tokio::test]
async fn a_relay_that_does_not_let_it_in_is_left_to_the_other_and_noted() {
    let mut two = Two::new().await;
    two.second.manner.lock().unwrap().secret = None;
    let mut agent = two.start().await;
    let first = two.world.relay.session().await;
    agent.connected(WITHIN).await.unwrap();
    let noted = two.world.folder.path().join("agent/second-refused-token.json");
    eventually("it is noted", || noted.exists()).await;
    assert_eq!(parts(&two.through_first(&agent, &first).await), (200, "{}"));
    assert_eq!(is_connected(&agent, "second"), Some(false));
    let unending = timeout(Duration::from_millis(50), agent.ended()).await;
    assert!(unending.is_err(), "{unending:?}");
    drop(agent);

    // Preflight knows, and says of which.
    let diagnosis = examine(two.config(), |_| {}).await;
    let refused: Vec<_> = diagnosis
        .findings
        .iter()
        .filter(|finding| finding.fault() == Some(Fault::EnrolTokenRefused))
        .collect();
    assert_eq!(refused.len(), 1, "{diagnosis:#?}");
    let ways =
        diagnosis.findings.iter().filter(|finding| finding.step == "tls" && finding.status == Seen::Ok);
    assert_eq!(ways.count(), 1, "the way to the first, which is well: {diagnosis:#?}");

    // Where neither does, it ends as with one.
    two.world.relay.manner.lock().unwrap().enrolled = false;
    let _gone = std::fs::remove_file(two.world.folder.path().join("agent/relay.json"));
    let mut agent = app::start(two.config()).await.unwrap();
    let report = timeout(WITHIN, agent.ended()).await.expect("it ends").unwrap_err();
    assert_eq!(report.fault, Fault::EnrolTokenRefused);
}

/// What was joined before is another relay than the one that is meant now.
#[tokio::test]
async fn a_second_relay_that_refuses_is_not_replaced_by_the_one_before() {
    let mut two = Two::new().await;
    let agent = two.start().await;
    let _before = (two.world.relay.session().await, two.second.session().await);
    let kept = two.world.folder.path().join("agent/second-relay.json");
    eventually("it is kept", || kept.exists()).await;
    drop(agent);
    let other = Relay::new().await;
    other.manner.lock().unwrap().secret = None;
    let dialled = *two.second.dialled.lock().unwrap();
    let token = EnrolmentToken { secret: Secret::new([8; 32]), ..other.token() };
    let config = Config { second_relay: Some(joins(token)), ..two.world.config() };
    let agent = app::start(config).await.unwrap();
    two.world.relay.session().await;
    let noted = two.world.folder.path().join("agent/second-refused-token.json");
    eventually("it is noted", || noted.exists()).await;
    assert_eq!((is_connected(&agent, "second"), *two.second.dialled.lock().unwrap()), (Some(false), dialled));
}

#[tokio::test]
async fn preflight_looks_at_the_ways_to_both() {
    let two = Two::new().await;
    let diagnosis = examine(two.config(), |_| {}).await;
    let seen = |step: &str, text: &str| {
        let found =
            |finding: &&towline_tunnel::doctor::Finding| finding.step == step && finding.seen.contains(text);
        diagnosis.findings.iter().filter(found).count()
    };
    for relay in [&two.world.relay, &two.second] {
        assert_eq!(seen("enrolment", &relay.address.to_string()), 1, "{diagnosis:#?}");
        assert_eq!(seen("tcp", &relay.address.to_string()), 1, "{diagnosis:#?}");
    }
}

#[tokio::test]
async fn what_can_not_be_two_relays_is_refused_at_the_start() {
    let two = Two::new().await;
    let refused = async |second: RelayConfig| {
        let config = Config { second_relay: Some(second), ..two.world.config() };
        let report = app::start(config).await.unwrap_err();
        assert_eq!(report.fault, Fault::ConfigInvalid);
        assert!(report.to_string().contains("--second-enrolment-token-file"), "{report}");
    };
    refused(RelayConfig::default()).await;
    refused(two.world.relay.config()).await;
    assert_eq!((*two.world.relay.dialled.lock().unwrap(), *two.second.dialled.lock().unwrap()), (0, 0));
}
