//! Faults of proxies on the way: real ones where they can be had, and scripted ones that do what no real one does.

use std::{fs, io::Write as _, os::unix::fs::PermissionsExt as _};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_util::task::AbortOnDropHandle;
use towline_tunnel::{
    doctor::{Elsewhere, Names, Network},
    egress::{Egress, EgressSettings, ProxyArgs, SkipRange, Sources},
    fault::Fault,
};
use xtask::peers::running::{self, KNOWN, Place, Running};

use super::{
    Case, dropping, names, nowhere,
    peer::{Manner, Peer},
};

const PASSES_UPGRADE: &str =
    "http_upgrade_request_protocols websocket allow all\nsslproxy_cert_error allow all\n";
/// As Debian's nginx does it unless it is told otherwise.
const NGINX: &str = "proxy_pass https://RELAY; proxy_http_version 1.1; proxy_set_header Connection \"\";";

fn egress(args: &ProxyArgs) -> Egress {
    let sources = Sources { flags: args, written: None, environment: &|_| None, never: SkipRange::default() };
    Egress::new(EgressSettings::resolve(&sources).unwrap()).unwrap()
}

fn through(url: String) -> ProxyArgs {
    ProxyArgs { proxy_https: Some(url.into()), ..ProxyArgs::default() }
}

async fn relay() -> Peer {
    Peer::start(Manner { certified: "127.0.0.1", ..Manner::default() }).await
}

/// A way through a proxy of this URL.
async fn proxied(name: &'static str, url: String, expected: Fault, held: impl std::any::Any + Send) -> Case {
    let peer = relay().await;
    Case::new(name, peer.over(egress(&through(url))), expected, (peer, held))
}

/// A folder that squid may write to, which gives up root's rights.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    folder
}

/// Starts a proxy. Where it can't be had, that is said past the capture of tests' output, and nothing is tried.
fn started<T>(start: impl FnOnce(Place<'_>) -> anyhow::Result<T>) -> Option<(T, TempDir)> {
    let folder = folder();
    match start(Place { folder: folder.path(), knows: None }) {
        Ok(proxy) => Some((proxy, folder)),
        Err(missing) => {
            let _told = writeln!(std::io::stderr(), "NOT TRIED: {missing:#}");
            None
        }
    }
}

fn http(proxy: &Running, login: &str) -> String {
    format!("http://{login}{}", proxy.address())
}

/// A network where the straight way to a relay ends so, and a proxy that other programs were given leads there.
async fn unset(
    proxy: &Running,
    straight: Result<Vec<std::net::SocketAddr>, &'static str>,
) -> (Peer, (Network, TempDir)) {
    let (peer, root) = (relay().await, tempfile::tempdir().unwrap());
    fs::create_dir(root.path().join("etc")).unwrap();
    let line = format!("https_proxy=http://{}\n", proxy.address());
    fs::write(root.path().join("etc/environment"), line).unwrap();
    let elsewhere = Elsewhere::files(root.path().to_owned());
    let network = Network { names: names(straight), elsewhere, ..peer.over(Egress::direct()) };
    (peer, (network, root))
}

/// The real ones.
pub(super) async fn real() -> Vec<Case> {
    let mut cases = Vec::new();
    let open = "http_access allow CONNECT\n";
    let asking = |place: Place<'_>| running::squid(place, ["http_port", ""], &running::basic(place.folder)?);
    if let Some(held) = started(asking) {
        let url = http(&held.0, "");
        let name = "a proxy asks who you are (squid), and nobody said";
        cases.push(proxied(name, url, Fault::ProxyCredentialsMissing, held).await);
    }
    if let Some(held) = started(asking) {
        let (user, _) = KNOWN.split_once(':').unwrap();
        let url = http(&held.0, &format!("{user}:wrong@"));
        let name = "a proxy refuses the password (squid)";
        cases.push(proxied(name, url, Fault::ProxyCredentialsRefused, held).await);
    }
    if let Some(held) = started(|place| running::squid(place, ["http_port", ""], "")) {
        let url = http(&held.0, "");
        cases.push(proxied("a proxy forbids CONNECT (squid)", url, Fault::ProxyForbids, held).await);
    }
    if let Some(held) = started(|place| running::squid(place, ["http_port", ""], open)) {
        let (peer, (network, root)) = unset(&held.0, Ok(vec![nowhere()])).await;
        let name = "a proxy is needed, and stands in /etc/environment only (squid)";
        cases.push(Case::new(name, network, Fault::ProxyNeeded, (peer, held, root)));
    }
    if let Some(held) = started(asking) {
        let (dropping, waiting, listener) = dropping().await;
        let (peer, (network, root)) = unset(&held.0, Ok(vec![dropping])).await;
        let name = "a proxy is needed, stands in /etc/environment only, and asks who you are (squid)";
        let held = (peer, held, root, waiting, listener);
        cases.push(Case::new(name, network, Fault::ProxyNeeded, held));
    }
    let by_tls = |place: Place<'_>| {
        let (_, both) = running::certificate(place.folder)?;
        running::squid(place, ["https_port", &format!("tls-cert={}", both.display())], open)
    };
    if let Some(held) = started(by_tls) {
        let url = format!("https://{}", held.0.address());
        let name = "a proxy has an authority of its own, which is not given (squid)";
        cases.push(proxied(name, url, Fault::ProxyCertificateUntrusted, held).await);
    }
    // Only with its own CA is what squid and mitmproxy find behind them the relay.
    let peer = relay().await;
    let bump = |place: Place<'_>| running::squid_bump(place, &peer.ca_file(), PASSES_UPGRADE);
    if let Some(((squid, _ca), folder)) = started(bump) {
        let network = peer.over(egress(&through(http(&squid, ""))));
        let name = "a proxy inspects TLS, and its authority is not given (squid, ssl_bump)";
        cases.push(Case::new(name, network, Fault::TlsIntercepted, (squid, folder, peer)));
    }
    let peer = relay().await;
    if let Some(((mitmproxy, _ca), folder)) = started(|place| running::mitmproxy(place, &peer.ca_file())) {
        let network = peer.over(egress(&through(http(&mitmproxy, ""))));
        let name = "the same (mitmproxy)";
        cases.push(Case::new(name, network, Fault::TlsIntercepted, (mitmproxy, folder, peer)));
    }
    let peer = relay().await;
    if let Some(((nginx, ca), folder)) = started(|place| running::nginx(place, peer.address, "ssl", NGINX)) {
        let network = peer.behind(nginx.address(), &ca);
        let name = "`Upgrade` is stripped before the relay (nginx)";
        cases.push(Case::new(name, network, Fault::UpgradeStripped, (nginx, folder, peer)));
    }
    cases
}

