//! The same over HTTP/2, frame by frame (RFC 9113), at a proxy in front of the real kube-apiserver: what no library would send. Each request is
//! answered as it must be or ended, and kube-apiserver's audit log has none of them.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use data_encoding::BASE64;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use serde_json::Value;
use towline_tunnel::{fault::Fault, ids::StreamKey};

use super::WRITTEN_WITHIN;
use crate::{
    process::pause,
    stage::{Proxy, Stage},
    table::TOKEN_LIFETIME,
};

/// Nobody has given them anything.
const USER: &str = "harry";
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// The only stream of each connection.
const STREAM: u32 = 1;

/// Header fields as they are sent, pseudo-headers first.
type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// What is changed in a sound request, in words and fields, and what must come of it.
type Change<'a> = (&'a str, &'a [(&'a str, &'a str)], Expected);

/// What came of a request.
#[derive(Debug)]
enum Came {
    /// An answer with this body.
    Answer(Vec<u8>),
    /// The stream or the connection was ended, without an answer.
    Ended,
}

/// What must come of it.
#[derive(Clone, Copy, Debug)]
enum Expected {
    /// A `Status` with this code and fault.
    Refused(u16, Fault),
    /// No answer: the request is malformed (RFC 9113, section 8.1.1).
    Malformed,
}

/// A proxy's endpoint, as a context of it reaches it.
struct Endpoint {
    address: String,
    /// `/clusters/ID`.
    prefix: String,
    config: Arc<ClientConfig>,
}

/// Asks everything.
///
/// # Errors
/// What was answered otherwise than it must be, or reached kube-apiserver.
pub fn run(stage: &Stage) -> anyhow::Result<()> {
    stage.let_in(USER)?;
    let proxy = stage.proxy("over-h2", &stage.tokens(USER, &[], TOKEN_LIFETIME)?)?;
    let endpoint = Endpoint::of(stage, &proxy)?;
    let canary = format!("canary-{}", StreamKey::random()).to_lowercase();
    endpoint.is_served("/version")?;
    let mut faults = Vec::new();
    for (what, changes, expected) in rows() {
        let fields = endpoint.fields(&format!("/api/v1/namespaces/{canary}/pods"), &changes);
        let checked = endpoint.ask(&fields).and_then(|came| check(&came, expected));
        if let Err(error) = checked {
            faults.push(format!("{what}: {error:#}"));
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));

    // What is asked for last is in the log last.
    let last = format!("/version?after={canary}-all");
    endpoint.is_served(&last)?;
    let begun = Instant::now();
    loop {
        let log = fs::read_to_string(stage.cluster.audit_log())?;
        let asked = format!("/namespaces/{canary}/");
        ensure!(!log.contains(&asked), "a hostile request reached kube-apiserver");
        if log.contains(&last) {
            return Ok(());
        }
        ensure!(begun.elapsed() < WRITTEN_WITHIN, "the sound request is not in the audit log");
        pause(Duration::from_millis(100));
    }
}

