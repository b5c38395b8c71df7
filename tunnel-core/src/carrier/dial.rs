//! Dialling the relay: name, TCP, TLS, upgrade. Each step's failure says what it is.

use std::{io, net::Ipv6Addr, path::Path, time::Duration};

use rustls::{AlertDescription, CertificateError, pki_types::ServerName};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    ReadAhead,
    http::RequestError,
    websocket::{HandshakeError, WebSocketCarrier},
};
use crate::{
    egress::{Destination, Egress, EgressStream, TrustStore},
    fault::{Fault, Report},
    session::{Exporter, exporter},
};

/// Outer TLS to a relay, over whatever way out there is.
pub type OuterTls = TlsStream<ReadAhead<EgressStream>>;

/// The name of HTTP/1.1 in ALPN (RFC 7301).
pub(super) const HTTP1: &[u8] = b"http/1.1";
/// Dialling takes no longer than this, all steps together.
pub(super) const DIAL_WITHIN: Duration = Duration::from_secs(10);

/// What a session is for, as its dialler says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// Streams wait to go on.
    GoOn,
    /// Nothing waits.
    Begin,
}

impl Errand {
    /// Of somebody who holds so many streams that wait.
    pub fn of_parked(streams: usize) -> Self {
        if streams > 0 { Self::GoOn } else { Self::Begin }
    }
}

/// Where a relay is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayAddress {
    host: String,
    port: u16,
}

impl RelayAddress {
    /// Reads `https://host[:port]`, `wss://host[:port]` or `host[:port]`; the port is 443 where none is given.
    ///
    /// # Errors
    /// If the text is none of these.
    pub fn parse(text: &str) -> Result<Self, Report> {
        let wrong = |why: &str| Report::new(Fault::ConfigInvalid, format!("relay address {text:?}: {why}"));
        let rest = match text.split_once("://") {
            Some(("https" | "wss", rest)) => rest,
            Some((scheme, _)) => return Err(wrong(&format!("{scheme} is not https or wss"))),
            None => text,
        };
        let authority: http::uri::Authority =
            rest.trim_end_matches('/').parse().map_err(|_| wrong("not a host name and port"))?;
        if rest.contains('@') {
            return Err(wrong("not a host name and port"));
        }
        let port = match authority.as_str()[authority.host().len()..].strip_prefix(':') {
            None => 443,
            Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or_else(|| wrong("not a port"))?,
        };
        let host = match authority.host().strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').filter(|address| address.parse::<Ipv6Addr>().is_ok()),
            None => Some(authority.host()).filter(|host| !host.is_empty() && !host.contains(['[', ']'])),
        };
        let host = host.ok_or_else(|| wrong("not a host name and port"))?.to_owned();
        Ok(Self { host, port })
    }

    /// The host's name or address; IPv6 without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// `host:port`, for Host and messages.
    pub fn authority(&self) -> String {
        self.destination().to_string()
    }

    /// Where a connection to it goes.
    pub fn destination(&self) -> Destination {
        Destination::new(self.host.clone(), self.port)
    }
}

impl std::fmt::Display for RelayAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

/// Dials one relay.
#[derive(Clone)]
pub struct Dialler {
    address: RelayAddress,
    name: ServerName<'static>,
    egress: Egress,
    trust: TrustStore,
}

impl std::fmt::Debug for Dialler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Dialler({})", self.address)
    }
}

impl Dialler {
    /// A dialler that goes straight to the relay, and trusts the system's roots and those in `ca_file`.
    ///
    /// # Errors
    /// If the file can't be read or holds no certificate, or the host is no name.
    pub fn new(address: RelayAddress, ca_file: Option<&Path>) -> Result<Self, Report> {
        let trust = TrustStore::new(ca_file.map(Path::to_owned).into_iter().collect())?;
        Self::over(address, Egress::direct(), trust)
    }

    /// A dialler that takes this way out, and trusts these roots.
    ///
    /// # Errors
    /// If the host is no name.
    pub fn over(address: RelayAddress, egress: Egress, trust: TrustStore) -> Result<Self, Report> {
        let name = ServerName::try_from(address.host.clone())
            .map_err(|_| Report::new(Fault::ConfigInvalid, format!("{} is not a host name", address.host)))?;
        Ok(Self { address, name, egress, trust })
    }

    /// The proxy in the way, if there is one.
    pub(super) fn proxy(&self) -> Option<String> {
        self.egress.proxy_for(&self.address.destination()).map(ToString::to_string)
    }

    /// Where it dials.
    pub fn address(&self) -> &RelayAddress {
        &self.address
    }

    /// A new carrier, and the exporter of its outer TLS.
    ///
    /// # Errors
    /// Which step failed, and why.
    pub async fn dial(&self) -> Result<(WebSocketCarrier<OuterTls>, Option<Exporter>), Report> {
        self.dial_for(Errand::Begin).await
    }

