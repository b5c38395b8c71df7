//! A window of a fixed size caps what a long line carries: 256 KiB each 100 ms are 2.5 MB a second, however fast it is.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::Instant,
};

use towline_tunnel::proto::{budget::USER_BUDGET, window::MAX_WINDOW};

use super::{bulk::Bulk, ends, line::Like, path::Path};

const MB: f64 = 1e6;
/// What one user's streams on one connection are promised together, as far as windows grow.
const MAX_PROMISED: f64 = USER_BUDGET as f64 * 0.75;

/// Bytes a second that one stream carries from the agent to the client once it had a second to find its speed.
async fn goodput(path: Path) -> f64 {
    let (mut near, mut far) = path.stream().await;
    let writing = tokio::spawn(async move {
        let block = vec![7; 256 * 1024];
        while far.write_all(&block).await.is_ok() {}
    });
    let begun = Instant::now();
    let mut buffer = vec![0; 256 * 1024];
    let mut counted = 0;
    while begun.elapsed() < Duration::from_secs(3) {
        let n = near.read(&mut buffer).await.unwrap();
        if begun.elapsed() >= Duration::from_secs(1) {
            counted += n;
        }
    }
    writing.abort();
    counted as f64 / 2.0
}

fn like(delay_ms: u64, rate: f64) -> Like {
    Like { delay: Duration::from_millis(delay_ms), rate, room: 64 << 20 }
}

#[tokio::test(start_paused = true)]
async fn a_long_and_fast_line_is_filled_within_a_second_and_not_capped_by_a_fixed_window() {
    // There and back in 50 ms at 230 Mb/s, and in 100 ms at 500 Mb/s.
    for (round_trip, rate) in [(50, 28.75 * MB), (100, 62.5 * MB)] {
        let whole = like(round_trip / 2, rate);
        let near = like(0, rate);
        // A relay lets a sender so far run ahead of what it has written on, and tells what it wrote on in steps of an eighth.
        let allowance = (MAX_WINDOW - MAX_WINDOW / 8) as f64 / (round_trip as f64 / 1e3);
        for (what, path, most) in [
            ("directly", Path::direct(whole), rate),
            ("with the receiver far from the relay", Path::relayed(whole, near), rate),
            ("with the sender far from the relay", Path::relayed(near, whole), rate.min(allowance)),
        ] {
            let got = ends(goodput(path)).await;
            assert!(
                got >= 0.95 * most,
                "{what}: {:.1} of {:.1} MB/s at {round_trip} ms",
                got / MB,
                most / MB
            );
        }
    }
}

/// Jain's index: 1 where all are equal, 1/n where one has all.
fn jain(shares: &[f64]) -> f64 {
    let sum: f64 = shares.iter().sum();
    sum * sum / shares.iter().map(|share| share * share).sum::<f64>() / shares.len() as f64
}

#[tokio::test(start_paused = true)]
async fn equal_streams_on_one_connection_get_equal_shares() {
    for (round_trip, most) in [(0, 300.0 * MB), (100, MAX_PROMISED / 0.1)] {
        let path = Path::relayed(like(round_trip / 2, 300.0 * MB), like(0, 300.0 * MB));
        let mut bulk = Bulk::begin(&path, 16).await;
        ends(bulk.each(Duration::from_secs(1))).await;
        let each = ends(bulk.each(Duration::from_secs(1))).await;
        assert!(jain(&each) >= 0.99, "{:.3} at {round_trip} ms: {each:?}", jain(&each));
        let all: f64 = each.iter().sum();
        assert!(all >= 0.9 * most, "{:.0} of {:.0} MB/s at {round_trip} ms", all / MB, most / MB);
    }
}
