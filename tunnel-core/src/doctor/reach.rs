//! From the relay's name to a connection: names, addresses, or a proxy's way.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use super::Verdict;
use crate::{
    carrier::dial::RelayAddress,
    egress::{self, Egress, LookedUp, NoAddress},
    fault::{Fault, Report},
};

/// DNS has this long; resolvers try their servers one after the other.
const NAMES_WITHIN: Duration = Duration::from_secs(5);
/// Each address has this long, all at once.
const ADDRESS_WITHIN: Duration = Duration::from_secs(4);
/// A proxy has this long, with all that it asks for.
const WAY_WITHIN: Duration = Duration::from_secs(10);
/// More addresses of one name are not looked at.
const MAX_ADDRESSES: usize = 8;

/// A boxed future.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Bytes to the relay, whatever is below.
pub trait Pipe: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Pipe for T {}

/// Another way to the relay than straight: through a proxy, which resolves the name.
pub trait Way: Send + Sync {
    /// The proxy, without credentials, and where that setting comes from.
    fn name(&self, relay: &RelayAddress) -> String;

    /// A connection to the relay. Its report says which of reaching, authenticating and policy failed.
    fn connect<'a>(&'a self, relay: &'a RelayAddress) -> Pending<'a, Result<Box<dyn Pipe>, Report>>;
}

impl Way for Egress {
    fn name(&self, relay: &RelayAddress) -> String {
        self.proxy_for(&relay.destination())
            .map_or_else(|| "no proxy".to_owned(), |proxy| format!("{proxy} ({})", proxy.from()))
    }

    fn connect<'a>(&'a self, relay: &'a RelayAddress) -> Pending<'a, Result<Box<dyn Pipe>, Report>> {
        let until = tokio::time::Instant::now() + WAY_WITHIN;
        Box::pin(async move {
            let to = relay.destination();
            Ok(Box::new(Egress::connect(self, &to, until).await?) as Box<dyn Pipe>)
        })
    }
}

/// What asks for the addresses of a name: a host and a port.
type Ask = dyn Fn(String, u16) -> Pending<'static, io::Result<Vec<SocketAddr>>> + Send + Sync;

/// Asks for the addresses of a name: as carriers do, or as a test says.
#[derive(Clone)]
pub struct Names(Whom);

#[derive(Clone)]
enum Whom {
    Carriers(Egress),
    Other(Arc<Ask>),
}

impl Names {
    /// As connections by this way are made: by DNS, and where that has no address by the system's own resolver.
    pub fn of(egress: &Egress) -> Self {
        Self(Whom::Carriers(egress.clone()))
    }

    /// Any other.
    pub fn new(
        ask: impl Fn(String, u16) -> Pending<'static, io::Result<Vec<SocketAddr>>> + Send + Sync + 'static,
    ) -> Self {
        Self(Whom::Other(Arc::new(ask)))
    }

    /// The addresses of a host; what fails is told apart.
    pub(super) async fn resolve(&self, host: &str, port: u16) -> Verdict<Vec<SocketAddr>> {
        let begun = Instant::now();
        let asked = async {
            match &self.0 {
                Whom::Carriers(egress) => {
                    let deadline = tokio::time::Instant::now() + NAMES_WITHIN;
                    judge(host, port, egress.look_up(host, deadline).await)
                }
                Whom::Other(ask) => match ask(host.to_owned(), port).await {
                    Ok(addresses) => found(host, addresses, ""),
                    Err(error) => Verdict::failed(Report::caused_by(words(&error), host, error), ""),
                },
            }
        };
        timeout(NAMES_WITHIN, asked).await.unwrap_or_else(|_elapsed| {
            let report = Report::new(Fault::DnsSilent, format!("asked for {host}"));
            Verdict::failed(report, format!("there was no answer for {} s", begun.elapsed().as_secs()))
        })
    }
}

