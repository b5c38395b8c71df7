//! How many bytes one process has promised to hold.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::interactive::Interactive;

/// Bytes promised to peers beyond the floor of each stream, against a limit. Shared by all connections of a process.
///
/// A promise is a credit: bytes that a peer may send and that then must be held. Growth asks for more, and is
/// refused near the limit; the floor of 16 KiB a stream is never withheld and not counted here, being bounded by
/// the number of streams.
#[derive(Clone, Debug)]
pub struct Ledger(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: u64,
    promised: AtomicU64,
    /// Whatever is promised here is promised in each of these, too.
    parents: Vec<Ledger>,
    /// Never more is promised here than this one has left.
    beside: Option<Ledger>,
    interactive: Interactive,
}

impl Ledger {
    /// A ledger that promises at most `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self::within(Vec::new(), limit, Interactive::default())
    }

    /// A ledger within this one, such as a session's: what it promises counts in both.
    pub fn child(&self, limit: u64) -> Self {
        Self::within(vec![self.clone()], limit, self.0.interactive.clone())
    }

    /// The same for one of several users, who types apart from the others.
    pub fn child_of_user(&self, limit: u64) -> Self {
        Self::within(vec![self.clone()], limit, Interactive::default())
    }

    /// A ledger within this one and another, such as a user's part of a session: what it promises counts in all three, and
    /// who types is the other's user. Neither of the two may be within the other.
    pub fn child_with(&self, other: &Self, limit: u64) -> Self {
        Self::within(vec![self.clone(), other.clone()], limit, other.0.interactive.clone())
    }

    /// A ledger for one of those who share `whole`, in which what is promised here must be promised too, and first, by
    /// [`child_with`](Self::child_with): at most `limit`, and at most as much as then is left of the whole.
    ///
    /// So the bound falls as the whole fills (Choudhury and Hahne's dynamic thresholds): one has at most half of it, each of `n` who
    /// want as much as they get one part of `n + 1`, and something is left for whoever comes next.
    pub fn share_of(whole: &Self, limit: u64) -> Self {
        let (parents, beside) = (Vec::new(), Some(whole.clone()));
        let (promised, interactive) = (AtomicU64::new(0), Interactive::default());
        Self(Arc::new(Inner { limit, promised, parents, beside, interactive }))
    }

    fn within(parents: Vec<Self>, limit: u64, interactive: Interactive) -> Self {
        Self(Arc::new(Inner { limit, promised: AtomicU64::new(0), parents, beside: None, interactive }))
    }

    /// Whether the user whose promises these are types.
    pub fn interactive(&self) -> &Interactive {
        &self.0.interactive
    }

    /// Takes `bytes`, if three quarters of the limit (for the growth of what is there) or all of it (for what is
    /// `new`) still hold them: near the limit growth stops first.
    pub fn reserve(&self, bytes: u64, new: bool) -> bool {
        // The whole has promised these bytes already. Others reserve meanwhile: a share is as exact as it needs to be.
        let left = self.0.beside.as_ref().map_or(u64::MAX, Self::left);
        let limit = self.0.limit.min(left);
        let limit = if new { limit } else { limit / 4 * 3 };
        let reserved = self
            .0
            .promised
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |promised| {
                promised.checked_add(bytes).filter(|sum| *sum <= limit)
            })
            .is_ok();
        if !reserved {
            return false;
        }
        let refusing = self.0.parents.iter().position(|parent| !parent.reserve(bytes, new));
        if let Some(refusing) = refusing {
            self.0.parents[..refusing].iter().for_each(|parent| parent.release(bytes));
            self.0.promised.fetch_sub(bytes, Ordering::Relaxed);
        }
        refusing.is_none()
    }

    /// Bytes that growth may still take here, as things stand.
    pub fn room(&self) -> u64 {
        let promised = self.promised();
        let own = (self.0.limit / 4 * 3).saturating_sub(promised);
        // What is taken here is taken from what is left of the whole, too: p + x <= 3/4 (left - x), where three bytes may be lost by rounding.
        let share = self.0.beside.as_ref().map_or(u64::MAX, |whole| {
            whole.left().saturating_sub(3).saturating_mul(3).saturating_sub(promised.saturating_mul(4)) / 7
        });
        let own = own.min(share);
        self.0.parents.iter().map(Self::room).fold(own, u64::min)
    }

    /// Gives back what was reserved.
    pub fn release(&self, bytes: u64) {
        let before = self.0.promised.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "no more is released than was reserved");
        self.0.parents.iter().for_each(|parent| parent.release(bytes));
    }

    /// Whether anybody else holds it, or a ledger within it.
    pub fn is_used(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    fn left(&self) -> u64 {
        self.0.limit.saturating_sub(self.promised())
    }

    /// Bytes promised now.
    pub fn promised(&self) -> u64 {
        self.0.promised.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_stops_before_new_streams_do() {
        let ledger = Ledger::new(100);
        assert!(ledger.reserve(70, false));
        assert!(!ledger.reserve(10, false));
        assert!(ledger.reserve(30, true));
        assert!(!ledger.reserve(1, true));
        ledger.release(100);
        assert_eq!(ledger.promised(), 0);
    }

    #[test]
    fn what_a_session_promises_counts_for_the_process_too() {
        let process = Ledger::new(100);
        let (a, b) = (process.child(80), process.child(80));
        assert!(a.reserve(80, true));
        assert!(!a.reserve(1, true), "its own limit");
        assert!(!b.reserve(30, true), "the process's limit");
        assert_eq!((b.promised(), process.promised()), (0, 80));
        assert!(b.reserve(20, true));
        a.release(80);
        assert_eq!(process.promised(), 20);
    }
    #[test]
    fn what_counts_in_two_ledgers_is_refused_by_either_and_then_counts_in_none() {
        let (session, user) = (Ledger::new(100), Ledger::new(50));
        let part = session.child_with(&user, 1000);
        assert!(part.reserve(40, true));
        assert!(!part.reserve(20, true), "the user's limit");
        assert!(session.reserve(55, true));
        assert!(!part.reserve(10, true), "the session's limit");
        assert_eq!((part.promised(), session.promised(), user.promised()), (40, 95, 40));
        part.release(40);
        assert_eq!((session.promised(), user.promised()), (55, 0));
    }
    #[test]
    fn those_who_share_a_ledger_leave_something_for_whoever_comes_next() {
        let whole = Ledger::new(1200);
        // One after the other, byte by byte, each as much as there is: alone, and then together with others.
        let take = |users: usize| {
            let shares: Vec<_> = (0..users).map(|_| Ledger::share_of(&whole, 1000)).collect();
            let sessions: Vec<_> =
                shares.iter().map(|share| whole.child(1000).child_with(share, 1000)).collect();
            while sessions.iter().filter(|session| session.reserve(1, true)).count() > 0 {}
            let held: Vec<u64> = shares.iter().map(Ledger::promised).collect();
            sessions.iter().for_each(|session| session.release(session.promised()));
            assert_eq!(whole.promised(), 0);
            held
        };
        assert_eq!(take(1), [600]);
        assert_eq!(take(2), [400, 400]);
        assert_eq!(take(5), [200; 5]);

        let shares = [0; 3].map(|_| Ledger::share_of(&whole, 1000));
        let [first, second, third] = shares.each_ref().map(|share| whole.child_with(share, 1000));
        assert!(first.reserve(600, true) && !first.reserve(1, true));
        assert!(second.reserve(300, true) && !second.reserve(1, true), "half of what the first has left");
        assert!(third.reserve(150, true));
        second.release(300);
        assert!(third.reserve(75, true), "what is given back is there for others");
        assert!(!Ledger::share_of(&whole, 10).reserve(11, true), "never more than its own limit");
    }

    #[test]
    fn the_room_that_is_told_can_be_taken_and_no_more() {
        let whole = Ledger::new(1200);
        let share = Ledger::share_of(&whole, 1000);
        let part = whole.child_with(&share, 1000);
        assert!(part.reserve(100, true));
        let room = part.room();
        assert_eq!(room, (1097 * 3 - 400) / 7);
        assert!(part.reserve(room, false) && !part.reserve(6, false), "{room}");
        let alone = Ledger::new(100);
        assert_eq!(alone.room(), 75);
    }
}
