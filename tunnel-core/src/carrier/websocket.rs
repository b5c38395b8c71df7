//! WebSocket as a byte pipe: binary messages whose boundaries mean nothing.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use futures_util::{Sink, Stream};
use http::HeaderMap;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Error, Message,
        error::{CapacityError, ProtocolError},
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::SUBPROTOCOL;

/// Longest message that is written; a batch of the mux fits one.
const WRITE_MESSAGE: usize = 128 * 1024;
/// Longest message and frame that are taken. A peer of ours never comes near.
const READ_MESSAGE: usize = 256 * 1024;

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        // Eagerly allocated per connection: what an idle agent costs.
        .read_buffer_size(8 * 1024)
        // A batch is one message and one write, made by the flush that follows it.
        .write_buffer_size(WRITE_MESSAGE)
        .max_write_buffer_size(4 * WRITE_MESSAGE)
        .max_message_size(Some(READ_MESSAGE))
        .max_frame_size(Some(READ_MESSAGE))
}

/// A WebSocket connection as bytes. Ends with a close frame; a peer's close frame is the end of reading.
#[derive(Debug)]
pub struct WebSocketCarrier<IO> {
    socket: WebSocketStream<IO>,
    unread: Bytes,
    ended: bool,
    /// What to tell the peer before its fault ends the connection.
    fault: Option<(CloseCode, &'static str)>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> WebSocketCarrier<IO> {
    /// The relay's side, once it has answered the upgrade.
    pub async fn server(io: IO) -> Self {
        Self::new(WebSocketStream::from_raw_socket(io, Role::Server, Some(config())).await)
    }

    /// Sends the upgrade and waits for its answer.
    ///
    /// # Errors
    /// If what answers is not a towline relay, or the connection fails.
    pub async fn client(io: IO, authority: &str) -> Result<Self, Error> {
        use tungstenite::client::IntoClientRequest as _;
        let uri = format!("wss://{authority}{}", super::CONNECT_PATH);
        let mut request = uri.into_client_request()?;
        let protocol = http::HeaderValue::from_static(SUBPROTOCOL);
        request.headers_mut().insert(http::header::SEC_WEBSOCKET_PROTOCOL, protocol);
        let (socket, _response) =
            tokio_tungstenite::client_async_with_config(request, io, Some(config())).await?;
        Ok(Self::new(socket))
    }

    fn new(socket: WebSocketStream<IO>) -> Self {
        Self { socket, unread: Bytes::new(), ended: false, fault: None }
    }

    /// Tells the peer its fault with a close frame (RFC 6455, section 7.4.1), then ends.
    fn poll_fault(&mut self, cx: &mut Context<'_>, error: Error) -> Poll<io::Result<()>> {
        let (code, text) = match &error {
            Error::Capacity(CapacityError::MessageTooLong { .. }) => (CloseCode::Size, "message too long"),
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) | Error::ConnectionClosed => {
                return Poll::Ready(Err(io_error(error)));
            }
            Error::Protocol(_) | Error::Utf8(_) => (CloseCode::Protocol, "protocol error"),
            _ => return Poll::Ready(Err(io_error(error))),
        };
        if self.fault.replace((code, text)).is_none() {
            let frame = CloseFrame { code, reason: text.into() };
            // Best effort: the peer may not be reading.
            let _queued = Pin::new(&mut self.socket).start_send(Message::Close(Some(frame)));
            let _flushed = Pin::new(&mut self.socket).poll_flush(cx);
        }
        Poll::Ready(Err(io_error(error)))
    }
}

fn io_error(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        other => io::Error::new(io::ErrorKind::ConnectionAborted, other),
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocketCarrier<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.unread.is_empty() {
                let part = this.unread.len().min(buf.remaining());
                buf.put_slice(&this.unread[..part]);
                this.unread.advance(part);
                return Poll::Ready(Ok(()));
            }
            if this.ended {
                return Poll::Ready(Ok(()));
            }
            match ready!(Pin::new(&mut this.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => this.unread = bytes,
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(_))) | None => this.ended = true,
                Some(Ok(Message::Text(_))) => {
                    this.ended = true;
                    let frame = CloseFrame { code: CloseCode::Unsupported, reason: "binary only".into() };
                    let _queued = Pin::new(&mut this.socket).start_send(Message::Close(Some(frame)));
                    let _flushed = Pin::new(&mut this.socket).poll_flush(cx);
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "a text message")));
                }
                Some(Err(error)) => {
                    this.ended = true;
                    return this.poll_fault(cx, error);
                }
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocketCarrier<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.socket).poll_ready(cx)).map_err(io_error)?;
        let part = bytes.len().min(WRITE_MESSAGE);
        let message = Message::Binary(Bytes::copy_from_slice(&bytes[..part]));
        Pin::new(&mut this.socket).start_send(message).map_err(io_error)?;
        Poll::Ready(Ok(part))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx).map_err(io_error)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.get_mut().socket).poll_close(cx)) {
            Ok(()) | Err(Error::ConnectionClosed | Error::AlreadyClosed) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(io_error(error))),
        }
    }
}

/// The value of Sec-WebSocket-Accept for an upgrade request with these headers (RFC 6455, section 4.2.1).
///
/// # Errors
/// What is wrong with them, in a few words.
pub fn accept_key(headers: &HeaderMap) -> Result<String, &'static str> {
    let one = |name: &'static str| -> Result<&str, &'static str> {
        let mut values = headers.get_all(name).iter();
        match (values.next().map(|value| value.to_str()), values.next()) {
            (Some(Ok(value)), None) => Ok(value),
            _ => Err("a websocket header is missing, repeated or not text"),
        }
    };
    let lists = |name: &'static str, wanted: &str| {
        one(name).is_ok_and(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(wanted)))
    };
    if !lists("upgrade", "websocket") || !lists("connection", "upgrade") {
        return Err("not a websocket upgrade");
    }
    if one("sec-websocket-version")? != "13" {
        return Err("websocket version 13 is needed");
    }
    if !lists("sec-websocket-protocol", SUBPROTOCOL) {
        return Err("subprotocol towline.v1 is needed");
    }
    let key = one("sec-websocket-key")?;
    if !data_encoding::BASE64.decode(key.as_bytes()).is_ok_and(|key| key.len() == 16) {
        return Err("the websocket key is not 16 bytes in base64");
    }
    Ok(derive_accept_key(key.as_bytes()))
}

#[cfg(test)]
mod tests;
