//! Streams that wait to go on: since when, when taking one up is tried next, and which end where there are too many.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::Place;
use crate::backoff::{self, Backoff};

/// Between attempts to take one stream up: at first at most this, at last at most that.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// A stream that stood on its connection for this long is taken up at once, whether or not it moved a byte: a watch may have nothing to say.
const STEADY: Duration = Duration::from_secs(10);

/// What the keeper knows of one stream.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) place: Arc<Place>,
    /// Whose it is; at the agent only.
    user: Option<Arc<str>>,
    pub(super) parked: Option<Parked>,
    /// It became bulk while it waited; told again once it goes on.
    pub(super) bulk_waits: bool,
    backoff: Backoff,
    /// When it went on last, and how far it was when it was parked last.
    stands_since: Instant,
    moved: Option<u64>,
}

/// Since when a stream waits, and when taking it up is tried next.
#[derive(Debug)]
pub(super) struct Parked {
    since: Instant,
    since_boot: Duration,
    /// None while RESUME waits for its answer.
    pub(super) next: Option<Instant>,
}

impl Parked {
    fn now(next: Option<Instant>) -> Self {
        Self { since: Instant::now(), since_boot: since_boot(), next }
    }

    /// When it has waited for so long, if it has not.
    pub(super) fn ends(&self, keep_for: Duration) -> Option<Instant> {
        let end = self.since + keep_for;
        let slept = since_boot().saturating_sub(self.since_boot) >= keep_for;
        (Instant::now() < end && !slept).then_some(end)
    }
}

impl Entry {
    pub(super) fn new(place: Arc<Place>, user: Option<Arc<str>>) -> Self {
        let backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        Self {
            place,
            user,
            parked: None,
            bulk_waits: false,
            backoff,
            stands_since: Instant::now(),
            moved: None,
        }
    }

    /// It lost its connection when it was so far, or was refused. One that stood is asked for at once; but not one that is only ever taken up
    /// and cut: who does that decides how often we ask.
    pub(super) fn park(&mut self, moved: u64) {
        let now = Instant::now();
        let stood = self.parked.is_none()
            && (self.moved.is_none_or(|before| moved > before) || now >= self.stands_since + STEADY);
        self.moved = Some(moved);
        if stood {
            self.backoff.reset();
            self.parked = Some(Parked::now(Some(now)));
        } else {
            self.failed();
        }
    }

    /// It could not be taken up.
    pub(super) fn failed(&mut self) {
        let next = Instant::now() + self.backoff.after_failure(Duration::ZERO, backoff::random());
        self.parked.get_or_insert_with(|| Parked::now(None)).next = Some(next);
    }

    /// It left its connection, and was asked for on another.
    pub(super) fn leaves(&mut self) {
        self.parked = Some(Parked::now(None));
    }

    /// It goes on.
    pub(super) fn stands(&mut self) {
        self.parked = None;
        self.stands_since = Instant::now();
    }
}

/// Time since the machine started, its sleep counted: that is how long the other end has waited.
fn since_boot() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Those that end where more than `room` wait: of the user who has most of them the one that waits longest, and so on, so that nobody's streams
/// are pushed out by another's.
pub(super) fn beyond<'a>(
    waiting: impl Iterator<Item = (&'a Entry, &'a Parked)>,
    room: usize,
) -> Vec<Arc<Place>> {
    let mut users: HashMap<Option<&str>, Vec<(Instant, &Entry)>> = HashMap::new();
    let mut all = 0usize;
    for (entry, parked) in waiting {
        users.entry(entry.user.as_deref()).or_default().push((parked.since, entry));
        all += 1;
    }
    let mut most: BinaryHeap<_> =
        users.iter().map(|(user, streams)| (streams.len(), Reverse(*user))).collect();
    for streams in users.values_mut() {
        streams.sort_unstable_by_key(|(since, _)| Reverse(*since));
    }
    let mut over = Vec::new();
    for _ in room..all {
        let Some((count, user)) = most.pop() else { break };
        let oldest = users.get_mut(&user.0).and_then(Vec::pop);
        over.extend(oldest.map(|(_, entry)| Arc::clone(&entry.place)));
        most.push((count - 1, user));
    }
    over
}
