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
pub use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Error,
        error::{CapacityError, ProtocolError},
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use super::{STREAMS_WAIT, SUBPROTOCOL, dial::Errand};

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
    /// The peer's close frame came; ours may not be sent yet.
    closing: bool,
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
    pub async fn client(io: IO, authority: &str, errand: Errand) -> Result<Self, Error> {
        use tungstenite::client::IntoClientRequest as _;
        let uri = format!("wss://{authority}{}", super::CONNECT_PATH);
        let mut request = uri.into_client_request()?;
        let protocol = http::HeaderValue::from_static(SUBPROTOCOL);
        request.headers_mut().insert(http::header::SEC_WEBSOCKET_PROTOCOL, protocol);
        if errand == Errand::GoOn {
            request.headers_mut().insert(STREAMS_WAIT, http::HeaderValue::from_static("1"));
        }
        let (socket, _response) =
            tokio_tungstenite::client_async_with_config(request, io, Some(config())).await?;
        Ok(Self::new(socket))
    }

    fn new(socket: WebSocketStream<IO>) -> Self {
        Self { socket, unread: Bytes::new(), closing: false, ended: false, fault: None }
    }

    /// The next message with data in it; none once the peer has closed. Pings and the close frame are answered
    /// (RFC 6455, section 5.5), and a peer that breaks the rules is told so.
    ///
    /// # Errors
    /// If the peer broke the rules, or the connection.
    pub fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Message>>> {
        loop {
            if self.closing && !self.ended {
                let _answered = ready!(Pin::new(&mut self.socket).poll_flush(cx));
                self.ended = true;
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(message @ (Message::Binary(_) | Message::Text(_)))) => {
                    return Poll::Ready(Some(Ok(message)));
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(_))) => self.closing = true,
                None => self.ended = true,
                Some(Err(error)) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(self.fault(cx, error))));
                }
            }
        }
    }

    /// Sends one message.
    ///
    /// # Errors
    /// If the connection is closed or breaks.
    pub async fn send_message(&mut self, message: Message) -> io::Result<()> {
        futures_util::SinkExt::send(&mut self.socket, message).await.map_err(io_error)
    }

    /// Tells the peer its fault with a close frame (RFC 6455, section 7.4.1).
    fn fault(&mut self, cx: &mut Context<'_>, error: Error) -> io::Error {
        let (code, text) = match &error {
            Error::Capacity(CapacityError::MessageTooLong { .. }) => (CloseCode::Size, "message too long"),
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) | Error::ConnectionClosed => {
                return io_error(error);
            }
            Error::Protocol(_) => (CloseCode::Protocol, "protocol error"),
            Error::Utf8(_) => (CloseCode::Invalid, "text that is not UTF-8"),
            _ => return io_error(error),
        };
        if self.fault.replace((code, text)).is_none() {
            let frame = CloseFrame { code, reason: text.into() };
            // Best effort: the peer may not be reading.
            let _queued = Pin::new(&mut self.socket).start_send(Message::Close(Some(frame)));
            let _flushed = Pin::new(&mut self.socket).poll_flush(cx);
        }
        io_error(error)
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
            match ready!(this.poll_message(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Ok(Message::Binary(bytes))) => this.unread = bytes,
                Some(Ok(_text)) => {
                    this.ended = true;
                    let frame = CloseFrame { code: CloseCode::Unsupported, reason: "binary only".into() };
                    let _queued = Pin::new(&mut this.socket).start_send(Message::Close(Some(frame)));
                    let _flushed = Pin::new(&mut this.socket).poll_flush(cx);
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "a text message")));
                }
                Some(Err(error)) => return Poll::Ready(Err(error)),
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
