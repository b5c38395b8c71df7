//! Ways to identity providers for agents, by a real relay: to hosts that its operator has named, and to nothing else.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod common;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use common::{Agent, Bench, SOON, eventually};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;
use towline_relay::registry::AuditFilter;
use towline_tunnel::{
    ids::StreamKey,
    issuer_host::IssuerHost,
    mux::{CloseReason, MuxStream, OpenRequest, StreamError},
};

/// A provider that gives back what it is sent, and counts who comes.
struct Provider {
    at: SocketAddr,
    came: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    _task: AbortOnDropHandle<()>,
}

impl Provider {
    async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let at = listener.local_addr().unwrap();
        let (came, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counts = (Arc::clone(&came), Arc::clone(&open));
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            while let Ok((mut tcp, _)) = listener.accept().await {
                let (came, open) = (Arc::clone(&counts.0), Arc::clone(&counts.1));
                came.fetch_add(1, Ordering::SeqCst);
                open.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let (mut read, mut write) = tcp.split();
                    let _ended = tokio::io::copy(&mut read, &mut write).await;
                    let _gone = write.shutdown().await;
                    open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        }));
        Self { at, came, open, _task: task }
    }

    fn host(&self) -> IssuerHost {
        IssuerHost::new("127.0.0.1", self.at.port()).unwrap()
    }

    fn came(&self) -> usize {
        self.came.load(Ordering::SeqCst)
    }
}

async fn begin(agent: &Agent, first: &[u8]) -> MuxStream {
    let mut stream = agent.connection.open(OpenRequest::new(StreamKey::random(), agent.cluster())).unwrap();
    stream.write_all(first).await.unwrap();
    stream
}

async fn answers(stream: &mut MuxStream) {
    stream.write_all(b"x").await.unwrap();
    assert_eq!(timeout(SOON, stream.read_u8()).await.unwrap().unwrap(), b'x');
}

async fn refused(stream: &mut MuxStream) -> StreamError {
    let ended = timeout(SOON, stream.read_u8()).await.expect("it ends").unwrap_err();
    ended.get_ref().and_then(|error| error.downcast_ref::<StreamError>()).unwrap().clone()
}

#[tokio::test]
async fn an_agent_reaches_a_provider_that_was_named_and_the_audit_tells_of_it() {
    let provider = Provider::start().await;
    let bench = Bench::leading_to(vec![provider.host()]).await;
    let agent = bench.agent("edge").await;
    let mut stream = begin(&agent, &provider.host().preamble()).await;
    let sent: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    let (mut read, mut write) = tokio::io::split(stream);
    let wrote = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut came = Vec::new();
    let (_, got) = timeout(SOON, async { tokio::join!(wrote, read.read_to_end(&mut came)) }).await.unwrap();
    got.unwrap();
    assert!(came == sent, "{} of {} bytes", came.len(), sent.len());
    stream = read.unsplit(write);
    drop(stream);
    eventually("it is over at the provider", async || provider.open.load(Ordering::SeqCst) == 0).await;
    assert_eq!(bench.metric("towline_relay_issuer_opens_total").await, 1);
    assert!(bench.metric("towline_relay_issuer_bytes_total").await >= 600_000);
    assert_eq!(bench.metric("towline_relay_streams").await, 0, "it is no client's");
    let all = AuditFilter { limit: 10, ..AuditFilter::default() };
    let host = provider.host().to_string();
    eventually("the audit tells of it", async || {
        let records = bench.relay.registry().audit(&all).await.unwrap();
        records.iter().any(|of| of.cluster == "edge" && of.verdict == "allowed" && of.why.contains(&host))
    })
    .await;
}

