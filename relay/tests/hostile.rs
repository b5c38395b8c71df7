//! Peers that hold the relay up, flood it, or lie to it before they are anybody.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use common::{Bench, SOON, eventually, limits};
use rustls::{ClientConfig, RootCertStore, pki_types::CertificateDer, pki_types::pem::PemObject as _};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use towline_relay::limits::Limits;
use towline_tunnel::{ids::InstanceId, keys::SigningKey, session::Identify};

async fn tls(bench: &Bench, alpn: &[u8]) -> TlsStream<TcpStream> {
    tls_over(bench, TcpStream::connect(bench.relay.address()).await.unwrap(), alpn).await
}

async fn tls_over(bench: &Bench, tcp: TcpStream, alpn: &[u8]) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&bench.ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    let name = "127.0.0.1".try_into().unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
}

/// Sends a byte each time a deadline that is reset by bytes would be, until the relay closes.
async fn drip<IO: AsyncRead + AsyncWrite + Unpin>(mut io: IO, bytes: &[u8]) {
    let mut bytes = bytes.iter().cycle();
    let mut buffer = [0; 1024];
    loop {
        if io.write_all(&[*bytes.next().unwrap()]).await.is_err() || io.flush().await.is_err() {
            return;
        }
        let read = timeout(Duration::from_millis(20), io.read(&mut buffer)).await;
        if matches!(read, Ok(Ok(0) | Err(_))) {
            return;
        }
    }
}

const UPGRADE: &[u8] = b"GET /v1/connect HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: towline.v1\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";

/// Asks for an upgrade, and reads the head of the answer.
async fn asked(bench: &Bench) -> (TlsStream<TcpStream>, String) {
    let mut io = tls(bench, b"http/1.1").await;
    io.write_all(UPGRADE).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(SOON, io.read_u8()).await.unwrap().unwrap());
    }
    (io, String::from_utf8(head).unwrap())
}

async fn upgraded(bench: &Bench) -> TlsStream<TcpStream> {
    let (io, head) = asked(bench).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    io
}

