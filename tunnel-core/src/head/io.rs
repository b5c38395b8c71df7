//! The guard between a connection and the HTTP library that serves it.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use http::HeaderMap;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

use super::{HeadError, RequestGuard};
use crate::{ids::StreamKey, write_through::write_through};

/// The header of the request that stands in for one that was refused.
const REFUSED: &str = "towline-refused-head";
const READ: usize = 16 * 1024;

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// From a head's first byte to its last.
    pub head: Duration,
    /// Between requests.
    pub idle: Duration,
}

#[derive(Debug)]
struct Shared {
    guard: RequestGuard,
    refused: Option<HeadError>,
    /// Waits for the answer to an upgrade.
    reader: Option<Waker>,
}

/// Tells the guard how requests were answered, and the service which request stands in for one that was refused.
#[derive(Clone, Debug)]
pub struct GuardHandle {
    shared: Arc<Mutex<Shared>>,
    nonce: StreamKey,
}

impl GuardHandle {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the request was refused, if these headers are those of the request that stands in for it. The service
    /// answers it, so that the answer comes in its turn; the connection ends after it.
    pub fn refusal(&self, headers: &HeaderMap) -> Option<HeadError> {
        let named = headers.get(REFUSED)?.as_bytes() == self.nonce.to_string().as_bytes();
        self.lock().refused.filter(|_| named)
    }

    /// A request that asked for an upgrade is about to be answered. Unless it was accepted, nothing more is taken
    /// from this connection: what a client sends meanwhile could be taken for either (THREATS T9).
    pub fn answered_upgrade(&self, accepted: bool) {
        let mut shared = self.lock();
        shared.guard.answered(accepted);
        if let Some(waker) = shared.reader.take() {
            waker.wake();
        }
    }
}

/// A connection whose requests were checked before the library sees them.
#[derive(Debug)]
pub struct HeadGuard<IO> {
    io: IO,
    handle: GuardHandle,
    input: BytesMut,
    passed: BytesMut,
    patience: Patience,
    timer: Pin<Box<Sleep>>,
    /// What the timer stands for: a head that has begun, or none.
    in_head: bool,
    ended: bool,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> HeadGuard<IO> {
    /// Puts a guard in front of a connection.
    pub fn new(io: IO, patience: Patience) -> (Self, GuardHandle) {
        let shared = Shared { guard: RequestGuard::new(), refused: None, reader: None };
        let handle = GuardHandle { shared: Arc::new(Mutex::new(shared)), nonce: StreamKey::random() };
        let guard = Self {
            io,
            handle: handle.clone(),
            input: BytesMut::new(),
            passed: BytesMut::new(),
            patience,
            timer: Box::pin(sleep(patience.idle)),
            in_head: false,
            ended: false,
        };
        (guard, handle)
    }

    /// The request that stands in for one that was refused. It can't be forged: nobody else knows the nonce.
    fn stand_in(&mut self, error: HeadError) {
        self.handle.lock().refused = Some(error);
        let head = format!(
            "GET / HTTP/1.1\r\nHost: refused\r\n{REFUSED}: {}\r\nConnection: close\r\n\r\n",
            self.handle.nonce
        );
        self.passed.extend_from_slice(head.as_bytes());
        self.input.clear();
        self.ended = true;
    }

    /// Whether the client's time for what it is at is over.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Option<HeadError> {
        let shared = self.handle.lock();
        let (in_head, between) = (shared.guard.is_inside_head(), shared.guard.is_between_requests());
        drop(shared);
        if !in_head && !between {
            return None;
        }
        if in_head != self.in_head {
            self.in_head = in_head;
            let within = if in_head { self.patience.head } else { self.patience.idle };
            self.timer.as_mut().reset(Instant::now() + within);
        }
        self.timer.as_mut().poll(cx).is_ready().then_some(HeadError::TooSlow)
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut space = [0; READ];
        let mut buf = ReadBuf::new(&mut space);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf))?;
        self.input.extend_from_slice(buf.filled());
        Poll::Ready(Ok(buf.filled().len()))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for HeadGuard<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.passed.is_empty() {
                let part = this.passed.len().min(buf.remaining());
                buf.put_slice(&this.passed[..part]);
                this.passed.advance(part);
                return Poll::Ready(Ok(()));
            }
            if this.ended {
                return Poll::Ready(Ok(()));
            }
            let mut shared = this.handle.lock();
            if shared.guard.is_raw() && this.input.is_empty() {
                drop(shared);
                return Pin::new(&mut this.io).poll_read(cx, buf);
            }
            let fed = shared.guard.feed(&mut this.input, &mut this.passed);
            let (ended, undecided) = (shared.guard.has_ended(), shared.guard.is_undecided());
            if undecided {
                shared.reader = Some(cx.waker().clone());
            }
            drop(shared);
            if let Err(error) = fed {
                this.stand_in(error);
                continue;
            }
            if !this.passed.is_empty() {
                // The idle time begins anew after each request.
                this.in_head = true;
                continue;
            }
            if ended {
                this.ended = true;
                continue;
            }
            if undecided && !this.input.is_empty() {
                // The client speaks before it was answered: it waits, and we hold no more than this.
                return Poll::Pending;
            }
            if let Some(error) = this.poll_patience(cx) {
                if this.in_head {
                    this.stand_in(error);
                } else {
                    this.ended = true;
                }
                continue;
            }
            match ready!(this.poll_fill(cx)) {
                Ok(0) => this.ended = true,
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for HeadGuard<IO> {
    write_through!(io);
}
