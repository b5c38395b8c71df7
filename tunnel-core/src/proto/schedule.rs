//! Whose bytes go next on one connection (`docs/protocol.md`, "Scheduling").
//!
//! Streams that have just become active come first, for one quantum of 4 KiB each (as fq_codel's new flows, RFC 8290):
//! a keystroke overtakes a copy. Then deficit round robin, per user and within it per stream. Sparse bytes are
//! charged to the user, and every 64 KiB of them admits one bulk quantum, so that neither starves.

use std::collections::{HashMap, VecDeque};

use super::{
    frame::{MAX_PAYLOAD, StreamId},
    tables::give_back,
};

/// What a newly active stream may send before it takes its place in the round.
pub const FRESH_QUANTUM: usize = 4 * 1024;
/// What a stream and a user get in each round: one full frame.
const BULK_QUANTUM: i64 = MAX_PAYLOAD as i64;
/// Sparse bytes after which one bulk quantum is admitted.
const SPARSE_PER_BULK: usize = 64 * 1024;
/// Places of streams that ended that may stay in the queue of fresh ones.
const SLACK: usize = 64;
/// Lowest that a user's sparse bytes can press its deficit.
const DEEPEST_DEBT: i64 = -64 * 1024;

/// A stream's turn to send at most `budget` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The stream.
    pub stream: StreamId,
    /// Payload bytes, at most one frame.
    pub budget: usize,
}

/// Where an active stream stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Fresh,
    Bulk { deficit: i64 },
}

#[derive(Debug)]
struct Flow {
    share: u64,
    place: Place,
}

#[derive(Debug, Default)]
struct User {
    deficit: i64,
    ring: VecDeque<StreamId>,
}

/// The streams of one connection that have bytes to send. Idle streams cost nothing here.
#[derive(Debug, Default)]
pub struct Scheduler {
    flows: HashMap<StreamId, Flow>,
    fresh: VecDeque<StreamId>,
    users: HashMap<u64, User>,
    round: VecDeque<u64>,
    sparse: usize,
}

impl Scheduler {
    /// `stream`, of the user that `share` stands for, has bytes to send. Told again while it is active: no change.
    pub fn activate(&mut self, stream: StreamId, share: u64) {
        if let std::collections::hash_map::Entry::Vacant(entry) = self.flows.entry(stream) {
            entry.insert(Flow { share, place: Place::Fresh });
            self.fresh.push_back(stream);
        }
    }

    /// `stream` ended. Its places in the queues are passed over when they come up.
    pub fn remove(&mut self, stream: StreamId) {
        self.flows.remove(&stream);
        // Nothing comes up while the writer stands still.
        if self.fresh.len() > 2 * self.flows.len() + SLACK {
            let flows = &self.flows;
            self.fresh.retain(|stream| matches!(flows.get(stream), Some(Flow { place: Place::Fresh, .. })));
        }
    }

    /// Whether nobody has bytes to send.
    pub fn is_idle(&self) -> bool {
        self.flows.is_empty()
    }

    /// The next turn. Each must be answered by [`Scheduler::done`] before the next is asked for.
    pub fn turn(&mut self) -> Option<Turn> {
        if self.flows.is_empty() {
            self.fresh.clear();
            self.round.clear();
            self.users.clear();
            give_back(&mut self.flows);
            give_back(&mut self.users);
            self.fresh.shrink_to(SLACK);
            self.round.shrink_to(SLACK);
            return None;
        }
        if self.sparse < SPARSE_PER_BULK
            && let Some(turn) = self.fresh_turn()
        {
            return Some(turn);
        }
        match self.bulk_turn() {
            Some(turn) => {
                self.sparse = 0;
                Some(turn)
            }
            None => self.fresh_turn(),
        }
    }

    fn fresh_turn(&mut self) -> Option<Turn> {
        while let Some(&stream) = self.fresh.front() {
            if matches!(self.flows.get(&stream), Some(Flow { place: Place::Fresh, .. })) {
                return Some(Turn { stream, budget: FRESH_QUANTUM });
            }
            self.fresh.pop_front();
        }
        None
    }

    /// Ends because each full round adds a quantum to every deficit, and a deficit is never far below zero.
    fn bulk_turn(&mut self) -> Option<Turn> {
        while let Some(&share) = self.round.front() {
            let user = self.users.get_mut(&share)?;
            if user.deficit <= 0 && self.round.len() > 1 {
                user.deficit += BULK_QUANTUM;
                self.round.rotate_left(1);
                continue;
            }
            while let Some(&stream) = user.ring.front() {
                match self.flows.get_mut(&stream) {
                    Some(Flow { place: Place::Bulk { deficit }, share: owner }) if *owner == share => {
                        if *deficit <= 0 && user.ring.len() > 1 {
                            *deficit += BULK_QUANTUM;
                            user.ring.rotate_left(1);
                        } else {
                            return Some(Turn { stream, budget: MAX_PAYLOAD });
                        }
                    }
                    _ => {
                        user.ring.pop_front();
                    }
                }
            }
            self.users.remove(&share);
            self.round.pop_front();
        }
        None
    }

