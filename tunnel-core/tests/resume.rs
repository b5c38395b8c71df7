//! Connections are lost again and again, under virtual time, and no stream that is kept notices (see [`sim`]).
//!
//! `TOWLINE_SEEDS` says how many scripts are played, from `TOWLINE_FIRST_SEED` on (`cargo xtask soak sim` plays more). A script that
//! fails is played again by its number: `TOWLINE_SEEDS=1 TOWLINE_FIRST_SEED=n`.

mod sim;

use std::panic::catch_unwind;

fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(usual)
}

#[test]
fn t41_what_is_kept_survives_every_loss_of_its_connections() {
    let first = number("TOWLINE_FIRST_SEED", 0);
    let seeds = number("TOWLINE_SEEDS", 1_000);
    let mut moved = 0;
    for seed in first..first + seeds {
        match catch_unwind(|| sim::seed::play(seed, None)) {
            Ok(times) => moved += times,
            Err(_) => panic!("seed {seed} fails; play it alone: TOWLINE_SEEDS=1 TOWLINE_FIRST_SEED={seed}"),
        }
    }
    assert!(seeds < 1_000 || moved > 100, "streams move to lines in these scripts, {moved} times");
}
