//! A line under virtual time: what is written arrives after a delay, at a rate, in order.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

/// What a line is like, the same in both directions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Like {
    /// From one end to the other.
    pub(crate) delay: Duration,
    /// Bytes a second.
    pub(crate) rate: f64,
    /// Bytes that kernels and the line hold; a writer waits for room.
    pub(crate) room: usize,
}

impl Like {
    /// A line that takes no time and holds little.
    pub(crate) fn short(room: usize) -> Self {
        Self { delay: Duration::ZERO, rate: f64::INFINITY, room }
    }
}

/// One direction.
#[derive(Debug)]
struct Pipe {
    like: Like,
    on_its_way: VecDeque<(Instant, Bytes)>,
    held: usize,
    /// When the last byte so far has left.
    busy_until: Instant,
    ended: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

type Shared = Arc<Mutex<Pipe>>;

/// One end of a line. Dropping it ends both directions.
#[derive(Debug)]
pub(crate) struct End {
    inward: Shared,
    outward: Shared,
    arrival: Option<Pin<Box<Sleep>>>,
}

pub(crate) fn line(like: Like) -> (End, End) {
    let pipe = || {
        Arc::new(Mutex::new(Pipe {
            like,
            on_its_way: VecDeque::new(),
            held: 0,
            busy_until: Instant::now(),
            ended: false,
            reader: None,
            writer: None,
        }))
    };
    let (a, b) = (pipe(), pipe());
    let end = |inward: &Shared, outward: &Shared| End {
        inward: Arc::clone(inward),
        outward: Arc::clone(outward),
        arrival: None,
    };
    (end(&a, &b), end(&b, &a))
}

fn lock(pipe: &Shared) -> MutexGuard<'_, Pipe> {
    pipe.lock().unwrap_or_else(PoisonError::into_inner)
}

fn end(pipe: &Shared) {
    let mut pipe = lock(pipe);
    pipe.ended = true;
    for waker in [pipe.reader.take(), pipe.writer.take()].into_iter().flatten() {
        waker.wake();
    }
}

impl Drop for End {
    fn drop(&mut self) {
        end(&self.inward);
        end(&self.outward);
    }
}

impl AsyncRead for End {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut pipe = lock(&this.inward);
        let mut arrived = false;
        while let Some((due, bytes)) = pipe.on_its_way.front_mut()
            && *due <= Instant::now()
            && buf.remaining() > 0
        {
            let part = bytes.len().min(buf.remaining());
            buf.put_slice(&bytes[..part]);
            bytes.advance(part);
            if bytes.is_empty() {
                pipe.on_its_way.pop_front();
            }
            pipe.held -= part;
            arrived = true;
        }
        if arrived {
            if let Some(writer) = pipe.writer.take() {
                writer.wake();
            }
            return Poll::Ready(Ok(()));
        }
        match pipe.on_its_way.front() {
            None if pipe.ended => return Poll::Ready(Ok(())),
            None => pipe.reader = Some(cx.waker().clone()),
            Some((due, _)) => {
                let sleep = this.arrival.get_or_insert_with(|| Box::pin(sleep_until(*due)));
                sleep.as_mut().reset(*due);
                if sleep.as_mut().poll(cx).is_ready() {
                    cx.waker().wake_by_ref();
                }
            }
        }
        Poll::Pending
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut pipe = lock(&self.outward);
        if pipe.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let part = bytes.len().min(pipe.like.room - pipe.held);
        if part == 0 {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let leaves =
            pipe.busy_until.max(Instant::now()) + Duration::from_secs_f64(part as f64 / pipe.like.rate);
        let due = leaves + pipe.like.delay;
        pipe.busy_until = leaves;
        pipe.held += part;
        pipe.on_its_way.push_back((due, Bytes::copy_from_slice(&bytes[..part])));
        if let Some(reader) = pipe.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(part))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        end(&self.outward);
        Poll::Ready(Ok(()))
    }
}