#[tokio::test]
async fn an_agent_reaches_nothing_else() {
    let (provider, other) = (Provider::start().await, Provider::start().await);
    // Whoever answers for a name must not lead the relay into its own network.
    let by_name = IssuerHost::new("localhost", other.at.port()).unwrap();
    let bench = Bench::leading_to(vec![provider.host(), by_name.clone()]).await;
    let agent = bench.agent("edge").await;
    let metadata = IssuerHost::new("169.254.169.254", 80).unwrap();
    for host in [other.host(), metadata, IssuerHost::new("idp.example", provider.at.port()).unwrap()] {
        let ended = refused(&mut begin(&agent, &host.preamble()).await).await;
        assert_eq!(ended.reason, CloseReason::Forbidden, "{host}");
        assert!(ended.detail.contains("--issuer-host"), "{ended:?}");
    }
    let ended = refused(&mut begin(&agent, &by_name.preamble()).await).await;
    assert!(ended.reason == CloseReason::Timeout && ended.detail.contains("no public address"), "{ended:?}");
    let text = |text: &str| [&u16::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat();
    let port = provider.at.port();
    for wrong in [
        text(&format!("127.1:{port}")),
        text(&format!("user@127.0.0.1:{port}")),
        text(&format!("127.0.0.1:{port}/x")),
        text(&format!("[::ffff:127.0.0.1]:{port}")),
        text("127.0.0.1"),
        vec![0xff, 0xff, b'a'],
        vec![0, 0],
        b"\x16\x03\x01\x02\x00\x01\x00".to_vec(),
    ] {
        let mut stream = begin(&agent, &wrong).await;
        let _sent = stream.shutdown().await;
        let ended = refused(&mut stream).await;
        let known = matches!(ended.reason, CloseReason::FrameMalformed | CloseReason::Forbidden);
        assert!(known, "{wrong:?}: {ended:?}");
    }
    assert_eq!((provider.came(), other.came()), (0, 0));
    // The session goes on.
    answers(&mut begin(&agent, &provider.host().preamble()).await).await;
}

#[tokio::test]
async fn a_relay_whose_operator_names_nobody_leads_nowhere() {
    let provider = Provider::start().await;
    let bench = Bench::new(common::limits()).await;
    let agent = bench.agent("edge").await;
    let ended = refused(&mut begin(&agent, &provider.host().preamble()).await).await;
    assert!(ended.reason == CloseReason::Forbidden && ended.detail.contains("--issuer-host"), "{ended:?}");
    assert_eq!(provider.came(), 0);
}

/// Whoever opens streams as a client has an agent at the other end, and nobody else.
#[tokio::test]
async fn a_client_reaches_no_provider() {
    let provider = Provider::start().await;
    let bench = Bench::leading_to(vec![provider.host()]).await;
    let agent = bench.echo("edge").await;
    let alice = bench.client("alice").await;
    let mut stream = alice.open(agent.cluster());
    stream.write_all(&provider.host().preamble()).await.unwrap();
    assert_eq!(refused(&mut stream).await.reason, CloseReason::Forbidden);
    bench.allow("alice", agent.cluster()).await;
    let mut stream = alice.open(agent.cluster());
    let first = provider.host().preamble();
    stream.write_all(&first).await.unwrap();
    let mut came = vec![0; first.len()];
    timeout(SOON, stream.read_exact(&mut came)).await.unwrap().unwrap();
    assert_eq!((came, provider.came()), (first, 0), "its agent sends it back");
}

#[tokio::test]
async fn one_cluster_holds_no_more_than_its_share_and_what_it_held_ends_with_its_session() {
    let provider = Provider::start().await;
    let bench = Bench::leading_to(vec![provider.host()]).await;
    let (greedy, other) = (bench.agent("greedy").await, bench.agent("other").await);
    let first = provider.host().preamble();
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut stream = begin(&greedy, &first).await;
        answers(&mut stream).await;
        held.push(stream);
    }
    assert_eq!(refused(&mut begin(&greedy, &first).await).await.reason, CloseReason::LimitReached);
    answers(&mut begin(&other, &first).await).await;
    held.pop();
    answers(&mut begin(&greedy, &first).await).await;
    greedy.driver.abort();
    eventually("they end at the provider", async || provider.open.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn one_cluster_begins_no_more_than_its_share() {
    let provider = Provider::start().await;
    let bench = Bench::leading_to(vec![provider.host()]).await;
    let agent = bench.agent("edge").await;
    let first = provider.host().preamble();
    for _ in 0..60 {
        let mut stream = begin(&agent, &first).await;
        answers(&mut stream).await;
    }
    let ended = refused(&mut begin(&agent, &first).await).await;
    assert_eq!((ended.reason, provider.came()), (CloseReason::LimitReached, 60));
    answers(&mut begin(&bench.agent("other").await, &first).await).await;
}
