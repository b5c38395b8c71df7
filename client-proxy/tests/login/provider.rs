//! Against a certified OpenID provider (npm's oidc-provider), with a person who fills in its own forms.

use std::{process::Stdio, time::SystemTime};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::mpsc,
};
use towline::{
    login::{Prompt, Session, Settings, Store, Who, interactive, issuer, log_out},
    token::{Issue as _, Purpose, TokenFrom, Tokens},
};
use towline_identity::{IssuerConfig, IssuerSettings, Verifier};
use towline_tunnel::{
    clock::Clock,
    fault::{Fault, Report},
};

use crate::{CLIENTS, Home, Told, person::Browser, scripted::certificate_files, soon};

/// The provider's process; it ends with its standard input.
struct Provider {
    url: String,
    ca_pem: String,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    _child: Child,
    _folder: tempfile::TempDir,
}

impl Provider {
    async fn start() -> Self {
        let idp = tokio::task::spawn_blocking(xtask::idp::ensure).await.unwrap().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (ca_pem, certificate, key) = certificate_files();
        let (certificate_file, key_file) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
        std::fs::write(&certificate_file, certificate).unwrap();
        std::fs::write(&key_file, key).unwrap();
        let mut child = Command::new("node")
            .arg(&idp.server)
            .args([&certificate_file, &key_file])
            .env("IDP_LIBRARY", &idp.library)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("Node.js 20 or later is needed");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = soon("the provider's start", lines.next_line()).await.unwrap().expect("it starts");
        let url = ready.strip_prefix("ready ").unwrap().to_owned();
        Self { url, ca_pem, input: child.stdin.take().unwrap(), lines, _child: child, _folder: folder }
    }

    /// Signs with a new key from now on.
    async fn rotate(&mut self) {
        self.input.write_all(b"rotate\n").await.unwrap();
        assert_eq!(soon("the rotation", self.lines.next_line()).await.unwrap().as_deref(), Some("rotated"));
    }

    /// Verifies as the relay or an agent would.
    fn verifier(&self, home: &Home, audience: &str) -> Verifier {
        let settings = IssuerSettings {
            issuer_url: self.url.clone(),
            client_id: audience.to_owned(),
            signing_algs: vec!["ES256".to_owned()],
            ca_file: Some(home.0.path().join("ca.pem")),
            ..IssuerSettings::default()
        };
        Verifier::new(IssuerConfig::parse(settings).unwrap()).unwrap()
    }
}

/// A login, in which `person` goes wherever they are told.
async fn log_in(
    provider: &Provider,
    settings: &Settings,
    store: &Store,
    person: &str,
) -> Result<Vec<Who>, Report> {
    let (told, mut prompts) = Told::new();
    let (end, mut ended) = mpsc::channel::<()>(1);
    let walks = async {
        let mut browser = Browser::new(&provider.ca_pem);
        loop {
            let prompt = tokio::select! {
                prompt = prompts.recv() => prompt,
                _ = ended.recv() => return,
            };
            let url = match prompt {
                Some(Prompt::Visit { url }) => url,
                Some(Prompt::Code { complete, .. }) => complete.expect("it has such pages"),
                None => return,
            };
            browser.walk(&url, person).await;
        }
    };
    let login = async {
        let done = interactive(settings, store, &|prompt: &Prompt| told.say(prompt), &Clock::system()).await;
        drop(end);
        done
    };
    soon("the login", async { tokio::join!(login, walks) }).await.0
}

