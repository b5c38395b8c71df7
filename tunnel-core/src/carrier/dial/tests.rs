use std::{path::PathBuf, sync::Arc};

use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::{ids::StreamKey, session::tls::provider};

/// A CA file that is removed with its folder.
struct Files(PathBuf);

impl Files {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("towline-dial-{}", StreamKey::random()));
        std::fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

struct Authority {
    params: rcgen::CertificateParams,
    key: rcgen::KeyPair,
}

impl Authority {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Self { params, key: rcgen::KeyPair::generate().unwrap() }
    }

    fn pem(&self) -> String {
        self.params.self_signed(&self.key).unwrap().pem()
    }

    fn server(&self, name: &str, until: i32) -> TlsAcceptor {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let issuer = rcgen::Issuer::from_params(&self.params, &self.key);
        let leaf = params.signed_by(&key, &issuer).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// What dialling a server with this certificate gives; the server ends after one connection.
async fn dial(acceptor: TlsAcceptor, ca: Option<&Path>) -> Report {
    dial_answered(acceptor, ca, "404 Not Found\r\n").await
}

/// The same, with what the server answers.
async fn dial_answered(acceptor: TlsAcceptor, ca: Option<&Path>, answer: &str) -> Report {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let dialler = Dialler::new(RelayAddress::parse(&format!("localhost:{port}")).unwrap(), ca).unwrap();
    let serve = async {
        let (tcp, _) = listener.accept().await.unwrap();
        if let Ok(mut tls) = acceptor.accept(tcp).await {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let mut request = [0; 4096];
            assert!(tls.read(&mut request).await.unwrap() > 0);
            let answer = format!("HTTP/1.1 {answer}Content-Length: 0\r\n\r\n");
            tls.write_all(answer.as_bytes()).await.unwrap();
        }
    };
    let (dialled, ()) = tokio::join!(dialler.dial(), serve);
    dialled.expect_err("nobody here is a relay")
}

#[tokio::test]
async fn t30_a_bad_certificate_fails_closed_and_says_which_fault_it_has() {
    let (files, authority) = (Files::new(), Authority::new());
    let ca = files.write("ca.pem", &authority.pem());
    let untrusted = dial(authority.server("localhost", 4000), None).await;
    assert_eq!(untrusted.fault, Fault::CertificateUntrusted, "{untrusted}");
    let expired = dial(authority.server("localhost", 2021), Some(&ca)).await;
    assert_eq!(expired.fault, Fault::CertificateExpired, "{expired}");
    let misnamed = dial(authority.server("other.example", 4000), Some(&ca)).await;
    assert_eq!(misnamed.fault, Fault::CertificateNameWrong, "{misnamed}");
    assert!(misnamed.to_string().contains("the certificate is for other.example)"), "{misnamed}");
    // An interceptor with an authority of its own, which this machine was not told to trust.
    let intercepted = dial(Authority::new().server("localhost", 4000), Some(&ca)).await;
    assert_eq!(intercepted.fault, Fault::CertificateUntrusted, "{intercepted}");
}

#[tokio::test]
async fn a_web_server_that_is_no_relay_is_named_as_such() {
    let (files, authority) = (Files::new(), Authority::new());
    let ca = files.write("ca.pem", &authority.pem());
    let report = dial(authority.server("localhost", 4000), Some(&ca)).await;
    assert_eq!(report.fault, Fault::UpgradeRefused);
    assert!(report.to_string().contains("404"), "{report}");
}

#[tokio::test]
async fn a_relay_that_is_busy_says_when_to_come_back() {
    let (files, authority) = (Files::new(), Authority::new());
    let ca = files.write("ca.pem", &authority.pem());
    let server = || authority.server("localhost", 4000);
    for (answer, fault, seconds) in [
        ("503 Service Unavailable\r\nRetry-After: 7\r\n", Fault::RelayLimit, 7),
        ("429 Too Many Requests\r\nRetry-After: 999999999\r\n", Fault::RelayLimit, 600),
        ("503 Service Unavailable\r\nRetry-After: soon\r\n", Fault::UpgradeRefused, 0),
        ("503 Service Unavailable\r\n", Fault::UpgradeRefused, 0),
        ("404 Not Found\r\nRetry-After: 7\r\n", Fault::UpgradeRefused, 0),
    ] {
        let report = dial_answered(server(), Some(&ca), answer).await;
        assert_eq!((report.fault, report.delay()), (fault, Duration::from_secs(seconds)), "{answer}");
    }
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("127.0.0.1:{}", listener.local_addr().unwrap().port());
    drop(listener);
    let dialler = Dialler::new(RelayAddress::parse(&address).unwrap(), None).unwrap();
    assert_eq!(dialler.dial().await.unwrap_err().fault, Fault::ConnectionRefused);
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_named_as_such() {
    let dialler = Dialler::new(RelayAddress::parse("no-such-host.invalid").unwrap(), None).unwrap();
    assert_eq!(dialler.dial().await.unwrap_err().fault, Fault::NameUnresolved);
}

#[test]
fn addresses_are_read_strictly() {
    let port = |text: &str| RelayAddress::parse(text).unwrap().authority();
    assert_eq!(port("relay.example"), "relay.example:443");
    assert_eq!(port("https://relay.example/"), "relay.example:443");
    assert_eq!(port("wss://relay.example:8443"), "relay.example:8443");
    assert_eq!(port("https://[::1]:8443"), "[::1]:8443");
    for bad in [
        "",
        "http://relay.example",
        "https://",
        "https://a@b",
        "https://a b",
        "https://a/path",
        "a:",
        "a:99999",
        "[]",
        "*[]",
        "[::1",
        "[relay.example]",
    ] {
        assert!(RelayAddress::parse(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_ca_file_without_certificates_is_refused() {
    let files = Files::new();
    let path = files.write("ca.pem", "nothing");
    let report = Dialler::new(RelayAddress::parse("a").unwrap(), Some(&path)).unwrap_err();
    assert_eq!(report.fault, Fault::FileUnreadable);
    assert!(Dialler::new(RelayAddress::parse("a").unwrap(), Some(Path::new("/nowhere"))).is_err());
}

#[test]
fn silence_behind_a_proxy_is_told_as_the_proxys() {
    use crate::egress::{EgressSettings, ProxyArgs, SkipRange, Sources};

    let flags = ProxyArgs {
        proxy_https: Some("http://me:canary@proxy.test:3128".to_owned().into()),
        ..ProxyArgs::default()
    };
    let silence = |skipped: &str| {
        let (never, _) = SkipRange::parse(skipped, crate::egress::BareNames::Exact);
        let sources = Sources { flags: &flags, written: None, environment: &|_| None, never };
        let egress = Egress::new(EgressSettings::resolve(&sources).unwrap()).unwrap();
        let trust = egress.trust(None).unwrap();
        let dialler = Dialler::over(RelayAddress::parse("relay.test").unwrap(), egress, trust).unwrap();
        dialler.silent("the TLS handshake is not answered")
    };
    let report = silence("");
    let said = report.to_string();
    assert_eq!(report.fault, Fault::ProxySwallows);
    assert!(said.contains("http://proxy.test:3128") && !said.contains("canary"), "{said}");
    assert_eq!(silence("relay.test").fault, Fault::ConnectTimeout);
}