/// One address takes all places of those that are not yet sessions, and says nothing.
#[tokio::test]
async fn t33_an_address_that_takes_every_handshakes_place_keeps_no_other_out() {
    const PLACES: u32 = 8;
    let patient = Limits { max_handshakes: PLACES, handshake_timeout: 6 * SOON, ..limits() };
    let bench = Bench::new(patient).await;
    let address = bench.relay.address();
    let mut silent = Vec::new();
    for _ in 0..2 * PLACES {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let elsewhere = TcpSocket::new_v4().unwrap();
    elsewhere.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let tcp = elsewhere.connect(address).await.unwrap();
    let mut other = timeout(SOON, tls_over(&bench, tcp, b"http/1.1")).await.expect("there is a place for it");
    other.write_all(b"GET /healthz HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    timeout(SOON, other.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    let newest = &mut silent[PLACES as usize - 1];
    assert_eq!(timeout(SOON, newest.read(&mut [0])).await.expect("it lost its place").unwrap_or(0), 0);
}

/// Whoever takes turns of the accept budget and hangs up then gets only those that nobody else needs, and is not shut out: others may
/// have the same address.
#[tokio::test]
async fn t37_turns_that_are_wasted_are_counted() {
    let scarce = Limits { accept_rate: 1, accept_burst: 1, max_failures_per_minute: 2, ..limits() };
    let bench = Bench::new(scarce).await;
    let mut turns = 0;
    let refusal = async {
        loop {
            // One after the other: whoever behaves waits for the next token, and is let in.
            let (_hangs_up, head) = asked(&bench).await;
            if head.starts_with("HTTP/1.1 503") {
                return head;
            }
            turns += 1;
        }
    };
    let head = timeout(3 * SOON, refusal).await.expect("turns are wasted without end");
    assert!(head.contains("retry-after: "), "{head}");
    assert!(turns >= 2, "the first ones were nobody's fault");
    let token = bench.token("alice", &[]);
    let run_key = SigningKey::generate();
    eventually("who behaves is let in from the same address", async || {
        let identify = Identify::Client { token: &token, run_key: &run_key, line: false };
        bench.session(identify, InstanceId::random()).await.is_ok()
    })
    .await;
}

/// Whatever a peer does not finish, however it drips, it is closed within the handshake's deadline.
#[tokio::test]
async fn t33_slow_peers_are_closed_at_every_stage() {
    assert!(Limits::default().handshake_timeout <= Duration::from_secs(10));
    let bench = Bench::new(Limits { handshake_timeout: Duration::from_millis(300), ..limits() }).await;
    let address = bench.relay.address();
    let begun = Instant::now();
    let stages = async {
        tokio::join!(
            async {
                let mut silent = TcpStream::connect(address).await.unwrap();
                let _closed = silent.read(&mut [0; 16]).await;
            },
            // The first bytes of a ClientHello that never ends.
            async { drip(TcpStream::connect(address).await.unwrap(), &[0x16, 3, 1, 2, 0, 1]).await },
            async {
                let mut silent = tls(&bench, b"http/1.1").await;
                let _closed = silent.read(&mut [0; 16]).await;
            },
            async { drip(tls(&bench, b"http/1.1").await, b"X-Slow: yes\r\n").await },
            async {
                let mut silent = tls(&bench, b"h2").await;
                let mut got = Vec::new();
                let _closed = silent.read_to_end(&mut got).await;
            },
            async {
                let mut silent = upgraded(&bench).await;
                let mut got = Vec::new();
                let _closed = silent.read_to_end(&mut got).await;
            },
            // A masked binary frame of 100 bytes that never ends, and pings for ever.
            async { drip(upgraded(&bench).await, &[0x82, 0xe4, 0, 0, 0, 0, 0, 0, 0, 0]).await },
            async { drip(upgraded(&bench).await, &[0x89, 0x80, 0, 0, 0, 0]).await },
        );
    };
    timeout(SOON, stages).await.expect("each stage is closed");
    assert!(begun.elapsed() >= Duration::from_millis(300), "closed by the deadline, and not at once");
}

#[tokio::test]
async fn health_is_told_and_nothing_else_and_a_wrong_upgrade_says_what_is_wrong() {
    let bench = Bench::new(limits()).await;
    for (request, status, says) in [
        ("GET /healthz HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n", "200", "ok"),
        ("GET /metrics HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n", "404", "nothing here"),
        ("POST /healthz HTTP/1.1\r\nHost: r\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", "405", "GET"),
        ("GET /v1/connect HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n", "426", "websocket"),
    ] {
        let mut io = tls(&bench, b"http/1.1").await;
        io.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _closed = timeout(SOON, io.read_to_end(&mut answer)).await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(says), "{answer}");
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// HPACK: `:method GET`, `:scheme https`, `:path /`, and an authority.
const REQUEST: &[u8] = &[0x82, 0x87, 0x84, 0x41, 1, b'r'];

fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Writes `flood` again and again until the relay closes, for at most 64 MiB.
async fn flood(bench: &Bench, mut flood: impl FnMut(u32) -> Vec<u8>) -> usize {
    let io = tls(bench, b"h2").await;
    let (mut reader, mut writer) = tokio::io::split(io);
    let reading = tokio::spawn(async move {
        let mut sink = [0; 4096];
        while matches!(reader.read(&mut sink).await, Ok(n) if n > 0) {}
    });
    let mut sent = 0;
    let writing = async {
        writer.write_all(PREFACE).await?;
        writer.write_all(&frame(4, 0, 0, &[])).await?;
        for n in 0.. {
            let bytes = flood(n);
            writer.write_all(&bytes).await?;
            sent += bytes.len();
            if sent > 64 << 20 {
                break;
            }
        }
        writer.flush().await
    };
    let closed = timeout(SOON, writing).await.expect("closed, and not held up");
    assert!(closed.is_err(), "{sent} bytes were taken without the connection being closed");
    reading.abort();
    sent
}

#[tokio::test]
async fn t34_h2_floods_end_their_connection_and_grow_nothing() {
    let bench = Bench::new(limits()).await;
    let before = resident();
    // A header list of 4 KiB names from the dynamic table, thousands of times: small on the wire, huge decoded.
    let bomb = flood(&bench, |n| {
        let mut block = REQUEST.to_vec();
        if n == 0 {
            block.extend([0x40, 1, b'x', 0x7f, 0x81, 0x1e]);
            block.extend(vec![b'a'; 4096 - 128]);
        }
        block.extend(vec![0xbe; 8000]);
        frame(1, 5, 2 * n + 1, &block)
    });
    let bomb = bomb.await;
    // CVE-2023-44487: streams opened and reset at once.
    let resets = flood(&bench, |n| {
        let mut bytes = frame(1, 5, 2 * n + 1, REQUEST);
        bytes.extend(frame(3, 0, 2 * n + 1, &8_u32.to_be_bytes()));
        bytes
    })
    .await;
    // CONTINUATION without end.
    let continuation = flood(&bench, |n| match n {
        0 => frame(1, 1, 1, REQUEST),
        _ => frame(9, 0, 1, &[0x00, 1, b'y', 1, b'z'].repeat(3000)),
    })
    .await;
    // DATA that carries nothing, on a stream that ended.
    let empty = flood(&bench, |n| match n {
        0 => frame(1, 4, 1, REQUEST),
        _ => frame(0, 0, 1, &[]).repeat(1000),
    })
    .await;
    let grown = resident().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes after floods of {bomb}, {resets}, {continuation} and {empty}");
    // Whoever behaves is served as before.
    let agent = bench.echo("edge").await;
    bench.allow("alice", agent.cluster()).await;
    let client = bench.client("alice").await;
    eventually("a stream echoes", async || {
        let mut stream = client.open(agent.cluster());
        stream.write_all(b"x").await.is_ok() && stream.read_u8().await.is_ok()
    })
    .await;
}