/// The scripted ones.
pub(super) async fn scripted() -> Vec<Case> {
    let mut cases = Vec::new();
    let page = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>Log in</html>";
    for (name, answer, expected) in [
        ("a proxy shows its login page", page, Fault::ProxyLoginPage),
        (
            "a proxy leads to its login page",
            "HTTP/1.1 302 Found\r\nLocation: http://login.test/\r\nContent-Length: 0\r\n\r\n",
            Fault::ProxyLoginPage,
        ),
        ("a proxy says 200, and carries nothing", "HTTP/1.1 200 OK\r\n\r\n", Fault::ProxySwallows),
        ("a proxy does not answer", "", Fault::ProxySilent),
        (
            "a proxy only knows Negotiate",
            "HTTP/1.1 407 Who?\r\nProxy-Authenticate: Negotiate\r\nContent-Length: 0\r\n\r\n",
            Fault::ProxySchemeUnsupported,
        ),
        ("a proxy can't reach the relay", "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", Fault::ProxyFailed),
        ("what is set as proxy is none", "SSH-2.0-OpenSSH_9.2\r\n", Fault::ProxyNotHttp),
    ] {
        let (url, task) = answering(answer).await;
        cases.push(proxied(name, url, expected, task).await);
    }
    cases.push(offered().await);
    cases.push(
        proxied("the proxy is away", format!("http://{}", nowhere()), Fault::ProxyUnreachable, ()).await,
    );
    cases
}

/// A network that drops what goes out, and whose script for browsers names a proxy.
async fn offered() -> Case {
    let (proxy, task) = answering("HTTP/1.1 200 OK\r\n\r\n").await;
    let (proxy, script) =
        (proxy.replace("http://", "PROXY "), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let wpad = script.local_addr().unwrap();
    let serving = AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok((mut io, _)) = script.accept().await {
            let answer =
                format!("HTTP/1.0 200 OK\r\n\r\nfunction FindProxyForURL(u, h) {{ return \"{proxy}\"; }}");
            io.write_all(answer.as_bytes()).await?;
            io.shutdown().await?;
            // What it asks for is read, so that the end is no reset.
            tokio::io::copy(&mut io, &mut tokio::io::sink()).await?;
        }
        std::io::Result::Ok(())
    }));
    let (peer, (dropping, waiting, listener)) = (relay().await, dropping().await);
    let (root, address) =
        (tempfile::tempdir().unwrap(), move |name: &str| if name == "wpad" { wpad } else { dropping });
    let network = Network {
        names: Names::new(move |name, _| {
            let address = address(&name);
            Box::pin(async move { Ok(vec![address]) })
        }),
        elsewhere: Elsewhere::files(root.path().to_owned()).with_network_beyond(|_| false),
        ..peer.over(Egress::direct())
    };
    let held = (peer, task, serving, waiting, listener, root);
    Case::new("a proxy is needed, and only WPAD names it", network, Fault::ProxyNeeded, held)
}

/// A proxy that answers each connection so, once it has read a head, and then takes everything.
async fn answering(answer: &'static str) -> (String, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let task = AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok((mut io, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(io.read_u8().await?);
                }
                io.write_all(answer.as_bytes()).await?;
                tokio::io::copy(&mut io, &mut tokio::io::sink()).await
            });
        }
    }));
    (url, task)
}
