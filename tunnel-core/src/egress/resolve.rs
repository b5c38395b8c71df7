//! Names to addresses: by DNS itself, and where that has no answer, as the system would (`/etc/nsswitch.conf`, mDNS).
//!
//! Our own resolver keeps TTLs and search domains, and tells apart what getaddrinfo mixes up: no such name, no address, no answer.

use std::{
    fs,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use hickory_resolver::{TokioResolver, net::NetError, proto::rr::RecordType};
use tokio::time::{Instant, sleep, timeout_at};

/// What is read when names are resolved; a machine that changed its network has changed one of them.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];
/// One name server gets this long for an answer. The usual 5 s leave no time for another one, and none to connect.
const SERVER_WITHIN: Duration = Duration::from_millis(1500);
/// All of DNS takes no longer, search domains included.
const DNS_WITHIN: Duration = Duration::from_secs(4);
/// Nor does the system.
const SYSTEM_WITHIN: Duration = Duration::from_secs(3);
/// IPv4 addresses that came first wait this long for IPv6 (RFC 8305, section 3: the "Resolution Delay").
const IPV6_DELAY: Duration = Duration::from_millis(50);
/// IPv6 addresses wait longer: a network that has them may not carry them.
const IPV4_DELAY: Duration = Duration::from_secs(1);

/// Why a name has no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoAddress {
    /// There is no such name.
    Unknown,
    /// There is, and it has none.
    Empty,
    /// Nobody who could know has answered, or could.
    Silent(String),
}

/// What both have for a name, each asked for itself: for whoever examines the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LookedUp {
    /// DNS, which is believed where it has an address.
    pub(crate) dns: Result<Vec<IpAddr>, NoAddress>,
    /// The system's own resolver, which is asked where it has none; nothing where that has none either.
    pub(crate) system: Option<Vec<IpAddr>>,
}

/// Resolves names.
#[derive(Default)]
pub(super) struct Resolver {
    dns: Mutex<Option<Dns>>,
    /// In place of the system's settings and of its own resolver.
    fixed: Option<TokioResolver>,
}

struct Dns {
    read: Vec<Option<Vec<u8>>>,
    resolver: TokioResolver,
}

impl Resolver {
    /// All addresses of a name; an address is its own.
    ///
    /// # Errors
    /// What is the matter with the name, or with DNS.
    pub(super) async fn addresses(&self, host: &str, deadline: Instant) -> Result<Vec<IpAddr>, NoAddress> {
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        let why = match self.ask_dns(host, deadline).await {
            Ok(found) => return Ok(found),
            Err(why) if self.fixed.is_some() => return Err(why),
            Err(why) => why,
        };
        match by_system(host, deadline).await {
            Some(found) => {
                tracing::debug!(host, ?why, "DNS has no address for a name; the system's own resolver has");
                Ok(found)
            }
            None => Err(why),
        }
    }

    /// The same question to both at once, so that where they differ shows.
    pub(super) async fn look_up(&self, host: &str, deadline: Instant) -> LookedUp {
        if let Ok(address) = host.parse::<IpAddr>() {
            return LookedUp { dns: Ok(vec![address]), system: Some(vec![address]) };
        }
        let (dns, system) = tokio::join!(self.ask_dns(host, deadline), by_system(host, deadline));
        LookedUp { dns, system }
    }

    async fn ask_dns(&self, host: &str, deadline: Instant) -> Result<Vec<IpAddr>, NoAddress> {
        let until = deadline.min(Instant::now() + DNS_WITHIN);
        match self.dns() {
            Ok(dns) => timeout_at(until, by_dns(&dns, host))
                .await
                .unwrap_or_else(|_| Err(NoAddress::Silent("no answer in time".to_owned()))),
            Err(error) => Err(NoAddress::Silent(format!("no usable {}: {error}", FILES[0]))),
        }
    }

    /// A resolver as the system is set up now; the one before, with all that it remembers, while nothing changed.
    fn dns(&self) -> Result<TokioResolver, NetError> {
        if let Some(resolver) = &self.fixed {
            return Ok(resolver.clone());
        }
        let read: Vec<_> = FILES.iter().map(|path| fs::read(path).ok()).collect();
        let mut dns = self.dns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(dns) = dns.as_ref().filter(|dns| dns.read == read) {
            return Ok(dns.resolver.clone());
        }
        let mut builder = TokioResolver::builder_tokio()?;
        let options = builder.options_mut();
        options.timeout = options.timeout.min(SERVER_WITHIN);
        let resolver = builder.build()?;
        *dns = Some(Dns { read, resolver: resolver.clone() });
        Ok(resolver)
    }
}

/// Both families at once; neither waits for the other for long.
async fn by_dns(dns: &TokioResolver, host: &str) -> Result<Vec<IpAddr>, NoAddress> {
    let six = family(dns, host, RecordType::AAAA);
    let four = family(dns, host, RecordType::A);
    tokio::pin!(six, four);
    let (first, second) = tokio::select! {
        first = &mut six => {
            let patience = patience(first.is_ok(), IPV4_DELAY);
            (first, tokio::select! { second = &mut four => Some(second), () = patience => None })
        }
        first = &mut four => {
            let patience = patience(first.is_ok(), IPV6_DELAY);
            (first, tokio::select! { second = &mut six => Some(second), () = patience => None })
        }
    };
    match (first, second) {
        (Ok(mut found), Some(Ok(more))) => {
            found.extend(more);
            Ok(found)
        }
        (Ok(found), _) | (Err(_), Some(Ok(found))) => Ok(found),
        (Err(one), None) => Err(one),
        (Err(one), Some(Err(other))) => Err(one.and(other)),
    }
}

/// How long the other family is waited for: as long as it takes, where this one has nothing.
async fn patience(found: bool, delay: Duration) {
    if found {
        sleep(delay).await;
    } else {
        std::future::pending().await
    }
}

async fn family(dns: &TokioResolver, host: &str, kind: RecordType) -> Result<Vec<IpAddr>, NoAddress> {
    match dns.lookup(host, kind).await {
        Ok(lookup) => {
            let found: Vec<IpAddr> =
                lookup.answers().iter().filter_map(|record| record.data.ip_addr()).collect();
            if found.is_empty() { Err(NoAddress::Empty) } else { Ok(found) }
        }
        Err(error) if error.is_nx_domain() => Err(NoAddress::Unknown),
        Err(error) if error.is_no_records_found() => Err(NoAddress::Empty),
        Err(error) => Err(NoAddress::Silent(error.to_string())),
    }
}

impl NoAddress {
    /// Of two families: a name that one of them could not be asked for may well exist.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Silent(why), _) | (_, Self::Silent(why)) => Self::Silent(why),
            (Self::Empty, _) | (_, Self::Empty) => Self::Empty,
            (Self::Unknown, Self::Unknown) => Self::Unknown,
        }
    }
}

/// By getaddrinfo. It runs on a thread that can't be stopped, and ends by its own time limits.
async fn by_system(host: &str, deadline: Instant) -> Option<Vec<IpAddr>> {
    let until = deadline.min(Instant::now() + SYSTEM_WITHIN);
    let found = timeout_at(until, tokio::net::lookup_host((host, 0))).await.ok()?.ok()?;
    let found: Vec<IpAddr> = found.map(|address| address.ip()).collect();
    (!found.is_empty()).then_some(found)
}

#[cfg(test)]
mod tests;
