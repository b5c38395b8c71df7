use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use towline_tunnel::{fault::Fault, ids::ClusterId};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

struct Fixture {
    folder: tempfile::TempDir,
    state: StateFolder,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = StateFolder::open(&folder.path().join("state")).unwrap();
        Self { folder, state }
    }

    fn authority(&self, now: SystemTime) -> Authority {
        Authority::load_or_create(&self.state, now).unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("state").join(name)
    }
}

fn cluster(name: &str) -> ClusterId {
    ClusterId::of_spki(name.as_bytes())
}

fn client_config(authority: &str, identity: Option<&ClientIdentity>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap()).unwrap();
    let builder =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
    Arc::new(match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(identity.key.reveal()).unwrap(),
            )
            .unwrap(),
    })
}

/// Who the endpoint takes the caller for; an error where either side refuses the other.
async fn meet(
    tls: &EndpointTls,
    client: Arc<ClientConfig>,
    name: &str,
    now: SystemTime,
) -> Result<Option<ClusterId>, String> {
    let (a, b) = duplex(64 * 1024);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connect = async {
        let mut stream = TlsConnector::from(client).connect(name, a).await.map_err(|e| e.to_string())?;
        // With TLS 1.3 a refused client certificate shows only after the handshake.
        stream.read_exact(&mut [0]).await.map_err(|e| e.to_string())
    };
    let accept = async {
        let acceptor = TlsAcceptor::from(tls.config(now).unwrap());
        let mut stream = acceptor.accept(b).await.map_err(|e| e.to_string())?;
        stream.write_all(b"!").await.map_err(|e| e.to_string())?;
        stream.flush().await.map_err(|e| e.to_string())?;
        Ok(stream.get_ref().1.peer_certificates().and_then(|chain| caller(&chain[0])))
    };
    let (connected, accepted) = tokio::join!(connect, accept);
    connected.and(accepted)
}

#[tokio::test]
async fn a_client_is_known_by_the_cluster_of_its_certificate() {
    let fixture = Fixture::new();
    let now = SystemTime::now();
    let tls = EndpointTls::new(fixture.authority(now), now).unwrap();
    let alice = tls.authority().client(cluster("a"), now).unwrap();
    for name in ["127.0.0.1", "localhost", "::1"] {
        let known = meet(&tls, client_config(tls.authority().pem(), Some(&alice)), name, now).await;
        assert_eq!(known, Ok(Some(cluster("a"))), "{name}");
    }
}

#[tokio::test]
async fn whoever_has_no_certificate_of_this_authority_gets_nothing() {
    let (ours, other) = (Fixture::new(), Fixture::new());
    let now = SystemTime::now();
    let tls = EndpointTls::new(ours.authority(now), now).unwrap();
    let stranger = other.authority(now).client(cluster("a"), now).unwrap();
    for identity in [None, Some(&stranger)] {
        assert!(meet(&tls, client_config(tls.authority().pem(), identity), "127.0.0.1", now).await.is_err());
    }
}

#[tokio::test]
async fn a_squatter_on_the_port_is_not_believed() {
    let (ours, squatter) = (Fixture::new(), Fixture::new());
    let now = SystemTime::now();
    let authority = ours.authority(now);
    let alice = authority.client(cluster("a"), now).unwrap();
    let tls = EndpointTls::new(squatter.authority(now), now).unwrap();
    assert!(meet(&tls, client_config(authority.pem(), Some(&alice)), "127.0.0.1", now).await.is_err());
}

#[tokio::test]
async fn certificates_are_kept_over_restarts_and_renewed_before_they_end() {
    let fixture = Fixture::new();
    let now = SystemTime::now();
    let first = fixture.authority(now);
    let alice = first.client(cluster("a"), now).unwrap();
    let again = fixture.authority(now + 200 * DAY);
    assert_eq!(again.pem(), first.pem());
    assert_eq!(again.client(cluster("a"), now + 200 * DAY).unwrap().certificate, alice.certificate);
    assert_ne!(again.client(cluster("b"), now).unwrap().certificate, alice.certificate);
    let renewed = again.client(cluster("a"), now + 300 * DAY).unwrap();
    assert_ne!(renewed.certificate, alice.certificate);
    let late = fixture.authority(now + 3600 * DAY);
    assert_ne!(late.pem(), first.pem(), "an authority that ends soon is replaced");
    let replaced = late.client(cluster("a"), now + 3600 * DAY).unwrap();
    assert_ne!(replaced.certificate, renewed.certificate, "and with it what it signed");
}

