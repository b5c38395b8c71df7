//! What preflight says of faults that are put in on purpose on the agent's side, and of an agent that has none; and an agent that is asked
//! through its line.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod support;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use serde_json::{Value, json};
use support::{
    Cap, WITHIN,
    cap::json,
    fault, issuer_config, parts, read_to_end,
    relay::{Relay, joins},
    whole::config,
};
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt as _, time::timeout};
use towline_agent::{
    app::{self, Config, RelayConfig},
    dial::ApiserverConfig,
    preflight::examine,
    secret::StateSecret,
};
use towline_identity::dev::{DevIssuer, TokenRequest};
use towline_tunnel::{
    clock::Clock,
    doctor::{Diagnosis, Status},
    enrolment::EnrolmentToken,
    fault::{Fault, Report},
    ids::StreamKey,
    inner::{DOCTOR_PATH, InnerConnector, InnerStream},
    keys::SigningKey,
    mux::{MuxStream, OpenRequest},
    ticket::{MAX_LIFE, Ticket, TicketError},
};

/// What kube-apiserver says.
#[derive(Clone, Copy)]
enum Kube {
    Healthy,
    Unauthorized,
    DeniesImpersonation,
    HidesSecrets,
}

async fn kube(manner: Kube) -> Cap {
    Cap::new(move |mut connection| async move {
        while let Some(head) = connection.head().await? {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let body = connection.take(length.map_or(0, |length| length.parse().unwrap())).await?;
            let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            let review = |status: Value| json("201 Created", &json!({ "status": status }).to_string());
            let answer = match path.as_str() {
                _ if matches!(manner, Kube::Unauthorized) => json("401 Unauthorized", "{}"),
                "/version" => json("200 OK", r#"{"gitVersion":"v1.36.0"}"#),
                path if path.contains("selfsubjectrulesreviews") => {
                    review(json!({ "resourceRules": [], "nonResourceRules": [], "incomplete": false }))
                }
                path if path.contains("selfsubjectaccessreviews") => {
                    let verb = asked["spec"]["resourceAttributes"]["verb"].as_str().unwrap_or_default();
                    let denied =
                        matches!(manner, Kube::DeniesImpersonation) && verb.starts_with("impersonate");
                    review(json!({ "allowed": !denied }))
                }
                path if path.contains("/secrets/") && matches!(manner, Kube::HidesSecrets) => {
                    json("403 Forbidden", r#"{"kind":"Status","message":"secrets is forbidden"}"#)
                }
                path if path.contains("/secrets/") => {
                    json("200 OK", r#"{"metadata":{"resourceVersion":"1"}}"#)
                }
                _ => json("404 Not Found", "{}"),
            };
            connection.say(answer.as_bytes()).await?;
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
}

impl World {
    async fn new(manner: Kube) -> Self {
        let (folder, issuer) = (tempfile::tempdir().unwrap(), DevIssuer::start(0).await.unwrap());
        Self { folder, issuer, cap: kube(manner).await, relay: Relay::new().await }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn config(&self) -> Config {
        config(&self.folder, &self.issuer, &self.cap, self.relay.config())
    }

    /// The configuration with another kubeconfig, in which this stands in that one's place.
    fn with_kubeconfig(&self, from: &str, to: &str) -> Config {
        let text = std::fs::read_to_string(self.cap.kubeconfig(&self.folder)).unwrap();
        assert!(text.contains(from), "{text}");
        // One of its own: several stand side by side.
        let path = self.path(&format!("spoilt-{}", StreamKey::random()));
        std::fs::write(&path, text.replace(from, to)).unwrap();
        Config { apiserver: ApiserverConfig::Kubeconfig { path, context: None }, ..self.config() }
    }
}

async fn diagnose(config: Config) -> Diagnosis {
    timeout(towline_agent::preflight::WITHIN, examine(config, |_| {})).await.expect("it ends in time")
}

#[tokio::test]
async fn each_fault_on_the_agents_side_gets_its_own_diagnosis() {
    let healthy = World::new(Kube::Healthy).await;
    let over =
        EnrolmentToken { expires: SystemTime::now() - Duration::from_secs(60), ..healthy.relay.token() };
    let off_by = |ahead: bool| {
        let day = Duration::from_secs(24 * 3600);
        let clock = move || if ahead { SystemTime::now() + day } else { SystemTime::now() - day };
        Config { clock: Clock::new(clock), ..healthy.config() }
    };
    // Another cluster was quicker; an agent was started here and said so.
    let used = World::new(Kube::Healthy).await;
    used.relay.manner.lock().unwrap().secret = None;
    let mut agent = app::start(used.config()).await.unwrap();
    let report = timeout(WITHIN, agent.ended()).await.expect("it ends by itself").unwrap_err();
    assert_eq!(report.fault, Fault::EnrolTokenRefused);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gone = {
        let issuer = DevIssuer::start(0).await.unwrap();
        issuer_config(&issuer, &healthy.folder)
    };
    let secret = || Some(StateSecret::parse("towline/state").unwrap());
    let (unauthorized, denying, hiding) = (
        World::new(Kube::Unauthorized).await,
        World::new(Kube::DeniesImpersonation).await,
        World::new(Kube::HidesSecrets).await,
    );
    let other_ca = World::new(Kube::Healthy).await;
    let with_other_ca = other_ca.with_kubeconfig("apiserver-ca.pem", "other-ca.pem");
    std::fs::write(other_ca.path("other-ca.pem"), &other_ca.relay.ca_pem).unwrap();
    let mut wrong = Vec::new();
    for (name, config, expected) in [
        (
            "the enrolment token is over",
            Config { relay: joins(over), ..healthy.config() },
            Fault::EnrolTokenExpired,
        ),
        ("the enrolment token was used before", used.config(), Fault::EnrolTokenRefused),
        ("this clock is a day ahead (preflight)", off_by(true), Fault::ClockWrong),
        ("this clock is a day behind (preflight)", off_by(false), Fault::ClockWrong),
        (
            "there is no enrolment",
            Config { relay: RelayConfig::default(), ..healthy.config() },
            Fault::ConfigInvalid,
        ),
        (
            "the data directory takes no files",
            Config { data_dir: "/proc/nothing".into(), ..healthy.config() },
            Fault::FileUnwritable,
        ),
        (
            "token projection is broken",
            healthy.with_kubeconfig("token: agent-token", "tokenFile: /nowhere/token"),
            Fault::AgentCredential,
        ),
        ("kube-apiserver takes no credential", unauthorized.config(), Fault::AgentCredential),
        (
            "kube-apiserver is away",
            healthy.with_kubeconfig(&healthy.cap.address.to_string(), &closed.to_string()),
            Fault::ApiserverUnreachable,
        ),
        ("kube-apiserver is of another authority", with_other_ca, Fault::ApiserverUntrusted),
        ("the right to impersonate is missing", denying.config(), Fault::RightsMissing),
        (
            "the Secret can't be read",
            Config { state_secret: secret(), ..hiding.config() },
            Fault::AgentCredential,
        ),
        (
            "the identity provider is away",
            Config { issuer: gone.into(), ..healthy.config() },
            Fault::IssuerUnreachable,
        ),
        (
            "the port for metrics is taken",
            Config { metrics_listen: taken.local_addr().unwrap(), ..healthy.config() },
            Fault::PortBusy,
        ),
    ] {
        let begun = Instant::now();
        let diagnosis = diagnose(config).await;
        let said = diagnosis.first_failed().and_then(|found| found.fault());
        if std::env::var_os("TOWLINE_DOCTOR_TABLE").is_some() {
            println!(
                "doctor-table\t{name}\t{}\t{:.1}",
                said.map_or("-", Fault::code),
                begun.elapsed().as_secs_f64()
            );
        }
        if said != Some(expected) {
            wrong.push(format!("{name}: {said:?} and not {expected:?}: {diagnosis:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(
        *healthy.relay.manner.lock().unwrap().secret.as_ref().unwrap(),
        [7; 32],
        "no token was used up"
    );
}

#[tokio::test]
async fn an_agent_that_has_all_it_needs_raises_no_alarm_and_uses_nothing_up() {
    let runs: usize = std::env::var("TOWLINE_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(5);
    let world = World::new(Kube::Healthy).await;
    for run in 0..runs {
        let secret = Some(StateSecret::parse("towline/state").unwrap());
        let diagnosis = diagnose(Config { state_secret: secret, ..world.config() }).await;
        assert_eq!((diagnosis.status, diagnosis.exit_code), (Status::Ok, 0), "run {run}: {diagnosis:#?}");
    }
    assert!(!world.path("agent/identity-key.pem").exists(), "no key was made");
    assert!(world.relay.manner.lock().unwrap().secret.is_some(), "no token was used up");
}

/// A stream to the agent, as the relay opens it for a caller.
async fn open(
    world: &World,
    agent: &app::Running,
    session: &support::relay::AgentSession,
    run_key: &SigningKey,
) -> Result<InnerStream<MuxStream>, Report> {
    let mut request = OpenRequest::new(StreamKey::random(), agent.cluster());
    let (principal, key) = (format!("{}#alice", world.issuer.url()), run_key.public().hash());
    let ticket = Ticket::new(agent.cluster(), principal, key, SystemTime::now(), MAX_LIFE);
    request.ticket = Some(ticket.sign(&world.relay.tickets));
    let stream = session.connection.open(request).unwrap();
    InnerConnector::new(agent.cluster(), run_key).unwrap().connect(stream).await
}

/// What the agent answers to a question on its line, with this head behind the request line.
async fn ask(
    world: &World,
    agent: &app::Running,
    session: &support::relay::AgentSession,
    more: &str,
) -> String {
    let run_key = SigningKey::generate();
    let mut stream = open(world, agent, session, &run_key).await.unwrap();
    let head = format!("GET {DOCTOR_PATH} HTTP/1.1\r\nHost: a\r\n{more}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    read_to_end(&mut stream).await.unwrap()
}

/// A clock that can be set while the agent runs, by seconds.
fn settable() -> (Arc<AtomicI64>, Clock) {
    let offset = Arc::new(AtomicI64::new(0));
    let read = Arc::clone(&offset);
    let clock = move || {
        let offset = read.load(Ordering::SeqCst);
        let by = Duration::from_secs(offset.unsigned_abs());
        if offset < 0 { SystemTime::now() - by } else { SystemTime::now() + by }
    };
    (offset, Clock::new(clock))
}

/// So far off that no ticket is good there any more, it can only say so; less, and it tells what it sees.
#[tokio::test]
async fn an_agent_whose_clock_is_off_says_so_to_whoever_asks() {
    let mut world = World::new(Kube::Healthy).await;
    let (offset, clock) = settable();
    let agent = app::start(Config { clock, ..world.config() }).await.unwrap();
    let session = world.relay.session().await;
    let token = world.issuer.mint(&TokenRequest::new("alice", &["dev"], "towline-cluster")).unwrap();
    let day = 24 * 3600;
    for off in [day, -day] {
        offset.store(off, Ordering::SeqCst);
        let run_key = SigningKey::generate();
        let report = open(&world, &agent, &session, &run_key).await.unwrap_err();
        assert_eq!(report.fault, Fault::TicketMismatch);
        let time = |at: SystemTime| towline_tunnel::doctor::at(at)[..10].to_owned();
        let day = Duration::from_secs(day.unsigned_abs());
        let there = if off > 0 { time(SystemTime::now() + day) } else { time(SystemTime::now() - day) };
        assert!(report.detail.contains(&TicketError::Time.to_string()), "{report}");
        assert!(report.detail.contains(&format!("it is {there}")), "{report}");
    }
    offset.store(200, Ordering::SeqCst);
    let answer = ask(&world, &agent, &session, &format!("Authorization: Bearer {token}\r\n")).await;
    let diagnosis: Diagnosis = serde_json::from_str(parts(&answer).1).unwrap();
    let clock = diagnosis.findings.iter().find(|found| found.step == "clock").unwrap();
    assert_eq!((clock.status, clock.fault()), (Status::Warning, Some(Fault::ClockWrong)), "{diagnosis:#?}");
    assert!(clock.why.contains("ahead"), "{clock:?}");
}

#[tokio::test]
async fn an_agent_tells_callers_whom_it_knows_what_it_finds_and_nobody_else() {
    let mut world = World::new(Kube::DeniesImpersonation).await;
    let mut agent = app::start(world.config()).await.unwrap();
    agent.connected(WITHIN).await.unwrap();
    let session = world.relay.session().await;
    let token = world.issuer.mint(&TokenRequest::new("alice", &["dev"], "towline-cluster")).unwrap();
    let answer = ask(&world, &agent, &session, &format!("Authorization: Bearer {token}\r\n")).await;
    let (status, body) = parts(&answer);
    assert_eq!(status, 200, "{answer}");
    let diagnosis: Diagnosis = serde_json::from_str(body).unwrap();
    assert_eq!(diagnosis.first_failed().and_then(|found| found.fault()), Some(Fault::RightsMissing));
    let of = |step: &str| diagnosis.findings.iter().find(|found| found.step == step).unwrap().status;
    for step in ["dns", "tcp", "tls", "relay", "large-frames", "apiserver", "issuer"] {
        assert_eq!(of(step), Status::Ok, "{step}: {diagnosis:#?}");
    }
    assert!(!body.contains(&world.issuer.url()) && !body.contains("agent-token"), "{body}");
    assert_eq!(fault(&ask(&world, &agent, &session, "").await), (401, "TL-IDN-001".into()));
    let other = world.issuer.mint(&TokenRequest::new("bob", &["dev"], "towline-cluster")).unwrap();
    let other = ask(&world, &agent, &session, &format!("Authorization: Bearer {other}\r\n")).await;
    assert_eq!(fault(&other), (401, "TL-IDN-004".into()));
    assert!(!world.cap.seen().concat().contains("/.towline/"), "kube-apiserver never sees the question");
}
