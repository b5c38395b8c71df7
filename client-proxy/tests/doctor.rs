//! What doctor says on a person's machine: of faults that are put in on purpose, of a healthy way, and as a program.

#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

#[allow(unused_imports, reason = "shared with tests that use more of it")]
mod support;

use std::{
    io::Read as _,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    process::Stdio,
    time::{Duration, Instant},
};

use support::{Home, Peer, soon};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::Command,
};
use towline::{
    app::Choice,
    doctor::{Subject, examine},
    kubeconfig::Location,
    token::TokenFrom,
};
use towline_tunnel::{
    carrier::dial::RelayAddress,
    doctor::{Diagnosis, Finding, Names, Network, Status},
    fault::{Fault, Report},
    mux::CloseReason,
};

struct World {
    peer: Peer,
    home: Home,
}

impl World {
    async fn new() -> Self {
        let peer = Peer::start().await;
        let home = Home::new(&peer);
        Self { peer, home }
    }

    fn subject(&self) -> Subject {
        let address: SocketAddr = self.peer.address();
        let relay = RelayAddress::parse(&format!("localhost:{}", address.port())).unwrap();
        let straight = Network::straight(relay, self.peer.relay_key(), Some(self.home.path("ca.pem")));
        Subject {
            network: Network {
                names: Names::new(move |_, _| Box::pin(async move { Ok(vec![address]) })),
                ..straight
            },
            relay_token: Ok(TokenFrom::File(self.home.path("relay-token"))),
            cluster_token: Ok(TokenFrom::File(self.home.path("cluster-token"))),
            shared_audience: false,
            clusters: vec![Choice::named("edge-7", self.peer.cluster())],
            ask_agent: false,
            idle: None,
            kubeconfig: Some(Location::file(self.home.path("kubeconfig"))),
            port: 0,
            state_dir: self.home.path("state"),
        }
    }
}

async fn diagnose(subject: Subject) -> Diagnosis {
    tokio::time::timeout(Duration::from_secs(60), examine(subject, |_| {})).await.expect("it ends in time")
}

fn first(diagnosis: &Diagnosis) -> Option<Fault> {
    diagnosis.first_failed().and_then(|found| found.fault())
}

fn status(diagnosis: &Diagnosis, step: &str) -> Status {
    let found = diagnosis.findings.iter().find(|found| found.step == step);
    found.unwrap_or_else(|| panic!("no {step}: {diagnosis:#?}")).status
}

/// A row of `cargo xtask doctor --table`.
#[expect(clippy::print_stdout, reason = "cargo xtask doctor --table reads it")]
fn row(name: &str, said: Option<Fault>, begun: Instant) {
    if std::env::var_os("TOWLINE_DOCTOR_TABLE").is_some() {
        println!(
            "doctor-table\t{name}\t{}\t{:.1}",
            said.map_or("-", Fault::code),
            begun.elapsed().as_secs_f64()
        );
    }
}

