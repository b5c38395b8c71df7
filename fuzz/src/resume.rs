//! The handshake by which streams go on, between honest ends and a relay that is not.
//!
//! Client and agent are real: keepers, connections and streams, on a clock that stands still. The relay between them is the script: it passes
//! frames on, holds them back, cuts connections, and forges, changes, repeats and reorders RESUME, RESUMED, DETACHED, CREDIT, RESET and GOAWAY.
//! It leaves DATA as it is, since there is no inner TLS here that would notice.
//!
//! Whatever it does: the agent takes a stream up only for a RESUME that the client made, each once and none older than one before; the client
//! goes on only with the agent's answer to the RESUME that it asked last; what was unbound sends nothing more; every byte is read once and in
//! order, and an end only where one was made; and when all is let go of nothing is kept.

mod relay;
mod world;

use tokio::runtime::Builder;
use towline_tunnel::mux::Ledger;

use self::{relay::Tamper, world::World};
use super::script::Script;

/// Things that happen in one script at most.
const STEPS: usize = 120;

/// The bytes are what happens.
pub fn run(input: &[u8]) {
    play(input);
}

/// The same; says how often a stream was taken up, so that it can be seen that scripts get there.
///
/// # Panics
/// At a finding, or if there is no runtime.
pub fn play(input: &[u8]) -> usize {
    let ledger = Ledger::new(16 << 20);
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    let taken_up = runtime.block_on(async {
        let mut world = World::new(&ledger).await;
        let mut script = Script::new(input);
        for _ in 0..STEPS {
            if script.is_over() {
                break;
            }
            step(&mut world, &mut script).await;
        }
        world.settle().await
    });
    drop(runtime);
    assert_eq!(ledger.promised(), 0, "what was promised is given back");
    taken_up
}

async fn step(world: &mut World, script: &mut Script<'_>) {
    let (kind, which) = (script.byte(), usize::from(script.byte()));
    // The upper bits choose a side and a second thing.
    let (side, more) = (usize::from(kind >> 7), usize::from(kind >> 5) & 3);
    match kind % 32 {
        0..=2 => world.write(which, side, usize::from(script.short()) % 6_000),
        3 | 4 => world.read(which, side, usize::from(script.short())),
        5 => world.finish(which, side),
        6..=10 => world.forward(which, side, more, tamper(script)),
        11..=14 => world.forward_all(which),
        15 | 16 => world.cut(which, side, more & 1 == 0),
        17 | 18 => world.lay(side),
        19..=21 => world.repeat_resume(which, more, tamper(script)),
        22 | 23 => world.repeat_answer(which, usize::from(script.byte()), tamper(script)),
        24 => world.say_detached(which, side),
        25 => world.say_reset(which, side, script.byte()),
        26 => world.say_credit(which, side, script.short().into(), script.long()),
        27 => world.say_goaway(which, side),
        28 => world.move_to_line(which, more),
        29 if more == 3 => world.release(which, side),
        30 if more == 3 => world.sleep_until_over().await,
        _ => world.sleep_until_asked_again().await,
    }
    world.pump().await;
}

fn tamper(script: &mut Script<'_>) -> Tamper {
    match script.byte() {
        byte @ 128..=159 => Tamper::Proof(byte),
        160..=175 => Tamper::Epoch(script.byte()),
        176..=207 => Tamper::Arrived(script.short()),
        208..=215 => Tamper::Fin,
        216..=223 => Tamper::Instance,
        224..=231 => Tamper::Cluster,
        232..=239 => Tamper::Ticket,
        240..=247 => Tamper::Key(script.byte()),
        _ => Tamper::Nothing,
    }
}

/// Streams that talk, are cut and go on; honestly, and with each kind of interference.
pub fn seeds() -> Vec<Vec<u8>> {
    const TALK: &[u8] = &[0, 0, 9, 9, 0x80, 0, 9, 9, 11, 0, 3, 0, 255, 255, 0x83, 0, 255, 255];
    const CUT: &[u8] = &[15, 0, 17, 0, 31, 0, 11, 0, 11, 0];
    const CUT_AGENT: &[u8] = &[0x8f, 0, 0x91, 0, 11, 0, 31, 0, 11, 0, 11, 0];
    const LINE: &[u8] = &[17, 0, 0x91, 0, 28, 0, 11, 0, 11, 0];
    const END: &[u8] = &[5, 0, 0x85, 0, 11, 0, 3, 0, 255, 255, 0x83, 0, 255, 255];
    let honest = [TALK, CUT, TALK, CUT_AGENT, TALK, LINE, TALK, END].concat();
    let mut seeds = vec![honest];
    for mischief in [
        &[19, 0, 0][..],
        &[19, 1, 0, 0x93, 0, 0],
        &[19, 0, 130, 19, 0, 160, 7, 19, 0, 190, 1, 2],
        &[22, 0, 0, 0, 22, 1, 0, 140, 22, 0, 1, 180, 0, 9],
        &[24, 0, 0x98, 0],
        &[25, 0, 9, 0x99, 0, 19],
        &[26, 0, 0, 9, 0, 0, 0, 0, 0, 2, 0, 0],
        &[27, 0, 0x9b, 0],
        &[0, 1, 2, 2, 0x80, 2, 3, 3, 15, 0, 17, 0, 31, 0, 6, 0, 0, 6, 1, 140, 0x86, 0, 0],
    ] {
        seeds.push([TALK, CUT, mischief, TALK, CUT, mischief, TALK, CUT_AGENT, END].concat());
    }
    seeds
}
