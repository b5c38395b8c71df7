//! The end of what a caller sends is not the end of what it waits for.
//!
//! hyper takes an end that it reads while an answer is on its way for a caller that left, and drops the answer; asked to
//! allow half-closed connections it does not read at all meanwhile, and never learns that a caller left. In between is
//! what is wanted: a *clean* end, which is the caller's or the head guard's behind a refused request, waits until the
//! answer is whole; a stream that *broke* is told at once. Needed by whoever puts [`super::HeadGuard`] before hyper.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::write_through::write_through;

/// Where the connection's current request is.
#[derive(Clone, Debug, Default)]
pub struct Flight(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// A request's head was read, and its answer is not whole.
    answering: bool,
    /// Its body is still to be read: an end that comes now cuts it short.
    reading: bool,
    /// Waits for the answer to be whole.
    reader: Option<Waker>,
}

/// Lives as long as the answer is not whole.
#[derive(Debug)]
pub struct Answering(Flight);

/// Lives as long as the request's body is not whole, and somebody wants it.
#[derive(Debug)]
pub struct Reading(Flight);

impl Flight {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request's head was read. The answer is whole once the second of what is returned is dropped, its body read or unwanted once the
    /// first is.
    pub fn begin(&self) -> (Reading, Answering) {
        let mut state = self.lock();
        (state.answering, state.reading) = (true, true);
        (Reading(self.clone()), Answering(self.clone()))
    }

    /// The answer that is being made is the connection's last: an end of its input means nothing any more. To be said before the library
    /// reads on, which it does before it first polls the answer.
    pub fn is_last(&self) {
        let mut state = self.lock();
        (state.answering, state.reading) = (true, false);
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.lock().reading = false;
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.answering = false;
        if let Some(waker) = state.reader.take() {
            waker.wake();
        }
    }
}

/// The connection, as hyper sees it.
#[derive(Debug)]
pub struct Steady<IO> {
    io: IO,
    flight: Flight,
}

impl<IO> Steady<IO> {
    /// A connection without a request yet.
    pub fn new(io: IO) -> (Self, Flight) {
        let flight = Flight::default();
        (Self { io, flight: flight.clone() }, flight)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Steady<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        if buf.filled().len() == before && buf.remaining() > 0 {
            let mut state = this.flight.lock();
            if state.answering && !state.reading {
                // An end is read again as often as it is asked for.
                state.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Steady<IO> {
    write_through!(io);
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn a_clean_end_waits_for_the_answer_and_cuts_a_body() {
        let (client, server) = duplex(64);
        let (mut steady, flight) = Steady::new(server);
        drop(client);
        assert_eq!(steady.read(&mut [0; 8]).await.unwrap(), 0, "between requests an end is an end");
        let (reading, answering) = flight.begin();
        assert_eq!(steady.read(&mut [0; 8]).await.unwrap(), 0, "a body that ends early is told at once");
        drop(reading);
        let end = tokio::spawn(async move { steady.read(&mut [0; 8]).await.unwrap() });
        tokio::task::yield_now().await;
        assert!(!end.is_finished());
        drop(answering);
        assert_eq!(end.await.unwrap(), 0);
    }

    #[tokio::test]
    async fn behind_the_last_answer_no_end_comes() {
        let (client, server) = duplex(64);
        let (mut steady, flight) = Steady::new(server);
        flight.is_last();
        drop(client);
        let read = tokio::time::timeout(std::time::Duration::ZERO, steady.read(&mut [0; 8])).await;
        assert!(read.is_err(), "{read:?}");
    }
}
