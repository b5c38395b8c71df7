//! From the relay's name to a connection: names, addresses, or a proxy's way.

use std::{
    fmt, io,
    net::SocketAddr,
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
    egress::Egress,
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

/// Asks for the addresses of a name: the system's resolver, or a test's.
#[derive(Clone)]
pub struct Names(Arc<Ask>);

impl Names {
    /// The system's resolver.
    pub fn system() -> Self {
        Self::new(|host, port| {
            Box::pin(async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) })
        })
    }

    /// Any other.
    pub fn new(
        ask: impl Fn(String, u16) -> Pending<'static, io::Result<Vec<SocketAddr>>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(ask))
    }

    /// The addresses of a host; what fails is told apart.
    pub(super) async fn resolve(&self, host: &str, port: u16) -> Verdict<Vec<SocketAddr>> {
        let begun = Instant::now();
        let addresses = match timeout(NAMES_WITHIN, (self.0)(host.to_owned(), port)).await {
            Err(_elapsed) => {
                let report = Report::new(Fault::DnsSilent, format!("asked for {host}"));
                return Verdict::failed(
                    report,
                    format!("there was no answer for {} s", begun.elapsed().as_secs()),
                );
            }
            Ok(Err(error)) => return Verdict::failed(unresolved(host, error), ""),
            Ok(Ok(addresses)) => addresses,
        };
        let mut distinct: Vec<SocketAddr> = Vec::new();
        for address in addresses {
            if !distinct.contains(&address) {
                distinct.push(address);
            }
        }
        if distinct.is_empty() {
            return Verdict::failed(Report::new(Fault::NameEmpty, host), "");
        }
        distinct.truncate(MAX_ADDRESSES);
        let listed: Vec<String> = distinct.iter().map(|address| address.ip().to_string()).collect();
        Verdict::ok(distinct, format!("{host} is {}", listed.join(", ")))
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Names")
    }
}

/// The resolver of libc says why only in words (`gai_strerror`); those are glibc's and musl's.
fn unresolved(host: &str, error: io::Error) -> Report {
    let words = error.to_string();
    let has = |part: &str| words.contains(part);
    let fault = if has("No address associated") || has("Name has no usable address") {
        Fault::NameEmpty
    } else if has("Temporary failure") || has("Try again") {
        Fault::DnsSilent
    } else {
        Fault::NameUnresolved
    };
    Report::caused_by(fault, host, error)
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

    #[test]
    fn what_libc_says_is_told_apart() {
        for (words, fault) in [
            ("failed to lookup address information: Name or service not known", Fault::NameUnresolved),
            ("failed to lookup address information: Name does not resolve", Fault::NameUnresolved),
            ("failed to lookup address information: No address associated with hostname", Fault::NameEmpty),
            ("failed to lookup address information: Temporary failure in name resolution", Fault::DnsSilent),
        ] {
            assert_eq!(unresolved("relay.example", io::Error::other(words)).fault, fault, "{words}");
        }
    }
}
