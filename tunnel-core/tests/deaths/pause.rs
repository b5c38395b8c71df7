//! A reader that pauses, and a writer that is never told that it goes on: the stream stands still for good.

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::sleep,
};

use super::{Dice, ends, path::Path};

const BYTES: usize = 3 << 20;

async fn writes(mut stream: impl AsyncWrite + Unpin, mut dice: Dice) {
    let mut written = 0;
    while written < BYTES {
        let part = (1 + dice.roll(100_000) as usize).min(BYTES - written);
        let bytes: Vec<u8> = (written..written + part).map(|at| (at / 7) as u8).collect();
        stream.write_all(&bytes).await.unwrap();
        written += part;
    }
    stream.shutdown().await.unwrap();
}

/// Reads a little or all that there is, and then does nothing for a moment, a while, or longer than a ping takes.
async fn reads_and_pauses(mut stream: impl AsyncRead + Unpin, mut dice: Dice) {
    let mut read = 0;
    let mut buffer = vec![0; 1 << 20];
    loop {
        if dice.roll(3) == 0 {
            sleep(Duration::from_millis([1, 900, 1_100, 7_000, 60_000][dice.roll(5) as usize])).await;
        }
        let room = [1, 100, 16 * 1024, 256 * 1024, 1 << 20][dice.roll(5) as usize];
        let n = stream.read(&mut buffer[..room]).await.unwrap();
        if n == 0 {
            break;
        }
        assert!(
            (read..).zip(&buffer[..n]).all(|(at, byte)| *byte == (at / 7) as u8),
            "other bytes at {read}"
        );
        read += n;
    }
    assert_eq!(read, BYTES);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_pauses_and_goes_on_again_and_again_gets_every_byte() {
    for seed in 1..=6 {
        for path in Path::both(5_000) {
            let (near, far) = path.stream().await;
            let ((near_read, near_write), (far_read, far_write)) =
                (tokio::io::split(near), tokio::io::split(far));
            let all = async {
                tokio::join!(
                    writes(near_write, Dice(seed)),
                    writes(far_write, Dice(seed + 100)),
                    reads_and_pauses(near_read, Dice(seed + 200)),
                    reads_and_pauses(far_read, Dice(seed + 300)),
                );
            };
            ends(all).await;
        }
    }
}

/// Both write until they can't, and only then read: neither may wait for the other to begin.
#[tokio::test(start_paused = true)]
async fn two_ends_that_write_until_they_are_stopped_and_then_read_do_not_wait_for_each_other() {
    for path in Path::both(5_000) {
        let (near, far) = path.stream().await;
        let end = async |stream, seed| {
            let (read, write) = tokio::io::split(stream);
            let writing = tokio::spawn(writes(write, Dice(seed)));
            sleep(Duration::from_secs(30)).await;
            assert!(!writing.is_finished(), "nobody reads, and all is written");
            reads_and_pauses(read, Dice(seed + 1)).await;
            writing.await.unwrap();
        };
        ends(async { tokio::join!(end(near, 1), end(far, 3)) }).await;
    }
}

/// One reader that stands still holds up its own stream, and is the only one that ever waits.
#[tokio::test(start_paused = true)]
async fn a_reader_that_never_goes_on_holds_up_no_other_stream() {
    for path in Path::both(5_000) {
        let (_unread, mut stuck) = path.stream().await;
        let stuck = tokio::spawn(async move { stuck.write_all(&vec![1; 64 << 20]).await });
        for seed in 1..=3 {
            let (near, far) = path.stream().await;
            let both =
                async { tokio::join!(writes(far, Dice(seed)), reads_and_pauses(near, Dice(seed + 9))) };
            ends(both).await;
        }
        assert!(!stuck.is_finished());
        stuck.abort();
    }
}
