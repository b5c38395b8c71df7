//! The head of an HTTP answer, overheard: who answers, and at what time there.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::SystemTime,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// No head is longer; what comes after it is not kept.
const MAX_HEAD: usize = 16 * 1024;

/// Keeps the first bytes that are read.
#[derive(Debug)]
pub(super) struct Tap<IO> {
    io: IO,
    tape: Tape,
}

/// What a [`Tap`] has kept.
#[derive(Clone, Debug, Default)]
pub(super) struct Tape(Arc<Mutex<Vec<u8>>>);

impl<IO> Tap<IO> {
    pub(super) fn new(io: IO) -> (Self, Tape) {
        let tape = Tape::default();
        (Self { io, tape: tape.clone() }, tape)
    }
}

impl Tape {
    /// The `Date` of the answer (RFC 9110, section 6.6.1).
    pub(super) fn date(&self) -> Option<SystemTime> {
        let date = self.header("date")?;
        let date = jiff::fmt::rfc2822::parse(&date).ok()?;
        Some(SystemTime::from(date.timestamp()))
    }

    /// Who says that the answer is theirs, or that they passed it on.
    pub(super) fn by(&self) -> Option<String> {
        let named: Vec<String> = ["server", "via"].into_iter().filter_map(|name| self.header(name)).collect();
        (!named.is_empty()).then(|| named.join(", "))
    }

    fn header(&self, name: &str) -> Option<String> {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut fields = [httparse::EMPTY_HEADER; 100];
        let mut answer = httparse::Response::new(&mut fields);
        answer.parse(&bytes).ok()?;
        let field = answer.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
        Some(String::from_utf8_lossy(field.value).trim().to_owned())
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Tap<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut me.io).poll_read(cx, buf))?;
        let mut kept = me.tape.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MAX_HEAD.saturating_sub(kept.len());
        let read = &buf.filled()[before..];
        kept.extend_from_slice(&read[..read.len().min(room)]);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Tap<IO> {
    crate::write_through::write_through!(io);
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[tokio::test]
    async fn the_time_and_whoever_answers_are_overheard() {
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nserver: nginx\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nVia: 1.1 corp\r\n\r\nmore";
        let (mut tap, tape) = Tap::new(&answer[..]);
        let mut read = Vec::new();
        tap.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, answer);
        assert_eq!(tape.date(), Some(UNIX_EPOCH + Duration::from_secs(784_111_777)));
        assert_eq!(tape.by().as_deref(), Some("nginx, 1.1 corp"));
        let (mut tap, tape) = Tap::new(&b"SSH-2.0-x\r\n"[..]);
        tap.read_to_end(&mut read).await.unwrap();
        assert_eq!((tape.date(), tape.by()), (None, None));
    }
}
