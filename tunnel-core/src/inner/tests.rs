use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::{
    fault::{Fault, Report},
    keys::SigningKey,
    proto::frame::MAX_PAYLOAD,
};

fn ends() -> (Arc<SigningKey>, SigningKey) {
    (Arc::new(SigningKey::generate()), SigningKey::generate())
}

async fn joined(io: (DuplexStream, DuplexStream)) -> (InnerStream<DuplexStream>, InnerStream<DuplexStream>) {
    let (cluster, run_key) = ends();
    let acceptor = InnerAcceptor::new(cluster, SystemTime::now()).unwrap();
    let connector = InnerConnector::new(acceptor.cluster(), &run_key).unwrap();
    let (client, server) = tokio::join!(connector.connect(io.0), acceptor.accept(io.1, SystemTime::now()));
    let (server, peer) = server.unwrap();
    assert_eq!(peer, run_key.public().hash());
    (client.unwrap(), server)
}

#[tokio::test]
async fn both_ends_know_each_other_and_share_a_key() {
    let (mut client, mut server) = joined(duplex(64 * 1024)).await;
    assert_eq!(client.exporter(b"x").unwrap(), server.exporter(b"x").unwrap());
    client.write_all(b"ping").await.unwrap();
    client.shutdown().await.unwrap();
    let mut got = String::new();
    server.read_to_string(&mut got).await.unwrap();
    assert_eq!(got, "ping");
    server.write_all(b"pong").await.unwrap();
    server.shutdown().await.unwrap();
    got.clear();
    client.read_to_string(&mut got).await.unwrap();
    assert_eq!(got, "pong", "the other direction outlives the first one's end");
}

/// The relay, or a thief of its database, answers with another cluster's key.
#[tokio::test]
async fn t44_another_clusters_key_is_refused_and_told_nothing() {
    let (_, run_key) = ends();
    let (stolen, _) = ends();
    let acceptor = InnerAcceptor::new(stolen, SystemTime::now()).unwrap();
    let pinned = ends().0.public().cluster_id();
    let connector = InnerConnector::new(pinned, &run_key).unwrap();
    let (a, b) = duplex(64 * 1024);
    let (client, server) = tokio::join!(connector.connect(a), acceptor.accept(b, SystemTime::now()));
    assert_eq!(client.unwrap_err().fault, Fault::ClusterKeyMismatch);
    assert!(server.is_err());
}

/// The pinned key's certificate is public: showing it without a leaf that it signed is not enough.
#[tokio::test]
async fn t44_a_leaf_that_the_cluster_did_not_sign_is_refused() {
    let (cluster, run_key) = ends();
    let id = cluster.public().cluster_id();
    // Two acceptors: the impostor's leaf, the victim's authority.
    let impostor = Arc::new(SigningKey::generate());
    let mut params = rcgen::CertificateParams::new(vec![dns_name(id)]).unwrap();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let leaf = params.self_signed(&impostor.for_certificates().unwrap()).unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    let authority = authority.self_signed(&cluster.for_certificates().unwrap()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(crate::session::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone(), authority.der().clone()], impostor.private_key_der())
        .unwrap();
    let connector = InnerConnector::new(id, &run_key).unwrap();
    let (a, b) = duplex(64 * 1024);
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let (client, _server) = tokio::join!(connector.connect(a), acceptor.accept(b));
    assert_eq!(client.unwrap_err().fault, Fault::ClusterKeyMismatch);
}

#[tokio::test]
async fn t50_an_end_without_close_notify_is_never_a_clean_end() {
    let (mut client, server) = joined(duplex(64 * 1024)).await;
    drop(server);
    let error = client.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    let report = error.get_ref().and_then(|inner| inner.downcast_ref::<Report>()).unwrap();
    assert_eq!(report.fault, Fault::StreamTruncated);
}

#[tokio::test]
async fn a_record_fits_one_data_frame() {
    let (a, mut tap) = duplex(1 << 20);
    let (mut back, b) = duplex(1 << 20);
    let (cluster, run_key) = ends();
    let acceptor = InnerAcceptor::new(cluster, SystemTime::now()).unwrap();
    let connector = InnerConnector::new(acceptor.cluster(), &run_key).unwrap();
    let measure = async {
        let mut longest = 0;
        let mut pending = Vec::new();
        let (mut forth, mut other) = ([0; 4096], [0; 4096]);
        loop {
            tokio::select! {
                n = tap.read(&mut forth) => {
                    let Ok(n @ 1..) = n else { return longest };
                    back.write_all(&forth[..n]).await.unwrap();
                    pending.extend_from_slice(&forth[..n]);
                    while pending.len() >= 5 {
                        let record = 5 + usize::from(u16::from_be_bytes([pending[3], pending[4]]));
                        if pending.len() < record { break }
                        longest = longest.max(record);
                        pending.drain(..record);
                    }
                }
                n = back.read(&mut other) => {
                    let Ok(n @ 1..) = n else { return longest };
                    tap.write_all(&other[..n]).await.unwrap();
                }
            }
        }
    };
    let talk = async {
        let (client, server) = tokio::join!(connector.connect(a), acceptor.accept(b, SystemTime::now()));
        let (mut client, mut server) = (client.unwrap(), server.unwrap().0);
        let bytes = vec![7; 100_000];
        let mut got = vec![0; bytes.len()];
        let (wrote, read) = tokio::join!(
            async {
                client.write_all(&bytes).await?;
                client.flush().await
            },
            server.read_exact(&mut got)
        );
        wrote.unwrap();
        read.unwrap();
    };
    let (longest, ()) = tokio::join!(measure, talk);
    assert_eq!(longest, MAX_PAYLOAD);
}

#[tokio::test]
async fn a_resumed_session_still_proves_the_run_key() {
    let (cluster, run_key) = ends();
    let acceptor = InnerAcceptor::new(cluster, SystemTime::now()).unwrap();
    let connector = InnerConnector::new(acceptor.cluster(), &run_key).unwrap();
    for _ in 0..3 {
        let (a, b) = duplex(64 * 1024);
        let (client, server) = tokio::join!(connector.connect(a), acceptor.accept(b, SystemTime::now()));
        let (mut client, (mut server, peer)) = (client.unwrap(), server.unwrap());
        assert_eq!(peer, run_key.public().hash());
        server.write_all(b"tickets travel with data").await.unwrap();
        client.read_exact(&mut [0; 24]).await.unwrap();
    }
}

#[tokio::test]
async fn a_leaf_is_made_anew_before_it_ends() {
    let (cluster, run_key) = ends();
    let made = SystemTime::now() - Duration::from_secs(30 * 3600);
    let acceptor = InnerAcceptor::new(cluster, made).unwrap();
    let connector = InnerConnector::new(acceptor.cluster(), &run_key).unwrap();
    let (a, b) = duplex(64 * 1024);
    let (client, _) = tokio::join!(connector.connect(a), acceptor.accept(b, SystemTime::now()));
    client.unwrap();
}
