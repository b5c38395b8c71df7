//! Faults that are put in on purpose, and the one diagnosis that each must get; and a healthy way, which must get none.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod peer;
mod proxied;

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use peer::{Frames, Manner, Peer};
use tokio::{net::TcpSocket, task::JoinSet, time::timeout};
use towline_tunnel::{
    carrier::dial::RelayAddress,
    clock::Clock,
    doctor::{Diagnosis, Examination, Names, Network, Pending, Pipe, Status, Way},
    fault::{Fault, Report},
};

/// No diagnosis takes longer.
const WITHIN: Duration = Duration::from_secs(20);
const DAY: Duration = Duration::from_secs(24 * 3600);

async fn diagnose(network: Network) -> Diagnosis {
    let mut examination = Examination::new(|_| {});
    let reached = network.examine(&mut examination).await;
    let diagnosis = examination.finish("test", Some(network.relay.to_string()), SystemTime::now());
    assert_eq!(reached.is_some(), diagnosis.first_failed().is_none_or(|found| found.step == "clock"));
    diagnosis
}

/// What the first finding that is not good says: its fault, or none.
fn first(diagnosis: &Diagnosis) -> Option<Fault> {
    let bad = |status| diagnosis.findings.iter().find(|found| found.status == status);
    bad(Status::Failed).or_else(|| bad(Status::Warning)).and_then(|found| found.fault())
}

/// Names of which this is the answer, whatever is asked for.
fn names(answer: Result<Vec<SocketAddr>, &'static str>) -> Names {
    Names::new(move |_, _| {
        let answer = answer.clone();
        Box::pin(
            async move { answer.map_err(|words| io::Error::other(format!("failed to lookup: {words}"))) },
        )
    })
}

fn nowhere() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// An address whose host drops what comes: its queue is full.
async fn dropping() -> (SocketAddr, Vec<tokio::net::TcpStream>, tokio::net::TcpListener) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = timeout(Duration::from_millis(300), tokio::net::TcpStream::connect(address)).await
    {
        waiting.push(stream.unwrap());
        assert!(waiting.len() < 100, "a queue of one is full some time");
    }
    (address, waiting, listener)
}

/// One fault: its name, the way that has it, what holds it up, and what must be said.
struct Case {
    name: &'static str,
    network: Network,
    expected: Fault,
    _held: Box<dyn std::any::Any + Send>,
}

impl Case {
    fn new(name: &'static str, network: Network, expected: Fault, held: impl std::any::Any + Send) -> Self {
        Self { name, network, expected, _held: Box::new(held) }
    }

    async fn of(name: &'static str, manner: Manner, expected: Fault) -> Self {
        let peer = Peer::start(manner).await;
        Self::new(name, peer.network(), expected, peer)
    }
}

