use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_util::task::AbortOnDropHandle;

use super::*;

/// A proxy that answers its connections as it was told, one after the other, and keeps what it was asked. A connection that was let
/// in echoes.
struct Scripted {
    port: u16,
    asked: Arc<std::sync::Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
    _task: AbortOnDropHandle<()>,
}

const OPEN: &str = "HTTP/1.1 200 OK\r\n\r\n";
const WANTS_BASIC: &str = "HTTP/1.1 407 no\r\nProxy-Authenticate: Basic realm=\"p\"\r\n\r\n";

fn wants_digest(nonce: &str, more: &str) -> String {
    format!(
        "HTTP/1.1 407 no\r\nProxy-Authenticate: Digest realm=\"p\", nonce=\"{nonce}\", qop=\"auth\"{more}\r\n\r\n"
    )
}

impl Scripted {
    async fn new(answers: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let answers: Vec<String> = answers.iter().map(|answer| (*answer).to_owned()).collect();
        let asked: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
        let connections = Arc::new(AtomicUsize::new(0));
        let (notes, count) = (Arc::clone(&asked), Arc::clone(&connections));
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            for answer in answers {
                let (mut io, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let mut request = Vec::new();
                // A TLS handshake (RFC 8446, section 5.1) has no empty line at its end.
                while !request.ends_with(b"\r\n\r\n") && request.first() != Some(&0x16) {
                    if io.read_buf(&mut request).await.unwrap() == 0 {
                        break;
                    }
                }
                notes.lock().unwrap().push(String::from_utf8_lossy(&request).into_owned());
                io.write_all(answer.as_bytes()).await.unwrap();
                if answer.starts_with(OPEN) {
                    let (mut read, mut write) = io.into_split();
                    tokio::io::copy(&mut read, &mut write).await.unwrap();
                }
            }
        }));
        Self { port, asked, connections, _task: task }
    }

    fn egress(&self, login: &str) -> Egress {
        egress(&format!("http://{login}127.0.0.1:{}", self.port))
    }

    /// What `Proxy-Authorization` said, connection by connection.
    fn authorizations(&self) -> Vec<Option<String>> {
        let of = |request: &String| {
            let mut lines = request.lines();
            lines.find_map(|line| Some(line.strip_prefix("Proxy-Authorization: ")?.to_owned()))
        };
        self.asked.lock().unwrap().iter().map(of).collect()
    }
}

fn egress(proxy: &str) -> Egress {
    let flags = ProxyArgs { proxy_https: Some(proxy.to_owned().into()), ..ProxyArgs::default() };
    let sources =
        Sources { flags: &flags, written: None, environment: &|_| None, never: SkipRange::default() };
    Egress::new(EgressSettings::resolve(&sources).unwrap()).unwrap()
}

async fn connect(egress: &Egress) -> Result<EgressStream, Report> {
    let deadline = Instant::now() + Duration::from_secs(5);
    egress.connect(&Destination::new("relay.test", 443), deadline).await
}

#[tokio::test]
async fn bytes_go_both_ways_and_the_proxy_is_given_the_name() {
    let proxy = Scripted::new(&[&format!("{OPEN}early")]).await;
    let mut stream = connect(&proxy.egress("")).await.unwrap();
    stream.write_all(b"-late").await.unwrap();
    let mut read = [0; 10];
    stream.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"early-late");
    assert!(proxy.asked.lock().unwrap()[0].starts_with("CONNECT relay.test:443 HTTP/1.1\r\n"));
}

#[tokio::test]
async fn a_password_is_sent_only_when_asked_for_and_then_at_once() {
    let proxy = Scripted::new(&[WANTS_BASIC, OPEN, OPEN]).await;
    let egress = proxy.egress("me:secret@");
    drop(connect(&egress).await.unwrap());
    let basic = Some("Basic bWU6c2VjcmV0".to_owned());
    assert_eq!(proxy.authorizations(), [None, basic.clone()]);
    drop(connect(&egress).await.unwrap());
    assert_eq!(proxy.authorizations(), [None, basic.clone(), basic]);
}

