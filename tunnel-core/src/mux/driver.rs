//! Moves bytes between a carrier and a state machine.

use std::{
    future::{Future as _, poll_fn},
    io,
    pin::pin,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::Notify,
    time::{sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::proto::{
    CloseReason,
    link::{DEAD_AFTER, PING_AFTER, Violation},
};

/// The least and the most that one read asks for: an idle connection holds little, a busy one reads in blocks.
const READ_MIN: usize = 2 * 1024;
const READ_MAX: usize = 64 * 1024;
/// How long a connection that ends may take to say so.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A connection's state behind a lock: an endpoint's, or a relay leg's.
pub trait Machine: Send + Sync {
    /// Takes all whole frames off the front of `bytes`. The newest were `waited` for.
    ///
    /// # Errors
    /// If the peer breaks the connection's rules.
    fn on_bytes(&self, bytes: &mut BytesMut, now: Instant, waited: Duration) -> Result<(), Violation>;

    /// Appends what can be sent now; returns the bytes of stream payload among it.
    fn fill(&self, out: &mut BytesMut) -> usize;

    /// A batch with `payload` bytes of streams is in the kernel.
    fn on_written(&self, payload: usize, now: Instant);

    /// When [`Machine::tick`] must be called next.
    fn deadline(&self) -> Instant;

    /// Does what time asks for.
    ///
    /// # Errors
    /// If the peer is dead.
    fn tick(&self, now: Instant) -> Result<(), Violation>;

    /// Told (one permit) when [`Machine::fill`] may have something to append.
    fn output(&self) -> &Notify;

    /// The connection ends for this reason: queue the GOAWAY that says so.
    fn last_words(&self, reason: CloseReason, detail: &str);
}

/// How a connection ended.
#[derive(Debug)]
pub enum Closed {
    /// The peer ended the carrier.
    ByPeer,
    /// This side was told to stop.
    Stopped,
    /// The carrier broke.
    Io(io::Error),
    /// The peer broke the rules, or is dead.
    Violation(Violation),
}

impl Closed {
    /// The reason that streams of the connection end with, and a few words.
    pub fn reason(&self) -> (CloseReason, String) {
        match self {
            Self::ByPeer => (CloseReason::Detached, "the peer closed the connection".into()),
            Self::Stopped => (CloseReason::Draining, "this side closed the connection".into()),
            Self::Io(error) => (CloseReason::Detached, error.to_string()),
            Self::Violation(violation) => (violation.reason, violation.detail.clone()),
        }
    }
}

/// Runs a connection until it ends. `early` holds bytes that were read from the carrier before the mux began.
///
/// Dropping the future drops the carrier. The machine is not told that it is closed: the caller does that, so that
/// it happens on cancellation too.
pub async fn drive<IO, M>(io: IO, machine: &M, early: BytesMut, stop: CancellationToken) -> Closed
where
    IO: AsyncRead + AsyncWrite + Send,
    M: Machine,
{
    let (reader, mut writer) = tokio::io::split(io);
    // What of a batch is not yet in the carrier. It outlives the writing, which may be dropped half-way: last words
    // in the middle of a frame would be taken for its payload.
    let mut batch = BytesMut::new();
    let timer = Timer { changed: Notify::new(), armed: AtomicU64::new(u64::MAX), start: now() };
    let closed = {
        let reading = read(reader, machine, early, &timer);
        let writing = write(&mut writer, &mut batch, machine, &timer);
        let ticking = tick(machine, &timer);
        tokio::select! {
            closed = reading => closed,
            error = writing => Closed::Io(error),
            violation = ticking => Closed::Violation(violation),
            () = stop.cancelled() => Closed::Stopped,
        }
    };
    let say = match &closed {
        Closed::Violation(violation) => Some((violation.reason, violation.detail.as_str())),
        Closed::Stopped => Some((CloseReason::Draining, "")),
        Closed::ByPeer | Closed::Io(_) => None,
    };
    if let Some((reason, detail)) = say {
        machine.last_words(reason, detail);
        machine.fill(&mut batch);
        let ending = async {
            writer.write_all_buf(&mut batch).await?;
            writer.shutdown().await
        };
        // Best effort: the peer may be the reason why the connection ends.
        let _ended = timeout(LAST_WORDS, ending).await;
    }
    closed
}

/// The clock that tests can hold still.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

struct Timer {
    changed: Notify,
    /// What the timer sleeps until, in milliseconds since `start`.
    armed: AtomicU64,
    start: Instant,
}

impl Timer {
    fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX)
    }

    /// Something has changed: the timer may have to wake up sooner.
    fn look(&self, machine: &impl Machine) {
        if self.millis(machine.deadline()) < self.armed.load(Ordering::Relaxed) {
            self.changed.notify_one();
        }
    }

    /// The same where something was done here: that makes a deadline sooner only where one is far off, after a silence that was asked for.
    fn look_if_far(&self, machine: &impl Machine) {
        let soon = self.millis(now()) + (PING_AFTER + DEAD_AFTER).as_millis() as u64;
        if self.armed.load(Ordering::Relaxed) > soon {
            self.look(machine);
        }
    }
}