async fn cases() -> Vec<Case> {
    let unnamed = |words| Network {
        names: names(words),
        ..Network::straight(RelayAddress::parse("relay.test").unwrap(), peer::no_key(), None)
    };
    let healthy = Peer::start(Manner::default()).await;
    let dead_first = Network { names: names(Ok(vec![nowhere(), healthy.address])), ..healthy.network() };
    let refused = Network { names: names(Ok(vec![nowhere()])), ..unnamed(Err("")) };
    let (dropping, waiting, listener) = dropping().await;
    let dropped = Network { names: names(Ok(vec![dropping])), ..unnamed(Err("")) };
    let ahead = Peer::start(Manner::default()).await;
    let tomorrow = Network { clock: Clock::new(|| SystemTime::now() + DAY), ..ahead.network() };
    let behind = Peer::start(Manner::default()).await;
    let yesterday = Network { clock: Clock::new(|| SystemTime::now() - DAY), ..behind.network() };
    let fresh = Manner { from: Some(SystemTime::now() - Duration::from_secs(3600)), ..Manner::default() };
    let fresh = Peer::start(fresh).await;
    let before = Network { clock: Clock::new(|| SystemTime::now() - DAY), ..fresh.network() };
    let tomorrows = Manner { from: Some(SystemTime::now() + DAY), ..Manner::default() };
    let strange = Peer::start(Manner::default()).await;
    let without_ca = Network { ca_file: None, ..strange.network() };
    let other = Peer::start(Manner::default()).await;
    let other_key = Network { pin: peer::no_key(), ..other.network() };
    let far = Peer::start(Manner { until: 2030, ..Manner::default() }).await;
    let years = Network { clock: Clock::new(|| SystemTime::now() + 3000 * DAY), ..far.network() };
    vec![
        Case::new("the name is wrong", unnamed(Err("Name or service not known")), Fault::NameUnresolved, ()),
        Case::new("the name resolves to nothing", unnamed(Ok(Vec::new())), Fault::NameEmpty, ()),
        Case::new(
            "no DNS server answers",
            unnamed(Err("Temporary failure in name resolution")),
            Fault::DnsSilent,
            (),
        ),
        Case::new("the name's first address is dead", dead_first, Fault::AddressDead, healthy),
        Case::new("the port is refused", refused, Fault::ConnectionRefused, ()),
        Case::new("the port is dropped", dropped, Fault::ConnectTimeout, (waiting, listener)),
        Case::new("this clock is a day ahead", tomorrow, Fault::ClockWrong, ahead),
        Case::new("this clock is a day behind", yesterday, Fault::ClockWrong, behind),
        Case::new(
            "this clock is a day behind, where the certificate is of today",
            before,
            Fault::ClockWrong,
            fresh,
        ),
        Case::of("the certificate is of tomorrow", tomorrows, Fault::CertificateExpired).await,
        Case::new("this clock is years ahead of a good certificate", years, Fault::ClockWrong, far),
        Case::new("the relay's own authority is not given", without_ca, Fault::CertificateUntrusted, strange),
        Case::new("another relay answers", other_key, Fault::RelayKeyMismatch, other),
        Case::of(
            "the certificate is expired",
            Manner { until: 2021, ..Manner::default() },
            Fault::CertificateExpired,
        )
        .await,
        Case::of(
            "the certificate is for another name",
            Manner { certified: "other.test", ..Manner::default() },
            Fault::CertificateNameWrong,
        )
        .await,
        {
            let peer = Peer::start(Manner { intercepted: true, ..Manner::default() }).await;
            let network = Network { ca_file: None, ..peer.network() };
            Case::new("TLS is intercepted, and its authority not given", network, Fault::TlsIntercepted, peer)
        },
        Case::of("what answers speaks no TLS", Manner { plain: true, ..Manner::default() }, Fault::TlsFailed)
            .await,
        Case::of(
            "`Upgrade` is stripped",
            Manner { answer: Some("426 Upgrade Required"), ..Manner::default() },
            Fault::UpgradeStripped,
        )
        .await,
        Case::of(
            "a web page answers",
            Manner { answer: Some("200 OK"), ..Manner::default() },
            Fault::UpgradeRefused,
        )
        .await,
        Case::of(
            "frames to the relay are swallowed",
            Manner { frames: Frames::LostUp, ..Manner::default() },
            Fault::FramesLostUp,
        )
        .await,
        Case::of(
            "frames from the relay are swallowed",
            Manner { frames: Frames::LostDown, ..Manner::default() },
            Fault::FramesLostDown,
        )
        .await,
        Case::of(
            "large frames to the relay are swallowed",
            Manner { frames: Frames::LargeLostUp, ..Manner::default() },
            Fault::LargeFramesLost,
        )
        .await,
        Case::of(
            "large frames from the relay are swallowed",
            Manner { frames: Frames::LargeLostDown, ..Manner::default() },
            Fault::LargeFramesLost,
        )
        .await,
        Case::of(
            "the relay speaks another version",
            Manner { other_version: true, ..Manner::default() },
            Fault::VersionUnsupported,
        )
        .await,
    ]
}

#[tokio::test]
async fn each_fault_on_the_way_gets_its_own_diagnosis_in_time() {
    judge(cases().await).await;
}

#[tokio::test]
async fn each_fault_of_a_proxy_gets_its_own_diagnosis_in_time() {
    judge(proxied::scripted().await).await;
}

