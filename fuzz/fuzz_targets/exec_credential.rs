#![no_main]

#[path = "../src/exec_credential.rs"]
mod exec_credential;

libfuzzer_sys::fuzz_target!(init: towline_fuzz::sow(&exec_credential::seeds()), |bytes: &[u8]| exec_credential::run(bytes));
