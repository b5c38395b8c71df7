//! The carriers of a real relay, and what is in the way of some: a middlebox that ends TLS, as a company's proxy or a load balancer does.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod common;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use common::{
    Bench, SOON, eventually,
    ladder::{Dialled, bench, better_at, dial_at, echoes},
    limits,
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};
use tokio_util::task::AbortOnDropHandle;
use towline_relay::limits::Limits;
use towline_tunnel::{
    carrier::{dial::RelayAddress, ladder::Memory, rung::Rung},
    doctor::{Diagnosis, Examination, Network, Status},
    fault::{Fault, Report},
};

/// What becomes of a connection of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Pass,
    /// Answered 403, as by a proxy that strips or forbids.
    Refuse,
    /// Taken, and nothing after the heads of the first messages comes through.
    SwallowUp,
    SwallowDown,
    /// The same of what is longer than 1 KiB.
    LargeUp,
    LargeDown,
    /// Nothing is answered.
    Silent,
    /// It is cut after this time.
    CutAfter(Duration),
    /// Extended CONNECT (RFC 8441) is not offered.
    NoConnect,
}

/// The ways of websockets, of HTTP/2, and of other requests.
type Ways = [Way; 3];

/// Between diallers and a relay.
struct Middlebox {
    address: SocketAddr,
    /// As they are now.
    ways: Arc<Mutex<Ways>>,
    _serving: AbortOnDropHandle<()>,
}

impl Middlebox {
    async fn start(bench: &Bench, ways: Ways) -> (Self, PathBuf) {
        Self::speaking(bench, ways, &["h2", "http/1.1"]).await
    }

    /// One that agrees on these protocols only (ALPN).
    async fn speaking(bench: &Bench, ways: Ways, protocols: &[&str]) -> (Self, PathBuf) {
        let certified = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let ca = bench.folder.path().join("middlebox.pem");
        std::fs::write(&ca, certified.cert.pem()).unwrap();
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(
                    vec![certified.cert.der().clone()],
                    PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()).into(),
                )
                .unwrap();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let (acceptor, beyond) = (TlsAcceptor::from(Arc::new(config)), Beyond::of(bench));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ways = Arc::new(Mutex::new(ways));
        let now = Arc::clone(&ways);
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, beyond) = (acceptor.clone(), beyond.clone());
                let ways = *now.lock().unwrap();
                connections.spawn(async move {
                    let mut near = acceptor.accept(tcp).await.ok()?;
                    let h2 = near.get_ref().1.alpn_protocol() == Some(b"h2");
                    let mut first = vec![0; 16 * 1024];
                    let read = near.read(&mut first).await.ok().filter(|read| *read > 0)?;
                    first.truncate(read);
                    let upgrades = first.windows(9).any(|part| part.eq_ignore_ascii_case(b"websocket"));
                    let way = ways[if h2 { 1 } else { usize::from(!upgrades) * 2 }];
                    carry(near, first, way, &beyond, h2).await;
                    Some(())
                });
            }
        });
        (Self { address, ways, _serving: AbortOnDropHandle::new(serving) }, ca)
    }
}

/// The relay, as a middlebox reaches it.
#[derive(Clone)]
struct Beyond {
    address: SocketAddr,
    roots: Arc<RootCertStore>,
}

impl Beyond {
    fn of(bench: &Bench) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&bench.ca).unwrap()).unwrap();
        Self { address: bench.relay.address(), roots: Arc::new(roots) }
    }

    async fn connect(&self, h2: bool) -> TlsStream<TcpStream> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(Arc::clone(&self.roots))
            .with_no_client_auth();
        config.alpn_protocols = vec![if h2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let name = "127.0.0.1".try_into().unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()
    }
}

