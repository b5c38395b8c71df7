//! What a person is told when the way to the cluster does not work, and that it works again once the cause is gone.

#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod support;

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use support::{
    Home, Kubectl, Peer,
    apiserver::Fed,
    kubectl::{code, text},
    soon, until,
};
use towline::app::{Confirm, Running, start};
use towline_tunnel::{
    drain::{DrainTrigger, drain},
    fault::{Fault, Report},
    ids::KeyHash,
    keys::SigningKey,
    mux::CloseReason,
};

async fn begin(peer: &Peer, home: &Home) -> (Running, Kubectl, DrainTrigger) {
    let (trigger, watcher) = drain();
    let running = soon("the start", start(home.config(peer), watcher)).await.unwrap();
    let kubectl = Kubectl::new(&running.kubeconfig(), 0);
    (running, kubectl, trigger)
}

/// Why a proxy does not start.
async fn refused(config: towline::app::Config) -> Report {
    let (_trigger, watcher) = drain();
    soon("the refusal", start(config, watcher)).await.unwrap_err()
}

#[tokio::test]
async fn a_relay_that_is_away_is_told_and_the_proxy_works_again_once_it_is_back() {
    let mut peer = Peer::start().await;
    let home = Home::new(&peer);
    let (_running, kubectl, _trigger) = begin(&peer, &home).await;
    let mut client = kubectl.h2().await;
    peer.kill().await;
    let begun = Instant::now();
    let response = soon("a refusal", client.send(kubectl.get("/version"))).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(15));
    assert_eq!(response.status(), 503);
    assert_eq!(code(response).await, "TL-NET-003");
    // It has been away for a while now: nobody waits any longer.
    let begun = Instant::now();
    let response = soon("a quick refusal", client.send(kubectl.get("/version"))).await.unwrap();
    assert!(response.status() == 503 && begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    peer.resume().await;
    let response = soon("an answer", client.send(kubectl.get("/version"))).await.unwrap();
    assert_eq!(response.status(), 200);
}

