use std::time::Duration;

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::*;
use crate::ids::{ClusterId, InstanceId, StreamKey};

fn config(side: Side) -> EndpointConfig {
    EndpointConfig {
        side,
        max_streams: 100,
        ledger: Ledger::new(64 << 20),
        instance: InstanceId::random(),
        jitter: 0,
    }
}

fn request() -> OpenRequest {
    OpenRequest::new(StreamKey::random(), ClusterId::of_spki(b"cluster"))
}

/// Two joined ends; dropping the set drops the drivers.
fn pair() -> (Connection, Connection, JoinSet<Closed>) {
    let (a, b) = duplex(64 * 1024);
    let (left, left_driver) = Connection::new(a, BytesMut::new(), config(Side::Dialler));
    let (right, right_driver) = Connection::new(b, BytesMut::new(), config(Side::Acceptor));
    let mut tasks = JoinSet::new();
    tasks.spawn(left_driver.run());
    tasks.spawn(right_driver.run());
    (left, right, tasks)
}

#[tokio::test]
async fn bytes_pass_both_ways_and_each_direction_ends_on_its_own() {
    let (left, right, _tasks) = pair();
    let mut stream = left.open(request()).unwrap();
    let sent: Vec<u8> = (0..1_000_000u32).map(|n| n as u8).collect();
    let echo = async {
        let (_, mut stream) = right.accept().await.unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).await.unwrap();
        stream.write_all(&got).await.unwrap();
        stream.shutdown().await.unwrap();
    };
    let ask = async {
        stream.write_all(&sent).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).await.unwrap();
        got
    };
    let ((), got) = tokio::join!(echo, ask);
    assert!(got == sent);
    drop(stream);
    timeout(Duration::from_secs(5), async {
        while left.stream_count() + right.stream_count() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("both ends forget a stream that is over");
    assert_eq!(left.held() + right.held(), 0);
}

#[tokio::test]
async fn what_was_shut_down_arrives_though_the_stream_was_dropped() {
    let (left, right, _tasks) = pair();
    let mut stream = left.open(request()).unwrap();
    stream.write_all(&[7; 100_000]).await.unwrap();
    stream.shutdown().await.unwrap();
    drop(stream);
    let (_, mut stream) = right.accept().await.unwrap();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await.unwrap();
    assert_eq!(got.len(), 100_000);
}

#[tokio::test]
async fn a_dropped_stream_is_never_a_clean_end() {
    let (left, right, _tasks) = pair();
    let mut stream = left.open(request()).unwrap();
    stream.write_all(b"half a sent").await.unwrap();
    let (_, mut other) = right.accept().await.unwrap();
    drop(stream);
    let mut got = Vec::new();
    let error = other.read_to_end(&mut got).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(error.to_string().contains("cancelled"), "{error}");
}

#[tokio::test]
async fn t50_a_cut_connection_is_an_error_on_every_stream() {
    let (left, right, mut tasks) = pair();
    let mut stream = left.open(request()).unwrap();
    stream.write_all(b"begun").await.unwrap();
    let (_, mut other) = right.accept().await.unwrap();
    let mut got = [0; 5];
    other.read_exact(&mut got).await.unwrap();
    tasks.abort_all();
    let error = other.read(&mut got).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted);
    assert!(stream.write_all(b"more").await.is_err());
    assert!(right.accept().await.is_err());
    assert!(left.open(request()).is_err());
}