/// What a carrier will do with this, and where other programs, which ask the system, will go elsewhere.
fn judge(host: &str, port: u16, looked: LookedUp) -> Verdict<Vec<SocketAddr>> {
    let at = |addresses: Vec<IpAddr>| addresses.into_iter().map(|to| SocketAddr::new(to, port)).collect();
    match (looked.dns, looked.system) {
        (Ok(dns), None) => found(
            host,
            at(dns),
            " by DNS; the system's own resolver, which other programs ask, has no address",
        ),
        // Large services have more addresses than one answer.
        (Ok(dns), Some(system)) if !dns.iter().any(|address| system.contains(address)) => {
            let note = format!(
                " by DNS, and that is where towline goes; other programs go to {}, which the system's own resolver says (/etc/nsswitch.conf)",
                listed(&system)
            );
            found(host, at(dns), &note)
        }
        (Ok(dns), Some(_)) => found(host, at(dns), ""),
        (Err(why), Some(system)) => {
            let seen = egress::unresolved(host, &why);
            let note = format!(
                " by the system's own resolver (/etc/nsswitch.conf), and towline goes there; DNS: {}",
                seen.fault.title()
            );
            match why {
                // Such a name may be meant to stand elsewhere than in DNS.
                NoAddress::Unknown | NoAddress::Empty => found(host, at(system), &note),
                NoAddress::Silent(_) => {
                    let why = format!(
                        "the system's own resolver says {}; each connection waits for DNS first",
                        listed(&system)
                    );
                    Verdict::warning(distinct(at(system)), seen, why)
                }
            }
        }
        (Err(why), None) => {
            let both = "DNS was asked, as carriers ask it, and the system's own resolver, which has no address either";
            Verdict::failed(egress::unresolved(host, &why), both)
        }
    }
}

fn distinct(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let mut distinct: Vec<SocketAddr> = Vec::new();
    for address in addresses {
        if !distinct.contains(&address) {
            distinct.push(address);
        }
    }
    distinct.truncate(MAX_ADDRESSES);
    distinct
}

fn listed(addresses: &[IpAddr]) -> String {
    let listed: Vec<String> = addresses.iter().take(MAX_ADDRESSES).map(ToString::to_string).collect();
    listed.join(", ")
}

fn found(host: &str, addresses: Vec<SocketAddr>, note: &str) -> Verdict<Vec<SocketAddr>> {
    let distinct = distinct(addresses);
    if distinct.is_empty() {
        return Verdict::failed(Report::new(Fault::NameEmpty, host), "");
    }
    let addresses: Vec<IpAddr> = distinct.iter().map(SocketAddr::ip).collect();
    Verdict::ok(distinct, format!("{host} is {}{note}", listed(&addresses)))
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Names")
    }
}

/// The resolver of libc says why only in words (`gai_strerror`); those are glibc's and musl's.
fn words(error: &io::Error) -> Fault {
    let words = error.to_string();
    let has = |part: &str| words.contains(part);
    if has("No address associated") || has("Name has no usable address") {
        Fault::NameEmpty
    } else if has("Temporary failure") || has("Try again") {
        Fault::DnsSilent
    } else {
        Fault::NameUnresolved
    }
}

/// How trying one address ended.
type Tried = Result<TcpStream, io::Error>;

/// A connection to the first of these addresses that answers. All are tried, so that a dead one shows.
pub(super) async fn connect(
    relay: &RelayAddress,
    addresses: &[SocketAddr],
) -> Verdict<(SocketAddr, TcpStream)> {
    let begun = Instant::now();
    let mut trying = JoinSet::new();
    for (at, address) in addresses.iter().copied().enumerate() {
        trying.spawn(async move {
            let silent = |_elapsed| io::Error::from(io::ErrorKind::TimedOut);
            (at, timeout(ADDRESS_WITHIN, TcpStream::connect(address)).await.map_err(silent).flatten())
        });
    }
    let mut tried: Vec<Option<Tried>> = addresses.iter().map(|_| None).collect();
    while let Some(ended) = trying.join_next().await {
        if let Ok((at, result)) = ended {
            tried[at] = Some(result);
        }
    }
    let (mut first, mut dead) = (None, Vec::<(SocketAddr, io::Error)>::new());
    for (address, result) in addresses.iter().zip(tried) {
        match result {
            Some(Ok(stream)) if first.is_none() => first = Some((*address, stream)),
            Some(Err(error)) => dead.push((*address, error)),
            Some(Ok(_)) | None => {}
        }
    }
    if first.is_some() {
        // A machine without IPv6 has no way to such an address, and loses no time with it.
        dead.retain(|(_, error)| !is_no_way(error));
    }
    let listed: Vec<String> =
        dead.iter().map(|(address, error)| format!("{address}: {}", end(error))).collect();
    let listed = listed.join("; ");
    match first {
        Some((address, stream)) if dead.is_empty() => {
            let seen = format!("{address} answers in {} ms", begun.elapsed().as_millis());
            Verdict::ok((address, stream), seen)
        }
        Some((address, stream)) => {
            let report = Report::new(Fault::AddressDead, listed);
            Verdict::warning((address, stream), report, format!("{address} of the same name answers"))
        }
        None => {
            let fault = dead.first().map_or(Fault::RelayUnreachable, |(_, error)| fault(error));
            Verdict::failed(Report::new(fault, format!("{relay}: {listed}")), "")
        }
    }
}

