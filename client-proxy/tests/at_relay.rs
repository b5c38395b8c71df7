//! Commands that ask a real relay: `towline list`, `audit`, `role` and `revoke`, as a person runs them.

#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    process::Command,
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;
use towline::{
    app::{Config, RESUME_TIMEOUT},
    relay::Relay,
    token::TokenFrom,
};
use towline_identity::{
    IssuerConfig, IssuerSettings,
    dev::{DevIssuer, TokenRequest},
};
use towline_relay::{
    app::{AuditConfig, Config as RelayConfig, Running, start},
    limits::Limits,
    registry::{Duty, DutyAssignment, EnrolmentOffer, Role, RoleAssignment, SubjectKind},
    tls::TlsSource,
};
use towline_tunnel::{
    clock::Clock,
    egress::Egress,
    fault::{Fault, Report},
    ids::ClusterId,
    keys::SigningKey,
    mux::LineSettings,
    role::{parse_key, print_key},
    session::question::{ClusterItem, Topic},
};

const SOON: Duration = Duration::from_secs(20);

struct Bench {
    folder: tempfile::TempDir,
    issuer: Arc<DevIssuer>,
    relay: Running,
}

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Bench {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let issuer = DevIssuer::start(0).await.unwrap();
        let issuer_ca = folder.path().join("issuer.pem");
        std::fs::write(&issuer_ca, issuer.ca_pem()).unwrap();
        let data_dir = folder.path().join("relay");
        std::fs::create_dir(&data_dir).unwrap();
        let relay = start(RelayConfig {
            data_dir: data_dir.clone(),
            listen: "127.0.0.1:0".parse().unwrap(),
            metrics_listen: "127.0.0.1:0".parse().unwrap(),
            tls: TlsSource::SelfSigned { names: vec!["127.0.0.1".into()], data_dir },
            public: None,
            issuer: IssuerConfig::parse(IssuerSettings {
                issuer_url: issuer.url(),
                client_id: "towline-relay".into(),
                username_prefix: Some("-".into()),
                signing_algs: vec!["ES256".into()],
                ca_file: Some(issuer_ca),
                ..IssuerSettings::default()
            })
            .unwrap()
            .into(),
            issuer_hosts: Vec::new(),
            certificate_life: Duration::from_secs(3600),
            audit: AuditConfig::default(),
            drain_timeout: Duration::from_secs(5),
            limits: Limits::default(),
            clock: Clock::system(),
        })
        .await
        .unwrap();
        std::fs::write(folder.path().join("ca.pem"), relay.public().ca_pem.as_ref().unwrap()).unwrap();
        Self { folder, issuer: Arc::new(issuer), relay }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes this person's two tokens, and says where.
    fn tokens(&self, user: &str) -> [PathBuf; 2] {
        ["towline-relay", "towline-cluster"].map(|audience| {
            let path = self.path(&format!("{user}.{audience}"));
            std::fs::write(&path, self.issuer.mint(&TokenRequest::new(user, &[], audience)).unwrap())
                .unwrap();
            path
        })
    }

    fn config(&self, user: &str) -> Config {
        let [relay_token, cluster_token] = self.tokens(user).map(TokenFrom::File);
        Config {
            relay: self.relay.public().relay.clone(),
            relay_key: self.relay.identity_hash(),
            egress: Egress::direct(),
            relay_ca_file: Some(self.path("ca.pem")),
            relay_token,
            cluster_token,
            resume_timeout: RESUME_TIMEOUT,
            lines: LineSettings::new(0, 0),
            shared_audience: false,
            clusters: Vec::new(),
            confirm: None,
            port: Some(0),
            kubeconfig: None,
            state_dir: self.path("state"),
        }
    }

    async fn connect(&self, user: &str) -> Result<Relay, Report> {
        timeout(SOON, Relay::connect(&self.config(user))).await.expect("an answer in time")
    }

    async fn run(&self, user: &str, arguments: &[&str]) -> Said {
        let [relay_token, cluster_token] = self.tokens(user);
        let mut command = self.towline(arguments);
        command
            .args(["--relay", &format!("https://{}", self.relay.public().relay.authority())])
            .args(["--relay-key", &self.relay.identity_hash().to_string()])
            .args([PathBuf::from("--relay-ca-file"), self.path("ca.pem")])
            .args([PathBuf::from("--relay-token-file"), relay_token])
            .args([PathBuf::from("--cluster-token-file"), cluster_token])
            .args([PathBuf::from("--state-dir"), self.path("state")]);
        said(command).await
    }

    /// `towline`, which knows nothing of the machine's own settings.
    fn towline(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_towline"));
        command.args(arguments).env_clear().env("HOME", self.folder.path());
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// A cluster that is enrolled, and whose agent is away.
    async fn cluster(&self, name: &str, number: u8) -> ClusterId {
        let now = SystemTime::now();
        let offer = EnrolmentOffer {
            secret_hash: [number; 32],
            name: name.parse().unwrap(),
            replaces: false,
            expires_at: now + Duration::from_secs(60),
        };
        let (registry, key) = (self.relay.registry(), SigningKey::generate().public());
        registry.offer_enrolment(&offer, now).await.unwrap();
        registry.enrol(&offer.secret_hash, &key, now).await.unwrap();
        key.cluster_id()
    }

    async fn allow(&self, user: &str, cluster: ClusterId) {
        let assignment = RoleAssignment {
            kind: SubjectKind::User,
            subject: user.into(),
            role: Role::ClusterUser,
            cluster,
            expires_at: None,
        };
        self.relay.registry().assign_role(&assignment, SystemTime::now()).await.unwrap();
    }

    async fn duty(&self, user: &str, duty: Duty) {
        let held = DutyAssignment {
            kind: SubjectKind::User,
            subject: user.into(),
            duty,
            cluster: None,
            expires_at: None,
        };
        self.relay.registry().assign_duty(&held, SystemTime::now()).await.unwrap();
    }
}

async fn said(mut command: Command) -> Said {
    let output = timeout(SOON, command.output()).await.expect("it ends").unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// An HTTP proxy that lets everybody through, and remembers where to.
struct Proxy {
    at: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    _task: AbortOnDropHandle<()>,
}

impl Proxy {
    async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let at = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(near.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let to = head.strip_prefix("CONNECT ").unwrap().split(' ').next().unwrap().to_owned();
                let mut far = TcpStream::connect(&to).await.unwrap();
                seen.lock().unwrap().push(to);
                near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                tokio::spawn(async move { copy_bidirectional(&mut near, &mut far).await });
            }
        }));
        Self { at, asked, _task: task }
    }

    /// Where it was asked to go since the last time.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