async fn carry<IO>(mut near: IO, first: Vec<u8>, way: Way, beyond: &Beyond, h2: bool)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    match way {
        Way::Refuse => {
            let refusal = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            let _gone = near.write_all(refusal).await;
            let _gone = near.shutdown().await;
            return;
        }
        Way::Silent => {
            let _until_it_goes = near.read_to_end(&mut Vec::new()).await;
            return;
        }
        _ => {}
    }
    let mut far = beyond.connect(h2).await;
    far.write_all(&first).await.unwrap();
    let (near_read, near_write) = tokio::io::split(near);
    let (far_read, far_write) = tokio::io::split(far);
    let passes_up = move |n: usize, _first: bool| match way {
        Way::SwallowUp => false,
        Way::LargeUp => n <= 1024,
        _ => true,
    };
    let passes_down = move |n: usize, first: bool| match way {
        Way::SwallowDown => first,
        Way::LargeDown => n <= 1024,
        _ => true,
    };
    let both = async {
        tokio::select! {
            () = pass(near_read, far_write, passes_up, false) => {}
            () = pass(far_read, near_write, passes_down, way == Way::NoConnect) => {}
        }
    };
    match way {
        Way::CutAfter(time) => drop(timeout(time, both).await),
        _ => both.await,
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    passes: impl Fn(usize, bool) -> bool,
    hides_connect: bool,
) {
    // RFC 8441, section 3: SETTINGS_ENABLE_CONNECT_PROTOCOL is 1.
    const OFFER: [u8; 6] = [0, 8, 0, 0, 0, 1];
    let (mut bytes, mut first) = (vec![0; 64 * 1024], true);
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        if first && hides_connect {
            let offer = bytes[..read].windows(6).position(|setting| setting == OFFER);
            bytes[offer.expect("the relay offers it") + 5] = 0;
        }
        if passes(read, first) && (to.write_all(&bytes[..read]).await.is_err() || to.flush().await.is_err()) {
            return;
        }
        first = false;
    }
    let _gone = to.shutdown().await;
}

async fn dial(bench: &Bench, ways: Ways, memory: &Memory) -> Result<Dialled, Report> {
    let (middlebox, ca) = Middlebox::start(bench, ways).await;
    let dialled = dial_at(bench, middlebox.address, &ca, memory).await;
    // It goes on for as long as the runtime.
    tokio::spawn(async move {
        let _middlebox = middlebox;
        std::future::pending::<()>().await;
    });
    dialled
}

const OPEN: Ways = [Way::Pass; 3];
const POST: Ways = [Way::Refuse, Way::NoConnect, Way::Pass];
const NO_UPGRADE: Ways = [Way::Refuse, Way::Pass, Way::Pass];
const PLAIN_REQUESTS: Ways = [Way::Refuse, Way::Refuse, Way::Pass];

