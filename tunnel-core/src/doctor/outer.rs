//! Outer TLS: whose certificate came, and what follows from it.
//!
//! The handshake is finished whatever the certificate is, and the verdict is made afterwards, from more than the certificate: a
//! relay that answers *behind* it with its identity key tells an inspecting proxy from a private authority, and the time that
//! it says tells a wrong clock from an expired certificate. Nothing that is worth anything is sent meanwhile.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Network, Pipe, Verdict, answer::Tap, certificate::Shown, clock::at, network::Again};
use crate::{
    carrier::{dial::Errand, websocket::WebSocketCarrier},
    clock::Clock,
    fault::{Fault, Report},
    session::{Exporter, Seen, exporter, look, tls::provider},
};

/// What the first carrier needs, and what is offered where that is not spoken.
const HTTP1: &[u8] = b"http/1.1";
const HTTP2: &[u8] = b"h2";
/// A handshake has this long.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(6);
/// So has each step of looking behind a certificate that is not trusted.
const BEHIND_WITHIN: Duration = Duration::from_secs(5);
/// A certificate of a longer life than a month is warned of this early.
const ENDS_SOON: Duration = Duration::from_secs(5 * 24 * 3600);
const LONG_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Outer TLS whose first bytes are overheard.
pub(super) type Tapped = Tap<TlsStream<Box<dyn Pipe>>>;

/// Outer TLS that stands.
pub(super) struct Outer {
    pub(super) stream: TlsStream<Box<dyn Pipe>>,
    pub(super) exporter: Option<Exporter>,
    /// What ends TLS there speaks HTTP/1.1, without which there is no upgrade.
    pub(super) speaks_http1: bool,
}

/// What came with the handshake.
#[derive(Clone, Debug)]
struct Came {
    chain: Vec<CertificateDer<'static>>,
    verdict: Result<(), Error>,
}

/// Takes any certificate, and remembers whether it should have.
struct Recorder {
    /// None where this machine has no authorities at all.
    judge: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
    clock: Clock,
    came: Mutex<Option<Came>>,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorder")
    }
}

impl Recorder {
    fn new(network: &Network) -> Result<Self, Report> {
        let (provider, roots) = (provider(), network.egress.trust(network.ca_file.as_deref())?.roots());
        let judge = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
        Ok(Self { judge: judge.ok(), provider, clock: network.clock.clone(), came: Mutex::default() })
    }

    fn judge(
        &self,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: SystemTime,
    ) -> Result<(), Error> {
        let (Some(judge), Some((end_entity, rest))) = (&self.judge, chain.split_first()) else {
            return Err(CertificateError::UnknownIssuer.into());
        };
        let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
        judge.verify_server_cert(end_entity, rest, name, ocsp, now).map(drop)
    }

