#![no_main]

libfuzzer_sys::fuzz_target!(init: towline_fuzz::begin("streams"), |bytes: &[u8]| towline_fuzz::streams::run(bytes));
