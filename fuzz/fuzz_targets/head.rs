#![no_main]

libfuzzer_sys::fuzz_target!(init: towline_fuzz::begin("head"), |bytes: &[u8]| towline_fuzz::head::run(bytes));
