//! Honest machines, joined directly or through a relay, against the model of `tunnel-core/tests/sim`: scripts that
//! libFuzzer writes instead of proptest.

use super::{
    script::Script,
    sim::{Config, Op, World},
};

/// The first bytes make the world, the rest is what happens in it.
pub fn run(input: &[u8]) {
    let mut script = Script::new(input);
    let relay = script.byte();
    let ledgers = script.byte();
    let ledger = |number: u8| [0, 300_000, 2 << 20, 64 << 20][usize::from(number % 4)];
    let config = Config {
        relay: (relay & 1 == 1).then_some((1 + (relay >> 1) % 2, 1 + (relay >> 2) % 2)),
        end_ledger: ledger(ledgers),
        relay_ledger: ledger(ledgers >> 2),
        wire: [2_000, 8 * 1024, 64 * 1024, 512 * 1024][usize::from(relay >> 6)],
        jitter: script.byte(),
        streams: 24,
        planted: None,
    };
    let mut ops = Vec::new();
    while !script.is_over() && ops.len() < 150 {
        ops.push(op(&mut script));
    }
    World::run(config, &ops);
}

fn op(script: &mut Script<'_>) -> Op {
    let kind = script.byte();
    let stream = script.byte();
    let line = stream;
    let on = kind & 0x80 != 0;
    match kind % 32 {
        0..=3 => Op::Open { from: stream, to: stream >> 2, share: stream >> 4, eager: stream >> 6 },
        4..=8 => {
            let bytes = u32::from(script.short());
            Op::Write { stream, dir: on, bytes: if kind & 0x40 == 0 { bytes % 700 } else { bytes } }
        }
        9..=10 => Op::Finish { stream, dir: on },
        11..=13 => Op::Read { stream, dir: on, bytes: script.short().into() },
        14..=16 => Op::Send { line, side: on },
        17..=20 => Op::Deliver { line, side: on, bytes: script.short() },
        21 => Op::Stall { line, side: on, on: kind & 0x40 != 0 },
        22..=25 => Op::Pump { times: 1 + (kind >> 6) },
        26 => Op::Advance { ms: script.short() },
        27 => Op::Reset { stream, side: on },
        28 | 29 => Op::Release { stream, side: on },
        30 => Op::Cut { line, arrive: on },
        _ => match (kind >> 6, stream & 3) {
            (0, _) => Op::GoAway { line, side: on },
            (1, _) => Op::Control { line, side: on },
            (_, 0) => Op::Restart,
            (_, 1) => Op::Expire { stream: stream >> 2, side: on },
            _ => Op::Resume { stream: stream >> 2 },
        },
    }
}

/// A conversation in each kind of world.
pub fn seeds() -> Vec<Vec<u8>> {
    let talk: &[u8] = &[
        0, 0xc0, 70, 0, 0x20, 0, 22, 0, 11, 0, 255, 255, 0x84, 0, 1, 0, 22, 0, 9, 0, 22, 0, 0x89, 0, 22, 0,
        0x8b, 0, 255, 255, 26, 0, 4, 0, 22, 0, 28, 0, 22, 0, 0x9c, 0, 22, 0, 22, 0,
    ];
    let disturb: &[u8] = &[1, 0xc5, 5, 1, 0, 9, 14, 0, 17, 0, 0, 9, 27, 1, 30, 0, 2, 0, 31, 1, 22, 0];
    let worlds = [0u8, 1, 7, 0x41, 0x80, 0xc3];
    worlds
        .iter()
        .flat_map(|world| {
            let head = [*world, world.rotate_left(3), 7];
            [[&head[..], talk].concat(), [&head[..], talk, disturb, talk].concat()]
        })
        .collect()
}
