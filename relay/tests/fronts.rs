//! A real relay behind real proxies, as they come: nginx and haproxy from Debian's packages.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod common;

use std::{
    fs,
    io::Write as _,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use common::{
    Bench, eventually,
    ladder::{bench, dial_at, echoes},
};
use tokio::net::TcpStream;
use towline_tunnel::carrier::{ladder::Memory, rung::Rung};
use xtask::peers::Peer;

/// A proxy that runs; dropping it ends it.
struct Front {
    child: Child,
    address: SocketAddr,
    ca: PathBuf,
}

impl Drop for Front {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// None where the program can't be had, which is told past the capture of tests' output.
fn command(peer: Peer) -> Option<Command> {
    match peer.ensure().and_then(|installed| installed.command(peer.name())) {
        Ok(command) => Some(command),
        Err(missing) => {
            let _told = writeln!(std::io::stderr(), "NOT TRIED: {} is missing: {missing:#}", peer.name());
            None
        }
    }
}

/// Certificate and key of a proxy, and a port that was free a moment ago.
fn certified(folder: &Path) -> (SocketAddr, PathBuf) {
    let certified = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let ca = folder.join("front.pem");
    fs::write(&ca, certified.cert.pem()).unwrap();
    let key = certified.signing_key.serialize_pem();
    fs::write(folder.join("front-key.pem"), &key).unwrap();
    fs::write(folder.join("front-both.pem"), certified.cert.pem() + &key).unwrap();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    (address, ca)
}

async fn started(mut command: Command, address: SocketAddr, ca: PathBuf) -> Front {
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let front = Front { child, address, ca };
    eventually("the proxy listens", async || TcpStream::connect(address).await.is_ok()).await;
    front
}

async fn nginx(bench: &Bench, listen: &str, location: &str) -> Option<Front> {
    let mut command = command(Peer::Nginx)?;
    let folder = bench.folder.path();
    let (address, ca) = certified(folder);
    let location = location.replace("RELAY", &bench.relay.address().to_string());
    let f = folder.display();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("    {kind}_temp_path {f}/{kind};\n"))
        .concat();
    let config = format!(
        "daemon off;\nmaster_process off;\npid {f}/nginx.pid;\nerror_log stderr warn;\nevents {{}}\nhttp {{\n    access_log off;\n{temporary}\
         server {{\n  listen {address} {listen};\n  ssl_certificate {f}/front.pem;\n  ssl_certificate_key {f}/front-key.pem;\n\
         location / {{ {location} }}\n}}\n}}\n"
    );
    let path = folder.join("nginx.conf");
    fs::write(&path, config).unwrap();
    command.arg("-c").arg(path).arg("-e").arg("stderr").arg("-p").arg(folder);
    Some(started(command, address, ca).await)
}

async fn haproxy(bench: &Bench, alpn_in: &str, alpn_out: &str, rules: &str) -> Option<Front> {
    let mut command = command(Peer::Haproxy)?;
    let folder = bench.folder.path();
    let (address, ca) = certified(folder);
    let both = folder.join("front-both.pem");
    let config = format!(
        "global\n    maxconn 1000\ndefaults\n    mode http\n    timeout connect 5s\n    timeout client 60s\n    timeout server 60s\n\
         listen front\n    bind {address} ssl crt {} alpn {alpn_in}\n{rules}    server relay {} ssl verify none alpn {alpn_out}\n",
        both.display(),
        bench.relay.address(),
    );
    let path = folder.join("haproxy.cfg");
    fs::write(&path, config).unwrap();
    command.arg("-db").arg("-f").arg(path);
    Some(started(command, address, ca).await)
}

/// What is expected of a proxy in front.
async fn gets_through(bench: &Bench, agent: &common::Agent, front: &Front, rung: Rung) {
    let dialled = dial_at(bench, front.address, &front.ca, &Memory::default()).await.unwrap();
    assert_eq!(dialled.rung, rung);
    assert!(dialled.took.as_secs() < 10, "{:?}", dialled.took);
    echoes(&dialled.client, agent, 3_000_000).await;
    // A second one beside it, which a proxy may put on the same connection to the relay.
    let beside = dial_at(bench, front.address, &front.ca, &Memory::default()).await.unwrap();
    tokio::join!(echoes(&beside.client, agent, 300_000), echoes(&dialled.client, agent, 300_000));
    drop(beside);
    echoes(&dialled.client, agent, 1000).await;
}

/// As Debian's nginx does it unless it is told otherwise: no `Upgrade`, requests kept until they are whole.
#[tokio::test]
async fn nginx_that_strips_upgrade_and_buffers_requests_is_passed_by_a_pair() {
    let (bench, agent) = bench().await;
    let location = "proxy_pass https://RELAY; proxy_http_version 1.1; proxy_set_header Connection \"\";";
    let Some(front) = nginx(&bench, "ssl", location).await else { return };
    gets_through(&bench, &agent, &front, Rung::Pair).await;
}

#[tokio::test]
async fn nginx_that_passes_upgrade_on_gets_the_first_rung() {
    let (bench, agent) = bench().await;
    let location = "proxy_pass https://RELAY; proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; \
        proxy_set_header Connection upgrade;";
    let Some(front) = nginx(&bench, "ssl", location).await else { return };
    gets_through(&bench, &agent, &front, Rung::WebSocket).await;
}

#[tokio::test]
async fn nginx_that_speaks_http2_to_the_relay_is_passed_by_http2() {
    let (bench, agent) = bench().await;
    let location = "grpc_pass grpcs://RELAY; client_max_body_size 0;";
    let Some(front) = nginx(&bench, "ssl http2", location).await else { return };
    gets_through(&bench, &agent, &front, Rung::Http2).await;
}

/// It makes extended CONNECT (RFC 8441) of the upgrade, because the relay offers it.
#[tokio::test]
async fn haproxy_that_speaks_http2_to_the_relay_gets_the_first_rung() {
    let (bench, agent) = bench().await;
    let Some(front) = haproxy(&bench, "h2", "h2", "").await else { return };
    gets_through(&bench, &agent, &front, Rung::WebSocket).await;
}

/// It offers extended CONNECT itself, and forbids it like any websocket.
#[tokio::test]
async fn haproxy_that_forbids_websockets_is_passed_by_a_post() {
    let (bench, agent) = bench().await;
    let rules = "    http-request deny if { req.hdr(upgrade) -i websocket }\n";
    let Some(front) = haproxy(&bench, "h2,http/1.1", "h2", rules).await else { return };
    gets_through(&bench, &agent, &front, Rung::Http2).await;
}

/// It ends `Upgrade`, and waits for the whole of a request before it passes it on.
#[tokio::test]
async fn haproxy_that_buffers_requests_is_passed_by_a_pair() {
    let (bench, agent) = bench().await;
    let rules = "    option http-buffer-request\n    http-request del-header upgrade\n    http-request del-header connection\n";
    let Some(front) = haproxy(&bench, "http/1.1", "http/1.1", rules).await else { return };
    gets_through(&bench, &agent, &front, Rung::Pair).await;
}
