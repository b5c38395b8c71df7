//! Requests of a Kubernetes client, through the endpoint and a scripted relay and agent.

#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod support;

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use support::{
    Home, Kubectl, Peer,
    apiserver::Fed,
    kubectl::{code, empty, full, text},
    soon, until,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
};
use towline::app::{Running, start};
use towline_tunnel::drain::{DrainTrigger, drain};

struct Fixture {
    peer: Peer,
    home: Home,
    running: Running,
    kubectl: Kubectl,
    _trigger: DrainTrigger,
}

impl Fixture {
    async fn new() -> Self {
        let peer = Peer::start().await;
        let home = Home::new(&peer);
        let (trigger, watcher) = drain();
        let running = soon("the start", start(home.config(&peer), watcher)).await.unwrap();
        let kubectl = Kubectl::new(&running.kubeconfig(), 0);
        Self { peer, home, running, kubectl, _trigger: trigger }
    }

    fn seen_of(&self, path: &str) -> usize {
        self.peer.script.apiserver.seen().iter().filter(|seen| seen.path == path).count()
    }
}

#[tokio::test]
async fn a_request_reaches_the_cluster_with_its_path_and_our_token() {
    let fixture = Fixture::new().await;
    let kubectl = &fixture.kubectl;
    let path = "/api/v1//pods%2F?labelSelector=a%3Db&x=%7e";
    let request = || {
        let mut request = kubectl.get(path);
        request.headers_mut().insert("impersonate-user", "root".parse().unwrap());
        request
    };
    let over_h2 = soon("h2", kubectl.h2().await.send(request())).await.unwrap();
    let over_h1 = soon("h1", kubectl.h1().await.send(request())).await.unwrap();
    assert_eq!((over_h2.status(), over_h1.status()), (404.try_into().unwrap(), 404.try_into().unwrap()));
    let seen = fixture.peer.script.apiserver.seen();
    let ours: Vec<_> = seen.iter().filter(|seen| seen.path == path).collect();
    assert_eq!(ours.len(), 2);
    for seen in ours {
        let tokens: Vec<_> = seen.headers.get_all("authorization").iter().collect();
        assert_eq!(tokens, [&format!("Bearer {}", support::jwt("towline-cluster", 4_000_000_000))]);
        assert_eq!(
            seen.headers["impersonate-user"], "root",
            "the agent's to refuse, never dropped in silence"
        );
        assert!(seen.headers.get("connection").is_none());
    }
    assert_eq!(
        fixture.peer.script.tokens.lock().unwrap()[..],
        [support::jwt("towline-relay", 4_000_000_000)]
    );
}

/// `kubectl --token X` must not run as whoever is logged in at the proxy.
#[tokio::test]
async fn a_request_with_a_token_of_its_own_is_refused_and_reaches_nobody() {
    let fixture = Fixture::new().await;
    let kubectl = &fixture.kubectl;
    let with_token = |mut request: http::Request<_>| {
        request.headers_mut().insert("authorization", "Bearer theirs".parse().unwrap());
        request
    };
    for answered in [
        kubectl.h2().await.send(with_token(kubectl.get("/mine"))).await,
        kubectl.h1().await.send(with_token(kubectl.get("/mine"))).await,
        kubectl.h1().await.send(with_token(kubectl.upgrade("/mine", "SPDY/3.1"))).await,
    ] {
        let response = answered.unwrap();
        assert_eq!(response.status(), 400);
        let status: serde_json::Value = serde_json::from_str(&text(response).await).unwrap();
        assert_eq!(status["details"]["causes"][0]["reason"], "TL-KUB-007");
        let message = status["message"].as_str().unwrap();
        assert!(message.contains("--service-account-token-file"), "{message}");
        assert!(!message.contains("theirs"), "{message}");
    }
    assert_eq!(fixture.seen_of("/mine"), 0);
}