    /// The same, and says what for: a relay that is asked by many at once lets those with streams in first.
    ///
    /// # Errors
    /// As [`dial`](Self::dial).
    pub async fn dial_for(
        &self,
        errand: Errand,
    ) -> Result<(WebSocketCarrier<OuterTls>, Option<Exporter>), Report> {
        let deadline = Instant::now() + DIAL_WITHIN;
        let (tls, exporter) = self.secured(HTTP1, deadline).await?;
        let carrier = timeout_at(deadline, WebSocketCarrier::client(tls, &self.address.authority(), errand))
            .await
            .map_err(|_| self.silent("the websocket upgrade is not answered"))?
            .map_err(|error| self.upgrade_failed(error))?;
        Ok((carrier, exporter))
    }

    /// A connection by TLS on which this protocol is offered (ALPN, RFC 7301), and its exporter.
    ///
    /// # Errors
    /// Which step failed, and why.
    pub(super) async fn secured(
        &self,
        alpn: &'static [u8],
        deadline: Instant,
    ) -> Result<(OuterTls, Option<Exporter>), Report> {
        let stream = self.egress.connect(&self.address.destination(), deadline).await?;
        let connector = TlsConnector::from(self.trust.client_config(alpn)?);
        let tls = timeout_at(deadline, connector.connect(self.name.clone(), ReadAhead::new(stream)))
            .await
            .map_err(|_| self.silent("the TLS handshake is not answered"))?
            .map_err(|error| self.tls_failed(error))?;
        let exporter = exporter(tls.get_ref().1);
        Ok((tls, exporter))
    }

    pub(super) fn report(&self, fault: Fault, detail: &str) -> Report {
        Report::new(fault, format!("{}: {detail}", self.address))
    }

    /// Where the address is, and behind which proxy, if any.
    fn place(&self) -> String {
        match self.proxy() {
            Some(proxy) => format!("{} through the proxy {proxy}", self.address),
            None => self.address.to_string(),
        }
    }

    /// The connection stands and nothing comes: a proxy that took CONNECT says nothing of what is behind it.
    fn silent(&self, what: &str) -> Report {
        let fault = match self.egress.proxy_for(&self.address.destination()) {
            Some(_) => Fault::ProxySwallows,
            None => Fault::ConnectTimeout,
        };
        Report::new(fault, format!("{}: {what}", self.place()))
    }

    fn tls_failed(&self, error: io::Error) -> Report {
        if let Some(names) = presented(&error) {
            let names = if names.is_empty() { "no name at all".to_owned() } else { names.join(", ") };
            return self.report(Fault::CertificateNameWrong, &format!("the certificate is for {names}"));
        }
        let fault = match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidCertificate(certificate)) => match certificate {
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. } => Fault::CertificateExpired,
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    Fault::CertificateNameWrong
                }
                _ => Fault::CertificateUntrusted,
            },
            // What ends TLS there speaks another version of HTTP only.
            Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
                Fault::HttpCarrierRefused
            }
            _ => Fault::TlsFailed,
        };
        Report::caused_by(fault, self.place(), error)
    }

    pub(super) fn request_failed(&self, what: &str, error: RequestError) -> Report {
        if let RequestError::Busy(delay) = &error {
            return self.report(Fault::RelayLimit, "too many at once").retry_after(*delay);
        }
        Report::caused_by(Fault::HttpCarrierRefused, format!("{}: {what}: {error}", self.address), error)
    }

    pub(super) fn upgrade_failed(&self, error: HandshakeError) -> Report {
        if let HandshakeError::Busy(delay) = &error {
            return self.report(Fault::RelayLimit, "too many at once").retry_after(*delay);
        }
        let detail = match &error {
            HandshakeError::Status(status) => format!("{}: answered {status}", self.address),
            _ => self.address.to_string(),
        };
        Report::caused_by(Fault::UpgradeRefused, detail, error)
    }
}

/// The DNS names and IP addresses of a certificate that was refused because the dialled one is not among them.
fn presented(error: &io::Error) -> Option<Vec<String>> {
    let rustls::Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. }) =
        error.get_ref()?.downcast_ref()?
    else {
        return None;
    };
    Some(bare_names(presented))
}

/// Names as people write them, of those that rustls-webpki writes: DnsName("relay.test"), IpAddress(192.0.2.1).
pub(crate) fn bare_names(presented: &[String]) -> Vec<String> {
    let bare = |name: &String| match name.split_once('(') {
        Some((_, name)) => name.trim_end_matches(')').trim_matches('"').to_owned(),
        None => name.clone(),
    };
    presented.iter().map(bare).collect()
}

#[cfg(test)]
mod tests;
