//! A proxy that is needed and was not given: looked for where the straight way fails, and nowhere else.
//!
//! Other programs here may have one that towline does not read, the network may offer one (WPAD), or the gateway may be one. A
//! setting alone proves nothing: each proxy that is found is asked for the relay as towline would ask (CONNECT), without credentials.

mod places;

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::{JoinSet, spawn_blocking},
    time::{Instant, timeout},
};

use super::{Network, Verdict};
use crate::{
    egress::{Egress, Origin, Proxy},
    fault::{Fault, Report},
};

/// Files are read, and the network is asked what it offers, in this time.
const FOUND_WITHIN: Duration = Duration::from_millis(1500);
/// Each proxy has this long for its answer, all at once.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// More are not asked.
const MOST: usize = 8;
/// Usual ports of proxies: squid's, and that of most others.
const PORTS: [u16; 2] = [3128, 8080];
/// A script for automatic configuration is not longer, as far as it is read.
const MAX_SCRIPT: u64 = 64 * 1024;

/// Where proxies are set for others, or offered.
#[derive(Clone)]
pub struct Elsewhere {
    variables: Arc<dyn Fn() -> Vec<(String, String)> + Send + Sync>,
    /// Below it lie the system's files; none are looked at where it is not given.
    root: Option<PathBuf>,
    home: Option<PathBuf>,
    /// Whether the network and its gateway are asked.
    network: bool,
    /// Where nothing is that a network could offer.
    is_ours: fn(IpAddr) -> bool,
}

impl fmt::Debug for Elsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Elsewhere").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Elsewhere {
    /// This machine, this process, and the network that it is in.
    pub fn system() -> Self {
        let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
        let variables = || {
            let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
                Some((name.into_string().ok()?, value.into_string().ok()?))
            };
            std::env::vars_os().filter_map(text).collect()
        };
        Self { variables: Arc::new(variables), root: Some("/".into()), home, network: true, is_ours }
    }

    /// Nowhere.
    pub fn nowhere() -> Self {
        Self { variables: Arc::new(Vec::new), root: None, home: None, network: false, is_ours }
    }

    /// The files below `root` in place of the system's, and nothing else.
    pub fn files(root: PathBuf) -> Self {
        Self { root: Some(root), ..Self::nowhere() }
    }

    /// These variables, too.
    #[must_use]
    pub fn with_variables(self, variables: Vec<(String, String)>) -> Self {
        Self { variables: Arc::new(move || variables.clone()), ..self }
    }

    /// What the network offers, too: a script at `wpad`, and its gateway where the root says which it is.
    #[must_use]
    pub fn with_network(self) -> Self {
        Self { network: true, ..self }
    }

    /// The same of a network in which nothing that is offered is where `is_ours` says.
    #[must_use]
    pub fn with_network_beyond(self, is_ours: fn(IpAddr) -> bool) -> Self {
        Self { network: true, is_ours, ..self }
    }

    /// What stands there, as typed, and where.
    fn set(&self) -> Vec<Hint> {
        let mut hints = places::variables(&(self.variables)());
        if let Some(root) = &self.root {
            hints.extend(places::files(root, self.home.as_deref()));
        }
        hints
    }
}

/// A proxy's URL as it was typed, and where. A password may stand in it: it does not print.
#[derive(Clone, PartialEq, Eq)]
struct Hint {
    url: String,
    place: String,
}

impl Hint {
    fn proxy(&self) -> Option<Proxy> {
        Proxy::parse(&self.url, Origin::Elsewhere).ok()
    }
}

impl fmt::Debug for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hint({})", self.place)
    }
}

/// A proxy that was asked: its name, where it stands, and the fault with which it ended, if it did.
#[derive(Clone, Debug)]
struct Asked {
    at: usize,
    name: String,
    place: String,
    ended: Option<Fault>,
}

impl Asked {
    /// Whether it shows that a proxy is needed where the straight way ended so. A refusal by the relay's own host may be one of a
    /// relay that is not there, to which no proxy leads: there only a way that opens counts.
    fn shows(&self, straight: Fault) -> bool {
        match self.ended {
            None => true,
            Some(Fault::ProxyCredentialsMissing | Fault::ProxySchemeUnsupported) => {
                straight != Fault::ConnectionRefused
            }
            Some(_) => false,
        }
    }

    fn says(&self) -> String {
        let Self { name, place, .. } = self;
        match self.ended {
            None => format!("{name} ({place}) opens a connection to it"),
            Some(Fault::ProxyCredentialsMissing | Fault::ProxySchemeUnsupported) => {
                format!("{name} ({place}) asks who you are")
            }
            Some(fault) => {
                format!("{name} ({place}) does not lead there: {} {}", fault.code(), fault.title())
            }
        }
    }
}