#[tokio::test]
async fn every_command_goes_out_through_the_proxy_that_it_is_told() {
    let bench = Bench::new().await;
    let proxy = Proxy::start().await;
    let through = ["--proxy-https", &format!("http://{}", proxy.at)];
    let relay = bench.relay.public().relay.authority().to_string();
    for command in [&["list"][..], &["audit"], &["role", "list"], &["revoke", "--mine"]] {
        let said = bench.run("ada", &[command, &through].concat()).await;
        assert_eq!(said.code, Some(0), "{command:?}: {}", said.err);
        assert_eq!(proxy.asked(), [relay.as_str()], "{command:?}");
    }
    let [token, _] = bench.tokens("ada");
    let (token, ca, issuer) = (token.display().to_string(), bench.path("issuer.pem"), bench.issuer.url());
    let check = ["auth", "check", "--token-file", &token, "--oidc-issuer-url", &issuer];
    let rules = ["--oidc-client-id", "towline-relay", "--oidc-signing-algs", "ES256", "--oidc-ca-file"];
    let mut command = bench.towline(&[&check[..], &rules].concat());
    command.arg(ca).args(through);
    let checked = said(command).await;
    assert_eq!(checked.code, Some(0), "{}{}", checked.out, checked.err);
    let host = issuer.strip_prefix("https://").unwrap();
    assert!(proxy.asked().iter().any(|to| to == host), "the issuer's keys are had through it");
    let all =
        said(bench.towline(&[&["endpoints", "--relay", "https://relay.example"], &through[..]].concat()));
    let all = all.await;
    assert!(all.out.contains(&format!("through the proxy {}", through[1])), "{}{}", all.out, all.err);
}

#[tokio::test]
async fn a_person_lists_the_clusters_that_they_may_open() {
    let bench = Bench::new().await;
    let id = bench.cluster("edge-7", 1).await;
    bench.cluster("edge-8", 2).await;
    bench.allow("ada", id).await;
    let said = bench.run("ada", &["list"]).await;
    assert_eq!(said.code, Some(0), "{}", said.err);
    let lines: Vec<_> = said.out.lines().collect();
    assert!(lines.len() == 2 && lines[1].starts_with("edge-7   no"), "{}", said.out);
    assert!(lines[1].ends_with(&id.to_string()));
    let said = bench.run("ada", &["list", "-o", "json"]).await;
    let read: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(read.as_array().unwrap().len(), 1);
    assert_eq!((&read[0]["name"], &read[0]["online"]), (&"edge-7".into(), &false.into()));
    let nobody = bench.run("bob", &["list", "-o", "json"]).await;
    assert_eq!((nobody.code, nobody.out.trim()), (Some(0), "[]"));
}

