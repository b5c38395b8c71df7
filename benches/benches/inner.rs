//! Inner TLS, alone and on a stream of the mux, against bytes that are not encrypted.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark that fails says where")]

use std::{sync::Arc, time::SystemTime};

use bytes::BytesMut;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex},
    runtime::Runtime,
    task::JoinSet,
};
use towline_tunnel::{
    ids::{ClusterId, InstanceId, StreamKey},
    inner::{InnerAcceptor, InnerConnector},
    keys::SigningKey,
    mux::{Closed, Connection, EndpointConfig, Ledger, MuxStream, OpenRequest, Side},
};

const BYTES: usize = 16 << 20;

/// Writes on one end while the other reads.
async fn copy<IO: AsyncRead + AsyncWrite + Unpin>(from: &mut IO, to: &mut IO, buffer: &mut [u8]) {
    let chunk = vec![7; 64 * 1024];
    let write = async {
        for _ in 0..BYTES / chunk.len() {
            from.write_all(&chunk).await.unwrap();
        }
        from.flush().await.unwrap();
    };
    let read = async {
        let mut left = BYTES;
        while left > 0 {
            left -= to.read(buffer).await.unwrap();
        }
    };
    tokio::join!(write, read);
}

async fn streams(tasks: &mut JoinSet<Closed>) -> (MuxStream, MuxStream) {
    let (a, b) = duplex(64 * 1024);
    let config = |side| EndpointConfig {
        side,
        max_streams: 10,
        ledger: Ledger::new(64 << 20),
        instance: InstanceId::random(),
        jitter: 0,
    };
    let (left, driver) = Connection::new(a, BytesMut::new(), config(Side::Dialler));
    tasks.spawn(driver.run());
    let (right, driver) = Connection::new(b, BytesMut::new(), config(Side::Acceptor));
    tasks.spawn(driver.run());
    let opened = left.open(OpenRequest::new(StreamKey::random(), ClusterId::of_spki(b"c"))).unwrap();
    let (_, accepted) = right.accept().await.unwrap();
    (opened, accepted)
}

fn inner(criterion: &mut Criterion) {
    let runtime: Runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = runtime.enter();
    let mut tasks = JoinSet::new();
    let (cluster, run_key) = (Arc::new(SigningKey::generate()), SigningKey::generate());
    let acceptor = InnerAcceptor::new(cluster, SystemTime::now()).unwrap();
    let connector = InnerConnector::new(acceptor.cluster(), &run_key).unwrap();
    let mut buffer = vec![0; 64 * 1024];

    let mut group = criterion.benchmark_group("inner/copy 16 MiB");
    group.throughput(Throughput::Bytes(BYTES as u64)).sample_size(20);
    let (mut a, mut b) = duplex(64 * 1024);
    group.bench_function("no TLS, no mux", |bencher| {
        bencher.iter(|| runtime.block_on(copy(&mut a, &mut b, &mut buffer)));
    });
    let (mut a, mut b) = runtime.block_on(streams(&mut tasks));
    group.bench_function("mux", |bencher| {
        bencher.iter(|| runtime.block_on(copy(&mut a, &mut b, &mut buffer)));
    });
    let (a, b) = duplex(64 * 1024);
    let (mut a, mut b) = runtime.block_on(async {
        let (a, b) = tokio::join!(connector.connect(a), acceptor.accept(b, SystemTime::now()));
        (a.unwrap(), b.unwrap().0)
    });
    group.bench_function("inner TLS", |bencher| {
        bencher.iter(|| runtime.block_on(copy(&mut a, &mut b, &mut buffer)));
    });
    let (a, b) = runtime.block_on(streams(&mut tasks));
    let (mut a, mut b) = runtime.block_on(async {
        let (a, b) = tokio::join!(connector.connect(a), acceptor.accept(b, SystemTime::now()));
        (a.unwrap(), b.unwrap().0)
    });
    group.bench_function("inner TLS on mux", |bencher| {
        bencher.iter(|| runtime.block_on(copy(&mut a, &mut b, &mut buffer)));
    });
    group.finish();

    let mut group = criterion.benchmark_group("inner/handshake");
    group.bench_function("resumed", |bencher| {
        bencher.iter(|| {
            runtime.block_on(async {
                let (a, b) = duplex(64 * 1024);
                let (a, b) = tokio::join!(connector.connect(a), acceptor.accept(b, SystemTime::now()));
                let (mut a, mut b) = (a.unwrap(), b.unwrap().0);
                // The session ticket travels with the first bytes.
                b.write_all(b"x").await.unwrap();
                a.read_exact(&mut [0]).await.unwrap();
            });
        });
    });
    group.bench_function("full", |bencher| {
        bencher.iter_batched(
            || InnerConnector::new(acceptor.cluster(), &run_key).unwrap(),
            |connector| {
                runtime.block_on(async {
                    let (a, b) = duplex(64 * 1024);
                    let (a, b) = tokio::join!(connector.connect(a), acceptor.accept(b, SystemTime::now()));
                    drop((a.unwrap(), b.unwrap()));
                });
            },
            criterion::BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, inner);
criterion_main!(benches);
