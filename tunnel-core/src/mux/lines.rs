//! The lines of one process: further sessions with the relay, for bulk (`docs/protocol.md`, "Lines").
//!
//! Which of them takes the next stream, whether another should be dialled, and when one is not needed any more. Who dials is the caller, and
//! who owns the tasks that run them.

use std::time::Duration;

use tokio::time::Instant;

use super::Connection;
use crate::backoff::{self, Backoff};

/// Lines that a process may have.
pub const MAX_LINES: u32 = 3;
/// What a stream at a client carries in one direction before it is bulk, in bytes. A listing of a large namespace is less; a copy that is
/// more lasts longer than the pause for moving it.
pub const BULK_AT_CLIENT: u64 = 1 << 20;
/// The same at an agent: less, so that its line is there when the client asks for the stream on its own.
pub const BULK_AT_AGENT: u64 = 512 << 10;

/// A line that a stream was promised to is not given to another, nor ended, for this long (or as long as it may be idle, if that is less): the
/// stream is on its way there.
const PROMISED_FOR: Duration = Duration::from_secs(5);
/// Between attempts to dial: at first at most this, at last at most that.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Where no line takes streams and none may be dialled, it is looked again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A line that stood this long was a good one: what was before is forgotten.
const STEADY: Duration = Duration::from_secs(10);

/// How a process uses lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineSettings {
    /// How many at most, up to [`MAX_LINES`]; 0 for none.
    pub max: u32,
    /// Bytes in one direction that make a stream bulk.
    pub bulk_after: u64,
    /// A line without streams is ended after this.
    pub idle: Duration,
}

impl LineSettings {
    /// So many lines, for streams that carry more than `bulk_after` bytes.
    pub fn new(max: u32, bulk_after: u64) -> Self {
        Self { max: max.min(MAX_LINES), bulk_after, idle: Duration::from_secs(30) }
    }
}

/// Where a stream that became bulk goes.
#[derive(Debug)]
pub enum Choice {
    /// On this line.
    Line(Connection),
    /// On one that has to be dialled: [`Lines::dialled`] or [`Lines::failed`].
    Dial,
    /// It stays where it is, at least until [`Lines::retry_at`].
    Nowhere,
}

#[derive(Debug)]
struct Line {
    connection: Connection,
    since: Instant,
    /// When it had streams last, or was promised to one.
    used: Instant,
    promised_until: Instant,
}

impl Line {
    fn is_free(&self, now: Instant) -> bool {
        self.connection.is_open() && now >= self.promised_until && self.connection.stream_count() == 0
    }
}

/// The lines of one process.
#[derive(Debug)]
pub struct Lines {
    settings: LineSettings,
    open: Vec<Line>,
    backoff: Backoff,
    not_before: Instant,
}

impl Lines {
    /// None yet.
    pub fn new(settings: LineSettings) -> Self {
        let backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        Self { settings, open: Vec::new(), backoff, not_before: Instant::now() }
    }

    /// Where one more bulk stream goes: a line that has none, else a new one, else the one with the fewest.
    pub fn choose(&mut self) -> Choice {
        self.sweep();
        let now = Instant::now();
        let free = self.open.iter().position(|line| line.is_free(now));
        if free.is_none() && self.open.len() < self.settings.max as usize && now >= self.not_before {
            return Choice::Dial;
        }
        let usable = || (0..self.open.len()).filter(|at| self.open[*at].connection.is_open());
        let fewest = || usable().min_by_key(|at| self.open[*at].connection.stream_count());
        match free.or_else(fewest) {
            Some(at) => Choice::Line(self.promise(at)),
            None => {
                // Those that are there take nothing new: whether that changed is not asked all the time.
                self.not_before = self.not_before.max(now + LOOK_AGAIN);
                Choice::Nowhere
            }
        }
    }

    fn promise(&mut self, at: usize) -> Connection {
        let promise = self.promise_lasts();
        let line = &mut self.open[at];
        line.used = Instant::now();
        line.promised_until = line.used + promise;
        line.connection.clone()
    }

    fn promise_lasts(&self) -> Duration {
        PROMISED_FOR.min(self.settings.idle)
    }

    /// A line was dialled, for a stream that became bulk.
    pub fn dialled(&mut self, connection: Connection) {
        let now = Instant::now();
        let promised_until = now + self.promise_lasts();
        self.open.push(Line { connection, since: now, used: now, promised_until });
    }

    /// No line came of it, or it was lost; `hint` is how long the relay wants to be left alone.
    pub fn failed(&mut self, hint: Duration) {
        self.not_before = Instant::now() + self.backoff.after_failure(hint, backoff::random());
    }

    /// Before this none is dialled.
    pub fn retry_at(&self) -> Instant {
        self.not_before
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.open.len()
    }