#[tokio::test]
async fn each_fault_behind_the_network_gets_its_own_diagnosis() {
    let mut wrong = Vec::new();
    let over = World::new().await;
    over.home.tokens(1_000_000_000);
    let one_token = World::new().await;
    let relay_token = std::fs::read(one_token.home.path("relay-token")).unwrap();
    std::fs::write(one_token.home.path("cluster-token"), relay_token).unwrap();
    let refused = World::new().await;
    *refused.peer.script.refuse_session.lock().unwrap() = Some(CloseReason::Unauthenticated);
    let offline = World::new().await;
    *offline.peer.script.refuse_open.lock().unwrap() = Some(CloseReason::AgentOffline);
    let forbidden = World::new().await;
    *forbidden.peer.script.refuse_open.lock().unwrap() = Some(CloseReason::Forbidden);
    let off = World::new().await;
    *off.peer.script.refuse_open.lock().unwrap() = Some(CloseReason::TicketInvalid);
    *off.peer.script.refusal.lock().unwrap() =
        "the ticket is expired or not yet valid: it is 2026-01-31T12:00:00Z at the agent";
    let strange = World::new().await;
    *strange.peer.script.refuse_open.lock().unwrap() = Some(CloseReason::TicketInvalid);
    *strange.peer.script.refusal.lock().unwrap() = "the ticket is for another client's key";
    let named = World::new().await;
    named.peer.script.names.lock().unwrap().insert("edge-7".into(), named.peer.cluster());
    let locked = World::new().await;
    std::fs::write(locked.home.path("kubeconfig.lock"), "").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let nobody = || Err(Report::from(Fault::LoginNeeded));
    for (name, subject, expected) in [
        ("nobody is logged in", Subject { relay_token: nobody(), ..locked.subject() }, Fault::LoginNeeded),
        ("the relay token is over", over.subject(), Fault::RelayTokenExpired),
        ("both tokens are one", one_token.subject(), Fault::TokenFileUnusable),
        ("the relay takes no such token", refused.subject(), Fault::RelayTokenRefused),
        ("the cluster's agent is away", offline.subject(), Fault::AgentOffline),
        ("the agent's clock is a day off (asked from afar)", off.subject(), Fault::AgentClockWrong),
        ("the agent takes no such ticket", strange.subject(), Fault::TicketMismatch),
        ("the cluster may not be opened", forbidden.subject(), Fault::ClusterForbidden),
        (
            "a name was never confirmed",
            Subject { clusters: vec!["edge-7".parse().unwrap()], ..named.subject() },
            Fault::ClusterUnconfirmed,
        ),
        ("the kubeconfig can't be written", locked.subject(), Fault::KubeconfigUnwritable),
        ("the local port is taken", Subject { port, ..named.subject() }, Fault::PortBusy),
    ] {
        let begun = Instant::now();
        let diagnosis = diagnose(subject).await;
        let said = first(&diagnosis);
        row(name, said, begun);
        if said != Some(expected) {
            wrong.push(format!("{name}: {said:?} and not {expected:?}: {diagnosis:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_healthy_journey_raises_no_alarm_and_leaves_nothing() {
    let runs: usize = std::env::var("TOWLINE_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(5);
    let world = World::new().await;
    for run in 0..runs {
        let subject = Subject { ask_agent: true, ..world.subject() };
        let diagnosis = diagnose(subject).await;
        assert_eq!((diagnosis.status, diagnosis.exit_code), (Status::Ok, 0), "run {run}: {diagnosis:#?}");
        for step in
            ["relay", "large-frames", "login", "session", "cluster", "apiserver", "kubeconfig", "port"]
        {
            assert_eq!(status(&diagnosis, step), Status::Ok, "{step}");
        }
        // This agent answers 404 to what it does not know, and lists no pods.
        assert_eq!(
            (status(&diagnosis, "agent"), status(&diagnosis, "kubelet")),
            (Status::Skipped, Status::Skipped)
        );
        assert!(!diagnosis.to_json().contains("canary"), "a token's claims stand nowhere");
    }
    assert!(!world.home.path("kubeconfig").exists() && !world.home.path("kubeconfig.lock").exists());
}

#[tokio::test]
async fn what_is_behind_a_relay_that_is_away_is_not_looked_at_and_what_is_here_is() {
    let mut world = World::new().await;
    world.peer.kill().await;
    let diagnosis = diagnose(world.subject()).await;
    assert_eq!(first(&diagnosis), Some(Fault::ConnectionRefused), "{diagnosis:#?}");
    assert_eq!(
        (status(&diagnosis, "session"), status(&diagnosis, "apiserver")),
        (Status::Skipped, Status::Skipped)
    );
    assert_eq!((status(&diagnosis, "login"), status(&diagnosis, "kubeconfig")), (Status::Ok, Status::Ok));
}

#[tokio::test]
async fn a_session_that_is_cut_while_nothing_happens_is_told() {
    let mut world = World::new().await;
    let steady = diagnose(Subject { idle: Some(Duration::from_millis(300)), ..world.subject() }).await;
    assert_eq!(status(&steady, "idle"), Status::Ok, "{steady:#?}");
    let subject = Subject { idle: Some(Duration::from_secs(30)), clusters: Vec::new(), ..world.subject() };
    let (begun, session) = tokio::sync::oneshot::channel();
    let mut begun = Some(begun);
    let looking = tokio::spawn(async move {
        let tell = |found: &Finding| {
            if found.step == "session" {
                begun.take().map(|begun| begun.send(()));
            }
        };
        examine(subject, tell).await
    });
    soon("a session", session).await.unwrap();
    let cut = Instant::now();
    world.peer.kill().await;
    let diagnosis = soon("the diagnosis", looking).await.unwrap();
    assert_eq!(first(&diagnosis), Some(Fault::ConnectionCut), "{diagnosis:#?}");
    row("a session is cut in spite of its keep-alives (--deep)", first(&diagnosis), cut);
}

/// A firewall between: it ends connections over which nothing went for so long.
async fn impatient(to: SocketAddr, idle: Duration) -> (SocketAddr, tokio_util::task::AbortOnDropHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            connections.spawn(async move {
                let Ok(mut far) = TcpStream::connect(to).await else { return };
                let (mut up, mut down) = ([0; 4096], [0; 4096]);
                loop {
                    let (read, to, from) = tokio::select! {
                        read = near.read(&mut up) => (read, &mut far, &up),
                        read = far.read(&mut down) => (read, &mut near, &down),
                        () = tokio::time::sleep(idle) => return,
                    };
                    let passed = match read {
                        Ok(read) if read > 0 => to.write_all(&from[..read]).await,
                        _ => return,
                    };
                    if passed.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, tokio_util::task::AbortOnDropHandle::new(serving))
}

#[tokio::test]
async fn what_cuts_idle_connections_is_told_and_that_keep_alives_prevent_it() {
    let world = World::new().await;
    let (address, _serving) = impatient(world.peer.address(), Duration::from_millis(1500)).await;
    let mut subject = Subject { idle: Some(Duration::from_secs(3)), clusters: Vec::new(), ..world.subject() };
    subject.network.names = Names::new(move |_, _| Box::pin(async move { Ok(vec![address]) }));
    subject.network.relay = RelayAddress::parse(&format!("localhost:{}", address.port())).unwrap();
    let begun = Instant::now();
    let diagnosis = diagnose(subject).await;
    assert_eq!(diagnosis.first_failed(), None, "{diagnosis:#?}");
    let idle = diagnosis.findings.iter().find(|finding| finding.step == "idle").unwrap();
    assert_eq!((idle.status, idle.fault()), (Status::Warning, Some(Fault::IdleCut)), "{idle:#?}");
    row("idle connections are cut, and those with keep-alives are not (--deep)", idle.fault(), begun);
}

fn towline(world: &World, arguments: &[&str]) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_towline"));
    program
        .args(arguments)
        .env_clear()
        .env("HOME", world.home.0.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    program
}

#[tokio::test]
async fn t29_the_program_prints_a_document_and_a_bundle_without_secrets() {
    let world = World::new().await;
    let path = |name: &str| world.home.path(name).display().to_string();
    let (relay, key) =
        (format!("https://127.0.0.1:{}", world.peer.address().port()), world.peer.relay_key().to_string());
    let cluster = format!("edge-7={}", world.peer.cluster());
    let (bundle, ca, relay_token, cluster_token) =
        (path("out.zip"), path("ca.pem"), path("relay-token"), path("cluster-token"));
    let arguments = [
        "doctor",
        "-o",
        "json",
        "--relay",
        &relay,
        "--relay-key",
        &key,
        "--relay-ca-file",
        &ca,
        "--relay-token-file",
        &relay_token,
        "--cluster-token-file",
        &cluster_token,
        "--cluster",
        &cluster,
        "--port",
        "0",
        "--bundle",
        &bundle,
    ];
    let output = soon("the program", towline(&world, &arguments).output()).await.unwrap();
    let document = String::from_utf8(output.stdout).unwrap();
    let diagnosis: Diagnosis =
        serde_json::from_str(&document).unwrap_or_else(|error| panic!("{error}: {document}"));
    // The certificate of this relay is for `localhost`.
    assert_eq!(first(&diagnosis), Some(Fault::CertificateNameWrong), "{diagnosis:#?}");
    assert_eq!(output.status.code(), Some(i32::from(diagnosis.exit_code)));
    let mut zip = zip::ZipArchive::new(std::fs::File::open(&bundle).unwrap()).unwrap();
    let mut all = document;
    for at in 0..zip.len() {
        zip.by_index(at).unwrap().read_to_string(&mut all).unwrap();
    }
    let token = std::fs::read_to_string(&relay_token).unwrap();
    for secret in ["canary", token.trim(), token.split('.').nth(1).unwrap()] {
        assert!(!all.contains(secret), "{secret}: {all}");
    }
    assert!(all.contains(&key) && all.contains("TL-TLS-003"), "{all}");
    assert_eq!(std::fs::metadata(&bundle).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn the_program_says_what_to_do_and_what_a_firewall_must_allow() {
    let world = World::new().await;
    let nothing = soon("the program", towline(&world, &["doctor"]).output()).await.unwrap();
    let said = String::from_utf8(nothing.stdout).unwrap();
    assert_eq!(nothing.status.code(), Some(2), "{said}");
    assert!(
        said.contains("✗ configuration") && said.contains("--relay, --relay-key") && !said.contains('\u{1b}'),
        "{said}"
    );
    let arguments = ["endpoints", "--relay", "https://relay.example", "-o", "json"];
    let listed = soon("the program", towline(&world, &arguments).output()).await.unwrap();
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let first = &listed["endpoints"][0];
    assert_eq!(
        (first["host"].as_str(), first["port"].as_u64()),
        (Some("relay.example"), Some(443)),
        "{listed}"
    );
    let spoken = first["protocol"].as_str().unwrap();
    assert!(["websocket", "HTTP/2", "pair"].iter().all(|carrier| spoken.contains(carrier)), "{spoken}");
    assert!(listed["proxy"].is_null(), "{listed}");
    let through = [&arguments[..], &["--proxy-https", "http://me:canary@proxy.example:3128"]].concat();
    let listed = soon("the program", towline(&world, &through).output()).await.unwrap();
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed["proxy"]["url"], "http://proxy.example:3128");
    assert!(!listed.to_string().contains("canary"), "{listed}");
}
