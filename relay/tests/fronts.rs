//! A real relay behind real proxies, as they come: nginx and haproxy from Debian's packages.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod common;

use std::{fmt::Debug, io::Write as _, path::PathBuf, time::SystemTime};

use common::{
    Agent, Bench, SOON,
    ladder::{bench, dial_at, echoes},
};
use tokio::time::timeout;
use towline_tunnel::{
    carrier::{dial::RelayAddress, ladder::Memory, rung::Rung},
    doctor::{Examination, Network, Status},
    fault::Fault,
};
use xtask::peers::{
    Peer,
    running::{self, Place, Running},
};

/// A proxy that runs, and its certificate; dropping it ends it.
type Front = (Running, PathBuf);

/// Starts one. None where the program can't be had, which is told past the capture of tests' output.
fn started<E: Debug>(
    bench: &Bench,
    peer: Peer,
    start: impl FnOnce(Place<'_>) -> Result<Front, E>,
) -> Option<Front> {
    if let Err(missing) = peer.ensure() {
        let _told = writeln!(std::io::stderr(), "NOT TRIED: {} is missing: {missing:#}", peer.name());
        return None;
    }
    Some(start(Place { folder: bench.folder.path(), knows: None }).unwrap())
}

fn nginx(bench: &Bench, listen: &str, location: &str) -> Option<Front> {
    started(bench, Peer::Nginx, |place| running::nginx(place, bench.relay.address(), listen, location))
}

fn haproxy(bench: &Bench, alpn_in: &str, alpn_out: &str, rules: &str) -> Option<Front> {
    let sections = format!(
        "global\n    maxconn 1000\ndefaults\n    mode http\n    timeout connect 5s\n    timeout client 60s\n    timeout server 60s\n\
         listen front\n    bind AT ssl crt CERTIFICATE alpn {alpn_in}\n{rules}    server relay RELAY ssl verify none alpn {alpn_out}\n",
    );
    started(bench, Peer::Haproxy, |place| running::haproxy(place, bench.relay.address(), &sections))
}

/// What is expected of a proxy in front.
async fn gets_through(bench: &Bench, agent: &Agent, (front, ca): &Front, rung: Rung) {
    let dialled = dial_at(bench, front.address(), ca, &Memory::default()).await.unwrap();
    assert_eq!(dialled.rung, rung);
    assert!(dialled.took.as_secs() < 10, "{:?}", dialled.took);
    echoes(&dialled.client, agent, 3_000_000).await;
    // A second one beside it, which a proxy may put on the same connection to the relay.
    let beside = dial_at(bench, front.address(), ca, &Memory::default()).await.unwrap();
    tokio::join!(echoes(&beside.client, agent, 300_000), echoes(&dialled.client, agent, 300_000));
    drop(beside);
    echoes(&dialled.client, agent, 1000).await;
}

/// doctor says that the relay is reached by this carrier, and warns of this.
async fn is_warned_of(bench: &Bench, (front, ca): &Front, fault: Fault, rung: Rung) {
    let relay = RelayAddress::parse(&front.address().to_string()).unwrap();
    let network = Network::straight(relay, bench.relay.identity_hash(), Some(ca.clone()));
    let mut examination = Examination::new(|_| {});
    let reached = timeout(6 * SOON, network.examine(&mut examination)).await.expect("it ends");
    let diagnosis = examination.finish("test", None, SystemTime::now());
    assert_eq!(reached.map(|reached| reached.rung), Some(rung), "{diagnosis:#?}");
    let warned: Vec<_> = diagnosis.findings.iter().filter(|found| found.status == Status::Warning).collect();
    assert_eq!(
        warned.iter().filter_map(|found| found.fault()).collect::<Vec<_>>(),
        [fault],
        "{diagnosis:#?}"
    );
}

/// As Debian's nginx does it unless it is told otherwise: no `Upgrade`, requests kept until they are whole.
#[tokio::test]
async fn nginx_that_strips_upgrade_and_buffers_requests_is_passed_by_a_pair() {
    let (bench, agent) = bench().await;
    let location = "proxy_pass https://RELAY; proxy_http_version 1.1; proxy_set_header Connection \"\";";
    let Some(front) = nginx(&bench, "ssl", location) else { return };
    gets_through(&bench, &agent, &front, Rung::Pair).await;
    is_warned_of(&bench, &front, Fault::UpgradeStripped, Rung::Pair).await;
}

#[tokio::test]
async fn nginx_that_passes_upgrade_on_gets_the_first_rung() {
    let (bench, agent) = bench().await;
    let location = "proxy_pass https://RELAY; proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; \
        proxy_set_header Connection upgrade;";
    let Some(front) = nginx(&bench, "ssl", location) else { return };
    gets_through(&bench, &agent, &front, Rung::WebSocket).await;
}

#[tokio::test]
async fn nginx_that_speaks_http2_to_the_relay_is_passed_by_http2() {
    let (bench, agent) = bench().await;
    let location = "grpc_pass grpcs://RELAY; client_max_body_size 0;";
    let Some(front) = nginx(&bench, "ssl http2", location) else { return };
    gets_through(&bench, &agent, &front, Rung::Http2).await;
}

/// It makes extended CONNECT (RFC 8441) of the upgrade, because the relay offers it.
#[tokio::test]
async fn haproxy_that_speaks_http2_to_the_relay_gets_the_first_rung() {
    let (bench, agent) = bench().await;
    let Some(front) = haproxy(&bench, "h2", "h2", "") else { return };
    gets_through(&bench, &agent, &front, Rung::WebSocket).await;
}

/// It offers extended CONNECT itself, and forbids it like any websocket.
#[tokio::test]
async fn haproxy_that_forbids_websockets_is_passed_by_a_post() {
    let (bench, agent) = bench().await;
    let rules = "    http-request deny if { req.hdr(upgrade) -i websocket }\n";
    let Some(front) = haproxy(&bench, "h2,http/1.1", "h2", rules) else { return };
    gets_through(&bench, &agent, &front, Rung::Http2).await;
    is_warned_of(&bench, &front, Fault::UpgradeRefused, Rung::Http2).await;
}

/// It ends `Upgrade`, and waits for the whole of a request before it passes it on.
#[tokio::test]
async fn haproxy_that_buffers_requests_is_passed_by_a_pair() {
    let (bench, agent) = bench().await;
    let rules = "    option http-buffer-request\n    http-request del-header upgrade\n    http-request del-header connection\n";
    let Some(front) = haproxy(&bench, "http/1.1", "http/1.1", rules) else { return };
    gets_through(&bench, &agent, &front, Rung::Pair).await;
}
