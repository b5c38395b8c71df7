//! Dialling out: from a host and a port to a tuned byte stream, straight or through an HTTP proxy (`docs/networks.md`).
//!
//! Carriers stand on top of it and do not know which way was taken. Names are resolved here only where no proxy is in the way: a
//! proxy is given the name. Who the proxy is, is no part of anybody's trust: what goes through it is TLS to the destination.

mod auth;
mod connect;
mod destination;
mod proxy;
mod race;
mod resolve;
mod routes;
mod settings;
mod skip;
mod stream;
mod trust;

use std::{
    fmt, io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use rustls::pki_types::ServerName;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsConnector;

pub use destination::Destination;
pub use proxy::{Origin, Proxy};
pub use routes::Routes;
pub(crate) use routes::source;
pub use settings::{EgressSettings, ProxyArgs, ProxyText, Sources, Written, process_environment};
pub use skip::{BareNames, SkipRange};
pub use stream::EgressStream;
pub use trust::TrustStore;

use crate::{
    carrier::tune,
    fault::{Fault, Report},
};
use auth::Scheme;
use connect::Answer;
use race::{Dead, End};
use resolve::Resolver;
pub(crate) use resolve::{LookedUp, NoAddress};

/// How often one connection may be asked for: with what let the last one in, with what the proxy then asks for, and with a fresh nonce.
const MAX_QUESTIONS: u32 = 3;
/// A connection to anything but a relay has as long, altogether.
const OPEN_WITHIN: Duration = Duration::from_secs(10);
/// What is offered to a proxy by TLS.
const PROXY_PROTOCOL: &[u8] = b"http/1.1";

/// The way out of this network. Clones share what they have learnt.
#[derive(Clone)]
pub struct Egress(Arc<Inner>);

struct Inner {
    settings: EgressSettings,
    resolver: Resolver,
    /// Of proxies that are spoken to by TLS.
    trust: Option<TrustStore>,
    /// Where every name leads, in place of what DNS says.
    pinned: Option<SocketAddr>,
}

impl fmt::Debug for Egress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Egress").field(&self.0.settings).finish()
    }
}

impl Egress {
    /// Straight to every destination.
    pub fn direct() -> Self {
        let settings = EgressSettings::default();
        Self(Arc::new(Inner { settings, resolver: Resolver::default(), trust: None, pinned: None }))
    }

    /// Straight to this address, whatever the destination's name and port: for whoever has looked at it already.
    pub(crate) fn pinned(address: SocketAddr) -> Self {
        let settings = EgressSettings::default();
        Self(Arc::new(Inner { settings, resolver: Resolver::default(), trust: None, pinned: Some(address) }))
    }

    /// Through this proxy, with nobody's credentials: a trial.
    ///
    /// # Errors
    /// If the system's roots can't be had, for a proxy that is spoken to by TLS.
    pub(crate) fn trying(proxy: Proxy) -> Result<Self, Report> {
        let trust = proxy.is_tls().then(|| TrustStore::new(Vec::new())).transpose()?;
        let settings = EgressSettings::trying(proxy);
        Ok(Self(Arc::new(Inner { settings, resolver: Resolver::default(), trust, pinned: None })))
    }

    /// As the settings say, which are told in the log.
    ///
    /// # Errors
    /// If the file of a proxy's authorities can't be used.
    pub fn new(settings: EgressSettings) -> Result<Self, Report> {
        settings.log();
        let trust = TrustStore::new(settings.cert.iter().cloned().collect())?;
        let (resolver, pinned) = (Resolver::default(), None);
        Ok(Self(Arc::new(Inner { settings, resolver, trust: Some(trust), pinned })))
    }

    /// Whom a carrier's outer TLS trusts on this way: the system's roots, those of `ca_file`, and those of a proxy that inspects TLS.
    ///
    /// # Errors
    /// If a file can't be read or holds no certificate.
    pub fn trust(&self, ca_file: Option<&Path>) -> Result<TrustStore, Report> {
        TrustStore::new(self.0.settings.cert.iter().cloned().chain(ca_file.map(Path::to_owned)).collect())
    }