    /// Ends those that were idle for long, and forgets those that are gone. Returns when to look again, while there are any.
    pub fn sweep(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let (mut lost, mut hint) = (false, Duration::ZERO);
        let (idle, backoff) = (self.settings.idle, &mut self.backoff);
        self.open.retain_mut(|line| {
            let said = line.connection.goaway();
            let going = said.is_some();
            hint = hint.max(said.map_or(Duration::ZERO, |said| said.delay));
            if line.connection.is_closed() {
                lost = true;
                if now >= line.since + STEADY {
                    backoff.reset();
                }
                return false;
            }
            if line.connection.stream_count() > 0 || now < line.promised_until {
                line.used = now;
            }
            let over = line.connection.stream_count() == 0 && (going || now >= line.used + idle);
            if over {
                line.connection.close();
                lost |= going;
            }
            !over
        });
        if lost {
            self.failed(hint);
        }
        (!self.open.is_empty()).then(|| now + (idle / 6).min(Duration::from_secs(5)))
    }

    /// Ends all.
    pub fn close(&mut self) {
        self.open.drain(..).for_each(|line| line.connection.close());
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use tokio::{
        io::{DuplexStream, duplex},
        task::JoinHandle,
        time::sleep,
    };

    use super::*;
    use crate::{
        ids::{ClusterId, InstanceId, StreamKey},
        mux::{Closed, EndpointConfig, Ledger, MuxStream, OpenRequest, Side},
    };

    fn end(io: DuplexStream, side: Side) -> (Connection, JoinHandle<Closed>) {
        let (ledger, instance) = (Ledger::new(1 << 20), InstanceId::random());
        let config = EndpointConfig { side, max_streams: 10, ledger, instance, jitter: 0 };
        let (connection, driver) = Connection::new(io, BytesMut::new(), config);
        (connection, tokio::spawn(driver.run()))
    }

    fn line() -> (Connection, Connection, JoinHandle<Closed>) {
        let (near, far) = duplex(1024);
        let ((near, driver), (far, _far_driver)) = (end(near, Side::Dialler), end(far, Side::Acceptor));
        (near, far, driver)
    }

    fn stream(line: &Connection) -> MuxStream {
        line.open(OpenRequest::new(StreamKey::random(), ClusterId::of_spki(b"k"))).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn streams_are_spread_and_a_line_without_any_ends() {
        let mut lines = Lines::new(LineSettings::new(2, 1));
        let mut streams = Vec::new();
        for _ in 0..2 {
            assert!(matches!(lines.choose(), Choice::Dial));
            let (near, _far, _driver) = line();
            streams.push(stream(&near));
            lines.dialled(near);
        }
        let Choice::Line(third) = lines.choose() else { panic!("no line") };
        streams.push(stream(&third));
        let Choice::Line(fourth) = lines.choose() else { panic!("no line") };
        assert_eq!(fourth.stream_count(), 1, "the one with the fewest");
        sleep(Duration::from_secs(100)).await;
        assert!(lines.sweep().is_some() && lines.count() == 2, "they have streams");
        drop(streams);
        sleep(Duration::from_secs(1)).await;
        for _ in 0..7 {
            sleep(lines.sweep().map_or(Duration::ZERO, |next| next - Instant::now())).await;
        }
        assert_eq!((lines.sweep(), lines.count()), (None, 0));
        assert!(third.closed().await.detail.contains("this side") && matches!(lines.choose(), Choice::Dial));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_fails_is_not_dialled_again_at_once_and_the_relays_hint_counts() {
        let mut lines = Lines::new(LineSettings::new(1, 1));
        lines.failed(Duration::from_secs(10));
        assert!(matches!(lines.choose(), Choice::Nowhere));
        assert!(lines.retry_at() >= Instant::now() + Duration::from_secs(10));
        tokio::time::sleep_until(lines.retry_at()).await;
        assert!(matches!(lines.choose(), Choice::Dial));
        let (near, _far, driver) = line();
        lines.dialled(near);
        sleep(Duration::from_millis(1)).await;
        driver.abort();
        let _aborted = driver.await;
        let before = lines.retry_at();
        let _choice = lines.choose();
        assert!(lines.count() == 0 && lines.retry_at() > before, "one that was lost counts as failed");

        let (near, far, _driver) = line();
        let _held = stream(&near);
        lines.dialled(near);
        far.go_away(crate::proto::CloseReason::Draining, Duration::from_secs(30), "");
        sleep(Duration::from_millis(10)).await;
        assert!(matches!(lines.choose(), Choice::Nowhere) && lines.count() == 1, "its streams go on");
        assert!(lines.retry_at() > Instant::now(), "nobody asks in a circle");
    }
}
