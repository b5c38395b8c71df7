//! The upgrade from HTTP/1.1 to WebSocket (RFC 6455, section 4), strictly.

use std::{io, time::Duration};

use bytes::{Buf, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::carrier::{CHALLENGED, CONNECT_PATH, STREAMS_WAIT, SUBPROTOCOL, dial::Errand};

/// Section 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Longest answer that is read, in bytes; and how many headers it may have.
const MAX_ANSWER: usize = 16 * 1024;
const MAX_HEADERS: usize = 100;

/// Why an upgrade did not come about.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The connection broke.
    #[error("the upgrade was not answered")]
    Io(#[from] io::Error),
    /// Something answers, and does not upgrade.
    #[error("the upgrade was answered {0}")]
    Status(StatusCode),
    /// A relay that has too much to do says when to come back (RFC 9110, section 10.2.3).
    #[error("the relay is busy; it asks to come back in {0:?}")]
    Busy(Duration),
    /// What answers speaks no WebSocket, or not towline's.
    #[error("the answer to the upgrade is wrong: {0}")]
    Answer(&'static str),
}

/// Sends the upgrade and reads its answer; returns what came behind that.
///
/// # Errors
/// If what answers is not a towline relay, or the connection fails.
pub(super) async fn upgrade<IO>(
    io: &mut IO,
    authority: &str,
    errand: Errand,
    challenged: bool,
) -> Result<BytesMut, HandshakeError>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut nonce = [0; 16];
    aws_lc_rs::rand::fill(&mut nonce).expect("the system's random source answers");
    let key = data_encoding::BASE64.encode(&nonce);
    let waits = match errand {
        Errand::GoOn => format!("{STREAMS_WAIT}: 1\r\n"),
        Errand::Begin => String::new(),
    };
    let challenge = if challenged { format!("{CHALLENGED}: 1\r\n") } else { String::new() };
    let request = format!(
        "GET {CONNECT_PATH} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n{waits}{challenge}\r\n"
    );
    io.write_all(request.as_bytes()).await?;
    io.flush().await?;
    let mut bytes = BytesMut::new();
    loop {
        if let Some(taken) = answered(&bytes, &key)? {
            bytes.advance(taken);
            // What is behind it, without the block that the answer was read into.
            return Ok(BytesMut::from(&bytes[..]));
        }
        if bytes.len() >= MAX_ANSWER {
            return Err(HandshakeError::Answer("it is too long"));
        }
        bytes.reserve(1024);
        if io.read_buf(&mut bytes).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

/// How many bytes the answer takes, if it is whole and the right one for this key.
fn answered(bytes: &[u8], key: &str) -> Result<Option<usize>, HandshakeError> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut answer = httparse::Response::new(&mut fields);
    let taken = match answer.parse(bytes) {
        Ok(httparse::Status::Complete(taken)) => taken,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(HandshakeError::Answer("it is not HTTP")),
    };
    let status = answer.code.and_then(|code| StatusCode::from_u16(code).ok());
    let mut headers = HeaderMap::new();
    for field in answer.headers.iter() {
        let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(field.name.as_bytes()), HeaderValue::from_bytes(field.value))
        else {
            return Err(HandshakeError::Answer("it is not HTTP"));
        };
        headers.append(name, value);
    }
    match status {
        Some(StatusCode::SWITCHING_PROTOCOLS) => {}
        Some(status) => return Err(retry_after(status, &headers).unwrap_or(HandshakeError::Status(status))),
        None => return Err(HandshakeError::Answer("it has no status")),
    }
    if answer.version != Some(1)
        || !lists(&headers, "upgrade", "websocket")
        || !lists(&headers, "connection", "upgrade")
    {
        return Err(HandshakeError::Answer("it is no upgrade to websocket"));
    }
    if one(&headers, "sec-websocket-accept") != Ok(derive_accept(key).as_str()) {
        return Err(HandshakeError::Answer("it does not fit the question's key"));
    }
    if headers.contains_key(header::SEC_WEBSOCKET_EXTENSIONS) {
        return Err(HandshakeError::Answer("it has an extension that nobody asked for"));
    }
    if one(&headers, "sec-websocket-protocol") != Ok(SUBPROTOCOL) {
        return Err(HandshakeError::Answer("its subprotocol is not towline.v1"));
    }
    Ok(Some(taken))
}

fn retry_after(status: StatusCode, headers: &HeaderMap) -> Option<HandshakeError> {
    let busy = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS];
    let seconds = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    busy.contains(&status).then(|| HandshakeError::Busy(Duration::from_secs(seconds)))
}

/// The value of Sec-WebSocket-Accept for an upgrade request with these headers (RFC 6455, section 4.2.1).
///
/// # Errors
/// What is wrong with them, in a few words.
pub fn accept_key(headers: &HeaderMap) -> Result<String, &'static str> {
    if !lists(headers, "upgrade", "websocket") || !lists(headers, "connection", "upgrade") {
        return Err("not a websocket upgrade");
    }
    if one(headers, "sec-websocket-version")? != "13" {
        return Err("websocket version 13 is needed");
    }
    if !lists(headers, "sec-websocket-protocol", SUBPROTOCOL) {
        return Err("subprotocol towline.v1 is needed");
    }
    let key = one(headers, "sec-websocket-key")?;
    if !data_encoding::BASE64.decode(key.as_bytes()).is_ok_and(|key| key.len() == 16) {
        return Err("the websocket key is not 16 bytes in base64");
    }
    Ok(derive_accept(key))
}

fn derive_accept(key: &str) -> String {
    // SHA-1 proves nothing here: it shows that the server speaks WebSocket.
    let mut hash = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key.as_bytes());
    hash.update(GUID);
    data_encoding::BASE64.encode(hash.finish().as_ref())
}

/// The only value of a header.
fn one<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<&'a str, &'static str> {
    let mut values = headers.get_all(name).iter();
    match (values.next().map(HeaderValue::to_str), values.next()) {
        (Some(Ok(value)), None) => Ok(value),
        _ => Err("a websocket header is missing, repeated or not text"),
    }
}

fn lists(headers: &HeaderMap, name: &'static str, wanted: &str) -> bool {
    one(headers, name)
        .is_ok_and(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(wanted)))
}

#[cfg(test)]
mod tests;