impl Network {
    /// The verdict on a step of the straight way as it is, unless it failed and a proxy leads where it does not.
    pub(super) async fn or_elsewhere<T>(&self, verdict: Verdict<T>) -> Verdict<T> {
        let (report, why) = match verdict.failure() {
            Ok(verdict) => return verdict,
            Err(failure) => failure,
        };
        let asked = self.ask_elsewhere().await;
        let straight = report.fault;
        if let Some(shown) = asked.iter().find(|asked| asked.shows(straight)) {
            let seen = format!(
                "straight: {} {} ({}); {}",
                straight.code(),
                straight.title(),
                report.clone().detail,
                shown.says()
            );
            let why = "the straight way fails, and what stands or is offered elsewhere as a proxy answers CONNECT for the relay; towline uses a proxy only where it is told to";
            return Verdict::failed(Report::new(Fault::ProxyNeeded, seen), why);
        }
        if asked.is_empty() {
            return Verdict::failed(report, why);
        }
        let why = if why.is_empty() { straight.cause().to_owned() } else { why };
        let says: Vec<String> = asked.iter().map(Asked::says).collect();
        Verdict::failed(
            report,
            format!("{why} Proxies that towline was not given were asked, too: {}.", says.join("; ")),
        )
    }

    /// Every proxy that can be found, asked for the relay.
    async fn ask_elsewhere(&self) -> Vec<Asked> {
        let found = timeout(FOUND_WITHIN, self.hints()).await.unwrap_or_default();
        let mut proxies: Vec<(String, String, Proxy)> = Vec::new();
        for hint in found {
            if let Some(proxy) = hint.proxy().filter(|_| proxies.len() < MOST) {
                let name = proxy.to_string();
                if !proxies.iter().any(|(known, ..)| *known == name) {
                    proxies.push((name, hint.place, proxy));
                }
            }
        }
        let mut asking = JoinSet::new();
        for (at, (name, place, proxy)) in proxies.into_iter().enumerate() {
            let to = self.relay.destination();
            asking.spawn(async move {
                let deadline = Instant::now() + ANSWER_WITHIN;
                let opened = match Egress::trying(proxy) {
                    Ok(egress) => egress.connect(&to, deadline).await.map(drop),
                    Err(report) => Err(report),
                };
                Asked { at, name, place, ended: opened.err().map(|report| report.fault) }
            });
        }
        let mut asked = asking.join_all().await;
        // What somebody has set comes before what is only offered.
        asked.sort_by_key(|asked| asked.at);
        asked.retain(|asked| asked.place != GATEWAY || asked.shows(Fault::ConnectTimeout));
        asked
    }

    async fn hints(&self) -> Vec<Hint> {
        let elsewhere = self.elsewhere.clone();
        let set = spawn_blocking(move || elsewhere.set());
        let mut hints = Vec::new();
        if let Some(proxy) = self.egress.passed_over(&self.relay.destination()) {
            let place = format!("{}; the skip range keeps the relay from it", proxy.from());
            hints.push(Hint { url: proxy.to_string(), place });
        }
        let (set, offered) = tokio::join!(set, self.offered());
        hints.extend(set.unwrap_or_default());
        hints.extend(offered);
        hints
    }

    /// What the network offers: a script at `wpad`, as browsers look for it, and a gateway that may be a proxy.
    async fn offered(&self) -> Vec<Hint> {
        let Some(root) = self.elsewhere.root.as_ref().filter(|_| self.elsewhere.network) else {
            return Vec::new();
        };
        let script = timeout(FOUND_WITHIN / 2, self.script()).await.ok().and_then(Result::ok);
        let named = script.map(|script| places::of_script(&script)).unwrap_or_default();
        let mut hints = Vec::new();
        // Those that were found until then are asked.
        let _late = timeout(FOUND_WITHIN / 2, self.beyond(named, &mut hints)).await;
        if let Some(gateway) = places::gateway(root) {
            let hint = |port| Hint {
                url: format!("http://{}", SocketAddr::new(IpAddr::V4(gateway), port)),
                place: GATEWAY.to_owned(),
            };
            hints.extend(PORTS.map(hint));
        }
        hints
    }

    /// Those proxies that are not on this machine or its link, each by an address of its own. Whoever answers for `wpad` is not to have this
    /// machine knock at its own doors, where a service may take whoever comes from here for its owner, or at a cloud's metadata service.
    async fn beyond(&self, named: Vec<Hint>, beyond: &mut Vec<Hint>) {
        for hint in named.into_iter().take(MOST) {
            let Some(proxy) = hint.proxy() else { continue };
            let (host, port) = (proxy.at().host(), proxy.at().port());
            let (addresses, place) = match host.parse() {
                Ok(address) => (vec![SocketAddr::new(address, port)], hint.place),
                Err(_) => {
                    let addresses = self.names.resolve(host, port).await.into_result();
                    (addresses.unwrap_or_default(), format!("{}, as {host}", hint.place))
                }
            };
            // It is asked at the address that was looked at: a name may have another one the next time.
            if let Some(address) = addresses.into_iter().find(|to| !(self.elsewhere.is_ours)(to.ip())) {
                beyond.push(Hint { url: format!("http://{address}"), place });
            }
        }
    }

