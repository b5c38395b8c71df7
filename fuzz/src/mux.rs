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
    seeds.extend(resuming());
    seeds
}

/// Scripts in which streams are taken up: at an agent, at a client, and through a relay.
fn resuming() -> [Vec<u8>; 3] {
    const FILL: &[u8] = &[13];
    // The peer opens stream 2 under the name 5; it is accepted and kept; a byte comes, and some are written.
    const ACCEPTED: &[u8] = &[0, 1, 2, 1, 5, 0, 0, 12, 15, 3, 5, 0, 0, 1, 2, 5, 0, 1, 7, 4, 90, 2];
    // RESUME as stream 4, epoch 1, and once more as stream 6, epoch 2; then one that was used, as stream 8.
    const TAKEN_UP: &[u8] = &[0, 1, 4, 11, 2, 5, 7, 1, 1, 0, 0, 255, 13, 0, 1, 4, 5, 0, 1];
    const AGAIN: &[u8] =
        &[0, 1, 6, 11, 2, 5, 7, 1, 1, 1, 0, 255, 13, 0, 1, 8, 11, 2, 5, 7, 1, 1, 1, 0, 255, 13];
    // Stream 1 is opened under the name 5, and OPENED comes; it is kept, and moves; RESUMED comes, and a byte.
    const OPENED: &[u8] = &[6, 5, 0, 0, 13, 0, 1, 1, 3, 5, 15, 3, 5, 0, 7, 4, 90, 1, 13];
    const MOVED: &[u8] = &[15, 7, 5, 0, 13, 0, 1, 1, 11, 4, 0, 7, 1, 1, 255, 13, 0, 1, 3, 5, 0, 1];
    // RESUME comes on one leg, goes out on the other, is answered there, and a byte follows each way.
    const ASKED: &[u8] = &[0, 0, 1, 1, 11, 2, 5, 7, 1, 1, 0, 0, 255, 1, 1, 10];
    const ANSWERED: &[u8] = &[1, 0, 1, 2, 11, 4, 0, 7, 1, 1, 255, 1, 0, 10];
    const BYTES: &[u8] = &[0, 0, 1, 1, 5, 0, 1, 1, 1, 10, 1, 0, 1, 2, 5, 0, 1, 1, 0, 10];
    [
        [&[0], ACCEPTED, FILL, TAKEN_UP, AGAIN].concat(),
        [&[0], OPENED, MOVED, MOVED].concat(),
        [&[1], ASKED, ANSWERED, BYTES].concat(),
    ]
}
