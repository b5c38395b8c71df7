//! Frames to bytes and back.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark that fails says where")]

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use towline_tunnel::proto::{
    Frame,
    frame::{MAX_PAYLOAD, decode, encode},
};

/// A batch of the writer's.
const BATCH: usize = 64 * 1024;

fn frames(frame: &Frame) -> Bytes {
    let mut out = BytesMut::new();
    while out.len() < BATCH {
        encode(&mut out, frame);
    }
    out.freeze()
}

fn codec(criterion: &mut Criterion) {
    let data =
        |length| Frame::Data { stream: 7, payload: vec![1; length].into(), fin: false, blocked: false };
    for (name, frame) in [
        ("data 16320 B", data(MAX_PAYLOAD)),
        ("data 100 B", data(100)),
        ("credit", Frame::Credit { stream: 7, received: 1 << 20, limit: 1 << 21 }),
    ] {
        let batch = frames(&frame);
        let mut group = criterion.benchmark_group(format!("codec/{name}"));
        group.throughput(Throughput::Bytes(batch.len() as u64));
        group.bench_function("encode", |bencher| {
            let mut out = BytesMut::with_capacity(2 * BATCH);
            bencher.iter(|| {
                out.clear();
                while out.len() < BATCH {
                    encode(&mut out, black_box(&frame));
                }
                black_box(out.len())
            });
        });
        group.bench_function("decode", |bencher| {
            bencher.iter_batched_ref(
                || BytesMut::from(&batch[..]),
                |bytes| {
                    while let Some(frame) = decode(bytes).unwrap() {
                        black_box(frame);
                    }
                },
                criterion::BatchSize::SmallInput,
            );
        });
        group.finish();
    }
}

criterion_group!(benches, codec);
criterion_main!(benches);