    /// The script for automatic configuration, where `wpad` has one.
    async fn script(&self) -> io::Result<String> {
        let addresses = self.names.resolve("wpad", 80).await.into_result().unwrap_or_default();
        let beyond = addresses.into_iter().find(|address| !(self.elsewhere.is_ours)(address.ip()));
        let address = beyond.ok_or(io::ErrorKind::NotFound)?;
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /wpad.dat HTTP/1.0\r\nHost: wpad\r\n\r\n").await?;
        let mut script = Vec::new();
        stream.take(MAX_SCRIPT).read_to_end(&mut script).await?;
        Ok(String::from_utf8_lossy(&script).into_owned())
    }
}

/// This machine and its link, where no network has its proxy.
fn is_ours(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            address.is_loopback()
                || address.is_link_local()
                || address.is_unspecified()
                || address.is_broadcast()
        }
        IpAddr::V6(address) => {
            address.is_loopback() || address.is_unicast_link_local() || address.is_unspecified()
        }
    }
}

/// Where proxies stand that nobody has named.
const GATEWAY: &str = "this network's gateway";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Names;

    /// A network whose script names these, and whose names have these addresses.
    fn network(names: &'static [(&str, &str)]) -> Network {
        let relay = crate::carrier::dial::RelayAddress::parse("relay.test").unwrap();
        Network {
            names: Names::new(move |name, port| {
                let found = names.iter().filter(|(known, _)| *known == name);
                let found =
                    found.map(|(_, address)| SocketAddr::new(address.parse().unwrap(), port)).collect();
                Box::pin(async move { Ok(found) })
            }),
            elsewhere: Elsewhere::nowhere().with_network(),
            ..Network::straight(relay, crate::ids::KeyHash::of_spki(b"nobody's"), None)
        }
    }

    async fn beyond(script: &str) -> Vec<Hint> {
        let names = &[
            ("rebinds.test", "127.0.0.1"),
            ("proxy.test", "192.0.2.8"),
            ("both.test", "::1"),
            ("both.test", "192.0.2.9"),
        ];
        let mut asked = Vec::new();
        network(names).beyond(places::of_script(script), &mut asked).await;
        asked
    }

    #[tokio::test]
    async fn what_a_script_names_on_this_machine_or_its_link_is_not_asked() {
        let script = "function FindProxyForURL(u, h) { return \"PROXY 127.0.0.1:6443; PROXY 127.9.9.9:1; PROXY 0.0.0.0:1; PROXY [::1]:1\"
            + \"; PROXY 169.254.169.254:80; PROXY rebinds.test:1; PROXY 192.0.2.7:3128; PROXY proxy.test:8080\"; }";
        let asked = beyond(script).await;
        let asked: Vec<_> = asked.iter().map(|hint| (hint.url.as_str(), hint.place.as_str())).collect();
        let place = "http://wpad/wpad.dat";
        assert_eq!(
            asked,
            [
                ("http://192.0.2.7:3128", place),
                ("http://192.0.2.8:8080", "http://wpad/wpad.dat, as proxy.test")
            ]
        );
        let script = "FindProxyForURL PROXY [fe80::1]:1; PROXY [::ffff:127.0.0.1]:1; PROXY both.test:1";
        let asked = beyond(script).await;
        assert_eq!(asked.iter().map(|hint| hint.url.as_str()).collect::<Vec<_>>(), ["http://192.0.2.9:1"]);
    }

    #[tokio::test]
    async fn a_script_is_not_asked_for_on_this_machine() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let at_home = Network {
            names: Names::new(move |_, _| {
                Box::pin(async move { Ok(vec![SocketAddr::new([127, 0, 0, 1].into(), port)]) })
            }),
            ..network(&[])
        };
        assert_eq!(at_home.script().await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_proxy_that_only_asks_who_we_are_says_nothing_of_a_relay_that_refuses() {
        let asked = |ended| Asked { at: 0, name: "http://p:1".into(), place: "there".into(), ended };
        assert!(asked(None).shows(Fault::ConnectionRefused));
        let asks = asked(Some(Fault::ProxyCredentialsMissing));
        assert!(asks.shows(Fault::ConnectTimeout) && asks.shows(Fault::NameUnresolved));
        assert!(!asks.shows(Fault::ConnectionRefused));
        for ended in [Fault::ProxyForbids, Fault::ProxyUnreachable, Fault::ProxyLoginPage, Fault::ProxyFailed]
        {
            assert!(!asked(Some(ended)).shows(Fault::ConnectTimeout), "{ended:?}");
        }
    }
}
