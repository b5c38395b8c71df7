//! The mux's state machines against a peer, and an application, that do anything.
//!
//! The input is a script: frames with valid and hostile values, raw bytes, calls of the API, and time. Whatever
//! comes, nothing panics, what goes out is sound frames, what is held stays within what was promised, and once all
//! is let go of nothing is left.

mod end;
mod frames;
mod relay;

use towline_tunnel::proto::{endpoint::Side, ledger::Ledger};

use self::{end::End, relay::Relay};
use super::script::Script;

const MAX_STREAMS: usize = 6;

/// The first byte says what the script is for.
pub fn run(input: &[u8]) {
    let mut script = Script::new(input);
    let first = script.byte();
    let side = if first & 2 == 0 { Side::Dialler } else { Side::Acceptor };
    let ledger = Ledger::new(if first & 4 == 0 { 1 << 20 } else { 100_000 });
    if first & 1 == 0 {
        End::new(side, ledger.clone()).play(&mut script);
    } else {
        Relay::new(ledger.clone()).play(&mut script);
    }
    assert_eq!(ledger.promised(), 0, "what was promised is given back");
}

/// Scripts in which streams open, carry bytes, are credited and end.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for first in 0..8u8 {
        // Two OPENs, DATA with and without an end, CREDIT, OPENED, RESET, a little of the API and of time.
        let mut seed = vec![first];
        for step in 0..60u8 {
            seed.extend_from_slice(&[
                step,
                step.wrapping_mul(29) | 1,
                step % 7,
                step.wrapping_mul(11),
                first,
                3,
            ]);
        }
        seeds.push(seed);
    }
    seeds
}