    /// The proxy through which a destination of TLS is reached, if it is.
    pub fn proxy_for(&self, to: &Destination) -> Option<&Arc<Proxy>> {
        self.0.settings.proxy_for(to, true)
    }

    /// A proxy that is set, and not for this destination of TLS: the skip range takes it in.
    pub(crate) fn passed_over(&self, to: &Destination) -> Option<&Arc<Proxy>> {
        self.0.settings.passed_over(to)
    }

    /// A connection for TLS to a destination, tuned as carriers need it.
    ///
    /// # Errors
    /// Which step failed, and why.
    pub async fn connect(&self, to: &Destination, deadline: Instant) -> Result<EgressStream, Report> {
        match self.proxy_for(to) {
            Some(proxy) => self.through(proxy, to, deadline).await,
            None => self.straight(to, deadline).await.map(EgressStream::tcp),
        }
    }

    /// The same for whoever dials by host and port and knows no faults of ours: the message says what was seen, and its code.
    pub fn open(
        &self,
        host: &str,
        port: u16,
    ) -> impl Future<Output = io::Result<EgressStream>> + Send + 'static + use<> {
        let (me, to) = (self.clone(), Destination::new(host, port));
        async move {
            let opened = me.connect(&to, Instant::now() + OPEN_WITHIN).await;
            opened.map_err(|report| io::Error::other(format!("{} [{}]", report.detail, report.fault.code())))
        }
    }

    /// What DNS and the system's own resolver have for a host; [`connect`](Self::connect) takes the latter where the former has none.
    pub(crate) async fn look_up(&self, host: &str, deadline: Instant) -> LookedUp {
        self.0.resolver.look_up(host, deadline).await
    }

    async fn straight(&self, to: &Destination, deadline: Instant) -> Result<TcpStream, Report> {
        let (addresses, port) = match self.0.pinned {
            Some(address) => (vec![address.ip()], address.port()),
            None => {
                let found = self.0.resolver.addresses(to.host(), deadline).await;
                (found.map_err(|why| unresolved(&to.to_string(), &why))?, to.port())
            }
        };
        let connect = |address| async move {
            let stream = TcpStream::connect(address).await?;
            tune(&stream)?;
            Ok(stream)
        };
        race::race(&addresses, port, deadline, connect).await.map_err(|dead| all_dead(to, &dead))
    }

    /// A way through a proxy, with as many questions as it takes to be let in.
    async fn through(
        &self,
        proxy: &Proxy,
        to: &Destination,
        deadline: Instant,
    ) -> Result<EgressStream, Report> {
        let fail = |fault, seen: &str| Report::new(fault, format!("{to} through the proxy {proxy}: {seen}"));
        let mut scheme = remembered(proxy);
        // Whether what is sent was asked for on this connection's behalf.
        let mut asked_for = false;
        for _ in 0..MAX_QUESTIONS {
            let authorization = match (&mut scheme, &proxy.credentials) {
                (Some(scheme), Some(source)) => Some(scheme.authorization(&source.read()?, to)),
                _ => None,
            };
            let mut stream = self.to_proxy(proxy, to, deadline).await?;
            let authorization = authorization.as_ref().map(|text| text.as_str());
            let answer = connect::ask(&mut stream, to, authorization, deadline).await;
            match answer.map_err(|(fault, seen)| fail(fault, &seen))? {
                Answer::Open(early) => {
                    remember(proxy, scheme);
                    return Ok(stream.with_early(early));
                }
                Answer::Authenticate(offers) => {
                    remember(proxy, None);
                    let offered = format!("it offers {}", offers.names());
                    let Some(best) = offers.best() else {
                        return Err(fail(Fault::ProxySchemeUnsupported, &offered));
                    };
                    if proxy.credentials.is_none() {
                        return Err(fail(Fault::ProxyCredentialsMissing, &offered));
                    }
                    if asked_for && !offers.is_stale() {
                        return Err(fail(Fault::ProxyCredentialsRefused, &offered));
                    }
                    let was_digest = proxy.has_asked_for_digest.load(Ordering::Relaxed);
                    if matches!(best, Scheme::Basic) && was_digest && !proxy.is_tls() {
                        // Somebody in between would have the password for the asking.
                        return Err(fail(
                            Fault::ProxyCredentialsRefused,
                            "it asked for Digest before, and only for Basic now",
                        ));
                    }
                    if matches!(best, Scheme::Digest(_)) {
                        proxy.has_asked_for_digest.store(true, Ordering::Relaxed);
                    }
                    (scheme, asked_for) = (Some(best), true);
                }
            }
        }
        Err(fail(Fault::ProxyCredentialsRefused, "it asks again and again"))
    }

    async fn to_proxy(
        &self,
        proxy: &Proxy,
        to: &Destination,
        deadline: Instant,
    ) -> Result<EgressStream, Report> {
        let fail = |fault, seen: &str| {
            let from = proxy.from();
            Report::new(fault, format!("{to} through the proxy {proxy} of {from}: {seen}"))
        };
        let unreachable = |report: Report| fail(Fault::ProxyUnreachable, &report.detail);
        let tcp = self.straight(proxy.at(), deadline).await.map_err(unreachable)?;
        let Some(trust) = self.0.trust.as_ref().filter(|_| proxy.is_tls()) else {
            return Ok(EgressStream::tcp(tcp));
        };
        let name = ServerName::try_from(proxy.at().host().to_owned())
            .map_err(|_| fail(Fault::ProxySettingWrong, "the proxy's host is no name"))?;
        let connector = TlsConnector::from(trust.client_config(PROXY_PROTOCOL)?);
        let shaken = timeout_at(deadline, connector.connect(name, tcp)).await;
        let shaken = shaken.map_err(|_| fail(Fault::ProxySilent, "the TLS handshake is not answered"))?;
        let tls = shaken.map_err(|error| {
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            let fault = match inner {
                Some(rustls::Error::InvalidCertificate(_)) => Fault::ProxyCertificateUntrusted,
                _ => Fault::ProxyTlsFailed,
            };
            fail(fault, &error.to_string())
        })?;
        Ok(EgressStream::tls(tls))
    }
}