#[tokio::test]
async fn a_list_comes_whole_however_many_parts_it_has() {
    let bench = Bench::new().await;
    for number in 0..100 {
        let id = bench.cluster(&format!("a-cluster-with-quite-a-long-name-{number:03}"), number).await;
        bench.allow("ada", id).await;
    }
    let relay = bench.connect("ada").await.unwrap();
    let all: Vec<ClusterItem> = relay.list(Topic::CLUSTERS, &(), 1000).await.unwrap();
    assert!(all.len() == 100 && all.is_sorted_by(|a, b| a.name < b.name), "{}", all.len());
    let some: Vec<ClusterItem> = relay.list(Topic::CLUSTERS, &(), 7).await.unwrap();
    assert_eq!(some, all[..7]);
    let unknown = relay.ask::<Value>(Topic(19), &()).await.unwrap_err();
    assert_eq!(unknown.fault, Fault::VersionUnsupported, "as an older relay answers");
    timeout(SOON, relay.close()).await.unwrap();
}

#[tokio::test]
async fn an_operator_revokes_and_an_auditor_reads_of_it() {
    let bench = Bench::new().await;
    bench.duty("olga", Duty::Operator).await;
    bench.duty("carol", Duty::Auditor).await;
    let ada = bench.connect("ada").await.unwrap();
    let principal = format!("{}#ada", bench.issuer.url());

    let no = bench.run("bob", &["revoke", "--principal", &principal]).await;
    assert!(no.code == Some(13) && no.err.contains("TL-REL-014"), "{}", no.err);
    assert!(no.err.contains("towline-relay role assign --user bob --role operator"), "{}", no.err);

    let done = bench.run("olga", &["revoke", "--principal", &principal, "--for", "1h"]).await;
    assert_eq!(done.code, Some(0), "{}", done.err);
    assert!(done.out.contains(&format!("principal {principal} (revoked): 1 sessions")), "{}", done.out);
    drop(ada);
    let refused = bench.connect("ada").await.unwrap_err();
    assert_eq!(refused.fault, Fault::SessionRevoked);
    assert!(refused.to_string().contains("towline login"), "{refused}");

    let read = async || {
        let said = bench.run("carol", &["audit", "--user", &principal, "-o", "json"]).await;
        assert_eq!(said.code, Some(0), "{}", said.err);
        serde_json::from_str::<Vec<Value>>(&said.out).unwrap()
    };
    let told = timeout(SOON, async {
        loop {
            if let Some(record) = read().await.into_iter().find(|record| record["verdict"] == "revoked") {
                return record;
            }
        }
    });
    let told = told.await.expect("the audit tells of it");
    assert!(told["why"].as_str().unwrap().contains("#olga"), "{told}");
    let table = bench.run("carol", &["audit"]).await;
    assert!(table.out.starts_with("BEGAN") && table.out.contains("revoked"), "{}", table.out);
    let own = bench.run("bob", &["audit", "-o", "json"]).await;
    assert_eq!(own.out.trim(), "[]", "not his to see");
}

/// Its own session ends with the others, and that is no news.
#[tokio::test]
async fn somebody_revokes_their_own_sessions() {
    let bench = Bench::new().await;
    let elsewhere = bench.connect("ada").await.unwrap();
    let done = bench.run("ada", &["revoke", "--mine", "-o", "json"]).await;
    assert_eq!(done.code, Some(0), "{}", done.err);
    assert_eq!(done.err, "");
    let read: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!((&read["sessions"], &read["streams"]), (&2.into(), &0.into()));
    let report = timeout(SOON, async {
        loop {
            // With the token that it began with, until it has ended.
            if let Err(report) = elsewhere.list::<Value>(Topic::CLUSTERS, &(), 1).await {
                return report;
            }
        }
    });
    let report = report.await.expect("its session ends");
    assert!(
        matches!(report.fault, Fault::SessionRevoked | Fault::CarrierLost | Fault::RelayDraining),
        "{report}"
    );
}

/// An organisation's key, a profile that names its provider and pins `edge-7`, and a relay that trusts the key.
struct Organisation {
    key: String,
    profile: String,
    cluster: ClusterId,
}