async fn read<IO, M>(mut reader: ReadHalf<IO>, machine: &M, mut bytes: BytesMut, timer: &Timer) -> Closed
where
    IO: AsyncRead + AsyncWrite,
    M: Machine,
{
    let mut size = READ_MIN;
    let mut waited = Duration::ZERO;
    loop {
        if !bytes.is_empty()
            && let Err(violation) = machine.on_bytes(&mut bytes, now(), waited)
        {
            return Closed::Violation(violation);
        }
        timer.look(machine);
        if bytes.capacity() - bytes.len() < size / 2 {
            bytes.reserve(size);
        }
        let mut since = None;
        let read = {
            let mut reading = pin!(reader.read_buf(&mut bytes));
            poll_fn(|cx| {
                let read = reading.as_mut().poll(cx);
                if read.is_pending() {
                    since.get_or_insert_with(now);
                }
                read
            })
            .await
        };
        waited = since.map_or(Duration::ZERO, |since| now().saturating_duration_since(since));
        match read {
            Ok(0) => return Closed::ByPeer,
            Ok(n) if n >= size / 2 => size = (size * 2).min(READ_MAX),
            Ok(n) if n < size / 8 => {
                size = (size / 2).max(READ_MIN);
                // What is read next is little, too: it needs no such block.
                let rest = bytes.split();
                bytes = BytesMut::with_capacity(size.max(rest.len()));
                bytes.extend_from_slice(&rest);
            }
            Ok(_) => {}
            Err(error) => return Closed::Io(error),
        }
    }
}

async fn write<IO, M>(
    writer: &mut WriteHalf<IO>,
    batch: &mut BytesMut,
    machine: &M,
    timer: &Timer,
) -> io::Error
where
    IO: AsyncRead + AsyncWrite,
    M: Machine,
{
    loop {
        let payload = machine.fill(batch);
        if batch.is_empty() {
            // Woken for another reason, such as a silence that was agreed on.
            timer.look(machine);
            // An idle connection holds no buffer.
            *batch = BytesMut::new();
            machine.output().notified().await;
            continue;
        }
        timer.look_if_far(machine);
        if let Err(error) = writer.write_all_buf(batch).await {
            return error;
        }
        if let Err(error) = writer.flush().await {
            return error;
        }
        machine.on_written(payload, now());
    }
}

async fn tick<M: Machine>(machine: &M, timer: &Timer) -> Violation {
    loop {
        let deadline = machine.deadline();
        timer.armed.store(timer.millis(deadline), Ordering::Relaxed);
        tokio::select! {
            () = sleep_until(deadline.into()) => {
                if let Err(violation) = machine.tick(now()) {
                    return violation;
                }
                machine.output().notify_one();
            }
            () = timer.changed.notified() => {}
        }
    }
}