/// One kubectl makes several requests one after the other: together they take no longer than the first.
#[tokio::test]
async fn a_relay_that_does_not_answer_holds_up_one_request_and_not_each() {
    let mut peer = Peer::start().await;
    let home = Home::new(&peer);
    let (_running, kubectl, _trigger) = begin(&peer, &home).await;
    let mut client = kubectl.h2().await;
    peer.kill().await;
    // The kernel accepts, and nobody ever answers.
    let silent = tokio::net::TcpListener::bind(peer.address()).await.unwrap();
    let begun = Instant::now();
    for _ in 0..6 {
        let response = soon("a refusal", client.send(kubectl.get("/api/v1/pods"))).await.unwrap();
        assert_eq!(response.status(), 503);
        assert_eq!(code(response).await, "TL-NET-004");
    }
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    drop(silent);
    peer.resume().await;
    soon("an answer", async {
        while client.send(kubectl.get("/version")).await.unwrap().status() != 200 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_relay_that_restarts_is_waited_for() {
    let mut peer = Peer::start().await;
    let home = Home::new(&peer);
    let (_running, kubectl, _trigger) = begin(&peer, &home).await;
    peer.kill().await;
    let asked = {
        let kubectl = kubectl.clone();
        tokio::spawn(async move { kubectl.h2().await.send(kubectl.get("/version")).await })
    };
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!asked.is_finished());
    peer.resume().await;
    assert_eq!(soon("the answer", asked).await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn a_relay_that_drains_is_left_for_a_new_session_while_streams_go_on() {
    let peer = Peer::start().await;
    let home = Home::new(&peer);
    let (_running, kubectl, _trigger) = begin(&peer, &home).await;
    let mut client = kubectl.h2().await;
    let response = soon("a feed", client.send(kubectl.get("/feed"))).await.unwrap();
    let feed = peer.script.apiserver.last_feed();
    let old = peer.script.connections.lock().unwrap()[0].clone();
    old.go_away(CloseReason::Draining, Duration::from_millis(10), "a restart");
    let next = soon("a new request", client.send(kubectl.get("/version"))).await.unwrap();
    assert_eq!(next.status(), 200);
    assert_eq!(peer.script.sessions.load(Ordering::SeqCst), 2);
    feed.send(Fed::Bytes("still here")).await.unwrap();
    drop(feed);
    assert_eq!(soon("the feed's end", text(response)).await, "still here");
}

#[tokio::test]
async fn what_the_relay_refuses_reaches_the_person() {
    let peer = Peer::start().await;
    let home = Home::new(&peer);
    let (_running, kubectl, _trigger) = begin(&peer, &home).await;
    for (reason, status, fault) in [
        (CloseReason::AgentOffline, 503, Fault::AgentOffline),
        (CloseReason::Forbidden, 403, Fault::ClusterForbidden),
        (CloseReason::ClusterUnknown, 404, Fault::ClusterUnknown),
        (CloseReason::LimitReached, 429, Fault::RelayLimit),
        (CloseReason::AgentLimitReached, 429, Fault::AgentLimit),
    ] {
        *peer.script.refuse_open.lock().unwrap() = Some(reason);
        // Those that stand go on; what is refused is the next.
        let connections = peer.script.connections.lock().unwrap().clone();
        connections.iter().for_each(|connection| connection.close());
        let response = soon("a refusal", kubectl.h2().await.send(kubectl.get("/api/v1/pods"))).await.unwrap();
        assert_eq!(response.status(), status);
        assert_eq!(code(response).await, fault.code());
    }
    *peer.script.refuse_open.lock().unwrap() = None;
    let response = soon("an answer", kubectl.h2().await.send(kubectl.get("/version"))).await.unwrap();
    assert_eq!(response.status(), 200);
}

/// kubectl that remembers nothing asks for discovery first, and prints a line for each refusal of it.
#[tokio::test]
async fn discovery_is_answered_while_there_is_no_way_and_only_the_request_itself_is_refused() {
    let peer = Peer::start().await;
    let home = Home::new(&peer);
    let (_running, kubectl, _trigger) = begin(&peer, &home).await;
    let discover = async |path: &str| {
        let mut request = kubectl.get(path);
        let aggregated =
            "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
        request.headers_mut().insert("accept", aggregated.parse().unwrap());
        let response = soon("discovery", kubectl.h2().await.send(request)).await.unwrap();
        (response.status().as_u16(), text(response).await)
    };
    let apis = |path: &str| (200, format!("the APIs of {path}"));
    assert_eq!(discover("/api").await, apis("/api"));
    assert_eq!(discover("/apis").await, apis("/apis"));
    *peer.script.refuse_open.lock().unwrap() = Some(CloseReason::Forbidden);
    let connections = peer.script.connections.lock().unwrap().clone();
    connections.iter().for_each(|connection| connection.close());
    for path in ["/api", "/apis", "/api"] {
        assert_eq!(discover(path).await, apis(path));
    }
    let response = soon("a refusal", kubectl.h2().await.send(kubectl.get("/api/v1/pods"))).await.unwrap();
    assert_eq!(response.status(), 403);
    assert_eq!(code(response).await, "TL-REL-003");
    // Nobody has asked like this while there was a way: there is nothing to give.
    let response = soon("a refusal", kubectl.h2().await.send(kubectl.get("/api"))).await.unwrap();
    assert_eq!(code(response).await, "TL-REL-003");
    // The agent is there, and its apiserver is not.
    *peer.script.refuse_open.lock().unwrap() = None;
    peer.script.apiserver.refuses_discovery.store(true, Ordering::SeqCst);
    let asked = || peer.script.apiserver.seen().iter().filter(|seen| seen.path == "/api").count();
    let before = asked();
    assert_eq!(discover("/api").await, apis("/api"));
    assert_eq!(asked(), before + 1, "whoever can be asked is asked");
}

#[tokio::test]
async fn an_expired_relay_token_is_told_until_the_file_holds_a_new_one() {
    let peer = Peer::start().await;
    let home = Home::new(&peer);
    let (_running, kubectl, _trigger) = begin(&peer, &home).await;
    *peer.script.refuse_session.lock().unwrap() = Some(CloseReason::TokenExpired);
    let connections = peer.script.connections.lock().unwrap().clone();
    connections.iter().for_each(|connection| connection.close());
    until("the session ends", || connections.iter().all(|connection| !connection.is_open())).await;
    let begun = Instant::now();
    let response = soon("a refusal", kubectl.h2().await.send(kubectl.get("/api/v1/pods"))).await.unwrap();
    assert_eq!(response.status(), 401);
    assert_eq!(code(response).await, "TL-REL-002");
    assert!(begun.elapsed() < Duration::from_secs(5), "no waiting for what does not pass by itself");
    *peer.script.refuse_session.lock().unwrap() = None;
    home.tokens(4_000_000_005);
    let response = soon("an answer", kubectl.h2().await.send(kubectl.get("/version"))).await.unwrap();
    assert_eq!(response.status(), 200);
    let shown = peer.script.tokens.lock().unwrap().last().cloned();
    assert_eq!(shown, Some(support::jwt("towline-relay", 4_000_000_005)));
}

#[tokio::test]
async fn a_proxy_that_can_not_work_says_why_before_it_writes_anything() {
    let mut peer = Peer::start().await;
    let home = Home::new(&peer);
    let kubeconfig = towline::kubeconfig::Location::file(home.path("config"));
    let config = || towline::app::Config { kubeconfig: Some(kubeconfig.clone()), ..home.config(&peer) };

    let mut wrong_key = config();
    wrong_key.relay_key = KeyHash::of_spki(b"another relay");
    assert_eq!(refused(wrong_key).await.fault, Fault::RelayKeyMismatch);
    assert!(peer.script.tokens.lock().unwrap().is_empty(), "nothing was said to it");

    let mut wrong_ca = config();
    wrong_ca.relay_ca_file = None;
    assert_eq!(refused(wrong_ca).await.fault, Fault::CertificateUntrusted);

    let mut wrong_name = config();
    let port = peer.address().port();
    wrong_name.relay =
        towline_tunnel::carrier::dial::RelayAddress::parse(&format!("127.0.0.1:{port}")).unwrap();
    assert_eq!(refused(wrong_name).await.fault, Fault::CertificateNameWrong);

    home.tokens(1000);
    assert_eq!(refused(config()).await.fault, Fault::RelayTokenExpired);
    std::fs::write(home.path("relay-token"), "").unwrap();
    assert_eq!(refused(config()).await.fault, Fault::TokenFileUnusable);
    home.tokens(4_000_000_000);

    *peer.script.refuse_open.lock().unwrap() = Some(CloseReason::AgentOffline);
    let report = refused(config()).await;
    assert_eq!((report.fault, report.exit_code()), (Fault::AgentOffline, 15));
    assert!(report.to_string().contains("edge-7"), "{report}");
    *peer.script.refuse_open.lock().unwrap() = None;

    std::fs::write(home.path("config"), "kind: Pod").unwrap();
    assert_eq!(refused(config()).await.fault, Fault::KubeconfigUnreadable);
    assert_eq!(std::fs::read_to_string(home.path("config")).unwrap(), "kind: Pod");
    std::fs::remove_file(home.path("config")).unwrap();

    let mut busy = config();
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    busy.port = Some(taken.local_addr().unwrap().port());
    let report = refused(busy).await;
    assert_eq!(report.fault, Fault::PortBusy);
    assert!(report.to_string().contains("--port 0"), "{report}");

    let begun = Instant::now();
    peer.kill().await;
    let config = towline::app::Config { kubeconfig: Some(kubeconfig.clone()), ..home.config(&peer) };
    assert_eq!(refused(config).await.fault, Fault::ConnectionRefused);
    assert!(begun.elapsed() < Duration::from_secs(5), "a relay that never answered is not waited for");
    assert!(!home.path("config").exists() && !home.path("config.lock").exists());
}

/// The relay leads to an agent that does not hold the cluster's key.
#[tokio::test]
async fn t44_another_clusters_key_is_told_apart_and_gets_no_token() {
    let peer = Peer::with_cluster_key(Arc::new(SigningKey::generate())).await;
    let home = Home::new(&peer);
    peer.script.apiserver.impostor.store(true, Ordering::SeqCst);
    let mut config = home.config(&peer);
    config.clusters =
        vec![towline::app::Choice::named("edge-7", SigningKey::generate().public().cluster_id())];
    let report = refused(config).await;
    assert_eq!((report.fault, report.exit_code()), (Fault::ClusterKeyMismatch, 11));
    assert!(peer.script.apiserver.seen().is_empty());
}

#[tokio::test]
async fn t44_a_bare_name_is_believed_only_once_a_person_has_seen_the_id() {
    let peer = Peer::start().await;
    let home = Home::new(&peer);
    peer.script.names.lock().unwrap().insert("edge-7".into(), peer.cluster());
    let mut config = home.config(&peer);
    config.clusters = vec!["edge-7".parse().unwrap()];

    let report = refused(config.clone()).await;
    assert_eq!(report.fault, Fault::ClusterUnconfirmed);
    assert!(report.to_string().contains(&peer.cluster().to_string()), "{report}");

    config.confirm = Some(Confirm::new(|_, _| false));
    assert_eq!(refused(config.clone()).await.fault, Fault::ClusterUnconfirmed);
    assert!(peer.script.apiserver.seen().is_empty());

    let shown = peer.cluster();
    config.confirm = Some(Confirm::new(move |name, id| name == "edge-7" && id == shown));
    let (_trigger, watcher) = drain();
    let running = soon("the start", start(config.clone(), watcher)).await.unwrap();
    assert_eq!(running.served()[0].cluster, peer.cluster());
    drop(running);

    // Confirmed is confirmed: the relay is not asked again, and can't give another answer.
    config.confirm = None;
    peer.script
        .names
        .lock()
        .unwrap()
        .insert("edge-7".into(), towline_tunnel::ids::ClusterId::of_spki(b"other"));
    let (_trigger, watcher) = drain();
    let running = soon("the start", start(config.clone(), watcher)).await.unwrap();
    assert_eq!(running.served()[0].cluster, peer.cluster());

    config.clusters = vec!["unheard-of".parse().unwrap()];
    assert_eq!(refused(config).await.fault, Fault::ClusterUnknown);
}