#[tokio::test]
async fn real_proxies_get_the_diagnosis_of_what_they_do() {
    judge(proxied::real().await).await;
}

/// Looks at all of them at once.
#[expect(clippy::print_stdout, reason = "cargo xtask doctor --table reads it")]
async fn judge(cases: Vec<Case>) {
    let mut running = JoinSet::new();
    for case in cases {
        running.spawn(async move {
            let begun = Instant::now();
            let diagnosis = timeout(WITHIN, diagnose(case.network.clone())).await;
            (case, diagnosis.ok(), begun.elapsed())
        });
    }
    let mut wrong = Vec::new();
    while let Some(done) = running.join_next().await {
        let (case, diagnosis, took) = done.unwrap();
        let said = diagnosis.as_ref().and_then(first);
        if std::env::var_os("TOWLINE_DOCTOR_TABLE").is_some() {
            let code = said.map_or("-", Fault::code);
            println!("doctor-table\t{}\t{code}\t{:.1}", case.name, took.as_secs_f64());
        }
        if said != Some(case.expected) {
            wrong.push(format!("{}: {said:?} and not {:?}: {diagnosis:#?}", case.name, case.expected));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_healthy_way_raises_no_alarm() {
    let runs: usize = std::env::var("TOWLINE_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(5);
    let peer = Peer::start(Manner::default()).await;
    for run in 0..runs {
        let diagnosis = timeout(WITHIN, diagnose(peer.network())).await.unwrap();
        assert_eq!((diagnosis.status, diagnosis.exit_code), (Status::Ok, 0), "run {run}: {diagnosis:#?}");
        let looked = diagnosis.findings.iter().filter(|found| found.status == Status::Ok).count();
        assert_eq!(looked, 8, "all but the proxy: {diagnosis:#?}");
    }
}

#[tokio::test]
async fn a_proxy_that_is_trusted_to_inspect_tls_is_told_and_is_no_fault() {
    let peer = Peer::start(Manner { intercepted: true, ..Manner::default() }).await;
    let diagnosis = timeout(WITHIN, diagnose(peer.network())).await.unwrap();
    assert_eq!(diagnosis.status, Status::Ok, "{diagnosis:#?}");
    let relay = diagnosis.findings.iter().find(|found| found.step == "relay").unwrap();
    assert!(relay.seen.contains("outer TLS ends before it"), "{relay:?}");
}

/// A proxy as the egress would have it.
struct Scripted(Result<SocketAddr, Fault>);

impl Way for Scripted {
    fn name(&self, _relay: &RelayAddress) -> String {
        "http://proxy.test:3128 (HTTPS_PROXY)".into()
    }

    fn connect<'a>(&'a self, _relay: &'a RelayAddress) -> Pending<'a, Result<Box<dyn Pipe>, Report>> {
        Box::pin(async move {
            let address = self.0.map_err(|fault| Report::new(fault, "by the script"))?;
            Ok(Box::new(tokio::net::TcpStream::connect(address).await.unwrap()) as Box<dyn Pipe>)
        })
    }
}

#[tokio::test]
async fn with_a_proxy_it_resolves_and_its_refusal_is_told_at_its_step() {
    let peer = Peer::start(Manner::default()).await;
    let through = Network {
        way: Some(Arc::new(Scripted(Ok(peer.address)))),
        names: names(Err("nobody may ask")),
        ..peer.network()
    };
    let diagnosis = timeout(WITHIN, diagnose(through.clone())).await.unwrap();
    assert_eq!(diagnosis.status, Status::Ok, "{diagnosis:#?}");
    let refused = Network { way: Some(Arc::new(Scripted(Err(Fault::RelayUnreachable)))), ..through };
    let diagnosis = timeout(WITHIN, diagnose(refused)).await.unwrap();
    let failed = diagnosis.first_failed().unwrap();
    assert_eq!((&*failed.step, failed.fault()), ("proxy", Some(Fault::RelayUnreachable)));
    let skipped = diagnosis.findings.iter().filter(|found| found.status == Status::Skipped).count();
    assert_eq!(skipped, 8, "DNS and TCP, and what is behind: {diagnosis:#?}");
}