/// What is changed in a sound request: fields that take the place of those of that name, or come behind the others.
fn rows() -> Vec<(String, Fields, Expected)> {
    let acting = |status, fault| Expected::Refused(status, fault);
    let (denied, malformed) = (acting(403, Fault::ActingDenied), acting(400, Fault::ActingMalformed));
    let origin = Expected::Refused(403, Fault::LocalOriginRefused);
    let all: [Change<'_>; 28] = [
        ("T1", &[("impersonate-user", "carol")], denied),
        ("T1 twice", &[("impersonate-user", "carol"), ("impersonate-user", "dave")], malformed),
        ("T1 a group alone", &[("impersonate-group", "dev")], malformed),
        ("T1 a uid alone", &[("impersonate-uid", "7")], malformed),
        ("T1 an extra alone", &[("impersonate-extra-scopes", "a")], malformed),
        (
            "T1 system:masters",
            &[("impersonate-user", "carol"), ("impersonate-group", "system:masters")],
            acting(403, Fault::ImpersonationUnsupported),
        ),
        ("T1 in capitals", &[("Impersonate-User", "carol")], Expected::Malformed),
        ("T1 behind CR LF", &[("accept", "a\r\nimpersonate-user: carol")], Expected::Malformed),
        ("T11 LF", &[("accept", "a\nb")], Expected::Malformed),
        ("T11 CR", &[("accept", "a\rb")], Expected::Malformed),
        ("T11 NUL", &[("accept", "a\0b")], Expected::Malformed),
        ("T11 CR LF in a name", &[("a\r\nb", "c")], Expected::Malformed),
        ("T11 white space in a name", &[("a b", "c")], Expected::Malformed),
        ("T11 a colon in a name", &[("a:b", "c")], Expected::Malformed),
        ("T11 a name that is empty", &[("", "c")], Expected::Malformed),
        ("T11 CR LF in the path", &[(":path", "/api HTTP/1.1\r\na: b")], Expected::Malformed),
        ("T11 white space in the path", &[(":path", "/api /v1")], Expected::Malformed),
        ("T11 CR LF in the authority", &[(":authority", "a\r\nb: c")], Expected::Malformed),
        ("T11 CR LF in the method", &[(":method", "GET / HTTP/1.1\r\na:")], Expected::Malformed),
        ("T11 another pseudo-header", &[(":protocol-of-mine", "c")], Expected::Malformed),
        ("T11 Transfer-Encoding", &[("transfer-encoding", "chunked")], Expected::Malformed),
        ("T11 Connection", &[("connection", "impersonate-user")], Expected::Malformed),
        ("T11 Upgrade", &[("upgrade", "h2c")], Expected::Malformed),
        ("T11 a length without a body", &[("content-length", "5")], Expected::Malformed),
        ("T11 two lengths", &[("content-length", "0"), ("content-length", "5")], Expected::Malformed),
        ("T11 another host", &[("host", "elsewhere")], origin),
        ("T11 two hosts", &[("host", "127.0.0.1"), ("host", "elsewhere")], origin),
        ("T11 another authority", &[(":authority", "169.254.169.254")], origin),
    ];
    let owned = |fields: &[(&str, &str)]| {
        fields.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect()
    };
    all.into_iter().map(|(what, changes, expected)| (what.to_owned(), owned(changes), expected)).collect()
}

fn check(came: &Came, expected: Expected) -> anyhow::Result<()> {
    match (came, expected) {
        (Came::Ended, Expected::Malformed) => Ok(()),
        (Came::Answer(body), Expected::Refused(status, fault)) => {
            let text = String::from_utf8_lossy(body);
            let read: Value = serde_json::from_slice(body).with_context(|| format!("no Status: {text}"))?;
            let code = &read["details"]["causes"][0]["reason"];
            ensure!(
                read["code"] == status && code == fault.code(),
                "{text}, and not {status} {}",
                fault.code()
            );
            Ok(())
        }
        (Came::Answer(body), Expected::Malformed) => {
            bail!("it was answered: {}", String::from_utf8_lossy(body))
        }
        (Came::Ended, expected) => bail!("it was ended, and not {expected:?}"),
    }
}

