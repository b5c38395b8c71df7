//! A slice of the fuzzing: identity's targets over their seeds and mutations of them. `cargo xtask soak fuzz` runs them
//! for as long as one likes, with a fuzzer that looks at coverage.

#[path = "../../fuzz/src/identity.rs"]
#[allow(unreachable_pub, reason = "the fuzz targets include it as well")]
mod targets;

use proptest::prelude::*;

/// A seed with a piece of it replaced by a piece of another, or by bytes.
fn mutated(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let count = seeds.len();
    let piece = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..6),
        "[0-9a-z\"\\[\\]{}:,.\\\\ -]{0,8}".prop_map(String::into_bytes),
        "(system:|towline:|,| |\\\\u0000|null|\\[\\])".prop_map(String::into_bytes),
    ];
    let change = (any::<prop::sample::Index>(), 0..12_usize, piece);
    (0..count, proptest::collection::vec(change, 0..5)).prop_map(move |(seed, changes)| {
        let mut input = seeds[seed].clone();
        for (at, length, piece) in changes {
            let from = at.index(input.len() + 1);
            let to = (from + length).min(input.len());
            input.splice(from..to, piece);
        }
        input
    })
}

#[test]
fn the_seeds_are_taken() {
    use towline_identity::fuzzing;
    for (issuer, seed) in fuzzing::issuers().iter().zip(targets::claims_seeds()) {
        let user = fuzzing::user_of(issuer, &String::from_utf8_lossy(&seed));
        assert!(user.is_ok(), "{}: {user:?}", issuer.issuer());
    }
    targets::token_seeds().iter().for_each(|seed| targets::token(seed));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_token_gives_an_answer(input in mutated(targets::token_seeds())) {
        targets::token(&input);
    }

    #[test]
    fn no_claims_make_a_user_that_must_not_be(input in mutated(targets::claims_seeds())) {
        targets::claims(&input);
    }
}
