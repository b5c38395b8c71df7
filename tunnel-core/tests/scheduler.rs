//! The scheduler is fair whatever happened before: no history of activity gives a stream, or a user, more than its
//! part or less.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use towline_tunnel::proto::{StreamId, frame::MAX_PAYLOAD, schedule::Scheduler};

const STREAMS: u32 = 5;

fn share(stream: StreamId) -> u64 {
    u64::from(stream % 2)
}

/// A scheduler with what each stream has left to send.
#[derive(Default)]
struct Line {
    scheduler: Scheduler,
    backlog: HashMap<StreamId, usize>,
    sent: HashMap<StreamId, usize>,
    /// Ids are never used again.
    gone: HashSet<StreamId>,
}

impl Line {
    fn write(&mut self, stream: StreamId, bytes: usize) {
        if self.gone.contains(&stream) {
            return;
        }
        *self.backlog.entry(stream).or_default() += bytes;
        self.scheduler.activate(stream, share(stream));
    }

    /// One turn; false where nobody has bytes to send.
    fn turn(&mut self) -> bool {
        let Some(turn) = self.scheduler.turn() else { return false };
        let left = self.backlog.entry(turn.stream).or_default();
        let used = turn.budget.min(*left);
        *left -= used;
        let more = *left > 0;
        *self.sent.entry(turn.stream).or_default() += used;
        self.scheduler.done(turn, used, more);
        true
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(StreamId, usize),
    Turns(u8),
    Remove(StreamId),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..STREAMS, prop_oneof![1..500usize, 4_000..60_000usize]).prop_map(|(s, n)| Step::Write(s, n)),
        3 => (1..12u8).prop_map(Step::Turns),
        1 => (0..STREAMS).prop_map(Step::Remove),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn after_any_history_users_and_their_streams_share_equally(history in proptest::collection::vec(step(), 0..200)) {
        let mut line = Line::default();
        for step in history {
            match step {
                Step::Write(stream, bytes) => line.write(stream, bytes),
                Step::Turns(turns) => for _ in 0..turns {
                    line.turn();
                },
                Step::Remove(stream) => {
                    line.scheduler.remove(stream);
                    line.gone.insert(stream);
                }
            }
        }
        for stream in 0..STREAMS {
            line.write(stream, 1 << 40);
        }
        line.sent.clear();
        for _ in 0..4_000 {
            line.turn();
        }
        let alive: Vec<StreamId> = (0..STREAMS).filter(|stream| !line.gone.contains(stream)).collect();
        let of = |user| alive.iter().filter(move |stream| share(**stream) == user);
        let sum = |user| of(user).map(|stream| line.sent[stream] as f64).sum::<f64>();
        if of(0).count() > 0 && of(1).count() > 0 {
            prop_assert!((0.97..1.03).contains(&(sum(0) / sum(1))), "{:?}", line.sent);
        }
        for stream in &alive {
            let user = share(*stream);
            let part = line.sent[stream] as f64 * of(user).count() as f64 / sum(user);
            prop_assert!((0.95..1.05).contains(&part), "stream {stream}: {:?}", line.sent);
        }
    }

    #[test]
    fn all_that_is_written_is_sent_and_then_nothing_is_left(history in proptest::collection::vec(step(), 0..200)) {
        let mut line = Line::default();
        let mut written = 0;
        for step in history {
            match step {
                Step::Write(stream, bytes) => {
                    written += bytes;
                    line.write(stream, bytes);
                }
                Step::Turns(turns) => for _ in 0..turns {
                    line.turn();
                },
                Step::Remove(_) => {}
            }
        }
        let bound = written / 1_000 + written / MAX_PAYLOAD + 1_000;
        prop_assert!((0..bound).any(|_| !line.turn()), "turns without end");
        prop_assert_eq!(line.sent.values().sum::<usize>(), written);
        prop_assert!(line.scheduler.is_idle());
    }
}