#[tokio::test]
async fn each_carrier_carries_large_streams_both_ways_and_a_half_close() {
    let (bench, agent) = bench().await;
    let each = [
        (OPEN, Rung::WebSocket),
        (NO_UPGRADE, Rung::Http2),
        (POST, Rung::Http2),
        (PLAIN_REQUESTS, Rung::Pair),
    ];
    for (ways, rung) in each {
        let dialled = dial(&bench, ways, &Memory::default()).await.unwrap();
        assert_eq!(dialled.rung, rung);
        let metric = format!(r#"towline_relay_carriers{{carrier="{rung}"}}"#);
        assert!(bench.metric(&metric).await >= 1, "{metric}");
        echoes(&dialled.client, &agent, 3_000_000).await;
        // Several at once, small and larger.
        let streams = [1, 1000, 20_000, 300_000].map(|bytes| echoes(&dialled.client, &agent, bytes));
        let [a, b, c, d] = streams;
        tokio::join!(a, b, c, d);
    }
}

/// Without a middlebox, over the relay's own port.
#[tokio::test]
async fn a_network_that_lets_everything_through_gets_the_first_rung() {
    let (bench, agent) = bench().await;
    let dialled = dial_at(&bench, bench.relay.address(), &bench.ca, &Memory::default()).await.unwrap();
    assert_eq!(dialled.rung, Rung::WebSocket);
    echoes(&dialled.client, &agent, 100_000).await;
}

#[tokio::test]
async fn a_carrier_that_is_cut_or_dropped_ends_its_session_at_the_relay() {
    let (bench, agent) = bench().await;
    let sessions = r#"towline_relay_sessions{kind="client"}"#;
    for ways in [NO_UPGRADE, POST, PLAIN_REQUESTS] {
        let dialled = dial(&bench, ways, &Memory::default()).await.unwrap();
        echoes(&dialled.client, &agent, 1000).await;
        assert_eq!(bench.metric(sessions).await, 1);
        dialled.client.driver.abort();
        eventually("the session has ended", async || bench.metric(sessions).await == 0).await;
        // Said goodbye to.
        let dialled = dial(&bench, ways, &Memory::default()).await.unwrap();
        dialled.client.connection.close();
        timeout(SOON, dialled.client.driver).await.expect("it ends").unwrap();
        eventually("the session has ended", async || bench.metric(sessions).await == 0).await;
    }
    let cut = Way::CutAfter(Duration::from_millis(1500));
    for ways in [[Way::Refuse, cut, Way::Refuse], [Way::Refuse, Way::Refuse, cut]] {
        let dialled = dial(&bench, ways, &Memory::default()).await.unwrap();
        timeout(SOON, dialled.client.driver).await.expect("it is noticed").unwrap();
        eventually("the session has ended", async || bench.metric(sessions).await == 0).await;
    }
}

/// Each is found in seconds; what is not in the way of another rung does not keep it away.
#[tokio::test]
async fn what_swallows_websockets_is_climbed_past_within_ten_seconds() {
    let (bench, agent) = bench().await;
    for way in [Way::SwallowUp, Way::SwallowDown, Way::LargeUp, Way::LargeDown, Way::Silent] {
        let dialled = dial(&bench, [way, Way::Pass, Way::Pass], &Memory::default()).await.unwrap();
        assert_eq!(dialled.rung, Rung::Http2, "{way:?}");
        assert!(dialled.took < Duration::from_secs(6), "{way:?}: {:?}", dialled.took);
        echoes(&dialled.client, &agent, 1000).await;
    }
    let dialled = dial(&bench, [Way::SwallowDown, Way::Silent, Way::Pass], &Memory::default()).await.unwrap();
    assert_eq!(dialled.rung, Rung::Pair);
    assert!(dialled.took < Duration::from_secs(10), "{:?}", dialled.took);
}

/// What doctor finds of these ways, and the carrier by which it says that the relay is reached.
async fn diagnosed(bench: &Bench, ways: Ways) -> (Diagnosis, Option<Rung>) {
    diagnosed_by(bench, Middlebox::start(bench, ways).await).await
}

async fn diagnosed_by(bench: &Bench, (middlebox, ca): (Middlebox, PathBuf)) -> (Diagnosis, Option<Rung>) {
    let relay = RelayAddress::parse(&middlebox.address.to_string()).unwrap();
    let network = Network::straight(relay, bench.relay.identity_hash(), Some(ca));
    let mut examination = Examination::new(|_| {});
    let reached = timeout(6 * SOON, network.examine(&mut examination)).await.expect("it ends");
    let diagnosis = examination.finish("test", None, SystemTime::now());
    (diagnosis, reached.map(|reached| reached.rung))
}

#[tokio::test]
async fn doctor_warns_of_what_stops_websockets_where_another_carrier_gets_through() {
    let (bench, _agent) = bench().await;
    for (ways, step, fault, rung) in [
        (OPEN, "", None, Rung::WebSocket),
        (NO_UPGRADE, "upgrade", Some(Fault::UpgradeRefused), Rung::Http2),
        (PLAIN_REQUESTS, "upgrade", Some(Fault::UpgradeRefused), Rung::Pair),
        ([Way::Silent, Way::Pass, Way::Pass], "upgrade", Some(Fault::UpgradeRefused), Rung::Http2),
        ([Way::SwallowUp, Way::Pass, Way::Pass], "frames", Some(Fault::FramesLostUp), Rung::Http2),
        ([Way::SwallowDown, Way::Silent, Way::Pass], "frames", Some(Fault::FramesLostDown), Rung::Pair),
        (
            [Way::LargeUp, Way::NoConnect, Way::Pass],
            "large-frames",
            Some(Fault::LargeFramesLost),
            Rung::Http2,
        ),
        ([Way::LargeDown, Way::LargeUp, Way::Pass], "large-frames", Some(Fault::LargeFramesLost), Rung::Pair),
    ] {
        let (diagnosis, reached) = diagnosed(&bench, ways).await;
        assert_eq!((diagnosis.exit_code, reached), (0, Some(rung)), "{ways:?}: {diagnosis:#?}");
        let warned: Vec<_> =
            diagnosis.findings.iter().filter(|found| found.status == Status::Warning).collect();
        assert_eq!(warned.first().and_then(|found| found.fault()), fault, "{ways:?}: {diagnosis:#?}");
        assert!(warned.len() < 2, "one alarm for one thing: {diagnosis:#?}");
        for found in warned {
            assert_eq!(found.step, step, "{ways:?}");
            assert!(found.seen.contains(&format!("by {rung} it gets through")), "{found:#?}");
            let line = found.hand_over.as_deref().unwrap();
            assert!(line.contains("towline works, but") && !line.contains("can't work"), "{line}");
        }
    }
}

#[tokio::test]
async fn doctor_warns_of_what_speaks_http2_only() {
    let (bench, _agent) = bench().await;
    let (diagnosis, reached) = diagnosed_by(&bench, Middlebox::speaking(&bench, OPEN, &["h2"]).await).await;
    assert_eq!((diagnosis.exit_code, reached), (0, Some(Rung::Http2)), "{diagnosis:#?}");
    let upgrade = diagnosis.findings.iter().find(|found| found.step == "upgrade").unwrap();
    assert_eq!(
        (upgrade.status, upgrade.fault()),
        (Status::Warning, Some(Fault::UpgradeRefused)),
        "{diagnosis:#?}"
    );
}

#[tokio::test]
async fn doctor_fails_with_what_stops_websockets_where_nothing_gets_through() {
    let (bench, _agent) = bench().await;
    for (way, fault) in [
        (Way::Refuse, Fault::UpgradeRefused),
        (Way::Silent, Fault::UpgradeRefused),
        (Way::SwallowUp, Fault::FramesLostUp),
        (Way::SwallowDown, Fault::FramesLostDown),
        (Way::LargeUp, Fault::LargeFramesLost),
        (Way::LargeDown, Fault::LargeFramesLost),
    ] {
        let begun = Instant::now();
        let (diagnosis, reached) = diagnosed(&bench, [way; 3]).await;
        let failed = diagnosis.first_failed().unwrap();
        assert_eq!((failed.fault(), reached), (Some(fault), None), "{way:?}: {diagnosis:#?}");
        assert!(failed.seen.contains("; by http2: ") && failed.seen.contains("; by pair: "), "{failed:#?}");
        assert!(begun.elapsed() < Duration::from_secs(25), "{way:?}: {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn where_nothing_gets_through_the_first_rung_says_why_within_ten_seconds() {
    let (bench, _agent) = bench().await;
    for (way, fault) in [
        (Way::Refuse, Fault::UpgradeRefused),
        (Way::Silent, Fault::RequestUnanswered),
        (Way::SwallowUp, Fault::CarrierSilentUp),
        (Way::SwallowDown, Fault::CarrierSilentDown),
        (Way::LargeUp, Fault::CarrierLargeUp),
        (Way::LargeDown, Fault::CarrierLargeDown),
    ] {
        let begun = Instant::now();
        let report =
            dial(&bench, [way; 3], &Memory::default()).await.map(|dialled| dialled.rung).unwrap_err();
        assert_eq!(report.fault, fault, "{way:?}: {report}");
        assert!(report.to_string().contains("by http2: TL-NET-0"), "{report}");
        assert!(begun.elapsed() < Duration::from_secs(12), "{way:?}: {:?}", begun.elapsed());
    }
}

/// What would be the same on every rung is said at once.
#[tokio::test]
async fn what_is_not_the_ways_doing_does_not_climb() {
    let (bench, _agent) = bench().await;
    let (middlebox, _ca) = Middlebox::start(&bench, OPEN).await;
    let memory = Memory::default();
    let untrusted = dial_at(&bench, middlebox.address, &bench.ca, &memory).await;
    let untrusted = untrusted.map(|dialled| dialled.rung).unwrap_err();
    assert_eq!(untrusted.fault, Fault::CertificateUntrusted, "{untrusted}");
    assert!(!untrusted.to_string().contains("by http2"), "{untrusted}");
}

#[tokio::test]
async fn what_worked_is_tried_first_and_forgotten_when_it_no_longer_does() {
    let (bench, agent) = bench().await;
    let memory = Memory::default();
    let (middlebox, ca) = Middlebox::start(&bench, [Way::Silent, Way::Pass, Way::Pass]).await;
    let first = dial_at(&bench, middlebox.address, &ca, &memory).await.unwrap();
    assert!(first.took >= Duration::from_secs(2), "{:?}", first.took);
    let second = dial_at(&bench, middlebox.address, &ca, &memory).await.unwrap();
    assert_eq!((first.rung, second.rung), (Rung::Http2, Rung::Http2));
    assert!(second.took < Duration::from_secs(2), "{:?}", second.took);
    echoes(&second.client, &agent, 1000).await;
}

/// Each run begins with what the one before found, and finds out by itself, in the same attempt, where that no longer gets through.
#[tokio::test]
async fn what_worked_is_tried_first_by_the_next_run() {
    let (bench, _agent) = bench().await;
    let (middlebox, ca) = Middlebox::start(&bench, [Way::SwallowDown, Way::Pass, Way::Pass]).await;
    let file = bench.folder.path().join("carriers.json");
    let run = async || dial_at(&bench, middlebox.address, &ca, &Memory::kept(file.clone())).await.unwrap();
    let first = run().await;
    let second = run().await;
    assert_eq!((first.rung, second.rung), (Rung::Http2, Rung::Http2));
    assert!(first.took > Duration::from_secs(1), "it waited for a websocket's answers: {:?}", first.took);
    assert!(second.took < first.took / 2, "{:?} after {:?}", second.took, first.took);
    *middlebox.ways.lock().unwrap() = [Way::Pass, Way::Refuse, Way::Refuse];
    assert_eq!(run().await.rung, Rung::WebSocket);
    *middlebox.ways.lock().unwrap() = [Way::Refuse, Way::Refuse, Way::Pass];
    assert_eq!(run().await.rung, Rung::Pair);
}

/// The network changes under a session: the better rung is found when it is asked for, remembered, and disturbs nothing.
#[tokio::test]
async fn a_better_rung_is_found_later_and_streams_on_the_slower_one_go_on() {
    let (bench, agent) = bench().await;
    let (middlebox, ca) = Middlebox::start(&bench, PLAIN_REQUESTS).await;
    let (memory, address) = (Memory::default(), middlebox.address);
    let slow = dial_at(&bench, address, &ca, &memory).await.unwrap();
    assert_eq!(slow.rung, Rung::Pair);
    let mut stream = slow.client.open(agent.cluster());
    let mut echoed = [0; 5];
    stream.write_all(b"first").await.unwrap();
    timeout(SOON, stream.read_exact(&mut echoed)).await.unwrap().unwrap();

    let none = better_at(&bench, address, &ca, &memory, Rung::Pair).await;
    let none = none.map(|dialled| dialled.rung).unwrap_err();
    assert_eq!(none.fault, Fault::UpgradeRefused, "{none}");
    assert!(!none.to_string().contains("by pair"), "only better ones are tried: {none}");
    assert_eq!(dial_at(&bench, address, &ca, &memory).await.unwrap().rung, Rung::Pair, "it stays remembered");

    *middlebox.ways.lock().unwrap() = OPEN;
    let better = better_at(&bench, address, &ca, &memory, Rung::Pair).await.unwrap();
    assert_eq!(better.rung, Rung::WebSocket);
    echoes(&better.client, &agent, 100_000).await;
    assert_eq!(dial_at(&bench, address, &ca, &memory).await.unwrap().rung, Rung::WebSocket);
    stream.write_all(b"later").await.unwrap();
    timeout(SOON, stream.read_exact(&mut echoed)).await.unwrap().unwrap();
    assert_eq!(&echoed, b"later");
}

async fn tls(bench: &Bench) -> TlsStream<TcpStream> {
    Beyond::of(bench).connect(false).await
}

async fn head(io: &mut TlsStream<TcpStream>) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(SOON, io.read_u8()).await.unwrap().unwrap());
    }
    String::from_utf8(head).unwrap()
}

