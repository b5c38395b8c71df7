//! The rules of [`sim`] catch what they are there for: faults that are planted are found within a few scripts.

mod sim;

use std::panic::{catch_unwind, set_hook};

use sim::Planted;

/// Scripts in which a planted fault must show.
const SEEDS: u64 = 60;

#[test]
fn t41_faults_that_are_planted_are_found() {
    // Each is found by a panic, which is what is wanted.
    set_hook(Box::new(|_| {}));
    let found =
        |planted| (0..SEEDS).find(|seed| catch_unwind(|| sim::seed::play(*seed, Some(planted))).is_err());
    let faults = [Planted::SkipsAByte, Planted::RepeatsAByte, Planted::ForgesAnEnd];
    let missed: Vec<_> = faults.into_iter().filter(|planted| found(*planted).is_none()).collect();
    let _this_panic_is_heard = std::panic::take_hook();
    assert!(missed.is_empty(), "not found: {missed:?}");
}