    fn came(&self) -> Option<Came> {
        self.came.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ServerCertVerifier for Recorder {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = std::iter::once(end_entity).chain(intermediates);
        let chain: Vec<_> = chain.map(|certificate| certificate.clone().into_owned()).collect();
        let verdict = self.judge(&chain, server_name, ocsp_response, self.clock.now());
        *self.came.lock().unwrap_or_else(PoisonError::into_inner) = Some(Came { chain, verdict });
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What shows behind a certificate that is not trusted.
struct Behind {
    date: Option<SystemTime>,
    relay: Option<Result<Seen, Report>>,
}

impl Network {
    /// Outer TLS over this connection, or over a further one to what speaks HTTP/2 only.
    pub(super) async fn tls(&self, pipe: Box<dyn Pipe>, again: Again<'_>) -> Verdict<Outer> {
        match self.tls_for(pipe, HTTP1).await.failure() {
            Ok(verdict) => verdict,
            Err((report, _)) if report.fault == Fault::HttpCarrierRefused => match self.pipe(again).await {
                Ok(pipe) => {
                    let outer = self.tls_for(pipe, HTTP2).await;
                    outer.map(|outer| Outer { speaks_http1: false, ..outer })
                }
                Err(report) => Verdict::failed(report, ""),
            },
            Err((report, why)) => Verdict::failed(report, why),
        }
    }

    /// The same with one protocol that is offered (ALPN, RFC 7301).
    async fn tls_for(&self, pipe: Box<dyn Pipe>, alpn: &[u8]) -> Verdict<Outer> {
        let wrong = |error: String| Report::new(Fault::ConfigInvalid, format!("{}: {error}", self.relay));
        let name = match ServerName::try_from(self.relay.host().to_owned()) {
            Ok(name) => name,
            Err(error) => return Verdict::failed(wrong(error.to_string()), ""),
        };
        let recorder = match Recorder::new(self) {
            Ok(recorder) => Arc::new(recorder),
            Err(report) => return Verdict::failed(report, ""),
        };
        let config = ClientConfig::builder_with_provider(Arc::clone(&recorder.provider))
            .with_safe_default_protocol_versions();
        let mut config = match config {
            Ok(config) => config
                .dangerous()
                .with_custom_certificate_verifier(Arc::clone(&recorder) as Arc<dyn ServerCertVerifier>)
                .with_no_client_auth(),
            Err(error) => return Verdict::failed(Report::caused_by(Fault::Internal, "TLS", error), ""),
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        let handshake = TlsConnector::from(Arc::new(config)).connect(name.clone(), pipe);
        let stream = match timeout(HANDSHAKE_WITHIN, handshake).await {
            Err(_elapsed) => {
                let seen = format!("{}: the handshake is not answered", self.relay);
                let (fault, why) = match &self.way {
                    Some(_) => (
                        Fault::ProxySwallows,
                        "the proxy said that the way is open, and nothing comes back through it",
                    ),
                    None => (
                        Fault::TlsFailed,
                        "TCP connects, and nothing comes back: a filter may let only the connection through",
                    ),
                };
                return Verdict::failed(Report::new(fault, seen), why);
            }
            Ok(Err(error)) => {
                let fault = match error.get_ref().and_then(|inner| inner.downcast_ref()) {
                    Some(Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
                        Fault::HttpCarrierRefused
                    }
                    _ => Fault::TlsFailed,
                };
                return Verdict::failed(Report::caused_by(fault, self.relay.to_string(), error), "");
            }
            Ok(Ok(stream)) => stream,
        };
        let exporter = exporter(stream.get_ref().1);
        let Some(came) = recorder.came() else {
            return Verdict::failed(Report::new(Fault::TlsFailed, "no certificate came"), "");
        };
        let shown = came.chain.first().and_then(Shown::read);
        match &came.verdict {
            Ok(()) => self.trusted(Outer { stream, exporter, speaks_http1: true }, shown.as_ref()),
            Err(error) => {
                let behind = self.behind(stream, exporter).await;
                let at_there = |then| recorder.judge(&came.chain, &name, &[], then);
                self.untrusted(error, shown.as_ref(), &behind, at_there)
            }
        }
    }

    fn trusted(&self, outer: Outer, shown: Option<&Shown>) -> Verdict<Outer> {
        let Some(shown) = shown else { return Verdict::ok(outer, "the certificate is trusted") };
        let left = shown.until.duration_since(self.clock.now()).unwrap_or_default();
        let life = shown.until.duration_since(shown.from).unwrap_or_default();
        let seen = format!("a certificate of {}, {}", shown.issuer, shown.life());
        if life > LONG_LIFE && left < ENDS_SOON {
            return Verdict::warning(outer, Report::new(Fault::CertificateEnds, seen), "");
        }
        Verdict::ok(outer, seen)
    }

    /// What shows behind a certificate that is not trusted. Nothing is sent but the upgrade and a first message.
    async fn behind(&self, stream: TlsStream<Box<dyn Pipe>>, outer: Option<Exporter>) -> Behind {
        let (tap, tape) = Tap::new(stream);
        let authority = self.relay.authority();
        let upgrade = WebSocketCarrier::client(tap, &authority, Errand::Begin);
        let mut relay = None;
        if let Ok(Ok(mut carrier)) = timeout(BEHIND_WITHIN, upgrade).await {
            relay = timeout(BEHIND_WITHIN, look(&mut carrier, outer, self.pin, 0)).await.ok();
        }
        Behind { date: tape.date(), relay }
    }

    fn untrusted<T>(
        &self,
        error: &Error,
        shown: Option<&Shown>,
        behind: &Behind,
        at_there: impl Fn(SystemTime) -> Result<(), Error>,
    ) -> Verdict<T> {
        let issuer = shown.map_or("an unknown authority", |shown| shown.issuer.as_str());
        let Error::InvalidCertificate(certificate) = error else {
            return Verdict::failed(
                Report::new(Fault::CertificateUntrusted, format!("{}: {error}", self.relay)),
                "",
            );
        };
        match certificate {
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => self.out_of_time(shown, behind, at_there),
            CertificateError::NotValidForName => {
                Verdict::failed(Report::new(Fault::CertificateNameWrong, self.relay.host()), "")
            }
            CertificateError::NotValidForNameContext { presented, .. } => {
                let names = crate::carrier::dial::bare_names(presented);
                let names = if names.is_empty() { "no name at all".to_owned() } else { names.join(", ") };
                let seen = format!("{}: the certificate is for {names}, by {issuer}", self.relay.host());
                Verdict::failed(Report::new(Fault::CertificateNameWrong, seen), "")
            }
            _ => self.unknown_authority(issuer, behind),
        }
    }

    fn out_of_time<T>(
        &self,
        shown: Option<&Shown>,
        behind: &Behind,
        at_there: impl Fn(SystemTime) -> Result<(), Error>,
    ) -> Verdict<T> {
        let now = self.clock.now();
        let life = shown.map_or_else(String::new, Shown::life);
        match behind.date {
            Some(there) if at_there(there).is_ok() => Verdict::failed(
                Report::new(
                    Fault::ClockWrong,
                    format!("it is {} here and {} at the relay", at(now), at(there)),
                ),
                format!("the certificate is {life}: good by the relay's clock, and not by this one"),
            ),
            there => {
                let compared = there.map_or_else(
                    || "nothing that answers says another time".to_owned(),
                    |there| format!("it is {} at the relay", at(there)),
                );
                Verdict::failed(
                    Report::new(Fault::CertificateExpired, format!("{life}; it is {} here", at(now))),
                    compared,
                )
            }
        }
    }

    fn unknown_authority<T>(&self, issuer: &str, behind: &Behind) -> Verdict<T> {
        let host = self.relay.host();
        let seen = format!("the certificate that came for {host} is by {issuer}");
        match &behind.relay {
            Some(Ok(Seen { ends_here: true })) => Verdict::failed(
                Report::new(Fault::CertificateUntrusted, seen),
                "the relay's identity key answers, and this TLS connection ends there: it is the relay's own authority, which this machine was not given",
            ),
            Some(Ok(Seen { ends_here: false })) => Verdict::failed(
                Report::new(Fault::TlsIntercepted, format!("{seen}, which this machine does not know")),
                "the relay's identity key answers, and this TLS connection ends before it: somebody in between reads outer TLS",
            ),
            Some(Err(report)) if report.fault == Fault::RelayKeyMismatch => Verdict::failed(
                report.clone(),
                format!("{seen}, and behind it is a relay with another identity key"),
            ),
            _ => Verdict::failed(
                Report::new(Fault::CertificateUntrusted, seen),
                "no relay shows behind it: it may be a proxy's own page, or another server",
            ),
        }
    }
}
