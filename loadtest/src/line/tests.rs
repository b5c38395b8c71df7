use tokio::{io::duplex, time::timeout};

use super::*;

const MS: Duration = Duration::from_millis(1);

/// Bytes that were sent at once through a line of this nature: when the first and the last arrived.
async fn through(nature: Nature, bytes: usize) -> (Duration, Duration) {
    let (near, mut near_end) = duplex(64 * 1024);
    let (far, mut far_end) = duplex(64 * 1024);
    let begun = Instant::now();
    let pacers = (Mutex::new(Pacer::new(nature, begun)), Mutex::new(Pacer::new(nature, begun)));
    let send = async {
        near_end.write_all(&vec![7; bytes]).await.unwrap();
        near_end.shutdown().await.unwrap();
        let mut back = Vec::new();
        near_end.read_to_end(&mut back).await.unwrap();
        assert!(back.is_empty());
    };
    let receive = async {
        let mut got = vec![0; 1];
        far_end.read_exact(&mut got).await.unwrap();
        let first = begun.elapsed();
        far_end.read_to_end(&mut got).await.unwrap();
        assert!(got.len() == bytes && got.iter().all(|byte| *byte == 7));
        let last = begun.elapsed();
        far_end.shutdown().await.unwrap();
        (first, last)
    };
    let (carried, (), times) = tokio::join!(carry(near, far, &pacers.0, &pacers.1), send, receive);
    carried.unwrap();
    times
}

#[tokio::test(start_paused = true)]
async fn a_line_has_the_rate_and_the_delay_that_it_is_given() {
    // 1 MB at 8 Mbit/s is a second; the first chunk of 16 KiB has left after 16.4 ms. Timers have whole milliseconds.
    let (first, last) = through(Nature::new(100 * MS, Some(8e6)), 1_000_000).await;
    assert!((66 * MS..=69 * MS).contains(&first), "{first:?}");
    assert!((1050 * MS..=1055 * MS).contains(&last), "{last:?}");
}

#[tokio::test(start_paused = true)]
async fn a_line_without_a_rate_only_delays() {
    let (first, last) = through(Nature::new(40 * MS, None), 1_000_000).await;
    assert!((20 * MS..=22 * MS).contains(&first), "{first:?}");
    assert!((20 * MS..=22 * MS).contains(&last), "{last:?}");
}

#[tokio::test]
async fn a_cut_resets_both_ends_and_the_next_connection_lives() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let line = Line::to(listener.local_addr().unwrap(), Nature::new(Duration::ZERO, None)).await.unwrap();
    let connect = async || {
        let near = TcpStream::connect(line.address()).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        (near, far)
    };
    let (mut near, mut far) = connect().await;
    near.write_all(b"before").await.unwrap();
    let mut got = [0; 6];
    far.read_exact(&mut got).await.unwrap();
    assert_eq!(line.open(), 1);
    line.cut();
    for stream in [&mut near, &mut far] {
        let ended = timeout(Duration::from_secs(10), stream.read(&mut got)).await.unwrap();
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
    let (mut near, mut far) = connect().await;
    near.write_all(b"after!").await.unwrap();
    far.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"after!");
}
