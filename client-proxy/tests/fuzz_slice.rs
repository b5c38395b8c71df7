//! A slice of the fuzzing: what plugins print and kubeconfigs, over seeds and mutations of them. `cargo xtask soak fuzz` runs it for as long
//! as one likes, with a fuzzer that looks at coverage.

#[path = "../../fuzz/src/exec_credential.rs"]
#[allow(unreachable_pub, missing_docs, reason = "the fuzz target includes it as well")]
mod exec_credential;
#[path = "../../fuzz/src/kubeconfig.rs"]
#[allow(unreachable_pub, missing_docs, reason = "the fuzz target includes it as well")]
mod kubeconfig;

use proptest::prelude::*;

/// A seed with a piece of it replaced by bytes or by something that means more.
fn mutated(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..6),
        "[0-9a-zT\"\\[\\]{}:,.\\\\+-]{0,8}".prop_map(String::into_bytes),
        "(null|\\{\\}|\"token\":|\"\"|9999999999|\\\\u0000)".prop_map(String::into_bytes),
    ];
    let change = (any::<prop::sample::Index>(), 0..12_usize, piece);
    (0..seeds.len(), proptest::collection::vec(change, 0..5)).prop_map(move |(seed, changes)| {
        let mut output = seeds[seed].clone();
        for (at, length, piece) in changes {
            let from = at.index(output.len() + 1);
            let to = (from + length).min(output.len());
            output.splice(from..to, piece);
        }
        output
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_token_comes_only_of_a_credential_that_has_it(output in mutated(exec_credential::seeds())) {
        exec_credential::run(&output);
    }

    #[test]
    fn a_context_is_put_in_and_taken_out_and_nothing_else_changes(file in mutated(kubeconfig::seeds())) {
        kubeconfig::run(&file);
    }
}