impl Organisation {
    async fn found(bench: &Bench) -> Self {
        let cluster = bench.cluster("edge-7", 1).await;
        let text = |name: &str| bench.path(name).display().to_string();
        let (key, profile) = (text("organisation.pem"), text("profile.toml"));
        let made = said(bench.towline(&["role", "key", "new", "--out", &key])).await;
        assert_eq!(made.code, Some(0), "{}", made.err);
        let public = parse_key(made.out.trim()).unwrap();
        assert_eq!(bench.relay.registry().trust_key(&public, SystemTime::now()).await.unwrap(), Some(true));
        let login = format!(
            "[login]\nissuer = '{}'\nrelay.client-id = 'r'\ncluster.client-id = 'c'\n",
            bench.issuer.url()
        );
        std::fs::write(&profile, format!("{login}[clusters]\nedge-7 = '{cluster}'\n")).unwrap();
        Self { key, profile, cluster }
    }

    /// `towline role`, as this person.
    async fn role(&self, bench: &Bench, user: &str, arguments: &[&str]) -> Said {
        bench.run(user, &[&["role"], arguments, &["--profile", &self.profile]].concat()).await
    }

    /// The same with the organisation's key.
    async fn sign(&self, bench: &Bench, user: &str, arguments: &[&str]) -> Said {
        self.role(bench, user, &[arguments, &["--key", &self.key]].concat()).await
    }
}

#[tokio::test]
async fn a_role_is_given_by_a_users_subject_listed_explained_and_taken_back() {
    let bench = Bench::new().await;
    let organisation = Organisation::found(&bench).await;
    let (principal, cluster) = (format!("{}#ada", bench.issuer.url()), organisation.cluster);
    let explained = async |user: &str, more: &[&str]| {
        let said = organisation.role(&bench, user, &[&["explain"], more].concat()).await;
        assert_eq!(said.code, Some(0), "{}", said.err);
        said.out
    };
    let listed = async |user: &str, more: &[&str]| {
        let said = organisation.role(&bench, user, &[&["list", "-o", "json"], more].concat()).await;
        assert_eq!(said.code, Some(0), "{}", said.err);
        serde_json::from_str::<Vec<Value>>(&said.out).unwrap()
    };
    let before = explained("ada", &[]).await;
    assert!(before.starts_with(&format!("{principal} on cluster {cluster}\n")), "{before}");
    assert!(before.contains("role: none"), "{before}");
    assert!(listed("ada", &[]).await.is_empty());

    // Whoever signs needs no role of their own; the key is what counts.
    let assign = ["assign", "--user", "ada", "--role", "writer", "--scope", "cluster:edge-7"];
    let given = organisation.sign(&bench, "olga", &assign).await;
    assert_eq!(given.code, Some(0), "{}", given.err);
    let id = given.out.trim().strip_suffix(" (stored)").unwrap_or_else(|| panic!("{}", given.out));

    let table = organisation.role(&bench, "ada", &["list"]).await;
    let line = table.out.lines().nth(1).unwrap_or_else(|| panic!("{}{}", table.out, table.err));
    for word in [id, &principal, "writer", &format!("cluster:{cluster} (edge-7)"), "never"] {
        assert!(line.contains(word), "{word}: {line}");
    }
    assert_eq!(listed("ada", &["--user", "ada"]).await.len(), 1);
    assert_eq!(listed("ada", &["--cluster", "edge-7", "--role", "writer"]).await.len(), 1);
    for other in [&["--user", "bob"][..], &["--role", "viewer"], &["--group", "staff"]] {
        assert!(listed("ada", other).await.is_empty(), "{other:?}");
    }
    let own = explained("ada", &[]).await;
    assert!(own.contains(&format!("{id}: principal {principal} at cluster:{cluster} gives writer")), "{own}");
    assert!(own.contains(&format!("role: writer (by {id}")), "{own}");
    let capped = explained("ada", &["--cluster", "edge-7", "--max-relay-role", "viewer"]).await;
    assert!(capped.contains("role: viewer") && capped.contains("lowered from writer"), "{capped}");

    // Of others only an auditor hears.
    assert!(listed("bob", &[]).await.is_empty());
    let hidden = organisation.role(&bench, "bob", &["list", "--all"]).await;
    assert!(hidden.code == Some(13) && hidden.err.contains("TL-REL-014"), "{}", hidden.err);
    assert!(explained("bob", &["--user", "ada"]).await.contains("role: none"));
    bench.duty("carol", Duty::Auditor).await;
    assert_eq!(listed("carol", &["--all", "--user", "ada"]).await.len(), 1);
    assert!(explained("carol", &["--user", "ada"]).await.contains("role: writer"));
    assert!(explained("carol", &["--user", "bob"]).await.contains("role: none"));
    let other = print_key(&SigningKey::generate().public());
    let unbelieved = explained("carol", &["--user", "ada", "--public-key", &other]).await;
    assert!(unbelieved.contains("role: none"), "what another key signed is left out: {unbelieved}");

    let removed = organisation.sign(&bench, "olga", &["remove", id]).await;
    assert!(removed.code == Some(0) && removed.out.trim() == "removed", "{}{}", removed.out, removed.err);
    assert!(explained("ada", &[]).await.contains("role: none"));
    let again = organisation.sign(&bench, "olga", &["remove", id]).await;
    let code = Fault::RoleDocumentUnknown.code();
    assert!(again.code != Some(0) && again.err.contains(code) && again.err.contains(id), "{}", again.err);
}

