//! What a relay keeps of who opened what.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod common;

use std::{fs, time::Duration};

use common::{Agent, Bench, Client, SOON, eventually, limits};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};
use towline_relay::{
    app::AuditConfig,
    registry::{AuditFilter, AuditRow},
};
use towline_tunnel::{audit::Destination, ids::ClusterId, mux::MuxStream};

async fn exchange(stream: &mut MuxStream, bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    let mut back = vec![0; bytes.len()];
    timeout(SOON, stream.read_exact(&mut back)).await.unwrap().unwrap();
}

async fn refusal(stream: &mut MuxStream) {
    let mut rest = Vec::new();
    timeout(SOON, stream.read_to_end(&mut rest)).await.unwrap().unwrap_err();
}

fn all() -> AuditFilter {
    AuditFilter { limit: 1000, ..AuditFilter::default() }
}

impl Bench {
    async fn records(&self, filter: AuditFilter) -> Vec<AuditRow> {
        self.relay.registry().audit(&filter).await.unwrap()
    }

    /// A word of alice's to an agent and back, on a stream that is still open.
    async fn one_word(&self) -> (Agent, Client, MuxStream) {
        let agent = self.echo("a").await;
        self.allow("alice", agent.cluster()).await;
        let client = self.client("alice").await;
        let mut stream = client.open(agent.cluster());
        exchange(&mut stream, b"hello").await;
        (agent, client, stream)
    }
}

#[tokio::test]
async fn each_channel_has_a_record_for_each_cluster_and_verdict() {
    let log =
        |folder: &std::path::Path| Destination::parse(folder.join("audit.log").to_str().unwrap(), 1 << 20, 1);
    let audit = |folder: &std::path::Path| AuditConfig { log: Some(log(folder)), ..AuditConfig::default() };
    let bench = Bench::audited(limits(), audit).await;
    let (a, b) = (bench.echo("a").await, bench.echo("b").await);
    bench.allow("alice", a.cluster()).await;
    let client = bench.client("alice").await;
    let (mut first, mut second) = (client.open(a.cluster()), client.open(a.cluster()));
    exchange(&mut first, &[1; 5000]).await;
    refusal(&mut client.open(b.cluster())).await;
    refusal(&mut client.open(ClusterId::of_spki(b"nowhere"))).await;

    eventually("who is there now is shown", async || bench.records(all()).await.len() == 3).await;
    let records = bench.records(all()).await;
    assert!(records.iter().all(|record| record.user == "alice" && record.ended_at.is_none()), "{records:?}");
    assert!(records.iter().all(|record| record.principal == format!("{}#alice", bench.issuer.url())));
    assert!(records.iter().all(|record| record.source.starts_with("127.0.0.1:")), "{records:?}");
    let found: Vec<_> =
        records.iter().map(|r| (r.cluster.as_str(), r.verdict.as_str(), r.why.as_str())).collect();
    assert_eq!(found[0], ("a", "allowed", "cluster-user of user alice"));
    assert_eq!((found[1].0, found[1].1), ("b", "forbidden"));
    assert_eq!((found[2].0, found[2].1), ("", "cluster unknown"));

    exchange(&mut second, &[2; 700]).await;
    client.connection.close();
    eventually("all have ended", async || bench.records(all()).await.iter().all(|r| r.ended_at.is_some()))
        .await;
    let ended = bench.records(AuditFilter { cluster: Some("a".into()), ..all() }).await;
    let [record] = ended.as_slice() else { panic!("{ended:?}") };
    let tally = record.tally;
    assert_eq!((tally.streams, tally.resumed), (2, 0));
    assert_eq!((tally.bytes_to_agent, tally.bytes_to_client), (5700, 5700));
    assert_eq!(record.ending, "the client closed it");
    assert_eq!(bench.records(AuditFilter { refused: true, ..all() }).await.len(), 2);
    assert!(bench.records(AuditFilter { user: Some("bob".into()), ..all() }).await.is_empty());

    let path = bench.folder.path().join("audit.log");
    assert!(bench.relay.drain().await);
    let log = fs::read_to_string(path).unwrap();
    let lines: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3, "{log}");
    let line = lines.iter().find(|line| line["cluster"] == "a").unwrap();
    assert_eq!(*line, serde_json::to_value(record).unwrap());
    assert_eq!((&line["bytesToAgent"], &line["verdict"]), (&5700.into(), &"allowed".into()));
}

