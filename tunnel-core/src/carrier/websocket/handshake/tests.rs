use tokio::io::duplex;

use super::*;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
// RFC 6455, section 1.3
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// An answer that is right but for one line.
fn answer(instead: &str, line: &str) -> Vec<u8> {
    let right = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {ACCEPT}\r\nSec-WebSocket-Protocol: towline.v1\r\n\r\n"
    );
    assert!(right.contains(instead));
    right.replacen(instead, line, 1).into_bytes()
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
            ("sec-websocket-key", KEY),
        ]
        .iter()
        .chain(change)
        {
            headers.insert(*name, HeaderValue::from_static(value));
        }
        headers
    };
    assert_eq!(accept_key(&headers(&[])).unwrap(), ACCEPT);
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

#[test]
fn an_answer_is_taken_only_if_each_line_of_it_is_right() {
    let right = answer("", "");
    assert_eq!(answered(&right, KEY).unwrap(), Some(right.len()));
    assert_eq!(answered(&right[..right.len() - 1], KEY).unwrap(), None);
    for (instead, line) in [
        ("HTTP/1.1", "HTTP/1.0"),
        ("HTTP/1.1", "SSH-2.0"),
        ("Upgrade: websocket", "Upgrade: h2c"),
        ("Connection: Upgrade", "Connection: close"),
        ("Connection: Upgrade\r\n", ""),
        (ACCEPT, "dGhlIHNhbXBsZSBub25jZTEyMzQ="),
        ("towline.v1", "chat"),
        ("Sec-WebSocket-Protocol: towline.v1\r\n", ""),
        ("\r\n\r\n", "\r\nSec-WebSocket-Protocol: towline.v1\r\n\r\n"),
        ("\r\n\r\n", "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"),
    ] {
        let wrong = answered(&answer(instead, line), KEY);
        assert!(matches!(wrong, Err(HandshakeError::Answer(_))), "{line:?}: {wrong:?}");
    }
    let refused = answered(&answer("101 Switching Protocols", "403 Forbidden"), KEY);
    assert!(matches!(refused, Err(HandshakeError::Status(StatusCode::FORBIDDEN))), "{refused:?}");
}

#[tokio::test]
async fn an_answer_without_end_is_not_read_without_end() {
    let (mut ours, mut theirs) = duplex(1024);
    let flood = async {
        theirs.write_all(b"HTTP/1.1 101 Switching Protocols\r\nA: ").await.unwrap();
        while theirs.write_all(&[b'a'; 1024]).await.is_ok() {}
    };
    let asks = async move {
        let refused = upgrade(&mut ours, "relay", Errand::Begin, false).await;
        assert!(matches!(refused, Err(HandshakeError::Answer(_))), "{refused:?}");
    };
    tokio::join!(flood, asks);
}
