//! Two state machines, joined directly or through a relay's legs, against a model (see [`sim`]).
//!
//! `TOWLINE_CASES` says how many random scripts are played (`cargo xtask soak sim` plays more).
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod sim;

use proptest::prelude::*;
use sim::{Config, Op, World};
use towline_tunnel::proto::{endpoint::BATCH, frame::MAX_PAYLOAD, send::FLOOR, window::MAX_WINDOW};

fn cases() -> ProptestConfig {
    let cases = std::env::var("TOWLINE_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(400);
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 20_000, ..ProptestConfig::default() }
}

fn bytes() -> impl Strategy<Value = u32> {
    prop_oneof![3 => 0..2_000u32, 3 => 0..40_000u32, 1 => 0..700_000u32]
}

fn op(rough: bool) -> impl Strategy<Value = Op> {
    let n = any::<u8>;
    let yes = any::<bool>;
    let gentle = prop_oneof![
        4 => (n(), n(), n(), n()).prop_map(|(from, to, share, eager)| Op::Open { from, to, share, eager }),
        6 => (n(), yes(), bytes()).prop_map(|(stream, dir, bytes)| Op::Write { stream, dir, bytes }),
        2 => (n(), yes()).prop_map(|(stream, dir)| Op::Finish { stream, dir }),
        4 => (n(), yes(), bytes()).prop_map(|(stream, dir, bytes)| Op::Read { stream, dir, bytes }),
        6 => (n(), yes()).prop_map(|(line, side)| Op::Send { line, side }),
        8 => (n(), yes(), any::<u16>()).prop_map(|(line, side, bytes)| Op::Deliver { line, side, bytes }),
        2 => (n(), yes(), yes()).prop_map(|(line, side, on)| Op::Stall { line, side, on }),
        6 => (1..30u8).prop_map(|times| Op::Pump { times }),
        2 => (0..2_500u16).prop_map(|ms| Op::Advance { ms }),
        1 => (n(), yes()).prop_map(|(line, side)| Op::Control { line, side }),
    ];
    let harsh = prop_oneof![
        3 => (n(), yes()).prop_map(|(stream, side)| Op::Reset { stream, side }),
        4 => (n(), yes()).prop_map(|(stream, side)| Op::Release { stream, side }),
        1 => (n(), yes()).prop_map(|(line, arrive)| Op::Cut { line, arrive }),
        1 => (n(), yes()).prop_map(|(line, side)| Op::GoAway { line, side }),
        1 => any::<u16>().prop_map(|ms| Op::Advance { ms }),
        1 => Just(Op::Restart),
        4 => n().prop_map(|stream| Op::Resume { stream }),
        3 => (n(), n()).prop_map(|(stream, fresh)| Op::Move { stream, fresh }),
        1 => (n(), yes()).prop_map(|(stream, side)| Op::Expire { stream, side }),
    ];
    if rough { prop_oneof![5 => gentle, 1 => harsh].boxed() } else { gentle.boxed() }
}

fn config(relay: bool) -> impl Strategy<Value = Config> {
    let ledger = || prop_oneof![Just(0), Just(300_000), Just(2 << 20), Just(64 << 20)];
    let wire = prop_oneof![Just(700), Just(8 * 1024), Just(64 * 1024), Just(512 * 1024)];
    (1..=2u8, 1..=2u8, ledger(), ledger(), wire, any::<u8>()).prop_map(
        move |(clients, agents, end_ledger, relay_ledger, wire, jitter)| Config {
            relay: relay.then_some((clients, agents)),
            end_ledger,
            relay_ledger,
            wire,
            jitter,
            streams: 24,
            planted: None,
        },
    )
}

fn script(rough: bool) -> impl Strategy<Value = Vec<Op>> {
    proptest::collection::vec(op(rough), 1..120)
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn joined_directly_every_byte_arrives_in_order_and_once(config in config(false), script in script(false)) {
        World::run(config, &script);
    }

    #[test]
    fn through_a_relay_every_byte_arrives_in_order_and_once(config in config(true), script in script(false)) {
        World::run(config, &script);
    }

    #[test]
    fn joined_directly_what_is_disturbed_ends_with_an_error_or_whole(config in config(false), script in script(true)) {
        World::run(config, &script);
    }

    #[test]
    fn through_a_relay_what_is_disturbed_ends_with_an_error_or_whole(config in config(true), script in script(true)) {
        World::run(config, &script);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// What stands before a sparse stream on each line: the kernels' buffers, the batch that is being written, and
    /// the one that it is in itself; never what other streams have queued.
    #[test]
    fn a_sparse_stream_waits_for_no_more_than_batches_beside_any_bulk(
        relay in any::<bool>(), mut config in config(true), bulk in 1..22u8, warm in 0..60u8,
    ) {
        config.relay = config.relay.filter(|_| relay);
        let wire = config.wire as u64;
        let waited = World::sparse(config, bulk, warm);
        let batch = (BATCH + 2 * MAX_PAYLOAD) as u64;
        prop_assert!(waited <= 2 * wire + 2 * batch, "{waited} bytes were carried first");
    }
}

fn large(relay: bool, relay_ledger: u64) -> Config {
    Config {
        relay: relay.then_some((1, 1)),
        end_ledger: 64 << 20,
        relay_ledger,
        wire: 64 * 1024,
        jitter: 0,
        streams: 1_000,
        planted: None,
    }
}

#[test]
fn two_ends_that_finish_and_let_go_without_reading_still_come_to_an_end() {
    for relay in [false, true] {
        let both = |op: fn(bool) -> Op| [op(false), op(true)];
        let mut script = vec![Op::Open { from: 0, to: 0, share: 0, eager: 0 }, Op::Pump { times: 20 }];
        script.extend(both(|dir| Op::Write { stream: 0, dir, bytes: 100_000 }));
        script.extend(both(|dir| Op::Finish { stream: 0, dir }));
        script.push(Op::Pump { times: 20 });
        script.extend(both(|side| Op::Release { stream: 0, side }));
        World::run(Config { end_ledger: 0, relay_ledger: 0, ..large(relay, 0) }, &script);
    }
}

#[test]
fn t36_one_reader_that_stands_still_among_a_thousand_streams_holds_nobody_up() {
    let config = large(true, 64 << 20);
    let alone = World::stalled(config.clone(), 999, 20_000, false);
    let beside = World::stalled(config, 999, 20_000, true);
    assert_eq!(alone.relay, 0, "{alone:?}");
    assert!(beside.rounds as f64 * 0.95 <= alone.rounds as f64, "{alone:?} {beside:?}");
}

#[test]
fn windows_and_allowances_grow_for_a_reader_that_keeps_up() {
    for relay in [false, true] {
        let config = Config { wire: 16 << 20, ..large(relay, 64 << 20) };
        let [reader, at_relay] = World::growth(config, 64 << 20);
        assert!(
            reader >= MAX_WINDOW / 2,
            "relay {relay}: the reader promised {reader}, the relay {at_relay}"
        );
        assert!(!relay || at_relay >= MAX_WINDOW / 4, "the reader promised {reader}, the relay {at_relay}");
    }
}

#[test]
fn a_relay_whose_way_on_stands_still_holds_what_its_ledger_allows_and_no_more() {
    for (ledger, streams) in [(0, 40), (300_000, 40), (64 << 20, 10)] {
        let held = World::held_up(large(true, ledger), streams);
        let floors = streams as u64 * FLOOR;
        assert!(held >= floors / 2, "{held}: the floor is never withheld");
        assert!(held <= ledger + floors, "{held} bytes of {ledger}");
    }
}
