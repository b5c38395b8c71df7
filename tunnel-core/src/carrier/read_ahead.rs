//! Larger reads below TLS: rustls asks for 4 KiB at a time, which under bulk is four calls of the kernel for each record.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use crate::write_through::write_through;

/// What is read at once while there is so much: two records of TLS.
const AHEAD: usize = 32 * 1024;

/// Reads ahead while bytes come faster than they are asked for. A connection that is quiet, or whose bytes come one by one, holds no
/// buffer. Writes are passed on as they are.
#[derive(Debug)]
pub struct ReadAhead<IO> {
    io: IO,
    /// What was read and not asked for yet.
    ahead: BytesMut,
    /// The last read had as much as was asked for: more may wait.
    more: bool,
}

impl<IO> ReadAhead<IO> {
    /// Over a connection that nothing was read from.
    pub fn new(io: IO) -> Self {
        Self { io, ahead: BytesMut::new(), more: false }
    }

    /// What it reads from.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for ReadAhead<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        if me.ahead.is_empty() {
            let asked = into.remaining();
            if !me.more || asked >= AHEAD {
                let before = into.filled().len();
                ready!(Pin::new(&mut me.io).poll_read(cx, into))?;
                me.more = asked > 0 && into.filled().len() - before == asked;
                return Poll::Ready(Ok(()));
            }
            me.ahead.reserve(AHEAD);
            let read = poll_read_buf(Pin::new(&mut me.io), cx, &mut me.ahead);
            if !matches!(read, Poll::Ready(Ok(n)) if n > 0) {
                me.ahead = BytesMut::new();
                me.more = false;
            }
            if ready!(read)? == 0 {
                return Poll::Ready(Ok(()));
            }
            me.more = me.ahead.len() >= AHEAD;
        }
        let taken = into.remaining().min(me.ahead.len());
        into.put_slice(&me.ahead[..taken]);
        me.ahead.advance(taken);
        if me.ahead.is_empty() && !me.more {
            me.ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for ReadAhead<IO> {
    write_through!(io);
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Gives bytes in pieces, as a kernel does, and says how large each read was that asked for them.
    struct Pieces {
        pieces: Vec<Vec<u8>>,
        asked: Vec<usize>,
    }

    impl AsyncRead for Pieces {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            into: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.asked.push(into.remaining());
            let Some(piece) = self.pieces.first_mut() else { return Poll::Ready(Ok(())) };
            let rest = piece.split_off(into.remaining().min(piece.len()));
            into.put_slice(piece);
            if rest.is_empty() {
                self.pieces.remove(0);
            } else {
                self.pieces[0] = rest;
            }
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn bulk_is_read_in_large_pieces_and_comes_as_it_was() {
        let all: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
        let pieces = vec![all[..200_000].to_vec(), all[200_000..].to_vec()];
        let mut ahead = ReadAhead::new(Pieces { pieces, asked: Vec::new() });
        let (mut came, mut part) = (Vec::new(), [0; 4096]);
        loop {
            match ahead.read(&mut part).await.unwrap() {
                0 => break,
                n => came.extend_from_slice(&part[..n]),
            }
        }
        assert!(came == all);
        assert!(ahead.io.asked.len() < 20, "{:?}", ahead.io.asked);
        assert_eq!((ahead.ahead.capacity(), ahead.more), (0, false), "nothing is held at the end");
    }

    #[tokio::test]
    async fn what_comes_bit_by_bit_holds_no_buffer() {
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        let mut ahead = ReadAhead::new(near);
        let mut part = [0; 4096];
        for _ in 0..3 {
            far.write_all(b"a key").await.unwrap();
            assert_eq!(ahead.read(&mut part).await.unwrap(), 5);
            assert_eq!(ahead.ahead.capacity(), 0);
        }
        far.write_all(&[7; 10_000]).await.unwrap();
        for taken in [4096, 4096, 1808] {
            assert_eq!(ahead.read(&mut part).await.unwrap(), taken);
        }
        assert_eq!(ahead.ahead.capacity(), 0, "the kernel had no more");
        far.write_all(&[7; 4096]).await.unwrap();
        assert_eq!(ahead.read(&mut part).await.unwrap(), 4096);
        let waits = tokio::time::timeout(std::time::Duration::ZERO, ahead.read(&mut part)).await;
        assert!(waits.is_err());
        assert_eq!(ahead.ahead.capacity(), 0, "nothing is held while nothing comes");
        drop(far);
        assert_eq!(ahead.read(&mut part).await.unwrap(), 0);
    }
}