#[tokio::test]
async fn a_stalled_stream_holds_nobody_up() {
    let (left, right, _tasks) = pair();
    let mut stalled = left.open(request()).unwrap();
    let (_, _unread) = right.accept().await.unwrap();
    // More than window and queue hold: this write can't finish.
    let flood = async { stalled.write_all(&vec![1; 4 << 20]).await };
    let work = async {
        let mut stream = left.open(request()).unwrap();
        let (_, mut other) = right.accept().await.unwrap();
        for _ in 0..50 {
            stream.write_all(&[2; 20_000]).await.unwrap();
            let mut got = [0; 20_000];
            other.read_exact(&mut got).await.unwrap();
        }
    };
    tokio::select! {
        _ = flood => panic!("nobody reads this stream"),
        done = timeout(Duration::from_secs(20), work) => done.expect("the other stream goes on"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_goes_silent_is_noticed_within_ten_seconds() {
    let (a, _b) = duplex(64 * 1024);
    let (left, driver) = Connection::new(a, BytesMut::new(), config(Side::Dialler));
    let mut stream = left.open(request()).unwrap();
    let begun = tokio::time::Instant::now();
    let closed = driver.run().await;
    assert!(matches!(&closed, Closed::Violation(v) if v.reason == CloseReason::PeerDead), "{closed:?}");
    // the last words of the connection may take a second more
    assert!(begun.elapsed() <= Duration::from_secs(11));
    assert!(stream.read(&mut [0; 1]).await.is_err());
}

#[tokio::test]
async fn garbage_ends_the_connection_with_a_reason_and_no_panic() {
    let (a, mut b) = duplex(64 * 1024);
    let (_left, driver) = Connection::new(a, BytesMut::new(), config(Side::Acceptor));
    b.write_all(&[0xff; 3]).await.unwrap();
    b.write_all(b"\x00garbage garbage garbage garbage").await.unwrap();
    b.write_all(&[0x10; 16]).await.unwrap();
    let (closed, said) = tokio::join!(driver.run(), async {
        let mut said = Vec::new();
        let _ = b.read_to_end(&mut said).await;
        said
    });
    assert!(matches!(closed, Closed::Violation(_)), "{closed:?}");
    assert_eq!(said[0], 0x0b, "GOAWAY says why");
}

#[tokio::test]
async fn goaway_refuses_new_streams_and_lets_open_ones_end() {
    let (left, right, _tasks) = pair();
    let mut stream = left.open(request()).unwrap();
    stream.write_all(b"x").await.unwrap();
    let (_, mut other) = right.accept().await.unwrap();
    right.go_away(CloseReason::Draining, Duration::from_millis(250), "bye");
    let goaway = left.going_away().await.unwrap();
    assert_eq!((goaway.last, goaway.delay), (1, Duration::from_millis(250)));
    assert_eq!(left.open(request()).unwrap_err().reason, CloseReason::Draining);
    other.write_all(b"still here").await.unwrap();
    other.shutdown().await.unwrap();
    let mut got = String::new();
    stream.read_to_string(&mut got).await.unwrap();
    assert_eq!(got, "still here");
}

#[tokio::test]
async fn control_messages_pass_beside_streams() {
    let (left, right, _tasks) = pair();
    assert!(left.control(bytes::Bytes::from_static(b"question")));
    assert_eq!(right.next_control().await.unwrap(), "question");
}

/// Last words in the middle of a frame would be taken for that frame's payload.
#[tokio::test]
async fn last_words_come_after_the_batch_that_was_half_written() {
    let (near, mut far) = duplex(100);
    let (connection, driver) = Connection::new(near, BytesMut::new(), config(Side::Dialler));
    let mut stream = connection.open(request()).unwrap();
    stream.write_all(&[7; 10_000]).await.unwrap();
    let driving = tokio::spawn(driver.run());
    let mut wire = BytesMut::new();
    // The batch is on its way, and does not fit.
    while wire.len() < 300 {
        far.read_buf(&mut wire).await.unwrap();
    }
    connection.close();
    while far.read_buf(&mut wire).await.unwrap() > 0 {}
    assert!(matches!(driving.await.unwrap(), Closed::Stopped));
    let mut data = 0;
    loop {
        match crate::proto::frame::decode(&mut wire).unwrap() {
            Some(crate::proto::frame::Frame::Data { payload, .. }) => {
                assert!(payload.iter().all(|byte| *byte == 7));
                data += payload.len();
            }
            Some(crate::proto::frame::Frame::GoAway { reason, .. }) => {
                assert_eq!(reason, CloseReason::Draining);
                break;
            }
            Some(_) => {}
            None => panic!("no GOAWAY after {data} bytes"),
        }
    }
    assert_eq!(data, 10_000);
}

/// Neither side says anything for as long as both were asked to keep silent; then one does, and the other answers.
#[tokio::test(start_paused = true)]
async fn an_idle_connection_keeps_silent_for_as_long_as_both_sides_want() {
    let (left, right, _tasks) = pair();
    left.keep_silent(Duration::from_secs(60));
    right.keep_silent(Duration::from_secs(90));
    sleep(Duration::from_secs(59)).await;
    assert!(left.silent_for() >= Duration::from_secs(59), "{:?}", left.silent_for());
    assert!(right.silent_for() >= Duration::from_secs(59), "{:?}", right.silent_for());
    sleep(Duration::from_secs(2)).await;
    assert!(left.silent_for() < Duration::from_secs(2), "the PING was answered");
    assert_eq!(left.outlived().as_secs(), 60);
    assert!(left.is_open() && right.is_open());
    // Shorter, while a PING is still due later.
    left.keep_silent(Duration::from_secs(1));
    sleep(Duration::from_secs(10)).await;
    assert!(left.silent_for() <= Duration::from_secs(1), "{:?}", left.silent_for());
}

/// A connection may be dead for as long as it was to be silent; a stream that begins there is to know within seconds.
#[tokio::test(start_paused = true)]
async fn a_stream_that_begins_on_a_silent_connection_finds_a_dead_peer_in_five_seconds() {
    let (near, _far) = duplex(64 * 1024);
    let (connection, driver) = Connection::new(near, BytesMut::new(), config(Side::Dialler));
    let driving = tokio::spawn(driver.run());
    connection.keep_silent(Duration::from_secs(240));
    sleep(Duration::from_secs(100)).await;
    assert!(connection.is_open());
    let begun = tokio::time::Instant::now();
    let _stream = connection.open(request()).unwrap();
    assert!(matches!(driving.await.unwrap(), Closed::Violation(_)));
    assert!(begun.elapsed() <= Duration::from_secs(6), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_that_is_asked_for_a_sign_of_life_is_dead_or_not_in_five_seconds() {
    let (left, right, _tasks) = pair();
    left.keep_silent(Duration::from_secs(240));
    right.keep_silent(Duration::from_secs(240));
    sleep(Duration::from_secs(100)).await;
    left.check();
    sleep(Duration::from_secs(6)).await;
    assert!(left.is_open() && left.silent_for() <= Duration::from_secs(6));

    let (near, _far) = duplex(64 * 1024);
    let (dead, driver) = Connection::new(near, BytesMut::new(), config(Side::Dialler));
    let driving = tokio::spawn(driver.run());
    dead.keep_silent(Duration::from_secs(240));
    sleep(Duration::from_secs(100)).await;
    let begun = tokio::time::Instant::now();
    dead.check();
    assert!(matches!(driving.await.unwrap(), Closed::Violation(_)));
    assert!(begun.elapsed() <= Duration::from_secs(6), "{:?}", begun.elapsed());
}
