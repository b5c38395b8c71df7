use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;

async fn server() -> (DuplexStream, WebSocketCarrier<DuplexStream>) {
    let (raw, io) = duplex(64 * 1024);
    (raw, WebSocketCarrier::server(io).await)
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

#[tokio::test]
async fn bytes_pass_whatever_the_message_boundaries() {
    let (a, b) = duplex(16 * 1024);
    let mut server = WebSocketCarrier::server(a).await;
    let mut client =
        WebSocketCarrier::new(WebSocketStream::from_raw_socket(b, Role::Client, Some(config())).await);
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
    let (mut raw, mut server) = server().await;
    let mut bytes = vec![0x82, 0xff];
    bytes.extend_from_slice(&(1u64 << 63).to_be_bytes());
    bytes.extend_from_slice(&[0; 4]);
    raw.write_all(&bytes).await.unwrap();
    assert!(server.read(&mut [0; 8]).await.is_err());
    assert!(matches!(close_code(&mut raw).await, 1002 | 1009));
}

#[tokio::test]
async fn t35_a_message_that_is_too_long_is_refused_with_1009() {
    let (mut raw, mut server) = server().await;
    let mut bytes = vec![0x82, 0xff];
    bytes.extend_from_slice(&(READ_MESSAGE as u64 + 1).to_be_bytes());
    bytes.extend_from_slice(&[0; 4]);
    raw.write_all(&bytes).await.unwrap();
    assert!(server.read(&mut [0; 8]).await.is_err());
    assert_eq!(close_code(&mut raw).await, 1009);
}

#[tokio::test]
async fn t35_endless_fragments_are_bounded() {
    let (mut raw, mut server) = server().await;
    let flood = async {
        let mut sent = 0usize;
        let mut first = 0x02;
        while raw.write_all(&frame(first, &[0; 16 * 1024])).await.is_ok() && sent < 4 * READ_MESSAGE {
            sent += 16 * 1024;
            first = 0x00;
        }
        sent
    };
    let (sent, read) = tokio::join!(flood, async {
        let read = server.read(&mut [0; 8]).await;
        drop(server);
        read
    });
    assert!(read.is_err());
    assert!(sent <= 2 * READ_MESSAGE, "{sent}");
}

/// No extension is negotiated, so a compressed frame (RSV1) is a protocol error: nothing is inflated.
#[tokio::test]
async fn t35_a_compression_bomb_is_never_inflated() {
    let (mut raw, mut server) = server().await;
    raw.write_all(&frame(0xc2, &[0; 100])).await.unwrap();
    assert!(server.read(&mut [0; 8]).await.is_err());
    assert_eq!(close_code(&mut raw).await, 1002);
}

#[tokio::test]
async fn text_and_unmasked_frames_are_refused() {
    let (mut raw, mut server) = super::tests::server().await;
    raw.write_all(&frame(0x81, b"hello")).await.unwrap();
    assert!(server.read(&mut [0; 8]).await.is_err());
    assert_eq!(close_code(&mut raw).await, 1003);
    let (mut raw, mut server) = super::tests::server().await;
    raw.write_all(&[0x82, 2, 1, 2]).await.unwrap();
    assert!(server.read(&mut [0; 8]).await.is_err());
}

#[tokio::test]
async fn text_that_is_not_utf_8_is_refused_with_1007() {
    let (mut raw, mut server) = super::tests::server().await;
    raw.write_all(&frame(0x81, &[0xce])).await.unwrap();
    assert!(server.read(&mut [0; 8]).await.is_err());
    assert_eq!(close_code(&mut raw).await, 1007);
}

/// Whoever only reads answers it too: nothing is written any more once the peer has closed.
#[tokio::test]
async fn a_close_frame_is_answered_and_is_the_end() {
    let (mut raw, mut server) = super::tests::server().await;
    raw.write_all(&frame(0x82, b"last")).await.unwrap();
    raw.write_all(&frame(0x88, &1001u16.to_be_bytes())).await.unwrap();
    let mut got = Vec::new();
    server.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"last");
    assert_eq!(close_code(&mut raw).await, 1001);
}

#[test]
fn an_upgrade_must_be_ours() {
    let headers = |change: &[(&'static str, &'static str)]| {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("upgrade", "websocket"),
            ("connection", "keep-alive, Upgrade"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-protocol", "towline.v1"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ]
        .iter()
        .chain(change)
        {
            headers.insert(*name, http::HeaderValue::from_static(value));
        }
        headers
    };
    // RFC 6455, section 1.3
    assert_eq!(accept_key(&headers(&[])).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    for change in [
        ("upgrade", "h2c"),
        ("connection", "close"),
        ("sec-websocket-version", "8"),
        ("sec-websocket-protocol", "chat"),
        ("sec-websocket-key", "short"),
    ] {
        assert!(accept_key(&headers(&[change])).is_err(), "{change:?}");
    }
}