#[tokio::test]
async fn a_token_file_that_changes_is_used_at_once() {
    let fixture = Fixture::new().await;
    fixture.home.tokens(4_000_000_001);
    let mut client = fixture.kubectl.h2().await;
    soon("the request", client.send(fixture.kubectl.get("/x"))).await.unwrap();
    let seen = fixture.peer.script.apiserver.seen().pop().unwrap();
    let expected = format!("Bearer {}", support::jwt("towline-cluster", 4_000_000_001));
    assert_eq!(seen.headers["authorization"], expected);
    fixture.home.tokens(1_000);
    let refused = soon("the refusal", client.send(fixture.kubectl.get("/y"))).await.unwrap();
    assert_eq!(refused.status(), 401);
    assert_eq!(code(refused).await, "TL-IDN-003");
    assert_eq!(fixture.seen_of("/y"), 0);
    fixture.home.tokens(4_000_000_002);
    let again = soon("again", client.send(fixture.kubectl.get("/y"))).await.unwrap();
    assert_eq!(again.status(), 404);
}

#[tokio::test]
async fn bodies_of_any_size_pass_both_ways() {
    let fixture = Fixture::new().await;
    let sent: Vec<u8> = (0..20_000_000u32).map(|n| (n % 251) as u8).collect();
    let sent = Bytes::from(sent);
    for h2 in [true, false] {
        let request = fixture.kubectl.request("POST", "/echo", full(sent.clone()));
        let response = soon("the echo", async {
            if h2 {
                fixture.kubectl.h2().await.send(request).await
            } else {
                fixture.kubectl.h1().await.send(request).await
            }
        })
        .await
        .unwrap();
        let got = soon("the body", response.into_body().collect()).await.unwrap().to_bytes();
        assert!(got == sent);
    }
}

#[tokio::test]
async fn a_body_streams_while_it_is_made() {
    let fixture = Fixture::new().await;
    for h2 in [true, false] {
        let (feed, fed) = mpsc::channel::<Bytes>(4);
        let body = StreamBody::new(Feed(fed)).boxed_unsync();
        let request = fixture.kubectl.request("POST", "/echo", body);
        feed.send(Bytes::from_static(b"one")).await.unwrap();
        let response = soon("the answer", async {
            if h2 {
                fixture.kubectl.h2().await.send(request).await
            } else {
                fixture.kubectl.h1().await.send(request).await
            }
        })
        .await
        .unwrap();
        let mut body = response.into_body();
        let next = async |body: &mut hyper::body::Incoming| {
            soon("a part", body.frame()).await.map(|frame| frame.unwrap().into_data().unwrap())
        };
        assert_eq!(next(&mut body).await.unwrap(), "one");
        feed.send(Bytes::from_static(b"two")).await.unwrap();
        assert_eq!(next(&mut body).await.unwrap(), "two");
        drop(feed);
        assert_eq!(soon("the end", body.collect()).await.unwrap().to_bytes(), "");
    }
}

struct Feed(mpsc::Receiver<Bytes>);