const ID: &str = "00112233445566778899aabbccddeeff";

/// A half whose other never comes, and what belongs to none.
#[tokio::test]
async fn t33_half_a_pair_is_closed_and_opens_nothing() {
    let bench = Bench::new(Limits { handshake_timeout: Duration::from_millis(500), ..limits() }).await;
    let get = format!("GET /v1/pair HTTP/1.1\r\nHost: r\r\ntowline-pair: {ID}\r\n\r\n");
    let mut down = tls(&bench).await;
    down.write_all(get.as_bytes()).await.unwrap();
    let answer = head(&mut down).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // The same name again is another's.
    let mut again = tls(&bench).await;
    again.write_all(get.as_bytes()).await.unwrap();
    assert!(head(&mut again).await.starts_with("HTTP/1.1 409"));
    let ended = async { while !matches!(down.read(&mut [0; 64]).await, Ok(0) | Err(_)) {} };
    timeout(SOON, ended).await.expect("its handshake's time is over");

    // A POST of no pair is told so, and its connection has no more time than others.
    let mut up = tls(&bench).await;
    let post = "POST /v1/pair HTTP/1.1\r\nHost: r\r\ntowline-pair: ffffffffffffffffffffffffffffffff\r\n\
        towline-sequence: 0\r\nContent-Length: 1\r\n\r\nx";
    up.write_all(post.as_bytes()).await.unwrap();
    assert!(head(&mut up).await.starts_with("HTTP/1.1 404"));
    let ended = async { while !matches!(up.read(&mut [0; 64]).await, Ok(0) | Err(_)) {} };
    timeout(SOON, ended).await.expect("its handshake's time is over");
}

