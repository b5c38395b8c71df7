//! A proxy's contexts in a kubeconfig, from its start to its end.

#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod support;

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    process::{Command, Stdio},
    time::Duration,
};

use serde_norway::Value;
use support::{Home, Kubectl, Peer, soon};
use towline::{
    app::{Choice, Config, start},
    kubeconfig::Location,
};
use towline_tunnel::{drain::drain, fault::Fault};

const THEIRS: &str = "# mine\napiVersion: v1\nkind: Config\ncurrent-context: work\ncontexts:\n- {name: work, context: {cluster: work, user: work}}\n";

fn config(peer: &Peer, home: &Home) -> Config {
    Config { kubeconfig: Some(Location::file(home.path("config"))), ..home.config(peer) }
}

fn read(home: &Home) -> Value {
    serde_norway::from_str(&fs::read_to_string(home.path("config")).unwrap()).unwrap()
}

#[tokio::test]
async fn a_proxy_adds_its_context_and_takes_it_away_when_it_ends() {
    let peer = Peer::start().await;
    let home = Home::new(&peer);
    fs::write(home.path("config"), THEIRS).unwrap();
    let (trigger, watcher) = drain();
    let running = soon("the start", start(config(&peer, &home), watcher)).await.unwrap();
    let now = read(&home);
    assert_eq!(now["current-context"], "edge-7");
    assert_eq!(fs::metadata(home.path("config")).unwrap().mode() & 0o777, 0o600);
    assert_eq!(running.kubeconfig_file(), Some(home.path("config").canonicalize().unwrap().as_path()));
    let server = format!("https://{}/clusters/{}", running.address(), peer.cluster());
    assert_eq!(now["clusters"][0]["cluster"]["server"].as_str(), Some(server.as_str()));
    let kubectl = Kubectl::new(&fs::read_to_string(home.path("config")).unwrap(), 0);
    assert_eq!(soon("it", kubectl.h2().await.send(kubectl.get("/version"))).await.unwrap().status(), 200);

    let ended = tokio::spawn(running.wait());
    trigger.begin();
    soon("the end", ended).await.unwrap().unwrap();
    assert_eq!(fs::read_to_string(home.path("config")).unwrap(), THEIRS);
    assert!(tokio::net::TcpStream::connect(kubectl.address).await.is_err());
}

#[tokio::test]
async fn a_proxy_that_is_dropped_takes_its_context_away_too() {
    let peer = Peer::start().await;
    let home = Home::new(&peer);
    let (_trigger, watcher) = drain();
    drop(soon("the start", start(config(&peer, &home), watcher)).await.unwrap());
    assert!(!home.path("config").exists());
}

#[tokio::test]
async fn a_second_proxy_for_the_same_cluster_is_refused_and_changes_nothing() {
    let peer = Peer::start().await;
    let home = Home::new(&peer);
    let (_trigger, watcher) = drain();
    let _running = soon("the start", start(config(&peer, &home), watcher.clone())).await.unwrap();
    let before = fs::read_to_string(home.path("config")).unwrap();
    let report = soon("the refusal", start(config(&peer, &home), watcher.clone())).await.unwrap_err();
    assert_eq!(report.fault, Fault::ProxyAlreadyRuns);
    assert!(report.to_string().contains("edge-7"), "{report}");
    assert_eq!(fs::read_to_string(home.path("config")).unwrap(), before);
    // Without a context of its own there is nothing to fight over.
    soon("another way", start(home.config(&peer), watcher)).await.unwrap();
}

#[tokio::test]
async fn a_client_certificate_outlives_the_proxy_that_made_it() {
    let peer = Peer::start().await;
    let home = Home::new(&peer);
    let (_trigger, watcher) = drain();
    let running = soon("the start", start(home.config(&peer), watcher.clone())).await.unwrap();
    let (kubeconfig, address) = (running.kubeconfig(), running.address());
    let long_lived = Kubectl::new(&kubeconfig, 0);
    drop(running);
    let again = Config { port: Some(address.port()), ..home.config(&peer) };
    let running = soon("again", async {
        loop {
            match start(again.clone(), watcher.clone()).await {
                Ok(running) => return running,
                // The port is free once the listener's task was dropped.
                Err(report) => assert_eq!(report.fault, Fault::PortBusy),
            }
        }
    })
    .await;
    assert_eq!(running.kubeconfig(), kubeconfig);
    let response = long_lived.h2().await.send(long_lived.get("/version")).await.unwrap();
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn a_context_name_that_is_taken_is_told_before_anything_is_dialled() {
    let peer = Peer::start().await;
    let home = Home::new(&peer);
    fs::write(home.path("config"), THEIRS).unwrap();
    let (_trigger, watcher) = drain();
    let taken = Choice { context: Some("work".into()), ..Choice::named("edge-7", peer.cluster()) };
    let config = Config { clusters: vec![taken], ..config(&peer, &home) };
    let report = soon("the refusal", start(config, watcher)).await.unwrap_err();
    assert_eq!(report.fault, Fault::ContextTaken);
    assert!(peer.script.tokens.lock().unwrap().is_empty());
    assert_eq!(fs::read_to_string(home.path("config")).unwrap(), THEIRS);
}

/// Set for the process that [`t28_a_writer_that_is_killed_at_any_moment_leaves_a_whole_file`] starts.
const WRITER: &str = "TOWLINE_TEST_WRITER";

/// Writes without end when it is started by the test below, which kills it.
#[test]
fn writer() {
    let Some(path) = std::env::var_os(WRITER) else { return };
    let entry = towline::kubeconfig::Entry {
        name: "edge-7".into(),
        cluster: towline_tunnel::ids::ClusterId::of_spki(b"k"),
        server: "https://127.0.0.1:1/".into(),
        authority: "a".repeat(20_000),
        certificate: "c".repeat(20_000),
        key: towline_tunnel::session::message::Secret::new("k"),
    };
    let location = Location::file(path);
    println!("writing");
    loop {
        location.merge(std::slice::from_ref(&entry)).unwrap().restore().unwrap();
    }
}

#[test]
fn t28_a_writer_that_is_killed_at_any_moment_leaves_a_whole_file() {
    use std::io::{BufRead as _, BufReader};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config");
    fs::write(&path, THEIRS).unwrap();
    for round in 0..10u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writer", "--nocapture"])
            .env(WRITER, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("writing")));
        wait(Duration::from_micros(round * 1_700));
        child.kill().unwrap();
        child.wait().unwrap();
        // Its lock may be there, which the message of the next writer names.
        let _left = fs::remove_file(folder.path().join("config.lock"));
        let now: Value = serde_norway::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        assert!(now["contexts"].as_sequence().unwrap().iter().any(|context| context["name"] == "work"));
        let entries: Vec<_> = now["contexts"].as_sequence().unwrap().iter().collect();
        assert!(entries.len() <= 2 && (entries.len() == 1) == (now["current-context"] == "work"));
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the moment of a kill is arbitrary, and there is nothing to wait on"
)]
fn wait(time: Duration) {
    std::thread::sleep(time);
}
