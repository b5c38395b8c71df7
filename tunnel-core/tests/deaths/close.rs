//! Closing a connection while a ping is due and nothing can be written: each once waited for the other's lock.

use std::{sync::mpsc, thread, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
    time::{Instant, sleep, timeout},
};
use towline_tunnel::mux::{CloseReason, Connection, Side};

use super::{
    Dice,
    path::{Path, endpoint, request},
};

/// A lock that is never released stops this thread, clocks and all: another one looks at a real clock.
fn watched<F: Future<Output = ()> + 'static>(paused: bool, scene: impl FnOnce() -> F + Send + 'static) {
    let (done, ended) = mpsc::channel();
    let playing = thread::spawn(move || {
        let mut builder = if paused {
            tokio::runtime::Builder::new_current_thread()
        } else {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(4);
            builder
        };
        let runtime = builder.enable_all().start_paused(paused).build().unwrap();
        runtime.block_on(scene());
        let _told = done.send(());
    });
    if let Err(mpsc::RecvTimeoutError::Timeout) = ended.recv_timeout(Duration::from_secs(60)) {
        // Nothing ends a thread that waits for a lock, and the other tests may wait for it, too.
        eprintln!("it stands still: a lock is waited for");
        std::process::exit(101);
    }
    playing.join().unwrap();
}

/// The peer takes no byte and sends none. Whatever is begun at whatever moment of a ping's life, the connection ends
/// within the second that last words may take.
#[test]
fn closing_while_a_ping_is_due_and_nothing_can_be_written_takes_a_second_at_most() {
    watched(true, || async {
        for moment in (0..=10_000).step_by(250).chain([4_999, 5_001, 9_999]) {
            let (near, _far) = duplex(64);
            let (connection, driver) = Connection::new(near, BytesMut::new(), endpoint(Side::Dialler));
            let driving = tokio::spawn(driver.run());
            let mut stream = connection.open(request()).unwrap();
            stream.write_all(&[1; 100_000]).await.unwrap();
            sleep(Duration::from_millis(moment)).await;
            let begun = Instant::now();
            connection.go_away(CloseReason::Draining, Duration::ZERO, "soon");
            connection.control(bytes::Bytes::from_static(b"a question"));
            let read = tokio::spawn(async move { stream.read(&mut [0; 1]).await });
            connection.close();
            let closed = timeout(Duration::from_secs(2), driving).await;
            assert!(closed.is_ok(), "closed at {moment} ms, and still there after {:?}", begun.elapsed());
            let read = timeout(Duration::from_secs(1), read)
                .await
                .expect("a reader waits for a connection that is gone");
            assert!(read.unwrap().is_err());
            timeout(Duration::from_secs(1), connection.closed()).await.expect("nobody is told of the end");
        }
    });
}

/// Pings and their answers go on beside bulk and beside a reader that stands still, until both ends close at once.
#[test]
fn both_ends_may_close_in_the_middle_of_pings_and_bulk() {
    watched(true, || async {
        for path in Path::both(500) {
            let (near, mut far) = path.stream().await;
            let writing = tokio::spawn(async move { far.write_all(&vec![1; 8 << 20]).await });
            // Nobody reads: all that moves for a quarter of an hour is pings.
            sleep(Duration::from_secs(900)).await;
            assert!(path.client.is_open() && path.agent.is_open(), "who is silent is not dead");
            path.client.close();
            path.agent.close();
            for connection in [&path.client, &path.agent] {
                timeout(Duration::from_secs(3), connection.closed()).await.expect("it does not end");
            }
            assert!(
                timeout(Duration::from_secs(1), writing).await.expect("it writes for ever").unwrap().is_err()
            );
            drop(near);
        }
    });
}

/// With real threads: streams come, carry and go on all of them while the connection ends under them.
#[test]
fn closing_from_one_thread_while_others_open_write_read_and_drop_leaves_nobody_waiting() {
    watched(false, || async {
        for round in 1..=60_u64 {
            let (a, b) = duplex(4_096);
            let (left, left_driver) = Connection::new(a, BytesMut::new(), endpoint(Side::Dialler));
            let (right, right_driver) = Connection::new(b, BytesMut::new(), endpoint(Side::Acceptor));
            let driving = [tokio::spawn(left_driver.run()), tokio::spawn(right_driver.run())];
            let mut users = Vec::new();
            for user in 0..8 {
                let left = left.clone();
                users.push(tokio::spawn(async move {
                    let mut dice = Dice(round * 8 + user + 1);
                    while let Ok(mut stream) = left.open(request()) {
                        let bytes = vec![1; 1 + dice.roll(60_000) as usize];
                        if dice.roll(4) > 0 && stream.write_all(&bytes).await.is_ok() && dice.roll(2) == 0 {
                            let _ended = stream.shutdown().await;
                            let _read = stream.read_to_end(&mut Vec::new()).await;
                        }
                    }
                }));
            }
            let serving = tokio::spawn(async move {
                while let Ok((_, stream)) = right.accept().await {
                    tokio::spawn(async move {
                        let (mut reader, mut writer) = tokio::io::split(stream);
                        let _copied = tokio::io::copy(&mut reader, &mut writer).await;
                        let _ended = writer.shutdown().await;
                    });
                }
            });
            for _ in 0..round {
                tokio::task::yield_now().await;
            }
            sleep(Duration::from_millis(round % 7)).await;
            left.close();
            for task in users.into_iter().chain([serving]) {
                timeout(Duration::from_secs(30), task).await.expect("somebody waits for ever").unwrap();
            }
            for driver in driving {
                timeout(Duration::from_secs(30), driver).await.expect("a driver does not end").unwrap();
            }
        }
    });
}