impl futures_util::Stream for Feed {
    type Item = std::io::Result<Frame<Bytes>>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

#[tokio::test]
async fn t50_an_answer_that_is_cut_short_is_never_a_whole_one() {
    let fixture = Fixture::new().await;
    for path in ["/cut/length", "/cut/chunked"] {
        for h2 in [true, false] {
            let request = fixture.kubectl.get(path);
            let response = soon("the head", async {
                if h2 {
                    fixture.kubectl.h2().await.send(request).await
                } else {
                    fixture.kubectl.h1().await.send(request).await
                }
            })
            .await
            .unwrap();
            assert_eq!(response.status(), 200);
            let feed = fixture.peer.script.apiserver.last_feed();
            feed.send(Fed::Bytes("some bytes")).await.unwrap();
            let mut body = response.into_body();
            assert_eq!(
                soon("a part", body.frame()).await.unwrap().unwrap().into_data().unwrap(),
                "some bytes"
            );
            feed.send(Fed::Cut).await.unwrap();
            assert!(soon("the rest", body.collect()).await.is_err(), "{path}, h2: {h2}");
        }
    }
}

#[tokio::test]
async fn t50_a_stream_that_the_other_end_has_forgotten_is_cut_and_the_next_request_works() {
    let mut fixture = Fixture::new().await;
    let mut client = fixture.kubectl.h2().await;
    let response = soon("the feed", client.send(fixture.kubectl.get("/feed"))).await.unwrap();
    let feed = fixture.peer.script.apiserver.last_feed();
    feed.send(Fed::Bytes("first")).await.unwrap();
    let mut body = response.into_body();
    assert_eq!(soon("a part", body.frame()).await.unwrap().unwrap().into_data().unwrap(), "first");
    fixture.peer.kill().await;
    fixture.peer.resume().await;
    assert!(soon("the cut", body.collect()).await.is_err());
    let again = soon("the next", client.send(fixture.kubectl.get("/version"))).await.unwrap();
    assert_eq!(again.status(), 200);
    assert!(text(again).await.contains("36"));
}

#[tokio::test]
async fn inner_connections_are_used_again() {
    let fixture = Fixture::new().await;
    let mut client = fixture.kubectl.h2().await;
    for _ in 0..20 {
        let response = soon("a request", client.send(fixture.kubectl.get("/version"))).await.unwrap();
        text(response).await;
        let response =
            soon("a post", client.send(fixture.kubectl.request("POST", "/echo", full("x")))).await.unwrap();
        assert_eq!(text(response).await, "x");
    }
    // One that answers, one that was made ahead of need; a few more where an answer was quicker than its return.
    let streams = fixture.peer.script.streams.load(Ordering::SeqCst);
    assert!(streams <= 6, "{streams} streams for 40 requests");
}

#[tokio::test]
async fn requests_at_once_each_have_a_stream_of_their_own() {
    let fixture = Arc::new(Fixture::new().await);
    let mut client = fixture.kubectl.h2().await;
    let mut held = Vec::new();
    for _ in 0..40 {
        held.push(soon("a feed", client.send(fixture.kubectl.get("/feed"))).await.unwrap());
    }
    assert!(fixture.peer.script.streams.load(Ordering::SeqCst) >= 40);
    let quick = soon("a quick one", client.send(fixture.kubectl.get("/version"))).await.unwrap();
    assert_eq!(quick.status(), 200);
    fixture.peer.script.apiserver.feeds.lock().unwrap().clear();
    for response in held {
        assert_eq!(soon("an end", response.into_body().collect()).await.unwrap().to_bytes(), "");
    }
}

#[tokio::test]
async fn a_request_that_is_given_up_ends_at_the_agent_and_its_connection_is_not_used_again() {
    let fixture = Fixture::new().await;
    let script = Arc::clone(&fixture.peer.script);
    for h2 in [true, false] {
        let before = script.apiserver.given_up.load(Ordering::SeqCst);
        let hanging = {
            let (kubectl, request) = (fixture.kubectl.clone(), fixture.kubectl.get("/hang"));
            tokio::spawn(async move {
                if h2 {
                    let mut client = kubectl.h2().await;
                    client.send(request).await.map(drop)
                } else {
                    let mut client = kubectl.h1().await;
                    client.send(request).await.map(drop)
                }
            })
        };
        let seen = before + 1;
        until("the request arrives", || fixture.seen_of("/hang") >= seen).await;
        hanging.abort();
        until("the agent is told", || script.apiserver.given_up.load(Ordering::SeqCst) > before).await;
    }
    let response = soon("the next", fixture.kubectl.h2().await.send(fixture.kubectl.get("/version"))).await;
    assert_eq!(response.unwrap().status(), 200);
}

#[tokio::test]
async fn a_watch_that_is_given_up_ends_at_the_agent() {
    let fixture = Fixture::new().await;
    let mut client = fixture.kubectl.h2().await;
    let response = soon("the feed", client.send(fixture.kubectl.get("/feed"))).await.unwrap();
    let feed = fixture.peer.script.apiserver.last_feed();
    feed.send(Fed::Bytes("event")).await.unwrap();
    drop(response);
    until("the agent's body is dropped", || feed.is_closed()).await;
    assert_eq!(soon("the next", client.send(fixture.kubectl.get("/version"))).await.unwrap().status(), 200);
}

#[tokio::test]
async fn an_early_answer_does_not_wait_for_the_rest_of_the_request() {
    let fixture = Fixture::new().await;
    let (feed, fed) = mpsc::channel::<Bytes>(4);
    feed.send(Bytes::from_static(b"one")).await.unwrap();
    let body = StreamBody::new(Feed(fed)).boxed_unsync();
    let mut client = fixture.kubectl.h2().await;
    let response =
        soon("413", client.send(fixture.kubectl.request("POST", "/too-large", body))).await.unwrap();
    assert_eq!(response.status(), 413);
    assert_eq!(soon("its body", response.into_body().collect()).await.unwrap().to_bytes(), "too large");
    drop(feed);
    assert_eq!(soon("the next", client.send(fixture.kubectl.get("/version"))).await.unwrap().status(), 200);
}

#[tokio::test]
async fn t12_a_redirect_is_passed_back_and_never_followed() {
    let fixture = Fixture::new().await;
    let response =
        soon("it", fixture.kubectl.h2().await.send(fixture.kubectl.get("/elsewhere"))).await.unwrap();
    assert_eq!(response.status(), 307);
    assert_eq!(response.headers()["location"], "https://elsewhere.example/");
}

#[tokio::test]
async fn an_upgrade_becomes_raw_bytes_and_each_direction_ends_on_its_own() {
    let fixture = Fixture::new().await;
    for protocol in ["SPDY/3.1", "websocket"] {
        let mut client = fixture.kubectl.h1().await;
        let mut response =
            soon("101", client.send(fixture.kubectl.upgrade("/upgrade/echo?command=sh", protocol)))
                .await
                .unwrap();
        assert_eq!(response.status(), 101);
        assert_eq!(response.headers()["upgrade"], protocol);
        assert_eq!(response.headers()["x-stream-protocol-version"], "v4.channel.k8s.io");
        let mut io = hyper_util::rt::TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
        let sent: Vec<u8> = (0..3_000_000u32).map(|n| (n % 241) as u8).collect();
        let (mut read, mut write) = tokio::io::split(&mut io);
        let (mut got, expected) = (Vec::new(), [&sent[..], b"bye"].concat());
        soon("the echo", async {
            let write = async {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            };
            tokio::join!(write, async { read.read_to_end(&mut got).await.unwrap() })
        })
        .await;
        assert!(got == expected);
    }
    until("both ended cleanly", || fixture.peer.script.apiserver.ended.load(Ordering::SeqCst) == 2).await;
}

#[tokio::test]
async fn the_clusters_direction_of_an_upgrade_may_end_first() {
    let fixture = Fixture::new().await;
    let mut client = fixture.kubectl.h1().await;
    let mut response =
        soon("101", client.send(fixture.kubectl.upgrade("/upgrade/push", "SPDY/3.1"))).await.unwrap();
    let mut io = hyper_util::rt::TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    let mut got = Vec::new();
    soon("its end", io.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got, b"all there is");
    let received = Arc::clone(&fixture.peer.script.apiserver.received);
    io.write_all(&[7; 100_000]).await.unwrap();
    io.flush().await.unwrap();
    until("our direction is still open", || received.load(Ordering::SeqCst) == 100_000).await;
    io.shutdown().await.unwrap();
    until("a clean end", || fixture.peer.script.apiserver.ended.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn t50_an_upgraded_stream_that_is_cut_is_reset() {
    let fixture = Fixture::new().await;
    let mut tls = fixture.kubectl.tls(b"http/1.1").await;
    let head = format!(
        "POST {}/upgrade/cut HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n",
        fixture.kubectl.prefix, fixture.kubectl.address
    );
    tls.write_all(head.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"half a sent") {
        got.push(soon("the begin", tls.read_u8()).await.unwrap());
    }
    tls.write_all(b"!").await.unwrap();
    let error = soon("the cut", tls.read_to_end(&mut got)).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
}

#[tokio::test]
async fn a_client_that_goes_away_cuts_the_upgraded_stream() {
    let fixture = Fixture::new().await;
    let mut client = fixture.kubectl.h1().await;
    let mut response =
        soon("101", client.send(fixture.kubectl.upgrade("/upgrade/echo", "SPDY/3.1"))).await.unwrap();
    let io = hyper::upgrade::on(&mut response).await.unwrap();
    drop(io);
    drop(client);
    let apiserver = &fixture.peer.script.apiserver;
    until("its stream is cut", || apiserver.broken.load(Ordering::SeqCst) == 1).await;
    assert_eq!(apiserver.ended.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn t09_a_refused_upgrade_is_passed_back_and_nothing_follows_it() {
    let fixture = Fixture::new().await;
    let mut tls = fixture.kubectl.tls(b"http/1.1").await;
    let (prefix, host) = (&fixture.kubectl.prefix, fixture.kubectl.address);
    let head = format!(
        "POST {prefix}/refuse-upgrade HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n\
         GET {prefix}/smuggled HTTP/1.1\r\nHost: {host}\r\n\r\n"
    );
    tls.write_all(head.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    soon("the refusal", tls.read_to_end(&mut got)).await.unwrap();
    let got = String::from_utf8(got).unwrap();
    assert!(got.starts_with("HTTP/1.1 403 ") && got.ends_with("no exec for you"), "{got}");
    assert_eq!(got.matches("HTTP/1.1").count(), 1);
    assert_eq!(fixture.seen_of("/smuggled"), 0);
}

/// `Upgrade` that no `Connection` names is no request for one; what follows it could be read in two ways all the same.
#[tokio::test]
async fn t09_an_upgrade_that_nobody_asked_for_ends_its_connection() {
    let fixture = Fixture::new().await;
    let mut tls = fixture.kubectl.tls(b"http/1.1").await;
    let (prefix, host) = (&fixture.kubectl.prefix, fixture.kubectl.address);
    let head = format!(
        "GET {prefix}/unauthorized HTTP/1.1\r\nHost: {host}\r\nUpgrade: SPDY/3.1\r\n\r\n\
         GET {prefix}/smuggled HTTP/1.1\r\nHost: {host}\r\n\r\n"
    );
    tls.write_all(head.as_bytes()).await.unwrap();
    let mut got = Vec::new();
    soon("the answer and the end", tls.read_to_end(&mut got)).await.unwrap();
    assert_eq!(String::from_utf8(got).unwrap().matches("HTTP/1.1").count(), 1);
    assert_eq!(fixture.seen_of("/smuggled"), 0);
}

#[tokio::test]
async fn an_upgrade_over_http2_is_refused_with_a_reason() {
    let fixture = Fixture::new().await;
    // HTTP/2 forbids the headers themselves; a library that sends them is told by a reset or a refusal.
    let request = fixture.kubectl.request("CONNECT", "/x", empty());
    let answered = soon("it", fixture.kubectl.h2().await.send(request)).await;
    assert!(answered.is_err() || answered.unwrap().status().is_client_error());
    assert_eq!(fixture.seen_of("/x"), 0);
    assert_eq!(fixture.running.served().len(), 1);
}

#[tokio::test]
async fn what_the_agent_refuses_comes_back_as_it_came() {
    let fixture = Fixture::new().await;
    let response =
        soon("it", fixture.kubectl.h2().await.send(fixture.kubectl.get("/unauthorized"))).await.unwrap();
    assert_eq!(response.status(), 401);
    assert_eq!(code(response).await, "TL-IDN-002");
}

/// Else they would end with the token that they began with.
#[tokio::test]
async fn the_agent_is_told_of_a_newer_token_while_something_is_open() {
    const TELL: &str = "/.towline/authority";
    let fixture = Fixture::new().await;
    let mut client = fixture.kubectl.h1().await;
    let mut response =
        soon("101", client.send(fixture.kubectl.upgrade("/upgrade/echo", "SPDY/3.1"))).await.unwrap();
    let mut io = hyper_util::rt::TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    fixture.home.tokens(4_000_000_001);
    until("the agent is told", || fixture.seen_of(TELL) == 1).await;
    let told = fixture.peer.script.apiserver.seen().pop().unwrap();
    let expected = format!("Bearer {}", support::jwt("towline-cluster", 4_000_000_001));
    assert_eq!((told.method.as_str(), told.headers["authorization"].to_str().unwrap()), ("POST", &*expected));
    io.shutdown().await.unwrap();
    let mut rest = Vec::new();
    soon("the end", io.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"bye");
}
