//! The carrier against raw frames: limits, refusals, answers. Against another implementation: `against.rs`.

mod against;

use std::{future::poll_fn, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::timeout,
};

use super::{inbound::MAX_MESSAGE, *};

const READ_MESSAGE: usize = MAX_MESSAGE as usize;

fn server() -> (DuplexStream, WebSocketCarrier<DuplexStream>) {
    let (raw, io) = duplex(64 * 1024);
    (raw, WebSocketCarrier::server(io))
}

/// A masked client frame with an all-zero mask.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        n @ 0..=125 => bytes.push(0x80 | n as u8),
        n @ 126..=0xffff => {
            bytes.push(0x80 | 126);
            bytes.extend_from_slice(&(n as u16).to_be_bytes());
        }
        n => {
            bytes.push(0x80 | 127);
            bytes.extend_from_slice(&(n as u64).to_be_bytes());
        }
    }
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(payload);
    bytes
}

/// The status code of the close frame that the server sends, whatever comes before it.
async fn close_code(raw: &mut DuplexStream) -> u16 {
    let mut head = [0; 4];
    raw.read_exact(&mut head).await.unwrap();
    assert_eq!(head[0], 0x88, "a close frame");
    u16::from_be_bytes([head[2], head[3]])
}

/// The code with which a server ends that gets these bytes.
async fn refused(bytes: &[u8]) -> u16 {
    let (mut raw, mut server) = server();
    raw.write_all(bytes).await.unwrap();
    assert!(server.read_to_end(&mut Vec::new()).await.is_err());
    assert_eq!(server.read(&mut [0; 8]).await.unwrap(), 0, "the error is told once");
    assert!(server.write(b"more").await.is_err());
    close_code(&mut raw).await
}

#[tokio::test]
async fn bytes_pass_whatever_the_message_boundaries() {
    let (a, b) = duplex(16 * 1024);
    let mut server = WebSocketCarrier::server(a);
    let mut client = WebSocketCarrier::new(b, Role::Client, BytesMut::new());
    let sent: Vec<u8> = (0..500_000u32).map(|n| n as u8).collect();
    let mut got = Vec::new();
    let (wrote, read) = tokio::join!(
        async {
            client.write_all(&sent).await?;
            client.flush().await?;
            client.shutdown().await
        },
        server.read_to_end(&mut got)
    );
    wrote.unwrap();
    read.unwrap();
    assert!(got == sent);
}

#[tokio::test]
async fn t35_a_length_of_two_to_the_63_is_refused_with_1002() {
    let mut bytes = vec![0x82, 0xff];
    bytes.extend_from_slice(&(1u64 << 63).to_be_bytes());
    bytes.extend_from_slice(&[0; 4]);
    assert_eq!(refused(&bytes).await, 1002);
}

#[tokio::test]
async fn t35_a_message_that_is_too_long_is_refused_with_1009() {
    for length in [READ_MESSAGE as u64 + 1, (1 << 63) - 1] {
        let mut bytes = vec![0x82, 0xff];
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&[0; 4]);
        assert_eq!(refused(&bytes).await, 1009);
    }
}

#[tokio::test]
async fn t35_endless_fragments_are_bounded() {
    let (mut raw, mut server) = server();
    let flood = async {
        let mut sent = 0usize;
        let mut first = 0x02;
        while raw.write_all(&frame(first, &[0; 16 * 1024])).await.is_ok() && sent < 4 * READ_MESSAGE {
            sent += 16 * 1024;
            first = 0x00;
        }
        sent
    };
    let (sent, (read, got)) = tokio::join!(flood, async {
        let mut got = Vec::new();
        let read = server.read_to_end(&mut got).await;
        drop(server);
        (read, got.len())
    });
    assert!(read.is_err());
    assert!(got <= READ_MESSAGE, "{got}");
    assert!(sent <= 2 * READ_MESSAGE, "{sent}");
}

/// No extension is negotiated, so a compressed frame (RSV1) is a protocol error: nothing is inflated.
#[tokio::test]
async fn t35_a_compression_bomb_is_never_inflated() {
    assert_eq!(refused(&frame(0xc2, &[0; 100])).await, 1002);
}

#[tokio::test]
async fn text_and_unmasked_frames_are_refused() {
    assert_eq!(refused(&frame(0x81, b"hello")).await, 1003);
    // No need to look at what it says.
    assert_eq!(refused(&frame(0x81, &[0xce])).await, 1003);
    assert_eq!(refused(&[0x82, 2, 1, 2]).await, 1002);
}

#[tokio::test]
async fn a_server_that_masks_is_refused() {
    let (mut raw, io) = duplex(1024);
    let mut client = WebSocketCarrier::new(io, Role::Client, BytesMut::new());
    raw.write_all(&frame(0x82, b"masked")).await.unwrap();
    assert!(client.read(&mut [0; 8]).await.is_err());
    let mut head = [0; 2];
    raw.read_exact(&mut head).await.unwrap();
    assert_eq!([head[0], head[1] & 0x80], [0x88, 0x80], "a masked close frame");
}

#[tokio::test]
async fn frames_out_of_order_and_close_frames_that_say_nothing_are_refused() {
    let within = [frame(0x02, b"a"), frame(0x82, b"b")].concat();
    for wrong in [frame(0x80, b"of nothing"), within, frame(0x88, &[3]), frame(0x88, &[3, 0xed])] {
        assert_eq!(refused(&wrong).await, 1002, "{wrong:x?}");
    }
    assert_eq!(refused(&frame(0x88, b"\x03\xe8\xce")).await, 1007);
}