#[tokio::test]
async fn a_relay_that_drains_has_written_what_was_open() {
    let bench = Bench::new(limits()).await;
    let (_agent, _client, stream) = bench.one_word().await;
    drop(stream);
    let folder = bench.config.data_dir.clone();
    bench.relay.drain().await;
    let registry = towline_relay::registry::Registry::open(&folder).await.unwrap();
    let records = registry.audit(&all()).await.unwrap();
    assert_eq!(records.len(), 1);
    assert!(records[0].ended_at.is_some() && records[0].tally.bytes_to_agent == 5, "{records:?}");
}

/// What a client can make up must not grow without end, and what it carried must not be lost for it.
#[tokio::test]
async fn a_client_that_asks_for_clusters_that_are_not_there_has_one_record_of_them() {
    let bench = Bench::new(limits()).await;
    let agent = bench.echo("a").await;
    let client = bench.client("alice").await;
    for n in 0..400_u32 {
        refusal(&mut client.open(ClusterId::of_spki(&n.to_be_bytes()))).await;
    }
    refusal(&mut client.open(agent.cluster())).await;
    bench.allow("alice", agent.cluster()).await;
    let mut stream = client.open(agent.cluster());
    exchange(&mut stream, b"hello").await;
    client.connection.close();
    let ended = async || {
        let records = bench.records(all()).await;
        !records.is_empty() && records.iter().all(|record| record.ended_at.is_some())
    };
    eventually("all have ended", ended).await;
    let records = bench.records(all()).await;
    let told: Vec<_> = records
        .iter()
        .map(|r| (r.cluster.as_str(), r.verdict.as_str(), r.tally.streams, r.tally.bytes_to_client))
        .collect();
    assert_eq!(told, [("", "cluster unknown", 400, 0), ("a", "forbidden", 1, 0), ("a", "allowed", 1, 5)]);
}

#[tokio::test]
async fn what_a_killed_relay_left_open_is_ended_by_the_next_and_old_records_go() {
    use towline_relay::audit::Retention;
    let bench = Bench::new(limits()).await;
    let (_agent, _client, _stream) = bench.one_word().await;
    eventually("it is shown", async || !bench.records(all()).await.is_empty()).await;
    let config = bench.config.clone();
    let now = config.clock.now();
    // Its tasks are gone from one moment to the next.
    drop(bench.relay);
    let next = towline_relay::app::start(config).await.unwrap();
    eventually("the next one ended it", async || {
        let records = next.registry().audit(&all()).await.unwrap();
        records.iter().all(|record| record.ended_at.is_some() && record.ending.contains("without a word"))
    })
    .await;
    let (day, registry) = (Duration::from_secs(86_400), next.registry());
    let keep = Retention { age: day, records: 10 };
    assert_eq!(registry.sweep_audit(&keep, now + day / 2).await.unwrap(), 0);
    let old = registry.audit(&all()).await.unwrap();
    let others: Vec<_> = (0..20)
        .map(|n| AuditRow { channel: format!("c{n}"), principal: "mallory".into(), ..old[0].clone() })
        .collect();
    registry.note_audit(&others).await.unwrap();
    // However many somebody adds, those that they press out are their own.
    assert_eq!(registry.sweep_audit(&keep, now).await.unwrap(), 11);
    let left = registry.audit(&all()).await.unwrap();
    assert_eq!((left.len(), left.iter().filter(|row| **row == old[0]).count()), (10, 1));
    assert_eq!(registry.sweep_audit(&keep, now + 3 * day).await.unwrap(), 10);
}