/// Parts that are late, repeated, too long or cut end the pair, and nothing is taken twice.
#[tokio::test]
async fn parts_out_of_order_end_their_pair() {
    let bench = Bench::new(limits()).await;
    for wrong in [
        "towline-sequence: 1\r\nContent-Length: 1\r\n\r\nx",
        "towline-sequence: 00\r\nContent-Length: 1\r\n\r\nx",
        "towline-sequence: 0\r\nContent-Length: 10\r\n\r\nx",
    ] {
        let id = towline_tunnel::ids::StreamKey::random().to_string();
        let mut down = tls(&bench).await;
        let get = format!("GET /v1/pair HTTP/1.1\r\nHost: r\r\ntowline-pair: {id}\r\n\r\n");
        down.write_all(get.as_bytes()).await.unwrap();
        assert!(head(&mut down).await.starts_with("HTTP/1.1 200"));
        let mut up = tls(&bench).await;
        let post = format!("POST /v1/pair HTTP/1.1\r\nHost: r\r\ntowline-pair: {id}\r\n{wrong}");
        up.write_all(post.as_bytes()).await.unwrap();
        up.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _cut = timeout(SOON, up.read_to_end(&mut answer)).await.unwrap();
        assert!(!answer.starts_with(b"HTTP/1.1 204"), "{}", String::from_utf8_lossy(&answer));
        if wrong.contains("00") {
            continue;
        }
        let ended = async { while !matches!(down.read(&mut [0; 64]).await, Ok(0) | Err(_)) {} };
        timeout(SOON, ended).await.expect("the pair has ended");
    }
}
