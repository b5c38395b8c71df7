//! Memory that was needed once and is never given back: each connection would cost what its busiest moment took.
//!
//! Every allocation of this process is counted, so nothing else may run beside the one test.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

use std::{alloc::System, time::Duration};

use bytes::BytesMut;
use cap::Cap;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    task::JoinSet,
    time::sleep,
};
use towline_tunnel::{
    carrier::{
        SUBPROTOCOL,
        dial::Errand,
        websocket::{WebSocketCarrier, accept_key},
    },
    ids::{ClusterId, InstanceId, StreamKey},
    mux::{Connection, EndpointConfig, Ledger, MuxStream, OpenRequest, Side},
};

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

const CONNECTIONS: usize = 20;
/// What the pipe between two ends holds each way, and doesn't give back.
const PIPE: usize = 4 * 1024;
/// What may stay of both ends of a connection after bulk, beside the pipe: the carrier keeps no buffer, nor does the mux.
const STAYS_AFTER_BULK: usize = 2 * PIPE + 4 * 1024;
/// After many streams at once, also tables of a few places that are not worth giving back.
const STAYS_AFTER_MANY: usize = STAYS_AFTER_BULK + 64 * 1024;
const STREAMS: usize = 500;

fn endpoint(side: Side) -> EndpointConfig {
    EndpointConfig {
        side,
        max_streams: 2_000,
        ledger: Ledger::new(1 << 30),
        instance: InstanceId::random(),
        jitter: 0,
    }
}

/// The relay's side of an upgrade, which here has one client.
async fn upgraded(mut io: DuplexStream) -> WebSocketCarrier<DuplexStream> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.unwrap());
    }
    let mut headers = http::HeaderMap::new();
    for line in String::from_utf8(head).unwrap().lines().skip(1) {
        if let Some((name, value)) = line.split_once(": ") {
            headers.append(http::HeaderName::try_from(name).unwrap(), value.parse().unwrap());
        }
    }
    let key = accept_key(&headers).unwrap();
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\nSec-WebSocket-Accept: {key}\r\n\r\n"
    );
    io.write_all(answer.as_bytes()).await.unwrap();
    WebSocketCarrier::server(io)
}

/// Two ends on a carrier, with their drivers.
async fn pair(drivers: &mut JoinSet<()>) -> (Connection, Connection) {
    let (a, b) = duplex(PIPE);
    let (client, server) = tokio::join!(WebSocketCarrier::client(a, "relay", Errand::Begin), upgraded(b));
    let (left, left_driver) = Connection::new(client.unwrap(), BytesMut::new(), endpoint(Side::Dialler));
    let (right, right_driver) = Connection::new(server, BytesMut::new(), endpoint(Side::Acceptor));
    drivers.spawn(async move { drop(left_driver.run().await) });
    drivers.spawn(async move { drop(right_driver.run().await) });
    (left, right)
}

async fn stream((left, right): &(Connection, Connection)) -> (MuxStream, MuxStream) {
    let near = left.open(OpenRequest::new(StreamKey::random(), ClusterId::of_spki(b"cluster"))).unwrap();
    let (_, far) = right.accept().await.unwrap();
    (near, far)
}

/// So many bytes one way, and the end of both.
async fn carries((mut near, mut far): (MuxStream, MuxStream), bytes: usize) {
    let block = vec![1; bytes.min(1 << 20)];
    let writes = async {
        for _ in 0..bytes / block.len() {
            near.write_all(&block).await.unwrap();
        }
        near.shutdown().await.unwrap();
    };
    let reads = async {
        let mut buffer = vec![0; 64 * 1024];
        let mut got = 0;
        loop {
            match far.read(&mut buffer).await.unwrap() {
                0 => break,
                n => got += n,
            }
        }
        far.shutdown().await.unwrap();
        got
    };
    assert_eq!(tokio::join!(writes, reads).1, bytes);
    assert_eq!(near.read(&mut [0; 1]).await.unwrap(), 0);
}

/// Until every CREDIT that may wait has gone, and both ends forgot what is over.
async fn quiet(pairs: &[(Connection, Connection)]) {
    for _ in 0..100 {
        sleep(Duration::from_secs(1)).await;
        if pairs.iter().all(|(left, right)| left.stream_count() + right.stream_count() == 0) {
            return;
        }
    }
    panic!("streams are left");
}

/// What is allocated for each connection, once all is quiet.
async fn each(pairs: &[(Connection, Connection)]) -> usize {
    quiet(pairs).await;
    // Some pings later.
    sleep(Duration::from_secs(60)).await;
    ALLOCATOR.allocated() / pairs.len()
}

#[tokio::test(start_paused = true)]
async fn what_a_busy_moment_took_is_given_back_when_it_is_over() {
    let mut drivers = JoinSet::new();
    let mut pairs = Vec::new();
    for _ in 0..CONNECTIONS {
        pairs.push(pair(&mut drivers).await);
    }
    for pair in &pairs {
        carries(stream(pair).await, 1).await;
    }
    let before = each(&pairs).await;

    for pair in &pairs {
        carries(stream(pair).await, 16 << 20).await;
    }
    let bulk = each(&pairs).await;

    // Many at once, each with bytes that nobody reads; and then all is read.
    for pair in &pairs {
        let mut streams = Vec::new();
        for _ in 0..STREAMS {
            let (mut near, far) = stream(pair).await;
            near.write_all(&[1; 50_000]).await.unwrap();
            streams.push((near, far));
        }
        sleep(Duration::from_secs(2)).await;
        for (mut near, mut far) in streams {
            near.shutdown().await.unwrap();
            let mut got = Vec::new();
            far.read_to_end(&mut got).await.unwrap();
            assert_eq!(got.len(), 50_000);
            far.shutdown().await.unwrap();
            near.read_to_end(&mut got).await.unwrap();
        }
    }
    let many = each(&pairs).await;

    for (what, now, stays) in [("bulk", bulk, STAYS_AFTER_BULK), ("many streams", many, STAYS_AFTER_MANY)] {
        assert!(now <= before + stays, "{what}: {now} bytes stay, and {before} were enough before");
    }
}
