//! Whether somebody types: on one stream little goes up, a little comes down, and again.
//!
//! Who types feels every queue; who copies feels none. So windows may be as large as bulk likes them, until somebody types beside it
//! ([`super::tuning`]). Nothing is said on the wire: client, relay and agent each see it by the sizes of DATA, and each for itself.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A key is at most this much DATA: a character in a WebSocket frame in a record of the inner TLS has some 30 bytes, a line that is pasted
/// 110. The head of an HTTP request has more, and a request is no key.
pub const KEY: usize = 128;
/// What a key brings onto the screen is at most this much: a page of it, with all its colours.
pub const SCREEN: u32 = 16 * 1024;
/// Keys belong together where no more time is between them, and typing is over so long after the last. Less than the 5 s after which
/// kubectl's WebSocket pings.
pub const HOLDS: Duration = Duration::from_secs(2);

/// When one user typed last. Clones are the same user's: on all connections of a process, or wherever else the user is told apart.
#[derive(Clone, Debug, Default)]
pub struct Interactive(Arc<Mutex<Option<Instant>>>);

impl Interactive {
    /// The user typed at this time.
    pub fn note(&self, at: Instant) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Several connections note it, and each as of the last bytes that came to it.
        *last = (*last).max(Some(at));
    }

    /// Whether the user types, as of this time.
    pub fn holds(&self, at: Instant) -> bool {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|last| at.saturating_duration_since(last) <= HOLDS)
    }
}

/// How one stream goes to and fro. *Up* is from the client to the agent.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// When the last key went up, unless more than a key followed.
    key: Option<Instant>,
    /// Bytes that came down since then.
    answer: u32,
}

impl Turns {
    /// DATA of so many bytes went up, at about this time. True where that is somebody who types: it is a key, and so was what went up
    /// before it, a short time ago, and the answer to that was small. A key that nothing answers is none: lines that are
    /// sent to a program that only takes them hurry nobody.
    pub(super) fn up(&mut self, bytes: usize, at: Instant) -> bool {
        if bytes == 0 {
            return false;
        }
        let is_key = bytes <= KEY;
        let lately = self.key.is_some_and(|key| at.saturating_duration_since(key) <= HOLDS);
        let typed = is_key && lately && (1..=SCREEN).contains(&self.answer);
        self.key = is_key.then_some(at);
        self.answer = 0;
        typed
    }

    /// DATA of so many bytes came down.
    pub(super) fn down(&mut self, bytes: usize) {
        self.answer = self.answer.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(300);

    /// What goes up and what comes down after it, in turns with a pause between them: whether anything was taken for typing.
    fn typed(turns: &[(usize, usize)], pause: Duration) -> bool {
        let (mut stream, mut at) = (Turns::default(), Instant::now());
        let mut typed = false;
        for (up, down) in turns {
            at += pause;
            typed |= stream.up(*up, at);
            stream.down(*down);
        }
        typed
    }

    #[test]
    fn a_second_key_after_a_small_answer_is_typing_and_the_first_is_not() {
        assert!(typed(&[(30, 30), (30, 30)], STEP));
        assert!(typed(&[(30, SCREEN as usize), (KEY, 0)], HOLDS));
        assert!(!typed(&[(30, 30)], STEP));
    }

    #[test]
    fn requests_pings_bulk_and_what_nobody_answers_are_no_typing() {
        let request = KEY + 1;
        assert!(
            !typed(&[(request, 400), (request, 400), (request, 400)], STEP),
            "requests on one connection"
        );
        assert!(!typed(&[(400, 3_000), (74, 500), (request, 400)], STEP), "a handshake, and a request");
        assert!(!typed(&[(30, 1 << 20), (30, 1 << 20), (30, 1 << 20)], STEP), "bulk down that is confirmed");
        assert!(!typed(&[(16_320, 30), (16_320, 30), (16_320, 30)], STEP), "bulk up that is confirmed");
        assert!(!typed(&[(30, 0), (30, 0), (30, 0)], STEP), "lines that a program takes");
        assert!(!typed(&[(30, 30), (30, 30), (30, 30)], Duration::from_secs(5)), "pings");
        assert!(!typed(&[(30, 30), (request, 30), (30, 30), (request, 30)], STEP), "keys among other things");
    }

    #[test]
    fn what_carries_no_bytes_is_no_turn() {
        assert!(typed(&[(30, 30), (0, 0), (30, 30)], STEP));
    }

    #[test]
    fn it_holds_for_a_while_and_the_latest_key_counts_whoever_saw_it() {
        let (seen, now) = (Interactive::default(), Instant::now());
        assert!(!seen.holds(now));
        seen.note(now);
        seen.clone().note(now - Duration::from_secs(1));
        assert!(seen.holds(now) && seen.holds(now - STEP) && seen.holds(now + HOLDS));
        assert!(!seen.holds(now + HOLDS + Duration::from_millis(1)));
    }
}
