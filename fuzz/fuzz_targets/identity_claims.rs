#![no_main]

#[path = "../src/identity.rs"]
#[allow(dead_code, reason = "two targets share it")]
mod identity;

libfuzzer_sys::fuzz_target!(init: towline_fuzz::sow(&identity::claims_seeds()), |bytes: &[u8]| identity::claims(bytes));