#[tokio::test]
async fn what_came_before_a_fault_is_still_read() {
    let (mut raw, mut server) = server();
    raw.write_all(&[frame(0x82, b"good"), frame(0x81, b"bad")].concat()).await.unwrap();
    let mut got = [0; 100];
    assert_eq!(server.read(&mut got).await.unwrap(), 4);
    assert!(server.read(&mut got).await.is_err());
    assert_eq!(server.read(&mut got).await.unwrap(), 0);
    assert_eq!(close_code(&mut raw).await, 1003);
}

#[tokio::test]
async fn an_end_without_a_close_frame_is_an_error() {
    for cut in [0, 3, 8] {
        let (mut raw, mut server) = server();
        raw.write_all(&frame(0x82, b"whole")[..cut]).await.unwrap();
        drop(raw);
        let error = server.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}

/// Whoever only reads answers it too: nothing is written any more once the peer has closed.
#[tokio::test]
async fn a_close_frame_is_answered_and_is_the_end() {
    let (mut raw, mut server) = server();
    raw.write_all(&frame(0x82, b"last")).await.unwrap();
    raw.write_all(&frame(0x88, &1001u16.to_be_bytes())).await.unwrap();
    let mut got = Vec::new();
    server.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"last");
    assert_eq!(close_code(&mut raw).await, 1001);
}

#[tokio::test]
async fn a_ping_is_answered_by_who_only_reads() {
    let (mut raw, mut server) = server();
    raw.write_all(&frame(0x89, b"are you there")).await.unwrap();
    raw.write_all(&frame(0x82, b"data")).await.unwrap();
    let mut got = [0; 4];
    server.read_exact(&mut got).await.unwrap();
    let mut pong = [0; 15];
    raw.read_exact(&mut pong).await.unwrap();
    assert_eq!(&pong, b"\x8a\x0dare you there");
}

/// A peer that pings without end and reads nothing gets one answer, the last; and what is written stays whole.
#[tokio::test]
async fn pings_that_can_not_be_answered_are_not_queued() {
    let (mut raw, io) = duplex(256);
    let mut server = WebSocketCarrier::server(io);
    // More than fits: the rest of this message waits.
    server.write_all(&[7; 1000]).await.unwrap();
    for n in 0..100u8 {
        raw.write_all(&frame(0x89, &[n; 100])).await.unwrap();
        let mut nothing = [0; 8];
        let mut space = ReadBuf::new(&mut nothing);
        let polled =
            poll_fn(|cx| Poll::Ready(Pin::new(&mut server).poll_read(cx, &mut space).is_pending())).await;
        assert!(polled, "a ping is no data");
    }
    let (flushed, got) = tokio::join!(server.flush(), async {
        let mut got = vec![0; 4 + 1000 + 2 + 100];
        raw.read_exact(&mut got).await.unwrap();
        got
    });
    flushed.unwrap();
    assert_eq!(got[..4], [0x82, 126, 3, 0xe8]);
    assert!(got[4..1004].iter().all(|byte| *byte == 7));
    assert_eq!(got[1004..], [&[0x8a, 100][..], &[99; 100]].concat());
    assert!(timeout(Duration::from_millis(1), raw.read_u8()).await.is_err(), "one answer");
}

/// What waits for room on a connection that two tasks share: the reader's answer must not take the writer's turn.
#[tokio::test(start_paused = true)]
async fn a_writer_is_woken_though_a_reader_answered_meanwhile() {
    let (mut raw, io) = duplex(64);
    let (mut reader, mut writer) = tokio::io::split(WebSocketCarrier::server(io));
    let writing = tokio::spawn(async move {
        for _ in 0..20 {
            writer.write_all(&[1; 100]).await.unwrap();
            writer.flush().await.unwrap();
        }
    });
    let reading = tokio::spawn(async move { reader.read(&mut [0; 8]).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    raw.write_all(&frame(0x89, b"ping")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut got = vec![0; 20 * 102 + 6];
    timeout(Duration::from_secs(5), raw.read_exact(&mut got)).await.expect("all comes").unwrap();
    writing.await.unwrap();
    assert!(!reading.is_finished());
    reading.abort();
}

#[tokio::test]
async fn messages_are_text_or_bytes_in_any_number_of_frames() {
    let (mut raw, server) = server();
    let mut messages = Messages::new(server);
    let mut next = async || poll_fn(|cx| messages.poll_message(cx)).await;
    raw.write_all(&[frame(0x01, b"n\xc3"), frame(0x89, b""), frame(0x80, b"\xa9")].concat()).await.unwrap();
    raw.write_all(&[frame(0x82, &[0xce]), frame(0x81, b"")].concat()).await.unwrap();
    assert_eq!(next().await.unwrap().unwrap(), Message::Text("né".into()));
    assert_eq!(next().await.unwrap().unwrap(), Message::Binary(vec![0xce].into()));
    assert_eq!(next().await.unwrap().unwrap(), Message::Text(String::new()));
    messages.send_message(Message::Text("né".into())).await.unwrap();
    messages.send_message(Message::Binary(vec![1].into())).await.unwrap();
    let mut got = [0; 10];
    raw.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"\x8a\x00\x81\x03n\xc3\xa9\x82\x01\x01");
}

#[tokio::test]
async fn text_that_is_not_utf_8_is_refused_with_1007() {
    let cut_off = frame(0x81, &[0xce]);
    // As soon as it can be known, and not when the message ends.
    let wrong = frame(0x01, &[0xff]);
    for bytes in [cut_off, wrong] {
        let (mut raw, server) = server();
        let mut messages = Messages::new(server);
        raw.write_all(&bytes).await.unwrap();
        assert!(poll_fn(|cx| messages.poll_message(cx)).await.unwrap().is_err());
        assert_eq!(close_code(&mut raw).await, 1007);
    }
}
