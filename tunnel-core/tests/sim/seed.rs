//! Scripts from a number: a world in which connections are lost again and again.

use super::{Config, Op, Planted, World};

/// SplitMix64 (Steele, Lea, Flood 2014): the same script for the same number, on every machine.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    fn yes(&mut self) -> bool {
        self.next() & 1 == 1
    }

    fn bytes(&mut self) -> u32 {
        let most = [2_000, 40_000, 700_000][self.below(3) as usize];
        self.below(most) as u32
    }
}

/// Plays the script that `seed` stands for. Returns how often a stream left a line that stood.
pub(crate) fn play(seed: u64, planted: Option<Planted>) -> usize {
    let mut dice = Dice(seed);
    let ledgers = [0, 300_000, 2 << 20, 64 << 20];
    let config = Config {
        // One in eight has no relay.
        relay: (dice.below(8) > 0).then(|| (1 + dice.below(2) as u8, 1 + dice.below(2) as u8)),
        end_ledger: ledgers[dice.below(4) as usize],
        relay_ledger: ledgers[dice.below(4) as usize],
        wire: [700, 8 * 1024, 64 * 1024, 512 * 1024][dice.below(4) as usize],
        jitter: dice.byte(),
        streams: 24,
        planted,
    };
    let length = 20 + dice.below(150);
    let script: Vec<Op> = (0..length).map(|_| op(&mut dice)).collect();
    World::run(config, &script)
}

fn op(dice: &mut Dice) -> Op {
    let n = dice.byte();
    match dice.below(66) {
        // Most streams are kept.
        0..=5 => Op::Open { from: n, to: dice.byte(), share: dice.byte() & 0x1b, eager: dice.byte() },
        6 => Op::Open { from: n, to: dice.byte(), share: 4, eager: dice.byte() },
        7..=14 => Op::Write { stream: n, dir: dice.yes(), bytes: dice.bytes() },
        15..=16 => Op::Finish { stream: n, dir: dice.yes() },
        17..=20 => Op::Read { stream: n, dir: dice.yes(), bytes: dice.bytes() },
        21..=25 => Op::Send { line: n, side: dice.yes() },
        26..=31 => Op::Deliver { line: n, side: dice.yes(), bytes: dice.next() as u16 },
        32 => Op::Stall { line: n, side: dice.yes(), on: dice.yes() },
        33..=39 => Op::Pump { times: 1 + n % 20 },
        40..=41 => Op::Advance { ms: dice.below(6_000) as u16 },
        42 => Op::Reset { stream: n, side: dice.yes() },
        43..=44 => Op::Release { stream: n, side: dice.yes() },
        45..=48 => Op::Cut { line: n, arrive: dice.yes() },
        49 => Op::GoAway { line: n, side: dice.yes() },
        50 => Op::Restart,
        51 if dice.below(4) == 0 => Op::Expire { stream: n, side: dice.yes() },
        52 => Op::Control { line: n, side: dice.yes() },
        53..=58 => Op::Move { stream: n, fresh: dice.byte() },
        _ => Op::Resume { stream: n },
    }
}
