//! Clients that reach a relay by whatever gets through.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};
use towline_relay::limits::Limits;
use towline_tunnel::{
    carrier::{
        dial::{Dialler, Errand, RelayAddress},
        ladder::{Climbed, Ladder, Memory},
        rung::Rung,
    },
    fault::Report,
    ids::InstanceId,
    keys::SigningKey,
    mux::{Connection, EndpointConfig, Ledger, Side},
    session::Identify,
};

use super::{Agent, Bench, Client, SOON, limits};

/// A client of the relay, and how it got there.
pub(crate) struct Dialled {
    pub(crate) client: Client,
    pub(crate) rung: Rung,
    pub(crate) took: Duration,
}

pub(crate) async fn dial_at(
    bench: &Bench,
    address: SocketAddr,
    ca: &Path,
    memory: &Memory,
) -> Result<Dialled, Report> {
    let ladder = ladder(address, ca, memory);
    let (token, run_key) = (bench.token("alice", &[]), SigningKey::generate());
    let identify = Identify::Client { token: &token, run_key: &run_key, line: false };
    let begun = Instant::now();
    let climbed = ladder.connect(Errand::Begin, bench.relay.identity_hash(), identify).await;
    Ok(Dialled::new(climbed?, begun.elapsed()))
}

/// A session on a better rung than this.
pub(crate) async fn better_at(
    bench: &Bench,
    address: SocketAddr,
    ca: &Path,
    memory: &Memory,
    than: Rung,
) -> Result<Dialled, Report> {
    let ladder = ladder(address, ca, memory);
    let (token, run_key) = (bench.token("alice", &[]), SigningKey::generate());
    let identify = Identify::Client { token: &token, run_key: &run_key, line: false };
    let begun = Instant::now();
    let climbed = ladder.better(than, Errand::Begin, bench.relay.identity_hash(), identify).await;
    Ok(Dialled::new(climbed?, begun.elapsed()))
}

fn ladder(address: SocketAddr, ca: &Path, memory: &Memory) -> Ladder {
    let address = RelayAddress::parse(&address.to_string()).unwrap();
    Ladder::new(Dialler::new(address, Some(ca)).unwrap(), memory.clone())
}

impl Dialled {
    fn new(climbed: Climbed, took: Duration) -> Self {
        let Climbed { session, rung, .. } = climbed;
        let config = EndpointConfig {
            side: Side::Dialler,
            max_streams: 1000,
            ledger: Ledger::new(64 << 20),
            instance: InstanceId::random(),
            jitter: 0,
        };
        let (connection, driver) = Connection::new(session.channel, BytesMut::new(), config);
        let client = Client { connection, driver: tokio::spawn(driver.run()) };
        Self { client, rung, took }
    }
}

pub(crate) async fn bench() -> (Bench, Agent) {
    bench_with(limits()).await
}

pub(crate) async fn bench_with(limits: Limits) -> (Bench, Agent) {
    let bench = Bench::new(limits).await;
    let agent = bench.echo("edge").await;
    bench.allow("alice", agent.cluster()).await;
    (bench, agent)
}

/// As much as makes every window and buffer on the way turn over, both ways at once; then the end, which is one.
pub(crate) async fn echoes(client: &Client, agent: &Agent, bytes: usize) {
    let stream = client.open(agent.cluster());
    let (mut reader, mut writer) = tokio::io::split(stream);
    let sent: Vec<u8> = (0..bytes).map(|n| (n * 31 % 251) as u8).collect();
    let expected = sent.clone();
    let writing = async move {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let mut came = Vec::new();
    let reading = async { reader.read_to_end(&mut came).await.unwrap() };
    timeout(6 * SOON, async { tokio::join!(writing, reading) }).await.expect("it goes on");
    assert!(came == expected, "{} of {bytes} bytes came", came.len());
}
