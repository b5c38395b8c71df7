#![no_main]

libfuzzer_sys::fuzz_target!(init: towline_fuzz::begin("open"), |bytes: &[u8]| towline_fuzz::open::run(bytes));
