//! The mux beside yamux and h2: the same work over the same in-memory pipe, in one run.
//!
//! Each peer answers streams by the same rule: a stream that begins with `E` is echoed, any other is read to its
//! end and then answered with one byte. One thread runs both ends, so what is measured is what they cost; but on
//! the line of 100 Mbit/s, where time is virtual and costs nothing, it is how long a question waits behind bulk.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark that fails says where")]

mod h2;
mod towline;
mod yamux;

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{
    BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split},
    task::{LocalSet, spawn_local},
    time::sleep_until,
};

/// The two ends of a pipe.
pub(crate) type Pipe = (DuplexStream, DuplexStream);

/// Bytes that a pipe holds in each direction.
const PIPE: usize = 64 * 1024;
/// Bytes a second, and what a kernel holds of them at each end.
const LINE: f64 = 12_500_000.0;
const KERNEL: usize = 16 * 1024;
/// Bytes that an application writes at once.
const CHUNK: usize = 16 * 1024;

/// A stream, as an application uses it.
pub(crate) trait Stream {
    /// Writes all of it.
    async fn write(&mut self, bytes: Bytes);
    /// Ends this direction.
    async fn finish(&mut self);
    /// Reads what is there, at least a byte; the first byte and the number, or nothing at the end.
    async fn read(&mut self) -> Option<(u8, usize)>;
}

/// A connection whose other end answers.
pub(crate) trait Mux: 'static {
    type Stream: Stream;
    async fn open(&self) -> Self::Stream;
}

/// What the other end does with a stream.
pub(crate) async fn answer(mut stream: impl Stream) {
    let bytes = Bytes::from(vec![b'e'; 64 * 1024]);
    let Some((kind, mut length)) = stream.read().await else { return };
    if kind == b'E' {
        loop {
            stream.write(bytes.slice(..length)).await;
            match stream.read().await {
                Some((_, next)) => length = next,
                None => break,
            }
        }
    } else {
        while stream.read().await.is_some() {}
        stream.write(bytes.slice(..1)).await;
    }
    stream.finish().await;
}

/// Sends so many bytes on a stream of their own, and waits until they were read.
async fn send(mux: &impl Mux, bytes: usize) {
    let mut stream = mux.open().await;
    let chunk = Bytes::from(vec![b's'; CHUNK]);
    for _ in 0..bytes / CHUNK {
        stream.write(chunk.clone()).await;
    }
    stream.finish().await;
    while stream.read().await.is_some() {}
}

/// A question of 100 bytes and its answer, on a stream of their own.
async fn ask(mux: &impl Mux) {
    let mut stream = mux.open().await;
    stream.write(Bytes::from_static(&[b'E'; 100])).await;
    let mut left = 100;
    while left > 0 {
        left -= stream.read().await.unwrap().1;
    }
    stream.finish().await;
    while stream.read().await.is_some() {}
}

const BULK: usize = 16 << 20;
const STREAMS: usize = 64;

/// A pipe of so many bytes a second.
fn line() -> Pipe {
    let ((a, near), (far, b)) = (duplex(KERNEL), duplex(KERNEL));
    let ((near_read, near_write), (far_read, far_write)) = (split(near), split(far));
    spawn(carry(near_read, far_write));
    spawn(carry(far_read, near_write));
    (a, b)
}

async fn carry(mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>) {
    let mut buffer = [0; 1500];
    let begun = tokio::time::Instant::now();
    let mut free = 0.0f64;
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let now = begun.elapsed().as_secs_f64();
        // Timers go by milliseconds: what one sleeps too long, the next bytes make up for.
        free = free.max(now - 0.002) + read as f64 / LINE;
        if free > now + 0.001 {
            sleep_until(begun + Duration::from_secs_f64(free)).await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

#[derive(Clone, Copy)]
enum Work {
    Bulk,
    Streams,
    Ask,
}

#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    work: Work,
    /// Streams that carry bulk all the while.
    beside: usize,
    /// On the slow line, in virtual time.
    slow: bool,
}

impl Case {
    fn run<M: Mux>(
        self,
        group: &mut BenchmarkGroup<'_, WallTime>,
        name: &str,
        pair: impl AsyncFn(Pipe) -> M,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(self.slow)
            .build()
            .unwrap();
        let local = LocalSet::new();
        let mux = Rc::new(local.block_on(&runtime, async {
            let pipe = if self.slow { line() } else { duplex(PIPE) };
            pair(pipe).await
        }));
        for _ in 0..self.beside {
            let mux = Rc::clone(&mux);
            local.spawn_local(async move {
                loop {
                    send(&*mux, BULK).await;
                }
            });
        }
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|times| {
                let mux = Rc::clone(&mux);
                // A task like all others: what is blocked on has its turn only after many of them.
                let task = local.spawn_local(async move {
                    let (begun, virtually) = (Instant::now(), tokio::time::Instant::now());
                    for _ in 0..times {
                        self.once(&*mux).await;
                    }
                    if self.slow { virtually.elapsed() } else { begun.elapsed() }
                });
                local.block_on(&runtime, task).unwrap()
            });
        });
    }

    async fn once(self, mux: &impl Mux) {
        match self.work {
            Work::Bulk => send(mux, BULK).await,
            Work::Streams => {
                join_all((0..STREAMS).map(|_| send(mux, BULK / STREAMS))).await;
            }
            Work::Ask => ask(mux).await,
        }
    }
}

fn mux(criterion: &mut Criterion) {
    let case = |name, work| Case { name, work, beside: 0, slow: false };
    let waits = |name, beside| Case { name, work: Work::Ask, beside, slow: true };
    for case in [
        case("mux/16 MiB on one stream", Work::Bulk),
        case("mux/16 MiB on 64 streams", Work::Streams),
        case("mux/open, ask, close", Work::Ask),
        waits("mux/ask on 100 Mbit per s beside 4 bulk streams", 4),
        waits("mux/ask on 100 Mbit per s beside 64 bulk streams", 64),
    ] {
        let mut group = criterion.benchmark_group(case.name);
        group.sample_size(20);
        if !matches!(case.work, Work::Ask) {
            group.throughput(Throughput::Bytes(BULK as u64));
        }
        case.run(&mut group, "towline", towline::pair);
        case.run(&mut group, "yamux", yamux::pair);
        case.run(&mut group, "h2", h2::pair);
        group.finish();
    }
}

thread_local! {
    static BUFFERS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer to read into, used again once it was given back: making one would be measured, too.
pub(crate) fn buffer() -> Vec<u8> {
    BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; 64 * 1024])
}

/// Gives a buffer back.
pub(crate) fn give_back(buffer: Vec<u8>) {
    BUFFERS.with_borrow_mut(|buffers| buffers.push(buffer));
}

/// A task of the current benchmark; it ends with the benchmark's set.
pub(crate) fn spawn(task: impl Future<Output = ()> + 'static) {
    drop(spawn_local(task));
}

criterion_group!(benches, mux);
criterion_main!(benches);
