//! Every kind of network that is tried, and what must come of it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use towline_tunnel::fault::Fault;
use xtask::peers::running::{self, KNOWN, Place, Running};

use super::{
    Passage, Scene, longer,
    nat::{self, Dns, Lets},
    recording, refused,
    route::Route,
    script::{self, Answer, Forward, Harm},
    swallow::{self, Speaks, Swallows},
};
use crate::only_way;

/// What must come of a way.
#[derive(Clone, Copy, Debug)]
pub enum Expected {
    /// It leads to the relay, on this carrier, and all verbs work.
    Through {
        /// The carrier.
        rung: &'static str,
        /// What preflight warns of, where websockets are stopped.
        warned: Option<Fault>,
    },
    /// It does not.
    Refused {
        /// What agent and client say.
        running: Fault,
        /// What preflight says, which looks behind more.
        looking: Fault,
    },
}

/// A row that is to be made.
#[derive(Debug)]
pub struct Planned {
    /// Its name.
    pub name: &'static str,
    /// What lies between.
    pub what: &'static str,
    /// What must come of it.
    pub expected: Expected,
    /// Whether it is one of those that every run of all tests has.
    pub quick: bool,
    pub(super) lay: Lay,
    pub(super) also: Option<Also>,
}

type Lay = fn(&Scene<'_>, &Path) -> anyhow::Result<Route>;
type Also = fn(Passage<'_>, &Path) -> anyhow::Result<String>;

impl Planned {
    const fn new(name: &'static str, what: &'static str, expected: Expected, lay: Lay) -> Self {
        Self { name, what, expected, quick: false, lay, also: None }
    }

    const fn quick(self) -> Self {
        Self { quick: true, ..self }
    }

    const fn and(self, also: Also) -> Self {
        Self { also: Some(also), ..self }
    }
}

const WEBSOCKET: Expected = Expected::Through { rung: "websocket", warned: None };
/// Websockets are stopped so, and this carrier is not.
const fn by(rung: &'static str, warned: Fault) -> Expected {
    Expected::Through { rung, warned: Some(warned) }
}
const STRIPPED: Expected = by("pair", Fault::UpgradeStripped);
/// Who runs sees a stranger's certificate; who looks sees the relay behind it.
const INTERCEPTED: Expected =
    Expected::Refused { running: Fault::CertificateUntrusted, looking: Fault::TlsIntercepted };

/// A connection that carries all of a user's bytes, and lives for 20 s.
const CUTS: Harm = Harm { life: Duration::from_secs(20), rate: 3_000_000 };
/// As long as proxies of the field bear an idle connection.
const IDLE_30S: &str = "defaults\nmode tcp\ntimeout connect 5s\ntimeout client 30s\ntimeout server 30s\n\
    listen front\nbind AT ssl crt CERTIFICATE alpn http/1.1\nserver relay RELAY ssl verify none alpn http/1.1\n";
const H2_ONLY: &str = "defaults\nmode http\ntimeout connect 5s\ntimeout client 60s\ntimeout server 60s\n\
    listen front\nbind AT ssl crt CERTIFICATE alpn h2\nserver relay RELAY ssl verify none alpn h2\n";
const BUFFERS: &str = "defaults\nmode http\ntimeout connect 5s\ntimeout client 60s\ntimeout server 60s\n\
    listen front\nbind AT ssl crt CERTIFICATE alpn http/1.1\noption http-buffer-request\nhttp-request del-header upgrade\n\
    http-request del-header connection\nserver relay RELAY ssl verify none alpn http/1.1\n";
const NGINX_AS_IT_COMES: &str =
    "proxy_pass https://RELAY; proxy_http_version 1.1; proxy_set_header Connection \"\";";
const NGINX_PASSES_UPGRADE: &str = "proxy_pass https://RELAY; proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; \
    proxy_set_header Connection upgrade;";
const NGINX_SPEAKS_H2: &str = "grpc_pass grpcs://RELAY; client_max_body_size 0;";
/// Credentials that tinyproxy knows here, and squid does not.
const WRONG: &str = "agent:hunter2";

/// All of them.
pub const ROWS: &[Planned] = &[
    Planned::new("direct", "nothing", WEBSOCKET, |scene, _| Ok(Route::direct(scene.stage))).quick(),
    Planned::new(
        "nat",
        "a carrier's NAT that lets nothing in and forgets idle connections after 30 s",
        WEBSOCKET,
        |scene, folder| nat::route(scene.stage, folder, Lets::Out, Dns::Right),
    )
    .quick(),
    Planned::new("nat-idle", "the same, and nothing is said for 45 s", WEBSOCKET, |scene, folder| {
        nat::route(scene.stage, folder, Lets::Out, Dns::Right)
    })
    .and(longer::idle),
    Planned::new(
        "nat-dead-addresses",
        "such a NAT, and the relay's name has dead addresses as well, of both families",
        WEBSOCKET,
        |scene, folder| nat::route(scene.stage, folder, Lets::Out, Dns::DeadFirst),
    ),
    Planned::new(
        "dns-unknown",
        "only a proxy would lead out, and none is set",
        refused(Fault::NameUnresolved),
        |scene, folder| nat::route(scene.stage, folder, Lets::Nothing, Dns::Unknown),
    ),
    Planned::new(
        "dns-silent",
        "the name server does not answer",
        refused(Fault::DnsSilent),
        |scene, folder| nat::route(scene.stage, folder, Lets::Out, Dns::Silent),
    ),
    Planned::new(
        "firewall",
        "a firewall that drops what goes out",
        refused(Fault::ConnectTimeout),
        |scene, folder| nat::route(scene.stage, folder, Lets::Nothing, Dns::Right),
    ),
    Planned::new("squid", "squid that lets everybody out", WEBSOCKET, |scene, folder| {
        squid(scene, folder, ["http_port", ""], "http_access allow CONNECT\n")
    })
    .quick(),
    Planned::new("squid-basic", "squid that asks for user and password", WEBSOCKET, |scene, folder| {
        squid_basic(scene, folder, Some(KNOWN))
    })
    .quick(),
    Planned::new(
        "squid-basic-missing",
        "the same, and none are set",
        refused(Fault::ProxyCredentialsMissing),
        |scene, folder| squid_basic(scene, folder, None),
    ),
    Planned::new(
        "squid-basic-wrong",
        "the same, and others are set",
        refused(Fault::ProxyCredentialsRefused),
        |scene, folder| squid_basic(scene, folder, Some(WRONG)),
    ),
    Planned::new(
        "squid-forbids",
        "squid whose ACL forbids CONNECT",
        refused(Fault::ProxyForbids),
        |scene, folder| {
            squid(scene, folder, ["http_port", ""], "acl ask method CONNECT\nhttp_access deny ask\n")
        },
    )
    .quick(),
    Planned::new(
        "squid-tls",
        "squid that is spoken to by TLS; its CA is given",
        WEBSOCKET,
        |scene, folder| {
            let (route, ca) = squid_tls(scene, folder)?;
            Ok(route.flag("--proxy-cert", ca))
        },
    ),
    Planned::new(
        "squid-tls-unknown",
        "the same, and its CA is not given",
        refused(Fault::ProxyCertificateUntrusted),
        |scene, folder| Ok(squid_tls(scene, folder)?.0),
    ),
    Planned::new(
        "squid-bump",
        "squid that inspects TLS (ssl_bump) and lets WebSocket pass; its CA is given",
        WEBSOCKET,
        |scene, folder| {
            squid_bump(scene, folder, "http_upgrade_request_protocols websocket allow all\n", true)
        },
    ),
    Planned::new(
        "squid-bump-strips",
        "the same as it comes: it strips Upgrade",
        STRIPPED,
        |scene, folder| squid_bump(scene, folder, "", true),
    ),
    Planned::new(
        "squid-bump-unknown",
        "squid that inspects TLS, and its CA is not given",
        INTERCEPTED,
        |scene, folder| {
            squid_bump(scene, folder, "http_upgrade_request_protocols websocket allow all\n", false)
        },
    ),
    Planned::new("tinyproxy", "tinyproxy", WEBSOCKET, |scene, folder| {
        let proxy = running::tinyproxy(place(folder), "")?;
        Ok(Route::through(scene.stage, &format!("http://{}", proxy.address())).holding(proxy))
    }),
    Planned::new(
        "tinyproxy-basic",
        "tinyproxy that asks for user and password, which stand in its URL",
        WEBSOCKET,
        |scene, folder| {
            let proxy = running::tinyproxy(place(folder), "BasicAuth agent hunter2\n")?;
            Ok(Route::through(scene.stage, &format!("http://{WRONG}@{}", proxy.address())).holding(proxy))
        },
    ),
    Planned::new(
        "mitmproxy",
        "mitmproxy that inspects TLS and records it; its CA is given",
        WEBSOCKET,
        |scene, folder| mitmproxy(scene, folder, true),
    )
    .and(recording::judge),
    Planned::new("mitmproxy-unknown", "the same, and its CA is not given", INTERCEPTED, |scene, folder| {
        mitmproxy(scene, folder, false)
    }),
    Planned::new(
        "nginx",
        "nginx before the relay as it comes: it strips Upgrade, and keeps requests until they are whole",
        STRIPPED,
        |scene, folder| nginx(scene, folder, "ssl", NGINX_AS_IT_COMES),
    ),
    Planned::new("nginx-upgrade", "nginx that passes Upgrade on", WEBSOCKET, |scene, folder| {
        nginx(scene, folder, "ssl", NGINX_PASSES_UPGRADE)
    }),
    Planned::new(
        "nginx-h2",
        "nginx that speaks HTTP/2 to both sides (grpc_pass)",
        by("http2", Fault::UpgradeStripped),
        |scene, folder| nginx(scene, folder, "ssl http2", NGINX_SPEAKS_H2),
    ),
    Planned::new("haproxy-h2", "haproxy that speaks HTTP/2 only", WEBSOCKET, |scene, folder| {
        haproxy(scene, folder, H2_ONLY)
    }),
    Planned::new(
        "haproxy-buffers",
        "haproxy that strips Upgrade, and keeps requests until they are whole",
        STRIPPED,
        |scene, folder| haproxy(scene, folder, BUFFERS),
    ),
    Planned::new(
        "haproxy-idle",
        "haproxy that ends connections after 30 idle seconds",
        WEBSOCKET,
        |scene, folder| haproxy(scene, folder, IDLE_30S),
    )
    .and(longer::idle),
    Planned::new(
        "cuts",
        "every TCP connection is cut at 20 s (scripted), and carries 3 MB/s",
        WEBSOCKET,
        |scene, _| {
            let relay = scene.stage.relay_address.parse()?;
            let way = Forward::start(script::free()?, relay, Some(CUTS))?;
            Ok(Route::to(format!("https://{}", way.address())).holding(way))
        },
    )
    .and(longer::cuts),
    Planned::new(
        "swallows-up",
        "WebSocket frames to the relay are swallowed (scripted), HTTP/2 passes",
        by("http2", Fault::FramesLostUp),
        |scene, folder| swallow::route(scene.stage, folder, Swallows::Up, Speaks::Two),
    ),
    Planned::new(
        "swallows-down",
        "WebSocket frames from the relay are swallowed (scripted), there is no HTTP/2",
        by("pair", Fault::FramesLostDown),
        |scene, folder| swallow::route(scene.stage, folder, Swallows::Down, Speaks::One),
    ),
    Planned::new(
        "swallows-large",
        "WebSocket frames above 1 KiB are swallowed (scripted), there is no HTTP/2",
        by("pair", Fault::LargeFramesLost),
        |scene, folder| swallow::route(scene.stage, folder, Swallows::Large, Speaks::One),
    ),
    Planned::new(
        "swallows-binary",
        "binary WebSocket frames are swallowed (scripted), HTTP/2 passes",
        by("http2", Fault::FramesLostUp),
        |scene, folder| swallow::route(scene.stage, folder, Swallows::Binary, Speaks::Two),
    ),
    Planned::new(
        "connect-hangs",
        "a proxy that says 200 to CONNECT and carries nothing (scripted)",
        refused(Fault::ProxySwallows),
        |scene, _| scripted(scene, Answer::OpenAndHang),
    ),
    Planned::new(
        "connect-silent",
        "a proxy that does not answer CONNECT (scripted)",
        refused(Fault::ProxySilent),
        |scene, _| scripted(scene, Answer::Nothing),
    ),
    Planned::new(
        "connect-cut",
        "a proxy that hangs up on CONNECT (scripted)",
        refused(Fault::ProxyCut),
        |scene, _| scripted(scene, Answer::HangUp),
    ),
    Planned::new(
        "login-page",
        "a proxy that answers with its own login page (scripted)",
        refused(Fault::ProxyLoginPage),
        |scene, _| scripted(scene, Answer::LoginPage),
    ),
    Planned::new(
        "login-redirect",
        "a proxy that leads to a login page (scripted)",
        refused(Fault::ProxyLoginPage),
        |scene, _| scripted(scene, Answer::Redirect),
    ),
    Planned::new(
        "proxy-gone",
        "nobody listens at the proxy's port",
        refused(Fault::ProxyUnreachable),
        |scene, _| {
            let gone = script::free()?.local_addr()?;
            Ok(Route::through(scene.stage, &format!("http://{gone}")))
        },
    ),
];

fn place(folder: &Path) -> Place<'_> {
    Place { folder, knows: Some(only_way::HOST) }
}

fn squid(scene: &Scene<'_>, folder: &Path, port: [&str; 2], settings: &str) -> anyhow::Result<Route> {
    let proxy = running::squid(place(folder), port, settings)?;
    Ok(Route::through(scene.stage, &format!("http://{}", proxy.address())).holding(proxy))
}

fn squid_basic(scene: &Scene<'_>, folder: &Path, credentials: Option<&str>) -> anyhow::Result<Route> {
    let route = squid(scene, folder, ["http_port", ""], &running::basic(folder)?)?;
    let Some(credentials) = credentials else { return Ok(route) };
    let file = folder.join("credentials");
    std::fs::write(&file, credentials)?;
    Ok(route.flag("--proxy-credentials-file", file.display().to_string()))
}

fn squid_tls(scene: &Scene<'_>, folder: &Path) -> anyhow::Result<(Route, String)> {
    let (ca, both) = running::certificate(folder)?;
    let port = ["https_port", &format!("tls-cert={}", both.display())];
    let proxy = running::squid(place(folder), port, "http_access allow CONNECT\n")?;
    let url = format!("https://{}", proxy.address());
    Ok((Route::through(scene.stage, &url).holding(proxy), ca.display().to_string()))
}

/// The issuer's host is exempt from inspection: its keys are believed from nobody else.
fn inspected(scene: &Scene<'_>, (proxy, ca): (Running, PathBuf), trusted: bool) -> Route {
    let route = Route::through(scene.stage, &format!("http://{}", proxy.address())).holding(proxy);
    let route = route.flag("--proxy-skip-range", "127.0.0.1");
    if trusted { route.flag("--proxy-cert", ca.display().to_string()) } else { route }
}

fn squid_bump(scene: &Scene<'_>, folder: &Path, settings: &str, trusted: bool) -> anyhow::Result<Route> {
    Ok(inspected(scene, running::squid_bump(place(folder), &relay_ca(scene), settings)?, trusted))
}

fn mitmproxy(scene: &Scene<'_>, folder: &Path, trusted: bool) -> anyhow::Result<Route> {
    Ok(inspected(scene, running::mitmproxy(place(folder), &relay_ca(scene))?, trusted))
}

fn relay_ca(scene: &Scene<'_>) -> PathBuf {
    scene.stage.relay_dir().join("tls-ca.pem")
}

fn nginx(scene: &Scene<'_>, folder: &Path, listen: &str, location: &str) -> anyhow::Result<Route> {
    let relay = scene.stage.relay_address.parse()?;
    Ok(in_front(running::nginx(Place { folder, knows: None }, relay, listen, location)?))
}

fn haproxy(scene: &Scene<'_>, folder: &Path, sections: &str) -> anyhow::Result<Route> {
    let relay = scene.stage.relay_address.parse()?;
    Ok(in_front(running::haproxy(Place { folder, knows: None }, relay, sections)?))
}

fn in_front((proxy, ca): (Running, PathBuf)) -> Route {
    Route::to(format!("https://{}", proxy.address())).certified_by(ca).holding(proxy)
}

fn scripted(scene: &Scene<'_>, answer: Answer) -> anyhow::Result<Route> {
    let proxy = script::proxy(answer)?;
    Ok(Route::through(scene.stage, &format!("http://{}", proxy.address())).holding(proxy))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn rows_have_names_of_their_own_and_some_are_quick() {
        let names: BTreeSet<&str> = ROWS.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), ROWS.len());
        assert_eq!(ROWS.iter().filter(|row| row.quick).count(), 5);
    }
}