#[tokio::test]
async fn a_certificate_of_an_authority_that_was_replaced_is_made_anew() {
    let fixture = Fixture::new();
    let now = SystemTime::now();
    let old = fixture.authority(now).client(cluster("a"), now).unwrap();
    fs::remove_file(fixture.file("authority.pem")).unwrap();
    let tls = EndpointTls::new(fixture.authority(now), now).unwrap();
    let new = tls.authority().client(cluster("a"), now).unwrap();
    assert_ne!(old.certificate, new.certificate);
    let known = meet(&tls, client_config(tls.authority().pem(), Some(&new)), "127.0.0.1", now).await;
    assert_eq!(known, Ok(Some(cluster("a"))));
}

#[tokio::test]
async fn the_servers_certificate_is_made_anew_while_it_runs() {
    let fixture = Fixture::new();
    let made = SystemTime::now() - 40 * DAY;
    let tls = EndpointTls::new(fixture.authority(made), made).unwrap();
    let now = SystemTime::now();
    let alice = tls.authority().client(cluster("a"), now).unwrap();
    let known = meet(&tls, client_config(tls.authority().pem(), Some(&alice)), "127.0.0.1", now).await;
    assert_eq!(known, Ok(Some(cluster("a"))));
}

#[test]
fn damaged_files_are_replaced_and_those_that_others_can_read_refused() {
    let fixture = Fixture::new();
    let now = SystemTime::now();
    let first = fixture.authority(now);
    let other = Fixture::new();
    other.authority(now);
    // The certificate of one pair with the key of another.
    let mixed = first.pem().to_owned()
        + fs::read_to_string(other.file("authority.pem"))
            .unwrap()
            .split_once("-----BEGIN PRIVATE")
            .unwrap()
            .1;
    for damaged in ["", "garbage", &mixed] {
        fs::write(fixture.file("authority.pem"), damaged).unwrap();
        let now = fixture.authority(now);
        assert_ne!(now.pem(), first.pem(), "{damaged:.20}");
    }
    fs::set_permissions(fixture.file("authority.pem"), fs::Permissions::from_mode(0o640)).unwrap();
    let report = Authority::load_or_create(&fixture.state, now).unwrap_err();
    assert!(report.to_string().contains("authority.pem"), "{report}");
}

#[test]
fn the_folder_and_its_files_are_private() {
    let fixture = Fixture::new();
    let now = SystemTime::now();
    fixture.authority(now).client(cluster("a"), now).unwrap();
    let mode = |path: PathBuf| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!(mode(fixture.file("")), 0o700);
    for item in fs::read_dir(fixture.file("")).unwrap() {
        assert_eq!(mode(item.unwrap().path()), 0o600);
    }
    fs::set_permissions(fixture.file(""), fs::Permissions::from_mode(0o755)).unwrap();
    let report = StateFolder::open(&fixture.file("")).unwrap_err();
    assert!(report.to_string().contains("chmod 700"), "{report}");
}

#[test]
fn a_second_proxy_for_a_cluster_is_refused_until_the_first_ends() {
    let fixture = Fixture::new();
    let first = fixture.state.serve(cluster("a"), "edge-7").unwrap();
    let report = fixture.state.serve(cluster("a"), "edge-7").unwrap_err();
    assert_eq!(report.fault, Fault::ProxyAlreadyRuns);
    assert!(report.to_string().contains(&std::process::id().to_string()), "{report}");
    fixture.state.serve(cluster("b"), "edge-8").unwrap();
    drop(first);
    fixture.state.serve(cluster("a"), "edge-7").unwrap();
    let left = std::fs::read_dir(fixture.state.path()).unwrap().map(|file| file.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().ends_with(".serving")).collect();
    assert!(left.is_empty(), "{left:?} stays behind");
}

#[test]
fn of_those_that_take_over_from_one_another_one_serves_at_a_time() {
    let fixture = Fixture::new();
    let serving = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    let Ok(lock) = fixture.state.serve(cluster("a"), "edge-7") else { continue };
                    assert_eq!(serving.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                    serving.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    drop(lock);
                }
            });
        }
    });
}

#[test]
fn processes_that_start_at_once_make_one_authority() {
    let fixture = Fixture::new();
    let now = SystemTime::now();
    let starts: Vec<_> = (0..8)
        .map(|_| {
            let state = fixture.state.clone();
            std::thread::spawn(move || {
                let authority = Authority::load_or_create(&state, now).unwrap();
                let client = authority.client(cluster("a"), now).unwrap();
                (authority.pem().to_owned(), client.certificate)
            })
        })
        .collect();
    let made: Vec<_> = starts.into_iter().map(|start| start.join().unwrap()).collect();
    assert!(made.iter().all(|one| *one == made[0]));
}