#[tokio::test]
async fn a_person_logs_in_once_for_both_tokens_which_live_on_and_end_with_them() {
    let mut provider = Provider::start().await;
    let home = Home::new(&provider.ca_pem);
    let settings = home.settings(&provider.url, CLIENTS);
    let people = log_in(&provider, &settings, &home.store(), "ada").await.unwrap();
    assert!(people.iter().all(|who| who.subject.as_deref() == Some("ada") && who.renewable), "{people:?}");

    // What relay and agent would make of them.
    let token = |purpose| TokenFrom::Issuer(issuer(&settings, purpose, &home.store()).unwrap());
    let (relay, cluster) = (token(Purpose::Relay), token(Purpose::Cluster));
    let tokens = Tokens::start(relay, cluster, false, &Clock::system()).await.unwrap();
    let now = SystemTime::now();
    let (relay, cluster) = (tokens.for_relay(now).unwrap(), tokens.for_cluster(now).unwrap());
    let (at_relay, at_cluster) =
        (provider.verifier(&home, "towline-relay"), provider.verifier(&home, "towline-cluster"));
    let one = at_relay.verify(relay.reveal_text().unwrap(), now).await.unwrap();
    let other = at_cluster.verify(cluster.reveal_text().unwrap(), now).await.unwrap();
    assert_eq!(one.principal, other.principal);
    assert!(at_cluster.verify(relay.reveal_text().unwrap(), now).await.is_err(), "it is for the relay alone");

    // Renewed, with rotation, past a change of the provider's keys.
    let session = Session::new(&settings, Purpose::Cluster, home.store());
    session.kept(now).await.unwrap().unwrap();
    let first = session.issue(now).await.unwrap();
    provider.rotate().await;
    let second = session.issue(now).await.unwrap();
    assert_ne!(first.secret, second.secret);
    let fresh = provider.verifier(&home, "towline-cluster");
    assert_eq!(
        fresh.verify(second.secret.reveal_text().unwrap(), now).await.unwrap().principal,
        other.principal
    );

    // The end is the provider's too: what was kept elsewhere renews nothing.
    let copy = tempfile::tempdir().unwrap();
    let (from, to) = (home.0.path().join("state/logins"), copy.path().join("logins"));
    std::fs::create_dir_all(&to).unwrap();
    for path in [copy.path(), &to] {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    }
    std::fs::copy(from.join("p.cluster.json"), to.join("p.cluster.json")).unwrap();
    let ended = log_out(&settings, &home.store(), &Clock::system()).await.unwrap();
    assert!(ended.iter().all(|one| one.was_kept && *one.revoked.as_ref().unwrap()), "{ended:?}");
    let thief = Session::new(&settings, Purpose::Cluster, Store::open(copy.path()).unwrap());
    thief.kept(now).await.unwrap().unwrap();
    assert_eq!(thief.issue(now).await.unwrap_err().fault, Fault::LoginEnded);
}

#[tokio::test]
async fn a_person_enters_two_codes() {
    let provider = Provider::start().await;
    let home = Home::new(&provider.ca_pem);
    let settings = home.settings(&provider.url, &format!("flow = 'device'\n{CLIENTS}"));
    let people = log_in(&provider, &settings, &home.store(), "bob").await.unwrap();
    assert!(people.iter().all(|who| who.subject.as_deref() == Some("bob") && who.renewable), "{people:?}");
    assert_eq!(people[1].audiences, ["towline-cluster"]);
}

/// Access tokens for two resources (RFC 8707) by one machine client.
#[tokio::test]
async fn a_machine_has_two_audiences_by_two_requests() {
    let provider = Provider::start().await;
    let home = Home::new(&provider.ca_pem);
    let secret = home.0.path().join("secret");
    std::fs::write(&secret, "canary-secret-of-the-robot\n").unwrap();
    let settings = home.settings(
        &provider.url,
        &format!(
            "flow = 'client-credentials'\nclient-id = 'robot'\nclient-secret-file = '{}'\n\
             relay.resource = 'https://relay.example'\ncluster.resource = 'https://cluster.example'",
            secret.display()
        ),
    );
    let token = |purpose| TokenFrom::Issuer(issuer(&settings, purpose, &home.store()).unwrap());
    let (relay, cluster) = (token(Purpose::Relay), token(Purpose::Cluster));
    let tokens = Tokens::start(relay, cluster, false, &Clock::system()).await.unwrap();
    let now = SystemTime::now();
    for (token, audience) in [
        (tokens.for_relay(now).unwrap(), "https://relay.example"),
        (tokens.for_cluster(now).unwrap(), "https://cluster.example"),
    ] {
        let identity =
            provider.verifier(&home, audience).verify(token.reveal_text().unwrap(), now).await.unwrap();
        assert_eq!(identity.principal.subject, "robot");
    }
    // Refused: the secret is wrong.
    std::fs::write(&secret, "canary-guess").unwrap();
    let report = issuer(&settings, Purpose::Relay, &home.store()).unwrap().issue(now).await.unwrap_err();
    assert_eq!(report.fault, Fault::LoginRefused);
    assert!(!report.to_string().contains("canary"), "{report}");
}
