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
            None => Choice::Nowhere,
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
            let said = line.connection.goaway();
            let going = said.is_some();
            hint = hint.max(said.map_or(Duration::ZERO, |said| said.delay));
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
