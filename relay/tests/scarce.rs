//! A relay whose process has no files left to open. In a file of its own: the limit is the whole process's.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod common;

use std::time::{Duration, Instant};

use common::{Bench, SOON, eventually, limits};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{net::TcpSocket, time::timeout};

const ERRORS: &str = "towline_relay_accept_errors_total";

fn open_files() -> u64 {
    std::fs::read_dir("/proc/self/fd").unwrap().count() as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn t33_without_files_to_open_the_relay_waits_counts_and_goes_on() {
    let bench = Bench::new(limits()).await;
    assert_eq!(bench.metric(ERRORS).await, 0);
    let comers: Vec<TcpSocket> = (0..4).map(|_| TcpSocket::new_v4().unwrap()).collect();
    let had = getrlimit(Resource::Nofile);
    let begun = Instant::now();
    // The reading of the folder was one more.
    setrlimit(Resource::Nofile, Rlimit { current: Some(open_files() - 1), ..had }).unwrap();
    let mut waiting = Vec::new();
    for comer in comers {
        let dialled = timeout(SOON, comer.connect(bench.relay.address())).await;
        waiting.push(dialled.unwrap().expect("the kernel takes it"));
    }
    // Long enough that accept(2) was tried, and more than once.
    let refused = waiting[0].readable();
    let _nothing_comes = timeout(Duration::from_millis(500), refused).await;
    setrlimit(Resource::Nofile, had).unwrap();
    let took = begun.elapsed();
    let errors = bench.metric(ERRORS).await;
    assert!(errors > 0, "nothing was short");
    let most = 2 + u64::try_from(took.as_millis()).unwrap() / 100;
    assert!(errors <= most, "{errors} in {took:?}: it spins");
    let client = timeout(SOON, bench.client("alice")).await.expect("it accepts again");
    eventually("a session", async || bench.metric("towline_relay_sessions{kind=\"client\"}").await == 1)
        .await;
    drop((client, waiting));
}