impl Endpoint {
    /// As a proxy's kubeconfig says.
    fn of(stage: &Stage, proxy: &Proxy) -> anyhow::Result<Self> {
        let mut view = stage.cluster.kubectl();
        view.env("KUBECONFIG", &proxy.kubeconfig).args(["config", "view", "--raw", "-o", "json"]);
        let output = view.output()?;
        let config: Value = serde_json::from_slice(&output.stdout).context("kubectl config view")?;
        let decoded = |value: &Value| -> anyhow::Result<Vec<u8>> {
            Ok(BASE64.decode(value.as_str().context("it is not in the kubeconfig")?.as_bytes())?)
        };
        let (cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&decoded(&cluster["certificate-authority-data"])?)?)?;
        let certificate = CertificateDer::from_pem_slice(&decoded(&user["client-certificate-data"])?)?;
        let key = PrivateKeyDer::from_pem_slice(&decoded(&user["client-key-data"])?)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let server = cluster["server"].as_str().and_then(|server| server.strip_prefix("https://"));
        let (address, path) = server.and_then(|server| server.split_once('/')).context("no server")?;
        Ok(Self { address: address.to_owned(), prefix: format!("/{path}"), config: Arc::new(tls) })
    }

    fn fields(&self, path: &str, changes: &Fields) -> Fields {
        let path = format!("{}{path}", self.prefix);
        let sound =
            [(":method", "GET"), (":scheme", "https"), (":authority", &self.address), (":path", &path)];
        let mut fields: Fields =
            sound.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect();
        for (name, value) in changes {
            match fields.iter_mut().find(|(of, _)| of == name && name.starts_with(b":")) {
                Some((_, old)) => old.clone_from(value),
                None => fields.push((name.clone(), value.clone())),
            }
        }
        fields
    }

    fn is_served(&self, path: &str) -> anyhow::Result<()> {
        match self.ask(&self.fields(path, &Fields::new()))? {
            Came::Answer(body) if String::from_utf8_lossy(&body).contains("gitVersion") => Ok(()),
            other => bail!("a sound request: {other:?}"),
        }
    }

    /// One request on a connection of its own.
    fn ask(&self, fields: &Fields) -> anyhow::Result<Came> {
        let tcp = TcpStream::connect(&self.address)?;
        tcp.set_read_timeout(Some(ANSWER_WITHIN))?;
        let name = ServerName::try_from("127.0.0.1")?;
        let mut stream = StreamOwned::new(ClientConnection::new(Arc::clone(&self.config), name)?, tcp);
        let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        sent.extend(frame(SETTINGS, 0, 0, &[]));
        let block: Vec<u8> = fields.iter().flat_map(|(name, value)| literal(name, value)).collect();
        sent.extend(frame(HEADERS, END_HEADERS | END_STREAM, STREAM, &block));
        stream.write_all(&sent)?;
        let mut body = Vec::new();
        loop {
            let mut head = [0; 9];
            if let Err(error) = stream.read_exact(&mut head) {
                let waited = [std::io::ErrorKind::WouldBlock, std::io::ErrorKind::TimedOut];
                ensure!(!waited.contains(&error.kind()), "nothing came in {ANSWER_WITHIN:?}");
                return Ok(Came::Ended);
            }
            let [a, b, c, kind, flags, on @ ..] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            stream.read_exact(&mut payload)?;
            match (kind, u32::from_be_bytes(on)) {
                (RST_STREAM, STREAM) | (GOAWAY, _) => return Ok(Came::Ended),
                (DATA, STREAM) => {
                    body.extend(payload);
                    if flags & END_STREAM != 0 {
                        return Ok(Came::Answer(body));
                    }
                }
                (HEADERS, STREAM) if flags & END_STREAM != 0 => return Ok(Came::Answer(body)),
                _ => {}
            }
        }
    }
}

/// RFC 9113, section 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A field that is in no table, uncompressed (RFC 7541, section 6.2.2).
fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        length(text.len(), &mut bytes);
        bytes.extend(text);
    }
    bytes
}

/// An integer with a prefix of seven bits (RFC 7541, section 5.1).
fn length(of: usize, bytes: &mut Vec<u8>) {
    const FULL: usize = 127;
    let low = |number: usize| u8::try_from(number).unwrap_or(u8::MAX);
    if of < FULL {
        return bytes.push(low(of));
    }
    bytes.push(low(FULL));
    let mut rest = of - FULL;
    while rest >= 128 {
        bytes.push(low(rest % 128 + 128));
        rest /= 128;
    }
    bytes.push(low(rest));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_written_as_hpack_has_them() {
        let written = |of| {
            let mut bytes = Vec::new();
            length(of, &mut bytes);
            bytes
        };
        assert_eq!(written(10), [10]);
        assert_eq!(written(127), [127, 0]);
        assert_eq!(written(1337), [127, 186, 9]);
    }
}
