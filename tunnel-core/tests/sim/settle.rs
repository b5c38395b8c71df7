//! Letting everything come to its end, and looking at what is left.

use std::time::Duration;

use super::world::World;

/// Time is asked for at most so often before every stream is at its end.
const ROUNDS: usize = 60;
/// Everything moves at most so often without time passing.
const PUMPS: usize = 200_000;

impl World {
    /// Every stream comes to its end or to an error; then nothing is left of it.
    pub(super) fn settle(&mut self) {
        for line in &mut self.lines {
            for wire in &mut line.wires {
                wire.stalled = false;
            }
        }
        for stream in &mut self.streams {
            for flow in &mut stream.flows {
                flow.wants_finish = true;
            }
        }
        self.until("every stream is at its end", |world| {
            world.streams.iter().all(|stream| stream.is_settled(0) && stream.is_settled(1))
        });
        for stream in &self.streams {
            for (dir, flow) in stream.flows.iter().enumerate() {
                let whole = flow.ended && flow.read == flow.goal;
                let given_up = stream.broken || stream.released[0] || stream.released[1];
                assert!(
                    whole || given_up,
                    "direction {dir} of an undisturbed stream is not whole: {stream:?}"
                );
                let promised = flow.finished && !stream.broken && !stream.released[1 - dir];
                assert!(!promised || whole, "what was finished must arrive: {stream:?}");
            }
        }
        for s in 0..self.streams.len() {
            self.release(s, 0);
            self.release(s, 1);
        }
        self.until("nothing is left of any stream", |world| world.left() == (0, 0));
        assert_eq!(self.relay_ledger.promised(), 0, "the relay's promises are given back");
        assert!(
            self.ledgers.iter().all(|ledger| ledger.promised() == 0),
            "the ends' promises are given back"
        );
        assert!(!self.has_output(), "all is said");
    }

    fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        for _ in 0..ROUNDS {
            let quiet = (0..PUMPS).any(|_| {
                let moved = self.pump(true);
                self.check();
                !moved
            });
            assert!(quiet, "it never gets quiet");
            if is_so(self) {
                return;
            }
            if self.take_up_all() {
                continue;
            }
            let next =
                self.deadline().map_or(Duration::ZERO, |next| next.saturating_duration_since(self.now));
            self.advance(next);
        }
        panic!("not so: {what}; {:?} left; {:#?}", self.left(), self.streams);
    }
}