    /// The turn's stream sent `used` bytes and has `more` (or not).
    pub fn done(&mut self, turn: Turn, used: usize, more: bool) {
        let Some(flow) = self.flows.get_mut(&turn.stream) else { return };
        let share = flow.share;
        let spent = used as i64;
        let was_fresh = flow.place == Place::Fresh;
        if was_fresh {
            self.sparse = self.sparse.saturating_add(used);
            self.fresh.pop_front();
        }
        if let Some(user) = self.users.get_mut(&share) {
            user.deficit = (user.deficit - spent).max(DEEPEST_DEBT);
        }
        if !more {
            self.flows.remove(&turn.stream);
            // Its place goes too: it would count twice once the stream is active again.
            if let Some(user) = self.users.get_mut(&share)
                && !was_fresh
                && user.ring.front() == Some(&turn.stream)
            {
                user.ring.pop_front();
            }
            return;
        }
        match &mut flow.place {
            Place::Bulk { deficit } => *deficit -= spent,
            place @ Place::Fresh => {
                *place = Place::Bulk { deficit: 0 };
                let user = self.users.entry(share).or_insert_with(|| {
                    self.round.push_back(share);
                    User::default()
                });
                user.ring.push_back(turn.stream);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs turns in which each stream has endless bytes; returns the bytes each sent.
    fn run(scheduler: &mut Scheduler, turns: usize) -> HashMap<StreamId, usize> {
        let mut sent = HashMap::new();
        for _ in 0..turns {
            let turn = scheduler.turn().expect("someone is active");
            *sent.entry(turn.stream).or_default() += turn.budget;
            scheduler.done(turn, turn.budget, true);
        }
        sent
    }

    #[test]
    fn a_newly_active_stream_goes_before_bulk_for_one_quantum() {
        let mut scheduler = Scheduler::default();
        scheduler.activate(1, 1);
        run(&mut scheduler, 10);
        scheduler.activate(3, 1);
        let turn = scheduler.turn().unwrap();
        assert_eq!(turn, Turn { stream: 3, budget: FRESH_QUANTUM });
        scheduler.done(turn, 100, false);
        assert_eq!(scheduler.turn().unwrap().stream, 1);
    }

    #[test]
    fn users_share_equally_whatever_their_number_of_streams() {
        let mut scheduler = Scheduler::default();
        scheduler.activate(1, 1);
        for stream in 0..9 {
            scheduler.activate(3 + 2 * stream, 2);
        }
        let sent = run(&mut scheduler, 2_000);
        let one = sent[&1] as f64;
        let nine: usize = sent.iter().filter(|(id, _)| **id != 1).map(|(_, bytes)| bytes).sum();
        assert!((0.95..1.05).contains(&(one / nine as f64)), "{sent:?}");
    }

    #[test]
    fn a_users_streams_share_equally() {
        let mut scheduler = Scheduler::default();
        for stream in 0..16 {
            scheduler.activate(1 + 2 * stream, 1);
        }
        let sent = run(&mut scheduler, 3_200);
        let (low, high) = (sent.values().min().unwrap(), sent.values().max().unwrap());
        assert!((*low as f64) / (*high as f64) > 0.98, "{sent:?}");
    }

    #[test]
    fn a_flood_of_sparse_bytes_does_not_starve_bulk() {
        let mut scheduler = Scheduler::default();
        scheduler.activate(1, 1);
        run(&mut scheduler, 5);
        let mut bulk = 0;
        for round in 0..1_000u32 {
            scheduler.activate(3 + 2 * round, 2);
            let turn = scheduler.turn().unwrap();
            if turn.stream == 1 {
                bulk += turn.budget;
                scheduler.done(turn, turn.budget, true);
            } else {
                scheduler.done(turn, FRESH_QUANTUM, false);
            }
        }
        assert!(bulk > 40 * MAX_PAYLOAD, "{bulk}");
    }

    #[test]
    fn removed_streams_get_no_turn_and_leave_nothing() {
        let mut scheduler = Scheduler::default();
        scheduler.activate(1, 1);
        scheduler.activate(3, 1);
        run(&mut scheduler, 8);
        scheduler.remove(1);
        assert!((0..5).all(|_| {
            let turn = scheduler.turn().unwrap();
            scheduler.done(turn, turn.budget, true);
            turn.stream == 3
        }));
        scheduler.remove(3);
        assert_eq!(scheduler.turn(), None);
        assert!(scheduler.is_idle() && scheduler.users.is_empty() && scheduler.round.is_empty());
    }
}
