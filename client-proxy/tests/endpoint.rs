//! Who may use the local endpoint, and what it bears.

#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod support;

use std::time::{Duration, Instant};

use support::{
    Home, Kubectl, Peer,
    kubectl::{code, empty, text},
    soon, until,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use towline::app::{Choice, Running, start};
use towline_tunnel::{
    drain::{DrainTrigger, drain},
    ids::ClusterId,
};

struct Fixture {
    peer: Peer,
    running: Running,
    kubectl: Kubectl,
    _home: Home,
    _trigger: DrainTrigger,
}

impl Fixture {
    async fn new() -> Self {
        let peer = Peer::start().await;
        let home = Home::new(&peer);
        let (trigger, watcher) = drain();
        let mut config = home.config(&peer);
        // A second cluster, which is away.
        config.clusters.push(Choice::named("edge-8", ClusterId::of_spki(b"away")));
        let running = soon("the start", start(config, watcher)).await.unwrap();
        let kubectl = Kubectl::new(&running.kubeconfig(), 0);
        Self { peer, running, kubectl, _home: home, _trigger: trigger }
    }

    /// Requests that reached the apiserver, but for the proxy's own question.
    fn reached(&self) -> usize {
        self.peer.script.apiserver.seen().iter().filter(|seen| seen.path != "/version").count()
    }

    /// What comes back for these bytes over HTTP/1.1.
    async fn raw(&self, text: &str) -> String {
        let mut tls = self.kubectl.tls(b"http/1.1").await;
        tls.write_all(text.as_bytes()).await.unwrap();
        let mut got = Vec::new();
        let _ended = soon("an answer and the end", tls.read_to_end(&mut got)).await;
        String::from_utf8(got).unwrap()
    }
}

#[tokio::test]
async fn t26_a_web_page_gets_nothing() {
    let fixture = Fixture::new().await;
    let own = fixture.kubectl.address.to_string();
    let evil: [(&str, &str, &str); 6] = [
        ("evil.example", "x-nothing", ""),
        ("127.evil.example:47011", "x-nothing", ""),
        (&own, "origin", "https://evil.example"),
        (&own, "origin", "null"),
        (&own, "sec-fetch-site", "cross-site"),
        ("127.0.0.1", "x-nothing", ""),
    ];
    for (host, name, value) in evil {
        let mut over_h1 = fixture.kubectl.get("/api/v1/pods");
        over_h1.headers_mut().insert("host", host.parse().unwrap());
        over_h1.headers_mut().insert(name, value.parse().unwrap());
        let response = soon("h1", fixture.kubectl.h1().await.send(over_h1)).await.unwrap();
        assert_eq!(response.status(), 403, "{host} {name}");
        assert_eq!(code(response).await, "TL-KUB-006");

        let mut over_h2 = fixture.kubectl.get("/api/v1/pods");
        *over_h2.uri_mut() = format!("https://{host}{}/api/v1/pods", fixture.kubectl.prefix).parse().unwrap();
        over_h2.headers_mut().insert(name, value.parse().unwrap());
        let response = soon("h2", fixture.kubectl.h2().await.send(over_h2)).await.unwrap();
        assert_eq!(response.status(), 403, "{host} {name}");
    }
    assert_eq!(fixture.reached(), 0);
}

#[tokio::test]
async fn a_context_opens_its_own_cluster_only() {
    let fixture = Fixture::new().await;
    let other = Kubectl::new(&fixture.running.kubeconfig(), 1);
    let mut request = other.get("/api/v1/pods");
    *request.uri_mut() =
        format!("https://{}{}/api/v1/pods", other.address, fixture.kubectl.prefix).parse().unwrap();
    let response = soon("it", other.h2().await.send(request)).await.unwrap();
    assert_eq!(response.status(), 401);
    assert_eq!(code(response).await, "TL-KUB-005");
    let away = soon("its own", other.h2().await.send(other.get("/api/v1/pods"))).await.unwrap();
    assert_eq!(away.status(), 404);
    assert_eq!(code(away).await, "TL-REL-004");
    // kubectl reads discovery without looking for a Status; others look for one.
    let mut discovery = other.get("/api");
    discovery.headers_mut().insert("accept", "application/json, */*".parse().unwrap());
    let words = soon("discovery", other.h2().await.send(discovery)).await.unwrap();
    assert_eq!(words.headers()["content-type"], "text/plain; charset=utf-8");
    assert!(text(words).await.contains("TL-REL-004"));
    for path in ["/api", "/version"] {
        let mut as_curl = other.get(path);
        as_curl.headers_mut().insert("accept", "*/*".parse().unwrap());
        let response = soon("a Status", other.h2().await.send(as_curl)).await.unwrap();
        assert_eq!(response.status(), 404, "{path}");
        assert_eq!(code(response).await, "TL-REL-004");
    }
    assert_eq!(fixture.reached(), 0);
    assert_eq!(fixture.running.served()[1].trouble.as_ref().unwrap().fault.code(), "TL-REL-004");
}

/// kubectl before 1.34 forgets the prefix in `get --raw`.
#[tokio::test]
async fn a_path_without_prefix_leads_to_the_cluster_of_the_certificate() {
    let fixture = Fixture::new().await;
    let at = |kubectl: &Kubectl, path: &str| {
        let mut request = kubectl.get("");
        *request.uri_mut() = format!("https://{}{path}", kubectl.address).parse().unwrap();
        request
    };
    let request = at(&fixture.kubectl, "/version?x=1");
    let response = soon("its own", fixture.kubectl.h2().await.send(request)).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(fixture.peer.script.apiserver.seen().pop().unwrap().path, "/version?x=1");
    let away = Kubectl::new(&fixture.running.kubeconfig(), 1);
    let response = soon("away", away.h2().await.send(at(&away, "/version"))).await.unwrap();
    assert_eq!(code(response).await, "TL-REL-004");
    let request = at(&fixture.kubectl, "/clusters/edge-7/version");
    let response = soon("no id", fixture.kubectl.h2().await.send(request)).await.unwrap();
    assert_eq!(response.status(), 404);
}

#[tokio::test]
async fn t11_what_can_be_read_in_two_ways_is_refused_before_it_leaves() {
    let fixture = Fixture::new().await;
    let (prefix, host) = (&fixture.kubectl.prefix, fixture.kubectl.address);
    let head = |fields: &str| format!("POST {prefix}/echo HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n\r\nxxxxx");
    for (what, text) in [
        ("both lengths", head("Content-Length: 5\r\nTransfer-Encoding: chunked")),
        ("two encodings", head("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity")),
        ("a bare LF", head("X: y\nZ: w")),
        ("two hosts", head(&format!("Host: {host}"))),
        (
            "http/1.0",
            format!("POST {prefix}/echo HTTP/1.0\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ),
        ("an absolute uri", format!("GET https://{host}{prefix}/echo HTTP/1.1\r\nHost: {host}\r\n\r\n")),
    ] {
        let got = fixture.raw(&text).await;
        assert!(got.starts_with("HTTP/1.1 400 "), "{what}: {got}");
        assert!(got.contains("TL-HTP-001"), "{what}: {got}");
    }
    assert_eq!(fixture.reached(), 0);
    // The same guard lets a sound one pass.
    let sound = format!(
        "POST {prefix}/echo HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
    );
    let got = fixture.raw(&sound).await;
    assert!(got.starts_with("HTTP/1.1 200 ") && got.contains("ok"), "{got}");
}

#[tokio::test]
async fn an_http1_connection_that_is_closed_says_so() {
    let fixture = Fixture::new().await;
    let mut tls = fixture.kubectl.tls(b"http/1.1").await;
    let (prefix, host) = (&fixture.kubectl.prefix, fixture.kubectl.address);
    let text = format!("GET {prefix}/version HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    tls.write_all(text.as_bytes()).await.unwrap();
    soon("a clean end", tls.read_to_end(&mut Vec::new())).await.unwrap();
}

#[tokio::test]
async fn t33_a_client_that_says_nothing_is_let_go_within_ten_seconds() {
    let fixture = Fixture::new().await;
    let begun = Instant::now();
    let tcp = async {
        let mut tcp = TcpStream::connect(fixture.kubectl.address).await.unwrap();
        tcp.read_to_end(&mut Vec::new()).await
    };
    let after_tls = async |alpn: &'static [u8], said: &'static [u8]| {
        let mut tls = fixture.kubectl.tls(alpn).await;
        tls.write_all(said).await.unwrap();
        tls.read_to_end(&mut Vec::new()).await
    };
    soon("all of them", async {
        let _ends = tokio::join!(
            tcp,
            after_tls(b"http/1.1", b""),
            after_tls(b"http/1.1", b"GET / HTTP/1.1\r\nHo"),
            after_tls(b"h2", b""),
            after_tls(b"h2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        );
    })
    .await;
    assert!(begun.elapsed() < Duration::from_millis(10_900), "{:?}", begun.elapsed());
}

/// A frame of HTTP/2 (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const DATA: u8 = 0;
const END_HEADERS: u8 = 4;

/// `:method GET`, `:scheme https`, `:path /`, and an authority that is not this endpoint's: answered without a stream.
fn small_request() -> Vec<u8> {
    let mut block = vec![0x82, 0x87, 0x84, 0x41, 4];
    block.extend_from_slice(b"evil");
    block
}

/// Bytes of this process's memory, endpoint and flooding client together.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Sends until the endpoint ends the connection.
async fn flood(fixture: &Fixture, mut next: impl AsyncFnMut(u32) -> Vec<u8>) {
    let tls = fixture.kubectl.tls(b"h2").await;
    let (mut read, mut write) = tokio::io::split(tls);
    let begin = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    write.write_all(&begin).await.unwrap();
    let mut sent = 0;
    soon("the endpoint ends it", async {
        let send = async {
            for n in 0.. {
                let bytes = next(n).await;
                if write.write_all(&bytes).await.is_err() || write.flush().await.is_err() {
                    return;
                }
                sent += bytes.len();
                assert!(sent < 64 << 20, "it takes everything");
            }
        };
        let receive = async {
            let mut buffer = vec![0; 64 * 1024];
            while matches!(read.read(&mut buffer).await, Ok(1..)) {}
        };
        tokio::select! {
            () = send => {}
            () = receive => {}
        }
    })
    .await;
}

#[tokio::test]
async fn t34_floods_of_http2_end_the_connection_and_not_the_endpoint() {
    let fixture = Fixture::new().await;
    let before = resident();
    flood(&fixture, async |n| match n {
        0 => frame(HEADERS, 0, 1, &small_request()),
        // A literal header without indexing, never ended.
        _ => frame(CONTINUATION, 0, 1, &[&[0x00, 1, b'a', 0x7f, 0x81, 0x7d], &[b'v'; 16_000][..]].concat()),
    })
    .await;
    flood(&fixture, async |n| {
        let stream = 2 * n + 1;
        [
            frame(HEADERS, END_HEADERS, stream, &small_request()),
            frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()),
        ]
        .concat()
    })
    .await;
    // Past the window.
    flood(&fixture, async |n| match n {
        0 => frame(HEADERS, END_HEADERS, 1, &small_request()),
        _ => frame(DATA, 0, 1, &[0; 16_384]),
    })
    .await;
    let grown = resident().saturating_sub(before);
    assert!(grown < 64 << 20, "grown by {grown} bytes, the flooding client included");
    let response = soon("others", fixture.kubectl.h2().await.send(fixture.kubectl.get("/version"))).await;
    assert_eq!(response.unwrap().status(), 200);
    assert_eq!(fixture.reached(), 0);
}

/// Empty frames need no credit, and could pile up without end.
#[tokio::test]
async fn t34_empty_data_without_end_is_not_taken() {
    let fixture = Fixture::new().await;
    let before = resident();
    let path = format!("{}/hang", fixture.kubectl.prefix);
    let authority = fixture.kubectl.address.to_string();
    let mut block = vec![0x83, 0x87, 0x44, u8::try_from(path.len()).unwrap()];
    block.extend_from_slice(path.as_bytes());
    block.extend_from_slice(&[0x41, u8::try_from(authority.len()).unwrap()]);
    block.extend_from_slice(authority.as_bytes());
    flood(&fixture, async |n| match n {
        0 => frame(HEADERS, END_HEADERS, 1, &block),
        // What HTTP/2 always grants, less a little.
        1..4 => frame(DATA, 0, 1, &[0; 16_384]),
        4 => {
            until("the request runs", || fixture.reached() == 1).await;
            Vec::new()
        }
        _ => frame(DATA, 0, 1, &[]).repeat(1000),
    })
    .await;
    assert_eq!(fixture.reached(), 1, "the body belongs to a request that runs");
    let grown = resident().saturating_sub(before);
    assert!(grown < 64 << 20, "grown by {grown} bytes, the flooding client included");
}

#[tokio::test]
async fn t34_a_header_list_beyond_64_kib_is_refused() {
    let fixture = Fixture::new().await;
    let mut request = fixture.kubectl.request("GET", "/version", empty());
    for n in 0..5 {
        let name = http::HeaderName::from_bytes(format!("x-{n}").as_bytes()).unwrap();
        request.headers_mut().insert(name, "v".repeat(15_000).parse().unwrap());
    }
    let answered = soon("it", fixture.kubectl.h2().await.send(request)).await;
    assert!(answered.is_err() || answered.unwrap().status() == 431);
    assert_eq!(fixture.reached(), 0);
}
