use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use tokio::{io::duplex, time::timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn now() -> SystemTime {
    SystemTime::now()
}

/// A self-signed certificate and its key, written as `NAME.pem` and `NAME-key.pem`.
fn write_pair(
    folder: &Path,
    name: &str,
    not_before: SystemTime,
    not_after: SystemTime,
) -> (PathBuf, PathBuf) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["relay.test".to_owned()]).unwrap();
    params.not_before = not_before.into();
    params.not_after = not_after.into();
    let paths = (folder.join(format!("{name}.pem")), folder.join(format!("{name}-key.pem")));
    fs::write(&paths.0, params.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(&paths.1, key.serialize_pem()).unwrap();
    paths
}

fn files((certificate, key): &(PathBuf, PathBuf)) -> TlsSource {
    TlsSource::Files { certificate: certificate.clone(), key: key.clone() }
}

fn refused(source: TlsSource) -> String {
    let report = OuterTls::load(source, now()).unwrap_err();
    assert_eq!(report.fault, Fault::FileUnreadable);
    report.to_string()
}

#[test]
fn an_unusable_certificate_is_named_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let good = write_pair(folder.path(), "good", now() - DAY, now() + DAY);
    assert!(OuterTls::load(files(&good), now()).is_ok());

    let expired = write_pair(folder.path(), "expired", now() - 3 * DAY, now() - DAY);
    assert!(refused(files(&expired)).contains("expired on 20"));
    let future = write_pair(folder.path(), "future", now() + DAY, now() + 2 * DAY);
    assert!(refused(files(&future)).contains("not valid before 20"));
    let mixed = (good.0.clone(), expired.1.clone());
    assert!(refused(files(&mixed)).contains("is not the key of the certificate"));
    let missing = (folder.path().join("nowhere.pem"), good.1.clone());
    assert!(refused(files(&missing)).contains("nowhere.pem"));
    let swapped = (good.1.clone(), good.0.clone());
    assert!(refused(files(&swapped)).contains("holds no certificate"));
}

/// The certificate that a handshake by this configuration shows, and the protocol that was agreed.
async fn handshake(tls: &OuterTls, roots: RootCertStore) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let (a, b) = duplex(64 * 1024);
    let name = ServerName::try_from("relay.test").unwrap();
    let (client, _server) = tokio::join!(
        TlsConnector::from(Arc::new(config)).connect(name, a),
        TlsAcceptor::from(tls.config()).accept(b),
    );
    let client = client?;
    let connection = client.get_ref().1;
    let shown = connection.peer_certificates().unwrap()[0].to_vec();
    Ok((shown, connection.alpn_protocol().unwrap().to_vec()))
}

fn roots(pem: &str) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    roots
}

#[tokio::test]
async fn an_authority_of_its_own_serves_its_names_and_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let source = || TlsSource::SelfSigned {
        names: vec!["relay.test".into(), "127.0.0.1".into()],
        data_dir: folder.path().into(),
    };
    let first = OuterTls::load(source(), now()).unwrap();
    let authority = first.own_authority().unwrap().clone();
    assert_eq!(fs::read_to_string(&authority.path).unwrap(), authority.pem);
    let (_, protocol) = handshake(&first, roots(&authority.pem)).await.unwrap();
    assert_eq!(protocol, b"http/1.1");

    let again = OuterTls::load(source(), now()).unwrap();
    assert_eq!(again.own_authority(), Some(&authority));
    handshake(&again, roots(&authority.pem)).await.unwrap();

    let elsewhere = tempfile::tempdir().unwrap();
    let other = TlsSource::SelfSigned { names: vec!["relay.test".into()], data_dir: elsewhere.path().into() };
    let other = OuterTls::load(other, now()).unwrap();
    assert!(handshake(&other, roots(&authority.pem)).await.is_err(), "another relay's authority");

    use std::os::unix::fs::PermissionsExt as _;
    let mode = fs::metadata(folder.path().join(OWN_AUTHORITY_KEY)).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0);
}

#[test]
fn half_an_authority_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let source = TlsSource::SelfSigned { names: vec!["relay.test".into()], data_dir: folder.path().into() };
    OuterTls::load(source.clone(), now()).unwrap();
    fs::remove_file(folder.path().join(OWN_AUTHORITY_KEY)).unwrap();
    assert!(refused(source).contains(OWN_AUTHORITY_KEY));
}

#[tokio::test(start_paused = true)]
async fn changed_files_are_used_and_broken_ones_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let served = write_pair(folder.path(), "served", now() - DAY, now() + DAY);
    let first = fs::read_to_string(&served.0).unwrap();
    let tls = OuterTls::load(files(&served), now()).unwrap();
    let following = tokio::spawn(tls.clone().follow());
    tokio::time::sleep(LOOK_EVERY).await;
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
    assert_eq!(shown(&tls), der(&first));

    fs::write(&served.0, "broken").unwrap();
    tokio::time::sleep(2 * LOOK_EVERY).await;
    assert_eq!(shown(&tls), der(&first));

    let next = write_pair(folder.path(), "next", now() - DAY, now() + 2 * DAY);
    fs::rename(&next.0, &served.0).unwrap();
    tokio::time::sleep(2 * LOOK_EVERY).await;
    assert_eq!(shown(&tls), der(&first), "certificate without its key");
    fs::rename(&next.1, &served.1).unwrap();
    let next = der(&fs::read_to_string(&served.0).unwrap());
    timeout(3 * LOOK_EVERY, async {
        while shown(&tls) != next {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    })
    .await
    .unwrap();
    following.abort();
}

fn shown(tls: &OuterTls) -> Vec<u8> {
    tls.current.0.read().unwrap().cert[0].to_vec()
}