/// How the last connection was let in; a copy, so that two at once never use a nonce's count twice.
fn remembered(proxy: &Proxy) -> Option<Scheme> {
    proxy.let_in.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn remember(proxy: &Proxy, scheme: Option<Scheme>) {
    *proxy.let_in.lock().unwrap_or_else(PoisonError::into_inner) = scheme;
}

/// A name that has no address.
pub(crate) fn unresolved(to: &str, why: &NoAddress) -> Report {
    match why {
        NoAddress::Unknown => Report::new(Fault::NameUnresolved, format!("{to}: there is no such name")),
        NoAddress::Empty => Report::new(Fault::NameEmpty, format!("{to}: the name has no address")),
        NoAddress::Silent(why) => Report::new(Fault::DnsSilent, format!("{to}: {why}")),
    }
}

/// One fault for all addresses where they ended alike, and each address's end in any case.
fn all_dead(to: &Destination, dead: &[Dead]) -> Report {
    // A machine without IPv6 learns nothing of a relay from its IPv6 address.
    let telling = dead.iter().filter(|dead| !dead.end.is_of_this_machine()).map(|dead| &dead.end);
    let telling: Vec<&End> = telling.collect();
    let all = |is: fn(&End) -> bool| !telling.is_empty() && telling.iter().all(|end| is(end));
    let fault = if all(|end| matches!(end, End::Refused)) {
        Fault::ConnectionRefused
    } else if dead.is_empty() || all(|end| matches!(end, End::Silent)) {
        Fault::ConnectTimeout
    } else if telling.len() > 1 && !all(|end| matches!(end, End::Failed(_))) {
        Fault::AddressesDead
    } else {
        Fault::RelayUnreachable
    };
    let end = |dead: &Dead| match &dead.end {
        End::Refused => format!("{} refuses", dead.address),
        End::Silent => format!("{} does not answer", dead.address),
        End::Failed(error) => format!("{}: {error}", dead.address),
    };
    let ends: Vec<String> = dead.iter().map(end).collect();
    Report::new(fault, format!("{to}: {}", ends.join(", ")))
}

#[cfg(test)]
mod tests;