#[tokio::test]
async fn each_end_of_a_login_has_a_fault_of_its_own() {
    let negotiate = "HTTP/1.1 407 no\r\nProxy-Authenticate: Negotiate\r\nProxy-Authenticate: NTLM\r\n\r\n";
    for (answers, login, fault, seen) in [
        (vec![WANTS_BASIC], "", Fault::ProxyCredentialsMissing, "it offers Basic"),
        (vec![WANTS_BASIC, WANTS_BASIC], "me:canary@", Fault::ProxyCredentialsRefused, "it offers Basic"),
        (vec![negotiate], "me:canary@", Fault::ProxySchemeUnsupported, "it offers Negotiate, NTLM"),
        (vec![negotiate], "", Fault::ProxySchemeUnsupported, "it offers Negotiate, NTLM"),
    ] {
        let proxy = Scripted::new(&answers).await;
        let report = connect(&proxy.egress(login)).await.unwrap_err();
        assert_eq!(report.fault, fault, "{report}");
        let said = report.to_string();
        assert!(said.contains(seen) && said.contains("relay.test:443"), "{said}");
        assert!(
            !said.contains("canary") && said.contains(&format!("http://127.0.0.1:{}", proxy.port)),
            "{said}"
        );
        assert_eq!(proxy.connections.load(Ordering::SeqCst), answers.len());
    }
}

#[tokio::test]
async fn a_nonce_is_used_again_and_one_that_is_stale_is_replaced() {
    let (first, stale) = (wants_digest("one", ""), wants_digest("two", ", stale=true"));
    let proxy = Scripted::new(&[&first, OPEN, OPEN, &stale, OPEN]).await;
    let egress = proxy.egress("me:canary@");
    for _ in 0..3 {
        drop(connect(&egress).await.unwrap());
    }
    let sent: Vec<String> = proxy.authorizations().into_iter().flatten().collect();
    let used: Vec<(bool, bool)> =
        sent.iter().map(|value| (value.contains("nonce=\"one\""), value.contains("nc=00000001"))).collect();
    assert_eq!(used, [(true, true), (true, false), (true, false), (false, true)], "{sent:?}");
    assert!(!sent.concat().contains("canary"));
}

#[tokio::test]
async fn a_wrong_password_ends_where_nonces_are_always_stale() {
    let stale = wants_digest("n", ", stale=true");
    let proxy = Scripted::new(&[&stale, &stale, &stale, &stale]).await;
    let report = connect(&proxy.egress("me:canary@")).await.unwrap_err();
    assert_eq!(report.fault, Fault::ProxyCredentialsRefused, "{report}");
}

#[tokio::test]
async fn a_proxy_that_is_not_there_is_told_with_its_setting() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let report = connect(&egress(&format!("http://me:canary@127.0.0.1:{port}"))).await.unwrap_err();
    let said = report.to_string();
    assert_eq!(report.fault, Fault::ProxyUnreachable, "{said}");
    assert!(said.contains("--proxy-https") && said.contains("refuses") && !said.contains("canary"), "{said}");
    let opened = egress(&format!("http://127.0.0.1:{port}")).open("idp.test", 443).await;
    let said = opened.unwrap_err().to_string();
    assert!(said.contains("TL-NET-013") && said.contains("idp.test:443"), "{said}");
}

#[tokio::test]
async fn a_proxy_that_speaks_no_tls_and_one_that_wants_it_are_told_apart() {
    let proxy = Scripted::new(&["HTTP/1.1 400 Bad Request\r\n\r\n"]).await;
    let report = connect(&egress(&format!("https://127.0.0.1:{}", proxy.port))).await.unwrap_err();
    assert_eq!(report.fault, Fault::ProxyTlsFailed, "{report}");
    let proxy = Scripted::new(&["\u{15}\u{3}\u{3}\u{0}\u{2}\u{2}\u{46}"]).await;
    let report = connect(&proxy.egress("")).await.unwrap_err();
    assert!(report.fault == Fault::ProxyNotHttp && report.to_string().contains("https://"), "{report}");
}

#[test]
fn addresses_that_ended_alike_have_one_fault_and_each_is_named() {
    let dead = |last: u8, end| Dead { address: ([192, 0, 2, last], 443).into(), end };
    let failed = || End::Failed(io::Error::other("no route"));
    let unreachable = || End::Failed(io::ErrorKind::NetworkUnreachable.into());
    let to = Destination::new("relay.test", 443);
    for (ends, fault) in [
        (vec![dead(1, End::Refused), dead(2, End::Refused)], Fault::ConnectionRefused),
        (vec![dead(1, End::Silent), dead(2, End::Silent)], Fault::ConnectTimeout),
        (vec![dead(1, failed())], Fault::RelayUnreachable),
        (vec![dead(1, failed()), dead(2, failed())], Fault::RelayUnreachable),
        (vec![dead(1, End::Refused), dead(2, End::Silent)], Fault::AddressesDead),
        (vec![dead(1, unreachable()), dead(2, End::Silent)], Fault::ConnectTimeout),
        (vec![dead(1, unreachable())], Fault::RelayUnreachable),
    ] {
        let report = all_dead(&to, &ends);
        assert_eq!(report.fault, fault, "{report}");
        for one in &ends {
            assert!(report.to_string().contains(&one.address.to_string()), "{report}");
        }
    }
}