/// Whether this machine has no route to an address of this kind.
fn is_no_way(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable)
}

fn fault(error: &io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Fault::ConnectionRefused,
        io::ErrorKind::TimedOut => Fault::ConnectTimeout,
        _ => Fault::RelayUnreachable,
    }
}

fn end(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "refused".to_owned(),
        io::ErrorKind::TimedOut => format!("no answer within {} s", ADDRESS_WITHIN.as_secs()),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{Examination, Finding, Status, Step};

    #[test]
    fn what_libc_says_is_told_apart() {
        for (words, fault) in [
            ("failed to lookup address information: Name or service not known", Fault::NameUnresolved),
            ("failed to lookup address information: Name does not resolve", Fault::NameUnresolved),
            ("failed to lookup address information: No address associated with hostname", Fault::NameEmpty),
            ("failed to lookup address information: Temporary failure in name resolution", Fault::DnsSilent),
        ] {
            assert_eq!(super::words(&io::Error::other(words)), fault, "{words}");
        }
    }

    fn said(dns: Result<&[&str], NoAddress>, system: Option<&[&str]>) -> (Option<String>, Finding) {
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let looked = LookedUp { dns: dns.map(parse), system: system.map(parse) };
        let mut examination = Examination::new(|_| {});
        let found = examination.say(Step::Dns, judge("relay.test", 443, looked));
        let first = found.map(|found| found[0].to_string());
        (first, examination.finish("", None, std::time::UNIX_EPOCH).findings.remove(0))
    }

    #[test]
    fn a_name_is_judged_as_the_carrier_will_use_it_and_where_others_go_elsewhere_is_told() {
        let (one, two): (&[&str], &[&str]) = (&["192.0.2.1", "192.0.2.2"], &["192.0.2.2", "2001:db8::2"]);
        let (first, found) = said(Ok(one), Some(two));
        assert_eq!((first.as_deref(), found.status), (Some("192.0.2.1:443"), Status::Ok));
        assert_eq!(found.seen, "relay.test is 192.0.2.1, 192.0.2.2", "two answers of one service");

        let (first, found) = said(Ok(&["192.0.2.1"]), Some(two));
        assert_eq!((first.as_deref(), found.status), (Some("192.0.2.1:443"), Status::Ok));
        assert!(found.seen.contains("other programs go to 192.0.2.2, 2001:db8::2"), "{found:?}");
        let (first, found) = said(Ok(one), None);
        assert!(
            first.is_some() && found.seen.contains("which other programs ask, has no address"),
            "{found:?}"
        );

        let (first, found) = said(Err(NoAddress::Unknown), Some(&["192.0.2.7"]));
        assert_eq!((first.as_deref(), found.status), (Some("192.0.2.7:443"), Status::Ok));
        assert!(found.seen.contains("by the system's own resolver"), "{found:?}");
        let (first, found) = said(Err(NoAddress::Silent("timeout".into())), Some(&["192.0.2.7"]));
        assert_eq!(first.as_deref(), Some("192.0.2.7:443"), "the carrier gets there, too");
        assert_eq!((found.status, found.fault()), (Status::Warning, Some(Fault::DnsSilent)));
        assert!(found.why.contains("waits for DNS first"), "{found:?}");

        for (why, fault) in [
            (NoAddress::Unknown, Fault::NameUnresolved),
            (NoAddress::Empty, Fault::NameEmpty),
            (NoAddress::Silent("timeout".into()), Fault::DnsSilent),
        ] {
            let (first, found) = said(Err(why), None);
            assert_eq!((first, found.status, found.fault()), (None, Status::Failed, Some(fault)));
        }
    }
}
