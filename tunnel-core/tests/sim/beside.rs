//! Streams beside others, bulk alone, and lines that stand still: how much is carried first, promised and held.

use towline_tunnel::proto::{ledger::Ledger, window::MAX_WINDOW};

use super::{
    Op,
    world::{Config, World},
};

/// What a stream beside one that stands still meets.
#[derive(Debug)]
pub(crate) struct Beside {
    /// How often everything moved until all others were done.
    pub(crate) rounds: usize,
    /// Bytes that the relay holds for the one that stands still.
    pub(crate) relay: u64,
    /// Bytes that its ends hold: the writer's, and the reader's.
    pub(crate) ends: [u64; 2],
}

impl World {
    /// The most bytes that any line carries between the moment that 100 bytes of a new stream are written and the
    /// moment that they are read, while so many other streams carry bulk.
    pub(crate) fn sparse(config: Config, bulk: u8, warm: u8) -> u64 {
        let mut world = Self::new(config);
        for n in 0..bulk {
            world.play(&Op::Open { from: 0, to: 0, share: n, eager: 3 });
            world.streams[usize::from(n)].flows[0].goal = 1 << 40;
        }
        for _ in 0..=warm {
            world.pump(false);
        }
        world.play(&Op::Open { from: 0, to: 0, share: 0, eager: 3 });
        let sparse = world.streams.len() - 1;
        world.streams[sparse].flows[0].goal = 100;
        let before: Vec<u64> = world.lines.iter().map(|line| line.delivered).collect();
        for _ in 0..10_000 {
            world.pump(false);
            world.check();
            if world.streams[sparse].flows[0].read == 100 {
                let carried = world.lines.iter().zip(before).map(|(line, before)| line.delivered - before);
                return carried.max().unwrap_or(0);
            }
        }
        panic!("the sparse stream never arrives");
    }

    /// So many streams carry `each` bytes, beside one (or none) that has endless bytes and a reader that stands still.
    pub(crate) fn stalled(config: Config, streams: usize, each: u64, stalled: bool) -> Beside {
        let mut world = Self::new(config);
        if stalled {
            world.play(&Op::Open { from: 0, to: 0, share: 0, eager: 0 });
            world.streams[0].flows[0].goal = 1 << 30;
            // It takes what it can get before the others come.
            while world.pump(false) {}
        }
        let first = world.streams.len();
        for n in 0..streams {
            world.play(&Op::Open { from: 0, to: 0, share: n as u8, eager: 3 });
            world.streams[first + n].flows[0].goal = each;
        }
        let mut rounds = 0;
        while world.streams[first..].iter().any(|stream| stream.flows[0].read < each) {
            rounds += 1;
            assert!(rounds < 100_000, "the others never arrive");
            world.pump(false);
            world.check();
        }
        while world.pump(false) {}
        let held = world.legs.iter().flatten().map(|leg| leg.held()).sum();
        let place = |role: usize| world.ends[world.roles[role]].held();
        let beside = Beside { rounds, relay: held, ends: [place(0), place(world.roles.len() - 1)] };
        assert!(beside.relay <= MAX_WINDOW && beside.ends[1] <= MAX_WINDOW);
        beside
    }

    /// The most that the reader's process and the relay promise while bulk flows to a reader that keeps up.
    pub(crate) fn growth(config: Config, bytes: u64) -> [u64; 2] {
        let mut world = Self::new(config);
        world.play(&Op::Open { from: 0, to: 0, share: 0, eager: 3 });
        world.streams[0].flows[0].goal = bytes;
        let mut most = [0; 2];
        while world.streams[0].flows[0].read < bytes {
            // The lines are long: much is sent before any of it arrives.
            let mut moved = false;
            for _ in 0..200 {
                for line in 0..world.lines.len() {
                    moved |= world.send(line, 0) | world.send(line, 1);
                }
                moved |= world.write(0, 0);
            }
            // It arrives as a socket gives it, and the reader keeps up.
            let mut arrives = true;
            while arrives {
                arrives = false;
                for line in 0..world.lines.len() {
                    arrives |= world.deliver(line, 0, 32 * 1024) | world.deliver(line, 1, 32 * 1024);
                }
                arrives |= world.read(0, 0, 64 * 1024);
                moved |= arrives;
            }
            assert!(moved, "bulk stands still");
            let reader = world.ledgers.last().map_or(0, Ledger::promised);
            most = [most[0].max(reader), most[1].max(world.relay_ledger.promised())];
        }
        most
    }

    /// So many streams want to send on while the line between relay and agent stands still; what the relay holds.
    pub(crate) fn held_up(config: Config, streams: usize) -> u64 {
        let mut world = Self::new(config);
        for n in 0..streams {
            world.play(&Op::Open { from: 0, to: 0, share: 0, eager: 3 });
            world.streams[n].flows[0].goal = 1;
        }
        while world.pump(false) {}
        let agent = world.end_lines[world.roles[world.roles.len() - 1]];
        world.lines[agent].wires[1].stalled = true;
        for stream in &mut world.streams {
            stream.flows[0].goal = 1 << 30;
        }
        while world.pump(false) {
            world.check();
        }
        world.legs.iter().flatten().map(|leg| leg.held()).sum()
    }
}
