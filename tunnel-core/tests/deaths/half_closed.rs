//! A stream whose one direction has ended: the other goes on for as long as it wants, and then nothing is left of it.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, sleep, timeout},
};

use super::{ends, path::Path};

/// What is over is forgotten everywhere within this time: a CREDIT may wait for a second on each hop.
const FORGOTTEN_WITHIN: Duration = Duration::from_secs(5);

async fn nothing_is_left(path: &Path, when: &str) {
    let begun = Instant::now();
    while path.streams() > 0 {
        assert!(begun.elapsed() < FORGOTTEN_WITHIN, "{when}: {} table entries are left", path.streams());
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(path.client.held() + path.agent.held(), 0, "{when}");
}

#[tokio::test(start_paused = true)]
async fn the_open_half_of_a_stream_goes_on_for_hours_and_ends_when_it_ends() {
    ends(async {
        for path in Path::both(5_000) {
            let (mut near, mut far) = path.stream().await;
            near.write_all(b"the question").await.unwrap();
            near.shutdown().await.unwrap();
            let mut asked = Vec::new();
            far.read_to_end(&mut asked).await.unwrap();
            assert_eq!(asked, b"the question");
            for hour in 0..5 {
                sleep(Duration::from_secs(3600)).await;
                far.write_all(&[hour; 100_000]).await.unwrap();
                near.read_exact(&mut vec![0; 100_000]).await.unwrap();
            }
            far.shutdown().await.unwrap();
            assert_eq!(near.read(&mut [0; 1]).await.unwrap(), 0);
            drop((near, far));
            nothing_is_left(&path, "both ended").await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_half_closed_stream_that_nobody_reads_any_more_is_told_to_its_writer() {
    ends(async {
        for path in Path::both(5_000) {
            let (mut near, mut far) = path.stream().await;
            near.shutdown().await.unwrap();
            drop(near);
            let writing = async { while far.write_all(&[1; 10_000]).await.is_ok() {} };
            timeout(Duration::from_secs(10), writing).await.expect("it writes for nobody, and is not told");
            drop(far);
            nothing_is_left(&path, "the reader left").await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_half_closed_stream_whose_writer_goes_without_an_end_is_cut_and_not_finished() {
    ends(async {
        for path in Path::both(5_000) {
            let (mut near, mut far) = path.stream().await;
            near.shutdown().await.unwrap();
            far.write_all(b"half of").await.unwrap();
            drop(far);
            let mut got = Vec::new();
            let read =
                timeout(Duration::from_secs(10), near.read_to_end(&mut got)).await.expect("it never ends");
            assert!(read.is_err(), "{} bytes look whole", got.len());
            drop(near);
            nothing_is_left(&path, "the writer left").await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_both_half_closed_and_nobody_reads_is_over_once_both_let_go() {
    ends(async {
        for path in Path::both(5_000) {
            let (mut near, mut far) = path.stream().await;
            for stream in [&mut near, &mut far] {
                stream.write_all(&[1; 60_000]).await.unwrap();
                stream.shutdown().await.unwrap();
            }
            sleep(Duration::from_secs(60)).await;
            drop(near);
            sleep(Duration::from_secs(60)).await;
            drop(far);
            nothing_is_left(&path, "both let go").await;
        }
    })
    .await;
}

/// A thousand of them, one after the other: what is left of each would add up.
#[tokio::test(start_paused = true)]
async fn a_thousand_half_closed_streams_leave_nothing() {
    ends(async {
        for path in Path::both(5_000) {
            for n in 0..1_000 {
                let (mut near, mut far) = path.stream().await;
                near.shutdown().await.unwrap();
                if n % 2 == 0 {
                    far.shutdown().await.unwrap();
                    assert_eq!(near.read(&mut [0; 1]).await.unwrap(), 0);
                }
            }
            nothing_is_left(&path, "a thousand").await;
        }
    })
    .await;
}
