//! Making a connection to kube-apiserver: name, TCP, TLS, HTTP/1.1.

use std::{io, time::Duration};

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::task::AbortOnDropHandle;
use towline_tunnel::{
    carrier::{ReadAhead, tune},
    fault::{Fault, Report},
};

use super::{Apiserver, Face, pool::Line};

/// Name, TCP and TLS together; the caller waits for it.
const DIAL_WITHIN: Duration = Duration::from_secs(10);
/// Each address of a name gets this long before the next is tried.
const ADDRESS_WITHIN: Duration = Duration::from_secs(4);
/// A peer that is gone without a word is noticed by TCP within this and [`tune`]'s timeout.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(15);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
/// More headers than any answer of kube-apiserver has; backends behind `…/proxy` have more of them than it has.
const MAX_HEADERS: usize = 256;
/// What one connection reads ahead.
const READ_AHEAD: usize = 128 * 1024;

impl Apiserver {
    /// A connection with this face.
    pub(super) async fn open(&self, face: &Face) -> Result<Line, Report> {
        let deadline = Instant::now() + DIAL_WITHIN;
        let late =
            |what: &str| Report::new(Fault::ApiserverUnreachable, format!("{}: {what}", self.address()));
        let tcp = self.connect(deadline).await?;
        let connector = TlsConnector::from(face.tls.config());
        let tls = timeout_at(deadline, connector.connect(self.name.clone(), ReadAhead::new(tcp)))
            .await
            .map_err(|_| late("the TLS handshake is not answered"))?
            .map_err(|error| self.tls_failed(error))?;
        self.speak(tls).await
    }

    async fn speak(&self, tls: TlsStream<ReadAhead<TcpStream>>) -> Result<Line, Report> {
        let (sender, connection) = http1::Builder::new()
            .max_headers(MAX_HEADERS)
            .max_buf_size(READ_AHEAD)
            .handshake(TokioIo::new(tls))
            .await
            .map_err(|error| self.cut(error))?;
        let address = self.address();
        let driver = tokio::spawn(async move {
            // Whoever waits for an answer learns of the error, too.
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, apiserver = address, "a connection to kube-apiserver ended");
            }
        });
        Ok(Line::new(sender, AbortOnDropHandle::new(driver)))
    }

    async fn connect(&self, deadline: Instant) -> Result<TcpStream, Report> {
        let failed = |error: io::Error| Report::caused_by(Fault::ApiserverUnreachable, self.address(), error);
        let found = timeout_at(deadline, tokio::net::lookup_host((self.host.as_str(), self.port)))
            .await
            .map_err(|_| failed(io::Error::other("DNS does not answer")))?
            .map_err(failed)?;
        let mut last = failed(io::Error::other("the name has no address"));
        for address in found {
            let until = deadline.min(Instant::now() + ADDRESS_WITHIN);
            last = match timeout_at(until, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => match tune(&stream).and_then(|()| keep_alive(&stream)) {
                    Ok(()) => return Ok(stream),
                    Err(error) => failed(error),
                },
                Ok(Err(error)) => failed(error),
                Err(_elapsed) => failed(io::Error::from(io::ErrorKind::TimedOut)),
            };
        }
        Err(last)
    }

    fn tls_failed(&self, error: io::Error) -> Report {
        let is_certificate = matches!(
            error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()),
            Some(rustls::Error::InvalidCertificate(_))
        );
        let fault = if is_certificate { Fault::ApiserverUntrusted } else { Fault::ApiserverUnreachable };
        Report::caused_by(fault, self.address(), error)
    }
}

fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}
