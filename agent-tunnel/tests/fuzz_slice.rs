//! A slice of the fuzzing: callers' heads, over seeds and mutations of them. `cargo xtask soak fuzz` runs it for as long as one likes,
//! with a fuzzer that looks at coverage.

#[path = "../../fuzz/src/headers.rs"]
#[allow(unreachable_pub, missing_docs, reason = "the fuzz target includes it as well")]
mod headers;

use proptest::prelude::*;

/// A seed with a piece of it replaced by bytes, by something that means more, or by a line of its own.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let seeds = headers::seeds();
    let piece = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..6),
        "[a-z%:, -]{0,8}".prop_map(String::into_bytes),
        "(\\nImpersonate-(User|Group|Uid|Extra-[a-z%2f]{0,6}): [a-z:,]{0,12}\\n|\\nConnection: [A-Za-z, -]{0,20}\\n|system:masters|towline:|%4)"
            .prop_map(String::into_bytes),
    ];
    let change = (any::<prop::sample::Index>(), 0..12_usize, piece);
    (0..seeds.len(), proptest::collection::vec(change, 0..6)).prop_map(move |(seed, changes)| {
        let mut head = seeds[seed].clone();
        for (at, length, piece) in changes {
            let from = at.index(head.len() + 1);
            let to = (from + length).min(head.len());
            head.splice(from..to, piece);
        }
        head
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_of_a_callers_stands_for_a_user(head in mutated()) {
        headers::run(&head);
    }
}
