//! How many bytes one process has promised to hold.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

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
    /// Whatever is promised here is promised there, too.
    parent: Option<Ledger>,
}

impl Ledger {
    /// A ledger that promises at most `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Inner { limit, promised: AtomicU64::new(0), parent: None }))
    }

    /// A ledger within this one, such as a session's: what it promises counts in both.
    pub fn child(&self, limit: u64) -> Self {
        Self(Arc::new(Inner { limit, promised: AtomicU64::new(0), parent: Some(self.clone()) }))
    }

    /// Takes `bytes`, if three quarters of the limit (for the growth of what is there) or all of it (for what is
    /// `new`) still hold them: near the limit growth stops first.
    pub fn reserve(&self, bytes: u64, new: bool) -> bool {
        let limit = if new { self.0.limit } else { self.0.limit / 4 * 3 };
        let reserved = self
            .0
            .promised
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |promised| {
                promised.checked_add(bytes).filter(|sum| *sum <= limit)
            })
            .is_ok();
        if reserved && self.0.parent.as_ref().is_some_and(|parent| !parent.reserve(bytes, new)) {
            self.0.promised.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        reserved
    }

    /// Gives back what was reserved.
    pub fn release(&self, bytes: u64) {
        let before = self.0.promised.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "no more is released than was reserved");
        if let Some(parent) = &self.0.parent {
            parent.release(bytes);
        }
    }

    /// Whether anybody else holds it.
    pub(super) fn is_used(&self) -> bool {
        Arc::strong_count(&self.0) > 1
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
}
