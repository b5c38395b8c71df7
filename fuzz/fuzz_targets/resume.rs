#![no_main]

libfuzzer_sys::fuzz_target!(init: towline_fuzz::begin("resume"), |bytes: &[u8]| towline_fuzz::resume::run(bytes));