#[tokio::test]
async fn a_role_that_means_nobody_nowhere_or_is_not_the_organisations_is_refused_and_nothing_is_stored() {
    let bench = Bench::new().await;
    let organisation = Organisation::found(&bench).await;
    let with = |user, role, scope| ["assign", "--user", user, "--role", role, "--scope", scope];
    let everywhere = with("ada", "writer", "organisation");
    for (arguments, words) in [
        (&with("", "writer", "organisation")[..], "it is blank"),
        (&with(" ada", "writer", "organisation"), "white space around it"),
        (&with("ada", "owner", "organisation"), "not a role"),
        (&with("ada", "operator", "organisation"), "not a role"),
        (&with("ada", "writer", "cluster:nowhere"), "has no cluster \"nowhere\" in [clusters]"),
        (&with("ada", "writer", "cluster:"), "--scope"),
        (&with("ada", "writer", "group:eu//x"), "--scope"),
        (&with("ada", "writer", "galaxy"), "--scope"),
        (&[&everywhere[..], &["--group", "staff"]].concat(), "cannot be used with"),
        (&[&everywhere[..], &["--principal", "https://idp#bob"]].concat(), "cannot be used with"),
        (&[&everywhere[..], &["--expires-in", "soon"]].concat(), "--expires-in"),
        (&["remove", "not-an-id"], "not-an-id"),
        (&["explain", "--user", ""], "it is blank"),
        (&["explain", "--user", "ada", "--principal", "https://idp#ada"], "cannot be used with"),
        (&["explain", "--cluster", "nowhere"], "has no cluster \"nowhere\" in [clusters]"),
        (&["explain", "--max-relay-role", "owner"], "not a role"),
        (&["list", "--user", "ada", "--group", "staff"], "cannot be used with"),
        (&["list", "--cluster", "nowhere"], "has no cluster \"nowhere\" in [clusters]"),
        (&["list", "--role", "owner"], "not a role"),
    ] {
        let refused = match arguments[0] {
            "assign" | "remove" => organisation.sign(&bench, "ada", arguments).await,
            _ => organisation.role(&bench, "ada", arguments).await,
        };
        assert!(refused.code == Some(2) && refused.err.contains(words), "{arguments:?}: {}", refused.err);
        assert_eq!(refused.out, "", "{arguments:?}");
    }

    // Without a provider in the profile a subject alone means nobody.
    let bare = bench.path("bare.toml").display().to_string();
    std::fs::write(&bare, "").unwrap();
    let cluster = organisation.cluster.to_string();
    let explain = ["explain", "--user", "ada", "--cluster", &cluster];
    for command in [&everywhere[..], &explain, &["list", "--user", "ada"]] {
        let signing = ["--key", &organisation.key];
        let signing = if command[0] == "assign" { &signing[..] } else { &[] };
        let nobody = bench.run("ada", &[&["role"], command, signing, &["--profile", &bare]].concat()).await;
        assert!(nobody.code == Some(2) && nobody.err.contains("issuer"), "{command:?}: {}", nobody.err);
    }

    // Signed by somebody else.
    let other = bench.path("other.pem").display().to_string();
    assert_eq!(said(bench.towline(&["role", "key", "new", "--out", &other])).await.code, Some(0));
    let forged = organisation.role(&bench, "ada", &[&everywhere[..], &["--key", &other]].concat()).await;
    let code = Fault::RoleDocumentRefused.code();
    assert!(forged.code != Some(0) && forged.err.contains(code), "{}", forged.err);

    bench.duty("carol", Duty::Auditor).await;
    let all = organisation.role(&bench, "carol", &["list", "--all", "-o", "json"]).await;
    assert_eq!((all.code, all.out.trim()), (Some(0), "[]"), "{}", all.err);
}
