//! Dialling the relay: name, TCP, TLS, upgrade. Each step's failure says what it is.

use std::{io, net::Ipv6Addr, path::Path, sync::Arc, time::Duration};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    ReadAhead,
    http::RequestError,
    tune,
    websocket::{HandshakeError, WebSocketCarrier},
};
use crate::{
    fault::{Fault, Report},
    session::{Exporter, exporter, tls::provider},
};

/// Outer TLS to a relay.
pub type OuterTls = TlsStream<ReadAhead<TcpStream>>;

/// The name of HTTP/1.1 in ALPN (RFC 7301).
pub(super) const HTTP1: &[u8] = b"http/1.1";
/// Dialling takes no longer than this, all steps together.
pub(super) const DIAL_WITHIN: Duration = Duration::from_secs(10);
/// Each address of a name gets this long before the next is tried.
const ADDRESS_WITHIN: Duration = Duration::from_secs(4);

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
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
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
    config: Arc<ClientConfig>,
}

impl std::fmt::Debug for Dialler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Dialler({})", self.address)
    }
}

impl Dialler {
    /// A dialler that trusts the system's roots, and those in `ca_file`.
    ///
    /// # Errors
    /// If the file can't be read or holds no certificate, or the host is no name.
    pub fn new(address: RelayAddress, ca_file: Option<&Path>) -> Result<Self, Report> {
        let name = ServerName::try_from(address.host.clone())
            .map_err(|_| Report::new(Fault::ConfigInvalid, format!("{} is not a host name", address.host)))?;
        let roots = roots(ca_file)?;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| Report::caused_by(Fault::Internal, "TLS can't be set up", error))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![HTTP1.to_vec()];
        Ok(Self { address, name, config: Arc::new(config) })
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
            .map_err(|_| self.report(Fault::ConnectTimeout, "the websocket upgrade is not answered"))?
            .map_err(|error| self.upgrade_failed(error))?;
        Ok((carrier, exporter))
    }

    /// A connection by TLS on which this protocol is offered (ALPN, RFC 7301), and its exporter.
    ///
    /// # Errors
    /// Which step failed, and why.
    pub(super) async fn secured(
        &self,
        alpn: &[u8],
        deadline: Instant,
    ) -> Result<(OuterTls, Option<Exporter>), Report> {
        let mut config = Arc::clone(&self.config);
        if alpn != HTTP1 {
            Arc::make_mut(&mut config).alpn_protocols = vec![alpn.to_vec()];
        }
        let tcp = self.connect(deadline).await?;
        let connecting = TlsConnector::from(config).connect(self.name.clone(), ReadAhead::new(tcp));
        let tls = timeout_at(deadline, connecting)
            .await
            .map_err(|_| self.report(Fault::ConnectTimeout, "the TLS handshake is not answered"))?
            .map_err(|error| self.tls_failed(error))?;
        let exporter = exporter(tls.get_ref().1);
        Ok((tls, exporter))
    }

    pub(super) fn report(&self, fault: Fault, detail: &str) -> Report {
        Report::new(fault, format!("{}: {detail}", self.address))
    }

    async fn connect(&self, deadline: Instant) -> Result<TcpStream, Report> {
        let found =
            timeout_at(deadline, tokio::net::lookup_host((self.address.host.as_str(), self.address.port)))
                .await
                .map_err(|_| self.report(Fault::NameUnresolved, "DNS does not answer"))?
                .map_err(|error| Report::caused_by(Fault::NameUnresolved, self.address.to_string(), error))?;
        let mut last = self.report(Fault::NameUnresolved, "the name has no address");
        for address in found {
            let until = deadline.min(Instant::now() + ADDRESS_WITHIN);
            last = match timeout_at(until, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => match tune(&stream) {
                    Ok(()) => return Ok(stream),
                    Err(error) => Report::caused_by(Fault::RelayUnreachable, self.address.to_string(), error),
                },
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    Report::caused_by(Fault::ConnectionRefused, self.address.to_string(), error)
                }
                Ok(Err(error)) => Report::caused_by(Fault::RelayUnreachable, self.address.to_string(), error),
                Err(_elapsed) => self.report(Fault::ConnectTimeout, &address.to_string()),
            };
        }
        Err(last)
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
        Report::caused_by(fault, self.address.to_string(), error)
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
    // As rustls-webpki writes them: DnsName("relay.test"), IpAddress(192.0.2.1).
    let bare = |name: &String| match name.split_once('(') {
        Some((_, name)) => name.trim_end_matches(')').trim_matches('"').to_owned(),
        None => name.clone(),
    };
    Some(presented.iter().map(bare).collect())
}

/// The system's roots, and those in `ca_file`.
///
/// # Errors
/// If the file can't be read or holds no certificate.
fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, Report> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(native.certs);
    if let Some(path) = ca_file {
        let unreadable = |why: &str| Report::new(Fault::FileUnreadable, format!("{}: {why}", path.display()));
        let certificates: Vec<CertificateDer<'_>> = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect)
            .map_err(|error| unreadable(&error.to_string()))?;
        if certificates.is_empty() {
            return Err(unreadable("holds no PEM certificate"));
        }
        for certificate in certificates {
            roots.add(certificate).map_err(|error| unreadable(&error.to_string()))?;
        }
    }
    if roots.is_empty() {
        tracing::warn!(
            "this system has no certificate authorities: no relay will be trusted (install ca-certificates, or give --relay-ca-file)"
        );
    }
    Ok(roots)
}

#[cfg(test)]
mod tests;
