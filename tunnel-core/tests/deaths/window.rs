//! A window of a fixed size caps what a long line carries: 256 KiB each 100 ms are 2.5 MB a second, however fast it is.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::Instant,
};

use towline_tunnel::proto::window::MAX_WINDOW;

use super::{ends, line::Like, path::Path};

const MB: f64 = 1e6;

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
